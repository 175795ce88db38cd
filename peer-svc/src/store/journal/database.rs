//! The file of the journal: opened, or made whole at a first start.

use std::{fs::File, io, path::Path};

use drizzle_proto::database::{Unusable, checked};
use redb::{Database, DatabaseError, backends::FileBackend};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::JournalError;
use crate::store::disk::Disk;

pub(super) const FILE: &str = "peer.redb";
/// Its name until it is whole.
const NEW_FILE: &str = "peer.redb.new";
const CACHE_BYTES: usize = 8 << 20;

/// Opens the database. A new one is made whole under another name first: redb takes a file that it did not finish
/// making, because of a crash or a full disk, for a damaged one, and the peer could never start again.
pub(super) fn open_database(path: &Path, disk: &Disk) -> Result<Database, DatabaseError> {
    if !path.try_exists()? {
        make_database(path, disk)?;
    }
    open_file(disk.open(path)?, path, disk)
}

fn make_database(path: &Path, disk: &Disk) -> Result<(), DatabaseError> {
    let new = path.with_file_name(NEW_FILE);
    let file = disk.open(&new)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(DatabaseError::DatabaseAlreadyOpen),
        // A file system without locks: redb does without them, too.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    // Another daemon may have finished between the look and the lock: then this is its file, and is left alone.
    if path.try_exists()? {
        return Ok(());
    }
    disk.resize(&file, &new, 0)?;
    let made = open_file(file, &new, disk)?;
    // Still locked, so that no other daemon begins to make this very file anew.
    disk.rename_new(&new, path)?;
    disk.sync_folder_of(path)?;
    made.close()
}

fn open_file(file: File, path: &Path, disk: &Disk) -> Result<Database, DatabaseError> {
    let mut builder = checked(path);
    builder.set_cache_size(CACHE_BYTES);
    #[cfg(test)]
    if disk.is_watched() {
        return builder.create_with_backend(crate::store::faults::WatchedBackend::new(file, path, disk));
    }
    let _ = (path, disk);
    builder.create_with_backend(FileBackend::new(file)?)
}

pub(super) fn failed(folder: &Path, error: Unusable) -> JournalError {
    let path = folder.join(FILE);
    match error {
        Unusable::InUse => JournalError::InUse(folder.to_owned()),
        Unusable::Damaged(detail) => JournalError::Damaged { path, detail },
        Unusable::Io(source) => JournalError::Io { path, source: source.into() },
        Unusable::Other(source) => JournalError::Io { path, source: source.into() },
    }
}
