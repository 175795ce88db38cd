//! A redb database that outlives a failed write and a damaged file.
//!
//! After a failed write (a full disk, say) redb refuses everything until the database is opened again: that is
//! done here, once per call, so that a daemon recovers when its disk does. Every page of a file of usual
//! length is checked against its checksum when it is opened ([`checked`]): redb alone trusts a file that was closed well, and damage done to it since
//! then can cost gigabytes. What makes redb panic all the same is caught, and told as damage.

use std::{
    fmt, io,
    path::Path,
    sync::{PoisonError, RwLock},
};

use redb::{Database, DatabaseError};

use crate::panics;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Another process has it open.
    #[error("another process has it open")]
    InUse,
    /// It is not what this program wrote.
    #[error("it is damaged ({0})")]
    Damaged(String),
    /// The system refused.
    #[error(transparent)]
    Io(io::Error),
    /// Anything else.
    #[error("{0}")]
    Other(redb::Error),
}

impl From<redb::Error> for Unusable {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::Corrupted(detail) => Self::Damaged(detail),
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Damaged(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            damaged @ (redb::Error::RepairAborted | redb::Error::UpgradeRequired(_)) => {
                Self::Damaged(damaged.to_string())
            }
            other => Self::Other(other),
        }
    }
}

/// A longer file is not read as a whole when it is opened: a tracker of a million files is to serve at once after a restart.
const MOST_CHECKED: u64 = 256 << 20;

/// How the database in this file is to be opened. A file of usual length is read as a whole, and damage to it refused.
pub fn checked(path: &Path) -> redb::Builder {
    let mut builder = redb::Builder::new();
    let is_short = std::fs::metadata(path).is_ok_and(|file| file.len() <= MOST_CHECKED);
    builder.set_check_integrity_on_open(is_short);
    builder
}

type Open = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// An open database, and how to open it again.
pub struct Reopening {
    open: Open,
    /// `None` after a failed attempt to open it again.
    database: RwLock<Option<Database>>,
}

impl fmt::Debug for Reopening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reopening").finish_non_exhaustive()
    }
}

impl Reopening {
    /// Opens a database. `open` is called again whenever it has to be opened again.
    pub fn new(open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static) -> Result<Self, Unusable> {
        let database = guarded(|| open().map_err(redb::Error::from))?;
        Ok(Self { open: Box::new(open), database: RwLock::new(Some(database)) })
    }

    /// Runs an operation; a second time on the newly opened database if the first met an earlier failed write.
    pub fn run<T>(&self, operation: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, Unusable> {
        let run = |database: &Database| match operation(database) {
            Err(redb::Error::PreviousIo) => Ok(Ran::MustReopen),
            done => done.map(Ran::Done),
        };
        let opened = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = opened.as_ref()
            && let Ran::Done(done) = guarded(|| run(database))?
        {
            return Ok(done);
        }
        drop(opened);
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed before it is opened again: the file is locked.
        close(slot.take());
        let database = slot.insert(guarded(|| (self.open)().map_err(redb::Error::from))?);
        guarded(|| operation(database))
    }
}

impl Drop for Reopening {
    fn drop(&mut self) {
        close(self.database.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Closes a database. redb writes then, and may find only then that the file is damaged.
fn close(database: Option<Database>) {
    if let Err(text) = panics::expected(|| drop(database)) {
        tracing::debug!(text, "the database panicked when it was closed");
    }
}

enum Ran<T> {
    Done(T),
    MustReopen,
}

fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Unusable> {
    match panics::expected(work) {
        Ok(result) => Ok(result?),
        Err(text) => {
            tracing::debug!(text, "the database panicked");
            Err(Unusable::Damaged("its pages contradict each other".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use redb::{ReadableDatabase, backends::InMemoryBackend};

    use super::*;

    fn counted() -> (Reopening, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let open = move || {
            count.fetch_add(1, Ordering::Relaxed);
            Database::builder().create_with_backend(InMemoryBackend::new())
        };
        (Reopening::new(open).unwrap(), opened)
    }

    #[test]
    fn a_database_is_opened_again_after_a_failed_write_and_only_then() {
        let (database, opened) = counted();
        database.run(|database| database.begin_read()?.close().map_err(Into::into)).unwrap();
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        let attempts = AtomicUsize::new(0);
        let result = database.run(|_| match attempts.fetch_add(1, Ordering::Relaxed) {
            0 => Err(redb::Error::PreviousIo),
            _ => Ok(7),
        });
        assert_eq!((result.unwrap(), opened.load(Ordering::Relaxed)), (7, 2));
    }

    #[test]
    fn a_panic_is_damage_and_the_database_stays_usable() {
        let (database, _) = counted();
        let result = database.run::<()>(|_| panic!("on purpose"));
        assert!(matches!(result, Err(Unusable::Damaged(_))));
        database.run(|database| database.begin_read()?.close().map_err(Into::into)).unwrap();
    }
}
