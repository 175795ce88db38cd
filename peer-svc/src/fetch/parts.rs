//! What came of chunks that are not whole yet. A chunk that breaks off goes on at its offset, from whichever holder.
//!
//! What holds:
//! - nothing here is proved, written or served: a part becomes a chunk only when the hash of the whole matches;
//! - a second copy of a chunk begins with what the first one has;
//! - what is kept between two fetches is bounded, over all downloads of the daemon, and of a chunk that is stored nothing
//!   is kept;
//! - a chunk that several holders gave and that came out wrong is from then on fetched whole, from one holder, so
//!   that the one who lies is found.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drizzle_proto::{ChunkIndex, Manifest, PeerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::verify::Verifier;

/// The parts of one download's chunks.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Memory for what is kept between two fetches, in KiB; shared by all downloads.
    room: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Between two fetches; with the memory that it takes.
    kept: BTreeMap<ChunkIndex, (Verifier, OwnedSemaphorePermit)>,
    /// The fetches of a chunk that run.
    live: BTreeMap<ChunkIndex, Vec<Arc<Mutex<Verifier>>>>,
    /// Chunks that are fetched from one holder alone.
    whole_only: BTreeSet<ChunkIndex>,
}

/// A chunk that is being fetched. Dropped before its end, what came is kept.
#[derive(Debug)]
pub(super) struct Begun {
    parts: Arc<Parts>,
    chunk: ChunkIndex,
    verifier: Arc<Mutex<Verifier>>,
    keep: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parts {
    /// None yet; `room` bounds what is kept, in KiB.
    pub(crate) fn new(room: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { room, state: Mutex::default() })
    }

    /// Begins a chunk from this holder with the most that is here of it.
    pub(super) fn begin(self: &Arc<Self>, manifest: &Manifest, chunk: ChunkIndex, from: PeerId) -> Begun {
        let mut state = lock(&self.state);
        let mut verifier = Verifier::new(manifest, chunk);
        if !state.whole_only.contains(&chunk) {
            let live = state.live.get(&chunk).into_iter().flatten().map(|other| lock(other).clone());
            let longest = live.max_by_key(Verifier::got);
            let kept = state.kept.remove(&chunk).map(|(kept, _)| kept);
            verifier = [longest, kept].into_iter().flatten().max_by_key(Verifier::got).unwrap_or(verifier);
        }
        self.enter(state, verifier, chunk, from)
    }

    /// Begins a chunk from this holder that sends it from its first byte on, whatever is here of it.
    pub(super) fn begin_anew(self: &Arc<Self>, manifest: &Manifest, chunk: ChunkIndex, from: PeerId) -> Begun {
        self.enter(lock(&self.state), Verifier::new(manifest, chunk), chunk, from)
    }

    fn enter(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        mut verifier: Verifier,
        chunk: ChunkIndex,
        from: PeerId,
    ) -> Begun {
        verifier.comes_from(from);
        let verifier = Arc::new(Mutex::new(verifier));
        state.live.entry(chunk).or_default().push(verifier.clone());
        Begun { parts: self.clone(), chunk, verifier, keep: true }
    }

    /// A chunk is stored: what other fetches have of it is not kept when they end.
    pub(crate) fn stored(&self, chunk: ChunkIndex) {
        let mut state = lock(&self.state);
        state.kept.remove(&chunk);
        state.live.remove(&chunk);
    }
}

