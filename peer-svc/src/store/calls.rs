//! Calls to the file system that may hang: a dead network mount, a dying disk. Which are begun at all is decided by
//! [`drizzle_engine::calls`]. Calls block.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use drizzle_engine::calls::{self, Call};
use rustix::fs::OFlags;

use super::fence::Fence;

/// The calls of one daemon.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    running: Mutex<calls::Calls>,
    /// What is opened by a path within it is there.
    fence: Fence,
}

/// A call that has not returned, until dropped.
struct Running<'a> {
    calls: &'a Calls,
    path: &'a Path,
    call: Call,
}

impl Calls {
    /// None yet, on files within a fence.
    pub(crate) fn fenced(fence: Fence) -> Self {
        Self { fence, ..Self::default() }
    }

    /// Where callers may name files.
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    fn lock(&self) -> MutexGuard<'_, calls::Calls> {
        // No change of it can panic half-way.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call on a file, unless calls like it hang: then it fails at once.
    pub(crate) fn run<T>(&self, path: &Path, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begun = self.lock().begin(path, mount_of, Instant::now());
        let begun = begun.map_err(|hangs| {
            let text =
                format!("the disk or network mount of {} has not answered for {} s", path.display(), hangs.0.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, text)
        })?;
        let _running = Running { calls: self, path, call: begun };
        call()
    }

    /// Opens a regular file for reading. Anything else is [`io::ErrorKind::InvalidInput`]: opening a named pipe waits
    /// for a writer, and opening a device does whatever it does.
    pub(crate) fn open(&self, path: &Path) -> io::Result<(File, Metadata)> {
        self.run(path, || {
            let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            // Looked at first, since the look has no effect on it; then again, since it may have been replaced.
            if !fs::metadata(path)?.is_file() {
                return Err(not_regular());
            }
            let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
            let file = File::options().read(true).custom_flags(flags).open(path)?;
            self.fence.verify(path, &file)?;
            let metadata = file.metadata()?;
            if metadata.is_file() { Ok((file, metadata)) } else { Err(not_regular()) }
        })
    }

    /// The files on which calls hang now.
    pub(crate) fn hanging(&self) -> Vec<PathBuf> {
        self.lock().hanging(Instant::now()).into_iter().collect()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(took) = self.calls.lock().end(self.call, Instant::now()) {
            tracing::warn!(path = %self.path.display(), "its disk or network mount took {} s to answer", took.as_secs());
        }
    }
}

/// The mount that a path is on, by its name alone: to ask the file system might hang as well. Empty if unknown.
fn mount_of(path: &Path) -> PathBuf {
    longest_mount(&fs::read("/proc/self/mountinfo").unwrap_or_default(), path)
}

fn longest_mount(mountinfo: &[u8], path: &Path) -> PathBuf {
    let points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let points = points.map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescaped(point))));
    points.filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len()).unwrap_or_default()
}

/// Blanks and the like stand as `\040`.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let [first, rest @ ..] = text {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match (first, rest.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                text = &rest[3..];
            }
            _ => {
                plain.push(*first);
                text = rest;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_pipe_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let calls = Calls::default();
        for path in [&pipe, folder.path()] {
            assert_eq!(calls.open(path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(calls.open(&folder.path().join("file")).unwrap().1.len(), 1);
    }

    #[test]
    fn the_mount_of_a_path_is_the_innermost_one_and_may_have_blanks() {
        let mountinfo =
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /srv/my\\040data rw - nfs x rw\n3 1 0:3 / /srv rw - x x rw\n";
        for (path, mount) in [("/srv/my data/a/b", "/srv/my data"), ("/srv/my", "/srv"), ("/home/a", "/")] {
            assert_eq!(longest_mount(mountinfo, Path::new(path)), Path::new(mount));
        }
    }
}
