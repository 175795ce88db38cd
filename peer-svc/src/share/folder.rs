//! The files that are to be shared: what is recorded of each against what is there, at the start and while the daemon
//! runs.
//!
//! What is to be done with a file is decided by [`drizzle_engine::folder`]; here the files are looked at, and what
//! was decided is carried out, except for the hashing, which the caller does when it has the time. Nothing is
//! forgotten because it is away: a disk may not be mounted yet, or for a while. What a look finds gone is no longer
//! offered and is kept in the journal; it is offered again when it is back as it was. It is forgotten only when it was
//! away for [`FORGET_AFTER`] from a place that is there. What its owner withdrew stays withdrawn. Calls block.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use drizzle_engine::folder::{Record, Settling, Sight, Step, judge};
use drizzle_proto::FileName;

use super::{
    IsDownloading, ShareError, Sharer, Wish,
    scan::{Found, Scan, Scanned, identity, scan},
    skipped::{Exclusions, Reason, Skipped},
};
use crate::{
    holdings::Lost,
    store::{
        hash::HashError,
        journal::{JournalError, ShareRecord},
        stamp::Stamp,
    },
};

/// A file that is away for so long, from a folder that is there, was deleted.
const FORGET_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// Files that the log need not be told of again. Of more it is told twice.
const MOST_TOLD: usize = 1024;

/// What is known of a recorded file, without its manifest.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    stamp: Stamp,
    shared: bool,
    /// Device and number, as seen last.
    identity: Option<(u64, u64)>,
    /// Not there when it was looked at last; since when, in seconds since 1970.
    missing_since: Option<u64>,
    /// Some program had it open for writing when it was hashed.
    growing: bool,
}

/// All recorded files, and those that are waited for.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(super) exclusions: Exclusions,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: BTreeMap<FileName, Known>,
    paths: BTreeMap<PathBuf, BTreeSet<FileName>>,
    settling: Settling<PathBuf, Stamp>,
    /// Whether the log was told that none of the folder's files is there.
    told_away: bool,
    /// What the log was told of files that are not shared.
    told: Told,
}

/// What the log was told: the same is not told at each look.
#[derive(Debug, Default)]
struct Told {
    failed: BTreeSet<String>,
    skipped: Skipped,
    /// Files that could not be hashed, and why; at most [`MOST_TOLD`].
    unhashed: BTreeMap<FileName, String>,
}

/// What a person may ask of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShelfState {
    /// Shared files that are not there.
    pub(crate) missing: Vec<FileName>,
    /// Files that wait until they are left alone.
    pub(crate) settling: usize,
    /// Files were shared from the daemon's folder, and none of them is there.
    pub(crate) folder_is_away: bool,
}

/// What a look for new files finds.
#[derive(Debug)]
pub(super) struct New {
    /// Files to be hashed.
    pub(super) files: Vec<Found>,
    /// The folders that were looked into.
    pub(super) folders: Vec<PathBuf>,
}

/// Downloads that run, whose files are left alone.
pub(crate) struct Busy<'a> {
    /// Whether one of this name runs.
    pub(crate) name: IsDownloading<'a>,
    /// Whether one goes to this path.
    pub(crate) path: &'a (dyn Fn(&Path) -> bool + Sync),
}

