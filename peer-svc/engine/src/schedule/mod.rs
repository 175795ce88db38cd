//! Which chunk to fetch next, and from whom: the pure scheduler of one download.
//!
//! Events go in (which holder has what, how a fetch ended), fetches come out. The daemon drives it with tokio,
//! tests drive it with a virtual clock. The policy and its measurements are in the swarm engine's
//! design: rarest first with random ties, a random holder among the least loaded, the only source where no other holder
//! has room, few streams per holder, a second copy only at the very end.
//!
//! What holds at all times (the tests of this module check each line under random events):
//! - no more fetches run than [`Limits`] allows, whole and per holder, but for as many more as were allowed because holders are far (`room.rs`);
//! - a chunk is asked only of a holder that is known to have it, is not resting (busy or avoided), and
//!   never gave wrong bytes for this very chunk;
//! - a stored chunk is never asked for again, unless it turns out to be lost;
//! - a chunk of which a part is kept goes before those that have not begun; of these the one picked is of minimal rarity
//!   among those that some available holder has;
//! - a chunk is in flight at most twice, at two holders, and the second copy is asked for only when
//!   every chunk that some holder has is already requested;
//! - the only holder of the whole file is asked for a chunk only where no other available holder has it;
//! - each missing chunk is either waiting in the rarity order or in flight;
//! - what a fetch may bring in place of its chunk is told in `binding.rs`.
//!
//! **Rarity** counts every known holder of the chunk, avoided or not: an avoided holder's copy still
//! exists in the swarm, and a penalty that begins or ends must not reorder 262,144 chunks. (A chunk that
//! a holder turned out not to have is taken off that holder and no longer counts.) Copies in flight here
//! count by taking the chunk out of the order altogether; between second copies they count as one.
//!
//! It never reads a clock, draws from a global random source, touches a file or a connection, or knows
//! about messages of the wire. It does not know its own peer: its caller leaves that one out.

mod begun;
mod binding;
mod conduct;
mod flight;
mod holders;
mod offence;
mod picture;
mod rarity;
mod room;
mod standing;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use drizzle_proto::{ChunkIndex, ChunkSet, PeerId, PeerInfo};
use rand::{Rng, seq::IndexedRandom};

use self::{
    begun::Begun,
    flight::{Flight, Flights},
    holders::{Held, Holders, Key},
    offence::Ledger,
    rarity::RarityOrder,
};

pub use self::{
    binding::{Bound, MOST_ALTERNATIVES},
    offence::{Blame, Offence},
    picture::{Picture, Side},
    standing::{Holds, Standing, State},
};

/// Bytes of small chunks that are fetched at once.
const IN_FLIGHT: u32 = 2 << 20;
/// Above this size fewer are: each takes room in memory.
const HUGE: u32 = 1 << 20;

/// A chunk is scarce that so many peers have at most.
const SCARCE: u32 = 1;

/// How much may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Fetches of the whole download, second copies included; at least 1.
    pub in_flight: usize,
    /// Fetches at one holder; at least 1.
    pub per_holder: usize,
}

impl Limits {
    /// For chunks of so many bytes: 8 to 24, of small ones the most, which hide the round trips between them. (With 16 of
    /// 64 KiB, 16 peers at 12.5 Mbit/s took 1.13 times the bound, with 24 of them 1.11, with 32 1.12.)
    pub fn for_chunks_of(size: u32) -> Self {
        let in_flight = (IN_FLIGHT / size.max(1)).clamp(if size > HUGE { 8 } else { 12 }, 24) as usize;
        Self { in_flight, per_holder: in_flight / 2 }
    }
}

/// Names one fetch for as long as the scheduler lives; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(u64);

/// An assignment: ask this holder for this chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Names this fetch to [`Scheduler::finished`] and its like.
    pub id: FetchId,
    /// What to ask for.
    pub chunk: ChunkIndex,
    /// What the holder may send in its place: see [`Scheduler::bound`]. None for most holders.
    pub alternatives: Vec<ChunkIndex>,
    /// The peer to ask.
    pub holder: PeerInfo,
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The chunk was verified and written.
    Stored,
    /// The holder has no free upload slot.
    Busy,
    /// The holder did something wrong.
    Failed(Offence),
    /// It could not be asked, for want of something on this machine: no offence, and tried again after a pause.
    Unasked,
    /// We gave up ourselves; no offence.
    Cancelled,
}

/// Missing chunks that are not in flight and cannot be asked of any holder now, by cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supply {
    /// No known holder has them.
    pub unheld: ChunkSet,
    /// Every known holder of them is avoided for an offence at present.
    pub avoided: ChunkSet,
    /// A holder said that its file is no longer there, and has given none of it since.
    pub gone: bool,
}

