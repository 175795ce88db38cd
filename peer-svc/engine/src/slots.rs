//! Which requests get an upload slot.
//!
//! Few streams at full rate finish chunks sooner than many slow ones, and a finished chunk can be served by the
//! peer that got it. So there are few slots, and a request beyond them is told "busy" at once and goes elsewhere;
//! there is no queue, because a wish that waited is stale. How many slots there are follows the uplink: see
//! [`crate::uplink`]. A stream that runs is never ended for another one, whose receiver would throw away what came.
//!
//! What holds at all times (each line has a property test):
//! - what requesters hold up to their fair share takes no more than all slots, or what `need.rs` makes of them for
//!   the one that asks; the fair share is the slots divided by the requesters that hold or want one, rounded up;
//! - so a requester alone may have every slot, and one that comes then is served at once beside it: what the first
//!   one holds beyond its share does not count, and it gets no more before it is back within it;
//! - no more grants are out than [`Slots::most`], but to a requester that was alone: it may have twice as many, if the uplink
//!   carries them (see [`crate::uplink`]), and those that come then are served beside it all the same;
//! - while another requester was refused within [`MEMORY`], none gets more than its fair share;
//! - while a limit makes chunks take long, slots go to requesters in turn: none that was served gets a slot for which
//!   another one waits that was served longer ago, so that all that ask at least every [`MEMORY`] are served alike, a chunk
//!   each. (Otherwise chunks are short against the pauses after which requesters ask again, and a slot that waits for one
//!   of them is lost.)
//! - while near requesters ask, far ones have a quarter of the slots, at least one: what crosses a thin link is slow, and
//!   would keep from the near ones what they pass on to each other (simulated, eight racks of eight: 1.65 times the bound
//!   without, 1.34 with it);
//! - a released slot is free at once;
//! - however many requesters ask, no more than [`REMEMBERED`] are remembered, the latest ones.
//!
//! A requester is a peer: however many files and chunks it wants, it counts once. Anonymous requests (from clients that
//! name no peer) count as one requester.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::{PeerId, RateLimit};

use crate::{need::Need, uplink::Uplink};

/// A refused requester counts as waiting for this long: twice the longest pause after which it asks again.
pub const MEMORY: Duration = Duration::from_secs(1);

/// Refused requesters that are remembered at once: far more than peers that share a few slots, and little memory.
pub const REMEMBERED: usize = 1024;

/// Slots beyond the least number, at most three times that: each costs a thread.
const MORE: usize = 64;

/// Of the slots, far requesters get one in so many, while near ones ask.
const FAR: usize = 4;

/// The peer that asks; `None` if it did not say.
pub type Requester = Option<PeerId>;

/// The upload slots of one peer.
#[derive(Debug)]
pub struct Slots {
    uplink: Uplink,
    need: Need,
    /// Grants of far requesters that are out.
    far: usize,
    /// When a near requester asked last.
    near_asked: Option<Instant>,
    most: usize,
    /// Grants that are out, by requester; none is 0.
    held: BTreeMap<Requester, usize>,
    /// When each requester that was refused and has got nothing since was refused last.
    refused: BTreeMap<Requester, Instant>,
    /// While a limit makes chunks take long: when each requester was served last.
    served: BTreeMap<Requester, Instant>,
}

/// One slot, until it is [released](Slots::release).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a grant that is dropped keeps its slot for ever"]
pub struct Grant {
    requester: Requester,
    is_far: bool,
}

/// A request for a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Request {
    /// The peer that asks.
    pub requester: Requester,
    /// Chunks that come to it at present, if it says so.
    pub receiving: Option<u32>,
    /// Whether it is far, by the labels.
    pub is_far: bool,
}

impl From<Requester> for Request {
    fn from(requester: Requester) -> Self {
        Self { requester, ..Self::default() }
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Serve it.
    Granted(Grant),
    /// Every slot is taken, or those that are free are other requesters'.
    Busy,
}

impl Slots {
    /// So many slots at least, at least one.
    pub fn new(count: usize) -> Self {
        let count = count.max(1);
        let most = Self::most(count);
        let (uplink, held) = (Uplink::new(count, most), BTreeMap::new());
        let need = Need::default();
        let (refused, served) = (BTreeMap::new(), BTreeMap::new());
        Self { uplink, need, far: 0, near_asked: None, most, held, refused, served }
    }

    /// No more than this is sent from now on. Streams that run go on.
    pub fn limit(&mut self, limit: RateLimit) {
        self.uplink.limit(limit);
    }

    /// A stream begins of so many bytes.
    pub fn begins(&mut self, bytes: u64) {
        self.uplink.begins(bytes);
    }

    /// Most grants that are out at once, of so many slots at least.
    pub fn most(count: usize) -> usize {
        count.max(1).saturating_add(count.max(1).saturating_mul(3).min(MORE))
    }

    /// How many slots there are at present.
    pub fn count(&self) -> usize {
        self.uplink.streams()
    }

