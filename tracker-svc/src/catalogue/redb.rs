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
//! Tables: `names` (name -> content, owner), `contents` (content -> layout, how many names), `hashes`
//! (content, segment -> chunk hashes), `withdrawn` (name -> content, owner or operator, when in order),
//! `withdrawals` (the same the other way, to find the oldest) and `unattended` (name -> clock of attendance since when;
//! a name that is attended has no row, so that nothing is written while its peers come and go). A layout and its hashes are the manifest. Contents are apart from
//! hashes so that a lookup never reads hashes; hashes are in segments so that a page of a large manifest
//! is read without the rest of it. A name is in `names` or in `withdrawn`, never in both.

use std::{
    fs,
    ops::Bound,
    path::{Path, PathBuf},
};

use drizzle_proto::{
    Digest, FileId, FileInfo, FileName, Layout, PeerId,
    database::{Reopening, Unusable},
};
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    TableError, WriteTransaction,
};

use super::{Catalogue, CatalogueError, Claim, Known, Record, Verdict};
use crate::limits::{MAX_NAMES, MAX_WITHDRAWN};

type Content = [u8; 32];
/// File id, bytes, bytes of a chunk, peer that registered the name.
type NameRow = (&'static Content, u64, u32, &'static [u8; 16]);
/// Bytes, bytes of a chunk, names that stand for it.
type ContentRow = (u64, u32, u32);
/// File id, peer that registered the name and withdrew it, key in `withdrawals`.
type WithdrawnRow = (&'static Content, &'static [u8; 16], u64);

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NAMES: TableDefinition<'_, &str, NameRow> = TableDefinition::new("names");
const CONTENTS: TableDefinition<'_, &Content, ContentRow> = TableDefinition::new("contents");
const HASHES: TableDefinition<'_, (&Content, u32), &[u8]> = TableDefinition::new("hashes");
const WITHDRAWN: TableDefinition<'_, &str, WithdrawnRow> = TableDefinition::new("withdrawn");
const WITHDRAWALS: TableDefinition<'_, u64, &str> = TableDefinition::new("withdrawals");

const UNATTENDED: TableDefinition<'_, &str, u64> = TableDefinition::new("unattended");

const CLOCK_KEY: &str = "attendance";
const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 1;
/// Bytes of pages kept in memory. The operating system caches the file as well; this only has to spare
/// the upper levels of the tree and one commit's pages.
const CACHE: usize = 8 << 20;
/// Stands in `withdrawn` for an operator, where a peer's id does otherwise. No peer has it: ids are random.
const OPERATOR: [u8; 16] = [0; 16];
/// Hashes in a segment: 128,000 bytes, which with their key just fit into a page of 128 KiB.
const SEGMENT: u32 = 4000;

/// A catalogue in a file.
#[derive(Debug)]
pub struct RedbCatalogue {
    path: PathBuf,
    database: Reopening,
}

