//! What a peer must not forget: its id, the hashes of what it shares, and which chunks of unfinished downloads are
//! safely on disk.
//!
//! The records live in one redb file, because redb is crash-safe by copy-on-write, pure Rust and has a stable
//! format. A record of stored chunks is written only after their data was synced (the caller's duty), and carries
//! a checksum of its own over the file's id and the chunk set, so that no damaged record can make the peer believe
//! a chunk (invariant 4).
//!
//! Knows nothing of what runs, and never touches the data of a file. Calls block on disk I/O.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use drizzle_proto::{
    ChunkSet, Digest, FileId, FileName, Manifest, PeerId,
    database::{Reopening, Unusable},
};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction, backends::FileBackend,
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{disk::Disk, stamp::Stamp};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const SHARES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("shares");
/// Shared files that are not where they were, and since when, in seconds since 1970. Versions that know nothing of it
/// leave it alone.
const MISSING: TableDefinition<'_, &str, u64> = TableDefinition::new("missing");
const PARTIALS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("partials");
const PROGRESS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("progress");
/// Unfinished downloads whose data is beside their destination, with its path.
const BESIDE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("beside");
/// What running downloads were asked to do.
const ORDERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("orders");
/// Paths of data beside a destination that no download needs.
const LEFTOVERS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leftovers");

const PEER_ID: &str = "peer-id";
const FORMAT_KEY: &str = "format";
/// The format that is written. The first one had no number and is otherwise the same.
const FORMAT: u64 = 1;
const FILE: &str = "peer.redb";
/// Its name until it is whole.
const NEW_FILE: &str = "peer.redb.new";
const CACHE_BYTES: usize = 8 << 20;

/// Why the state folder cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The folder cannot be made or read.
    #[error("cannot use the state folder {}: {source}; give another one with --state-dir", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has it open.
    #[error("the state folder {} is in use by another peer-svc; stop that one, or give another --dir or --state-dir", .0.display())]
    InUse(PathBuf),
    /// The file is not what this program wrote.
    #[error("{} is damaged ({detail}); move it away to start over: shared files are hashed again, unfinished downloads begin anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A later version of this program wrote it.
    #[error("{} was written by a newer peer-svc (format {found}, this one knows {FORMAT}); start that version, or give another --state-dir", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Reading or writing failed.
    #[error("cannot write the state in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system or the database said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl JournalError {
    /// Whether the disk has no room left.
    pub(crate) fn is_disk_full(&self) -> bool {
        let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        match self {
            Self::Folder { source, .. } => full(source),
            Self::Io { source, .. } => source.downcast_ref::<io::Error>().is_some_and(full),
            Self::InUse(_) | Self::Damaged { .. } | Self::Newer { .. } => false,
        }
    }
}

/// A file that was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShareRecord {
    /// Absolute path of the file.
    pub(crate) path: PathBuf,
    /// The file as it was when hashed.
    pub(crate) stamp: Stamp,
    /// Its content.
    pub(crate) manifest: Manifest,
    /// False after `unshare`: the file is not offered by a restart.
    pub(crate) shared: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredShare {
    path: Vec<u8>,
    stamp: Stamp,
    shared: bool,
    manifest: Vec<u8>,
}

/// An unfinished download.
#[derive(Debug, Clone)]
pub(crate) struct PartialRecord {
    /// Its name.
    pub(crate) name: FileName,
    /// What it is to become.
    pub(crate) manifest: Manifest,
    /// Chunks whose data is synced.
    pub(crate) chunks: ChunkSet,
    /// Where its data is, if that is not in the folder of partial files.
    pub(crate) beside: Option<PathBuf>,
}

/// What a running download was asked to do: after a crash or a restart it goes on by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Only these chunks, first to last, and no file in place.
    pub(crate) chunks: Option<Vec<(u32, u32)>>,
    /// Where the file goes; `None`: its default place.
    pub(crate) output: Option<PathBuf>,
    /// Without progress for this long it gives up.
    pub(crate) timeout_millis: u64,
}