    /// Some bytes were sent, to whichever requester.
    pub fn sent(&mut self, bytes: u64, now: Instant) {
        self.uplink.sent(bytes, now);
    }

    /// How many of them are taken.
    pub fn taken(&self) -> usize {
        self.held.values().sum()
    }

    /// Whether a requester other than this one was refused a moment ago.
    pub fn others_wait(&self, requester: Requester, now: Instant) -> bool {
        self.waiting(now).any(|other| other != requester)
    }

    /// A request. Every grant must be released.
    pub fn ask(&mut self, request: impl Into<Request>, now: Instant) -> Answer {
        let Request { requester, receiving, is_far } = request.into();
        self.refused.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        self.uplink.look(now);
        if is_far && self.far_may_have(now).is_some_and(|most| self.far >= most) {
            return Answer::Busy;
        }
        if !is_far {
            self.near_asked = Some(now);
        }
        let held = self.held.get(&requester).copied().unwrap_or(0);
        let share = self.fair_share(requester);
        let within_share = held < share;
        // What a requester holds beyond its share does not keep others waiting.
        let counted = match within_share {
            true => self.held.values().map(|held| share.min(*held)).sum(),
            false => self.taken(),
        };
        let others_wait = self.others_wait(requester, now);
        // In turn, each gets its chunk, whatever it needs.
        let receiving = receiving.filter(|_| !self.uplink.is_slow());
        let needed = self.need.slots(self.count(), receiving, others_wait);
        // Beyond the slots is room for those that others leave none. Of many streams each is slow, and what it brings is
        // passed on late.
        let most = if within_share { self.count().max(2 * self.uplink.least()) } else { self.count() };
        let is_alone = !others_wait && self.held.keys().all(|other| *other == requester);
        let (slots, most) = match is_alone {
            true => (needed.min(most).max(self.uplink.alone(2 * self.most)), 2 * self.most),
            false => (needed.min(most), self.most + self.held_alone()),
        };
        let is_free = counted + self.served_longer_ago(requester) < slots && self.taken() < most;
        if is_free && (within_share || !others_wait) {
            self.refused.remove(&requester);
            if self.uplink.is_slow() {
                remember(&mut self.served, requester, now);
            } else {
                self.served.clear();
            }
            *self.held.entry(requester).or_default() += 1;
            self.far += usize::from(is_far);
            Answer::Granted(Grant { requester, is_far })
        } else {
            if within_share && self.taken() >= self.count() {
                self.uplink.wanted(now);
            }
            self.refuse(requester, now);
            Answer::Busy
        }
    }

    /// A stream has ended, however it did.
    pub fn release(&mut self, grant: Grant) {
        self.far -= usize::from(grant.is_far);
        if let Some(held) = self.held.get_mut(&grant.requester) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&grant.requester);
            }
        }
    }

    /// How many slots far requesters may have together, while near ones ask.
    fn far_may_have(&self, now: Instant) -> Option<usize> {
        let near_ask = self.near_asked.is_some_and(|at| now.saturating_duration_since(at) < MEMORY);
        near_ask.then_some((self.count() / FAR).max(1))
    }

    /// Slots that a requester has because it was alone when it asked.
    fn held_alone(&self) -> usize {
        let together = self.count().max(2 * self.uplink.least());
        self.held.values().map(|held| held.saturating_sub(together)).sum()
    }

    fn refuse(&mut self, requester: Requester, now: Instant) {
        remember(&mut self.refused, requester, now);
    }

    /// How many of those that wait for their first slot have a claim before this requester.
    fn served_longer_ago(&self, requester: Requester) -> usize {
        if !self.uplink.is_slow() {
            return 0;
        }
        let served = self.served.get(&requester);
        let waiting = self.refused.keys().filter(|other| **other != requester && !self.held.contains_key(*other));
        waiting.filter(|other| self.served.get(*other) < served).count()
    }

    fn waiting(&self, now: Instant) -> impl Iterator<Item = Requester> + '_ {
        let recent = move |at: &Instant| now.saturating_duration_since(*at) < MEMORY;
        self.refused.iter().filter(move |(_, at)| recent(at)).map(|(requester, _)| *requester)
    }

    /// What each requester may hold while others want more, the asking one counted; at least 1.
    fn fair_share(&self, asking: Requester) -> usize {
        let others = self.refused.keys().filter(|other| !self.held.contains_key(*other) && **other != asking).count();
        let asking = usize::from(!self.held.contains_key(&asking));
        self.count().div_ceil(self.held.len() + others + asking)
    }
}

/// Notes when something happened to a requester last, of the latest ones.
fn remember(times: &mut BTreeMap<Requester, Instant>, requester: Requester, now: Instant) {
    times.insert(requester, now);
    if times.len() > REMEMBERED {
        let oldest = times.iter().min_by_key(|(_, at)| **at).map(|(requester, _)| *requester);
        oldest.map(|oldest| times.remove(&oldest));
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
