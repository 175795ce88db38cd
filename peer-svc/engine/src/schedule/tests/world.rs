//! Whole downloads among holders of every kind, on a virtual clock that jumps from event to event.

use proptest::prelude::*;
use rand::RngExt;

use super::*;

/// How a holder behaves.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Serves, but has only some upload slots, of which others take some at times.
    Honest { slots: usize, chunk_ms: u32 },
    /// Claims all and has nothing.
    Liar,
    /// Serves wrong bytes, every second time.
    Forger,
    /// Accepts and sends nothing.
    Staller,
    /// Breaks off most of the time, and leaves and returns meanwhile.
    Vanisher,
}

/// The stall limit of the caller.
const STALL: Duration = Duration::from_secs(3);
/// Fetches after which a download that is not done is held to be stuck.
const FAR_TOO_MANY: usize = 20_000;

struct World {
    bench: Bench,
    chunks: u32,
    kinds: Vec<Kind>,
    /// Fetches in flight and how they will end.
    pending: Vec<(Instant, Fetch, Outcome)>,
    started: usize,
}

impl World {
    fn new(chunks: u32, kinds: Vec<Kind>, seed: u64) -> Self {
        let mut bench = Bench::new(chunks, limits(8, 4), &[]);
        bench.rng = rng(seed);
        for holder in (0..).take(kinds.len()) {
            bench.scheduler.holder_is(info(holder), full(chunks));
        }
        Self { bench, chunks, kinds, pending: Vec::new(), started: 0 }
    }

    fn answer(&mut self, fetch: &Fetch) -> (Duration, Outcome) {
        let kind = self.kinds[usize::from(fetch.holder.id().as_bytes()[0])];
        let load = self.pending.iter().filter(|(_, other, _)| other.holder == fetch.holder).count();
        let rng = &mut self.bench.rng;
        match kind {
            Kind::Honest { slots, .. } if load >= rng.random_range(0..=slots) => (MS, Outcome::Busy),
            Kind::Honest { chunk_ms, .. } => (chunk_ms * MS, Outcome::Stored),
            Kind::Liar => (MS, Outcome::Failed(Offence::NotHeld)),
            Kind::Forger if rng.random() => (20 * MS, Outcome::Failed(Offence::WrongBytes)),
            Kind::Forger => (20 * MS, Outcome::Stored),
            Kind::Staller => (STALL, Outcome::Failed(Offence::Stalled)),
            Kind::Vanisher => match rng.random_range(0..4) {
                0 => (20 * MS, Outcome::Stored),
                1 => (MS, Outcome::Failed(Offence::Unreachable)),
                _ => (15 * MS, Outcome::Failed(Offence::BrokeOff)),
            },
        }
    }

    fn start_fetches(&mut self) {
        while let Some(fetch) = self.bench.next() {
            self.started += 1;
            let (after, outcome) = self.answer(&fetch);
            self.pending.push((self.bench.now + after, fetch, outcome));
        }
    }

    fn step(&mut self) {
        let done = self.pending.iter().map(|&(at, ..)| at).min();
        let wake = self.bench.scheduler.wake_at(self.bench.now);
        self.bench.now = done.into_iter().chain(wake).min().expect("nothing runs, nothing to wait for: stuck");
        let now = self.bench.now;
        if let Some(at) = self.pending.iter().position(|&(at, ..)| at <= now) {
            let (_, fetch, outcome) = self.pending.swap_remove(at);
            if matches!(self.kinds[usize::from(fetch.holder.id().as_bytes()[0])], Kind::Vanisher) {
                self.bench.scheduler.holder_gone(fetch.holder.id());
            }
            for loser in self.bench.end(&fetch, outcome) {
                let at = self.pending.iter().position(|(_, other, _)| other.id == loser).expect("in flight");
                let (_, loser, _) = self.pending.swap_remove(at);
                self.bench.end(&loser, Outcome::Cancelled);
            }
        }
        // A holder that left comes back sooner or later.
        for holder in (0..).take(self.kinds.len()) {
            if self.bench.rng.random_ratio(1, 8) {
                self.bench.scheduler.holder_added(peer(holder), &full(self.chunks));
            }
        }
    }

    fn run(mut self) -> Self {
        self.start_fetches();
        while !self.bench.scheduler.is_complete() {
            self.step();
            self.start_fetches();
            assert!(self.started < FAR_TOO_MANY, "{} still missing", self.bench.scheduler.missing().len());
        }
        assert_eq!(self.bench.scheduler.in_flight(), self.pending.len());
        self
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (1usize..5, 1u32..400).prop_map(|(slots, chunk_ms)| Kind::Honest { slots, chunk_ms }),
        Just(Kind::Liar),
        Just(Kind::Forger),
        Just(Kind::Staller),
        Just(Kind::Vanisher),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn one_honest_holder_is_enough(
        seed in any::<u64>(),
        chunks in 1u32..80,
        slots in 1usize..5,
        mut others in proptest::collection::vec(kinds(), 0..8),
    ) {
        others.push(Kind::Honest { slots, chunk_ms: 50 });
        World::new(chunks, others, seed).run();
    }
}

#[test]
fn bad_holders_cost_few_fetches() {
    let mut kinds = vec![Kind::Honest { slots: 4, chunk_ms: 20 }; 2];
    kinds.extend([Kind::Liar, Kind::Forger, Kind::Staller, Kind::Vanisher]);
    let world = World::new(500, kinds, 3).run();
    let failed: u32 = world.bench.scheduler.blame().iter().map(|blame| blame.chunks.len()).sum();
    assert!((4..100).contains(&failed), "{failed} failed fetches for 500 chunks");
    let blamed: BTreeSet<_> = world.bench.scheduler.blame().iter().map(|blame| blame.holder).collect();
    assert_eq!(blamed, (2..6).map(peer).collect(), "exactly the bad ones are named");
}

/// One good holder and some that accept and never answer: the good one does all the work, and does not idle at the end.
#[test]
fn silent_holders_hardly_hold_up_a_good_one() {
    for (silent, chunks) in [(6, 100), (12, 100), (6, 500)] {
        let mut slowest = Duration::ZERO;
        for seed in 0..20 {
            let mut kinds = vec![Kind::Honest { slots: 8, chunk_ms: 50 }];
            kinds.extend(vec![Kind::Staller; silent]);
            let world = World::new(chunks, kinds, seed);
            let start = world.bench.now;
            slowest = slowest.max(world.run().bench.now - start);
        }
        // Alone, with one stream, it needs this long.
        let alone = 50 * MS * chunks;
        assert!(slowest < 2 * alone + 2 * STALL, "{silent} silent holders: {slowest:?}, alone {alone:?}");
    }
}
