//! The data of one unfinished download, and where in it bytes may be written before they are proved.
//!
//! What comes is written at once, while it is in the cache, and not gathered first. So that nothing unproved is ever taken
//! for a chunk, it goes only into the place of a chunk that is **claimed**:
//! - there is at most one claim of a chunk, and none of a chunk that is stored;
//! - a claim ends as a stored chunk only with the proof of the very bytes that it wrote ([`crate::verify`],
//!   [`super::write`]); given up without it, its place is as unwritten as before;
//! - once a chunk is stored, or while a proved copy of it is being written, no claim of it writes any more;
//! - once [`Data::close`] has returned, nothing is written any more.
//!
//! Calls block on disk I/O.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_proto::{ChunkIndex, ChunkSet, Manifest};

use super::disk::{Disk, is_in_memory};

/// Why the bytes of a chunk did not get to their place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A proved copy of the chunk came from elsewhere meanwhile.
    #[error("another copy of the chunk came first")]
    Overtaken,
}

impl From<PutError> for io::Error {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Io(error) => error,
            PutError::Overtaken => Self::other(error.to_string()),
        }
    }
}

/// Whether a claim still stands. Locked while it writes.
type Ticket = Arc<Mutex<bool>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change below can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which chunks are claimed, and which cannot be because they are stored.
#[derive(Debug)]
struct Chunks {
    stored: ChunkSet,
    claimed: BTreeMap<ChunkIndex, Ticket>,
    /// Chunks of which proved copies are being written, and how many.
    put: BTreeMap<ChunkIndex, usize>,
}

/// How long threads have been writing, all together.
#[derive(Debug)]
struct Clock {
    total: Duration,
    writing: u32,
    since: Instant,
}

impl Clock {
    /// One thread more, or one fewer, writes from now on.
    fn turn(&mut self, writing: impl FnOnce(u32) -> u32) -> Duration {
        let now = Instant::now();
        self.total += now.saturating_duration_since(self.since) * self.writing;
        (self.since, self.writing) = (now, writing(self.writing));
        self.total
    }
}

/// The data file.
#[derive(Debug)]
pub(crate) struct Data {
    path: PathBuf,
    /// Open only while something uses it: a peer may keep more unfinished downloads than it may open files.
    file: Mutex<Weak<File>>,
    /// Whether it lies in memory alone; known once it was opened.
    in_memory: AtomicBool,
    manifest: Manifest,
    disk: Disk,
    /// Writers hold it shared; closing takes it alone and so waits for them.
    open: RwLock<bool>,
    chunks: Mutex<Chunks>,
    clock: Mutex<Clock>,
    /// Held while it is written. The kernel lets one thread at a time write a file, too, but those that wait for it there keep
    /// their processors busy: with two threads on two of them that was a sixth of all time.
    turn: Mutex<()>,
}

