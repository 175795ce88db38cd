//! Local files in, manifests and full holdings out.
//!
//! A file that was hashed before and has the same size and modification time is not read again. Names come from
//! paths; what cannot be a name (not UTF-8, control characters, too long) is skipped with a reason, never guessed
//! at. [`Sharer::offer`] is the one place where a finished file becomes one that this peer holds. Calls block.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use drizzle_proto::{FileInfo, FileName, name::RESERVED_PREFIX};
use tokio_util::sync::CancellationToken;

use crate::{
    holdings::{Backing, Holdings, Refusal},
    store::{
        hash::{HashError, HashProgress, hash_file},
        journal::{EndedPartial, Journal, JournalError, ShareRecord},
        partials::Partials,
        paths::path_of,
        stamp::Stamp,
        turns::{Job, side_by_side},
    },
};

/// Hashed files are recorded and offered in groups, so that a crash in a long scan costs little.
const GROUP_FILES: usize = 2048;
const GROUP_BYTES: u64 = 4 << 30;

/// Why a file is not shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// It could not be hashed, or does not exist.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The path makes no name.
    #[error("{}: {reason}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Recording failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A panic; the log has its text.
    #[error("internal error: sharing panicked")]
    Panicked,
}

/// A file that may be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The name it gets.
    pub(crate) name: FileName,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// As it is now.
    pub(crate) stamp: Stamp,
}

/// Every regular file below `root`, named relative to `base`; and what was skipped, with the reason.
/// Links are not followed; `state` (the state folder) and half-placed files (`.drizzle...`) are not looked at.
fn scan(root: &Path, base: &Path, state: &Path) -> (Vec<Found>, Vec<ShareError>) {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    let own = |entry: &walkdir::DirEntry| {
        entry.path() == state
            || entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(RESERVED_PREFIX.as_bytes())
    };
    for entry in walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| !own(entry)) {
        let result = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            ShareError::from(HashError::Io { path, source: bare(error) })
        });
        let result = result.and_then(|entry| {
            if !entry.file_type().is_file() {
                return Ok(None);
            }
            let metadata = entry
                .metadata()
                .map_err(|error| HashError::Io { path: entry.path().to_owned(), source: bare(error) })?;
            let name = name_of(entry.path(), base)?;
            Ok(Some(Found { name, path: entry.into_path(), stamp: Stamp::of(&metadata) }))
        });
        match result {
            Ok(file) => found.extend(file),
            Err(error) => skipped.push(error),
        }
    }
    (found, skipped)
}

/// What the system said, without the path that walkdir puts around it: it is told already.
fn bare(error: walkdir::Error) -> std::io::Error {
    let text = error.to_string();
    error.into_io_error().unwrap_or_else(|| std::io::Error::other(text))
}

fn name_of(path: &Path, base: &Path) -> Result<FileName, ShareError> {
    let fail = |reason: String| ShareError::Name { path: path.to_owned(), reason };
    let relative = path.strip_prefix(base).unwrap_or(path);
    let text = relative.to_str().ok_or_else(|| fail("the name is not UTF-8".to_owned()))?;
    FileName::new(text).map_err(|error| fail(error.to_string()))
}

/// What became of each file that was to be hashed.
pub(crate) type Hashed = Vec<(FileName, Result<FileInfo, ShareError>)>;

/// Whether a download of this name runs, whose partial file is not to be touched.
pub(crate) type IsDownloading<'a> = &'a (dyn Fn(&FileName) -> bool + Sync);

/// Shares files on behalf of the daemon.
#[derive(Debug)]
pub(crate) struct Sharer {
    pub(crate) journal: Arc<Journal>,
    pub(crate) partials: Arc<Partials>,
    pub(crate) holdings: Arc<Holdings>,
    /// The daemon's folder, absolute.
    pub(crate) dir: PathBuf,
    /// How far hashing the folder is.
    pub(crate) progress: HashProgress,
    /// Set when the daemon stops.
    pub(crate) stop: CancellationToken,
}

