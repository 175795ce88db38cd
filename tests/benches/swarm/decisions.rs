//! What a decision of the engine costs: a download of a large file from many neighbours, without a network.

use std::{hint::black_box, time::Instant};

use clap::Args;
use drizzle_engine::schedule::{Limits, Outcome, Scheduler};
use drizzle_proto::{Address, ChunkCount, ChunkIndex, ChunkSet, Labels, PeerId, PeerInfo};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use crate::{machine, median};

/// Measures what a decision of a download costs.
#[derive(Debug, Args)]
pub(crate) struct Decisions {
    /// Neighbours that have parts of the file
    #[arg(long, value_name = "N", default_value_t = 64)]
    neighbours: u8,
    /// Chunks of the file
    #[arg(long, value_name = "M", default_value_t = 100_000)]
    chunks: u32,
    /// How often everything is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// Chunks in a message of news.
const NEWS: usize = 4;

impl Decisions {
    /// Measures, and gives the table.
    pub(crate) fn measure(&self) -> String {
        let mut micros: Vec<f64> = (0..self.runs).map(|run| self.download(run as u64)).collect();
        micros.sort_by(f64::total_cmp);
        format!(
            "{}, {}; {}.\nMade by `tests/bench decisions --neighbours {} --chunks {} --runs {}`.\n\n\
             | neighbours | chunks | µs a chunk: news of it, its fetch and its end |\n|---|---|---|\n| {} | {} | {:.2} ({:.2} to {:.2}) |\n",
            machine::processor(),
            machine::cores(),
            machine::today(),
            self.neighbours,
            self.chunks,
            self.runs,
            self.neighbours,
            self.chunks,
            median(&micros).unwrap_or_default(),
            micros.first().copied().unwrap_or_default(),
            micros.last().copied().unwrap_or_default(),
        )
    }

    /// Microseconds for each chunk of a download of which every neighbour has a random half at first, and tells more
    /// while it runs.
    fn download(&self, seed: u64) -> f64 {
        let count = ChunkCount::new(self.chunks).expect("a number of chunks");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut scheduler = Scheduler::new(&ChunkSet::full(count), Limits::for_chunks_of(1 << 16));
        let neighbours: Vec<PeerInfo> = (0..self.neighbours).map(neighbour).collect();
        for neighbour in &neighbours {
            let half = count.indices().filter(|_| rng.random_bool(0.5)).fold(ChunkSet::empty(count), with);
            scheduler.holder_is(neighbour.clone(), half);
        }
        let begun = Instant::now();
        let (mut now, mut running) = (Instant::now(), Vec::new());
        while !scheduler.is_complete() {
            while let Some(fetch) = scheduler.next(now, &mut rng) {
                running.push(fetch.id);
            }
            let teller = &neighbours[rng.random_range(0..neighbours.len())];
            let news = (0..NEWS).map(|_| any(count, &mut rng)).fold(ChunkSet::empty(count), with);
            scheduler.holder_added(teller.id(), &news);
            if running.is_empty() {
                // Nobody is known to have what is left: news will come.
                continue;
            }
            let ended = running.swap_remove(rng.random_range(0..running.len()));
            now = Instant::now();
            black_box(scheduler.finished(ended, Outcome::Stored, now, &mut rng));
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(self.chunks)
    }
}

fn with(mut set: ChunkSet, chunk: ChunkIndex) -> ChunkSet {
    set.insert(chunk);
    set
}

fn any(count: ChunkCount, rng: &mut impl Rng) -> ChunkIndex {
    count.index(rng.random_range(0..count.get())).expect("below the count")
}

fn neighbour(n: u8) -> PeerInfo {
    let address = Address::new(&format!("10.0.0.{n}:7401")).expect("an address");
    PeerInfo::new(PeerId::from_bytes([n + 1; 16]), address, Labels::default())
}
