//! One fetch that runs, and when it is slow enough for a second copy.

use std::time::{Duration, Instant};

use drizzle_proto::ChunkIndex;

use super::{FetchId, holders::Key};

/// No second copy before the first has taken this long, however fast chunks usually come.
const MIN_PATIENCE: Duration = Duration::from_millis(300);
/// On a slow link no second copy before the first stood still for so long.
const SLOW_PATIENCE: Duration = Duration::from_secs(4);
/// How long a chunk is taken to need before any has come.
const TYPICAL_AT_FIRST: Duration = Duration::from_secs(1);

/// Fewer new bytes than this are no sign that a holder moves on.
const LEAST_MOVE: u32 = 256;

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) chunk: ChunkIndex,
    pub(super) holder: Key,
    /// The holder may still choose another chunk.
    pub(super) is_open: bool,
    pub(super) since: Instant,
    /// When bytes came last; `since` before the first.
    pub(super) moved_at: Instant,
    /// Bytes of the chunk that were here when it began, that are here now, and that it has.
    pub(super) had: Option<(u32, u32, u32)>,
    /// Waits for this peer's own memory: its holder was not asked yet.
    pub(super) held_back: bool,
    /// For how long a limit of this peer's own held it up, so far.
    pub(super) held_up: Duration,
    /// Asked for although another copy was in flight.
    pub(super) is_copy: bool,
}

impl Flight {
    /// So many bytes of its chunk, which has `len`, are here now.
    pub(super) fn moved(&mut self, had: u32, len: u32, now: Instant) {
        let (first, before, _) = *self.had.get_or_insert((had, had, len));
        // Less is what keeps a connection alive, not a chunk.
        if had.saturating_sub(before) >= LEAST_MOVE || had == len && before < len {
            self.moved_at = now;
            self.had = Some((first, had, len));
        }
    }

    /// A limit of this peer's own held it up for so long in all, the last time until now at most: its holder was not
    /// slow meanwhile. Returns by how much that is longer than it was.
    pub(super) fn held_up(&mut self, total: Duration, now: Instant) -> Duration {
        let more = total.saturating_sub(std::mem::replace(&mut self.held_up, total));
        self.since = (self.since + more).min(now);
        self.moved_at = (self.moved_at + more).min(now).max(self.since);
        more
    }

    /// From when on a second copy is worth its bytes. A holder that moves on is left alone unless the rest takes
    /// longer than a whole chunk may take. On a slow link it is left alone as long as it moves at all, and longer: its
    /// bytes stand in a queue behind those of others, where a copy would stand too.
    pub(super) fn overdue_at(&self, typical: Option<Duration>, is_link_slow: bool) -> Instant {
        let typical_or = typical.unwrap_or(TYPICAL_AT_FIRST);
        if is_link_slow {
            return self.moved_at + (2 * typical_or).max(SLOW_PATIENCE);
        }
        let patience = (2 * typical_or).max(MIN_PATIENCE);
        let took = self.moved_at - self.since;
        let is_slow = match (typical, self.had) {
            (Some(_), Some((first, had, len))) if had > first => {
                took.as_secs_f64() * f64::from(len.saturating_sub(had))
                    > patience.as_secs_f64() * f64::from(had - first)
            }
            _ => false,
        };
        if is_slow { self.since + patience } else { self.moved_at + patience }
    }
}

/// The fetches that run, in the order of their ids. They are few and are looked through all the time, so they lie side
/// by side.
#[derive(Debug, Default)]
pub(super) struct Flights(Vec<(FetchId, Flight)>);

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self, id: FetchId) -> Option<usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    pub(super) fn get(&self, id: FetchId) -> Option<&Flight> {
        self.place(id).map(|place| &self.0[place].1)
    }

    pub(super) fn get_mut(&mut self, id: FetchId) -> Option<&mut Flight> {
        self.place(id).map(|place| &mut self.0[place].1)
    }

    /// Adds one whose id is above those of all others.
    pub(super) fn push(&mut self, id: FetchId, flight: Flight) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < id));
        self.0.push((id, flight));
    }

    pub(super) fn remove(&mut self, id: FetchId) -> Option<Flight> {
        self.place(id).map(|place| self.0.remove(place).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FetchId, &Flight)> {
        self.0.iter().map(|(id, flight)| (*id, flight))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Flight> {
        self.0.iter().map(|(_, flight)| flight)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Flight> {
        self.0.iter_mut().map(|(_, flight)| flight)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flight(now: Instant) -> Flight {
        let (held_up, is_open, held_back, is_copy) = (Duration::ZERO, false, false, false);
        let (chunk, holder) = (drizzle_proto::ChunkCount::new(1).unwrap().index(0).unwrap(), Key::MIN);
        Flight { chunk, holder, is_open, since: now, moved_at: now, had: None, held_back, held_up, is_copy }
    }

    #[test]
    fn on_a_slow_link_a_chunk_is_overdue_only_once_it_stands_still() {
        let start = Instant::now();
        let mut slow = flight(start);
        let typical = Some(Duration::from_secs(1));
        for second in 1..=60 {
            slow.moved(second * 300, 1 << 20, start + Duration::from_secs(second.into()));
        }
        let now = start + Duration::from_secs(60);
        assert!(slow.overdue_at(typical, false) < now, "a second copy at a fast holder is there long before the rest");
        assert_eq!(slow.overdue_at(typical, true), now + SLOW_PATIENCE);
    }

    proptest! {
        /// A chunk that comes with pauses for this peer's own limit is overdue just as late after them as one that came
        /// without.
        #[test]
        fn time_in_which_a_limit_held_it_up_is_not_its_holders(
            steps in proptest::collection::vec((0u64..3000, 0u32..5000, 0u64..60_000), 1..30),
            typical in proptest::option::of(1u64..5000),
        ) {
            let (start, typical) = (Instant::now(), typical.map(Duration::from_millis));
            let (mut plain, mut limited) = (flight(start), flight(start));
            let (mut now, mut had, mut waited) = (start, 0, Duration::ZERO);
            for (ms, bytes, waits) in steps {
                now += Duration::from_millis(ms);
                had += bytes;
                plain.moved(had, 1 << 20, now);
                limited.moved(had, 1 << 20, now + waited);
                waited += Duration::from_millis(waits);
                limited.held_up(waited, now + waited);
                prop_assert_eq!(limited.overdue_at(typical, false), plain.overdue_at(typical, false) + waited);
            }
        }
    }
}
