//! The slots of the streams that run, and when one is taken away from a receiver that leaves it unused.
//!
//! The slot of a stream hangs on each [`message`](super::message): so it is held until the socket has accepted the
//! chunk's last byte, and not only until HTTP/2 has put it into a queue. Freed at the queue, slots would bind most of a
//! file in buffers before the first receiver has a chunk to pass on. A stream that is not polled would keep it for ever,
//! so all streams are looked at from time to time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use drizzle_engine::{
    calls::LATE,
    pace::{Pace, Verdict},
    slots::{Grant, Requester, Slots},
};
use tokio::{runtime::Handle, sync::watch};

use crate::{holdings::Holdings, lanes::Lanes};

/// After the last message was handed over, the transport may keep its slot for this long: a receiver that reads nothing
/// leaves it to others. What it has not taken stays in the transport, which bounds it.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// Streams are looked at this often, or when one of them may have stalled.
const LOOK: Duration = Duration::from_secs(1);
/// But no more often.
const LEAST_LOOK: Duration = Duration::from_millis(5);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change below can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot that is taken; free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) slots: Arc<Mutex<Slots>>,
    pub(super) idle: watch::Sender<bool>,
    pub(super) requester: Requester,
    pub(super) grant: Option<Grant>,
}

impl Slot {
    /// Whether another peer was refused for want of a slot.
    fn is_wanted(&self) -> bool {
        lock(&self.slots).others_wait(self.requester, Instant::now())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            let mut slots = lock(&self.slots);
            slots.release(grant);
            note_idle(&slots, &self.idle);
        }
    }
}

/// Tells whether no slot is taken. Under the lock of the slots, so that what is told last is so.
pub(super) fn note_idle(slots: &Slots, idle: &watch::Sender<bool>) {
    let is_idle = slots.taken() == 0;
    idle.send_if_modified(|told| std::mem::replace(told, is_idle) != is_idle);
}

/// What the stream of a chunk and its messages have in common. With the last of them the slot is free.
#[derive(Debug)]
pub(super) struct Hold(Mutex<State>);

#[derive(Debug)]
struct State {
    slot: Option<Slot>,
    waits: Waits,
    pace: Pace,
    is_given_up: bool,
}

/// What a stream waits for.
#[derive(Debug, Clone, Copy)]
enum Waits {
    /// For the receiver.
    Receiver,
    /// For a limit of this peer's own.
    Limit,
    /// For the disk, since then.
    Disk(Instant),
    /// For the transport, which was given the last message then.
    Taken(Instant),
}

impl Hold {
    fn new(slot: Slot, pace: Pace) -> Self {
        Self(Mutex::new(State { slot: Some(slot), waits: Waits::Receiver, pace, is_given_up: false }))
    }

    /// Some bytes were handed to the transport, perhaps the last ones.
    pub(super) fn moved(&self, bytes: u64, is_last: bool, now: Instant) {
        let mut state = lock(&self.0);
        state.pace.moved(bytes, now);
        state.waits = if is_last { Waits::Taken(now) } else { Waits::Receiver };
    }

    /// A limit of this peer's own holds it up.
    pub(super) fn is_limited(&self) {
        lock(&self.0).waits = Waits::Limit;
    }

    /// It did so for so long: a receiver is not slow while nothing is sent to it.
    pub(super) fn was_limited(&self, time: Duration) {
        let mut state = lock(&self.0);
        state.waits = Waits::Receiver;
        state.pace.held_up(time, Instant::now());
    }

    /// The disk is asked for bytes.
    pub(super) fn reads(&self) {
        lock(&self.0).waits = Waits::Disk(Instant::now());
    }

    /// Whether its receiver took too little to be sent the rest.
    pub(super) fn is_given_up(&self) -> bool {
        lock(&self.0).is_given_up
    }

    /// Takes the slot away if it is left unused for too long; when to look again.
    fn look(&self, now: Instant) -> Instant {
        let mut state = lock(&self.0);
        let is_too_long = match state.waits {
            Waits::Limit => false,
            // A read that hangs keeps its thread until the kernel lets go of it, and its slot no longer than a caller waits.
            Waits::Disk(since) => now.saturating_duration_since(since) >= LATE,
            Waits::Taken(since) => now.saturating_duration_since(since) >= TAKEN_WITHIN,
            Waits::Receiver if now < state.pace.next_look() => false,
            Waits::Receiver => {
                let verdict = state.pace.look(now);
                state.is_given_up |= match verdict {
                    Verdict::Fine => false,
                    Verdict::Silent => true,
                    Verdict::Drips(_) => state.slot.as_ref().is_some_and(Slot::is_wanted),
                };
                if state.is_given_up {
                    tracing::trace!(target: "drizzle::decisions", ?verdict, "upload given up");
                }
                state.is_given_up
            }
        };
        let freed = state.slot.take_if(|_| is_too_long);
        let is_watched = state.slot.is_some() && matches!(state.waits, Waits::Receiver);
        let next = if is_watched { state.pace.next_look() } else { now + LOOK };
        // It locks the slots.
        drop(state);
        drop(freed);
        next
    }
}

/// All streams that may hold a slot. While there are any, the files that they opened are closed in time.
#[derive(Debug, Clone)]
pub(super) struct Holds {
    holdings: Arc<Holdings>,
    lanes: Arc<Lanes>,
    all: Arc<Mutex<All>>,
}

#[derive(Debug, Default)]
struct All {
    holds: Vec<Weak<Hold>>,
    are_looked_at: bool,
}

impl Holds {
    /// None yet.
    pub(super) fn new(holdings: Arc<Holdings>, lanes: Arc<Lanes>) -> Self {
        Self { holdings, lanes, all: Arc::default() }
    }

    /// A stream begins. Needs a runtime.
    pub(super) fn begin(&self, slot: Slot, pace: Pace) -> Arc<Hold> {
        let hold = Arc::new(Hold::new(slot, pace));
        lock(&self.all).holds.push(Arc::downgrade(&hold));
        self.keep_looking(&Handle::current());
        hold
    }

    /// Something is to be looked after: a stream, or a file that was opened for one.
    pub(super) fn keep_looking(&self, runtime: &Handle) {
        if !std::mem::replace(&mut lock(&self.all).are_looked_at, true) {
            runtime.spawn(self.clone().look_after());
        }
    }

    /// Takes slots away that are left unused; when to look again, if any stream runs.
    pub(super) fn look(&self) -> Option<Instant> {
        let (now, mut next) = (Instant::now(), None::<Instant>);
        let mut running = Vec::new();
        lock(&self.all).holds.retain(|hold| {
            let hold = hold.upgrade();
            running.extend(hold.clone());
            hold.is_some()
        });
        for hold in running {
            let at = hold.look(now);
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        next.map(|next| next.clamp(now + LEAST_LOOK, now + LOOK))
    }

    async fn look_after(self) {
        loop {
            let next = self.look();
            let (old, are_open) = self.holdings.old_files();
            if !old.is_empty() {
                // Nobody waits for that.
                self.lanes.uploads.run(move || drop(old));
            }
            let next = next.or_else(|| are_open.then(|| Instant::now() + LOOK));
            let next = {
                let mut all = lock(&self.all);
                // One that began since then is looked at, too.
                match next.or_else(|| (!all.holds.is_empty()).then(|| Instant::now() + LEAST_LOOK)) {
                    Some(next) => next,
                    None => {
                        all.are_looked_at = false;
                        return;
                    }
                }
            };
            tokio::time::sleep_until(next.into()).await;
        }
    }
}
