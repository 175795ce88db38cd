//! What a person asked to share: files by their paths, links included, and all files of folders.

use std::{io, path::PathBuf};

use drizzle_proto::FileName;

use super::{
    ShareError, Sharer,
    scan::{Found, Scanned, name_of, scan},
};
use crate::store::hash::HashError;

impl Sharer {
    /// Resolves paths, without hashing yet. Fails as a whole if one does not exist, or may not be named.
    pub(crate) fn find(&self, paths: &[PathBuf], name: Option<FileName>) -> Result<Scanned, ShareError> {
        let mut all = Scanned::default();
        for path in paths {
            let fail = |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => HashError::NotFound(path.clone()),
                _ => HashError::Io { path: path.clone(), source },
            };
            // Before anything else is said of it.
            let fence = self.holdings.calls().fence();
            fence.check(path)?;
            // Names say where a file is: the folders around it are resolved, and a link is called what it is called.
            let look = || {
                let (metadata, target) = (path.metadata()?, path.canonicalize()?);
                let path = match (path.parent(), path.file_name()) {
                    (Some(folder), Some(last)) if target != self.dir => folder.canonicalize()?.join(last),
                    _ => target,
                };
                Ok((path, metadata))
            };
            let (path, metadata) = self.holdings.calls().run(path, look).map_err(fail)?;
            // What is found is opened by this path, and is held to it from here on.
            fence.admit(&path)?;
            let is_inside = path.starts_with(&self.dir);
            let base = if is_inside { &self.dir } else { path.parent().unwrap_or(&path) };
            if metadata.is_dir() {
                let what = match is_inside && !path.is_symlink() {
                    // What the folder around it leaves out counts as well.
                    true => self.scan_of(self.dir.clone(), Some([path.clone()].into())),
                    false => self.scan_of(path.clone(), None),
                };
                let Scanned { found, failed, skipped, .. } = scan(what, base);
                all.found.extend(found);
                all.failed.extend(failed);
                all.skipped.merge(skipped);
            } else if metadata.is_file() {
                let name = match &name {
                    Some(name) => Ok(name.clone()),
                    None => name_of(&path, base),
                };
                match name {
                    Ok(name) => all.found.push(Found::new(name, path, &metadata)),
                    Err(error) => all.failed.push(error),
                }
            } else {
                all.failed.push(HashError::NotRegular(path).into());
            }
        }
        Ok(all)
    }
}
