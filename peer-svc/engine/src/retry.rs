//! When to try again: pauses that grow, with jitter, so that a fleet whose tracker was away does not come back
//! all at once.
//!
//! Property: the nth pause in a row lies between half and the whole of `first` times 2^n, cut at `max`; a success
//! starts over.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Between attempts to reach the tracker: noticed soon when it is back, and bearable for it while it is not.
pub const TRACKER: Limits = Limits { first: Duration::from_millis(250), max: Duration::from_secs(2) };

/// Before hashes are sent again that the tracker had no room for: other peers must have finished theirs first. Not
/// long, because news of other files waits too.
pub const NO_ROOM: Limits = Limits { first: Duration::from_secs(1), max: Duration::from_secs(2) };

/// The bounds of pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The first pause at most.
    pub first: Duration,
    /// Every pause at most.
    pub max: Duration,
}

/// Counts attempts that failed in a row.
#[derive(Debug, Clone)]
pub struct Backoff {
    limits: Limits,
    streak: u32,
}

impl Backoff {
    /// No attempt has failed yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, streak: 0 }
    }

    /// An attempt failed: how long to wait before the next one.
    pub fn failed(&mut self, rng: &mut (impl Rng + ?Sized)) -> Duration {
        // 2^16 times any first pause is beyond every maximum.
        let longest = (self.limits.first * (1 << self.streak.min(16))).min(self.limits.max);
        self.streak = self.streak.saturating_add(1);
        rng.random_range(longest / 2..=longest)
    }

    /// Whether no attempt has failed since the last one that succeeded.
    pub fn is_fresh(&self) -> bool {
        self.streak == 0
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self) {
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_within_their_bounds(seed in any::<u64>(), first in 1u64..1000, factor in 1u32..100, attempts in 1u32..40) {
            let first = Duration::from_millis(first);
            let limits = Limits { first, max: first * factor };
            let (mut backoff, mut rng) = (Backoff::new(limits), StdRng::seed_from_u64(seed));
            prop_assert!(backoff.is_fresh());
            for n in 0..attempts {
                let longest = (first * 2u32.saturating_pow(n).min(1 << 16)).min(limits.max);
                let pause = backoff.failed(&mut rng);
                prop_assert!((longest / 2..=longest).contains(&pause), "pause {n}: {pause:?} of {longest:?}");
            }
            prop_assert!(!backoff.is_fresh());
            backoff.succeeded();
            prop_assert!(backoff.is_fresh());
            prop_assert!(backoff.failed(&mut rng) <= first);
        }
    }

    #[test]
    fn two_peers_do_not_try_again_together() {
        let pause = |seed| Backoff::new(TRACKER).failed(&mut StdRng::seed_from_u64(seed));
        assert_ne!(pause(1), pause(2));
    }
}
