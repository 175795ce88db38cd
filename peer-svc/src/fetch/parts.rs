//! What came of chunks that are not whole yet. A chunk that breaks off goes on at its offset, from whichever holder.
//!
//! What holds:
//! - nothing here is proved, offered or served: a part becomes a chunk only when the hash of the whole matches;
//! - a part lies at its place in the file, which it has claimed; a second copy of a chunk begins with what the first one
//!   has, and is gathered in memory;
//! - what memory keeps between two fetches is bounded, over all downloads of the daemon, and of a chunk that is stored
//!   nothing is kept;
//! - a chunk that several holders gave and that came out wrong is from then on fetched whole, from one holder, so
//!   that the one who lies is found.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use drizzle_proto::{ChunkIndex, PeerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    store::write::PartialFile,
    verify::{Mismatch, PushError, VerifiedChunk, Verifier},
};

/// The parts of one download's chunks.
#[derive(Debug)]
pub(crate) struct Parts {
    partial: Arc<PartialFile>,
    /// Memory for what is kept between two fetches, in KiB; shared by all downloads.
    room: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Between two fetches; with the memory that it takes.
    kept: BTreeMap<ChunkIndex, (Verifier, OwnedSemaphorePermit)>,
    /// The fetches of a chunk that run. Each is `None` once it is whole.
    live: BTreeMap<ChunkIndex, Vec<Live>>,
    /// Chunks that are fetched from one holder alone.
    whole_only: BTreeSet<ChunkIndex>,
}

type Live = Arc<Mutex<Option<Verifier>>>;

/// A chunk that is being fetched. Dropped before its end, what came is kept.
#[derive(Debug)]
pub(super) struct Begun {
    parts: Arc<Parts>,
    chunk: ChunkIndex,
    verifier: Live,
    keep: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parts {
    /// None yet; `room` bounds what memory keeps, in KiB.
    pub(crate) fn new(partial: Arc<PartialFile>, room: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { partial, room, state: Mutex::default() })
    }

    /// Begins a chunk from this holder with the most that is here of it.
    pub(super) fn begin(self: &Arc<Self>, chunk: ChunkIndex, from: PeerId) -> Begun {
        let (kept, live) = {
            let mut state = lock(&self.state);
            let may_go_on = !state.whole_only.contains(&chunk);
            let kept = state.kept.remove(&chunk).map(|(kept, _)| kept);
            let kept = kept.filter(|kept| may_go_on && kept.stands());
            (kept, state.live.get(&chunk).filter(|_| may_go_on).cloned().unwrap_or_default())
        };
        // One that is at its disk is waited for, but not with everything else locked.
        let got = |live: &Live| lock(live).as_ref().map_or(0, Verifier::got);
        let longest = live.iter().max_by_key(|live| got(live));
        let longest = longest.filter(|live| got(live) > kept.as_ref().map_or(0, Verifier::got));
        let copy = longest.and_then(|live| lock(live).as_ref()?.copy().ok());
        let verifier = copy.or(kept).unwrap_or_else(|| self.fresh(chunk));
        self.enter(verifier, chunk, from)
    }

    /// Begins a chunk from this holder that sends it from its first byte on, whatever is here of it.
    pub(super) fn begin_anew(self: &Arc<Self>, chunk: ChunkIndex, from: PeerId) -> Begun {
        let kept = lock(&self.state).kept.remove(&chunk);
        // Its place is free again.
        drop(kept);
        self.enter(self.fresh(chunk), chunk, from)
    }

    fn fresh(&self, chunk: ChunkIndex) -> Verifier {
        match self.partial.claim(chunk) {
            Some(claim) => Verifier::claimed(claim),
            None => Verifier::new(self.partial.manifest(), chunk),
        }
    }

