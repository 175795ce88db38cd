//! A file system whose server never answers, as a network mount after a cut: every look at it hangs until the test
//! ends it.

use std::{
    ffi::CString,
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, mount};

use crate::skipped;

/// The mount; undone when dropped.
#[derive(Debug)]
pub struct DeadDisk {
    path: PathBuf,
    /// The server's end. When it is closed, every call that hangs returns with an error.
    server: Option<File>,
}

impl DeadDisk {
    /// Mounts it over a folder. `None` if this process may not mount anything; the test that wants it then has
    /// nothing to test.
    ///
    /// # Panics
    /// If the folder's name has a null byte.
    pub fn mount(path: &Path) -> Option<Self> {
        let server = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(server) => server,
            Err(error) => {
                skipped(format_args!("cannot open /dev/fuse: {error}"));
                return None;
            }
        };
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options).expect("no null byte");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount("drizzle-dead-disk", path, "fuse", flags, options.as_c_str()) {
            skipped(format_args!("cannot mount a FUSE file system: {error}"));
            return None;
        }
        Some(Self { path: path.to_owned(), server: Some(server) })
    }

    /// Every call that hangs returns, and what was below the mount is there again.
    pub fn end(mut self) {
        self.undo();
    }

    fn undo(&mut self) {
        if self.server.take().is_some() {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
    }
}

impl Drop for DeadDisk {
    fn drop(&mut self) {
        self.undo();
    }
}
