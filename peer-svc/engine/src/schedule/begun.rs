//! Chunks of which a part is kept after their fetch broke off. They go first: a part takes memory, is lost at a kill, and
//! nobody else can have it.

use std::collections::BTreeSet;

use drizzle_proto::ChunkIndex;
use rand::Rng;

use super::{
    Offence, Outcome,
    flight::Flight,
    holders::{Holders, Key},
    rarity::RarityOrder,
};

/// No more are remembered: looking at them must cost little, and the memory for parts is bounded, too.
const MOST: usize = 64;

/// The missing chunks that have begun, in flight or not.
#[derive(Debug, Default)]
pub(super) struct Begun(BTreeSet<ChunkIndex>);

impl Begun {
    /// A fetch of a chunk has ended.
    pub(super) fn ended(&mut self, flight: &Flight, outcome: Outcome) {
        match outcome {
            Outcome::Stored | Outcome::Failed(Offence::WrongBytes) => _ = self.0.remove(&flight.chunk),
            _ if flight.had.is_some_and(|(_, had, _)| had > 0) && self.0.len() < MOST => {
                self.0.insert(flight.chunk);
            }
            _ => {}
        }
    }

    /// Whether a part of a chunk is kept.
    pub(super) fn contains(&self, chunk: ChunkIndex) -> bool {
        self.0.contains(&chunk)
    }

    /// One that waits and that an available holder has.
    pub(super) fn pick(
        &self,
        order: &RarityOrder,
        holders: &Holders,
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<(ChunkIndex, Key)> {
        let mut waiting = self.0.iter().copied().filter(|&chunk| order.is_waiting(chunk)).peekable();
        waiting.peek()?;
        let available = holders.candidates(u32::MAX);
        waiting.find_map(|chunk| Some((chunk, available.pick(chunk, holders, rng)?)))
    }
}

#[cfg(test)]
impl Begun {
    /// None is kept for a chunk that is stored.
    pub(super) fn check(&self, missing: &drizzle_proto::ChunkSet) {
        assert!(self.0.iter().all(|&chunk| missing.contains(chunk)), "{:?} of {}", self.0, missing.ranges());
    }
}