/// Owner of what is missing, which holders have it and what is in flight, for one download.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Fetches that may run at present, second copies apart.
    room: usize,
    /// Fetches beyond the limits, to far holders.
    beyond: usize,
    is_link_slow: bool,
    missing: ChunkSet,
    order: RarityOrder,
    begun: Begun,
    holders: Holders,
    flights: Flights,
    next_id: u64,
    /// How long a chunk takes, averaged over the last few.
    typical: Option<Duration>,
    ledger: Ledger,
}

impl Scheduler {
    /// A download that still needs the `wanted` chunks, with no holder known yet.
    pub fn new(wanted: &ChunkSet, limits: Limits) -> Self {
        let limits = Limits { in_flight: limits.in_flight.max(1), per_holder: limits.per_holder.max(1) };
        Self {
            limits,
            room: limits.in_flight,
            beyond: 0,
            is_link_slow: false,
            missing: wanted.clone(),
            order: RarityOrder::new(wanted),
            begun: Begun::default(),
            holders: Holders::new(limits.per_holder),
            flights: Flights::default(),
            next_id: 0,
            typical: None,
            ledger: Ledger::default(),
        }
    }

    /// The holder has exactly these chunks of the same file; replaces what was known. Chunks for which
    /// it gave wrong bytes are left out for good.
    pub fn holder_is(&mut self, peer: PeerInfo, chunks: ChunkSet) {
        debug_assert_eq!(chunks.count(), self.missing.count(), "chunks of another file");
        let key = self.holders.enter(peer);
        self.holders.set(key, chunks, &mut self.order);
    }

    /// The holder has these chunks too. A peer that was never described cannot be asked, and is ignored.
    pub fn holder_added(&mut self, peer: PeerId, chunks: &ChunkSet) {
        debug_assert_eq!(chunks.count(), self.missing.count(), "chunks of another file");
        if let Some(key) = self.holders.find(peer) {
            self.holders.add(key, chunks, &mut self.order);
        }
    }

    /// The holder has nothing to offer any more. Its fetches in flight go on, and its offences are
    /// remembered should it come back.
    pub fn holder_gone(&mut self, peer: PeerId) {
        if let Some(key) = self.holders.find(peer) {
            self.holders.clear(key, &mut self.order);
        }
    }

    /// The next fetch to start, if any may start now. Call until `None`, after every event and at
    /// [`Scheduler::wake_at`]. Every fetch must be [finished](Scheduler::finished) exactly once.
    pub fn next(&mut self, now: Instant, rng: &mut (impl Rng + ?Sized)) -> Option<Fetch> {
        self.holders.wake(now);
        if self.flights.len() >= self.most() || self.missing.is_empty() {
            return None;
        }
        let waiting = if self.flights.len() < self.room { self.pick_waiting(rng) } else { None };
        let (chunk, key, is_copy) = match waiting {
            Some((chunk, key)) => (chunk, key, false),
            None => self.pick_copy(now, rng).map(|(chunk, key)| (chunk, key, true))?,
        };
        debug_assert!(self.missing.contains(chunk) && self.holders.get(key).held.contains(chunk));
        debug_assert!(self.holders.get(key).load < self.holders.get(key).most);
        debug_assert!(self.copies_of(chunk).count() == usize::from(is_copy));
        self.order.take(chunk);
        self.holders.update(key, |holder| {
            holder.load += 1;
            holder.copies += usize::from(is_copy);
        });
        let id = FetchId(self.next_id);
        self.next_id += 1;
        // The rest of a chunk is no other chunk.
        let alternatives =
            if is_copy || self.begun.contains(chunk) { Vec::new() } else { self.alternatives(chunk, key, rng) };
        self.flights.push(
            id,
            Flight {
                chunk,
                holder: key,
                is_open: !alternatives.is_empty(),
                since: now,
                moved_at: now,
                had: None,
                held_back: false,
                held_up: Duration::ZERO,
                is_copy,
            },
        );
        Some(Fetch { id, chunk, alternatives, holder: self.holders.get(key).peer.clone() })
    }

