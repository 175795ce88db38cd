//! What a peer tells the tracker of one file, and what the tracker makes of it.

use crate::{ChunkSet, Digest, FileInfo};

/// One file's share of an announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChunks {
    /// Which file.
    pub file: FileInfo,
    /// Index of the first of `hashes`.
    pub first_hash: u32,
    /// Hashes of consecutive chunks; may be empty.
    pub hashes: Vec<Digest>,
    /// Chunks that the sender holds in addition to those announced before.
    pub held: ChunkSet,
    /// The sender holds nothing of it any more; `held` and `hashes` mean nothing then.
    pub gone: bool,
}

/// What the tracker made of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOutcome {
    /// Announced.
    Registered,
    /// Other content was registered first under this name.
    Refused {
        /// That content.
        registered: FileInfo,
        /// For a person; names both ids.
        detail: String,
    },
    /// The tracker misses hashes from this index on.
    NeedHashes(u32),
    /// The entry is malformed.
    Invalid(String),
}