impl Begun {
    /// What came so far.
    pub(super) fn verifier(&self) -> MutexGuard<'_, Verifier> {
        lock(&self.verifier)
    }

    /// What came is wrong: nothing of it is kept.
    pub(super) fn spoiled(&mut self) {
        self.keep = false;
        let is_mixed = self.verifier().is_mixed();
        if is_mixed {
            let mut state = lock(&self.parts.state);
            state.whole_only.insert(self.chunk);
            state.kept.remove(&self.chunk);
        }
    }

    /// It is whole: what it is worth will be seen.
    pub(super) fn take(&mut self) -> Verifier {
        self.keep = false;
        self.verifier().clone()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = lock(&self.parts.state);
        // The chunk is stored meanwhile.
        let Some(live) = state.live.get_mut(&self.chunk) else { return };
        live.retain(|other| !Arc::ptr_eq(other, &self.verifier));
        if live.is_empty() {
            state.live.remove(&self.chunk);
        }
        let got = self.verifier().got();
        let longest = state.kept.get(&self.chunk).map_or(0, |(kept, _)| kept.got());
        if !self.keep || got <= longest || state.whole_only.contains(&self.chunk) {
            return;
        }
        state.kept.remove(&self.chunk);
        // Without room it is fetched again.
        if let Ok(room) = self.parts.room.clone().try_acquire_many_owned(got.div_ceil(1024)) {
            let kept = self.verifier().clone();
            state.kept.insert(self.chunk, (kept, room));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use drizzle_proto::{Digest, Layout};

    use super::*;

    const CONTENT: &[u8] = b"abcdefgh";

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 16])
    }

    fn manifest() -> (Manifest, ChunkIndex) {
        let layout = Layout::new(CONTENT.len() as u64, 1 << 14).unwrap();
        (Manifest::new(layout, vec![Digest::of(CONTENT)]).unwrap(), layout.chunk_count().index(0).unwrap())
    }

    fn push(begun: &Begun, bytes: &'static [u8]) {
        begun.verifier().push(Bytes::from_static(bytes)).unwrap();
    }

    #[test]
    fn a_chunk_goes_on_at_its_offset_from_another_holder_and_is_proved_as_a_whole() {
        let ((manifest, chunk), parts) = (manifest(), Parts::new(Arc::new(Semaphore::new(64))));
        let first = parts.begin(&manifest, chunk, peer(1));
        push(&first, b"abc");
        drop(first);
        let mut second = parts.begin(&manifest, chunk, peer(2));
        assert_eq!(second.verifier().got(), 3);
        push(&second, b"defgh");
        second.take().finish().unwrap();
        drop(second);
        assert_eq!(parts.begin(&manifest, chunk, peer(1)).verifier().got(), 0, "it is not kept once it is whole");
    }

    #[test]
    fn what_several_holders_spoiled_is_fetched_whole_from_one() {
        let ((manifest, chunk), parts) = (manifest(), Parts::new(Arc::new(Semaphore::new(64))));
        let liar = parts.begin(&manifest, chunk, peer(1));
        push(&liar, b"xyz");
        drop(liar);
        let mut honest = parts.begin(&manifest, chunk, peer(2));
        push(&honest, b"defgh");
        assert!(matches!(honest.take().finish(), Err(crate::verify::Mismatch::MixedHash)));
        honest.spoiled();
        drop(honest);
        let again = parts.begin(&manifest, chunk, peer(1));
        assert_eq!(again.verifier().got(), 0);
        push(&again, b"xyz");
        drop(again);
        let mut whole = parts.begin(&manifest, chunk, peer(2));
        assert!(whole.verifier().got() == 0 && !whole.verifier().is_mixed());
        push(&whole, CONTENT);
        whole.take().finish().unwrap();
    }

    #[test]
    fn who_gave_nothing_of_a_wrong_chunk_is_not_to_blame_and_who_gave_all_of_it_is() {
        use crate::verify::Mismatch;
        let ((manifest, chunk), parts) = (manifest(), Parts::new(Arc::new(Semaphore::new(64))));
        let liar = parts.begin(&manifest, chunk, peer(1));
        push(&liar, b"xyz");
        drop(liar);
        drop(parts.begin(&manifest, chunk, peer(2)));
        let liar = parts.begin(&manifest, chunk, peer(1));
        push(&liar, b"defgh");
        assert_eq!(liar.verifier().clone().finish().unwrap_err(), Mismatch::Hash);
        drop(liar);
        let mut honest = parts.begin(&manifest, chunk, peer(2));
        assert!(honest.verifier().is_full(), "it is not asked for anything");
        assert_eq!(honest.take().finish().unwrap_err(), Mismatch::MixedHash);
    }

    #[test]
    fn a_second_copy_begins_where_the_first_is_and_the_longer_one_is_kept() {
        let ((manifest, chunk), parts) = (manifest(), Parts::new(Arc::new(Semaphore::new(64))));
        let first = parts.begin(&manifest, chunk, peer(1));
        push(&first, b"abc");
        let copy = parts.begin(&manifest, chunk, peer(2));
        assert_eq!(copy.verifier().got(), 3);
        push(&copy, b"de");
        drop(copy);
        drop(first);
        assert_eq!(parts.begin(&manifest, chunk, peer(1)).verifier().got(), 5);
    }

    #[test]
    fn of_a_chunk_that_is_stored_and_of_one_that_was_spoiled_nothing_is_kept() {
        let ((manifest, chunk), room) = (manifest(), Arc::new(Semaphore::new(64)));
        let parts = Parts::new(room.clone());
        // The one that loses is given up only after its chunk came from another holder.
        let loser = parts.begin(&manifest, chunk, peer(1));
        push(&loser, b"abc");
        let broke_off = parts.begin(&manifest, chunk, peer(3));
        push(&broke_off, b"d");
        drop(broke_off);
        let mut winner = parts.begin(&manifest, chunk, peer(2));
        push(&winner, b"efgh");
        winner.take().finish().unwrap();
        drop(winner);
        parts.stored(chunk);
        drop(loser);
        assert_eq!(room.available_permits(), 64, "stored");

        let liar = parts.begin(&manifest, chunk, peer(1));
        push(&liar, b"xyz");
        let mut honest = parts.begin(&manifest, chunk, peer(2));
        drop(liar);
        push(&honest, b"defgh");
        assert!(honest.take().finish().is_err());
        honest.spoiled();
        drop(honest);
        assert_eq!(room.available_permits(), 64, "spoiled");
    }

    #[test]
    fn without_room_nothing_is_kept_and_room_is_given_back() {
        let ((manifest, chunk), room) = (manifest(), Arc::new(Semaphore::new(1)));
        let (parts, others) = (Parts::new(room.clone()), Parts::new(room.clone()));
        for parts in [&parts, &others] {
            let begun = parts.begin(&manifest, chunk, peer(1));
            push(&begun, b"abc");
        }
        assert_eq!(others.begin(&manifest, chunk, peer(1)).verifier().got(), 0);
        assert_eq!(room.available_permits(), 0);
        drop(parts);
        assert_eq!(room.available_permits(), 1);
    }
}
