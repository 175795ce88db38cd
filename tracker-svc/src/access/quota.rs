//! How much one identity may ask for, so that one that is broken or evil does not take what the others need.
//!
//! What holds (each line has a test):
//! - an identity makes [`CALLS`] calls a second over time, and ten times as many at once; it is told when to come back;
//! - it brings [`NAMES`] names and [`BYTES`] bytes of manifests a second over time, and a hundred times as many at once;
//! - it watches [`WATCHES`] names at once;
//! - one identity's use changes nothing for the others, and what is remembered of each is forgotten when it rests.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_proto::{PeerId, bucket::Bucket};

/// Calls a second.
pub(crate) const CALLS: u32 = 2000;
/// Names a second.
pub(crate) const NAMES: u32 = 20_000;
/// Bytes of manifests a second.
pub(crate) const BYTES: u32 = 8 << 20;
/// Watches at once.
pub(crate) const WATCHES: usize = 4096;
/// Identities that are remembered before those that rest are forgotten.
const REMEMBERED: usize = 4096;

/// How long it takes until so much may be used again.
fn cost(amount: usize, rate: u32) -> Duration {
    Duration::from_secs_f64(amount as f64 / f64::from(rate))
}

#[derive(Debug)]
struct Used {
    calls: Bucket,
    names: Bucket,
    bytes: Bucket,
    watches: Arc<AtomicUsize>,
}

impl Used {
    fn new(now: Instant) -> Self {
        let full = Bucket::full(now);
        Self { calls: full, names: full, bytes: full, watches: Arc::default() }
    }

    fn rests(&self, now: Instant) -> bool {
        let full = [self.calls, self.names, self.bytes].iter().all(|bucket| bucket.is_full(now));
        full && self.watches.load(Ordering::Relaxed) == 0
    }
}

/// What each identity used.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    used: HashMap<PeerId, Used>,
    /// Where the next sweep is due.
    sweep_at: usize,
}

/// A watch that counts until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Watching(Option<Arc<AtomicUsize>>);

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(watches) = &self.0 {
            watches.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Quotas {
    fn of(&mut self, peer: PeerId, now: Instant) -> &mut Used {
        if self.used.len() >= self.sweep_at.max(REMEMBERED) {
            self.used.retain(|_, used| !used.rests(now));
            self.sweep_at = 2 * self.used.len();
        }
        self.used.entry(peer).or_insert_with(|| Used::new(now))
    }

    /// One more call; when to come back if that is too much.
    pub(crate) fn call(&mut self, peer: PeerId, now: Instant) -> Result<(), Duration> {
        self.of(peer, now).calls.take(cost(1, CALLS), Duration::from_secs(10), now)
    }

    /// Names and bytes of manifests; when to come back if that is too much.
    pub(crate) fn bring(&mut self, peer: PeerId, names: usize, bytes: usize, now: Instant) -> Result<(), Duration> {
        let used = self.of(peer, now);
        let burst = Duration::from_secs(100);
        used.names.take(cost(names, NAMES), burst, now)?;
        used.bytes.take(cost(bytes, BYTES), burst, now)
    }

    /// One more watch, unless there are too many.
    pub(crate) fn watch(&mut self, peer: PeerId) -> Option<Watching> {
        let watches = &self.of(peer, Instant::now()).watches;
        if watches.fetch_add(1, Ordering::Relaxed) >= WATCHES {
            watches.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Watching(Some(watches.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: PeerId = PeerId::from_bytes([1; 16]);
    const QUIET: PeerId = PeerId::from_bytes([2; 16]);

    #[test]
    fn one_identity_is_slowed_down_and_others_are_not() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let made = (0..100_000).take_while(|_| quotas.call(NOISY, now).is_ok()).count();
        assert_eq!(made, 10 * CALLS as usize + 1);
        let again = quotas.call(NOISY, now).unwrap_err();
        assert!(quotas.call(QUIET, now).is_ok());
        assert!(quotas.call(NOISY, now + again).is_ok(), "when it was told to come back");
    }

    #[test]
    fn manifests_are_paid_for_by_their_length() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let huge = 200 * BYTES as usize;
        quotas.bring(NOISY, 1, huge, now).unwrap();
        let again = quotas.bring(NOISY, 1, 1, now).unwrap_err();
        assert!((99..=100).contains(&again.as_secs()), "{again:?}");
        quotas.bring(QUIET, 1, 1, now).unwrap();
    }

    #[test]
    fn watches_count_while_they_last() {
        let mut quotas = Quotas::default();
        let mut all: Vec<Watching> = (0..WATCHES).map(|_| quotas.watch(NOISY).unwrap()).collect();
        assert!(quotas.watch(NOISY).is_none() && quotas.watch(QUIET).is_some());
        all.pop();
        assert!(quotas.watch(NOISY).is_some());
    }

    #[test]
    fn those_that_rest_are_forgotten() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        for n in 0..u128::try_from(2 * REMEMBERED).unwrap() {
            quotas.call(PeerId::from_bytes(n.to_be_bytes()), now).unwrap();
        }
        assert_eq!(quotas.used.len(), 2 * REMEMBERED, "all of them are at it");
        quotas.call(NOISY, now + Duration::from_secs(60)).unwrap();
        assert_eq!(quotas.used.len(), 1);
    }
}
