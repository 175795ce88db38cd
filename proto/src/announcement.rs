//! What a peer tells the tracker of one file, and what the tracker makes of it.

use crate::{ChunkSet, Digest, FileInfo, Signature};

/// One file's share of an announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChunks {
    /// The file that it is about, as the sender knows it.
    pub file: FileInfo,
    /// Index of the first of `hashes`.
    pub first_hash: u32,
    /// Hashes of consecutive chunks; may be empty.
    pub hashes: Vec<Digest>,
    /// Chunks that the sender holds in addition to those announced before.
    pub held: ChunkSet,
    /// The sender holds nothing of it any more; `held` and `hashes` mean nothing then.
    pub gone: bool,
    /// The name is to stand for this content from now on, if the sender registered the name first.
    pub replace: bool,
    /// Of a statement about the file.
    pub signature: Option<Signature>,
}

/// What the tracker made of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOutcome {
    /// The name has this content, and the sender is a holder of the chunks that it told.
    Registered,
    /// Other content was registered first under this name.
    Refused {
        /// The content that has the name.
        registered: FileInfo,
        /// For a person; names both ids.
        detail: String,
    },
    /// The tracker misses hashes from this index on.
    NeedHashes(u32),
    /// The entry is malformed.
    Invalid(String),
}
