//! What the registry is asked for, and what it answers.

use bytes::Bytes;
use drizzle_proto::{Address, FileInfo, FileName, PeerId, Signature, holder::Holder};

use crate::catalogue::Record;

/// A page of names with their numbers of holders.
#[derive(Debug)]
pub struct Listing {
    /// Each file, its full and its partial holders.
    pub files: Vec<(FileInfo, u32, u32)>,
    /// Where the next page begins, unless this is the last one.
    pub next: Option<FileName>,
}

/// A name as an operator sees it.
#[derive(Debug)]
pub struct OwnedName {
    /// What it stands for, and its owner.
    pub record: Record,
    /// Where the owner is reached, while it has a lease.
    pub owner_address: Option<Address>,
    /// Live peers with every chunk.
    pub full_holders: u32,
    /// Live peers with some chunks.
    pub partial_holders: u32,
}

/// A name that an operator dropped.
#[derive(Debug)]
pub struct Dropped {
    /// What it stood for, and its owner.
    pub record: Record,
    /// Live peers that held some of it, and are told to drop it.
    pub holders: usize,
}

/// Which part of a file's locations is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The first chunk whose hash is wanted, if hashes are.
    pub hashes_from: Option<u32>,
    /// Whether the signature is.
    pub signature: bool,
    /// Which page of holders is wanted.
    pub holders: HolderPage,
}

/// A page of holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HolderPage {
    /// No holders.
    Omitted,
    /// From the first one on.
    First,
    /// After this one.
    After(PeerId),
    /// No page: so many, those after this one first.
    Sample {
        /// Any id; none: the lowest.
        after: Option<PeerId>,
        /// At most.
        most: u32,
    },
}

/// A part of a file's locations.
#[derive(Debug)]
pub struct Locations {
    /// Which file.
    pub file: FileInfo,
    /// Hashes from the wanted one on, 32 bytes each.
    pub hashes: Bytes,
    /// What its owner signed of it, if that is wanted.
    pub signature: Option<Signature>,
    /// A page of holders.
    pub holders: Vec<Holder>,
    /// The holder after which the next page begins, unless this is the last one.
    pub next: Option<PeerId>,
}
