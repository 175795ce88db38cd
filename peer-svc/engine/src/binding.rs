//! Which chunk a holder of the whole file sends, where the requester leaves the choice: see [`crate::schedule`].
//!
//! A source that sends each chunk once before any twice brings its peers what they can pass on to each other. Each peer
//! alone cannot see to that, for it does not know what others were promised a moment ago.
//!
//! What holds (each line has a test):
//! - the chunk chosen is the one asked for or an alternative;
//! - of these it is one that was sent or is being sent least often, and all such are equally likely;
//! - a chunk that broke off does not count as sent;
//! - however many files are served, no more than [`REMEMBERED`] are remembered, those served last.

use std::collections::BTreeMap;

use drizzle_proto::{ChunkCount, ChunkIndex, FileId};
use rand::{Rng, seq::IteratorRandom};

/// Files whose counts are kept: two bytes for each of their chunks.
pub const REMEMBERED: usize = 16;

/// How often each chunk was sent or is being sent.
#[derive(Debug, Default)]
pub struct Sent {
    files: BTreeMap<FileId, Counts>,
    uses: u64,
}

#[derive(Debug)]
struct Counts {
    times: Vec<u16>,
    last_use: u64,
}

impl Sent {
    /// Chooses among a chunk and its alternatives, and counts the one chosen.
    pub fn choose(
        &mut self,
        file: FileId,
        count: ChunkCount,
        asked: ChunkIndex,
        alternatives: &[ChunkIndex],
        rng: &mut (impl Rng + ?Sized),
    ) -> ChunkIndex {
        self.uses += 1;
        if !self.files.contains_key(&file) && self.files.len() >= REMEMBERED {
            let oldest = self.files.iter().min_by_key(|(_, counts)| counts.last_use).map(|(file, _)| *file);
            oldest.map(|oldest| self.files.remove(&oldest));
        }
        let chunks = count.get() as usize;
        let counts = self.files.entry(file).or_insert_with(|| Counts { times: vec![0; chunks], last_use: 0 });
        counts.last_use = self.uses;
        let times = |chunk: ChunkIndex| counts.times.get(chunk.as_usize()).copied().unwrap_or(u16::MAX);
        let all = || alternatives.iter().copied().chain([asked]);
        let least = all().map(times).min().unwrap_or(0);
        let chosen = all().filter(|chunk| times(*chunk) == least).choose(rng).unwrap_or(asked);
        if let Some(times) = counts.times.get_mut(chosen.as_usize()) {
            *times = times.saturating_add(1);
        }
        chosen
    }

    /// A chunk that was chosen did not reach its receiver whole.
    pub fn broke_off(&mut self, file: FileId, chunk: ChunkIndex) {
        if let Some(times) = self.files.get_mut(&file).and_then(|counts| counts.times.get_mut(chunk.as_usize())) {
            *times = times.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::Digest;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn file(n: u32) -> FileId {
        FileId::from_digest(Digest::of(&n.to_le_bytes()))
    }

    fn count() -> ChunkCount {
        ChunkCount::new(16).unwrap()
    }

    fn index(chunk: u32) -> ChunkIndex {
        count().index(chunk).unwrap()
    }

    #[test]
    fn ties_are_equally_likely() {
        let mut times = [0; 4];
        for seed in 0..4000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let others = [1, 2, 3].map(index);
            times[Sent::default().choose(file(0), count(), index(0), &others, &mut rng).as_usize()] += 1;
        }
        // 1,000 expected each, standard deviation 27.
        assert!(times.iter().all(|times| (880..1120).contains(times)), "{times:?}");
    }

    #[test]
    fn few_files_are_remembered_the_last_ones() {
        let (mut sent, mut rng) = (Sent::default(), StdRng::seed_from_u64(1));
        for n in 0..100 {
            sent.choose(file(n), count(), index(0), &[], &mut rng);
            sent.choose(file(0), count(), index(0), &[], &mut rng);
            assert!(sent.files.len() <= REMEMBERED);
        }
        assert!(sent.files.contains_key(&file(99)) && sent.files.contains_key(&file(0)));
        assert!(!sent.files.contains_key(&file(1)));
    }

    proptest! {
        #[test]
        fn the_least_sent_goes_first(
            seed in any::<u64>(),
            requests in proptest::collection::vec((0u32..16, proptest::collection::btree_set(0u32..16, 0..16), any::<bool>()), 1..100),
        ) {
            let (mut sent, mut rng, mut model) = (Sent::default(), StdRng::seed_from_u64(seed), [0; 16]);
            for (asked, others, breaks_off) in requests {
                let alternatives: Vec<_> = others.iter().map(|chunk| index(*chunk)).collect();
                let chosen = sent.choose(file(0), count(), index(asked), &alternatives, &mut rng);
                prop_assert!(chosen.get() == asked || others.contains(&chosen.get()));
                let least = others.iter().chain([&asked]).map(|chunk| model[*chunk as usize]).min();
                prop_assert_eq!(Some(model[chosen.as_usize()]), least);
                if breaks_off {
                    sent.broke_off(file(0), chosen);
                } else {
                    model[chosen.as_usize()] += 1;
                }
            }
        }
    }
}
