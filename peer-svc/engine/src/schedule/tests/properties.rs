//! The invariants of the module header, checked against a plain model under random events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CHUNKS: u32 = 10;
const HOLDERS: u8 = 5;

#[derive(Debug, Clone)]
enum Event {
    Is(u8, u16),
    Added(u8, u16),
    Gone(u8),
    Next,
    NextUntilNone,
    /// So many of 1000 bytes are here of the nth fetch in flight.
    Moved(usize, u32),
    /// The nth fetch in flight ends.
    End(usize, Outcome),
    /// The holder of the nth fetch in flight names a chunk: the one asked for, or one of the alternatives.
    Bind(usize, prop::sample::Index),
    /// A chunk that was taken to be stored is not.
    Lost(u32),
    Pass(u64),
    /// To just before, or exactly, the announced wake-up.
    Wake(bool),
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    let offences = proptest::sample::select(&Offence::ALL[..]);
    prop_oneof![
        4 => Just(Outcome::Stored),
        2 => Just(Outcome::Busy),
        1 => Just(Outcome::Cancelled),
        1 => Just(Outcome::Unasked),
        2 => offences.prop_map(Outcome::Failed),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    let bits = prop_oneof![2 => any::<u16>(), 1 => Just(u16::MAX)];
    prop_oneof![
        2 => (0..HOLDERS, bits).prop_map(|(holder, bits)| Event::Is(holder, bits)),
        2 => (0..HOLDERS, any::<u16>()).prop_map(|(holder, bits)| Event::Added(holder, bits)),
        1 => (0..HOLDERS).prop_map(Event::Gone),
        3 => Just(Event::Next),
        3 => Just(Event::NextUntilNone),
        2 => (any::<prop::sample::Index>(), 0u32..=1000).prop_map(|(nth, had)| Event::Moved(nth.index(64), had)),
        5 => (any::<prop::sample::Index>(), outcomes()).prop_map(|(nth, outcome)| Event::End(nth.index(64), outcome)),
        4 => (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(nth, named)| Event::Bind(nth.index(64), named)),
        1 => (0..CHUNKS).prop_map(Event::Lost),
        2 => (0u64..3000).prop_map(Event::Pass),
        2 => any::<bool>().prop_map(Event::Wake),
    ]
}

fn bits(bits: u16) -> ChunkSet {
    some(CHUNKS, (0..CHUNKS).filter(|chunk| bits >> chunk & 1 == 1))
}

/// What must be true, kept the simplest way.
struct Model {
    bench: Bench,
    limits: Limits,
    /// Holders whose address is known; chunks of others cannot be asked for.
    described: BTreeSet<PeerId>,
    held: BTreeMap<PeerId, ChunkSet>,
    denied: BTreeSet<(PeerId, ChunkIndex)>,
    stored: ChunkSet,
    /// With the chunk that each is for at present.
    flights: Vec<Fetch>,
    open: BTreeSet<FetchId>,
    /// Bytes that came of a fetch, as far as they count.
    had: BTreeMap<FetchId, u32>,
    /// Chunks of which a part is kept.
    begun: BTreeSet<ChunkIndex>,
}

impl Model {
    fn load(&self, holder: PeerId) -> usize {
        self.flights.iter().filter(|fetch| fetch.holder.id() == holder).count()
    }

    fn copies(&self, chunk: ChunkIndex) -> usize {
        self.flights.iter().filter(|fetch| fetch.chunk == chunk).count()
    }

    fn rarity(&self, chunk: ChunkIndex) -> usize {
        self.held.values().filter(|held| held.contains(chunk)).count()
    }

    fn waiting(&self) -> Vec<ChunkIndex> {
        let chunks = count(CHUNKS).indices();
        chunks.filter(|&chunk| !self.stored.contains(chunk) && self.copies(chunk) == 0).collect()
    }

    /// Holders that could be asked for a chunk now, by the scheduler's own view of their conduct.
    fn able(&self, chunk: ChunkIndex) -> Vec<PeerId> {
        let able = |&(holder, held): &(&PeerId, &ChunkSet)| {
            let holders = &self.bench.scheduler.holders;
            let room = holders.find(*holder).map_or(0, |key| holders.get(key).conduct.room());
            held.contains(chunk) && self.load(*holder) < room
        };
        self.held.iter().filter(able).map(|(&holder, _)| holder).collect()
    }