    /// So many bytes of a fetch's chunk, which has `len`, are here now.
    pub fn moved(&mut self, id: FetchId, had: u32, len: u32, now: Instant) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.moved(had, len, now);
        }
    }

    /// This process did not run for so long: no holder was slow meanwhile.
    pub fn slept(&mut self, asleep: Duration) {
        for flight in self.flights.values_mut() {
            flight.since += asleep;
            flight.moved_at += asleep;
        }
    }

    /// A fetch has to wait for this peer's own memory before its holder is asked: so long it is not overdue.
    pub fn held_back(&mut self, id: FetchId) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.held_back = true;
        }
    }

    /// A limit of this peer's own has held a fetch up for so long in all: its holder was not slow meanwhile. Returns by how
    /// much that is longer than it was.
    pub fn held_up(&mut self, id: FetchId, total: Duration, now: Instant) -> Duration {
        self.flights.get_mut(id).map(|flight| flight.held_up(total, now)).unwrap_or_default()
    }

    /// A fetch that was held back asks its holder now.
    pub fn asked(&mut self, id: FetchId, now: Instant) {
        if let Some(flight) = self.flights.get_mut(id) {
            (flight.held_back, flight.since, flight.moved_at) = (false, now, now);
        }
    }

    /// A fetch has ended. Returns the other copies of a chunk that is now stored: cancel them, and
    /// report each as finished too when it has ended (they take up room until then). An id that is not
    /// in flight is ignored.
    pub fn finished(
        &mut self,
        id: FetchId,
        outcome: Outcome,
        now: Instant,
        rng: &mut (impl Rng + ?Sized),
    ) -> Vec<FetchId> {
        let Some(flight) = self.flights.remove(id) else { return Vec::new() };
        if self.missing.contains(flight.chunk) {
            self.begun.ended(&flight, outcome);
        }
        let Flight { chunk, holder: key, since, is_copy, .. } = flight;
        self.holders.update(key, |holder| {
            holder.load -= 1;
            holder.copies -= usize::from(is_copy);
            match outcome {
                Outcome::Stored => holder.conduct.delivered(holder.load, holder.most),
                Outcome::Busy => holder.conduct.busy(holder.load, holder.most, now, rng),
                Outcome::Failed(offence) => holder.conduct.offended(offence, now),
                Outcome::Unasked => holder.conduct.spared(now),
                Outcome::Cancelled => {}
            }
        });
        if let Outcome::Failed(offence) = outcome {
            self.ledger.note(self.holders.get(key).peer.id(), offence, chunk);
            if offence.loses_chunk() {
                self.holders.strike(key, chunk, offence == Offence::WrongBytes, &mut self.order);
            }
        }
        if outcome == Outcome::Stored {
            self.learn_duration(now.saturating_duration_since(since));
            self.missing.remove(chunk);
            return self.copies_of(chunk).map(|(id, _)| id).collect();
        }
        if self.missing.contains(chunk) {
            self.give_back(chunk);
        }
        Vec::new()
    }

    /// A chunk that was taken to be stored is not: it is missing, and waits to be asked for unless a copy of it is
    /// still in flight.
    pub fn lost(&mut self, chunk: ChunkIndex) {
        if self.missing.insert(chunk) {
            self.give_back(chunk);
        }
    }

    /// The earliest moment at which [`Scheduler::next`] might return a fetch although nothing has
    /// happened; `None` if only an event can help. Ask after `next` has returned `None`.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.flights.len() >= self.most() || self.missing.is_empty() {
            return None;
        }
        let overdue = self.in_endgame().then(|| {
            let asked = self.single_copies().filter(|flight| !flight.held_back);
            asked.map(|flight| flight.overdue_at(self.typical, self.is_link_slow)).filter(|&at| at > now).min()
        });
        self.holders.next_wake().into_iter().chain(overdue.flatten()).min()
    }

    /// Whether every wanted chunk is stored. Cancelled copies may still be in flight.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// The chunks that are not stored yet, in flight or not.
    pub fn missing(&self) -> &ChunkSet {
        &self.missing
    }

    /// Whether next to no other peer that is known has this chunk; holders of the whole file apart.
    pub fn is_scarce(&self, chunk: ChunkIndex) -> bool {
        self.order.rarity(chunk) <= SCARCE
    }

    /// Fetches that were started and have not finished, second copies included.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// What keeps the download from going on. Looks at every holder: for messages and deadlines, not
    /// for every event.
    pub fn supply(&self, now: Instant) -> Supply {
        let mut unheld = self.missing.clone();
        for flight in self.flights.values() {
            unheld.remove(flight.chunk);
        }
        let mut avoided = unheld.clone();
        for holder in self.holders.iter() {
            let is_avoided = holder.conduct.is_avoided(now);
            for set in std::iter::once(&mut unheld).chain((!is_avoided).then_some(&mut avoided)) {
                match &holder.held {
                    Held::Nothing => {}
                    Held::All => *set = ChunkSet::empty(set.count()),
                    Held::Part(chunks) => *set = set.difference(chunks),
                }
            }
        }
        let gone = self.holders.iter().any(|holder| holder.conduct.is_gone());
        Supply { avoided: avoided.difference(&unheld), unheld, gone }
    }

    /// Everything that holders did wrong so far, by holder and kind of offence.
    pub fn blame(&self) -> Vec<Blame> {
        self.ledger.report(self.missing.count())
    }

    /// The missing chunks for which some holder's content was wrong or had changed.
    pub fn tainted(&self) -> ChunkSet {
        let sound = ChunkSet::full(self.missing.count()).difference(&self.missing);
        self.ledger.tainted(self.missing.count()).difference(&sound)
    }

    /// A waiting chunk that has begun, or the rarest one, that an available holder has.
    fn pick_waiting(&mut self, rng: &mut (impl Rng + ?Sized)) -> Option<(ChunkIndex, Key)> {
        if let Some(begun) = self.begun.pick(&self.order, &self.holders, rng) {
            return Some(begun);
        }
        loop {
            let least = self.holders.lowest_bound()?;
            let Some(rarity) = self.order.rarest_from(least) else {
                self.holders.raise_bounds(u32::MAX);
                return None;
            };
            if let Some(found) = self.search(rarity, rng) {
                return Some(found);
            }
            self.holders.raise_bounds(rarity + 1);
        }
    }

    /// A random chunk of this rarity that an available holder has.
    ///
    /// Tries chunks in random order, which nearly always ends at once. Once the tries have cost as much
    /// as it takes to find out which holders have any of these chunks at all, that is done instead, and
    /// only those are tried further.
    fn search(&mut self, rarity: u32, rng: &mut (impl Rng + ?Sized)) -> Option<(ChunkIndex, Key)> {
        let mut candidates = self.holders.candidates(rarity);
        let words = self.missing.count().get() as usize / 64;
        // A try jumps about in memory; finding out walks through it, some eight times as fast.
        let mut budget = Some((self.order.waiting_at(rarity) + candidates.len() * words) / 8);
        for nth in 0..self.order.waiting_at(rarity) {
            let chunk = self.order.draw(rarity, nth, rng)?;
            if let Some(key) = candidates.pick(chunk, &self.holders, rng) {
                return Some((chunk, key));
            }
            if let Some(left) = budget {
                budget = left.checked_sub(candidates.len());
                if budget.is_none() {
                    candidates.retain(&self.order.set_at(rarity), &self.holders);
                }
            }
            if candidates.len() == 0 {
                return None;
            }
        }
        None
    }

    /// A second copy of the rarest chunk that is overdue at its only holder.
    fn pick_copy(&self, now: Instant, rng: &mut (impl Rng + ?Sized)) -> Option<(ChunkIndex, Key)> {
        if !self.in_endgame() {
            return None;
        }
        // Those that delivered come first: one that never did may be as silent as the one to be rescued.
        let (proved, others) = (self.holders.rescuers(true), self.holders.rescuers(false));
        let mut rarest: Vec<(ChunkIndex, Key)> = Vec::new();
        let overdue = |flight: &&Flight| !flight.held_back && now >= flight.overdue_at(self.typical, self.is_link_slow);
        for flight in self.single_copies().filter(overdue) {
            let by_rarity =
                rarest.first().map(|&(chunk, _)| self.order.rarity(flight.chunk).cmp(&self.order.rarity(chunk)));
            if by_rarity.is_some_and(|than_found| than_found.is_gt()) {
                continue;
            }
            // The slow holder itself is no rescuer: it carries a first copy.
            let rescuer = proved.pick(flight.chunk, &self.holders, rng);
            if let Some(key) = rescuer.or_else(|| others.pick(flight.chunk, &self.holders, rng)) {
                debug_assert_ne!(key, flight.holder);
                if by_rarity.is_some_and(|than_found| than_found.is_lt()) {
                    rarest.clear();
                }
                rarest.push((flight.chunk, key));
            }
        }
        rarest.choose(rng).copied()
    }

    /// Whether every chunk that some holder has is requested. Chunks without a holder must not keep a
    /// slow one from being rescued.
    fn in_endgame(&self) -> bool {
        let least = if self.holders.seeds() > 0 { 0 } else { 1 };
        self.order.rarest_from(least).is_none()
    }

    /// A copy of a missing chunk is lost: what is left of it becomes the first copy, and if nothing is
    /// left the chunk waits again.
    fn give_back(&mut self, chunk: ChunkIndex) {
        match self.flights.values_mut().find(|flight| flight.chunk == chunk) {
            Some(left) => {
                let was_copy = std::mem::take(&mut left.is_copy);
                self.holders.update(left.holder, |holder| holder.copies -= usize::from(was_copy));
            }
            None => {
                self.order.put(chunk);
                self.holders.returned(chunk, &self.order);
            }
        }
    }

    fn single_copies(&self) -> impl Iterator<Item = &Flight> {
        self.flights
            .values()
            .filter(|flight| self.missing.contains(flight.chunk) && self.copies_of(flight.chunk).count() == 1)
    }

    fn copies_of(&self, chunk: ChunkIndex) -> impl Iterator<Item = (FetchId, &Flight)> {
        self.flights.iter().filter(move |(_, flight)| flight.chunk == chunk)
    }

    fn learn_duration(&mut self, took: Duration) {
        self.typical = Some(self.typical.map_or(took, |typical| (7 * typical + took) / 8));
    }
}