    fn enter(self: &Arc<Self>, mut verifier: Verifier, chunk: ChunkIndex, from: PeerId) -> Begun {
        verifier.comes_from(from);
        let verifier = Arc::new(Mutex::new(Some(verifier)));
        lock(&self.state).live.entry(chunk).or_default().push(verifier.clone());
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
    fn of<T>(&self, get: impl FnOnce(&Verifier) -> T) -> Option<T> {
        lock(&self.verifier).as_ref().map(get)
    }

    /// Bytes that came so far.
    pub(super) fn got(&self) -> u32 {
        self.of(Verifier::got).unwrap_or(0)
    }

    /// Whether every byte has come.
    pub(super) fn is_full(&self) -> bool {
        self.of(Verifier::is_full).unwrap_or(false)
    }

    /// Which chunk it is.
    pub(super) fn chunk(&self) -> ChunkIndex {
        self.chunk
    }

    /// Bytes of memory that it may come to take.
    pub(super) fn memory(&self) -> u32 {
        self.of(|verifier| if verifier.is_in_memory() { verifier.len() } else { 0 }).unwrap_or(0)
    }

    /// A message of the holder begins.
    pub(super) fn message_begins(&mut self) -> Result<(), Mismatch> {
        let begun = lock(&self.verifier).as_mut().map_or(Ok(()), Verifier::message_begins);
        begun.inspect_err(|_| self.spoiled(self.of(Verifier::is_mixed).unwrap_or(false)))
    }

    /// The next bytes. Blocks on disk I/O.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        let pushed = lock(&self.verifier).as_mut().map_or(Ok(()), |verifier| verifier.push(bytes));
        if let Err(PushError::Mismatch(_)) = pushed {
            self.spoiled(self.of(Verifier::is_mixed).unwrap_or(false));
        }
        pushed
    }

    /// Lets the other chunks of this thread go on, if some of this one's bytes are better hashed together with theirs.
    pub(super) async fn settle(&self) {
        if self.of(Verifier::waits).unwrap_or(false) {
            tokio::task::yield_now().await;
        }
    }

    /// What it is worth now that its holder has no more of it. Too little is kept, and what is wrong is not.
    pub(super) fn finish(&mut self) -> Result<VerifiedChunk, Mismatch> {
        let whole = lock(&self.verifier).take_if(|verifier| verifier.is_full());
        match whole {
            Some(whole) => whole.finish().inspect_err(|mismatch| self.spoiled(*mismatch == Mismatch::MixedHash)),
            None => Err(Mismatch::TooShort { got: self.got(), expected: self.of(Verifier::len).unwrap_or(0) }),
        }
    }