/// An unfinished download whose record ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedPartial {
    /// Its name.
    pub(crate) name: FileName,
    /// Where its data is, if that is not in the folder of partial files. It is noted as a leftover.
    pub(crate) beside: Option<PathBuf>,
}

/// The open journal of one peer.
#[derive(Debug)]
pub(crate) struct Journal {
    database: Reopening,
    folder: PathBuf,
}

impl Journal {
    /// Opens or makes the journal in a folder, which is made if it does not exist.
    pub(crate) fn open(folder: &Path, disk: Disk) -> Result<Self, JournalError> {
        let unusable = |source| JournalError::Folder { path: folder.to_owned(), source };
        disk.make_folders(folder).map_err(unusable)?;
        // Compared with paths that were resolved.
        let folder = folder.canonicalize().map_err(unusable)?;
        let path = folder.join(FILE);
        let watched = disk.clone();
        let database = Reopening::new(move || open_database(&path, &watched)).map_err(|error| match error {
            Unusable::Io(source) => JournalError::Folder { path: folder.join(FILE), source },
            other => failed(&folder, other),
        })?;
        let journal = Self { database, folder: folder.clone() };
        journal.migrate()?;
        Ok(journal)
    }

    /// The state folder, resolved.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn run<T>(&self, operation: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, JournalError> {
        self.database.run(operation).map_err(|error| failed(&self.folder, error))
    }

    /// Makes the tables, and brings an older format up to the present one.
    fn migrate(&self) -> Result<(), JournalError> {
        let found = self.run(|database| {
            let write = database.begin_write()?;
            let number = {
                let mut meta = write.open_table(META)?;
                let number = meta.get(FORMAT_KEY)?.map(|value| value.value().try_into().map(u64::from_le_bytes));
                match number {
                    Some(Ok(number)) => number,
                    Some(Err(_)) => return Err(damaged("format number")),
                    None => {
                        meta.insert(FORMAT_KEY, &FORMAT.to_le_bytes()[..])?;
                        FORMAT
                    }
                }
            };
            if number <= FORMAT {
                write.open_table(SHARES)?;
                write.open_table(MISSING)?;
                write.open_table(PARTIALS)?;
                write.open_table(PROGRESS)?;
                write.open_table(BESIDE)?;
                write.open_table(LEFTOVERS)?;
                write.open_table(ORDERS)?;
                write.commit()?;
            }
            Ok(number)
        })?;
        if found > FORMAT {
            return Err(JournalError::Newer { path: self.folder.join(FILE), found });
        }
        Ok(())
    }

    /// This peer's id; on first use it is `made`.
    pub(crate) fn peer_id(&self, made: [u8; 16]) -> Result<PeerId, JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            let known = write.open_table(META)?.get(PEER_ID)?.map(|id| id.value().try_into());
            let id = match known {
                Some(bytes) => bytes.map_err(|_| damaged("peer id"))?,
                None => {
                    write.open_table(META)?.insert(PEER_ID, &made[..])?;
                    made
                }
            };
            write.commit()?;
            Ok(PeerId::from_bytes(id))
        })
    }

    /// Replaces this peer's id.
    pub(crate) fn replace_peer_id(&self, id: PeerId) -> Result<(), JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            write.open_table(META)?.insert(PEER_ID, &id.as_bytes()[..])?;
            write.commit()?;
            Ok(())
        })
    }

    /// Every hashed file.
    pub(crate) fn shares(&self) -> Result<Vec<(FileName, ShareRecord)>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(SHARES)?;
            let mut shares = Vec::new();
            for row in table.iter()? {
                let (name, value) = row?;
                let name = FileName::new(name.value()).map_err(|_| damaged("name of a share"))?;
                shares.push((name, read_share(value.value())?));
            }
            Ok(shares)
        })
    }

    /// The hashed file of this name, if there is one.
    pub(crate) fn share(&self, name: &FileName) -> Result<Option<ShareRecord>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(SHARES)?;
            table.get(name.as_str())?.map(|row| read_share(row.value())).transpose()
        })
    }

    /// Shared files that are not where they were: since when, in seconds since 1970.
    pub(crate) fn missing(&self) -> Result<BTreeMap<FileName, u64>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(MISSING)?;
            let mut missing = BTreeMap::new();
            for row in table.iter()? {
                let (name, since) = row?;
                let name = FileName::new(name.value()).map_err(|_| damaged("name of a missing file"))?;
                missing.insert(name, since.value());
            }
            Ok(missing)
        })
    }

    /// Remembers that shared files are missing since then. Sharing one again, or forgetting it, ends that.
    pub(crate) fn note_missing(&self, names: &[FileName], since: u64) -> Result<(), JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(MISSING)?;
                for name in names {
                    table.insert(name.as_str(), since)?;
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    /// Remembers hashed files, all in one transaction. The record of an unfinished download of the same name ends,
    /// unless `keep` says otherwise of it; returns the names whose record ended.
    pub(crate) fn put_shares(
        &self,
        shares: &[(FileName, ShareRecord)],
        keep: &dyn Fn(&FileName) -> bool,
    ) -> Result<Vec<EndedPartial>, JournalError> {
        self.run(|database| {
            let mut ended = Vec::new();
            let write = database.begin_write()?;
            for (name, share) in shares {
                write.open_table(SHARES)?.insert(name.as_str(), &write_share(share)?[..])?;
                write.open_table(MISSING)?.remove(name.as_str())?;
                if !keep(name) {
                    ended.extend(end_partial(&write, name)?);
                }
            }
            write.commit()?;
            Ok(ended)
        })
    }

    /// Forgets files.
    pub(crate) fn forget_shares(&self, names: &[FileName]) -> Result<(), JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let (mut table, mut missing) = (write.open_table(SHARES)?, write.open_table(MISSING)?);
                for name in names {
                    table.remove(name.as_str())?;
                    missing.remove(name.as_str())?;
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    /// Every unfinished download. A record of stored chunks whose checksum fails counts as empty.
    pub(crate) fn partials(&self) -> Result<Vec<PartialRecord>, JournalError> {
        self.run(|database| {
            let read = database.begin_read()?;
            let (progress, beside) = (read.open_table(PROGRESS)?, read.open_table(BESIDE)?);
            let mut partials = Vec::new();
            for row in read.open_table(PARTIALS)?.iter()? {
                let (name, value) = row?;
                let chunks = progress.get(name.value())?;
                let beside = beside.get(name.value())?.map(|path| read_path(path.value()));
                let name = FileName::new(name.value()).map_err(|_| damaged("name of a download"))?;
                partials.push(read_partial(name, value.value(), chunks.as_ref().map(|chunks| chunks.value()), beside)?);
            }
            Ok(partials)
        })
    }

    /// The unfinished download of this name, if there is one.
    pub(crate) fn partial(&self, name: &FileName) -> Result<Option<PartialRecord>, JournalError> {
        self.run(|database| {
            let read = database.begin_read()?;
            let Some(value) = read.open_table(PARTIALS)?.get(name.as_str())? else { return Ok(None) };
            let chunks = read.open_table(PROGRESS)?.get(name.as_str())?;
            let beside = read.open_table(BESIDE)?.get(name.as_str())?.map(|path| read_path(path.value()));
            read_partial(name.clone(), value.value(), chunks.as_ref().map(|chunks| chunks.value()), beside).map(Some)
        })
    }

    /// Begins the record of a download, with no chunk stored; its data is to be at `beside`, or in the folder of
    /// partial files. Returns what was recorded under the name before.
    pub(crate) fn begin_partial(
        &self,
        name: &FileName,
        manifest: &Manifest,
        beside: Option<&Path>,
    ) -> Result<Option<EndedPartial>, JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            let ended = end_partial(&write, name)?;
            write.open_table(PARTIALS)?.insert(name.as_str(), &manifest.encode()[..])?;
            if let Some(path) = beside {
                write.open_table(BESIDE)?.insert(name.as_str(), path_bytes(path))?;
            }
            write.commit()?;
            Ok(ended)
        })
    }

    /// The data of a download is at another place now: at `beside`, or in the folder of partial files. There these
    /// chunks of it are stored and synced. The old data is noted as a leftover.
    pub(crate) fn move_partial(
        &self,
        name: &FileName,
        file: FileId,
        (from, to): (&Path, &Path),
        is_beside: bool,
        chunks: &ChunkSet,
    ) -> Result<(), JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let (mut beside, mut leftovers) = (write.open_table(BESIDE)?, write.open_table(LEFTOVERS)?);
                beside.remove(name.as_str())?;
                if is_beside {
                    beside.insert(name.as_str(), path_bytes(to))?;
                }
                leftovers.remove(path_bytes(to))?;
                leftovers.insert(path_bytes(from), &[][..])?;
                write.open_table(PROGRESS)?.insert(name.as_str(), &seal(file, chunks)[..])?;
            }
            write.commit()?;
            Ok(())
        })
    }

    /// Notes what a download that runs was asked to do. Its record must be there.
    pub(crate) fn put_order(&self, name: &FileName, order: &Order) -> Result<(), JournalError> {
        self.run(|database| {
            let value = postcard::to_stdvec(order).map_err(|_| damaged("order"))?;
            let write = database.begin_write()?;
            write.open_table(ORDERS)?.insert(name.as_str(), &value[..])?;
            write.commit()?;
            Ok(())
        })
    }

    /// A download ended, and is not to go on by itself.
    pub(crate) fn forget_order(&self, name: &FileName) -> Result<(), JournalError> {
        self.run(|database| {
            // The record of a finished download took it along.
            if database.begin_read()?.open_table(ORDERS)?.get(name.as_str())?.is_some() {
                let write = database.begin_write()?;
                write.open_table(ORDERS)?.remove(name.as_str())?;
                write.commit()?;
            }
            Ok(())
        })
    }

    /// What the downloads were asked to do that ran when this journal was used last.
    pub(crate) fn orders(&self) -> Result<Vec<(FileName, Order)>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(ORDERS)?;
            let mut orders = Vec::new();
            for row in table.iter()? {
                let (name, value) = row?;
                let name = FileName::new(name.value()).map_err(|_| damaged("name of a download"))?;
                orders.push((name, postcard::from_bytes(value.value()).map_err(|_| damaged("order"))?));
            }
            Ok(orders)
        })
    }

    /// Paths of data that no download needs.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(LEFTOVERS)?;
            table.iter()?.map(|row| Ok(read_path(row?.0.value()))).collect()
        })
    }

    /// Notes data that is not needed, or not yet: a start deletes it. To be called before it is made.
    pub(crate) fn note_leftover(&self, path: &Path) -> Result<(), JournalError> {
        self.change_leftover(path, true)
    }

    /// Forgets data that was deleted, durably.
    pub(crate) fn forget_leftover(&self, path: &Path) -> Result<(), JournalError> {
        self.change_leftover(path, false)
    }

    fn change_leftover(&self, path: &Path, is_one: bool) -> Result<(), JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let mut leftovers = write.open_table(LEFTOVERS)?;
                if is_one {
                    leftovers.insert(path_bytes(path), &[][..])?;
                } else {
                    leftovers.remove(path_bytes(path))?;
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    /// Records which chunks are stored. Their data must have been synced before.
    pub(crate) fn record_chunks(&self, name: &FileName, file: FileId, chunks: &ChunkSet) -> Result<(), JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            // A download that ended meanwhile must not come back.
            if write.open_table(PARTIALS)?.get(name.as_str())?.is_some() {
                write.open_table(PROGRESS)?.insert(name.as_str(), &seal(file, chunks)[..])?;
            }
            write.commit()?;
            Ok(())
        })
    }

    /// Forgets an unfinished download; what was recorded, if there was one.
    pub(crate) fn forget_partial(&self, name: &FileName) -> Result<Option<EndedPartial>, JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            let ended = end_partial(&write, name)?;
            write.commit()?;
            Ok(ended)
        })
    }
}

