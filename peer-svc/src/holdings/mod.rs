//! What this peer holds and may serve. The one owner of that state; everything else asks.
//!
//! An entry is backed by exactly one of: a **shared** file (hashed here, or assembled; valid only while its stamp is
//! unchanged), or a **partial** file (an unfinished download). Towards the tracker it is in exactly one state:
//!
//! | state | means | becomes |
//! |---|---|---|
//! | pending | not answered since the lease began | registered, refused; stays pending while hashes are sent, or while it may be the same content in other chunks |
//! | registered | announced | pending with a new lease, or until the tracker heard of a new signature; refused if the name was registered anew |
//! | refused | the name belongs to other content, or the entry was malformed; not offered | pending with a new lease or with other content |
//!
//! Invariants: a chunk is in a set only if this peer verified it, hashed it itself, or recorded it as synced in an
//! earlier run (its receiver checks it, and so does the download once it goes on); the tracker hears of exactly these
//! chunks, by way of [`Announcements`]; each judgement of an entry and the change that follows from it happen under
//! one lock. The mutex is never held over an `.await` or a disk access.

mod answers;
mod counts;
mod listeners;
mod lost;
mod reading;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drizzle_engine::announce::Announcements;
use drizzle_proto::{
    ChunkCount, ChunkSet, FileId, FileInfo, FileName, Manifest, Signature,
    announcement::{FileChunks, FileOutcome},
};
use tokio::sync::{Notify, watch};

pub(crate) use self::listeners::Scarce;
pub(crate) use self::{
    answers::{Applied, Refusal},
    counts::Counts,
    lost::{Lost, ReadError},
    reading::Readable,
};
use self::{listeners::Bells, lost::LostContents};
use crate::store::{
    calls::Calls,
    fence::Fence,
    open_files::OpenFiles,
    stamp::Stamp,
    write::{PartialFile, StoredChunk},
};

/// Where a holding's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Backing {
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

/// What the tracker said of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Registration {
    /// Not heard yet, or not since the last lease began.
    Pending,
    /// Announced.
    Registered,
    /// The name belongs to other content, or the entry was malformed; not offered.
    Refused(String),
}

#[derive(Debug)]
struct Entry {
    manifest: Manifest,
    chunks: ChunkSet,
    backing: Backing,
    registration: Registration,
    /// What was signed of it, and whether the tracker was told.
    signature: Option<(Signature, bool)>,
}

/// An entry as others see it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// Its content.
    pub(crate) manifest: Manifest,
    /// The chunks that are held.
    pub(crate) chunks: ChunkSet,
    /// Where the bytes are.
    pub(crate) backing: Backing,
    /// What the tracker said.
    pub(crate) registration: Registration,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<FileName, Entry>,
    by_id: HashMap<FileId, BTreeSet<FileName>>,
    /// Content that was offered: a peer that asks for it is told why it no longer is.
    lost: LostContents,
    /// Names whose files were lost while they were served, until they are looked at.
    doubts: BTreeSet<FileName>,
    /// Names that are to stand for what is held now, whatever this peer registered under them before.
    replacing: BTreeSet<FileName>,
    news: Announcements,
    bells: Bells,
}

/// All holdings of this peer.
#[derive(Debug)]
pub(crate) struct Holdings {
    inner: Mutex<Inner>,
    has_news: Notify,
    has_doubts: Notify,
    registrations: watch::Sender<u64>,
    /// Calls on shared files, which may lie on disks that hang.
    calls: Calls,
    open_files: OpenFiles,
}

impl Default for Holdings {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            has_news: Notify::new(),
            has_doubts: Notify::new(),
            registrations: watch::Sender::new(0),
            calls: Calls::default(),
            open_files: OpenFiles::default(),
        }
    }
}

