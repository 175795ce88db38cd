//! The embedded catalogue: one redb file.
//!
//! Why redb: a commit is atomic and durable without a log to replay, readers never wait for the writer,
//! it is one crate without C code, and its file is a plain B-tree that needs no compaction in the
//! background. SQLite would do as well but brings a C library and a query language for what are four
//! key lookups; sled and the LSM stores trade what we need (certain commits) for write rates we do not.
//!
//! The order of writes at a crash is redb's: a commit takes effect as a whole when its root is written and
//! synced, in two phases here, with the allocator's state saved along, so that opening after kill -9 costs
//! the same as after a clean stop instead of a walk over every manifest.
//!
//! Tables: `names` (name -> content, owner), `contents` (content -> layout, how many names), `manifests`
//! (content -> canonical manifest). Contents are apart from manifests so that a lookup never reads hashes.

use std::{
    fs,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use drizzle_proto::{Digest, FileId, FileInfo, FileName, Layout, PeerId};
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, TableError, WriteTransaction,
};

use super::{Catalogue, CatalogueError, Known, MAX_NAMES, Record, Registration, Verdict};

type Content = [u8; 32];
/// File id, bytes, bytes of a chunk, peer that registered the name.
type NameRow = (&'static Content, u64, u32, &'static [u8; 16]);
/// Bytes, bytes of a chunk, names that stand for it.
type ContentRow = (u64, u32, u32);

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NAMES: TableDefinition<'_, &str, NameRow> = TableDefinition::new("names");
const CONTENTS: TableDefinition<'_, &Content, ContentRow> = TableDefinition::new("contents");
const MANIFESTS: TableDefinition<'_, &Content, &[u8]> = TableDefinition::new("manifests");

const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 1;
/// Pages kept in memory; the largest manifest takes half a dozen of these 64 MiB.
const CACHE: usize = 64 << 20;
/// Bytes before the hashes in the canonical form of a manifest.
const MANIFEST_HEAD: usize = 20;

/// A catalogue in a file.
#[derive(Debug)]
pub struct RedbCatalogue {
    path: PathBuf,
    /// `None` after a failed attempt to open it again.
    database: RwLock<Option<Database>>,
}

impl RedbCatalogue {
    /// Opens the catalogue in a folder; makes both if need be.
    pub fn open(directory: &Path) -> Result<Self, CatalogueError> {
        let made = fs::create_dir_all(directory);
        made.map_err(|source| CatalogueError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join("catalogue.redb");
        let database = open(&path)?;
        // A new file's name is durable only once its folder is.
        let synced = fs::File::open(directory).and_then(|folder| folder.sync_all());
        synced.map_err(|source| CatalogueError::Directory { path: directory.to_owned(), source })?;
        Ok(Self { path, database: RwLock::new(Some(database)) })
    }

    /// Runs an operation. After a failed write (a full disk, say) redb refuses everything until it is
    /// opened again: that is done here, once per call, so that a tracker recovers when its disk does.
    fn run<T>(&self, operation: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, CatalogueError> {
        let opened = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match opened.as_ref().map(&operation) {
            None | Some(Err(redb::Error::PreviousIo)) => {}
            Some(result) => return result.map_err(CatalogueError::Storage),
        }
        drop(opened);
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed before it is opened again: the file is locked.
        *slot = None;
        let database = slot.insert(open(&self.path)?);
        tracing::warn!(path = %self.path.display(), "opened the catalogue again after a failed write");
        operation(database).map_err(CatalogueError::Storage)
    }
}

fn open(path: &Path) -> Result<Database, CatalogueError> {
    let damaged = |reason: String| CatalogueError::Damaged { path: path.to_owned(), reason };
    let failed = |source: redb::Error| CatalogueError::Open { path: path.to_owned(), source };
    let database = redb::Builder::new().set_cache_size(CACHE).create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => CatalogueError::InUse(path.to_owned()),
        DatabaseError::Storage(StorageError::Corrupted(reason)) => damaged(reason),
        DatabaseError::Storage(StorageError::Io(io))
            if matches!(io.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            damaged(io.to_string())
        }
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => damaged(error.to_string()),
        other => failed(other.into()),
    })?;
    match format(&database).map_err(failed)? {
        Some(FORMAT) => {}
        Some(found) => return Err(CatalogueError::Format { path: path.to_owned(), found, expected: FORMAT }),
        None => create_tables(&database).map_err(failed)?,
    }
    Ok(database)
}

fn format(database: &Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(FORMAT_KEY)?.map(|row| row.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let write = begin_write(database)?;
    write.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    write.open_table(NAMES)?;
    write.open_table(CONTENTS)?;
    write.open_table(MANIFESTS)?;
    write.commit()?;
    Ok(())
}

fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut write = database.begin_write()?;
    write.set_quick_repair(true);
    Ok(write)
}

fn record(name: &FileName, row: (&Content, u64, u32, &[u8; 16])) -> Result<Record, redb::Error> {
    let (id, size, chunk_size, owner) = row;
    let file = FileInfo { name: name.clone(), id: content_id(id), layout: layout(size, chunk_size)? };
    Ok(Record { file, owner: PeerId::from_bytes(*owner) })
}