    /// Whether it is the only holder of the whole file. One that came to have all of it chunk by chunk is not taken for one.
    fn is_only_source(&self, holder: PeerId) -> bool {
        let holders = &self.bench.scheduler.holders;
        let key = holders.find(holder).expect("it is known");
        holders.seeds() == 1 && matches!(holders.get(key).held, Held::All)
    }

    fn tell(&mut self, holder: u8, chunks: &ChunkSet) {
        let denied = self.denied.iter().filter(|(denied, _)| *denied == peer(holder)).map(|&(_, chunk)| chunk);
        let mut chunks = chunks.clone();
        denied.for_each(|chunk| _ = chunks.remove(chunk));
        self.held.entry(peer(holder)).or_insert_with(|| bits(0)).union_with(&chunks);
    }

    fn next(&mut self) -> Option<Fetch> {
        let fetch = self.bench.next();
        let waiting = self.waiting();
        let Some(fetch) = fetch else {
            if self.flights.len() < self.limits.in_flight {
                let idle = waiting.iter().find(|&&chunk| !self.able(chunk).is_empty());
                assert_eq!(idle, None, "a chunk could have been asked for");
            }
            return None;
        };
        let able = self.able(fetch.chunk);
        assert!(!self.stored.contains(fetch.chunk), "stored already");
        assert!(able.contains(&fetch.holder.id()), "{} is not able", fetch.holder.id());
        let others: Vec<_> = able.iter().filter(|&&holder| !self.is_only_source(holder)).copied().collect();
        let least = if others.is_empty() { &able } else { &others }.iter().map(|&holder| self.load(holder)).min();
        if waiting.contains(&fetch.chunk) {
            let begun: Vec<_> = waiting.iter().filter(|&chunk| self.begun.contains(chunk)).copied().collect();
            let is_begun = begun.contains(&fetch.chunk);
            assert!(is_begun || begun.iter().all(|&chunk| self.able(chunk).is_empty()), "one that has begun waits");
            let rarest = waiting.iter().filter(|&&chunk| !self.able(chunk).is_empty()).map(|&chunk| self.rarity(chunk));
            assert!(is_begun || rarest.min() == Some(self.rarity(fetch.chunk)), "not the rarest");
            assert_eq!(least, Some(self.load(fetch.holder.id())), "not the least loaded");
            assert!(others.is_empty() || !self.is_only_source(fetch.holder.id()), "the only source is not spared");
        } else {
            assert!(waiting.iter().all(|&chunk| self.rarity(chunk) == 0), "a copy before the endgame");
            assert_eq!(self.copies(fetch.chunk), 1, "a third copy");
            assert!(
                self.flights.iter().all(|other| (other.chunk, other.holder.id()) != (fetch.chunk, fetch.holder.id()))
            );
        }
        self.check_alternatives(&fetch, &waiting);
        if !fetch.alternatives.is_empty() {
            self.open.insert(fetch.id);
        }
        self.flights.push(fetch.clone());
        assert!(self.flights.len() <= self.limits.in_flight);
        assert!(self.load(fetch.holder.id()) <= self.limits.per_holder);
        Some(fetch)
    }

    fn check_alternatives(&self, fetch: &Fetch, waiting: &[ChunkIndex]) {
        let sole = self.is_only_source(fetch.holder.id());
        if !waiting.contains(&fetch.chunk) || !sole || self.begun.contains(&fetch.chunk) {
            assert_eq!(fetch.alternatives, [], "nothing to choose");
            return;
        }
        let as_rare = |chunk: &ChunkIndex| *chunk != fetch.chunk && self.rarity(*chunk) == self.rarity(fetch.chunk);
        let open = self.flights.iter().filter(|other| other.holder == fetch.holder && self.open.contains(&other.id));
        let mut expected: Vec<_> =
            waiting.iter().copied().filter(as_rare).chain(open.map(|other| other.chunk)).collect();
        expected.sort_unstable();
        let mut alternatives = fetch.alternatives.clone();
        alternatives.sort_unstable();
        assert_eq!(alternatives, expected);
    }

