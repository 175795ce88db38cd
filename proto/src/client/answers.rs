//! What a tracker is asked for, and answers, as domain types.

use std::time::Duration;

use super::Rights;
use crate::{FileInfo, Manifest, PeerId, Signature, convert::WireError, holder::Holder};

/// A granted lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Names the lease in later calls.
    pub id: u64,
    /// Renew it this often.
    pub renew_every: Duration,
    /// What the peer's operator should look into.
    pub warning: Option<String>,
    /// What the peer may do, and what others may.
    pub rights: Rights,
}

/// What a renewal tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// Files whose names were released since the last one.
    pub released: Vec<FileInfo>,
    /// What the peer's operator should look into.
    pub warning: Option<String>,
    /// What is new of rights.
    pub rights: Rights,
}

/// What a watcher wants to be introduced to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Its lease.
    pub lease: u64,
    /// So many peers, about.
    pub neighbours: u32,
    /// Those that it has already; at most 256.
    pub known: Vec<PeerId>,
}

/// A file and how many hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// Its name, id and layout.
    pub file: FileInfo,
    /// Live peers with every chunk.
    pub full_holders: u32,
    /// Live peers with some chunks.
    pub partial_holders: u32,
}

/// What a name stands for, and some of its holders.
#[derive(Debug, Clone)]
pub struct Content {
    /// Checked against the file id.
    pub manifest: Manifest,
    /// What its owner signed. A malformed one is as good as none, and only to those that ask for one.
    pub signature: Result<Option<Signature>, WireError>,
    /// Some of them.
    pub holders: Vec<Holder>,
}
