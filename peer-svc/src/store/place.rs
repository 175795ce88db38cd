//! Where the data of a download lies: on the file system of its destination, so that the last step is a rename and
//! never a copy, and a full or read-only disk is found before anything is fetched.
//!
//! That is the folder of partial files where a rename leads from there to the destination, and else a hidden file
//! beside the destination. It is a new file with a random name, so that no other daemon and no planted link has a part
//! in it, and the journal knows its name before it is made: what a crash leaves is used or deleted by the next start.
//! Data that lies elsewhere, because the download began with another destination, is moved, chunk by chunk, each
//! proved as it is read. Calls block.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use drizzle_proto::{ChunkSet, FileName, Manifest, name::RESERVED_PREFIX};
use tokio_util::sync::CancellationToken;

use super::{
    disk::Disk,
    journal::{Journal, JournalError, PartialRecord},
    partials::{Partials, shortage},
    read::{CopyError, copy_chunk},
    write::PartialFile,
};

/// Why the data of a download cannot be where it has to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// Nothing can be written into the destination's folder.
    #[error("cannot write into {}: {source}", folder.display())]
    Unwritable {
        /// The folder where the data would lie.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room for the whole file.
    #[error("no room in {}", folder.display())]
    NoRoom {
        /// Bytes that must become free.
        bytes: u64,
        /// A folder on the file system that is full.
        folder: PathBuf,
    },
    /// The system refused.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file that could not be read or written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state folder cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The download was cancelled while its data was moved.
    #[error("cancelled")]
    Cancelled,
}

/// How far the move of data from one folder to another is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved<'a> {
    /// The new data file.
    pub(crate) to: &'a Path,
    /// Bytes that are there.
    pub(crate) done: u64,
    /// Bytes of all chunks that move.
    pub(crate) total: u64,
}

/// The records and the data of downloads.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) journal: &'a Journal,
    pub(crate) partials: &'a Partials,
    /// Ends a move between two chunks of it.
    pub(crate) cancel: &'a CancellationToken,
    /// Is told how far a move is.
    pub(crate) tell: &'a dyn Fn(Moved<'_>),
}

impl std::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("partials", &self.partials).finish_non_exhaustive()
    }
}

/// The data of a download that begins or goes on.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) partial: PartialFile,
    /// Keeps the data file open, so that no chunk has to open it again.
    pub(crate) file: Arc<File>,
    /// The chunks that the journal vouches for.
    pub(crate) recorded: ChunkSet,
}

