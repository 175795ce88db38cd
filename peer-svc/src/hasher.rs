//! The hash of a chunk whose bytes come in pieces: two chunks at a time, where the processor can
//! ([`drizzle_sha256::update_both`]).
//!
//! What holds (each line has a test):
//! - the hash is that of the bytes in the order in which they were taken, whichever thread took them and whatever was
//!   hashed beside them;
//! - on each thread at most one hash waits for another one, with at most [`MOST`] bytes.
//!
//! The chunks that one thread receives come message by message in turn. The first message waits, without being copied,
//! until the next chunk has one, and both are hashed together. So messages of a chunk may still wait when all
//! has come: [`Hasher::waits`] tells, and a caller that lets others run first spares half of the work.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use drizzle_sha256::{Sha256, is_paired, update_both};

/// What threads spent hashing, in nanoseconds, whichever download or share it was for.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// Hashes, and counts how long it takes.
pub(crate) fn timed<T>(hash: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let hashed = hash();
    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    SPENT.fetch_add(took, Ordering::Relaxed);
    hashed
}

/// Time that threads of this process hashed, all together.
pub(crate) fn spent() -> Duration {
    Duration::from_nanos(SPENT.load(Ordering::Relaxed))
}

/// Fewer bytes are not worth a wait.
const LEAST: usize = 4 << 10;
/// No more bytes wait, but for one message: they keep what they were received into.
const MOST: usize = 1 << 20;

/// A hash that grows.
#[derive(Debug, Default)]
pub(crate) struct Hasher(Arc<Mutex<Hash>>);

#[derive(Debug, Default)]
struct Hash {
    sha: Sha256,
    /// Taken, and not hashed yet; none is empty.
    waits: VecDeque<Bytes>,
}

thread_local! {
    /// The one that waits on this thread, unless it is gone.
    static WAITING: RefCell<Weak<Mutex<Hash>>> = const { RefCell::new(Weak::new()) };
}