impl Shelf {
    /// Files are shared once they were left alone for the quiet time.
    pub(crate) fn new(exclusions: Exclusions, quiet_time: Duration) -> Self {
        let (known, paths) = (BTreeMap::new(), BTreeMap::new());
        let state =
            State { known, paths, settling: Settling::new(quiet_time), told_away: false, told: Told::default() };
        Self { exclusions, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record was written.
    pub(super) fn recorded(&self, name: &FileName, record: &ShareRecord) {
        self.lock().put(name, record, None);
    }

    /// Some program had a file open for writing when it was hashed. Forgotten at a restart.
    pub(super) fn grows(&self, name: &FileName) {
        if let Some(known) = self.lock().known.get_mut(name) {
            known.growing = true;
        }
    }

    /// Whether some program had a file open for writing when it was hashed last.
    pub(super) fn was_growing(&self, name: &FileName) -> bool {
        self.lock().known.get(name).is_some_and(|known| known.growing)
    }

    /// How many files are recorded.
    pub(crate) fn len(&self) -> usize {
        self.lock().known.len()
    }

    /// Recorded names after this one, in order.
    pub(crate) fn following(&self, after: Option<&FileName>, most: usize) -> Vec<FileName> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.lock();
        state.known.range::<FileName, _>((from, Bound::Unbounded)).take(most).map(|(name, _)| name.clone()).collect()
    }

    /// Names that are recorded for a path, or for one below it.
    pub(crate) fn at_or_below(&self, path: &Path) -> Vec<FileName> {
        let state = self.lock();
        let from = state.paths.range::<Path, _>((Bound::Included(path), Bound::Unbounded));
        from.take_while(|(at, _)| at.starts_with(path)).flat_map(|(_, names)| names.iter().cloned()).collect()
    }

    /// Files that may be quiet now, and when the next one may be.
    pub(crate) fn settled(&self, now: Instant) -> (Vec<PathBuf>, Option<Instant>) {
        let state = self.lock();
        (state.settling.due(now), state.settling.next_due())
    }

    /// For a person.
    pub(crate) fn state(&self, dir: &Path) -> ShelfState {
        let state = self.lock();
        let missing = state.known.iter().filter(|(_, known)| known.is_missed()).map(|(name, _)| name.clone());
        ShelfState {
            missing: missing.collect(),
            settling: state.settling.len(),
            folder_is_away: state.folder_is_away(dir),
        }
    }
}

impl Known {
    fn is_missed(&self) -> bool {
        self.shared && self.missing_since.is_some()
    }
}

impl State {
    fn put(&mut self, name: &FileName, record: &ShareRecord, missing_since: Option<u64>) {
        let is_same = |known: &&Known| known.path == record.path && known.stamp == record.stamp;
        let identity = self.known.get(name).filter(is_same).and_then(|known| known.identity);
        self.remove(name);
        let (path, stamp, shared) = (record.path.clone(), record.stamp, record.shared);
        self.settling.forget(&path);
        self.paths.entry(path.clone()).or_default().insert(name.clone());
        self.known.insert(name.clone(), Known { path, stamp, shared, identity, missing_since, growing: false });
    }

    fn remove(&mut self, name: &FileName) {
        if let Some(old) = self.known.remove(name)
            && let Some(names) = self.paths.get_mut(&old.path)
        {
            names.remove(name);
            if names.is_empty() {
                self.paths.remove(&old.path);
            }
        }
    }

    fn folder_is_away(&self, dir: &Path) -> bool {
        let mut here = self.known.values().filter(|known| known.shared && known.path.starts_with(dir)).peekable();
        here.peek().is_some() && here.all(Known::is_missed)
    }

    /// Whether a file was left alone for the quiet time.
    fn is_quiet(&mut self, path: &Path, stamp: Stamp) -> bool {
        let now = since_1970().as_nanos();
        let age = u128::try_from(stamp.modified_nanos).map_or(Some(now), |modified| now.checked_sub(modified));
        let age = age.map(|nanos| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        self.settling.is_quiet(&path.to_owned(), stamp, age, Instant::now())
    }
}

impl Told {
    fn tell_unhashed(&mut self, name: FileName, error: &ShareError) {
        let text = error.to_string();
        if self.unhashed.get(&name) == Some(&text) {
            return;
        }
        tracing::warn!(%name, error = text, "not shared");
        if self.unhashed.len() >= MOST_TOLD {
            self.unhashed.clear();
        }
        self.unhashed.insert(name, text);
    }

