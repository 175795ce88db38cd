//! What a peer must not forget: its id, the hashes of what it shares, and which chunks of unfinished downloads are
//! safely on disk.
//!
//! The records live in one redb file, because redb is crash-safe by copy-on-write, pure Rust and has a stable
//! format. A record of stored chunks is written only after their data was synced (the caller's duty), and carries
//! a checksum of its own over the file's id and the chunk set, so that no damaged record can make the peer believe
//! a chunk (invariant 4).
//!
//! | module | is |
//! |---|---|
//! | [`records`] | what is remembered, and its bytes |
//! | [`shares`] | hashed files, and which of them are missing |
//! | [`downloads`] | unfinished downloads |
//! | [`signatures`] | what was signed of them |
//! | [`database`] | the file, made whole at a first start |
//! | [`fuzzing`] | a door for hostile bytes |
//!
//! Knows nothing of what runs, and never touches the data of a file. Calls block on disk I/O.

mod database;
mod downloads;
pub(crate) mod fuzzing;
mod records;
mod shares;
mod signatures;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

use drizzle_proto::{
    FileName, PeerId,
    database::{Reopening, Unusable},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

pub(crate) use self::records::{EndedPartial, Order, PartialRecord, ShareRecord};
use self::{
    database::{FILE, failed, open_database},
    records::damaged,
};
use super::disk::Disk;

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
/// What was signed of files, by name: statement and signature.
const SIGNATURES: TableDefinition<'_, &str, (&str, &str)> = TableDefinition::new("signatures");
/// Paths of data beside a destination that no download needs.
const LEFTOVERS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leftovers");

const PEER_ID: &str = "peer-id";
const FORMAT_KEY: &str = "format";
/// The format that is written. The first one had no number and is otherwise the same.
const FORMAT: u64 = 1;

/// Why the state folder cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The folder cannot be made or read.
    #[error("cannot use the state folder {}: {source}; give another one with --state-dir", path.display())]
    Folder {
        /// The state folder.
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
        /// The database in the state folder.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A later version of this program wrote it.
    #[error("{} was written by a newer peer-svc (format {found}, this one knows {FORMAT}); start that version, or give another --state-dir", path.display())]
    Newer {
        /// The database in the state folder.
        path: PathBuf,
        /// The format number in it, above [`FORMAT`].
        found: u64,
    },
    /// Reading or writing failed.
    #[error("cannot write the state in {}: {source}", path.display())]
    Io {
        /// The database in the state folder.
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

    /// Changes it in one durable step.
    fn change<T>(&self, change: impl Fn(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, JournalError> {
        self.run(|database| {
            let write = database.begin_write()?;
            let changed = change(&write)?;
            write.commit()?;
            Ok(changed)
        })
    }

    /// Every row of a table, by its name.
    fn rows<V: redb::Value + 'static, T>(
        &self,
        table: TableDefinition<'static, &'static str, V>,
        read: impl Fn(V::SelfType<'_>) -> Result<T, redb::Error>,
    ) -> Result<Vec<(FileName, T)>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(table)?;
            let rows = table.iter()?.map(|row| {
                let (name, value) = row?;
                let name = FileName::new(name.value()).map_err(|_| damaged("name"))?;
                Ok((name, read(value.value())?))
            });
            rows.collect()
        })
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
                write.open_table(SIGNATURES)?;
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
        self.change(|write| {
            let known = write.open_table(META)?.get(PEER_ID)?.map(|id| id.value().try_into());
            let id = match known {
                Some(bytes) => bytes.map_err(|_| damaged("peer id"))?,
                None => {
                    write.open_table(META)?.insert(PEER_ID, &made[..])?;
                    made
                }
            };
            Ok(PeerId::from_bytes(id))
        })
    }

    /// Replaces this peer's id.
    pub(crate) fn replace_peer_id(&self, id: PeerId) -> Result<(), JournalError> {
        self.change(|write| {
            write.open_table(META)?.insert(PEER_ID, &id.as_bytes()[..])?;
            Ok(())
        })
    }
}
