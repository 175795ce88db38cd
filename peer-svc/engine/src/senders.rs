//! How much so many holders brought at once: whether another one adds anything tells their uplinks from this machine's
//! downlink.
//!
//! What holds (it has a property test): what so many holders brought is the mean rate of all full seconds in which at
//! most so many sent, after the second in which the first byte came, if that was seen at [`LOOKS`] looks at least. It remembers
//! no more than the numbers that fell within the last second.

use std::{collections::VecDeque, time::Instant};

use crate::meter::SECOND;

/// Who sends what comes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sending {
    /// Holders that sent at once within the last second.
    pub holders: usize,
    /// Bytes a second that fewer of them brought, whichever number brought most; 0 if that was never seen.
    pub fewer: f64,
}

/// More holders at once are not told apart.
const MOST_SENDERS: usize = 16;

/// Rates that were seen less often say too little.
pub const LOOKS: u32 = 5;

/// What so many holders brought.
#[derive(Debug, Clone, Default)]
pub struct Senders {
    /// When bytes came first.
    first: Option<Instant>,
    /// How many holders sent lately, from the oldest on.
    lately: VecDeque<(Instant, usize)>,
    /// The rates that were seen by the number of holders: their sum and how many they are.
    rates: [(f64, u32); MOST_SENDERS + 1],
}

impl Senders {
    /// So many holders send now, and so much comes.
    pub fn look(&mut self, holders: usize, rate: f64, now: Instant) -> Sending {
        let holders = holders.min(MOST_SENDERS);
        let is_old = |at: Instant| now.saturating_duration_since(at) > SECOND;
        while self.lately.front().is_some_and(|(at, _)| is_old(*at)) {
            self.lately.pop_front();
        }
        // Only the highest number counts: what came before and is no higher is not needed.
        while self.lately.back().is_some_and(|(_, before)| *before <= holders) {
            self.lately.pop_back();
        }
        self.lately.push_back((now, holders));
        let most = self.lately.front().map_or(0, |(_, most)| *most);
        if rate > 0.0 {
            let first = *self.first.get_or_insert(now);
            // The second in which it began says nothing of the holders.
            if is_old(first) {
                let (sum, looks) = &mut self.rates[most];
                (*sum, *looks) = (*sum + rate, *looks + 1);
            }
        }
        let means = self.rates[..most].iter().filter(|(_, looks)| *looks >= LOOKS);
        let means = means.map(|(sum, looks)| sum / f64::from(*looks));
        Sending { holders: most, fewer: means.fold(0.0, f64::max) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        /// Against all that was ever seen.
        #[test]
        fn what_fewer_brought_was_seen_for_a_second(looks in proptest::collection::vec((0usize..5, 0.0..100.0, 0u64..700), 1..100)) {
            let (start, mut senders) = (Instant::now(), Senders::default());
            let (mut now, mut seen, mut first, mut brought) = (start, Vec::new(), None, Vec::new());
            for (holders, rate, millis) in looks {
                now += MS * u32::try_from(millis).unwrap();
                seen.push((now, holders.min(16)));
                let sending = senders.look(holders, rate, now);
                let most = seen.iter().filter(|(at, _)| now - *at <= SECOND).map(|(_, holders)| *holders).max().unwrap();
                if rate > 0.0 && now - *first.get_or_insert(now) > SECOND {
                    brought.push((most, rate));
                }
                let mean = |holders: usize| {
                    let rates: Vec<f64> = brought.iter().filter(|(so, _)| *so == holders).map(|(_, rate)| *rate).collect();
                    if rates.len() < 5 { 0.0 } else { rates.iter().sum::<f64>() / rates.len() as f64 }
                };
                prop_assert_eq!(sending.holders, most);
                let fewer = (0..most).map(mean).fold(0.0, f64::max);
                prop_assert!((sending.fewer - fewer).abs() < 1e-6, "{} {fewer}", sending.fewer);
            }
        }
    }
}
