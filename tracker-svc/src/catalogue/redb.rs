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
//! Names that several peers register at once are committed together ([`Group`]): a commit waits for the disk, which a
//! thousand peers with a file each would otherwise do one after the other. What is in the file is in
//! [`super::tables`].

use std::{
    fs,
    ops::Bound,
    path::{Path, PathBuf},
    time::Instant,
};

use drizzle_proto::{
    Digest, FileId, FileInfo, FileName, PeerId, Signature,
    database::{Reopening, Unusable, checked},
    metrics::Histogram,
};
use redb::{
    Database, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableError, WriteTransaction,
};

use crate::metrics::times;

use super::{
    Catalogue, CatalogueError, Claim, Known, Record, Verdict,
    group::Group,
    tables::{CONTENTS, HASHES, META, NAMES, NameRow, SEGMENT, SIGNATURES, Tables, UNATTENDED, layout, record},
};

const CLOCK_KEY: &str = "attendance";
const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 1;
/// Bytes of pages kept in memory. The operating system caches the file as well; this only has to spare
/// the upper levels of the tree and one commit's pages.
const CACHE: usize = 8 << 20;

/// A catalogue in a file.
#[derive(Debug)]
pub struct RedbCatalogue {
    path: PathBuf,
    database: Reopening,
    registering: Group<Registering, Registered>,
    /// How long writes took.
    writes: Histogram,
}

/// A peer and the names that it registers.
type Registering = (PeerId, Vec<Claim>);
type Registered = Result<Vec<Verdict>, CatalogueError>;

impl RedbCatalogue {
    /// Opens the catalogue in a folder; makes both if need be.
    pub fn open(directory: &Path) -> Result<Self, CatalogueError> {
        let unusable = |source| CatalogueError::Directory { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(unusable)?;
        let path = directory.join("catalogue.redb");
        let file = path.clone();
        let open = move || checked(&file).set_cache_size(CACHE).create(&file);
        let database = Reopening::new(open).map_err(|error| cannot_open(&path, error))?;
        let catalogue = Self { path, database, registering: Group::default(), writes: times() };
        catalogue.check_format()?;
        // A new file's name is durable only once its folder is.
        fs::File::open(directory).and_then(|folder| folder.sync_all()).map_err(unusable)?;
        Ok(catalogue)
    }

    /// How long its writes took so far, and those to come.
    pub(crate) fn writes(&self) -> Histogram {
        self.writes.clone()
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

    /// Registers names of several peers in one durable step; the verdicts on each peer's.
    fn register_together(&self, jobs: &[Registering]) -> Result<Vec<Vec<Verdict>>, CatalogueError> {
        self.write(|database| {
            let write = begin_write(database)?;
            let verdicts: Vec<Vec<Verdict>> = {
                let mut tables = Tables::open(&write)?;
                let verdicts =
                    jobs.iter().map(|(owner, files)| files.iter().map(|new| tables.register(*owner, new)).collect());
                verdicts.collect::<Result<_, redb::Error>>()?
            };
            if verdicts
                .iter()
                .flatten()
                .any(|verdict| matches!(verdict, Verdict::New | Verdict::Replaced(_) | Verdict::Signed))
            {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(verdicts)
        })
    }

    fn write<T>(&self, operation: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, CatalogueError> {
        let begun = Instant::now();
        let written = self.run(operation);
        self.writes.observe(begun.elapsed().as_secs_f64());
        written
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
        let done = self.registering.run((owner, files.to_vec()), |jobs| match self.register_together(jobs) {
            Ok(verdicts) => verdicts.into_iter().map(Ok).collect(),
            // What fails together may fail for one of them alone.
            Err(_) if jobs.len() > 1 => {
                let alone = jobs.iter().map(|job| self.register_together(std::slice::from_ref(job)));
                alone.map(|done| Ok(done?.into_iter().next().unwrap_or_default())).collect()
            }
            Err(error) => vec![Err(error)],
        });
        done.unwrap_or_else(|| Err(CatalogueError::Storage("the write was given up".into())))
    }

    fn release(&self, name: &FileName, by: PeerId) -> Result<bool, CatalogueError> {
        self.write(|database| {
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

    fn signature(&self, name: &FileName) -> Result<Option<Signature>, CatalogueError> {
        self.run(|database| {
            let table = match database.begin_read()?.open_table(SIGNATURES) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some(row) = table.get(name.as_str())? else { return Ok(None) };
            let (statement, minisign) = row.value();
            let signature = Signature::new(statement, minisign);
            signature.map(Some).map_err(|error| redb::Error::Corrupted(error.to_string()))
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

#[cfg(test)]
#[path = "redb_tests.rs"]
mod tests;
