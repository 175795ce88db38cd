//! File names: relative paths that cannot leave the folder they are joined to.
//!
//! Names come from other machines, so everything that could mean something to a file system or a
//! terminal is refused here, once: absolute paths, `..`, control characters, backslashes.

use std::{borrow::Borrow, fmt, path::PathBuf, str::FromStr, sync::Arc};

/// Longest name in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest part between two `/`, in bytes: what file systems take.
pub const MAX_PART: usize = 255;
/// Names may not have a part that begins with this: it is the peer's own.
pub const RESERVED_PREFIX: &str = ".drizzle";

/// What a file is called in the swarm: `models/llama.bin`. Cheap to clone; ordered by bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Arc<str>);

/// Why a text is no file name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a file name cannot be empty")]
    Empty,
    /// Over [`MAX_NAME`] or with a part over [`MAX_PART`].
    #[error("a file name has at most {MAX_NAME} bytes, and {MAX_PART} between two '/'; this one has {0}")]
    TooLong(usize),
    /// Absolute, or with a part that is empty, `.` or `..`.
    #[error("file name {0:?} is not a plain relative path (no leading or doubled '/', no '.' or '..')")]
    NotRelative(String),
    /// A control character or a backslash.
    #[error("file name {0:?} has a control character or a backslash")]
    Character(String),
    /// A part begins with [`RESERVED_PREFIX`].
    #[error("file name {0:?} has a part that begins with {RESERVED_PREFIX:?}, which the peer keeps for itself")]
    Reserved(String),
}

impl FileName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_NAME || name.split('/').any(|part| part.len() > MAX_PART) {
            return Err(NameError::TooLong(name.len()));
        }
        if name.chars().any(|c| c.is_control() || c == '\\') {
            return Err(NameError::Character(name.to_owned()));
        }
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(NameError::NotRelative(name.to_owned()));
        }
        if name.split('/').any(|part| part.starts_with(RESERVED_PREFIX)) {
            return Err(NameError::Reserved(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a relative path.
    pub fn to_path(&self) -> PathBuf {
        self.0.split('/').collect()
    }
}

impl FromStr for FileName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Borrow<str> for FileName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn path_tricks_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/x",
            "a/../../x",
            "a//b",
            "a/",
            "./a",
            "a/./b",
            "a\0b",
            "a\nb",
            "a\\b",
            "\u{1b}[2J",
            ".drizzle/x",
            "a/.drizzle-tmp",
        ] {
            assert!(FileName::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn ordinary_names_pass() {
        for name in ["a", "a/b/c.bin", "..a", "...", ".hidden", "ünï çödé", "a b", "-rf", "~"] {
            assert_eq!(FileName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(FileName::new(&"x".repeat(MAX_PART)).is_ok());
        assert!(FileName::new(&"x".repeat(MAX_PART + 1)).is_err());
        assert!(FileName::new(&"x/".repeat(2048)).is_err());
        assert!(FileName::new(&"x".repeat(4096)).is_err());
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_folder(name in "[a./\\\\ ~-]{0,12}") {
            if let Ok(name) = FileName::new(&name) {
                let joined = Path::new("/base").join(name.to_path());
                prop_assert!(joined.starts_with("/base") && joined != Path::new("/base"));
                prop_assert!(name.to_path().components().all(|c| matches!(c, Component::Normal(_))));
            }
        }
    }
}
