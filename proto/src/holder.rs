//! Which peers hold which chunks of a file, and how that changes.

use crate::{ChunkSet, PeerId, PeerInfo};

/// A live peer that holds some of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id, address and labels.
    pub peer: PeerInfo,
    /// The chunks that it announced.
    pub chunks: ChunkSet,
}

/// One change of a file's holders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HolderChange {
    /// This is all there is to know of the peer now.
    Is(Holder),
    /// The peer holds these chunks in addition.
    Added(PeerId, ChunkSet),
    /// The peer holds nothing of the file any more.
    Gone(PeerId),
    /// The peer is no neighbour any more; it holds what it held.
    Parted(PeerId),
}

/// A message of a watch: changes in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HolderChanges {
    /// Forget every holder first.
    pub reset: bool,
    /// In the order in which they happened.
    pub changes: Vec<HolderChange>,
    /// The snapshot is complete.
    pub synced: bool,
    /// The holders are neighbours, and tell by themselves which chunks they get.
    pub introduces: bool,
}

/// What a peer tells of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkNews {
    /// It holds these and no others.
    All(ChunkSet),
    /// It holds these in addition.
    More(ChunkSet),
}
