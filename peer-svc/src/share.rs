//! Local files in, manifests and full holdings out.
//!
//! Hashing uses every core, reads each byte once, and skips holes. A file that was hashed before and has
//! the same size and modification time is not read again. Names come from paths; what cannot be a name
//! (not UTF-8, control characters, too long) is skipped with a reason, never guessed at. Calls block.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use drizzle_proto::{ChunkIndex, FileInfo, FileName, Layout, Manifest, layout::LayoutError, name::RESERVED_PREFIX};
use rayon::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::{
    holdings::{Holdings, Refusal},
    store::{
        extents::Extents,
        hash::hash_chunk,
        record::{ShareRecord, State, StateError},
        stamp::Stamp,
    },
};

/// Hashed files are recorded and offered in groups, so that a crash in a long scan costs little.
const GROUP_FILES: usize = 2048;
const GROUP_BYTES: u64 = 4 << 30;

/// Why a file is not shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No such path.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a regular file nor a folder.
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// Written to while it was read.
    #[error("{} changed while it was hashed; share it again once it is complete", .0.display())]
    Changing(PathBuf),
    /// The path makes no name.
    #[error("{}: {reason}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The chunk size does not suit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Recording failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The daemon stops.
    #[error("interrupted by the daemon's shutdown")]
    Stopped,
}

/// How far hashing is. All zero while nothing is hashed.
#[derive(Debug, Default)]
pub struct HashProgress {
    files_done: AtomicU64,
    files_total: AtomicU64,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
}

/// A reading of [`HashProgress`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HashState {
    /// Files that are done.
    pub files_done: u64,
    /// Files in all.
    pub files_total: u64,
    /// Bytes that are done.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

impl HashProgress {
    fn begin(&self, files: u64, bytes: u64) {
        self.files_total.fetch_add(files, Ordering::Relaxed);
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The present state.
    pub fn read(&self) -> HashState {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        HashState {
            files_done: read(&self.files_done),
            files_total: read(&self.files_total),
            bytes_done: read(&self.bytes_done),
            bytes_total: read(&self.bytes_total),
        }
    }
}

/// Hashes one file in the given chunks, or in default ones.
pub fn hash_file(
    path: &Path,
    chunk_size: Option<u32>,
    progress: &HashProgress,
    stop: &CancellationToken,
) -> Result<(Manifest, Stamp), ShareError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ShareError::NotFound(path.to_owned()),
        _ => ShareError::Io { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(ShareError::NotRegular(path.to_owned()));
    }
    let stamp = Stamp::of(&metadata);
    let layout = match chunk_size {
        Some(chunk_size) => Layout::new(stamp.size, chunk_size)?,
        None => Layout::with_default_chunk_size(stamp.size)?,
    };
    let extents = Extents::of(&file, stamp.size);
    let chunks: Vec<ChunkIndex> = layout.chunk_count().indices().collect();
    let hashes = chunks
        .into_par_iter()
        .map(|chunk| {
            if stop.is_cancelled() {
                return Err(ShareError::Stopped);
            }
            let hash = hash_chunk(&file, &extents, layout, chunk).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => ShareError::Changing(path.to_owned()),
                _ => fail(source),
            })?;
            progress.bytes_done.fetch_add(layout.chunk_len(chunk).into(), Ordering::Relaxed);
            Ok(hash)
        })
        .collect::<Result<Vec<_>, ShareError>>()?;
    if Stamp::of(&file.metadata().map_err(fail)?) != stamp {
        return Err(ShareError::Changing(path.to_owned()));
    }
    let manifest = Manifest::new(layout, hashes).map_err(|error| fail(io::Error::other(error)))?;
    Ok((manifest, stamp))
}

/// A file that may be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name it gets.
    pub name: FileName,
    /// Where it is.
    pub path: PathBuf,
    /// As it is now.
    pub stamp: Stamp,
}