    fn bind(&mut self, nth: usize, named: prop::sample::Index) {
        if self.flights.is_empty() {
            return;
        }
        let nth = nth % self.flights.len();
        let fetch = self.flights[nth].clone();
        let chunk = *named.get(&[&fetch.alternatives[..], &[fetch.chunk]].concat());
        let was_open = self.open.remove(&fetch.id);
        let bound = self.bench.scheduler.bound(fetch.id, chunk);
        if chunk == fetch.chunk {
            assert_eq!(bound, Bound::GoesOn);
            return;
        }
        let taken = self.flights.iter().position(|other| other.chunk == chunk);
        let is_denied = self.denied.contains(&(fetch.holder.id(), chunk));
        if !was_open || self.stored.contains(chunk) || is_denied {
            assert_eq!(bound, Bound::NotWanted);
        } else if let Some(other) = taken {
            let swaps = self.copies(chunk) == 1
                && self.copies(fetch.chunk) == 1
                && !self.stored.contains(fetch.chunk)
                && self.open.contains(&self.flights[other].id)
                && self.flights[other].holder.id() == fetch.holder.id();
            assert_eq!(bound == Bound::GoesOn, swaps);
            if swaps {
                self.flights[other].chunk = fetch.chunk;
                self.flights[nth].chunk = chunk;
            }
        } else {
            assert_eq!(bound, Bound::GoesOn);
            self.flights[nth].chunk = chunk;
        }
    }

    fn end(&mut self, nth: usize, outcome: Outcome) {
        if self.flights.is_empty() {
            return;
        }
        let fetch = self.flights.swap_remove(nth % self.flights.len());
        self.open.remove(&fetch.id);
        let losers = self.bench.end(&fetch, outcome);
        if matches!(outcome, Outcome::Stored | Outcome::Failed(Offence::WrongBytes)) {
            self.begun.remove(&fetch.chunk);
        } else if self.had.remove(&fetch.id).is_some_and(|had| had > 0) && !self.stored.contains(fetch.chunk) {
            self.begun.insert(fetch.chunk);
        }
        let mut expected = Vec::new();
        match outcome {
            Outcome::Stored => {
                self.stored.insert(fetch.chunk);
                expected.extend(self.flights.iter().filter(|other| other.chunk == fetch.chunk).map(|other| other.id));
            }
            Outcome::Failed(offence) => {
                if matches!(offence, Offence::WrongBytes | Offence::Changed | Offence::NotHeld | Offence::Gone) {
                    self.held.get_mut(&fetch.holder.id()).map(|held| held.remove(fetch.chunk));
                }
                if offence == Offence::WrongBytes {
                    self.denied.insert((fetch.holder.id(), fetch.chunk));
                }
                let blame = self.bench.scheduler.blame();
                let names =
                    |b: &Blame| b.holder == fetch.holder.id() && b.offence == offence && b.chunks.contains(fetch.chunk);
                assert!(blame.iter().any(names));
            }
            Outcome::Busy | Outcome::Unasked | Outcome::Cancelled => {}
        }
        assert_eq!(losers, expected);
        assert_eq!(self.bench.end(&fetch, Outcome::Stored), [], "finishing twice must change nothing");
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Is(holder, is) => {
                self.bench.scheduler.holder_is(info(holder), bits(is));
                self.described.insert(peer(holder));
                self.held.insert(peer(holder), bits(0));
                self.tell(holder, &bits(is));
            }
            Event::Added(holder, more) => {
                self.bench.scheduler.holder_added(peer(holder), &bits(more));
                if self.described.contains(&peer(holder)) {
                    self.tell(holder, &bits(more));
                }
            }
            Event::Gone(holder) => {
                self.bench.scheduler.holder_gone(peer(holder));
                self.held.remove(&peer(holder));
            }
            Event::Next => _ = self.next(),
            Event::NextUntilNone => while self.next().is_some() {},
            Event::Moved(nth, had) if !self.flights.is_empty() => {
                let id = self.flights[nth % self.flights.len()].id;
                self.bench.scheduler.moved(id, had, 1000, self.bench.now);
                let most = self.had.entry(id).or_insert(had);
                if had >= *most + 256 || had == 1000 {
                    *most = had;
                }
            }
            Event::Moved(..) => {}
            Event::End(nth, outcome) => self.end(nth, outcome),
            Event::Bind(nth, named) => self.bind(nth, named),
            Event::Lost(chunk) => {
                let chunk = count(CHUNKS).index(chunk).unwrap();
                self.bench.scheduler.lost(chunk);
                self.stored.remove(chunk);
            }
            Event::Pass(ms) => self.bench.now += Duration::from_millis(ms),
            Event::Wake(exactly) => {
                while self.next().is_some() {}
                let wake = self.bench.scheduler.wake_at(self.bench.now);
                assert!(wake.is_none_or(|wake| wake > self.bench.now));
                let before = wake.map_or(self.bench.now + 3_600_000 * MS, |wake| wake - Duration::from_nanos(1));
                self.bench.now = before;
                assert_eq!(self.next(), None, "woken too late");
                self.bench.now = wake.filter(|_| exactly).unwrap_or(before);
            }
        }
    }

