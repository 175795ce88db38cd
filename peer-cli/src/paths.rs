//! Paths as typed -> absolute ones: the daemon has another working folder.

use std::path::{Component, MAIN_SEPARATOR, Path, PathBuf};

use drizzle_proto::FileName;

use crate::exit::{Exit, Failure};

/// Absolute against this process's working folder, without `.` and `..`, as the text that the wire takes.
pub(crate) fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("path {}: {error}", path.display())))?;
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                // `link/..` is the parent of what the link points to.
                if let Ok(real) = plain.canonicalize() {
                    plain = real;
                }
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain.into_os_string().into_string().map_err(|path| {
        Failure::new(Exit::Usage, format!("path {} is not UTF-8", path.display()))
            .hint("Rename it, or share its folder.")
    })
}

/// Where `-o` puts a file: into a folder if it is one or ends with `/`, else at that very path.
pub(crate) fn destination(output: &Path, name: &FileName) -> Result<String, Failure> {
    let is_folder = output.as_os_str().as_encoded_bytes().ends_with(&[MAIN_SEPARATOR as u8]) || output.is_dir();
    let base = name.as_str().rsplit('/').next().unwrap_or(name.as_str());
    if is_folder { absolute(&output.join(base)) } else { absolute(output) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};

    use super::*;

    #[test]
    fn relative_paths_become_absolute() {
        let here = std::env::current_dir().unwrap().into_os_string().into_string().unwrap();
        assert_eq!(absolute(Path::new("a/./b")).unwrap(), format!("{here}/a/b"));
        assert_eq!(absolute(Path::new("nowhere/../b")).unwrap(), format!("{here}/b"));
        assert_eq!(absolute(Path::new("/a//b/")).unwrap(), "/a/b");
        assert_eq!(absolute(Path::new("/../..")).unwrap(), "/");
        assert_eq!(absolute(Path::new("")).unwrap_err().exit, Exit::Usage);
        let bytes = std::ffi::OsStr::from_bytes(b"/a\xff");
        assert_eq!(absolute(Path::new(bytes)).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_parent_of_a_link_is_that_of_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("x/target")).unwrap();
        symlink(root.join("x/target"), root.join("link")).unwrap();
        assert_eq!(absolute(&root.join("link/../f")).unwrap(), root.join("x/f").to_str().unwrap());
    }

    #[test]
    fn folders_get_the_base_name() {
        let name = FileName::new("models/a.bin").unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(destination(dir.path(), &name).unwrap(), dir.path().join("a.bin").to_str().unwrap());
        assert_eq!(destination(Path::new("/nowhere/"), &name).unwrap(), "/nowhere/a.bin");
        assert_eq!(destination(Path::new("/nowhere/b"), &name).unwrap(), "/nowhere/b");
    }
}
