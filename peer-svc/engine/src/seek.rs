//! When a download looks beyond its neighbours: some chunk that it misses none of them has.
//!
//! What holds (each line has a property test):
//! - it looks only after it stood still for [`FIRST`] on end, and again after pauses that double, up to [`LONGEST`];
//! - once it goes on, everything begins anew.

use std::time::{Duration, Instant};

/// News of a chunk that is on its way to a neighbour takes less.
pub const FIRST: Duration = Duration::from_secs(1);
/// Between two looks at most.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Times the looks of one download.
#[derive(Debug, Default)]
pub struct Seek {
    still: Option<(Instant, Duration)>,
}

impl Seek {
    /// It stands still for want of a holder; whether it is to look for one now.
    pub fn stands_still(&mut self, now: Instant) -> bool {
        let (since, pause) = *self.still.get_or_insert((now, FIRST));
        let looks = now >= since + pause;
        if looks {
            self.still = Some((now, (2 * pause).min(LONGEST)));
        }
        looks
    }

    /// It does not stand still.
    pub fn goes_on(&mut self) {
        self.still = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn looks_come_after_growing_pauses(steps in proptest::collection::vec((0u64..5000, proptest::bool::weighted(0.95)), 1..200)) {
            let (mut seek, mut now) = (Seek::default(), Instant::now());
            let (mut since, mut pause) = (None, FIRST);
            for (millis, is_still) in steps {
                now += Duration::from_millis(millis);
                if !is_still {
                    seek.goes_on();
                    (since, pause) = (None, FIRST);
                    continue;
                }
                let from = *since.get_or_insert(now);
                let looks = seek.stands_still(now);
                prop_assert_eq!(looks, now - from >= pause);
                if looks {
                    (since, pause) = (Some(now), (2 * pause).min(LONGEST));
                }
            }
        }
    }
}
