//! The last step: all chunks stored, the file appears under its name, at once and whole.
//!
//! Order at a crash: data synced, then renamed, then the folder synced. Before the rename the partial file
//! and its record are intact; after it the file is complete. An existing file is never replaced: the rename
//! itself refuses, so nothing can slip in between. The data is on the destination's file system ([`super::place`]), so
//! that no byte is copied. Calls block.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{stamp::Stamp, write::PartialFile};

/// Why the file is not in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    /// Something is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The data is on another file system than the destination.
    #[error("{} is on another file system than the data of the download", .0.display())]
    OtherFileSystem(PathBuf),
    /// Another file has the name of the data.
    #[error("{} was replaced by another program", .0.display())]
    Replaced(PathBuf),
    /// The last step was called off before it was taken.
    #[error("cancelled")]
    Cancelled,
    /// The system refused.
    #[error("cannot put {} in place: {source}", path.display())]
    Io {
        /// The destination of the file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Puts a complete partial file in place and returns the stamp it has there. Its folder must exist. `may_place` is asked
/// once everything is written, which can take long, and the file then appears if it says so.
pub(crate) fn assemble(
    partial: &PartialFile,
    destination: &Path,
    may_place: &dyn Fn() -> bool,
) -> Result<Stamp, AssembleError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => AssembleError::Exists(destination.to_owned()),
        io::ErrorKind::CrossesDevices => AssembleError::OtherFileSystem(destination.to_owned()),
        _ => AssembleError::Io { path: destination.to_owned(), source },
    };
    let (disk, file) = (partial.disk(), partial.file().map_err(fail)?);
    partial.close();
    partial.sync().map_err(fail)?;
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    let named = fs::symlink_metadata(partial.path()).map_err(fail)?;
    if identity(&named) != identity(&file.metadata().map_err(fail)?) {
        return Err(AssembleError::Replaced(partial.path().to_owned()));
    }
    if !may_place() {
        return Err(AssembleError::Cancelled);
    }
    disk.rename_new(partial.path(), destination).map_err(fail)?;
    disk.sync_folder_of(destination).map_err(fail)?;
    Ok(Stamp::of(&file.metadata().map_err(fail)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        disk::Disk,
        testing::{content, verified},
    };

    fn complete(folder: &Path) -> (Vec<u8>, PartialFile) {
        let (data, manifest) = content(1);
        let partial = PartialFile::at(&folder.join("partial"), manifest.clone(), Disk::default());
        partial.make().unwrap();
        for chunk in 0..3 {
            partial.store(verified(&data, &manifest, chunk)).unwrap();
        }
        (data, partial)
    }

    #[test]
    fn the_file_appears_and_the_partial_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, partial), to) = (complete(folder.path()), folder.path().join("out"));
        let stamp = assemble(&partial, &to, &|| true).unwrap();
        assert_eq!((fs::read(&to).unwrap(), stamp.size), (data, 40_000));
        assert!(!partial.path().exists());
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let ((_, partial), to) = (complete(folder.path()), folder.path().join("out"));
        fs::write(&to, "mine").unwrap();
        assert!(matches!(assemble(&partial, &to, &|| true), Err(AssembleError::Exists(_))));
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        assert!(partial.path().exists(), "the chunks stay for another destination");
    }

    #[test]
    fn a_file_that_took_the_place_of_the_data_is_not_placed() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, partial), to) = (complete(folder.path()), folder.path().join("out"));
        let _open = partial.file().unwrap();
        fs::rename(partial.path(), folder.path().join("away")).unwrap();
        fs::write(partial.path(), data).unwrap();
        assert!(matches!(assemble(&partial, &to, &|| true), Err(AssembleError::Replaced(_))));
        assert!(!to.exists());
    }

    #[test]
    fn a_last_step_that_is_called_off_leaves_the_data_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let ((_, partial), to) = (complete(folder.path()), folder.path().join("out"));
        assert!(matches!(assemble(&partial, &to, &|| false), Err(AssembleError::Cancelled)));
        assert!(partial.path().exists() && !to.exists());
    }
}
