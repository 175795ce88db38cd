//! What a peer must not forget: its id, the hashes of what it shares, and which chunks of unfinished
//! downloads are safely on disk.
//!
//! The records live in one redb file, because redb is crash-safe by copy-on-write, pure Rust and has a
//! stable format. A record of stored chunks is written only after their data was synced (the caller's
//! duty), and carries a checksum of its own over the file's id and the chunk set, so that no damaged
//! record can make the peer believe a chunk.
//!
//! Layout of the state folder: `peer.redb`, and `partial/KEY` with the data of each unfinished download.
//! This module never reads or writes file data.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use drizzle_proto::{ChunkSet, Digest, FileId, FileName, Manifest, PeerId};
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TransactionError,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::stamp::Stamp;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const SHARES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("shares");
const PARTIALS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("partials");
const PROGRESS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("progress");

const PEER_ID: &str = "peer-id";
const CACHE_BYTES: usize = 8 << 20;

/// Why the state folder cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made.
    #[error("cannot use the state folder {}: {source}; give another with --state-dir", path.display())]
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
    /// Reading or writing failed.
    #[error("cannot write the peer's state: {0}")]
    Store(#[from] redb::Error),
}

macro_rules! store_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for StateError {
            fn from(error: $error) -> Self {
                Self::Store(error.into())
            }
        })*
    };
}
store_errors!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// A file that was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareRecord {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// The file as it was when hashed.
    pub stamp: Stamp,
    /// Its content.
    pub manifest: Manifest,
    /// False after `unshare`: the file is not offered by a restart.
    pub shared: bool,
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
pub struct PartialRecord {
    /// What it is called.
    pub name: FileName,
    /// What it is to become.
    pub manifest: Manifest,
    /// Chunks whose data is synced.
    pub chunks: ChunkSet,
}

/// The open state of one peer. Calls block on disk I/O.
#[derive(Debug)]
pub struct State {
    /// `None` only if it could not be opened again.
    db: RwLock<Option<Database>>,
    folder: PathBuf,
    /// Names that a transfer is at.
    running: Mutex<HashSet<FileName>>,
}

