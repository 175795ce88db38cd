//! From names to paths: below one folder, following no link (invariant 7).
//!
//! The kernel resolves a name's folders with `openat2` and refuses links and ways out. Where it has no such call
//! (before Linux 5.6, or below some sandboxes), each folder is looked at in turn. Calls block.

use std::{
    io,
    path::{Path, PathBuf},
};

use drizzle_proto::FileName;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
};

use super::disk::Disk;

/// Why a name's folders cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// A link or a file stands where a folder of the name should be.
    #[error("{} is in the way: a link or a file stands where a folder should be", .0.display())]
    InTheWay(PathBuf),
    /// The system refused.
    #[error("cannot use the folder {}: {source}", path.display())]
    Io {
        /// The folder that could not be looked at, made or synced.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where a named file lies below a folder.
pub(crate) fn path_of(dir: &Path, name: &FileName) -> PathBuf {
    dir.join(name.to_path())
}

/// Makes the folders of a name below `dir`, durably, following no link.
pub(crate) fn make_parents(disk: &Disk, dir: &Path, name: &FileName) -> Result<(), PathError> {
    for folder in parents(name) {
        let path = dir.join(&folder);
        disk.make_folder(&path).map_err(|source| PathError::Io { path, source })?;
        is_folder_below(dir, &folder)?;
    }
    Ok(())
}

/// Whether the folders of a name can be used, as far as they exist.
pub(crate) fn check_parents(dir: &Path, name: &FileName) -> Result<(), PathError> {
    for folder in parents(name) {
        if !is_folder_below(dir, &folder)? {
            break;
        }
    }
    Ok(())
}

/// Every folder of the name, outermost first, relative.
fn parents(name: &FileName) -> Vec<PathBuf> {
    let path = name.to_path();
    let mut folders: Vec<PathBuf> =
        path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_owned).collect();
    folders.reverse();
    folders
}

/// Whether the folder exists below `dir`; an error if a link or something else is on the way.
fn is_folder_below(dir: &Path, folder: &Path) -> Result<bool, PathError> {
    let path = dir.join(folder);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(dir, flags, Mode::empty());
    let root = root.map_err(|error| PathError::Io { path: dir.to_owned(), source: error.into() })?;
    match openat2(root, folder, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Err(PathError::InTheWay(path)),
        Err(Errno::NOSYS | Errno::PERM) => is_folder(path),
        Err(error) => Err(PathError::Io { path, source: error.into() }),
    }
}

/// The same for one folder whose parents were looked at before.
fn is_folder(path: PathBuf) -> Result<bool, PathError> {
    match rustix::fs::statat(CWD, &path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(true),
        Ok(_) => Err(PathError::InTheWay(path)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(PathError::Io { path, source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn names_do_not_follow_links_out_of_the_folder() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), folder.path().join("link")).unwrap();
        let name = FileName::new("link/sub/file").unwrap();
        assert!(matches!(check_parents(folder.path(), &name), Err(PathError::InTheWay(_))));
        assert!(matches!(make_parents(&Disk::default(), folder.path(), &name), Err(PathError::InTheWay(_))));
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        fs::write(folder.path().join("file"), "").unwrap();
        let name = FileName::new("file/sub/x").unwrap();
        assert!(matches!(make_parents(&Disk::default(), folder.path(), &name), Err(PathError::InTheWay(_))));
    }

    #[test]
    fn folders_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let name = FileName::new("a/b/file").unwrap();
        check_parents(folder.path(), &name).unwrap();
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "checking makes nothing");
        for _ in 0..2 {
            make_parents(&Disk::default(), folder.path(), &name).unwrap();
            assert!(path_of(folder.path(), &name).parent().unwrap().is_dir());
        }
    }

    #[test]
    fn without_the_kernels_help_links_are_found_as_well() {
        let folder = tempfile::tempdir().unwrap();
        symlink(folder.path(), folder.path().join("link")).unwrap();
        assert!(matches!(is_folder(folder.path().join("link")), Err(PathError::InTheWay(_))));
        assert!(is_folder(folder.path().to_owned()).unwrap());
        assert!(!is_folder(folder.path().join("none")).unwrap());
    }
}
