//! Small files that are read and written whole: keys, certificates, tokens.
//!
//! What holds (each line has a test):
//! - a file that is written is there whole or as it was before, also after a power cut, with exactly the given rights;
//! - a file that is absurdly long is not read.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Nothing that is read here is longer.
pub const MOST: u64 = 1 << 20;

/// All of a file. Blocks on the disk.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(content)
}

/// Puts a file in place, in one step. Blocks on the disk.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&new)?;
    // One may be left of an attempt that a crash ended, or the umask may have taken some.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_rights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pem");
        fs::write(folder.path().join("a.pem.new"), "left behind, and longer").unwrap();
        for content in ["secret", "other"] {
            write(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(read(&path).unwrap(), content.as_bytes());
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        assert!(write(&folder.path().join("none/a"), b"", 0o600).is_err());
    }

    #[test]
    fn what_is_absurdly_long_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        File::create(&path).unwrap().set_len(MOST).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, MOST);
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
