//! What this peer holds and may serve. The one owner of that state; everybody else asks.
//!
//! Invariants: a chunk is in a holding's set only if this peer verified it or hashed it itself; the
//! tracker hears of exactly these chunks, by way of [`Announcements`]. The mutex is never held over an
//! `.await` or a disk access.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drizzle_engine::announce::Announcements;
use drizzle_proto::{
    ChunkIndex, ChunkSet, FileId, FileInfo, FileName, Layout, Manifest,
    announcement::{FileChunks, FileOutcome},
};
use tokio::sync::{Notify, watch};

use crate::store::{
    read::open_unchanged,
    stamp::Stamp,
    write::{PartialFile, StoredChunk},
};

/// Where a holding's bytes are.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file that was hashed here, or assembled; valid only while its stamp is unchanged.
    Shared {
        /// Absolute path.
        path: PathBuf,
        /// As it was when hashed.
        stamp: Stamp,
    },
    /// An unfinished download.
    Partial(Arc<PartialFile>),
}

/// What the tracker said of a holding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Not heard yet, or not since the last lease began.
    Pending,
    /// Announced.
    Registered,
    /// The name belongs to other content, or the entry was malformed; not offered.
    Refused(String),
}

#[derive(Debug)]
struct Holding {
    manifest: Manifest,
    chunks: ChunkSet,
    source: Source,
    registration: Registration,
}

/// Why a chunk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such content here.
    #[error("this peer holds nothing of file {0}")]
    UnknownFile(FileId),
    /// The index is beyond the file's end.
    #[error("the file has {count} chunks, counted from 0; there is no chunk {chunk}")]
    NoSuchChunk {
        /// What was asked for.
        chunk: u32,
        /// What there is.
        count: u32,
    },
    /// Not yet, or not any more.
    #[error("this peer does not hold chunk {0}")]
    NotHeld(u32),
    /// The file is not the one that was hashed.
    #[error("the file changed on disk since it was shared; it is no longer offered")]
    Changed,
    /// Reading failed.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
}

/// A chunk that may be read and sent.
#[derive(Debug)]
pub struct Readable {
    /// The data file.
    pub file: Arc<File>,
    /// Where the chunk begins in it, in bytes.
    pub offset: u64,
    /// Bytes of the chunk.
    pub len: u32,
}

/// A holding as others see it.
#[derive(Debug, Clone)]
pub struct View {
    /// Its content.
    pub manifest: Manifest,
    /// The chunks that are held.
    pub chunks: ChunkSet,
    /// Where the bytes are.
    pub source: Source,
    /// What the tracker said.
    pub registration: Registration,
}

/// How many holdings there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Complete files.
    pub shared: usize,
    /// Unfinished downloads.
    pub partial: usize,
    /// Names of shares that the tracker refused.
    pub refused: Vec<FileName>,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<FileName, Holding>,
    by_id: HashMap<FileId, BTreeSet<FileName>>,
    /// Content that was offered until its file changed: who asks for it is told why it is gone.
    changed: HashSet<FileId>,
    news: Announcements,
}

/// All holdings of this peer.
#[derive(Debug)]
pub struct Holdings {
    inner: Mutex<Inner>,
    has_news: Notify,
    registrations: watch::Sender<u64>,
}

impl Default for Holdings {
    fn default() -> Self {
        Self { inner: Mutex::default(), has_news: Notify::new(), registrations: watch::Sender::new(0) }
    }
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a complete file, replacing what was held under the name.
    pub fn insert_shared(&self, name: FileName, manifest: Manifest, path: PathBuf, stamp: Stamp) {
        let chunks = ChunkSet::full(manifest.layout().chunk_count());
        self.insert(name, manifest, chunks, Source::Shared { path, stamp });
    }

    /// Holds some chunks of an unfinished download, replacing what was held under the name.
    pub fn insert_partial(&self, name: FileName, partial: Arc<PartialFile>, chunks: ChunkSet) {
        self.insert(name, partial.manifest().clone(), chunks, Source::Partial(partial));
    }

