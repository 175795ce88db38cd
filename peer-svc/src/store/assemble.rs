//! The last step: all chunks stored, the file appears under its name, at once and whole.
//!
//! Order at a crash: data synced, then renamed, then the folder synced. Before the rename the partial file
//! and its record are intact; after it the file is complete. An existing file is never replaced: the rename
//! itself refuses, so nobody can slip in between. Names are joined to the folder part by part, and no link
//! in the way is followed (invariant 7). Calls block.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use drizzle_proto::name::RESERVED_PREFIX;
use rustix::fs::{CWD, RenameFlags};

use crate::store::{stamp::Stamp, write::PartialFile};

/// Why the file is not in place.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Something is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A link or a file stands where a folder of the name should be.
    #[error("{} is in the way: not a folder", .0.display())]
    InTheWay(PathBuf),
    /// The system refused.
    #[error("cannot put {} in place: {source}", path.display())]
    Io {
        /// The destination.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Puts a complete partial file in place and returns the stamp it has there. Its folder must exist.
pub fn assemble(partial: &PartialFile, destination: &Path) -> Result<Stamp, AssembleError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => AssembleError::Exists(destination.to_owned()),
        _ => AssembleError::Io { path: destination.to_owned(), source },
    };
    partial.close();
    partial.sync().map_err(fail)?;
    match rename_new(partial.path(), destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy_across(partial, destination).map_err(fail)?;
        }
        other => other.map_err(fail)?,
    }
    sync_folder(destination).map_err(fail)?;
    let metadata = fs::metadata(destination).map_err(fail)?;
    Ok(Stamp::of(&metadata))
}

/// The partial data is on another file system: a hidden copy beside the destination, then the rename.
fn copy_across(partial: &PartialFile, destination: &Path) -> io::Result<()> {
    let folder = destination.parent().unwrap_or(Path::new("/"));
    // Named after the download, so that what a crash leaves is used again and does not pile up.
    let key = partial.path().file_name().unwrap_or_default().to_string_lossy();
    let hidden = folder.join(format!("{RESERVED_PREFIX}-{key}"));
    let copy = || {
        let mut to = File::create(&hidden)?;
        io::copy(&mut File::open(partial.path())?, &mut to)?;
        to.sync_all()?;
        rename_new(&hidden, destination)
    };
    let result = copy();
    if result.is_err() {
        let _ = fs::remove_file(&hidden);
    } else {
        fs::remove_file(partial.path())?;
    }
    result
}

/// Renames, refusing to replace anything.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems know no such flag. A hard link refuses to replace just as well.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use drizzle_proto::{Digest, Layout, Manifest};

    use super::*;

    fn partial(folder: &Path) -> Arc<PartialFile> {
        let layout = Layout::new(4, 1 << 14).unwrap();
        let manifest = Manifest::new(layout, vec![Digest::of(&[0; 4])]).unwrap();
        Arc::new(PartialFile::open(&folder.join("partial"), manifest, true).unwrap())
    }

    #[test]
    fn the_file_appears_and_the_partial_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, to) = (partial(folder.path()), folder.path().join("out"));
        let stamp = assemble(&partial, &to).unwrap();
        assert_eq!((fs::read(&to).unwrap(), stamp.size), (vec![0; 4], 4));
        assert!(!partial.path().exists());
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, to) = (partial(folder.path()), folder.path().join("out"));
        fs::write(&to, "mine").unwrap();
        assert!(matches!(assemble(&partial, &to), Err(AssembleError::Exists(_))));
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        assert!(partial.path().exists(), "the chunks stay for another destination");
    }
}