fn content_id(id: &Content) -> FileId {
    FileId::from_digest(Digest::from_bytes(*id))
}

/// What we wrote was checked before: anything else is damage.
fn layout(size: u64, chunk_size: u32) -> Result<Layout, redb::Error> {
    Layout::new(size, chunk_size).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn names_table(database: &Database) -> Result<ReadOnlyTable<&'static str, NameRow>, redb::Error> {
    Ok(database.begin_read()?.open_table(NAMES)?)
}

impl Catalogue for RedbCatalogue {
    fn lookup(&self, files: &[FileInfo]) -> Result<Vec<Known>, CatalogueError> {
        self.run(|database| {
            let read = database.begin_read()?;
            let names = read.open_table(NAMES)?;
            let contents = read.open_table(CONTENTS)?;
            let known = files.iter().map(|file| {
                let registered = match names.get(file.name.as_str())? {
                    Some(row) => Some(record(&file.name, row.value())?.file),
                    None => None,
                };
                let content = match contents.get(file.id.as_bytes())? {
                    Some(row) => Some(layout(row.value().0, row.value().1)?),
                    None => None,
                };
                Ok(Known { registered, content })
            });
            known.collect()
        })
    }

    fn register(&self, owner: PeerId, files: &[Registration]) -> Result<Vec<Verdict>, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let verdicts: Vec<Verdict> =
                files.iter().map(|new| register_one(&write, owner, new)).collect::<Result<_, _>>()?;
            if verdicts.contains(&Verdict::New) {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(verdicts)
        })
    }

    fn release(&self, name: &FileName) -> Result<bool, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let id = write.open_table(NAMES)?.remove(name.as_str())?.map(|row| *row.value().0);
            let Some(id) = id else {
                write.abort()?;
                return Ok(false);
            };
            {
                let mut contents = write.open_table(CONTENTS)?;
                let row = contents.get(&id)?.map(|row| row.value());
                match row {
                    Some((size, chunk_size, names @ 2..)) => {
                        contents.insert(&id, (size, chunk_size, names - 1))?;
                    }
                    _ => {
                        contents.remove(&id)?;
                        write.open_table(MANIFESTS)?.remove(&id)?;
                    }
                }
            }
            write.commit()?;
            Ok(true)
        })
    }

    fn get(&self, name: &FileName) -> Result<Option<Record>, CatalogueError> {
        self.run(|database| match names_table(database)?.get(name.as_str())? {
            Some(row) => record(name, row.value()).map(Some),
            None => Ok(None),
        })
    }

    fn list(&self, prefix: &str, after: Option<&FileName>, limit: usize) -> Result<Vec<FileInfo>, CatalogueError> {
        self.run(|database| {
            let names = names_table(database)?;
            let from = after.map_or(Bound::Included(prefix), |name| Bound::Excluded(name.as_str()));
            let mut page = Vec::new();
            for row in names.range::<&str>((from, Bound::Unbounded))?.take(limit) {
                let (name, row) = row?;
                if !name.value().starts_with(prefix) {
                    break;
                }
                let name = FileName::new(name.value()).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
                page.push(record(&name, row.value())?.file);
            }
            Ok(page)
        })
    }

    fn hashes(&self, id: FileId, first: u32, count: usize) -> Result<Vec<Digest>, CatalogueError> {
        self.run(|database| {
            let manifests = database.begin_read()?.open_table(MANIFESTS)?;
            let Some(manifest) = manifests.get(id.as_bytes())? else { return Ok(Vec::new()) };
            // The canonical form is not decoded as a whole: that would hash 8 MiB for each page of a
            // large manifest. Its reader checks the whole against the file id.
            let (hashes, _) = manifest.value().get(MANIFEST_HEAD..).unwrap_or_default().as_chunks::<32>();
            let page = hashes.iter().skip(first as usize).take(count);
            Ok(page.map(|hash| Digest::from_bytes(*hash)).collect())
        })
    }
}

fn register_one(write: &WriteTransaction, owner: PeerId, new: &Registration) -> Result<Verdict, redb::Error> {
    let FileInfo { name, id, layout } = &new.file;
    let mut names = write.open_table(NAMES)?;
    if let Some(row) = names.get(name.as_str())? {
        let registered = record(name, row.value())?.file;
        return Ok(if registered.id == *id { Verdict::Same } else { Verdict::Other(registered) });
    }
    if names.len()? >= MAX_NAMES {
        return Ok(Verdict::Full);
    }
    let mut contents = write.open_table(CONTENTS)?;
    let known = contents.get(id.as_bytes())?.map(|row| row.value().2);
    if known.is_none() {
        let Some(manifest) = &new.manifest else { return Ok(Verdict::NoManifest) };
        write.open_table(MANIFESTS)?.insert(id.as_bytes(), manifest.encode().as_slice())?;
    }
    let (size, chunk_size) = (layout.size(), layout.chunk_size());
    contents.insert(id.as_bytes(), (size, chunk_size, known.unwrap_or(0) + 1))?;
    names.insert(name.as_str(), (id.as_bytes(), size, chunk_size, owner.as_bytes()))?;
    Ok(Verdict::New)
}

#[cfg(test)]
#[path = "redb_tests.rs"]
mod tests;