    /// What cannot be shared, and after a look at the whole folder what is left out of it.
    fn tell(&mut self, failed: &[ShareError], skipped: Option<Skipped>) {
        let failed: BTreeSet<String> = failed.iter().map(ToString::to_string).collect();
        for error in failed.difference(&self.failed) {
            tracing::warn!(error, "not shared");
        }
        let Some(skipped) = skipped else { return self.failed.extend(failed) };
        self.failed = failed;
        for (reason, left_out) in &skipped.0 {
            if self.skipped.0.get(reason) == Some(left_out) {
                continue;
            }
            let (files, examples) = left_out;
            // Nobody chose these names for that.
            if *reason == Reason::BadName {
                tracing::warn!(files, ?examples, "not shared: {}", reason.text());
            } else {
                tracing::debug!(files, ?examples, "not shared: {}", reason.text());
            }
        }
        self.skipped = skipped;
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Sharer {
    /// Shares every file below the folder that was left alone for the quiet time, and what was shared before.
    pub(crate) fn share_folder(&self, busy: &Busy<'_>) -> Result<(), ShareError> {
        let mut fresh = self.recall(busy)?;
        fresh.extend(self.look_for_new(None, busy).files);
        let hashed = fresh.len();
        self.hash(fresh, busy.name)?;
        let ShelfState { missing, settling, .. } = self.shelf.state(&self.dir);
        let files = self.holdings.counts().shared;
        let missing = missing.len();
        tracing::info!(dir = %self.dir.display(), files, hashed, missing, waiting = settling, "sharing");
        Ok(())
    }

    /// Hashes files that a look found, and offers them.
    pub(crate) fn hash(&self, files: Vec<Found>, is_downloading: IsDownloading<'_>) -> Result<(), ShareError> {
        let hashed = self.share_found(files, Wish::default(), &self.progress, is_downloading)?;
        let told = &mut self.shelf.lock().told;
        for (name, result) in hashed {
            match result {
                Ok(_) => {
                    told.unhashed.remove(&name);
                }
                // The person who writes it has not asked for anything.
                Err(ShareError::Hash(HashError::Changing(path))) => {
                    tracing::info!(%name, path = %path.display(), "it changed while it was hashed: it is looked at again");
                }
                Err(error) => told.tell_unhashed(name, &error),
            }
        }
        Ok(())
    }

    /// Reads the records, and offers what is as it was; the rest is to be hashed.
    fn recall(&self, busy: &Busy<'_>) -> Result<Vec<Found>, JournalError> {
        let missing = self.journal.missing()?;
        let records = self.journal.shares()?;
        // All are known before any is looked at, which may hang: what was withdrawn is not to pass for new.
        let mut state = self.shelf.lock();
        for (name, record) in &records {
            // What was shared meanwhile is newer.
            if !state.known.contains_key(name) {
                state.put(name, record, missing.get(name).copied());
            }
        }
        drop(state);
        let mut names = Vec::with_capacity(records.len());
        for (name, record) in records {
            names.push(name.clone());
            // Not under the lock: a dead network disk may keep this waiting.
            if record.shared && !missing.contains_key(&name) && self.is_as_recorded(&record) {
                let state = self.shelf.lock();
                let is_it = |known: &Known| known.shared && known.path == record.path && known.stamp == record.stamp;
                if state.known.get(&name).is_some_and(is_it) && self.holdings.get(&name).is_none() {
                    self.hold(name, record)?;
                }
            }
        }
        self.look_at(names, busy)
    }

    /// Looks at recorded files. Those that are away are no longer offered, those that are back are; returns those that
    /// must be hashed.
    pub(crate) fn look_at(
        &self,
        names: impl IntoIterator<Item = FileName>,
        busy: &Busy<'_>,
    ) -> Result<Vec<Found>, JournalError> {
        let (mut to_hash, mut back, mut missed, mut forgotten) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let now = since_1970().as_secs();
        for name in names {
            let Some(path) = self.shelf.lock().known.get(&name).map(|known| known.path.clone()) else { continue };
            if (busy.name)(&name) || (busy.path)(&path) {
                continue;
            }
            // Not under the lock: a dead network disk may keep this waiting.
            let metadata = match self.holdings.calls().run(&path, || path.metadata()) {
                // Its disk hangs, which says nothing of the file.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => continue,
                looked => looked.ok().filter(std::fs::Metadata::is_file),
            };
            let mut state = self.shelf.lock();
            let state = &mut *state;
            let Some(known) = state.known.get_mut(&name).filter(|known| known.path == path) else { continue };
            let held = self.holdings.shared(&name);
            let offered = held.as_ref().is_some_and(|(at, stamp, _)| *at == path && *stamp == known.stamp);
            // It waits for a signature, not to be back.
            let offered = offered || self.untrusted.has(&name);
            let record = if known.shared { Record::Shared { offered } } else { Record::Withdrawn };
            let stamp = metadata.as_ref().map(Stamp::of);
            let sight = match (&metadata, stamp) {
                (Some(metadata), Some(stamp)) if stamp == known.stamp => {
                    let seen = identity(metadata);
                    let before = known.identity.replace(seen);
                    // The device of a disk that comes back may have another number; the file's is its own.
                    Sight::AsRecorded { replaced: before.is_some_and(|before| before.1 != seen.1) }
                }
                (Some(_), Some(stamp)) if known.shared => Sight::Other { quiet: state.is_quiet(&path, stamp) },
                (Some(_), _) => Sight::Other { quiet: false },
                _ => Sight::Gone,
            };
            let Some(known) = state.known.get_mut(&name) else { continue };
            let withhold = |why: Lost| {
                if let Some((_, stamp, id)) = held.filter(|_| offered) {
                    self.holdings.withhold(&name, id, stamp, why);
                }
            };
            match (judge(record, sight), metadata) {
                (Step::Leave, _) => {}
                (Step::Offer, _) => back.push(name),
                (Step::Wait, metadata) => withhold(Lost::seen(metadata.as_ref(), known.stamp)),
                (Step::Hash, Some(metadata)) => {
                    withhold(Lost::seen(Some(&metadata), known.stamp));
                    to_hash.push(Found::new(name, path, &metadata));
                }
                (Step::Miss | Step::Hash, _) => {
                    withhold(Lost::Gone);
                    self.untrusted.forget(&name);
                    state.settling.forget(&path);
                    match known.missing_since {
                        None => {
                            known.missing_since = Some(now);
                            missed.push(name);
                        }
                        Some(since) if now.saturating_sub(since) > FORGET_AFTER.as_secs() && is_deleted(&path) => {
                            forgotten.push(name);
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        self.offer_again(&back, busy)?;
        if !missed.is_empty() {
            self.journal.note_missing(&missed, now)?;
        }
        if !forgotten.is_empty() {
            tracing::info!(files = forgotten.len(), first = %forgotten[0], "these files were not there for 30 days: their hashes are forgotten");
            self.journal.forget_shares(&forgotten)?;
            let mut state = self.shelf.lock();
            forgotten.iter().for_each(|name| state.remove(name));
        }
        self.tell(&missed);
        Ok(to_hash)
    }

    fn offer_again(&self, names: &[FileName], busy: &Busy<'_>) -> Result<(), JournalError> {
        let mut records = Vec::new();
        for name in names {
            records.extend(self.journal.share(name)?.map(|record| (name.clone(), record)));
        }
        if let Some((first, _)) = records.first() {
            tracing::info!(files = records.len(), %first, "shared files are back as they were: offered again");
            self.offer(records, busy.name)?;
        }
        Ok(())
    }

    /// Says once what is missing.
    fn tell(&self, missed: &[FileName]) {
        let (away, first, known) = {
            let mut state = self.shelf.lock();
            let away = state.folder_is_away(&self.dir);
            let told = std::mem::replace(&mut state.told_away, away);
            let first = missed.first().and_then(|name| Some((name, state.known.get(name)?.path.clone())));
            (away && !told, first.map(|(name, path)| (name.clone(), path)), state.known.len())
        };
        let dir = self.dir.display();
        if away {
            tracing::warn!(%dir, known, "none of the files that were shared from the folder is there: is its disk mounted? Nothing is forgotten; they are offered again when they are back");
        } else if let Some((name, path)) = first {
            tracing::warn!(files = missed.len(), first = %name, path = %path.display(), "shared files are no longer there: deleted, or their disk is away; they are offered again when they are back");
        }
    }

    /// Files of the folder that are not recorded and were left alone for the quiet time, or only those at or below
    /// these paths.
    pub(super) fn look_for_new(&self, only: Option<BTreeSet<PathBuf>>, busy: &Busy<'_>) -> New {
        let is_whole = only.is_none();
        let named = only.clone().unwrap_or_default();
        let Scanned { found, folders, failed, skipped } = scan(self.scan_of(self.dir.clone(), only), &self.dir);
        let mut state = self.shelf.lock();
        state.told.tell(&failed, is_whole.then_some(skipped));
        let is_new = |state: &State, file: &Found| {
            // A file that has a record, under whichever name, is looked at as such.
            !state.paths.contains_key(&file.path)
                && state.known.get(&file.name).is_none_or(|known| !known.shared || known.is_missed())
        };
        // What is gone is not waited for any more.
        let seen: BTreeSet<&Path> = found.iter().map(|file| file.path.as_path()).collect();
        named.iter().filter(|path| !seen.contains(path.as_path())).for_each(|path| state.settling.forget(path));
        let mut fresh = Vec::new();
        for file in found {
            if (busy.name)(&file.name) || (busy.path)(&file.path) || !is_new(&state, &file) {
                continue;
            }
            let quiet = state.is_quiet(&file.path, file.stamp);
            if judge(Record::None, Sight::Other { quiet }) == Step::Hash {
                fresh.push(file);
            }
        }
        New { files: fresh, folders }
    }

    pub(super) fn is_as_recorded(&self, record: &ShareRecord) -> bool {
        let metadata = self.holdings.calls().run(&record.path, || record.path.metadata());
        metadata.is_ok_and(|metadata| metadata.is_file() && Stamp::of(&metadata) == record.stamp)
    }

    pub(super) fn scan_of(&self, root: PathBuf, only: Option<BTreeSet<PathBuf>>) -> Scan {
        Scan {
            root,
            only,
            state: self.journal.folder().to_owned(),
            exclusions: self.shelf.exclusions.clone(),
            holdings: self.holdings.clone(),
        }
    }
}

/// Whether the place of a missing file is there, and not an empty folder that something is mounted on.
fn is_deleted(path: &Path) -> bool {
    let around = path.ancestors().skip(1).find(|folder| folder.is_dir());
    around.and_then(|folder| folder.read_dir().ok()).is_some_and(|mut entries| entries.next().is_some())
}