impl Sharer {
    /// Offers finished files: hashed here, or downloaded. The one place where a file becomes one that this peer
    /// holds in full.
    ///
    /// Order at a crash: the record first, which also ends the record of an unfinished download of the same name;
    /// then the data of that download is deleted; then the file is offered.
    pub(crate) fn offer(
        &self,
        files: Vec<(FileName, ShareRecord)>,
        is_downloading: IsDownloading<'_>,
    ) -> Result<(), JournalError> {
        let turn = self.partials.turn();
        for ended in self.journal.put_shares(&files, is_downloading)? {
            self.discard(&ended);
        }
        drop(turn);
        for (name, record) in files {
            self.hold(name, record);
        }
        Ok(())
    }

    /// Deletes the data of an unfinished download whose record ended.
    pub(crate) fn discard(&self, ended: &EndedPartial) {
        if let Err(error) = self.partials.discard(&self.journal, ended) {
            tracing::warn!(name = %ended.name, %error, "cannot delete the data of an unfinished download; it is deleted at the next start");
        }
    }

    /// Holds a file whose record stands.
    fn hold(&self, name: FileName, record: ShareRecord) {
        self.holdings.insert_shared(name, record.manifest, record.path, record.stamp);
    }

    /// Shares every regular file below the folder, and what was shared from elsewhere before.
    pub(crate) fn share_folder(&self, is_downloading: IsDownloading<'_>) -> Result<(), ShareError> {
        let mut known: HashMap<FileName, ShareRecord> = self.journal.shares()?.into_iter().collect();
        let (mut found, skipped) = scan(&self.dir, &self.dir, self.journal.folder());
        for error in skipped {
            tracing::warn!(%error, "not shared");
        }
        let mut lost = Vec::new();
        let here: HashSet<FileName> = found.iter().map(|file| file.name.clone()).collect();
        for (name, record) in known.iter().filter(|(name, _)| !here.contains(*name)) {
            // Shared by path, or downloaded to a path of its own.
            match std::fs::metadata(&record.path) {
                Ok(metadata) if metadata.is_file() && record.path != path_of(&self.dir, name) => {
                    found.push(Found { name: name.clone(), path: record.path.clone(), stamp: Stamp::of(&metadata) });
                }
                _ => lost.push(name.clone()),
            }
        }
        self.journal.forget_shares(&lost)?;
        let mut fresh = Vec::new();
        for file in found {
            match known.remove(&file.name) {
                // The record stands as it is: nothing to write, only to offer.
                Some(record) if record.path == file.path && record.stamp == file.stamp => {
                    if record.shared {
                        self.hold(file.name, record);
                    }
                }
                // Withdrawn by its owner, whatever became of it since.
                Some(record) if record.path == file.path && !record.shared => {}
                _ => fresh.push(file),
            }
        }
        let hashed = fresh.len();
        for (name, result) in self.share_found(fresh, None, &self.progress, is_downloading)? {
            if let Err(error) = result {
                tracing::warn!(%name, %error, "not shared");
            }
        }
        tracing::info!(dir = %self.dir.display(), files = here.len(), hashed, "sharing");
        Ok(())
    }