    fn check(&self) {
        let scheduler = &self.bench.scheduler;
        assert_eq!(scheduler.missing(), &full(CHUNKS).difference(&self.stored));
        assert_eq!(scheduler.in_flight(), self.flights.len());
        let waiting: ChunkSet = some(CHUNKS, self.waiting().into_iter().map(ChunkIndex::get));
        for chunk in count(CHUNKS).indices() {
            assert_eq!(scheduler.order.is_waiting(chunk), waiting.contains(chunk), "waiting: {chunk}");
        }
        let unheld = some(CHUNKS, waiting.iter().filter(|&chunk| self.rarity(chunk) == 0).map(ChunkIndex::get));
        assert_eq!(scheduler.supply(self.bench.now).unheld, unheld);
        for fetch in &self.flights {
            assert_eq!(scheduler.chunk(fetch.id), Some(fetch.chunk));
        }
        scheduler.holders.check(&scheduler.order, &waiting);
        self.check_picture(&waiting);
        scheduler.begun.check(scheduler.missing());
    }

    /// What is kept for a quick look, looked up chunk by chunk.
    fn check_picture(&self, waiting: &ChunkSet) {
        let scheduler = &self.bench.scheduler;
        let picture = scheduler.picture(self.bench.now);
        let in_parts =
            |chunk| scheduler.holders.iter().any(|h| matches!(&h.held, Held::Part(held) if held.contains(chunk)));
        let also_partial = waiting.iter().filter(|&chunk| in_parts(chunk)).count();
        assert_eq!(picture.only_full, waiting.iter().count() - also_partial);
        assert_eq!(picture.also_partial, also_partial > 0);
        let asked = scheduler.flights.values().filter(|flight| !flight.held_back).count();
        assert_eq!(picture.full.fetches + picture.partial.fetches, asked);
        for side in [picture.full, picture.partial] {
            assert!(side.shut <= side.refusing && side.refusing <= side.able, "{side:?}");
        }
        let full = |h: &&holders::Holder| matches!(h.held, Held::All) && !h.conduct.is_avoided(self.bench.now);
        assert_eq!(picture.full.able, scheduler.holders.iter().filter(full).count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_under_random_events(
        seed in any::<u64>(),
        in_flight in 1usize..7,
        per_holder in 1usize..4,
        events in proptest::collection::vec(events(), 1..120),
    ) {
        let limits = limits(in_flight, per_holder);
        let mut bench = Bench::new(CHUNKS, limits, &[]);
        bench.rng = rng(seed);
        let (held, denied) = (BTreeMap::new(), BTreeSet::new());
        let described = BTreeSet::new();
        let (flights, had, begun) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        let mut model = Model { bench, limits, described, held, denied, stored: bits(0), flights, open: BTreeSet::new(), had, begun };
        for event in events {
            model.apply(event);
            model.check();
        }
    }
}