/// Ends the record of a download. Data beside a destination becomes a leftover: nothing else would find it.
fn end_partial(write: &WriteTransaction, name: &FileName) -> Result<Option<EndedPartial>, redb::Error> {
    write.open_table(PROGRESS)?.remove(name.as_str())?;
    write.open_table(ORDERS)?.remove(name.as_str())?;
    let beside = write.open_table(BESIDE)?.remove(name.as_str())?.map(|path| read_path(path.value()));
    if let Some(path) = &beside {
        write.open_table(LEFTOVERS)?.insert(path_bytes(path), &[][..])?;
    }
    let was_there = write.open_table(PARTIALS)?.remove(name.as_str())?.is_some();
    Ok(was_there.then(|| EndedPartial { name: name.clone(), beside }))
}

fn path_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

fn read_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}

/// Opens the database. A new one is made whole under another name first: redb takes a file that it did not finish
/// making, because of a crash or a full disk, for a damaged one, and the peer could never start again.
fn open_database(path: &Path, disk: &Disk) -> Result<Database, DatabaseError> {
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
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    #[cfg(test)]
    if disk.is_watched() {
        return builder.create_with_backend(super::faults::WatchedBackend::new(file, path, disk));
    }
    let _ = (path, disk);
    builder.create_with_backend(FileBackend::new(file)?)
}