impl Holdings {
    /// None yet, of files that are opened within a fence.
    pub(crate) fn fenced(fence: Fence) -> Self {
        Self { calls: Calls::fenced(fence), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls on shared files.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Holds a complete file, replacing what was held under the name.
    pub(crate) fn insert_shared(&self, name: FileName, manifest: Manifest, path: PathBuf, stamp: Stamp) {
        let chunks = ChunkSet::full(manifest.layout().chunk_count());
        self.insert(name, manifest, chunks, Backing::Shared { path, stamp });
    }

    /// What is held under a name from now on is to take the place of what this peer registered under it, until the
    /// tracker took it.
    pub(crate) fn replace(&self, name: FileName) {
        self.lock().replacing.insert(name);
    }

    /// Holds some chunks of an unfinished download, replacing what was held under the name.
    pub(crate) fn insert_partial(&self, name: FileName, partial: Arc<PartialFile>, chunks: ChunkSet) {
        self.insert(name, partial.manifest().clone(), chunks, Backing::Partial(partial));
    }

    fn insert(&self, name: FileName, manifest: Manifest, chunks: ChunkSet, backing: Backing) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let (mut registration, mut signature) = (Registration::Pending, None);
        let mut news = Some(chunks.clone());
        if let Some(old) = inner.files.remove(&name) {
            inner.unlink(&name, old.manifest.id());
            if old.manifest.id() == manifest.id() {
                signature = old.signature;
            }
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
        inner.lost.forget(manifest.id());
        inner.bells.ring(manifest.id());
        inner.by_id.entry(manifest.id()).or_default().insert(name.clone());
        inner.files.insert(name, Entry { manifest, chunks, backing, registration, signature });
        self.has_news.notify_one();
    }

    /// Holds one chunk more, which may be scarce among other peers. Returns whether anything is held under that name (and
    /// content) at all.
    pub(crate) fn stored(&self, name: &FileName, stored: StoredChunk, is_scarce: bool) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(entry) = inner.files.get_mut(name).filter(|entry| entry.manifest.id() == stored.file()) else {
            return false;
        };
        if entry.chunks.insert(stored.chunk()) {
            let mut one = ChunkSet::empty(entry.chunks.count());
            one.insert(stored.chunk());
            inner.news.held(name, stored.file(), &one, false);
            inner.bells.stored(stored.file(), is_scarce);
            self.has_news.notify_one();
        }
        true
    }

    /// Holds nothing under the name any more. With `tell` the tracker hears of it.
    pub(crate) fn remove(&self, name: &FileName, tell: bool) -> Option<Held> {
        let held = {
            let mut inner = self.lock();
            // Not with what a look finds changed: what takes its place may be on its way.
            inner.replacing.remove(name);
            inner.remove(name, tell)
        };
        self.has_news.notify_one();
        held
    }

    /// Takes back chunks of an unfinished download that turned out not to be what was recorded. The tracker is not
    /// told: the download fetches them at once, and a peer that asks in between learns that they are not held.
    pub(crate) fn take_back(&self, name: &FileName, id: FileId, chunks: &ChunkSet) {
        let mut inner = self.lock();
        let is_it = |entry: &&mut Entry| entry.manifest.id() == id && matches!(entry.backing, Backing::Partial(_));
        if let Some(entry) = inner.files.get_mut(name).filter(is_it) {
            entry.chunks = entry.chunks.difference(chunks);
            inner.bells.ring(id);
        }
    }

    /// Holds nothing under the name any more, though what is to be held next may still take the place of what this peer
    /// registered. The tracker hears of it.
    pub(crate) fn set_aside(&self, name: &FileName) {
        self.lock().remove(name, true);
        self.has_news.notify_one();
    }

    /// The tracker is to hear what was signed of a file, if that file is held; it is pending until then.
    pub(crate) fn sign(&self, signature: &Signature) {
        let (name, mut inner) = (signature.statement().name(), self.lock());
        let inner = &mut *inner;
        let is_it = |entry: &&mut Entry| signature.statement().is_of(entry.manifest.id());
        if let Some(entry) = inner.files.get_mut(name).filter(is_it)
            && entry.signature.as_ref() != Some(&(signature.clone(), true))
        {
            entry.signature = Some((signature.clone(), false));
            entry.registration = Registration::Pending;
            inner.news.held(name, entry.manifest.id(), &entry.chunks, false);
            self.has_news.notify_one();
        }
    }

    /// Tells the tracker that a file which was removed silently is no longer held.
    pub(crate) fn tell_gone(&self, file: FileInfo) {
        self.lock().news.gone(file);
        self.has_news.notify_one();
    }

    /// What is held under a name.
    pub(crate) fn get(&self, name: &FileName) -> Option<Held> {
        self.lock().files.get(name).map(Entry::held)
    }

    /// Where a shared file is, as it was hashed, and its content.
    pub(crate) fn shared(&self, name: &FileName) -> Option<(PathBuf, Stamp, FileId)> {
        let inner = self.lock();
        let entry = inner.files.get(name)?;
        match &entry.backing {
            Backing::Shared { path, stamp } => Some((path.clone(), *stamp, entry.manifest.id())),
            Backing::Partial(_) => None,
        }
    }

    /// Everything that is held of some content, under any name.
    pub(crate) fn with_content(&self, id: FileId) -> Vec<Held> {
        let inner = self.lock();
        inner.by_id.get(&id).into_iter().flatten().filter_map(|name| inner.files.get(name)).map(Entry::held).collect()
    }

    /// Whether any of the names by which a file is held is such a one; `None` if it is not held.
    pub(crate) fn any_name(&self, id: FileId, is_such: impl Fn(&FileName) -> bool) -> Option<bool> {
        Some(self.lock().by_id.get(&id)?.iter().any(is_such))
    }

    /// How many chunks a file has of which every one is held here.
    pub(crate) fn whole(&self, id: FileId) -> Option<ChunkCount> {
        let inner = self.lock();
        let entries = inner.by_id.get(&id)?.iter().filter_map(|name| inner.files.get(name));
        entries.map(|entry| &entry.chunks).find(|chunks| chunks.is_full()).map(ChunkSet::count)
    }

    /// Stops offering a shared file that is not the one that was hashed, unless it was shared anew meanwhile; whether
    /// it was offered. The tracker hears of it.
    pub(crate) fn withhold(&self, name: &FileName, id: FileId, seen: Stamp, why: Lost) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let is_same = |entry: &Entry| {
            entry.manifest.id() == id && matches!(entry.backing, Backing::Shared { stamp, .. } if stamp == seen)
        };
        let offered = inner.files.get(name).is_some_and(is_same);
        if offered {
            inner.remove(name, true);
            self.has_news.notify_one();
        }
        if !inner.by_id.contains_key(&id) {
            inner.lost.note(id, why);
        }
        offered
    }