/// Every regular file below `root`, named relative to `base`; and what was skipped, with the reason.
/// Links are not followed; `state` (the state folder) and half-placed files (`.drizzle...`) are not looked at.
pub fn scan(root: &Path, base: &Path, state: &Path) -> (Vec<Found>, Vec<ShareError>) {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    let own = |entry: &walkdir::DirEntry| {
        entry.path() == state
            || entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(RESERVED_PREFIX.as_bytes())
    };
    for entry in walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| !own(entry)) {
        let result = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            ShareError::Io { path, source: error.into() }
        });
        let result = result.and_then(|entry| {
            if !entry.file_type().is_file() {
                return Ok(None);
            }
            let metadata = entry
                .metadata()
                .map_err(|error| ShareError::Io { path: entry.path().to_owned(), source: error.into() })?;
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

fn name_of(path: &Path, base: &Path) -> Result<FileName, ShareError> {
    let fail = |reason: String| ShareError::Name { path: path.to_owned(), reason };
    let relative = path.strip_prefix(base).unwrap_or(path);
    let text = relative.to_str().ok_or_else(|| fail("the name is not UTF-8".to_owned()))?;
    FileName::new(text).map_err(|error| fail(error.to_string()))
}

/// What became of each file that was to be hashed.
pub type Hashed = Vec<(FileName, Result<FileInfo, ShareError>)>;

/// Shares files on behalf of the daemon.
#[derive(Debug)]
pub struct Sharer {
    /// What survives a restart.
    pub state: Arc<State>,
    /// What is offered.
    pub holdings: Arc<Holdings>,
    /// The daemon's folder, absolute.
    pub dir: PathBuf,
    /// How far hashing the folder is.
    pub progress: HashProgress,
    /// Set when the daemon stops.
    pub stop: CancellationToken,
}

impl Sharer {
    /// Shares every regular file below the folder, and what was shared from elsewhere before.
    pub fn share_folder(&self) -> Result<(), ShareError> {
        let mut known: HashMap<FileName, ShareRecord> = self.state.shares()?.into_iter().collect();
        let (mut found, skipped) = scan(&self.dir, &self.dir, self.state.folder());
        for error in skipped {
            tracing::warn!(%error, "not shared");
        }
        let mut lost = Vec::new();
        let here: std::collections::HashSet<FileName> = found.iter().map(|file| file.name.clone()).collect();
        for (name, record) in &known {
            if here.contains(name) {
                continue;
            }
            // Shared by path, or downloaded to a path of its own.
            match std::fs::metadata(&record.path) {
                Ok(metadata) if metadata.is_file() && record.path != crate::store::paths::path_of(&self.dir, name) => {
                    found.push(Found { name: name.clone(), path: record.path.clone(), stamp: Stamp::of(&metadata) });
                }
                _ => lost.push(name.clone()),
            }
        }
        self.state.forget_shares(&lost)?;
        let mut fresh = Vec::new();
        for file in found {
            match known.remove(&file.name) {
                Some(record) if record.path == file.path && record.stamp == file.stamp => {
                    if record.shared {
                        self.holdings.insert_shared(file.name, record.manifest, record.path, record.stamp);
                    }
                }
                // Taken back by its owner, whatever became of it since.
                Some(record) if record.path == file.path && !record.shared => {}
                _ => fresh.push(file),
            }
        }
        let hashed = fresh.len();
        for (name, result) in self.share_found(fresh, None, &self.progress)? {
            if let Err(error) = result {
                tracing::warn!(%name, %error, "not shared");
            }
        }
        tracing::info!(dir = %self.dir.display(), files = here.len(), hashed, "sharing");
        Ok(())
    }

    /// Resolves what a person asked to share, without hashing yet. Fails as a whole if a path does not exist.
    pub fn find(&self, paths: &[PathBuf], name: Option<FileName>) -> Result<(Vec<Found>, Vec<ShareError>), ShareError> {
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for path in paths {
            let fail = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => ShareError::NotFound(path.clone()),
                _ => ShareError::Io { path: path.clone(), source },
            };
            // Names say where a file is, so a link is followed here, once, by its owner's own wish.
            let path = path.canonicalize().map_err(fail)?;
            let metadata = path.metadata().map_err(fail)?;
            let base = if path.starts_with(&self.dir) { &self.dir } else { path.parent().unwrap_or(&path) };
            if metadata.is_dir() {
                let (more, reasons) = scan(&path, base, self.state.folder());
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
                skipped.push(ShareError::NotRegular(path));
            }
        }
        Ok((found, skipped))
    }

    /// Hashes files on all cores, records them and offers them; one result for each, in no order.
    pub fn share_found(
        &self,
        files: Vec<Found>,
        chunk_size: Option<u32>,
        progress: &HashProgress,
    ) -> Result<Hashed, StateError> {
        progress.begin(files.len() as u64, files.iter().map(|file| file.stamp.size).sum());
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
            let hashed: Vec<(FileName, Result<ShareRecord, ShareError>)> = group
                .par_iter()
                .map(|file| {
                    let before = file.stamp.size;
                    let result = hash_file(&file.path, chunk_size, progress, &self.stop);
                    progress.files_done.fetch_add(1, Ordering::Relaxed);
                    if result.is_err() {
                        progress.bytes_done.fetch_add(before, Ordering::Relaxed);
                    }
                    let record = result.map(|(manifest, stamp)| ShareRecord {
                        path: file.path.clone(),
                        stamp,
                        manifest,
                        shared: true,
                    });
                    (file.name.clone(), record)
                })
                .collect();
            self.state.put_shares(hashed.iter().filter_map(|(name, record)| Some((name, record.as_ref().ok()?))))?;
            for (name, record) in hashed {
                results.push((name.clone(), record.map(|record| self.offer(name, record))));
            }
        }
        Ok(results)
    }

    fn offer(&self, name: FileName, record: ShareRecord) -> FileInfo {
        // The complete file takes the place of an unfinished download of the same name.
        self.state.discard_partial_data(&name);
        let info = record.manifest.describe(name.clone());
        self.holdings.insert_shared(name, record.manifest, record.path, record.stamp);
        info
    }

    /// The tracker refused a share. If the registered file has the same size in other chunks it may be the
    /// same content after all: hashes again in those chunks. Returns whether it is.
    pub fn adopt_chunk_size(&self, refusal: &Refusal) -> Result<bool, ShareError> {
        let Some(registered) = refusal.registered.as_ref().filter(|_| refusal.may_be_same_content()) else {
            return Ok(false);
        };
        let name = &refusal.ours.name;
        let Some(crate::holdings::Source::Shared { path, .. }) = self.holdings.get(name).map(|view| view.source) else {
            return Ok(false);
        };
        let (manifest, stamp) =
            hash_file(&path, Some(registered.layout.chunk_size()), &HashProgress::default(), &self.stop)?;
        if manifest.id() != registered.id {
            return Ok(false);
        }
        let record = ShareRecord { path, stamp, manifest, shared: true };
        self.state.put_shares([(name, &record)])?;
        self.offer(name.clone(), record);
        Ok(true)
    }

    /// Stops offering a file, now and after a restart. The file stays; an unfinished download is deleted.
    /// Returns what was held. The tracker is not told.
    pub fn unshare(&self, name: &FileName) -> Result<Option<FileInfo>, StateError> {
        let Some(view) = self.holdings.remove(name, false) else { return Ok(None) };
        let info = view.manifest.describe(name.clone());
        match view.source {
            crate::holdings::Source::Shared { path, stamp } => {
                let record = ShareRecord { path, stamp, manifest: view.manifest, shared: false };
                self.state.put_shares([(name, &record)])?;
            }
            crate::holdings::Source::Partial(partial) => {
                self.state.forget_partial(name)?;
                if let Err(error) = partial.discard() {
                    tracing::warn!(path = %partial.path().display(), %error, "cannot delete the data of an unfinished download");
                }
            }
        }
        Ok(Some(info))
    }
}