fn failed(folder: &Path, error: Unusable) -> JournalError {
    let path = folder.join(FILE);
    match error {
        Unusable::InUse => JournalError::InUse(folder.to_owned()),
        Unusable::Damaged(detail) => JournalError::Damaged { path, detail },
        Unusable::Io(source) => JournalError::Io { path, source: source.into() },
        Unusable::Other(source) => JournalError::Io { path, source: source.into() },
    }
}

fn damaged(what: &str) -> redb::Error {
    redb::Error::Corrupted(format!("unreadable {what}"))
}

fn write_share(share: &ShareRecord) -> Result<Vec<u8>, redb::Error> {
    let stored = StoredShare {
        path: path_bytes(&share.path).to_vec(),
        stamp: share.stamp,
        shared: share.shared,
        manifest: share.manifest.encode(),
    };
    postcard::to_stdvec(&stored).map_err(|_| damaged("share"))
}

fn read_share(value: &[u8]) -> Result<ShareRecord, redb::Error> {
    let stored: StoredShare = postcard::from_bytes(value).map_err(|_| damaged("share"))?;
    Ok(ShareRecord {
        path: read_path(&stored.path),
        stamp: stored.stamp,
        manifest: Manifest::decode(&stored.manifest).map_err(|_| damaged("manifest of a share"))?,
        shared: stored.shared,
    })
}