impl Data {
    /// Of which nothing is stored; it is opened when first used.
    pub(super) fn at(path: &Path, manifest: Manifest, disk: Disk) -> Arc<Self> {
        let stored = ChunkSet::empty(manifest.layout().chunk_count());
        Arc::new(Self {
            path: path.to_owned(),
            file: Mutex::default(),
            in_memory: AtomicBool::new(false),
            manifest,
            disk,
            open: RwLock::new(true),
            chunks: Mutex::new(Chunks { stored, claimed: BTreeMap::new(), put: BTreeMap::new() }),
            clock: Mutex::new(Clock { total: Duration::ZERO, writing: 0, since: Instant::now() }),
            turn: Mutex::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The open file, for reading stored chunks; it stays valid after the file was put in place.
    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        let mut known = lock(&self.file);
        if let Some(file) = known.upgrade() {
            return Ok(file);
        }
        let file = Arc::new(self.disk.open_own(&self.path)?);
        if file.metadata()?.len() != self.manifest.layout().size() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the data of the unfinished download was cut short",
            ));
        }
        self.in_memory.store(is_in_memory(&file), Ordering::Relaxed);
        *known = Arc::downgrade(&file);
        Ok(file)
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory.load(Ordering::Relaxed)
    }

    pub(super) fn open_file(&self) -> Option<Arc<File>> {
        // Locked while it is being opened, which may hang.
        self.file.try_lock().ok()?.upgrade()
    }

    /// Waits for writers and refuses later ones.
    pub(super) fn close(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// For how long threads have been writing, all together, those that are at it included.
    pub(super) fn time_writing(&self) -> Duration {
        lock(&self.clock).turn(|writing| writing)
    }

    /// These are stored.
    pub(super) fn vouch_for(&self, chunks: &ChunkSet) {
        lock(&self.chunks).stored.union_with(chunks);
    }

    pub(super) fn is_stored(&self, chunk: ChunkIndex) -> bool {
        lock(&self.chunks).stored.contains(chunk)
    }

    /// These turned out not to be.
    pub(super) fn take_back(&self, chunks: &ChunkSet) {
        let mut state = lock(&self.chunks);
        state.stored = state.stored.difference(chunks);
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(io::Error::other("the download has ended"));
        }
        lock(&self.clock).turn(|writing| writing + 1);
        let _turn = lock(&self.turn);
        let written = self.disk.write(file, &self.path, bytes, at);
        lock(&self.clock).turn(|writing| writing - 1);
        written
    }

    fn ticket(&self, chunk: ChunkIndex) -> Option<Ticket> {
        let mut state = lock(&self.chunks);
        if state.stored.contains(chunk) || state.claimed.contains_key(&chunk) || state.put.contains_key(&chunk) {
            return None;
        }
        let ticket = Ticket::new(Mutex::new(true));
        state.claimed.insert(chunk, ticket.clone());
        Some(ticket)
    }

    /// The chunk behind a claim is proved.
    fn settle(&self, chunk: ChunkIndex, ticket: &Ticket) -> Result<(), PutError> {
        let mut state = lock(&self.chunks);
        if !std::mem::replace(&mut *lock(ticket), false) {
            return Err(PutError::Overtaken);
        }
        state.claimed.remove(&chunk);
        state.stored.insert(chunk);
        Ok(())
    }

    fn release(&self, chunk: ChunkIndex, ticket: &Ticket) {
        let mut state = lock(&self.chunks);
        if state.claimed.get(&chunk).is_some_and(|current| Arc::ptr_eq(current, ticket)) {
            state.claimed.remove(&chunk);
        }
    }

    /// Writes a whole chunk that is proved, over what a claim of it wrote.
    pub(super) fn put(&self, chunk: ChunkIndex, bytes: &[u8]) -> io::Result<()> {
        let file = self.file()?;
        let claimed = {
            let mut state = lock(&self.chunks);
            if state.stored.contains(chunk) {
                return Ok(());
            }
            *state.put.entry(chunk).or_default() += 1;
            state.claimed.remove(&chunk)
        };
        // It may be writing, and then its disk is waited for: not with everything else locked.
        if let Some(claimed) = claimed {
            *lock(&claimed) = false;
        }
        let written = self.write(&file, bytes, self.manifest.layout().offset(chunk));
        let mut state = lock(&self.chunks);
        if written.is_ok() {
            state.stored.insert(chunk);
        }
        if let Entry::Occupied(mut left) = state.put.entry(chunk) {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
        written
    }
}

/// The right to write bytes that are not proved into the place of one chunk, from its first byte on.
#[derive(Debug)]
pub(crate) struct Claim {
    data: Arc<Data>,
    file: Arc<File>,
    chunk: ChunkIndex,
    ticket: Ticket,
    /// Bytes that it has written.
    written: u32,
}

impl Claim {
    /// `None` if the chunk is stored or claimed, or if the data cannot be opened: its bytes then go elsewhere first.
    pub(super) fn of(data: &Arc<Data>, chunk: ChunkIndex) -> Option<Self> {
        let file = data.file().ok()?;
        let ticket = data.ticket(chunk)?;
        Some(Self { data: data.clone(), file, chunk, ticket, written: 0 })
    }

    /// What the chunk belongs to.
    pub(crate) fn manifest(&self) -> &Manifest {
        self.data.manifest()
    }

    /// Which chunk it is.
    pub(crate) fn chunk(&self) -> ChunkIndex {
        self.chunk
    }

    pub(super) fn is_of(&self, data: &Arc<Data>) -> bool {
        Arc::ptr_eq(&self.data, data)
    }

    /// Whether it may still write.
    pub(crate) fn stands(&self) -> bool {
        *lock(&self.ticket)
    }

    /// Writes the next bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), PutError> {
        let layout = self.manifest().layout();
        let left = layout.chunk_len(self.chunk) - self.written;
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= left);
        let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "internal error: beyond the chunk"))?;
        let stands = lock(&self.ticket);
        if !*stands {
            return Err(PutError::Overtaken);
        }
        self.data.write(&self.file, bytes, layout.offset(self.chunk) + u64::from(self.written))?;
        drop(stands);
        self.written += len;
        Ok(())
    }

    /// What it has written, read again.
    pub(crate) fn read_back(&self) -> Result<Vec<u8>, PutError> {
        let stands = lock(&self.ticket);
        if !*stands {
            return Err(PutError::Overtaken);
        }
        let mut bytes = vec![0; self.written as usize];
        self.file.read_exact_at(&mut bytes, self.manifest().layout().offset(self.chunk))?;
        drop(stands);
        Ok(bytes)
    }

    /// Its bytes are proved to be the chunk.
    pub(super) fn settle(self) -> Result<(), PutError> {
        self.data.settle(self.chunk, &self.ticket)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.data.release(self.chunk, &self.ticket);
    }
}
