//! The virtual clock: time passes only from one event to the next.
//!
//! What holds: events come in the order of their times, and those of one time in the order in which they were
//! planned, so that a run does not depend on anything but its seed.

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

/// What is planned, and what time it is.
#[derive(Debug)]
pub struct Clock<E> {
    /// The engine speaks of instants. Only their differences count, so it does not matter which this is.
    base: Instant,
    now: Nanos,
    planned: u64,
    queue: BinaryHeap<Planned<E>>,
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self { base: Instant::now(), now: 0, planned: 0, queue: BinaryHeap::new() }
    }
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
        self.planned += 1;
        self.queue.push(Planned { at: at.max(self.now), nth: self.planned, event });
    }

    /// Goes on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let Planned { at, event, .. } = self.queue.pop()?;
        self.now = at;
        Some(event)
    }

    /// Events that were planned so far.
    pub fn planned(&self) -> u64 {
        self.planned
    }
}