impl Hasher {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let hasher = Self::default();
        hasher.take_now(bytes);
        hasher
    }

    /// Takes the next bytes, and hashes them together with those of another chunk, now or when that has some.
    pub(crate) fn take(&self, bytes: Bytes) {
        if !is_paired() || bytes.len() < LEAST {
            self.take_now(&bytes);
            return;
        }
        let mut own = self.lock();
        if own.waiting() + bytes.len() > MOST {
            own.catch_up();
        }
        own.waits.push_back(bytes);
        let other = WAITING.take().upgrade().filter(|other| !Arc::ptr_eq(other, &self.0));
        // Another thread has it now: it is continued there.
        let mut locked = other.as_ref().and_then(|other| other.try_lock().ok());
        if let Some(theirs) = &mut locked {
            timed(|| own.go_on_with(theirs));
        }
        let waiting = match (&other, &locked) {
            (Some(other), Some(theirs)) if !theirs.waits.is_empty() => Arc::downgrade(other),
            _ if !own.waits.is_empty() => Arc::downgrade(&self.0),
            _ => Weak::new(),
        };
        WAITING.set(waiting);
    }

    /// Takes the next bytes and hashes them alone.
    pub(crate) fn take_now(&self, bytes: &[u8]) {
        let mut own = self.lock();
        timed(|| {
            own.catch_up();
            own.sha.update(bytes);
        });
    }

    /// Whether bytes wait to be hashed together with others.
    pub(crate) fn waits(&self) -> bool {
        !self.lock().waits.is_empty()
    }

    /// The hash of all bytes that were taken.
    pub(crate) fn finish(self) -> [u8; 32] {
        let mut own = self.lock();
        timed(|| {
            own.catch_up();
            std::mem::take(&mut own.sha).finish()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Hash> {
        // Nothing that is done under it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hash {
    /// Bytes that wait.
    fn waiting(&self) -> usize {
        self.waits.iter().map(Bytes::len).sum()
    }

    /// Hashes alone what waits.
    fn catch_up(&mut self) {
        for bytes in self.waits.drain(..) {
            self.sha.update(&bytes);
        }
    }

    /// Hashes what both have; too little of a rest does not wait.
    fn go_on_with(&mut self, other: &mut Self) {
        while let (Some(ours), Some(theirs)) = (self.waits.front_mut(), other.waits.front_mut()) {
            let both = ours.len().min(theirs.len());
            update_both(&mut self.sha, &ours[..both], &mut other.sha, &theirs[..both]);
            for waits in [&mut self.waits, &mut other.waits] {
                if let Some(bytes) = waits.front_mut() {
                    bytes.advance(both);
                }
                if waits.front().is_some_and(Bytes::is_empty) {
                    waits.pop_front();
                }
            }
        }
        for hash in [self, other] {
            if hash.waiting() < LEAST {
                hash.catch_up();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use drizzle_proto::Digest;
    use proptest::prelude::*;

    use super::*;

    fn bytes(seed: u8, len: usize) -> Bytes {
        (0..len).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect()
    }

    fn digest(hasher: Hasher) -> Digest {
        Digest::from_bytes(hasher.finish())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Chunks whose messages come in any order, cut anywhere, some taken on other threads, some given up.
        #[test]
        fn each_hash_is_that_of_its_own_bytes(
            messages in prop::collection::vec((0_usize..5, 0_usize..20_000, any::<bool>(), any::<bool>()), 1..60),
            given_up in prop::collection::vec(any::<bool>(), 5),
        ) {
            let mut hashers: Vec<Option<Hasher>> = (0..5).map(|_| Some(Hasher::default())).collect();
            let mut taken = vec![Vec::new(); 5];
            for (nth, (which, len, elsewhere, at_once)) in messages.iter().copied().enumerate() {
                if nth == messages.len() / 2 {
                    for (hasher, given_up) in hashers.iter_mut().zip(&given_up) {
                        hasher.take_if(|_| *given_up);
                    }
                }
                let Some(hasher) = &hashers[which] else { continue };
                let new = bytes(u8::try_from(nth).unwrap(), len);
                taken[which].extend_from_slice(&new);
                if elsewhere {
                    thread::scope(|scope| drop(scope.spawn(|| hasher.take(new))));
                } else if at_once {
                    hasher.take_now(&new);
                } else {
                    hasher.take(new);
                }
            }
            for (hasher, taken) in hashers.into_iter().zip(&taken) {
                if let Some(hasher) = hasher {
                    prop_assert_eq!(digest(hasher), Digest::of(taken));
                }
            }
        }
    }

    #[test]
    fn one_waits_for_the_next_and_the_longer_of_two_goes_on_waiting() {
        if !is_paired() {
            return;
        }
        let (a, b, c) = (Hasher::default(), Hasher::default(), Hasher::default());
        let waits = || [a.waits(), b.waits(), c.waits()];
        a.take(bytes(1, 3 * LEAST));
        assert_eq!(waits(), [true, false, false]);
        b.take(bytes(2, LEAST));
        assert_eq!(waits(), [true, false, false]);
        c.take(bytes(3, 2 * LEAST + 100));
        assert_eq!(waits(), [false, false, false], "the rest is too short to wait");
        b.take(bytes(2, LEAST));
        c.take(bytes(3, 3 * LEAST));
        assert_eq!(waits(), [false, false, true]);
        for _ in 0..1000 {
            c.take(bytes(4, 3 * LEAST));
            assert!(c.lock().waiting() <= MOST);
        }
    }

    #[test]
    fn what_two_threads_take_by_turns_is_hashed_in_order() {
        let shared: Vec<Hasher> = (0..4).map(|_| Hasher::default()).collect();
        let whole: Vec<Mutex<Vec<u8>>> = shared.iter().map(|_| Mutex::default()).collect();
        thread::scope(|scope| {
            for thread in 0..2_u8 {
                let (shared, whole) = (&shared, &whole);
                scope.spawn(move || {
                    for turn in 0..400_usize {
                        let which = (turn * 7 + usize::from(thread) * 3) % shared.len();
                        // The order in which both take is what it is: this keeps it.
                        let mut whole = whole[which].lock().unwrap();
                        let new = bytes(thread, LEAST + turn);
                        whole.extend_from_slice(&new);
                        shared[which].take(new);
                    }
                });
            }
        });
        for (hasher, whole) in shared.into_iter().zip(whole) {
            assert_eq!(digest(hasher), Digest::of(&whole.into_inner().unwrap()));
        }
    }
}
