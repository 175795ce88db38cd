//! Folders with random files, for seeds to share. Every container's user may read them.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use tempfile::TempDir;

/// A folder of this machine; gone when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    folder: TempDir,
}

impl Share {
    /// A folder with one file of random content.
    pub(crate) fn with(name: &str, size: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("its owner may change it");
        let mut random = File::open("/dev/urandom").expect("a source of randomness").take(size);
        let mut file = File::create(folder.path().join(name)).expect("the folder can be written");
        io::copy(&mut random, &mut file).expect("room for the file");
        Self { folder }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// SHA-256 of one of its files, in hex.
    pub(crate) fn digest(&self, name: &str) -> String {
        let output = Command::new("sha256sum").arg(self.path().join(name)).output().expect("sha256sum is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a digest").to_owned()
    }
}
