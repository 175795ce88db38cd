//! Which files there are, and what they are called: below a folder, or as a person named them. Nothing is hashed here.

use std::{
    io,
    path::{Path, PathBuf},
};

use drizzle_proto::{FileName, name::RESERVED_PREFIX};

use super::{ShareError, Sharer};
use crate::store::{hash::HashError, stamp::Stamp};

/// A file that may be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The name it gets.
    pub(crate) name: FileName,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// As it is now.
    pub(crate) stamp: Stamp,
}

/// Every regular file below `root`, named relative to `base`; and what was skipped, with the reason.
/// Links are not followed; `state` (the state folder) and half-placed files (`.drizzle...`) are not looked at.
pub(super) fn scan(root: &Path, base: &Path, state: &Path) -> (Vec<Found>, Vec<ShareError>) {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    let own = |entry: &walkdir::DirEntry| {
        entry.path() == state
            || entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(RESERVED_PREFIX.as_bytes())
    };
    for entry in walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| !own(entry)) {
        let result = entry.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            ShareError::from(HashError::Io { path, source: error.into() })
        });
        let result = result.and_then(|entry| {
            if !entry.file_type().is_file() {
                return Ok(None);
            }
            let metadata = entry
                .metadata()
                .map_err(|error| HashError::Io { path: entry.path().to_owned(), source: error.into() })?;
            let name = name_of(entry.path(), base)?;
            Ok(Some(Found { name, path: entry.into_path(), stamp: Stamp::of(&metadata) }))
        });
        match result {
            Ok(file) => found.extend(file),
            Err(error) => skipped.push(error),
        }
    }
    (found, skipped)
}

pub(super) fn name_of(path: &Path, base: &Path) -> Result<FileName, ShareError> {
    let fail = |reason: String| ShareError::Name { path: path.to_owned(), reason };
    let relative = path.strip_prefix(base).unwrap_or(path);
    let text = relative.to_str().ok_or_else(|| fail("the name is not UTF-8".to_owned()))?;
    FileName::new(text).map_err(|error| fail(error.to_string()))
}

impl Sharer {
    /// Resolves what a person asked to share, without hashing yet. Fails as a whole if a path does not exist.
    pub(crate) fn find(
        &self,
        paths: &[PathBuf],
        name: Option<FileName>,
    ) -> Result<(Vec<Found>, Vec<ShareError>), ShareError> {
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for path in paths {
            let fail = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => HashError::NotFound(path.clone()),
                _ => HashError::Io { path: path.clone(), source },
            };
            // Names say where a file is, so a link is followed here, once, by its owner's own wish.
            let path = path.canonicalize().map_err(fail)?;
            let metadata = path.metadata().map_err(fail)?;
            let base = if path.starts_with(&self.dir) { &self.dir } else { path.parent().unwrap_or(&path) };
            if metadata.is_dir() {
                let (more, reasons) = scan(&path, base, self.journal.folder());
                found.extend(more);
                skipped.extend(reasons);
            } else if metadata.is_file() {
                let name = match &name {
                    Some(name) => Ok(name.clone()),
                    None => name_of(&path, base),
                };
                match name {
                    Ok(name) => found.push(Found { name, stamp: Stamp::of(&metadata), path }),
                    Err(error) => skipped.push(error),
                }
            } else {
                skipped.push(HashError::NotRegular(path).into());
            }
        }
        Ok((found, skipped))
    }
}