    fn insert(&self, name: FileName, manifest: Manifest, chunks: ChunkSet, source: Source) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut registration = Registration::Pending;
        let mut news = Some(chunks.clone());
        if let Some(old) = inner.files.remove(&name) {
            inner.unlink(&name, old.manifest.id());
            if old.manifest.id() == manifest.id() && !matches!(old.registration, Registration::Refused(_)) {
                // What was told already is no news.
                let more = chunks.difference(&old.chunks);
                news = (old.registration == Registration::Pending || !more.is_empty()).then_some(more);
                registration = old.registration;
            }
        }
        // An empty set is no news, unless the file is empty: then it is all there is to hold.
        if let Some(news) = news.filter(|_| !chunks.is_empty() || chunks.is_full()) {
            inner.news.held(&name, manifest.id(), &news, true);
        }
        inner.changed.remove(&manifest.id());
        inner.by_id.entry(manifest.id()).or_default().insert(name.clone());
        inner.files.insert(name, Holding { manifest, chunks, source, registration });
        self.has_news.notify_one();
    }

    /// Holds one chunk more. Returns whether anything is held under that name (and content) at all.
    pub fn stored(&self, name: &FileName, stored: StoredChunk) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(holding) = inner.files.get_mut(name).filter(|holding| holding.manifest.id() == stored.file()) else {
            return false;
        };
        if holding.chunks.insert(stored.chunk()) {
            let mut one = ChunkSet::empty(holding.chunks.count());
            one.insert(stored.chunk());
            inner.news.held(name, stored.file(), &one, false);
            self.has_news.notify_one();
        }
        true
    }

    /// Holds nothing under the name any more. With `tell` the tracker hears of it.
    pub fn remove(&self, name: &FileName, tell: bool) -> Option<View> {
        let mut inner = self.lock();
        let holding = inner.files.remove(name)?;
        inner.unlink(name, holding.manifest.id());
        if tell {
            inner.news.gone(holding.manifest.describe(name.clone()));
            self.has_news.notify_one();
        }
        Some(holding.view())
    }

    /// Tells the tracker that a file which was removed silently is no longer held.
    pub fn tell_gone(&self, file: FileInfo) {
        self.lock().news.gone(file);
        self.has_news.notify_one();
    }

    /// What is held under a name.
    pub fn get(&self, name: &FileName) -> Option<View> {
        self.lock().files.get(name).map(Holding::view)
    }

    /// Everything that is held of some content, under any name.
    pub fn with_content(&self, id: FileId) -> Vec<View> {
        let inner = self.lock();
        inner.by_id.get(&id).into_iter().flatten().filter_map(|name| inner.files.get(name)).map(Holding::view).collect()
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        let mut counts = Counts::default();
        for (name, holding) in &inner.files {
            match (&holding.registration, &holding.source) {
                (Registration::Refused(_), _) => counts.refused.push(name.clone()),
                (_, Source::Shared { .. }) => counts.shared += 1,
                (_, Source::Partial(_)) => counts.partial += 1,
            }
        }
        counts
    }

    /// Opens a chunk for reading. A shared file that is not the one that was hashed is dropped from the
    /// holdings, and the tracker hears of it. Blocks on a file system look-up.
    pub fn open_chunk(&self, id: FileId, chunk: u32) -> Result<Readable, ReadError> {
        let (name, source, index, layout) = self.find_chunk(id, chunk)?;
        let readable =
            |file, index: ChunkIndex| Readable { file, offset: layout.offset(index), len: layout.chunk_len(index) };
        match source {
            Source::Partial(partial) => Ok(readable(partial.file(), index)),
            Source::Shared { path, stamp } => match open_unchanged(&path, stamp) {
                Ok(Some(file)) => Ok(readable(Arc::new(file), index)),
                Ok(None) => {
                    tracing::warn!(%name, path = %path.display(), "changed on disk since it was shared: no longer offered; share it again under another name, or unshare it first");
                    self.forget_changed(&name, id, stamp);
                    // The same content may be here under another name; each round forgets one.
                    self.open_chunk(id, chunk)
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Forgets a shared file that changed, unless it was shared anew meanwhile.
    fn forget_changed(&self, name: &FileName, id: FileId, seen: Stamp) {
        self.lock().changed.insert(id);
        let is_same = |view: &View| {
            view.manifest.id() == id && matches!(view.source, Source::Shared { stamp, .. } if stamp == seen)
        };
        if self.get(name).as_ref().is_some_and(is_same) {
            self.remove(name, true);
        }
    }

    /// Where a chunk may be read from.
    fn find_chunk(&self, id: FileId, chunk: u32) -> Result<(FileName, Source, ChunkIndex, Layout), ReadError> {
        let inner = self.lock();
        let names = inner.by_id.get(&id).ok_or_else(|| match inner.changed.contains(&id) {
            true => ReadError::Changed,
            false => ReadError::UnknownFile(id),
        })?;
        for (name, holding) in names.iter().filter_map(|name| Some((name, inner.files.get(name)?))) {
            let count = holding.chunks.count();
            let index = count.index(chunk).ok_or(ReadError::NoSuchChunk { chunk, count: count.get() })?;
            if holding.chunks.contains(index) {
                return Ok((name.clone(), holding.source.clone(), index, holding.manifest.layout()));
            }
        }
        // An id stands in the index only with a name that holds it.
        Err(ReadError::NotHeld(chunk))
    }

    /// Waits until there is something to announce.
    pub async fn wait_for_news(&self) {
        loop {
            let notified = self.has_news.notified();
            if !self.lock().news.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// A new lease: everything is news.
    pub fn announce_everything(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.news.clear();
        for (name, holding) in &mut inner.files {
            if !holding.chunks.is_empty() || holding.chunks.is_full() {
                inner.news.held(name, holding.manifest.id(), &holding.chunks, true);
            }
            holding.registration = Registration::Pending;
        }
        self.has_news.notify_one();
    }

    /// The next batch to announce.
    pub fn take_batch(&self) -> Vec<FileChunks> {
        let mut inner = self.lock();
        let Inner { files, news, .. } = &mut *inner;
        news.take_batch(|name| files.get(name).map(|holding| holding.manifest.clone()))
    }

    /// Returns a batch that could not be delivered.
    pub fn put_back(&self, batch: Vec<FileChunks>) {
        self.lock().news.put_back(batch);
        self.has_news.notify_one();
    }

    /// Applies the tracker's answers to a batch.
    pub fn apply(&self, batch: Vec<FileChunks>, outcomes: Vec<FileOutcome>) -> Applied {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut applied = Applied::default();
        for (entry, outcome) in batch.into_iter().zip(outcomes) {
            let name = &entry.file.name;
            let Some(holding) = inner.files.get_mut(name).filter(|holding| holding.manifest.id() == entry.file.id)
            else {
                continue;
            };
            let (registered, detail) = match outcome {
                FileOutcome::Registered => {
                    if !entry.gone {
                        holding.registration = Registration::Registered;
                    }
                    continue;
                }
                FileOutcome::NeedHashes(from) => {
                    applied.stuck |= !entry.hashes.is_empty() && from <= entry.first_hash;
                    inner.news.wants_hashes(name, entry.file.id, &entry.held, from);
                    self.has_news.notify_one();
                    continue;
                }
                FileOutcome::Refused { registered, detail } => (Some(registered), detail),
                FileOutcome::Invalid(detail) => (None, detail),
            };
            let refusal = Refusal { ours: entry.file.clone(), registered, detail };
            // It stays pending while it may turn out to be the same content in other chunks.
            if refusal.may_be_same_content() && matches!(holding.source, Source::Shared { .. }) {
                applied.refusals.push(refusal);
                continue;
            }
            let registration = Registration::Refused(refusal.detail.clone());
            if std::mem::replace(&mut holding.registration, registration) == Registration::Pending {
                applied.refusals.push(refusal);
            }
        }
        self.registrations.send_modify(|version| *version += 1);
        applied
    }

    /// Decides a refusal that was still open.
    pub fn refuse(&self, refusal: &Refusal) {
        let mut inner = self.lock();
        if let Some(holding) = inner.files.get_mut(&refusal.ours.name)
            && holding.manifest.id() == refusal.ours.id
        {
            holding.registration = Registration::Refused(refusal.detail.clone());
        }
        self.registrations.send_modify(|version| *version += 1);
    }

    /// Changes whenever a registration may have changed.
    pub fn registrations(&self) -> watch::Receiver<u64> {
        self.registrations.subscribe()
    }
}

impl Inner {
    fn unlink(&mut self, name: &FileName, id: FileId) {
        if let Some(names) = self.by_id.get_mut(&id) {
            names.remove(name);
            if names.is_empty() {
                self.by_id.remove(&id);
            }
        }
    }
}

impl Holding {
    fn view(&self) -> View {
        View {
            manifest: self.manifest.clone(),
            chunks: self.chunks.clone(),
            source: self.source.clone(),
            registration: self.registration.clone(),
        }
    }
}

/// What the answers to a batch came to.
#[derive(Debug, Default)]
pub struct Applied {
    /// What was newly refused.
    pub refusals: Vec<Refusal>,
    /// Whether hashes were sent in vain: asking again at once would not help.
    pub stuck: bool,
}

/// A file that the tracker did not take.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What this peer has.
    pub ours: FileInfo,
    /// What the name stands for, if it is taken.
    pub registered: Option<FileInfo>,
    /// For a person.
    pub detail: String,
}

impl Refusal {
    /// Same size, other chunks: only hashing again can tell.
    pub fn may_be_same_content(&self) -> bool {
        self.registered.as_ref().is_some_and(|registered| {
            let (ours, theirs) = (self.ours.layout, registered.layout);
            ours.size() == theirs.size() && ours.chunk_size() != theirs.chunk_size()
        })
    }
}
