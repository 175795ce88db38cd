//! How long a download took at the least, by what one peer can know.
//!
//! The lower bound of a distribution is the longest of three times: what the slowest downlink takes, what the source's
//! uplink takes, and what all uplinks together take (Kumar and Ross 2006). It needs the rates of links that one peer
//! does not know: of a source that serves others, too, it sees its own share. So each term takes the best rate that
//! *this* peer saw, which is a lower estimate of the link, and an upper one of the bound:
//! - **downlink**: the bytes of this run, at the best rate over a second at which this machine took in bytes lately, for
//!   all its downloads together;
//! - **source**: the bytes that came from holders of the whole file, at the sum of the best rates seen from each;
//! - **swarm**: the bytes of this run, at the sum of the best rates seen from every holder.
//!
//! What other peers got meanwhile is not known here and left out. A term whose rate is not known is left out, too.
//! Where nothing was seen for a full second, the rate is that of the whole time in which chunks were fetched.
//!
//! What holds (each line has a property test):
//! - no term is longer than the time in which chunks were fetched: a ratio to the bound is never below 1;
//! - one holder that sends all the time at one rate, and nothing else: the bound is that time;
//! - a rate seen that is higher makes no term longer.

use std::time::Duration;

/// What one holder gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Given {
    /// Verified bytes of this run.
    pub bytes: u64,
    /// The best rate seen, in bytes a second; 0 if unknown.
    pub best: f64,
    /// Whether it held the whole file when it was asked first.
    pub is_full: bool,
}

/// The terms of the bound, where they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bound {
    /// What this machine takes to take in all of it.
    pub downlink: Option<Duration>,
    /// What the holders of the whole file take for what came from them.
    pub source: Option<Duration>,
    /// What all known holders together take.
    pub swarm: Option<Duration>,
}

impl Bound {
    /// Of a run in which chunks were fetched for so long. `downlink` is in bytes a second, 0 if unknown.
    pub fn of(given: &[Given], downlink: f64, fetching: Duration) -> Self {
        let all = Sum::of(given.iter(), fetching);
        let full = Sum::of(given.iter().filter(|given| given.is_full), fetching);
        let own = Sum { rate: downlink.max(rate(all.bytes, fetching)), ..all };
        Self { downlink: own.time(fetching), source: full.time(fetching), swarm: all.time(fetching) }
    }

    /// The longest term: no less time was needed.
    pub fn tightest(self) -> Option<Duration> {
        self.downlink.max(self.source).max(self.swarm)
    }
}

/// Bytes, and how fast they can come.
#[derive(Clone, Copy)]
struct Sum {
    bytes: u64,
    rate: f64,
}

impl Sum {
    fn of<'a>(given: impl Iterator<Item = &'a Given>, fetching: Duration) -> Self {
        let none = Self { bytes: 0, rate: 0.0 };
        given.fold(none, |sum, given| Self {
            bytes: sum.bytes + given.bytes,
            rate: sum.rate + given.best.max(rate(given.bytes, fetching)),
        })
    }

    fn time(self, most: Duration) -> Option<Duration> {
        let known = self.bytes > 0 && self.rate > 0.0;
        let time = known.then(|| Duration::try_from_secs_f64(self.bytes as f64 / self.rate).ok())??;
        // What is rounded up is no time that passed.
        Some(time.min(most))
    }
}

fn rate(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn full(bytes: u64, best: f64) -> Given {
        Given { bytes, best, is_full: true }
    }

    fn near(time: Option<Duration>, seconds: f64) -> bool {
        time.is_some_and(|time| (time.as_secs_f64() - seconds).abs() < 1e-6)
    }

    #[test]
    fn a_source_that_was_seen_faster_and_a_machine_that_was_seen_faster_still() {
        let bound = Bound::of(&[full(1000, 200.0)], 500.0, 10 * SECOND);
        assert!(near(bound.downlink, 2.0) && near(bound.source, 5.0) && near(bound.swarm, 5.0), "{bound:?}");
        assert_eq!(bound.tightest(), bound.source);
    }

    #[test]
    fn what_others_gave_is_not_charged_to_the_source() {
        let partial = Given { bytes: 900, best: 300.0, is_full: false };
        let bound = Bound::of(&[full(100, 100.0), partial], 2000.0, 10 * SECOND);
        assert!(near(bound.source, 1.0) && near(bound.swarm, 2.5) && near(bound.downlink, 0.5), "{bound:?}");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        assert_eq!(Bound::of(&[], 100.0, SECOND).tightest(), None);
        assert_eq!(Bound::of(&[full(0, 0.0)], 0.0, SECOND).tightest(), None);
        let partial = Given { bytes: 10, best: 0.0, is_full: false };
        let bound = Bound::of(&[partial], 0.0, SECOND);
        assert_eq!((bound.source, bound.swarm), (None, Some(SECOND)), "no holder of the whole file gave anything");
    }

    fn given() -> impl Strategy<Value = Vec<Given>> {
        let one = (0u64..1 << 40, prop_oneof![Just(0.0), 1.0..1e9], any::<bool>());
        proptest::collection::vec(one.prop_map(|(bytes, best, is_full)| Given { bytes, best, is_full }), 0..10)
    }

    proptest! {
        #[test]
        fn no_term_is_longer_than_the_fetching(given in given(), downlink in 0.0..1e9, millis in 0u64..1 << 30) {
            let fetching = Duration::from_millis(millis);
            let bound = Bound::of(&given, downlink, fetching);
            for term in [bound.downlink, bound.source, bound.swarm, bound.tightest()] {
                prop_assert!(term.is_none_or(|term| term <= fetching), "{bound:?}");
            }
        }

        #[test]
        fn one_holder_at_a_steady_rate_is_the_bound_itself(bytes in 1u64..1 << 40, millis in 1u64..1 << 30) {
            let fetching = Duration::from_millis(millis);
            let rate = bytes as f64 / fetching.as_secs_f64();
            for (downlink, best) in [(rate, rate), (0.0, 0.0), (0.0, rate)] {
                let bound = Bound::of(&[full(bytes, best)], downlink, fetching);
                let ratio = fetching.as_secs_f64() / bound.tightest().unwrap().as_secs_f64();
                prop_assert!((1.0..1.001).contains(&ratio), "{ratio}");
            }
        }

        #[test]
        fn a_higher_rate_makes_no_term_longer(
            mut given in given(), downlink in 0.0..1e9, millis in 1u64..1 << 30, nth: prop::sample::Index, more in 0.0..1e9,
        ) {
            prop_assume!(!given.is_empty());
            let fetching = Duration::from_millis(millis);
            let before = Bound::of(&given, downlink, fetching);
            let nth = nth.index(given.len());
            given[nth].best += more;
            let after = Bound::of(&given, downlink + more, fetching);
            let terms = |bound: Bound| [bound.downlink, bound.source, bound.swarm];
            for (before, after) in terms(before).into_iter().zip(terms(after)) {
                prop_assert!(after <= before);
            }
        }
    }
}
