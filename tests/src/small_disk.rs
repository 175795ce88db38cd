//! A file system that is soon full: a tmpfs of a few MiB, mounted for one test.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::skipped;

/// The mount; undone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts `size` bytes at `path`. `None` if this process may not mount anything; the test that wants
    /// it then has nothing to test.
    ///
    /// # Panics
    /// If root cannot mount a tmpfs outside of a container.
    pub fn mount(path: PathBuf, size: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("only root can mount a small file system");
            return None;
        }
        std::fs::create_dir_all(&path).expect("a folder can be made");
        let options = format!("size={size},mode=0755");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).output();
        let mount = mount.expect("mount can be started");
        if !mount.status.success() {
            skipped(format_args!("mount says {}", String::from_utf8_lossy(&mount.stderr)));
            return None;
        }
        Some(Self { path })
    }

    /// From now on nothing can be written to it.
    ///
    /// # Panics
    /// If it cannot be mounted anew.
    pub fn make_read_only(&self) {
        let mount = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path).status();
        assert!(mount.expect("mount can be started").success(), "a mount can be made read-only");
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that a failing test left behind must not keep the mount.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