impl State {
    /// Opens or makes the state folder.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let partial = folder.join("partial");
        fs::create_dir_all(&partial).map_err(|source| StateError::Folder { path: folder.to_owned(), source })?;
        let db = Self::open_database(folder)?;
        let setup = db.begin_write()?;
        setup.open_table(META)?;
        setup.open_table(SHARES)?;
        setup.open_table(PARTIALS)?;
        setup.open_table(PROGRESS)?;
        setup.commit()?;
        // Compared with paths that were resolved.
        let folder = folder.canonicalize().map_err(|source| StateError::Folder { path: folder.to_owned(), source })?;
        Ok(Self { db: RwLock::new(Some(db)), folder, running: Mutex::default() })
    }

    fn open_database(folder: &Path) -> Result<Database, StateError> {
        let path = folder.join("peer.redb");
        let damaged = |detail: String| StateError::Damaged { path: path.clone(), detail };
        Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StateError::InUse(folder.to_owned()),
            redb::DatabaseError::Storage(redb::StorageError::Io(source))
                if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                StateError::Folder { path: path.clone(), source }
            }
            other => damaged(other.to_string()),
        })
    }

    /// The state folder, resolved.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn begin_write(&self) -> Result<WriteTransaction, StateError> {
        self.begin(Database::begin_write)
    }

    fn begin_read(&self) -> Result<ReadTransaction, StateError> {
        self.begin(Database::begin_read)
    }

    /// Begins a transaction. After a failed write (a full disk) redb refuses every further one until the
    /// database is opened again, so that is done here: room made on the disk must be enough.
    fn begin<T>(&self, begin: impl Fn(&Database) -> Result<T, TransactionError>) -> Result<T, StateError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = db.as_ref() {
            match begin(db) {
                Err(TransactionError::Storage(StorageError::PreviousIo)) => {}
                begun => return Ok(begun?),
            }
        }
        drop(db);
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // It must be closed before it can be opened.
        *db = None;
        Ok(begin(db.insert(Self::open_database(&self.folder)?))?)
    }

    /// This peer's id; made on first use.
    pub fn peer_id(&self) -> Result<PeerId, StateError> {
        let write = self.begin_write()?;
        let known = write.open_table(META)?.get(PEER_ID)?.map(|id| id.value().try_into());
        let id = match known {
            Some(bytes) => bytes.map_err(|_| self.damaged("peer id"))?,
            None => {
                let made: [u8; 16] = rand::random();
                write.open_table(META)?.insert(PEER_ID, &made[..])?;
                made
            }
        };
        write.commit()?;
        Ok(PeerId::from_bytes(id))
    }

    /// Where the data of a partial download of this name is kept.
    pub fn partial_path(&self, name: &FileName) -> PathBuf {
        // A name may be longer than a file name can be, and has slashes.
        let key = Digest::of(name.as_str().as_bytes()).to_string();
        self.folder.join("partial").join(&key[..32])
    }

    /// Every hashed file.
    pub fn shares(&self) -> Result<Vec<(FileName, ShareRecord)>, StateError> {
        let table = self.begin_read()?.open_table(SHARES)?;
        let mut shares = Vec::new();
        for row in table.iter()? {
            let (name, value) = row?;
            let name = FileName::new(name.value()).map_err(|_| self.damaged("share name"))?;
            shares.push((name, self.read_share(value.value())?));
        }
        Ok(shares)
    }

    fn read_share(&self, value: &[u8]) -> Result<ShareRecord, StateError> {
        use std::os::unix::ffi::OsStringExt;
        let stored: StoredShare = postcard::from_bytes(value).map_err(|_| self.damaged("share"))?;
        Ok(ShareRecord {
            path: std::ffi::OsString::from_vec(stored.path).into(),
            stamp: stored.stamp,
            manifest: Manifest::decode(&stored.manifest).map_err(|_| self.damaged("share manifest"))?,
            shared: stored.shared,
        })
    }

    /// Says that a transfer of this name runs, or has ended: meanwhile nobody else ends its partial download.
    pub fn set_running(&self, name: &FileName, runs: bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if runs {
            running.insert(name.clone());
        } else {
            running.remove(name);
        }
    }

    fn is_running(&self, name: &FileName) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Deletes the data of a partial download whose record has ended, unless a transfer is at it.
    pub fn discard_partial_data(&self, name: &FileName) {
        if !self.is_running(name) {
            // Nothing there is the rule; what cannot be deleted goes at the next start.
            let _ = fs::remove_file(self.partial_path(name));
        }
    }

    /// Deletes data in the state folder that no record speaks of: what a crash between two steps left.
    pub fn discard_orphans(&self) -> Result<(), StateError> {
        let known: HashSet<PathBuf> = self.partials()?.iter().map(|record| self.partial_path(&record.name)).collect();
        let entries = fs::read_dir(self.folder.join("partial"));
        for entry in entries.into_iter().flatten().flatten().filter(|entry| !known.contains(&entry.path())) {
            let _ = fs::remove_file(entry.path());
        }
        Ok(())
    }

    /// Remembers hashed files, all in one transaction; a partial download of the same name ends, unless a
    /// transfer is at it.
    pub fn put_shares<'a>(
        &self,
        shares: impl IntoIterator<Item = (&'a FileName, &'a ShareRecord)>,
    ) -> Result<(), StateError> {
        use std::os::unix::ffi::OsStrExt;
        let write = self.begin_write()?;
        {
            let mut table = write.open_table(SHARES)?;
            let (mut partials, mut progress) = (write.open_table(PARTIALS)?, write.open_table(PROGRESS)?);
            for (name, share) in shares {
                let stored = StoredShare {
                    path: share.path.as_os_str().as_bytes().to_vec(),
                    stamp: share.stamp,
                    shared: share.shared,
                    manifest: share.manifest.encode(),
                };
                let bytes = postcard::to_stdvec(&stored).map_err(|_| self.damaged("share"))?;
                table.insert(name.as_str(), &bytes[..])?;
                if !self.is_running(name) {
                    partials.remove(name.as_str())?;
                    progress.remove(name.as_str())?;
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Forgets files.
    pub fn forget_shares<'a>(&self, names: impl IntoIterator<Item = &'a FileName>) -> Result<(), StateError> {
        let write = self.begin_write()?;
        {
            let mut table = write.open_table(SHARES)?;
            for name in names {
                table.remove(name.as_str())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Every unfinished download. A record of stored chunks whose checksum fails counts as empty: the
    /// chunks are proved again by their hashes.
    pub fn partials(&self) -> Result<Vec<PartialRecord>, StateError> {
        let read = self.begin_read()?;
        let progress = read.open_table(PROGRESS)?;
        let mut partials = Vec::new();
        for row in read.open_table(PARTIALS)?.iter()? {
            let (name, value) = row?;
            let manifest = Manifest::decode(value.value()).map_err(|_| self.damaged("partial manifest"))?;
            let chunks = match progress.get(name.value())? {
                Some(value) => unseal(&manifest, value.value()),
                None => None,
            };
            partials.push(PartialRecord {
                name: FileName::new(name.value()).map_err(|_| self.damaged("partial name"))?,
                chunks: chunks.unwrap_or_else(|| ChunkSet::empty(manifest.layout().chunk_count())),
                manifest,
            });
        }
        Ok(partials)
    }

    /// Which content the unfinished download of this name is to become, if there is one.
    pub fn partial(&self, name: &FileName) -> Result<Option<FileId>, StateError> {
        let table = self.begin_read()?.open_table(PARTIALS)?;
        let Some(value) = table.get(name.as_str())? else { return Ok(None) };
        let manifest = Manifest::decode(value.value()).map_err(|_| self.damaged("partial manifest"))?;
        Ok(Some(manifest.id()))
    }

    /// Begins the record of a download, with no chunk stored.
    pub fn begin_partial(&self, name: &FileName, manifest: &Manifest) -> Result<(), StateError> {
        let write = self.begin_write()?;
        write.open_table(PARTIALS)?.insert(name.as_str(), &manifest.encode()[..])?;
        write.open_table(PROGRESS)?.remove(name.as_str())?;
        write.commit()?;
        Ok(())
    }

    /// Records which chunks are stored. Their data must have been synced before.
    pub fn record_chunks(&self, name: &FileName, manifest: &Manifest, chunks: &ChunkSet) -> Result<(), StateError> {
        let write = self.begin_write()?;
        // A download that ended meanwhile must not come back.
        if write.open_table(PARTIALS)?.get(name.as_str())?.is_some() {
            write.open_table(PROGRESS)?.insert(name.as_str(), &seal(manifest, chunks)[..])?;
        }
        write.commit()?;
        Ok(())
    }

    /// Forgets an unfinished download.
    pub fn forget_partial(&self, name: &FileName) -> Result<(), StateError> {
        let write = self.begin_write()?;
        write.open_table(PARTIALS)?.remove(name.as_str())?;
        write.open_table(PROGRESS)?.remove(name.as_str())?;
        write.commit()?;
        Ok(())
    }

    fn damaged(&self, what: &str) -> StateError {
        StateError::Damaged { path: self.folder.join("peer.redb"), detail: format!("unreadable {what}") }
    }
}

/// Bitfield, then the first 8 bytes of SHA-256(file id, bitfield).
fn seal(manifest: &Manifest, chunks: &ChunkSet) -> Vec<u8> {
    let mut value = chunks.to_bits();
    let checksum = checksum(manifest, &value);
    value.extend_from_slice(&checksum);
    value
}

fn unseal(manifest: &Manifest, value: &[u8]) -> Option<ChunkSet> {
    let (bits, found) = value.split_last_chunk::<8>()?;
    if checksum(manifest, bits) != *found {
        return None;
    }
    ChunkSet::from_bits(manifest.layout().chunk_count(), bits)
}

fn checksum(manifest: &Manifest, bits: &[u8]) -> [u8; 8] {
    let digest = Digest::of(&[&manifest.id().as_bytes()[..], bits].concat());
    let mut short = [0; 8];
    short.copy_from_slice(&digest.as_bytes()[..8]);
    short
}

#[cfg(test)]
mod tests {
    use drizzle_proto::Layout;

    use super::*;

    fn manifest(chunks: u64) -> Manifest {
        let layout = Layout::new(chunks << 14, 1 << 14).unwrap();
        Manifest::new(layout, layout.chunk_count().indices().map(|c| Digest::of(&c.get().to_be_bytes())).collect())
            .unwrap()
    }

    #[test]
    fn records_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (name, manifest) = (FileName::new("a/b").unwrap(), manifest(5));
        let chunks = ChunkSet::from_ranges(manifest.layout().chunk_count(), &"1-2,4".parse().unwrap()).unwrap();
        let share = ShareRecord {
            path: "/x/a".into(),
            stamp: Stamp { size: 5, modified_nanos: -7 },
            manifest: manifest.clone(),
            shared: true,
        };
        let id = {
            let state = State::open(folder.path()).unwrap();
            state.put_shares([(&FileName::new("s").unwrap(), &share)]).unwrap();
            state.begin_partial(&name, &manifest).unwrap();
            state.record_chunks(&name, &manifest, &chunks).unwrap();
            state.peer_id().unwrap()
        };
        let state = State::open(folder.path()).unwrap();
        assert_eq!(state.peer_id().unwrap(), id);
        assert_eq!(state.shares().unwrap(), [(FileName::new("s").unwrap(), share)]);
        let [partial] = &state.partials().unwrap()[..] else { panic!("one partial") };
        assert_eq!((&partial.name, &partial.chunks), (&name, &chunks));
    }

    #[test]
    fn a_forgotten_download_is_not_recorded_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        let (name, manifest) = (FileName::new("a").unwrap(), manifest(2));
        state.begin_partial(&name, &manifest).unwrap();
        state.forget_partial(&name).unwrap();
        state.record_chunks(&name, &manifest, &ChunkSet::full(manifest.layout().chunk_count())).unwrap();
        assert!(state.partials().unwrap().is_empty());
    }

    #[test]
    fn no_altered_record_is_believed() {
        let manifest = manifest(9);
        let sealed =
            seal(&manifest, &ChunkSet::from_ranges(manifest.layout().chunk_count(), &"3".parse().unwrap()).unwrap());
        assert!(unseal(&manifest, &sealed).is_some());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(unseal(&manifest, &altered).is_none(), "byte {at}");
        }
        assert!(unseal(&manifest, &sealed[..4]).is_none(), "truncated");
    }

    #[test]
    fn garbage_is_a_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        drop(State::open(folder.path()).unwrap());
        let file = folder.path().join("peer.redb");
        let good = fs::read(&file).unwrap();
        for bad in [b"garbage".to_vec(), good[..good.len() / 2].to_vec(), good[..100].to_vec()] {
            fs::write(&file, &bad).unwrap();
            let error = State::open(folder.path()).unwrap_err();
            assert!(matches!(error, StateError::Damaged { .. }), "{error}");
            assert_eq!(fs::read(&file).unwrap(), bad, "nothing is deleted");
        }
    }

    #[test]
    fn two_daemons_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _first = State::open(folder.path()).unwrap();
        assert!(matches!(State::open(folder.path()), Err(StateError::InUse(_))));
    }
}
