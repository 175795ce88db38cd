//! The chunks that wait to be requested, in buckets of equal rarity.
//!
//! Rarity here is relative: holders of the *whole* file are not counted, since they raise every chunk
//! alike; so a seed comes and goes without touching 262,144 chunks, and the order is the same.
//!
//! Invariant: `place` of a waiting chunk is where it stands in the bucket of its `rarity`, and `ABSENT` of
//! every other chunk. Every move is O(1).

use drizzle_proto::{ChunkCount, ChunkIndex, ChunkSet};
use rand::{Rng, RngExt};

const ABSENT: u32 = u32::MAX;

/// Where a chunk stands. Both are needed together, and of each of 262,144 chunks: so they are small, and lie together.
#[derive(Debug, Clone, Copy)]
struct Spot {
    rarity: u32,
    place: u32,
}

#[derive(Debug)]
pub(super) struct RarityOrder {
    count: ChunkCount,
    spots: Vec<Spot>,
    buckets: Vec<Vec<ChunkIndex>>,
}

/// A place in a bucket as it is kept: there are fewer than 2^32 chunks.
fn kept(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(ABSENT)
}

impl RarityOrder {
    pub(super) fn new(waiting: &ChunkSet) -> Self {
        let count = waiting.count();
        let chunks = count.get() as usize;
        let mut order = Self { count, spots: vec![Spot { rarity: 0, place: ABSENT }; chunks], buckets: Vec::new() };
        for chunk in waiting.iter() {
            order.put(chunk);
        }
        order
    }

    /// Chunks of the file.
    pub(super) fn count(&self) -> ChunkCount {
        self.count
    }

    /// Partial holders of a chunk.
    pub(super) fn rarity(&self, chunk: ChunkIndex) -> u32 {
        self.spots[chunk.as_usize()].rarity
    }

    /// Whether a chunk waits to be requested.
    pub(super) fn is_waiting(&self, chunk: ChunkIndex) -> bool {
        self.spots[chunk.as_usize()].place != ABSENT
    }

    /// One more partial holder of a chunk.
    pub(super) fn raise(&mut self, chunk: ChunkIndex) {
        self.reclassify(chunk, |rarity| rarity + 1);
    }

    /// One partial holder of a chunk fewer.
    pub(super) fn lower(&mut self, chunk: ChunkIndex) {
        debug_assert!(self.rarity(chunk) > 0, "chunk {chunk} loses a holder that was never counted");
        self.reclassify(chunk, |rarity| rarity.saturating_sub(1));
    }

    fn reclassify(&mut self, chunk: ChunkIndex, change: impl Fn(u32) -> u32) {
        let waiting = self.take(chunk);
        let rarity = &mut self.spots[chunk.as_usize()].rarity;
        *rarity = change(*rarity);
        if waiting {
            self.put(chunk);
        }
    }

    /// The chunk waits from now on.
    pub(super) fn put(&mut self, chunk: ChunkIndex) {
        debug_assert!(!self.is_waiting(chunk));
        let spot = &mut self.spots[chunk.as_usize()];
        let bucket = spot.rarity as usize;
        if self.buckets.len() <= bucket {
            self.buckets.resize_with(bucket + 1, Vec::new);
        }
        let bucket = &mut self.buckets[bucket];
        spot.place = kept(bucket.len());
        bucket.push(chunk);
    }

    /// The chunk waits no longer; whether it did.
    pub(super) fn take(&mut self, chunk: ChunkIndex) -> bool {
        let spot = &mut self.spots[chunk.as_usize()];
        let place = std::mem::replace(&mut spot.place, ABSENT);
        if place == ABSENT {
            return false;
        }
        let bucket = &mut self.buckets[spot.rarity as usize];
        bucket.swap_remove(place as usize);
        if let Some(moved) = bucket.get(place as usize) {
            self.spots[moved.as_usize()].place = place;
        }
        true
    }

    /// The lowest rarity from `least` up at which a chunk waits.
    pub(super) fn rarest_from(&self, least: u32) -> Option<u32> {
        (least..).zip(self.buckets.get(least as usize..)?).find(|(_, bucket)| !bucket.is_empty()).map(|(at, _)| at)
    }

    /// How many chunks wait at a rarity.
    pub(super) fn waiting_at(&self, rarity: u32) -> usize {
        self.buckets.get(rarity as usize).map_or(0, Vec::len)
    }

    /// The chunks that wait at a rarity.
    pub(super) fn set_at(&self, rarity: u32) -> ChunkSet {
        let mut set = ChunkSet::empty(self.count);
        for &chunk in self.buckets.get(rarity as usize).into_iter().flatten() {
            set.insert(chunk);
        }
        set
    }

    /// The `nth` chunk of a random order of those at a rarity. Drawing with `nth` = 0, 1, 2.. gives
    /// each chunk at most once (Fisher and Yates' shuffle, as far as it is needed); nothing else may
    /// change the order in between.
    pub(super) fn draw(&mut self, rarity: u32, nth: usize, rng: &mut (impl Rng + ?Sized)) -> Option<ChunkIndex> {
        let bucket = self.buckets.get_mut(rarity as usize)?;
        if nth >= bucket.len() {
            return None;
        }
        let other = rng.random_range(nth..bucket.len());
        bucket.swap(nth, other);
        self.spots[bucket[nth].as_usize()].place = kept(nth);
        self.spots[bucket[other].as_usize()].place = kept(other);
        Some(bucket[nth])
    }
}
