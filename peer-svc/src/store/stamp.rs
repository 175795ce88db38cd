//! What tells, without reading it, that a file is still the one that was hashed.

use std::fs;

use serde::{Deserialize, Serialize};

/// What tells that a file is still the one that was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Size in bytes.
    pub(crate) size: u64,
    /// Modification time in nanoseconds since 1970.
    pub(crate) modified_nanos: i128,
}

impl Stamp {
    /// From a file's metadata.
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let modified_nanos = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { size: metadata.len(), modified_nanos }
    }

    /// Whether nothing of the file, its time included, was changed after the time that it has.
    pub(crate) fn is_time_of_last_change(self, metadata: &fs::Metadata) -> bool {
        use std::os::unix::fs::MetadataExt;
        i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()) <= self.modified_nanos
    }
}