    /// What came is wrong, perhaps from several holders: nothing of it is kept.
    fn spoiled(&mut self, is_mixed: bool) {
        self.keep = false;
        if is_mixed {
            let mut state = lock(&self.parts.state);
            state.whole_only.insert(self.chunk);
            state.kept.remove(&self.chunk);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let verifier = lock(&self.verifier).take();
        let mut state = lock(&self.parts.state);
        // The chunk is stored meanwhile.
        let Some(live) = state.live.get_mut(&self.chunk) else { return };
        live.retain(|other| !Arc::ptr_eq(other, &self.verifier));
        if live.is_empty() {
            state.live.remove(&self.chunk);
        }
        let longest = state.kept.get(&self.chunk).map_or(0, |(kept, _)| kept.got());
        let is_worth_it = self.keep && !state.whole_only.contains(&self.chunk);
        let can_go_on = |verifier: &Verifier| is_worth_it && verifier.stands() && verifier.got() > longest;
        let Some(verifier) = verifier.filter(can_go_on) else { return };
        state.kept.remove(&self.chunk);
        let memory = if verifier.is_in_memory() { verifier.got().div_ceil(1024) } else { 0 };
        // Without room it is fetched again.
        if let Ok(room) = self.parts.room.clone().try_acquire_many_owned(memory) {
            state.kept.insert(self.chunk, (verifier, room));
        }
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Digest, Layout, Manifest};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::disk::Disk;

    const CONTENT: &[u8] = b"abcdefgh";

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 16])
    }

    /// The parts of a file of one chunk.
    struct Fixture {
        parts: Arc<Parts>,
        partial: Arc<PartialFile>,
        room: Arc<Semaphore>,
        chunk: ChunkIndex,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let (folder, room) = (tempfile::tempdir().unwrap(), Arc::new(Semaphore::new(64)));
            let layout = Layout::new(CONTENT.len() as u64, 1 << 14).unwrap();
            let manifest = Manifest::new(layout, vec![Digest::of(CONTENT)]).unwrap();
            let partial = Arc::new(PartialFile::at(&folder.path().join("p"), manifest, Disk::default()));
            partial.make().unwrap();
            let chunk = layout.chunk_count().index(0).unwrap();
            Self { parts: Parts::new(partial.clone(), room.clone()), partial, room, chunk, _folder: folder }
        }

        fn begin(&self, from: u8) -> Begun {
            self.parts.begin(self.chunk, peer(from))
        }

        /// Three bytes of it from one holder, and a second copy from another one that goes on from there.
        fn begin_twice(&self) -> (Begun, Begun) {
            let mut first = self.begin(1);
            push(&mut first, b"abc");
            let copy = self.begin(2);
            assert_eq!((copy.got(), copy.memory()), (3, 8), "the first one has the place in the file");
            (first, copy)
        }

        /// Stores it, and what is then in the file is the chunk.
        fn store(&self, mut begun: Begun) {
            let stored = self.partial.store(begun.finish().unwrap()).unwrap();
            assert_eq!(stored.chunk(), self.chunk);
            let all = drizzle_proto::ChunkSet::full(self.partial.manifest().layout().chunk_count());
            assert!(self.partial.prove(&all, &CancellationToken::new()).is_full());
        }
    }

    fn push(begun: &mut Begun, bytes: &'static [u8]) {
        begun.push(bytes.into()).unwrap();
    }

    #[test]
    fn a_chunk_goes_on_at_its_offset_from_another_holder_and_is_proved_as_a_whole() {
        let it = Fixture::new();
        let mut first = it.begin(1);
        push(&mut first, b"abc");
        drop(first);
        let mut second = it.begin(2);
        assert_eq!((second.got(), second.memory()), (3, 0), "what came lies in the file");
        push(&mut second, b"defgh");
        it.store(second);
        assert_eq!(it.begin(1).got(), 0, "it is not kept once it is whole");
    }

    #[test]
    fn what_several_holders_spoiled_is_fetched_whole_from_one() {
        let it = Fixture::new();
        let mut liar = it.begin(1);
        push(&mut liar, b"xyz");
        drop(liar);
        let mut honest = it.begin(2);
        push(&mut honest, b"defgh");
        assert!(matches!(honest.finish(), Err(Mismatch::MixedHash)));
        drop(honest);
        let mut again = it.begin(1);
        assert_eq!(again.got(), 0);
        push(&mut again, b"xyz");
        drop(again);
        let mut whole = it.begin(2);
        assert_eq!(whole.got(), 0);
        push(&mut whole, CONTENT);
        it.store(whole);
    }

    #[test]
    fn who_gave_nothing_of_a_wrong_chunk_is_not_to_blame_and_who_gave_all_of_it_is() {
        let gave_all = Fixture::new();
        for bytes in [b"xyz", b"def"] {
            push(&mut gave_all.begin(1), bytes);
            drop(gave_all.begin(2));
        }
        let mut liar = gave_all.begin(1);
        push(&mut liar, b"gh");
        assert_eq!(liar.finish().unwrap_err(), Mismatch::Hash);

        let gave_nothing = Fixture::new();
        push(&mut gave_nothing.begin(1), b"xyzdefgh");
        let mut honest = gave_nothing.begin(2);
        assert!(honest.is_full(), "it is not asked for anything");
        assert_eq!(honest.finish().unwrap_err(), Mismatch::MixedHash);
    }

    #[test]
    fn a_second_copy_begins_where_the_first_is_and_the_longer_one_is_kept() {
        let it = Fixture::new();
        let (first, mut copy) = it.begin_twice();
        push(&mut copy, b"de");
        drop(copy);
        drop(first);
        assert_eq!(it.begin(1).got(), 5);
    }

    #[test]
    fn the_copy_that_is_whole_first_is_stored_and_the_other_writes_no_more() {
        let it = Fixture::new();
        let (mut first, mut copy) = it.begin_twice();
        push(&mut copy, b"defgh");
        it.store(copy);
        // A liar, and it had the place.
        let late = first.push(b"xyz12".as_slice().into());
        assert!(matches!(late, Err(PushError::Put(crate::store::data::PutError::Overtaken))), "{late:?}");
        it.store({
            let mut again = it.begin(3);
            push(&mut again, CONTENT);
            again
        });
    }

    #[test]
    fn a_part_whose_place_was_taken_away_is_not_gone_on_with() {
        let it = Fixture::new();
        let (first, mut copy) = it.begin_twice();
        push(&mut copy, b"defgh");
        it.store(copy);
        // The download does not know yet that the copy is stored, and may never: its fetch was given up at that moment.
        drop(first);
        let mut again = it.begin(3);
        assert_eq!(again.got(), 0);
        push(&mut again, CONTENT);
        it.store(again);
    }

    #[test]
    fn crumbs_of_one_holder_are_not_held_against_the_next() {
        let it = Fixture::new();
        let mut crumbs = it.begin(1);
        push(&mut crumbs, b"abc");
        assert!((0..1000).any(|_| crumbs.message_begins() == Err(Mismatch::Fragmented)));
        drop(crumbs);
        let mut honest = it.begin(2);
        assert_eq!((honest.got(), honest.message_begins()), (0, Ok(())), "nothing of it is kept");
        for _ in 0..50 {
            honest.message_begins().unwrap();
        }
        push(&mut honest, b"ab");
        drop(honest);
        let mut next = it.begin(3);
        for _ in 0..50 {
            next.message_begins().unwrap();
        }
        push(&mut next, b"cdefgh");
        it.store(next);
    }

    #[test]
    fn of_a_chunk_that_is_stored_and_of_one_that_was_spoiled_nothing_is_kept() {
        let it = Fixture::new();
        // The one that loses is given up only after its chunk came from another holder.
        let mut loser = it.begin(1);
        push(&mut loser, b"abc");
        let mut broke_off = it.begin(3);
        push(&mut broke_off, b"d");
        drop(broke_off);
        assert_eq!(it.room.available_permits(), 63);
        let mut winner = it.begin(2);
        push(&mut winner, b"efgh");
        it.store(winner);
        it.parts.stored(it.chunk);
        drop(loser);
        assert_eq!(it.room.available_permits(), 64, "stored");

        let it = Fixture::new();
        let mut liar = it.begin(1);
        push(&mut liar, b"xyz");
        let mut honest = it.begin(2);
        drop(liar);
        push(&mut honest, b"defgh");
        assert!(honest.finish().is_err());
        drop(honest);
        assert_eq!((it.begin(1).got(), it.room.available_permits()), (0, 64), "spoiled");
    }

    #[test]
    fn without_room_nothing_in_memory_is_kept_and_room_is_given_back() {
        let mut it = Fixture::new();
        it.room = Arc::new(Semaphore::new(1));
        it.parts = Parts::new(it.partial.clone(), it.room.clone());
        let others = Parts::new(it.partial.clone(), it.room.clone());
        // The place is taken, so both gather in memory.
        let _claim = it.partial.claim(it.chunk).unwrap();
        for parts in [&it.parts, &others] {
            push(&mut parts.begin(it.chunk, peer(1)), b"abc");
        }
        assert_eq!(others.begin(it.chunk, peer(1)).got(), 0);
        assert_eq!(it.room.available_permits(), 0);
        it.parts.stored(it.chunk);
        assert_eq!(it.room.available_permits(), 1);
    }
}