    /// Content that was in doubt is no longer here: its file has other content.
    pub(crate) fn has_changed(&self, id: FileId) {
        let mut inner = self.lock();
        if !inner.by_id.contains_key(&id) {
            inner.lost.note(id, Lost::Changed);
        }
    }

    /// Waits for names whose files were lost while they were served, and takes them.
    pub(crate) async fn doubts(&self) -> BTreeSet<FileName> {
        loop {
            let notified = self.has_doubts.notified();
            let doubts = std::mem::take(&mut self.lock().doubts);
            if !doubts.is_empty() {
                return doubts;
            }
            notified.await;
        }
    }

    /// Where a chunk may be read from.
    /// Waits until there is something to announce.
    pub(crate) async fn wait_for_news(&self) {
        loop {
            let notified = self.has_news.notified();
            if !self.lock().news.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// A new lease: everything is news.
    pub(crate) fn announce_everything(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.news.clear();
        for (name, entry) in &mut inner.files {
            if !entry.chunks.is_empty() || entry.chunks.is_full() {
                inner.news.held(name, entry.manifest.id(), &entry.chunks, true);
            }
            entry.registration = Registration::Pending;
            entry.signature.iter_mut().for_each(|(_, told)| *told = false);
        }
        self.has_news.notify_one();
    }

    /// The next batch to announce.
    pub(crate) fn take_batch(&self) -> Vec<FileChunks> {
        let mut inner = self.lock();
        let Inner { files, news, replacing, .. } = &mut *inner;
        news.take_batch(|name| {
            let entry = files.get(name)?;
            let untold = entry.signature.as_ref().filter(|(_, told)| !told).map(|(signature, _)| signature.clone());
            Some((entry.manifest.clone(), replacing.contains(name), untold))
        })
    }

    /// The manifests of the entries of a batch that send hashes and not the last one, by their places in it.
    pub(crate) fn long_manifests(&self, batch: &[FileChunks]) -> BTreeMap<usize, Manifest> {
        let inner = self.lock();
        let long = batch.iter().enumerate().filter_map(|(at, entry)| {
            let sent = entry.first_hash as usize + entry.hashes.len();
            if entry.hashes.is_empty() || sent == entry.file.layout.chunk_count().get() as usize {
                return None;
            }
            let manifest = &inner.files.get(&entry.file.name)?.manifest;
            (manifest.id() == entry.file.id).then(|| (at, manifest.clone()))
        });
        long.collect()
    }

    /// Returns a batch that could not be delivered.
    pub(crate) fn put_back(&self, batch: Vec<FileChunks>) {
        self.lock().news.put_back(batch);
        self.has_news.notify_one();
    }

    /// Applies the tracker's answers to a batch.
    pub(crate) fn apply(&self, batch: Vec<FileChunks>, outcomes: Vec<FileOutcome>) -> Applied {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut applied = Applied::default();
        for (told, outcome) in batch.into_iter().zip(outcomes) {
            let name = &told.file.name;
            let is_it = |entry: &&mut Entry| entry.manifest.id() == told.file.id;
            let Some(entry) = inner.files.get_mut(name).filter(is_it) else { continue };
            let (registered, detail) = match outcome {
                FileOutcome::Registered => {
                    if !told.gone {
                        if let Some((signature, is_told)) = &mut entry.signature {
                            *is_told |= told.signature.as_ref() == Some(signature);
                        }
                        // One that came while this was told is on its way.
                        let is_all = entry.signature.as_ref().is_none_or(|(_, is_told)| *is_told);
                        entry.registration = if is_all { Registration::Registered } else { Registration::Pending };
                        inner.replacing.remove(name);
                    }
                    continue;
                }
                FileOutcome::NeedHashes(from) => {
                    applied.stuck |= !told.hashes.is_empty() && from <= told.first_hash;
                    inner.news.wants_hashes(name, told.file.id, &told.held, from);
                    self.has_news.notify_one();
                    continue;
                }
                FileOutcome::Refused { registered, detail } => (Some(registered), detail),
                FileOutcome::Invalid(detail) => (None, detail),
            };
            let refusal = Refusal { ours: told.file.clone(), registered, detail };
            // It stays pending while it may turn out to be the same content in other chunks.
            if refusal.may_be_same_content() && matches!(entry.backing, Backing::Shared { .. }) {
                applied.refusals.push(refusal);
                continue;
            }
            let registration = Registration::Refused(refusal.detail.clone());
            if std::mem::replace(&mut entry.registration, registration) == Registration::Pending {
                applied.refusals.push(refusal);
            }
        }
        self.registrations.send_modify(|version| *version += 1);
        applied
    }

    /// Decides a refusal that was still open.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        let mut inner = self.lock();
        if let Some(entry) = inner.files.get_mut(&refusal.ours.name)
            && entry.manifest.id() == refusal.ours.id
        {
            entry.registration = Registration::Refused(refusal.detail.clone());
        }
        self.registrations.send_modify(|version| *version += 1);
    }

    /// Changes whenever a registration may have changed.
    pub(crate) fn registrations(&self) -> watch::Receiver<u64> {
        self.registrations.subscribe()
    }
}

impl Inner {
    fn remove(&mut self, name: &FileName, tell: bool) -> Option<Held> {
        let entry = self.files.remove(name)?;
        self.unlink(name, entry.manifest.id());
        if tell {
            self.news.gone(entry.manifest.describe(name.clone()));
        }
        Some(entry.held())
    }

    fn unlink(&mut self, name: &FileName, id: FileId) {
        if let Some(names) = self.by_id.get_mut(&id) {
            names.remove(name);
            if names.is_empty() {
                self.by_id.remove(&id);
            }
        }
        self.bells.ring(id);
    }
}

impl Entry {
    fn held(&self) -> Held {
        Held {
            manifest: self.manifest.clone(),
            chunks: self.chunks.clone(),
            backing: self.backing.clone(),
            registration: self.registration.clone(),
        }
    }
}
