//! The data of unfinished downloads: one file each, in a folder of its own beside the journal, or hidden beside the
//! destination where that is on another file system ([`super::place`]).
//!
//! The journal says which of them are wanted; nothing here decides that, and nothing here is decided by what
//! runs. Calls block.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use drizzle_proto::{ChunkSet, Digest, FileName, Manifest};

use super::{
    disk::Disk,
    journal::{EndedPartial, Journal, JournalError, PartialRecord},
    write::PartialFile,
};

/// The folder of partial files.
#[derive(Debug)]
pub(crate) struct Partials {
    folder: PathBuf,
    disk: Disk,
    turn: Mutex<()>,
}

impl Partials {
    /// Makes the folder below the state folder if there is none.
    pub(crate) fn open(state_folder: &Path, disk: Disk) -> io::Result<Self> {
        let folder = state_folder.join("partial");
        disk.make_folder(&folder)?;
        Ok(Self { folder, disk, turn: Mutex::default() })
    }

    /// To be held from the look whether a download runs to what follows from it: one that begins meanwhile would have
    /// the record or the data of its chunks taken away.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything holds it.
    #[cfg(test)]
    pub(crate) fn is_turn_taken(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Where the data of an unfinished download of this name is kept, unless it is beside its destination.
    pub(crate) fn path(&self, name: &FileName) -> PathBuf {
        // A name may be longer than a file name can be, and has slashes.
        let key = Digest::of(name.as_str().as_bytes()).to_string();
        self.folder.join(&key[..32])
    }

    /// Where the data of a recorded download is.
    pub(crate) fn path_of(&self, record: &PartialRecord) -> PathBuf {
        record.beside.clone().unwrap_or_else(|| self.path(&record.name))
    }

    /// The data of a recorded download, not opened yet.
    pub(crate) fn of(&self, record: &PartialRecord) -> PartialFile {
        PartialFile::at(&self.path_of(record), record.manifest.clone(), self.disk.clone())
    }

    /// Whether there is data of the right length: data that was cut short or is gone proves nothing. Data that cannot
    /// be looked at is an error, and not gone: it may be sound.
    pub(crate) fn is_whole(&self, record: &PartialRecord) -> io::Result<bool> {
        match fs::symlink_metadata(self.path_of(record)) {
            Ok(metadata) => Ok(metadata.is_file() && metadata.len() == record.manifest.layout().size()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the data of a download whose record ended.
    pub(crate) fn discard(&self, journal: &Journal, ended: &EndedPartial) -> Result<(), RecordError> {
        match &ended.beside {
            Some(path) => self.discard_leftover(journal, path),
            // Without a record it is deleted at the next start in any case.
            None => Ok(self.disk.remove(&self.path(&ended.name))?),
        }
    }

    /// Deletes data that is noted as a leftover, durably, and then the note.
    pub(crate) fn discard_leftover(&self, journal: &Journal, path: &Path) -> Result<(), RecordError> {
        self.disk.remove(path)?;
        self.disk.sync_folder_of(path)?;
        Ok(journal.forget_leftover(path)?)
    }

    /// Deletes data of every download but these: what a crash between two steps left. What is on a disk that is away
    /// stays noted.
    pub(crate) fn sweep(&self, journal: &Journal, wanted: &[PartialRecord]) -> Result<(), JournalError> {
        for path in journal.leftovers()? {
            if let Err(error) = self.discard_leftover(journal, &path) {
                tracing::warn!(path = %path.display(), %error, "cannot delete a leftover; it is tried again at the next start");
            }
        }
        let wanted: HashSet<PathBuf> = wanted.iter().map(|record| self.path_of(record)).collect();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| !wanted.contains(path)) {
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot delete a leftover; it is tried again at the next start");
            }
        }
        Ok(())
    }
}

/// Bytes that must become free for a whole file to fit at a path, at least 1.
pub(crate) fn shortage(path: &Path, manifest: &Manifest) -> u64 {
    let taken = fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    let needed = manifest.layout().size().saturating_sub(taken).max(1);
    let disk = path.parent().map(rustix::fs::statvfs);
    let free = disk.and_then(Result::ok).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    match needed.saturating_sub(free) {
        // There is room, but not for this user: a quota.
        0 => needed,
        shortage => shortage,
    }
}

/// Records that these chunks of a download are stored: the data is synced first, so that the journal never vouches
/// for what a power cut could take (invariant 4).
pub(crate) fn record(
    journal: &Journal,
    name: &FileName,
    partial: &PartialFile,
    stored: &ChunkSet,
) -> Result<(), RecordError> {
    partial.sync()?;
    Ok(journal.record_chunks(name, partial.manifest().id(), stored)?)
}

/// Why stored chunks could not be recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The data cannot be synced.
    #[error(transparent)]
    Sync(#[from] io::Error),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{
        Layout,
        layout::{MAX_CHUNK_SIZE, MAX_FILE_SIZE},
    };

    use super::*;
    use crate::store::testing::content;

    #[test]
    fn the_shortage_is_what_does_not_fit() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("a");
        let manifest = |size| {
            let layout = Layout::new(size, MAX_CHUNK_SIZE).unwrap();
            Manifest::new(layout, layout.chunk_count().indices().map(|_| Digest::of(&[])).collect()).unwrap()
        };
        // No test machine has this much, and each has less than all of it.
        let short = shortage(&path, &manifest(MAX_FILE_SIZE));
        assert!((1..MAX_FILE_SIZE).contains(&short), "{short}");
        // It fits, so a quota is in the way: all of it is said to be needed.
        assert_eq!(shortage(&path, &manifest(1 << 14)), 1 << 14);
    }

    #[test]
    fn data_that_cannot_be_looked_at_is_not_taken_for_missing() {
        let state = tempfile::tempdir().unwrap();
        let ((_, manifest), name) = (content(1), FileName::new("a").unwrap());
        let partials = Partials::open(state.path(), Disk::default()).unwrap();
        let chunks = ChunkSet::empty(manifest.layout().chunk_count());
        let record = PartialRecord { name: name.clone(), manifest: manifest.clone(), chunks, beside: None };
        assert!(!partials.is_whole(&record).unwrap());
        partials.of(&record).make().unwrap();
        assert!(partials.is_whole(&record).unwrap());
        fs::remove_dir_all(state.path().join("partial")).unwrap();
        fs::write(state.path().join("partial"), "no folder").unwrap();
        assert!(partials.is_whole(&record).is_err());
    }
}
