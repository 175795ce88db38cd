//! So much in a second over time, and some seconds' worth at once: for those who must not take what others need. Pure.
//!
//! What holds (each line has a test):
//! - whoever is told to come back in a while is let through then;
//! - what costs more than the bucket holds is let through once it is full, and paid for afterwards.

use std::time::{Duration, Instant};

/// What one caller has used, as the moment from which on it has used nothing.
#[derive(Debug, Clone, Copy)]
pub struct Bucket(Instant);

impl Bucket {
    /// Of a caller that has used nothing.
    pub fn full(now: Instant) -> Self {
        Self(now)
    }

    /// Whether nothing of it is used.
    pub fn is_full(&self, now: Instant) -> bool {
        self.0 <= now
    }

    /// Uses what takes so long to come in again, with `burst` of it at once beforehand; else how long to wait.
    pub fn take(&mut self, cost: Duration, burst: Duration, now: Instant) -> Result<(), Duration> {
        let begun = self.0.max(now);
        if begun > now + burst {
            return Err(begun - now - burst);
        }
        self.0 = begun + cost;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn whoever_comes_back_when_it_was_told_is_let_through() {
        let now = Instant::now();
        let mut bucket = Bucket::full(now);
        let taken = (0..100).take_while(|_| bucket.take(SECOND, 9 * SECOND, now).is_ok()).count();
        assert_eq!(taken, 10);
        let wait = bucket.take(SECOND, 9 * SECOND, now).unwrap_err();
        assert_eq!(wait, SECOND);
        assert!(bucket.take(SECOND, 9 * SECOND, now + wait).is_ok());
        assert!(!bucket.is_full(now) && bucket.is_full(now + 11 * SECOND));
    }

    #[test]
    fn what_is_too_large_passes_when_nothing_is_used_and_is_paid_for() {
        let now = Instant::now();
        let mut bucket = Bucket::full(now);
        bucket.take(100 * SECOND, SECOND, now).unwrap();
        assert_eq!(bucket.take(SECOND, SECOND, now), Err(99 * SECOND));
    }
}