impl Place<'_> {
    /// Opens or makes the data of a download. `folder` is that of its destination, or the nearest one above that there
    /// is; `None` if no file is wanted. With a destination the whole space is taken now.
    pub(crate) fn open(
        &self,
        name: &FileName,
        manifest: &Manifest,
        folder: Option<&Path>,
    ) -> Result<Opened, PlaceError> {
        if let Some(folder) = folder {
            check_writable(folder)?;
        }
        let turn = self.partials.turn();
        let fail = |path: &Path, source| PlaceError::Io { path: path.to_owned(), source };
        let record = self.journal.partial(name)?.filter(|record| record.manifest.id() == manifest.id());
        let record = match record {
            Some(record)
                if self.partials.is_whole(&record).map_err(|e| fail(&self.partials.path_of(&record), e))? =>
            {
                record
            }
            // Nothing yet, or the leftover of other content under this name: begin anew.
            _ => return self.begin(name, manifest, folder),
        };
        drop(turn);
        let partial = self.partials.of(&record);
        match folder {
            Some(folder) if !leads(self.partials.disk(), folder_of(partial.path()), folder) => {
                self.relocate(&record, folder)
            }
            _ => {
                let file = partial.begin(folder.is_some()).map_err(|source| self.refused(&partial, source))?;
                partial.vouch_for(&record.chunks);
                Ok(Opened { partial, file, recorded: record.chunks })
            }
        }
    }

    /// A path for data that can be renamed into a folder, and whether it is beside the destination.
    fn path_for(&self, name: &FileName, folder: Option<&Path>) -> (PathBuf, bool) {
        match folder {
            Some(folder) if !leads(self.partials.disk(), self.partials.folder(), folder) => (beside(folder), true),
            _ => (self.partials.path(name), false),
        }
    }

    fn begin(&self, name: &FileName, manifest: &Manifest, folder: Option<&Path>) -> Result<Opened, PlaceError> {
        let (path, is_beside) = self.path_for(name, folder);
        let beside = is_beside.then_some(path.as_path());
        if let Some(ended) = self.journal.begin_partial(name, manifest, beside)? {
            self.discard(&ended.beside.unwrap_or_else(|| self.partials.path(name)));
        }
        let partial = PartialFile::at(&path, manifest.clone(), self.partials.disk().clone());
        self.make(&partial, folder.is_some())
            .inspect_err(|_| {
                // Nothing was stored, so nothing is to be left.
                match self.journal.forget_partial(name) {
                    Ok(_) => self.discard(&path),
                    Err(error) => tracing::warn!(%name, %error, "cannot forget a download that did not begin"),
                }
            })
            .map(|file| {
                let recorded = ChunkSet::empty(manifest.layout().chunk_count());
                Opened { partial, file, recorded }
            })
    }

    fn make(&self, partial: &PartialFile, reserve: bool) -> Result<Arc<File>, PlaceError> {
        let make = || {
            // In the folder of partial files it may be what a crash left.
            if folder_of(partial.path()) == self.partials.folder() {
                partial.disk().remove(partial.path())?;
            }
            partial.make()?;
            partial.begin(reserve)
        };
        make().map_err(|source| self.refused(partial, source))
    }

    fn refused(&self, partial: &PartialFile, source: io::Error) -> PlaceError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PlaceError::NoRoom {
                bytes: shortage(partial.path(), partial.manifest()),
                folder: folder_of(partial.path()).to_owned(),
            },
            _ => PlaceError::Io { path: partial.path().to_owned(), source },
        }
    }

    /// Moves the data of a recorded download so that it can be renamed into a folder.
    pub(crate) fn relocate(&self, record: &PartialRecord, folder: &Path) -> Result<Opened, PlaceError> {
        let old = self.partials.of(record);
        let (path, is_beside) = match self.path_for(&record.name, Some(folder)) {
            // The answer of the file system changed: from here it did not lead there.
            (same, _) if same == old.path() => (beside(folder), true),
            found => found,
        };
        let new = PartialFile::at(&path, record.manifest.clone(), self.partials.disk().clone());
        self.journal.note_leftover(&path)?;
        match self.copy(&old, &new, &record.chunks) {
            Ok((file, recorded)) => {
                let paths = (old.path(), new.path());
                self.journal.move_partial(&record.name, record.manifest.id(), paths, is_beside, &recorded)?;
                self.discard(old.path());
                Ok(Opened { partial: new, file, recorded })
            }
            Err(error) => {
                self.discard(&path);
                Err(error)
            }
        }
    }

    /// Copies chunks, each proved as it is read, and syncs them; which they were.
    fn copy(
        &self,
        old: &PartialFile,
        new: &PartialFile,
        chunks: &ChunkSet,
    ) -> Result<(Arc<File>, ChunkSet), PlaceError> {
        let fail = |path: &Path, source| PlaceError::Io { path: path.to_owned(), source };
        let from = old.file().map_err(|source| fail(old.path(), source))?;
        let file = self.make(new, true)?;
        let (layout, mut copied) = (new.manifest().layout(), ChunkSet::empty(chunks.count()));
        let total = chunks.iter().map(|chunk| u64::from(layout.chunk_len(chunk))).sum();
        let mut done = 0;
        for chunk in chunks.iter() {
            if self.cancel.is_cancelled() {
                return Err(PlaceError::Cancelled);
            }
            (self.tell)(Moved { to: folder_of(new.path()), done, total });
            let stored = copy_chunk(&from, new, chunk).map_err(|error| match error {
                CopyError::Read(source) => fail(old.path(), source),
                CopyError::Write(source) => self.refused(new, source),
            })?;
            if let Some(stored) = stored {
                copied.insert(stored.chunk());
            }
            done += u64::from(layout.chunk_len(chunk));
        }
        new.sync().map_err(|source| self.refused(new, source))?;
        Ok((file, copied))
    }

    /// Best effort: what cannot be deleted now is deleted at the next start.
    fn discard(&self, path: &Path) {
        if let Err(error) = self.partials.discard_leftover(self.journal, path) {
            tracing::warn!(path = %path.display(), %error, "cannot delete the data of a download; it is tried again at the next start");
        }
    }
}

/// A name for data beside a destination.
fn beside(folder: &Path) -> PathBuf {
    folder.join(format!("{RESERVED_PREFIX}-part-{:016x}", rand::random::<u64>()))
}

/// The nearest folder at or above the path's own that there is: new folders in it are on its file system.
pub(crate) fn folder_above(path: &Path) -> &Path {
    path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes a file without a name, which leaves nothing behind whatever happens.
fn check_writable(folder: &Path) -> Result<(), PlaceError> {
    let unwritable = |source| PlaceError::Unwritable { folder: folder.to_owned(), source };
    tempfile::tempfile_in(folder).map(|_| ()).map_err(unwritable)
}

/// Whether a rename leads from one folder into another: both are on one file system, and below one mount of it. The
/// kernel says the latter before it looks whether there is such a file.
fn leads(disk: &Disk, from: &Path, to: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |folder: &Path| folder.metadata().map(|metadata| metadata.dev()).ok();
    let none = format!("{RESERVED_PREFIX}-none-{:016x}", rand::random::<u64>());
    let crosses = || matches!(disk.rename_new(&from.join(&none), &to.join(&none)), Err(error) if error.kind() == io::ErrorKind::CrossesDevices);
    from == to || device(from) == device(to) && !crosses()
}
