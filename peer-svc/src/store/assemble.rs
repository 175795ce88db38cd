//! The last step: all chunks stored, the file appears under its name, at once and whole.
//!
//! Order at a crash: data synced, then renamed, then the folder synced. Before the rename the partial file
//! and its record are intact; after it the file is complete. An existing file is never replaced: the rename
//! itself refuses, so nothing can slip in between. Calls block.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use drizzle_proto::{ChunkSet, Digest, name::RESERVED_PREFIX};
use tokio_util::sync::CancellationToken;

use super::{
    disk::{Disk, Step},
    prove::prove,
    stamp::Stamp,
    write::PartialFile,
};

/// Bytes that are copied at a time.
const COPY: usize = 1 << 20;

/// Why the file is not in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssembleError {
    /// Something is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The copy on the destination's file system is not what was copied.
    #[error("the copy in {} does not match the registered hashes; check that disk", .0.display())]
    Miscopied(PathBuf),
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
pub(crate) fn assemble(partial: &PartialFile, destination: &Path) -> Result<Stamp, AssembleError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => AssembleError::Exists(destination.to_owned()),
        _ => AssembleError::Io { path: destination.to_owned(), source },
    };
    let disk = partial.disk();
    partial.close();
    partial.sync().map_err(fail)?;
    match disk.rename_new(partial.path(), destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy_across(partial, destination)?;
            disk.sync_folder_of(destination).map_err(fail)?;
            // Not before the name of the copy is durable: until then this is the only data that is sure to be found.
            disk.remove(partial.path()).map_err(fail)?;
        }
        renamed => {
            renamed.map_err(fail)?;
            disk.sync_folder_of(destination).map_err(fail)?;
        }
    }
    let metadata = fs::metadata(destination).map_err(fail)?;
    Ok(Stamp::of(&metadata))
}

/// The partial data is on another file system: a private copy beside the destination, proved by its hashes, then
/// the rename. The copy is a new file with a random name, so that no other daemon and no planted link has a part
/// in it. It is deleted if anything fails; after a crash the next attempt deletes it.
fn copy_across(partial: &PartialFile, destination: &Path) -> Result<(), AssembleError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => AssembleError::Exists(destination.to_owned()),
        _ => AssembleError::Io { path: destination.to_owned(), source },
    };
    let folder = destination.parent().unwrap_or(Path::new("/"));
    let disk: &Disk = partial.disk();
    let mark = mark_of(partial);
    delete_leftovers(disk, folder, &mark).map_err(fail)?;
    let copy = tempfile::Builder::new().prefix(&mark).make_in(folder, |path| disk.create_new(path)).map_err(fail)?;
    let manifest = partial.manifest();
    let (size, mut at, mut buffer) = (manifest.layout().size(), 0, vec![0; COPY]);
    while at < size {
        let part = &mut buffer[..COPY.min(usize::try_from(size - at).unwrap_or(COPY))];
        partial.file().read_exact_at(part, at).map_err(fail)?;
        disk.write(copy.as_file(), copy.path(), part, at).map_err(fail)?;
        at += part.len() as u64;
    }
    disk.sync(copy.as_file(), copy.path()).map_err(fail)?;
    let all = ChunkSet::full(manifest.layout().chunk_count());
    if !prove(copy.as_file(), manifest, &all, &CancellationToken::new()).is_full() {
        return Err(AssembleError::Miscopied(folder.to_owned()));
    }
    disk.tell(Step::Rename { from: copy.path(), to: destination }).map_err(fail)?;
    copy.persist_noclobber(destination).map(|_| ()).map_err(|error| fail(error.error))
}

/// How the names of one download's copies begin. Only those are ever deleted, whatever other daemons, with state
/// folders of their own, copy into the same folder.
fn mark_of(partial: &PartialFile) -> String {
    let key = Digest::of(partial.path().as_os_str().as_encoded_bytes()).to_string();
    format!("{RESERVED_PREFIX}-{}-", &key[..16])
}

/// A copy that a crash left may be as large as the file.
fn delete_leftovers(disk: &Disk, folder: &Path, mark: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(mark.as_bytes()) {
            disk.remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::testing::{content, verified};

    fn complete(folder: &Path) -> (Vec<u8>, PartialFile) {
        let (data, manifest) = content(1);
        let partial = PartialFile::open(&folder.join("partial"), manifest.clone(), true, Disk::default()).unwrap();
        for chunk in 0..3 {
            partial.write(&verified(&data, &manifest, chunk)).unwrap();
        }
        (data, partial)
    }

    #[test]
    fn the_file_appears_and_the_partial_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, partial), to) = (complete(folder.path()), folder.path().join("out"));
        let stamp = assemble(&partial, &to).unwrap();
        assert_eq!((fs::read(&to).unwrap(), stamp.size), (data, 40_000));
        assert!(!partial.path().exists());
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let ((_, partial), to) = (complete(folder.path()), folder.path().join("out"));
        fs::write(&to, "mine").unwrap();
        assert!(matches!(assemble(&partial, &to), Err(AssembleError::Exists(_))));
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        assert!(partial.path().exists(), "the chunks stay for another destination");
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_to_another_file_system_leaves_nothing_but_the_file() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ((data, partial), to) = (complete(folder.path()), elsewhere.path().join("out"));
        // What another daemon left, or planted: it is neither used nor followed.
        let victim = folder.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, elsewhere.path().join(".drizzle-partial")).unwrap();
        // What a crash of this download left is deleted, and a link of such a name is not followed.
        fs::write(elsewhere.path().join(format!("{}77", mark_of(&partial))), "half a copy").unwrap();
        symlink(&victim, elsewhere.path().join(format!("{}78", mark_of(&partial)))).unwrap();
        partial.close();
        copy_across(&partial, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), data);
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(names(elsewhere.path()), [".drizzle-partial", "out"]);
        assert!(partial.path().exists(), "it goes only once the name of the copy is durable");
    }

    #[test]
    fn a_copy_that_cannot_be_placed_or_proved_is_deleted() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ((_, partial), to) = (complete(folder.path()), elsewhere.path().join("out"));
        fs::write(&to, "mine").unwrap();
        assert!(matches!(copy_across(&partial, &to), Err(AssembleError::Exists(_))));
        assert_eq!((fs::read(&to).unwrap(), names(elsewhere.path())), (b"mine".to_vec(), vec!["out".to_owned()]));
        fs::remove_file(&to).unwrap();
        Disk::default().write(&partial.file(), partial.path(), b"xx", 20_000).unwrap();
        assert!(matches!(copy_across(&partial, &to), Err(AssembleError::Miscopied(_))));
        assert!(names(elsewhere.path()).is_empty());
    }
}