impl RedbCatalogue {
    /// Opens the catalogue in a folder; makes both if need be.
    pub fn open(directory: &Path) -> Result<Self, CatalogueError> {
        let unusable = |source| CatalogueError::Directory { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(unusable)?;
        let path = directory.join("catalogue.redb");
        let file = path.clone();
        let open = move || redb::Builder::new().set_cache_size(CACHE).create(&file);
        let database = Reopening::new(open).map_err(|error| cannot_open(&path, error))?;
        let catalogue = Self { path, database };
        catalogue.check_format()?;
        // A new file's name is durable only once its folder is.
        fs::File::open(directory).and_then(|folder| folder.sync_all()).map_err(unusable)?;
        Ok(catalogue)
    }

    fn check_format(&self) -> Result<(), CatalogueError> {
        let found = self.database.run(|database| match format(database)? {
            Some(found) => Ok(found),
            None => create_tables(database).map(|()| FORMAT),
        });
        match found.map_err(|error| cannot_open(&self.path, error))? {
            FORMAT => Ok(()),
            found => Err(CatalogueError::Format { path: self.path.clone(), found, expected: FORMAT }),
        }
    }

    fn run<T>(&self, operation: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, CatalogueError> {
        self.database.run(operation).map_err(|error| {
            // Told to the operator here, because a peer can do nothing about it but try again.
            tracing::error!(%error, path = %self.path.display(), "the catalogue failed");
            CatalogueError::Storage(error.into())
        })
    }
}

fn cannot_open(path: &Path, error: Unusable) -> CatalogueError {
    let path = path.to_owned();
    match error {
        Unusable::InUse => CatalogueError::InUse(path),
        Unusable::Damaged(reason) => CatalogueError::Damaged { path, reason },
        other => CatalogueError::Open { path, source: other.into() },
    }
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
    write.open_table(HASHES)?;
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
    fn check(&self) -> Result<(), CatalogueError> {
        self.run(|database| {
            names_table(database)?.len()?;
            // Waits for whoever writes: a write that hangs is found.
            begin_write(database)?.abort()?;
            Ok(())
        })
    }

    fn lookup(&self, files: &[FileInfo]) -> Result<Vec<Known>, CatalogueError> {
        self.run(|database| {
            let read = database.begin_read()?;
            let names = read.open_table(NAMES)?;
            let contents = read.open_table(CONTENTS)?;
            let known = files.iter().map(|file| {
                let registered = match names.get(file.name.as_str())? {
                    Some(row) => Some(record(&file.name, row.value())?),
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

    fn register(&self, owner: PeerId, files: &[Claim]) -> Result<Vec<Verdict>, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let verdicts: Vec<Verdict> = {
                let mut tables = Tables::open(&write)?;
                files.iter().map(|new| tables.register(owner, new)).collect::<Result<_, _>>()?
            };
            if verdicts.iter().any(|verdict| matches!(verdict, Verdict::New | Verdict::Replaced(_))) {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(verdicts)
        })
    }

    fn release(&self, name: &FileName, by: PeerId) -> Result<bool, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let released = Tables::open(&write)?.release(name, Some(by))?.is_some();
            if released {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(released)
        })
    }

    fn drop_name(&self, name: &FileName, bar: bool) -> Result<Option<Record>, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let dropped = Tables::open(&write)?.drop_name(name, bar)?;
            write.commit()?;
            Ok(dropped)
        })
    }

    fn reassign(&self, name: &FileName, owner: PeerId) -> Result<Option<Record>, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let before = Tables::open(&write)?.reassign(name, owner)?;
            write.commit()?;
            Ok(before)
        })
    }

    fn get(&self, name: &FileName) -> Result<Option<Record>, CatalogueError> {
        self.run(|database| match names_table(database)?.get(name.as_str())? {
            Some(row) => record(name, row.value()).map(Some),
            None => Ok(None),
        })
    }

    fn list(&self, prefix: &str, after: Option<&FileName>, limit: usize) -> Result<Vec<Record>, CatalogueError> {
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
                page.push(record(&name, row.value())?);
            }
            Ok(page)
        })
    }

    fn clock(&self) -> Result<u64, CatalogueError> {
        self.run(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            Ok(meta.get(CLOCK_KEY)?.map_or(0, |row| row.value()))
        })
    }

    fn attend(&self, names: &[(FileName, bool)], clock: u64, limit: u64) -> Result<Vec<FileName>, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let mut changes = write.open_table(META)?.insert(CLOCK_KEY, clock)?.is_none_or(|row| row.value() != clock);
            let mut due = Vec::new();
            {
                let (known, mut unattended) = (write.open_table(NAMES)?, write.open_table(UNATTENDED)?);
                for (name, attended) in names {
                    let since = unattended.get(name.as_str())?.map(|row| row.value());
                    match since {
                        Some(_) if *attended => changes |= unattended.remove(name.as_str())?.is_some(),
                        Some(since) => due.extend((clock.saturating_sub(since) >= limit).then(|| name.clone())),
                        None if *attended || known.get(name.as_str())?.is_none() => {}
                        None => changes |= unattended.insert(name.as_str(), clock)?.is_none(),
                    }
                }
            }
            // A sweep goes over many pages at one clock: most change nothing, and cost no sync.
            if changes {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(due)
        })
    }

    fn expire(&self, name: &FileName, clock: u64, limit: u64) -> Result<Option<Record>, CatalogueError> {
        self.run(|database| {
            let write = begin_write(database)?;
            let since = write.open_table(UNATTENDED)?.get(name.as_str())?.map(|row| row.value());
            let due = since.is_some_and(|since| clock.saturating_sub(since) >= limit);
            let expired = if due { Tables::open(&write)?.release(name, None)? } else { None };
            if expired.is_some() {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(expired)
        })
    }

    fn hashes(&self, id: FileId, first: u32, count: usize) -> Result<Vec<Digest>, CatalogueError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(HASHES)?;
            let mut page = Vec::new();
            let mut skip = (first % SEGMENT) as usize;
            for row in table.range((id.as_bytes(), first / SEGMENT)..=(id.as_bytes(), u32::MAX))? {
                let (_, row) = row?;
                let (hashes, _) = row.value().as_chunks::<32>();
                let wanted = hashes.iter().skip(skip).take(count - page.len());
                page.extend(wanted.map(|hash| Digest::from_bytes(*hash)));
                skip = 0;
                if page.len() == count {
                    break;
                }
            }
            Ok(page)
        })
    }
}

/// The tables of one write, opened once: opening and closing them for each of a thousand files would cost
/// more than the files.
struct Tables<'a> {
    names: Table<'a, &'static str, NameRow>,
    contents: Table<'a, &'static Content, ContentRow>,
    hashes: Table<'a, (&'static Content, u32), &'static [u8]>,
    withdrawn: Table<'a, &'static str, WithdrawnRow>,
    withdrawals: Table<'a, u64, &'static str>,
    unattended: Table<'a, &'static str, u64>,
}

impl<'a> Tables<'a> {
    fn open(write: &'a WriteTransaction) -> Result<Self, redb::Error> {
        let (names, contents) = (write.open_table(NAMES)?, write.open_table(CONTENTS)?);
        let (withdrawn, withdrawals) = (write.open_table(WITHDRAWN)?, write.open_table(WITHDRAWALS)?);
        let (hashes, unattended) = (write.open_table(HASHES)?, write.open_table(UNATTENDED)?);
        Ok(Self { names, contents, hashes, withdrawn, withdrawals, unattended })
    }

