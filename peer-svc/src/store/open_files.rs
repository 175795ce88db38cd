//! Shared files that are open at present, so that not each of their chunks has to open one. None is kept open for longer
//! than a moment for this: a drive that nobody reads from can be taken out.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::stamp::Stamp;

/// A path is looked up again after this long: another file may have its name now. So long a file is kept open, too.
const FRESH: Duration = Duration::from_secs(1);

/// Open files, each as it was when it was opened by its path.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(Mutex<HashMap<PathBuf, Known>>);

#[derive(Debug)]
struct Known {
    file: Arc<File>,
    in_memory: bool,
    at: Instant,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file that was opened just now. It is kept until [`OpenFiles::take_old`], which must be called from time to time.
    pub(crate) fn opened(&self, path: &Path, (file, in_memory): (&Arc<File>, bool), now: Instant) {
        let known = Known { file: file.clone(), in_memory, at: now };
        // Closing may wait for a disk, and then not with everything else locked.
        let old = self.lock().insert(path.to_owned(), known);
        drop(old);
    }

    /// Lets go of those that were looked up too long ago, which are to be dropped where that may wait for a disk; and
    /// whether any is left.
    pub(crate) fn take_old(&self, now: Instant) -> (Vec<Arc<File>>, bool) {
        let mut known = self.lock();
        let is_old = |known: &Known| now.saturating_duration_since(known.at) >= FRESH;
        let old = known.extract_if(|_, known| is_old(known)).map(|(_, old)| old.file).collect();
        (old, !known.is_empty())
    }

    /// The file at a path, and whether it lies in memory alone, if it was looked up a moment ago and is still the one with this
    /// stamp. Asks no disk.
    pub(crate) fn get(&self, path: &Path, stamp: Stamp, now: Instant) -> Option<(Arc<File>, bool)> {
        let known = self.lock();
        let known = known.get(path).filter(|known| now.saturating_duration_since(known.at) < FRESH)?;
        let file = &known.file;
        // What a server of a network mount knows better is seen when the path is looked up again.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let seen = statx(&**file, "", flags, StatxFlags::SIZE | StatxFlags::MTIME).ok()?;
        let modified_nanos = i128::from(seen.stx_mtime.tv_sec) * 1_000_000_000 + i128::from(seen.stx_mtime.tv_nsec);
        (Stamp { size: seen.stx_size, modified_nanos } == stamp).then(|| (file.clone(), known.in_memory))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_known_and_kept_for_a_moment_while_it_is_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let (path, files, now) = (folder.path().join("a"), OpenFiles::default(), Instant::now());
        fs::write(&path, "abc").unwrap();
        let (file, stamp) = (Arc::new(File::open(&path).unwrap()), Stamp::of(&path.metadata().unwrap()));
        assert!(files.get(&path, stamp, now).is_none());
        files.opened(&path, (&file, true), now);
        assert!(files.get(&path, stamp, now).is_some_and(|(known, in_memory)| Arc::ptr_eq(&known, &file) && in_memory));
        assert!(files.get(&path, stamp, now + FRESH).is_none(), "another file may have the name now");
        fs::write(&path, "abcd").unwrap();
        assert!(files.get(&path, stamp, now).is_none(), "it changed");
        let stamp = Stamp::of(&path.metadata().unwrap());
        assert!(files.get(&path, stamp, now).is_some());
        assert!(files.take_old(now).1 && files.get(&path, stamp, now).is_some());
        let (old, is_left) = files.take_old(now + FRESH);
        assert!(old.len() == 1 && !is_left);
        drop(old);
        assert_eq!(Arc::strong_count(&file), 1, "it is closed");
    }
}
