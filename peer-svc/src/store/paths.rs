//! From names to paths: part by part below one folder, following no link (invariant 7).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use drizzle_proto::FileName;

use super::assemble::AssembleError;

/// Where a named file lies below a folder.
pub fn path_of(dir: &Path, name: &FileName) -> PathBuf {
    dir.join(name.to_path())
}

/// Makes the folders of a name below `dir`, following no link.
pub fn make_parents(dir: &Path, name: &FileName) -> Result<(), AssembleError> {
    for folder in parents(dir, name) {
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(AssembleError::Io { path: folder, source: error });
            }
            _ => check_folder(&folder)?,
        };
    }
    Ok(())
}

/// Whether the folders of a name can be used, as far as they exist.
pub fn check_parents(dir: &Path, name: &FileName) -> Result<(), AssembleError> {
    for folder in parents(dir, name) {
        if !check_folder(&folder)? {
            break;
        }
    }
    Ok(())
}

/// Every folder between `dir` and the file, outermost first.
fn parents(dir: &Path, name: &FileName) -> Vec<PathBuf> {
    let path = path_of(dir, name);
    let mut folders: Vec<PathBuf> =
        path.ancestors().skip(1).take_while(|folder| *folder != dir).map(Path::to_owned).collect();
    folders.reverse();
    folders
}

/// Whether the folder exists; an error if something else is there.
fn check_folder(folder: &Path) -> Result<bool, AssembleError> {
    match fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => Err(AssembleError::InTheWay(folder.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(AssembleError::Io { path: folder.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_follow_links_out_of_the_folder() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        let name = FileName::new("link/sub/file").unwrap();
        assert!(matches!(make_parents(folder.path(), &name), Err(AssembleError::InTheWay(_))));
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        let name = FileName::new("a/b/file").unwrap();
        make_parents(folder.path(), &name).unwrap();
        assert!(path_of(folder.path(), &name).parent().unwrap().is_dir());
    }
}
