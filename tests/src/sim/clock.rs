//! The virtual clock: time passes only from one event to the next.
//!
//! What holds: events come in the order of their times, and those of one time in the order in which they were
//! planned, so that a run does not depend on anything but its seed.
//!
//! A large fleet plans some ten events in a microsecond, and a heap of all would be spread over memory. So only the
//! events of the present slice of time are in order; those of the slices after it wait in a ring, a list for each, and
//! the few that are further away in a heap of their own (a calendar queue, R. Brown 1988).

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// A moment: nanoseconds since the run began.
pub type Nanos = u64;

/// One second.
pub const SECOND: Nanos = 1_000_000_000;
/// One millisecond.
pub const MILLI: Nanos = 1_000_000;

#[derive(Debug)]
struct Planned<E> {
    at: Nanos,
    nth: u64,
    event: E,
}

impl<E> Planned<E> {
    fn key(&self) -> (Nanos, u64) {
        (self.at, self.nth)
    }
}

/// The earliest is the greatest, because the heap gives the greatest first.
impl<E> Ord for Planned<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Planned<E> {}

/// A slice of time is two to this power of nanoseconds: 16 us.
const SLICE_BITS: u32 = 14;
/// Slices in the ring, together 67 ms.
const SLICES: u64 = 1 << 12;

/// What is planned, and what time it is.
#[derive(Debug)]
pub struct Clock<E> {
    /// The engine speaks of instants. Only their differences count, so it does not matter which this is.
    base: Instant,
    now: Nanos,
    planned: u64,
    /// The slice that the events of `present` are of, and those before it.
    slice: u64,
    present: BinaryHeap<Planned<E>>,
    /// The slices after it, each in its place modulo their number.
    ring: Vec<Vec<Planned<E>>>,
    /// Room of slices that are over. It is used again at once, while the caches hold it.
    spare: Vec<Vec<Planned<E>>>,
    /// Events in the ring.
    waiting: usize,
    /// Beyond the ring.
    far: BinaryHeap<Planned<E>>,
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            now: 0,
            planned: 0,
            slice: 0,
            present: BinaryHeap::new(),
            ring: (0..SLICES).map(|_| Vec::new()).collect(),
            spare: Vec::new(),
            waiting: 0,
            far: BinaryHeap::new(),
        }
    }
}

/// Where a slice is in the ring.
fn place(slice: u64) -> usize {
    usize::try_from(slice % SLICES).unwrap_or(0)
}

impl<E> Clock<E> {
    /// The time now.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// The time now, as the engine and the tracker want it.
    pub fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    /// A moment that the engine named; the next nanosecond if it is past.
    pub fn moment(&self, at: Instant) -> Nanos {
        let nanos = at.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos).unwrap_or(Nanos::MAX).max(self.now)
    }

    /// Plans an event; one in the past comes now.
    pub fn plan(&mut self, at: Nanos, event: E) {
        self.plan_together(at, 1, event);
    }

    /// Plans so many events of one time that come one after the other, as one.
    pub fn plan_together(&mut self, at: Nanos, count: usize, event: E) {
        self.planned += count as u64;
        let planned = Planned { at: at.max(self.now), nth: self.planned, event };
        let slice = planned.at >> SLICE_BITS;
        if slice <= self.slice {
            self.present.push(planned);
        } else if slice < self.slice + SLICES {
            let list = &mut self.ring[place(slice)];
            if list.capacity() == 0
                && let Some(spare) = self.spare.pop()
            {
                *list = spare;
            }
            list.push(planned);
            self.waiting += 1;
        } else {
            self.far.push(planned);
        }
    }

    /// Goes on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        while self.present.is_empty() {
            self.turn()?;
        }
        let Planned { at, event, .. } = self.present.pop()?;
        self.now = at;
        Some(event)
    }

    /// Goes on to the next slice that may have events; `None` if no event is planned.
    fn turn(&mut self) -> Option<()> {
        if self.waiting > 0 {
            self.slice += 1;
        } else {
            self.slice = self.far.peek()?.at >> SLICE_BITS;
        }
        let mut due = std::mem::take(&mut self.ring[place(self.slice)]);
        self.waiting -= due.len();
        self.present.extend(due.drain(..));
        if due.capacity() > 0 {
            self.spare.push(due);
        }
        while self.far.peek().is_some_and(|first| first.at >> SLICE_BITS <= self.slice) {
            self.present.extend(self.far.pop());
        }
        Some(())
    }

    /// Events that were planned so far.
    pub fn planned(&self) -> u64 {
        self.planned
    }
}
