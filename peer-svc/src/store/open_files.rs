//! Shared files that are open at present, so that not each of their chunks has to open one. None is kept open for this:
//! a drive that nobody reads from can be taken out.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::stamp::Stamp;

/// A path is looked up again after this long: another file may have its name now.
const FRESH: Duration = Duration::from_secs(1);

/// Open files, each as it was when it was opened by its path.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(Mutex<HashMap<PathBuf, Known>>);

#[derive(Debug)]
struct Known {
    file: Weak<File>,
    at: Instant,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file that was opened just now.
    pub(crate) fn opened(&self, path: &Path, file: &Arc<File>, now: Instant) {
        let mut known = self.lock();
        known.retain(|_, other| other.file.strong_count() > 0);
        known.insert(path.to_owned(), Known { file: Arc::downgrade(file), at: now });
    }

    /// The file at a path, if something has it open, it was looked up a moment ago, and is still the one with this stamp.
    /// Asks no disk.
    pub(crate) fn get(&self, path: &Path, stamp: Stamp, now: Instant) -> Option<Arc<File>> {
        let known = self.lock();
        let known = known.get(path).filter(|known| now.saturating_duration_since(known.at) < FRESH)?;
        let file = known.file.upgrade()?;
        // What a server of a network mount knows better is seen when the path is looked up again.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let seen = statx(&*file, "", flags, StatxFlags::SIZE | StatxFlags::MTIME).ok()?;
        let modified_nanos = i128::from(seen.stx_mtime.tv_sec) * 1_000_000_000 + i128::from(seen.stx_mtime.tv_nsec);
        (Stamp { size: seen.stx_size, modified_nanos } == stamp).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_known_for_a_moment_while_it_is_open_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let (path, files, now) = (folder.path().join("a"), OpenFiles::default(), Instant::now());
        fs::write(&path, "abc").unwrap();
        let (file, stamp) = (Arc::new(File::open(&path).unwrap()), Stamp::of(&path.metadata().unwrap()));
        assert!(files.get(&path, stamp, now).is_none());
        files.opened(&path, &file, now);
        assert!(files.get(&path, stamp, now).is_some_and(|known| Arc::ptr_eq(&known, &file)));
        assert!(files.get(&path, stamp, now + FRESH).is_none(), "another file may have the name now");
        fs::write(&path, "abcd").unwrap();
        assert!(files.get(&path, stamp, now).is_none(), "it changed");
        let stamp = Stamp::of(&path.metadata().unwrap());
        assert!(files.get(&path, stamp, now).is_some());
        drop(file);
        assert!(files.get(&path, stamp, now).is_none(), "nothing has it open");
    }
}