    /// Resolves what a person asked to share, without hashing yet. Fails as a whole if a path does not exist.
    pub(crate) fn find(
        &self,
        paths: &[PathBuf],
        name: Option<FileName>,
    ) -> Result<(Vec<Found>, Vec<ShareError>), ShareError> {
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for path in paths {
            let fail = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => HashError::NotFound(path.clone()),
                _ => HashError::Io { path: path.clone(), source },
            };
            // Names say where a file is, so a link is followed here, once, by its owner's own wish.
            let look = || path.canonicalize().and_then(|path| path.metadata().map(|metadata| (path, metadata)));
            let (path, metadata) = self.holdings.calls().run(path, look).map_err(fail)?;
            let base = if path.starts_with(&self.dir) { &self.dir } else { path.parent().unwrap_or(&path) };
            if metadata.is_dir() {
                let (more, reasons) = scan(&path, base, self.journal.folder());
                found.extend(more);
                skipped.extend(reasons);
            } else if metadata.is_file() {
                let name = match &name {
                    Some(name) => Ok(name.clone()),
                    None => name_of(&path, base),
                };
                match name {
                    Ok(name) => found.push(Found { name, stamp: Stamp::of(&metadata), path }),
                    Err(error) => skipped.push(error),
                }
            } else {
                skipped.push(HashError::NotRegular(path).into());
            }
        }
        Ok((found, skipped))
    }

    /// Hashes files, in turns with other requests, records them and offers them; one result for each, in no order.
    pub(crate) fn share_found(
        &self,
        files: Vec<Found>,
        chunk_size: Option<u32>,
        progress: &HashProgress,
        is_downloading: IsDownloading<'_>,
    ) -> Result<Hashed, JournalError> {
        progress.begin(files.len() as u64, files.iter().map(|file| file.stamp.size).sum());
        let job = Job::begin();
        let mut results = Vec::with_capacity(files.len());
        let mut rest = &files[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let group = rest.iter().take(GROUP_FILES).take_while(|file| {
                let fits = bytes < GROUP_BYTES;
                bytes += file.stamp.size;
                fits
            });
            let (group, later) = rest.split_at(group.count());
            rest = later;
            let Ok(hashed) = side_by_side(group.len(), |at| {
                let file = &group[at];
                let result = hash_file(&job, self.holdings.calls(), &file.path, chunk_size, progress, &self.stop);
                progress.file_done(if result.is_err() { file.stamp.size } else { 0 });
                let record = result.map(|(manifest, stamp)| ShareRecord {
                    path: file.path.clone(),
                    stamp,
                    manifest,
                    shared: true,
                });
                Ok::<_, Infallible>((file.name.clone(), record))
            });
            let mut finished = Vec::new();
            for (name, record) in hashed {
                let result = record.map(|record| {
                    let info = record.manifest.describe(name.clone());
                    finished.push((name.clone(), record));
                    info
                });
                results.push((name, result.map_err(ShareError::from)));
            }
            self.offer(finished, is_downloading)?;
        }
        Ok(results)
    }

    /// The tracker refused a share. If the registered file has the same size in other chunks it may be the
    /// same content after all: hashes again in those chunks. Returns whether it is.
    pub(crate) fn adopt_chunk_size(
        &self,
        refusal: &Refusal,
        is_downloading: IsDownloading<'_>,
    ) -> Result<bool, ShareError> {
        let Some(registered) = refusal.registered.as_ref().filter(|_| refusal.may_be_same_content()) else {
            return Ok(false);
        };
        let name = &refusal.ours.name;
        let Some(Backing::Shared { path, .. }) = self.holdings.get(name).map(|held| held.backing) else {
            return Ok(false);
        };
        let chunk_size = Some(registered.layout.chunk_size());
        let (manifest, stamp) =
            hash_file(&Job::begin(), self.holdings.calls(), &path, chunk_size, &HashProgress::default(), &self.stop)?;
        if manifest.id() != registered.id {
            return Ok(false);
        }
        let record = ShareRecord { path, stamp, manifest, shared: true };
        self.offer(vec![(name.clone(), record)], is_downloading)?;
        Ok(true)
    }

    /// Stops offering a file, now and after a restart. The file stays; an unfinished download is deleted.
    /// Returns what was held. The tracker is not told.
    pub(crate) fn unshare(&self, name: &FileName) -> Result<Option<FileInfo>, JournalError> {
        let Some(held) = self.holdings.remove(name, false) else { return Ok(None) };
        let info = held.manifest.describe(name.clone());
        match held.backing {
            Backing::Shared { path, stamp } => {
                let record = ShareRecord { path, stamp, manifest: held.manifest, shared: false };
                // An unfinished download of another content under this name is its own affair.
                self.journal.put_shares(&[(name.clone(), record)], &|_| true)?;
            }
            Backing::Partial(partial) => {
                partial.close();
                if let Some(ended) = self.journal.forget_partial(name)? {
                    self.discard(&ended);
                }
            }
        }
        Ok(Some(info))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use super::*;
    use crate::store::disk::Disk;

    fn sharer(folder: &Path) -> Sharer {
        let dir = folder.join("dir");
        fs::create_dir_all(&dir).unwrap();
        let journal = Journal::open(&folder.join("state"), Disk::default()).unwrap();
        let partials = Partials::open(journal.folder(), Disk::default()).unwrap();
        Sharer {
            journal: Arc::new(journal),
            partials: Arc::new(partials),
            holdings: Arc::default(),
            dir: dir.canonicalize().unwrap(),
            progress: HashProgress::default(),
            stop: CancellationToken::new(),
        }
    }

    fn share(sharer: &Sharer, name: &str, chunk_size: Option<u32>) -> FileInfo {
        let (found, skipped) = sharer.find(&[sharer.dir.join(name)], None).unwrap();
        assert!(skipped.is_empty());
        let mut hashed = sharer.share_found(found, chunk_size, &HashProgress::default(), &|_| false).unwrap();
        hashed.remove(0).1.unwrap()
    }

    #[test]
    fn the_same_content_in_other_chunks_is_adopted_and_other_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let sharer = sharer(folder.path());
        fs::write(sharer.dir.join("a"), vec![7; 100_000]).unwrap();
        fs::write(sharer.dir.join("b"), vec![8; 100_000]).unwrap();
        let registered = share(&sharer, "a", Some(1 << 15));
        let other = share(&sharer, "b", Some(1 << 15));
        let ours = share(&sharer, "a", Some(1 << 14));
        assert_ne!(ours.id, registered.id);
        let refusal =
            |registered: FileInfo| Refusal { ours: ours.clone(), registered: Some(registered), detail: String::new() };
        assert!(!sharer.adopt_chunk_size(&refusal(other), &|_| false).unwrap());
        assert_eq!(sharer.holdings.get(&ours.name).unwrap().manifest.id(), ours.id);
        assert!(sharer.adopt_chunk_size(&refusal(registered.clone()), &|_| false).unwrap());
        assert_eq!(sharer.holdings.get(&ours.name).unwrap().manifest.id(), registered.id);
        let recorded = sharer.journal.shares().unwrap().into_iter().find(|(name, _)| *name == ours.name).unwrap().1;
        assert_eq!(recorded.manifest.id(), registered.id, "a restart does not hash it a third time");
    }

    #[test]
    fn a_sparse_file_has_the_hashes_of_its_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let sharer = sharer(folder.path());
        let (sparse, dense) = (sharer.dir.join("sparse"), sharer.dir.join("dense"));
        let file = fs::File::create(&sparse).unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(b"x", (3 << 20) - 1).unwrap();
        fs::write(&dense, fs::read(&sparse).unwrap()).unwrap();
        assert_eq!(share(&sharer, "sparse", Some(1 << 20)).id, share(&sharer, "dense", Some(1 << 20)).id);
    }

    #[test]
    fn offering_a_file_ends_its_unfinished_download_unless_that_runs() {
        let folder = tempfile::tempdir().unwrap();
        let sharer = sharer(folder.path());
        fs::write(sharer.dir.join("a"), vec![7; 100_000]).unwrap();
        let info = share(&sharer, "a", None);
        let manifest = sharer.holdings.get(&info.name).unwrap().manifest;
        let begin = || {
            sharer.journal.begin_partial(&info.name, &manifest, None).unwrap();
            let record = sharer.journal.partial(&info.name).unwrap().unwrap();
            let _ = sharer.partials.of(&record).make();
        };
        let (found, _) = sharer.find(&[sharer.dir.join("a")], None).unwrap();
        for runs in [true, false] {
            begin();
            let is_downloading = |_: &FileName| {
                assert!(sharer.partials.is_turn_taken(), "none begins between the answer and what follows from it");
                runs
            };
            sharer.share_found(found.clone(), None, &HashProgress::default(), &is_downloading).unwrap();
            assert_eq!(sharer.partials.path(&info.name).exists(), runs);
            assert_eq!(sharer.journal.partial(&info.name).unwrap().is_some(), runs);
        }
    }

    #[test]
    fn an_unshared_file_is_not_offered_by_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        {
            let sharer = sharer(folder.path());
            fs::write(sharer.dir.join("a"), "a").unwrap();
            sharer.share_folder(&|_| false).unwrap();
            assert!(sharer.unshare(&FileName::new("a").unwrap()).unwrap().is_some());
        }
        let sharer = sharer(folder.path());
        sharer.share_folder(&|_| false).unwrap();
        assert_eq!(sharer.holdings.counts().shared, 0);
    }

    #[test]
    fn what_cannot_be_looked_at_is_told_with_its_path_once() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let (found, skipped) = scan(&gone, &gone, &folder.path().join("state"));
        assert_eq!(found, []);
        let told = skipped[0].to_string();
        assert_eq!(told, format!("cannot read {}: No such file or directory (os error 2)", gone.display()));
    }
}