fn read_partial(
    name: FileName,
    manifest: &[u8],
    chunks: Option<&[u8]>,
    beside: Option<PathBuf>,
) -> Result<PartialRecord, redb::Error> {
    let manifest = Manifest::decode(manifest).map_err(|_| damaged("manifest of a download"))?;
    let chunks = chunks.and_then(|sealed| unseal(&manifest, sealed));
    let chunks = chunks.unwrap_or_else(|| ChunkSet::empty(manifest.layout().chunk_count()));
    Ok(PartialRecord { name, manifest, chunks, beside })
}

/// Bitfield, then the first 8 bytes of SHA-256(file id, bitfield).
fn seal(file: FileId, chunks: &ChunkSet) -> Vec<u8> {
    let mut value = chunks.to_bits();
    let checksum = checksum(file, &value);
    value.extend_from_slice(&checksum);
    value
}

fn unseal(manifest: &Manifest, value: &[u8]) -> Option<ChunkSet> {
    let (bits, found) = value.split_last_chunk::<8>()?;
    if checksum(manifest.id(), bits) != *found {
        return None;
    }
    ChunkSet::from_bits(manifest.layout().chunk_count(), bits)
}

fn checksum(file: FileId, bits: &[u8]) -> [u8; 8] {
    let digest = Digest::of(&[&file.as_bytes()[..], bits].concat());
    let mut short = [0; 8];
    short.copy_from_slice(&digest.as_bytes()[..8]);
    short
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
