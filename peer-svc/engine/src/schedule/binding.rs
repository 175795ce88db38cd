//! Late binding: a fetch that leaves its holder the choice among equally rare chunks.
//!
//! The only holder of the whole file knows what it has promised to others, and a peer does not; so it is asked for a
//! chunk *or any of its alternatives*, and names the one that it sends by its first message. Until then the fetch is
//! *open*. Peers with a part of the file are asked for one chunk: what they have is already out, and leaving them the
//! choice makes peers collide.
//!
//! What holds (the property test of the scheduler checks it):
//! - alternatives are chunks as rare as the one asked for that wait, or are asked for by another open fetch of the same
//!   holder; each is named once, the chunk itself not, and there are no more than [`MOST_ALTERNATIVES`];
//! - only a fetch from the only known holder of the whole file has any, and only if it is no second copy, and no part of
//!   its chunk is here;
//! - a chunk that the holder chose is in flight with that fetch alone, or the fetch is not wanted.

use drizzle_proto::ChunkIndex;
use rand::Rng;

use super::{
    FetchId, Scheduler,
    holders::{Held, Key},
};

/// Most alternatives of one fetch: a request stays within a few KiB.
pub const MOST_ALTERNATIVES: usize = 600;
/// So many of the class are named whole; of more, a random part. Each one named costs time at both ends, which small chunks
/// feel. (Simulated, with 2,048 or 4,096 chunks, 8 to 24 peers and links of 25 or 1,000 Mbit/s: with a part of 64 the same
/// times and copies from the source as with 256.)
const WHOLE_CLASS: usize = 512;
const PART_OF_CLASS: usize = 64;

/// What becomes of a fetch whose holder has chosen its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// It brings the chunk that the holder chose.
    GoesOn,
    /// That chunk is here, or comes with another fetch: end this one.
    NotWanted,
}

impl Scheduler {
    /// The holder of this fetch has chosen the chunk that it sends, which was asked for or among the alternatives.
    /// Nothing changes for a fetch that is not open any more, or not in flight.
    pub fn bound(&mut self, id: FetchId, chunk: ChunkIndex) -> Bound {
        let Some(flight) = self.flights.get_mut(id) else { return Bound::NotWanted };
        let (left, holder) = (flight.chunk, flight.holder);
        if !std::mem::take(&mut flight.is_open) || left == chunk {
            return if left == chunk { Bound::GoesOn } else { Bound::NotWanted };
        }
        if !self.missing.contains(chunk) || self.holders.get(holder).has_denied(chunk) {
            return Bound::NotWanted;
        }
        if self.order.take(chunk) {
            self.move_to(id, chunk);
            // A copy of what it leaves may be in flight elsewhere.
            if self.missing.contains(left) {
                self.give_back(left);
            }
            return Bound::GoesOn;
        }
        let sole = |chunk| self.copies_of(chunk).count() == 1;
        let other = self.copies_of(chunk).find(|(_, other)| other.is_open && other.holder == holder);
        let other = other.map(|(other, _)| other).filter(|_| sole(chunk) && sole(left) && self.missing.contains(left));
        let Some(other) = other else { return Bound::NotWanted };
        self.move_to(id, chunk);
        self.move_to(other, left);
        Bound::GoesOn
    }

    /// The chunk that a fetch is for at present; `None` if it is not in flight.
    pub fn chunk(&self, id: FetchId) -> Option<ChunkIndex> {
        self.flights.get(id).map(|flight| flight.chunk)
    }

    fn move_to(&mut self, id: FetchId, chunk: ChunkIndex) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.chunk = chunk;
        }
    }

    /// What a holder may send in place of a chunk that was just picked and does not wait any more.
    pub(super) fn alternatives(
        &mut self,
        chunk: ChunkIndex,
        holder: Key,
        rng: &mut (impl Rng + ?Sized),
    ) -> Vec<ChunkIndex> {
        if self.holders.seeds() != 1 || !matches!(self.holders.get(holder).held, Held::All) {
            return Vec::new();
        }
        let rarity = self.order.rarity(chunk);
        let class = self.order.waiting_at(rarity);
        let most = if class <= WHOLE_CLASS { class } else { PART_OF_CLASS };
        let order = &mut self.order;
        let waiting: Vec<_> = (0..most).filter_map(|nth| order.draw(rarity, nth, rng)).collect();
        let open = self.flights.values().filter(|flight| flight.is_open && flight.holder == holder);
        waiting.into_iter().chain(open.map(|flight| flight.chunk)).take(MOST_ALTERNATIVES).collect()
    }
}