    fn register(&mut self, owner: PeerId, new: &Claim) -> Result<Verdict, redb::Error> {
        let FileInfo { name, id, layout } = &new.file;
        let before = self.names.get(name.as_str())?.map(|row| record(name, row.value())).transpose()?;
        if let Some(Record { file: registered, owner: first }) = before.clone() {
            let own = first == owner;
            if registered.id == *id {
                return Ok(Verdict::Same);
            } else if !(own && new.replace) {
                return Ok(Verdict::Other { registered, own });
            }
        }
        match self.withdrawn.get(name.as_str())?.map(|row| (*row.value().0, *row.value().1)) {
            Some((content, OPERATOR)) if content == *id.as_bytes() => return Ok(Verdict::Dropped),
            Some((content, by)) if content == *id.as_bytes() && by != *owner.as_bytes() => {
                return Ok(Verdict::Withdrawn);
            }
            _ => {}
        }
        if before.is_none() && self.names.len()? >= MAX_NAMES {
            return Ok(Verdict::Full);
        }
        let known = self.contents.get(id.as_bytes())?.map(|row| row.value().2);
        if known.is_none() {
            let Some(manifest) = &new.manifest else { return Ok(Verdict::NoManifest) };
            for (segment, hashes) in (0..).zip(manifest.hashes().chunks(SEGMENT as usize)) {
                let bytes: Vec<u8> = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
                self.hashes.insert((id.as_bytes(), segment), bytes.as_slice())?;
            }
        }
        self.release(name, None)?;
        let (size, chunk_size) = (layout.size(), layout.chunk_size());
        self.contents.insert(id.as_bytes(), (size, chunk_size, known.unwrap_or(0) + 1))?;
        self.names.insert(name.as_str(), (id.as_bytes(), size, chunk_size, owner.as_bytes()))?;
        self.forget_withdrawal(name.as_str())?;
        Ok(before.map_or(Verdict::New, |before| Verdict::Replaced(before.file)))
    }

    fn drop_name(&mut self, name: &FileName, bar: bool) -> Result<Option<Record>, redb::Error> {
        let dropped = self.release(name, None)?;
        if !bar {
            self.forget_withdrawal(name.as_str())?;
        } else if let Some(Record { file, .. }) = &dropped {
            self.remember_withdrawal(name.as_str(), file.id.as_bytes(), &OPERATOR, MAX_WITHDRAWN)?;
        }
        Ok(dropped)
    }

    fn reassign(&mut self, name: &FileName, owner: PeerId) -> Result<Option<Record>, redb::Error> {
        let before = self.names.get(name.as_str())?.map(|row| record(name, row.value())).transpose()?;
        if let Some(Record { file, .. }) = &before {
            let (size, chunk_size) = (file.layout.size(), file.layout.chunk_size());
            self.names.insert(name.as_str(), (file.id.as_bytes(), size, chunk_size, owner.as_bytes()))?;
        }
        Ok(before)
    }

    /// Frees a name, on behalf of a peer or of none; what it stood for.
    fn release(&mut self, name: &FileName, by: Option<PeerId>) -> Result<Option<Record>, redb::Error> {
        let removed = self.names.remove(name.as_str())?.map(|row| record(name, row.value())).transpose()?;
        let Some(released) = removed else { return Ok(None) };
        let (id, owner) = (*released.file.id.as_bytes(), *released.owner.as_bytes());
        if by == Some(released.owner) {
            self.remember_withdrawal(name.as_str(), &id, &owner, MAX_WITHDRAWN)?;
        }
        self.unattended.remove(name.as_str())?;
        let row = self.contents.get(&id)?.map(|row| row.value());
        if let Some((size, chunk_size, names @ 2..)) = row {
            self.contents.insert(&id, (size, chunk_size, names - 1))?;
        } else {
            self.contents.remove(&id)?;
            self.hashes.retain_in((&id, 0)..=(&id, u32::MAX), |_, _| false)?;
        }
        Ok(Some(released))
    }

    /// Keeps at most `most`.
    fn remember_withdrawal(
        &mut self,
        name: &str,
        id: &Content,
        owner: &[u8; 16],
        most: u64,
    ) -> Result<(), redb::Error> {
        let next = self.withdrawals.last()?.map_or(0, |(last, _)| last.value() + 1);
        self.withdrawn.insert(name, (id, owner, next))?;
        self.withdrawals.insert(next, name)?;
        while self.withdrawals.len()? > most
            && let Some((_, oldest)) = self.withdrawals.pop_first()?
        {
            self.withdrawn.remove(oldest.value())?;
        }
        Ok(())
    }

    fn forget_withdrawal(&mut self, name: &str) -> Result<(), redb::Error> {
        if let Some(row) = self.withdrawn.remove(name)? {
            self.withdrawals.remove(row.value().2)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "redb_tests.rs"]
mod tests;
