//! The daemon's own folder at its start: what is recorded against what is there.

use std::collections::{HashMap, HashSet};

use drizzle_proto::FileName;

use super::{
    IsDownloading, ShareError, Sharer,
    scan::{Found, scan},
};
use crate::store::{journal::ShareRecord, paths::path_of, stamp::Stamp};

impl Sharer {
    /// Shares every regular file below the folder, and what was shared from elsewhere before.
    pub(crate) fn share_folder(&self, is_downloading: IsDownloading<'_>) -> Result<(), ShareError> {
        let mut known: HashMap<FileName, ShareRecord> = self.journal.shares()?.into_iter().collect();
        let (mut found, skipped) = scan(&self.dir, &self.dir, self.journal.folder());
        for error in skipped {
            tracing::warn!(%error, "not shared");
        }
        let mut lost = Vec::new();
        let here: HashSet<FileName> = found.iter().map(|file| file.name.clone()).collect();
        for (name, record) in known.iter().filter(|(name, _)| !here.contains(*name)) {
            // Shared by path, or downloaded to a path of its own.
            match std::fs::metadata(&record.path) {
                Ok(metadata) if metadata.is_file() && record.path != path_of(&self.dir, name) => {
                    found.push(Found { name: name.clone(), path: record.path.clone(), stamp: Stamp::of(&metadata) });
                }
                _ => lost.push(name.clone()),
            }
        }
        self.journal.forget_shares(&lost)?;
        let mut fresh = Vec::new();
        for file in found {
            match known.remove(&file.name) {
                // The record stands as it is: nothing to write, only to offer.
                Some(record) if record.path == file.path && record.stamp == file.stamp => {
                    if record.shared {
                        self.hold(file.name, record);
                    }
                }
                // Withdrawn by its owner, whatever became of it since.
                Some(record) if record.path == file.path && !record.shared => {}
                _ => fresh.push(file),
            }
        }
        let hashed = fresh.len();
        for (name, result) in self.share_found(fresh, None, &self.progress, is_downloading)? {
            if let Err(error) = result {
                tracing::warn!(%name, %error, "not shared");
            }
        }
        tracing::info!(dir = %self.dir.display(), files = here.len(), hashed, "sharing");
        Ok(())
    }
}
