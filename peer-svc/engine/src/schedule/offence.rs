//! What a holder can do wrong, and the list of offences that ends up in the download's report.
//!
//! Blame is only ever added to: a later success shortens a penalty, it does not rewrite the report.

use std::collections::{BTreeMap, BTreeSet};

use drizzle_proto::{ChunkCount, ChunkIndex, ChunkSet, PeerId};

/// What a holder did wrong with one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offence {
    /// The bytes did not match the manifest.
    WrongBytes,
    /// The holder says that its file changed since it was shared.
    Changed,
    /// No byte came for too long.
    Stalled,
    /// The stream ended early.
    BrokeOff,
    /// An unexpected status, or a stream that breaks the protocol.
    Refused,
    /// The tracker was told that the holder has the chunk; the holder says that it has not.
    NotHeld,
    /// The holder says that its file is no longer there: it was deleted, or its disk is away.
    Gone,
    /// No connection could be made.
    Unreachable,
    /// Another peer answers at its address.
    OtherPeer,
    /// Its address is this peer's own.
    OwnAddress,
}

impl Offence {
    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::WrongBytes,
        Self::Changed,
        Self::Stalled,
        Self::BrokeOff,
        Self::Refused,
        Self::NotHeld,
        Self::Gone,
        Self::Unreachable,
        Self::OtherPeer,
        Self::OwnAddress,
    ];

    /// Whether the content itself is in doubt, rather than the connection or the bookkeeping.
    pub fn is_integrity(self) -> bool {
        matches!(self, Self::WrongBytes | Self::Changed)
    }

    /// Whether the holder is taken not to have the chunk any more.
    pub(super) fn loses_chunk(self) -> bool {
        matches!(self, Self::WrongBytes | Self::Changed | Self::NotHeld | Self::Gone)
    }
}

/// One line of the report: everything that one holder did wrong in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// The peer that did it.
    pub holder: PeerId,
    /// What it did.
    pub offence: Offence,
    /// The chunks that it did that with.
    pub chunks: ChunkSet,
}

/// What each holder did wrong, and with which chunks. Sparse, because a bitfield per holder and offence would be large.
#[derive(Debug, Default)]
pub(super) struct Ledger(BTreeMap<(PeerId, Offence), BTreeSet<ChunkIndex>>);

impl Ledger {
    pub(super) fn note(&mut self, holder: PeerId, offence: Offence, chunk: ChunkIndex) {
        self.0.entry((holder, offence)).or_default().insert(chunk);
    }

    pub(super) fn report(&self, count: ChunkCount) -> Vec<Blame> {
        let blame = |(&(holder, offence), chunks): (&(PeerId, Offence), &BTreeSet<ChunkIndex>)| Blame {
            holder,
            offence,
            chunks: collect(count, chunks.iter().copied()),
        };
        self.0.iter().map(blame).collect()
    }

    /// Chunks for which some holder's content was in doubt.
    pub(super) fn tainted(&self, count: ChunkCount) -> ChunkSet {
        let doubtful = self.0.iter().filter(|((_, offence), _)| offence.is_integrity());
        collect(count, doubtful.flat_map(|(_, chunks)| chunks.iter().copied()))
    }
}

fn collect(count: ChunkCount, chunks: impl Iterator<Item = ChunkIndex>) -> ChunkSet {
    let mut set = ChunkSet::empty(count);
    for chunk in chunks {
        set.insert(chunk);
    }
    set
}
