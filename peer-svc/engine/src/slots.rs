//! Which requests get an upload slot.
//!
//! Few streams at full rate finish chunks sooner than many slow ones, and a finished chunk can be served by the
//! peer that got it. So there are few slots, and a request beyond them is told "busy" at once and goes elsewhere;
//! there is no queue, because a wish that waited is stale. How many slots there are follows the uplink: see
//! [`crate::uplink`]. A stream that runs is never ended for another one, whose receiver would throw away what came.
//!
//! What holds at all times (each line has a property test):
//! - what requesters hold up to their fair share takes no more than all slots, or what [`crate::need`] makes of them for
//!   the one that asks; the fair share is the slots divided by the requesters that hold or want one, rounded up;
//! - so a requester alone may have every slot, and one that comes then is served at once beside it: what the first
//!   one holds beyond its share does not count, and it gets no more before it is back within it;
//! - no more grants are out than [`Slots::most`];
//! - while another requester was refused within [`MEMORY`], none gets more than its fair share;
//! - while a limit makes chunks take long, slots go to requesters in turn: none that was served gets a slot for which
//!   another one waits that was served longer ago, so that all that ask at least every [`MEMORY`] are served alike, a chunk
//!   each. (Otherwise chunks are short against the pauses after which requesters ask again, and a slot that waits for one
//!   of them is lost.)
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

/// The peer that asks; `None` if it did not say.
pub type Requester = Option<PeerId>;

/// The upload slots of one peer.
#[derive(Debug)]
pub struct Slots {
    uplink: Uplink,
    need: Need,
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
        Self { uplink, need, most, held, refused: BTreeMap::new(), served: BTreeMap::new() }
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

    /// A request of a peer to which so many chunks come at present, if it says so. Every grant must be released.
    pub fn ask(&mut self, requester: Requester, receiving: Option<u32>, now: Instant) -> Answer {
        self.refused.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        self.uplink.look(now);
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
        let slots = self.need.slots(self.count(), receiving, others_wait);
        let is_free = counted + self.served_longer_ago(requester) < slots && self.taken() < self.most;
        if is_free && (within_share || !others_wait) {
            self.refused.remove(&requester);
            if self.uplink.is_slow() {
                remember(&mut self.served, requester, now);
            } else {
                self.served.clear();
            }
            *self.held.entry(requester).or_default() += 1;
            Answer::Granted(Grant { requester })
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
        if let Some(held) = self.held.get_mut(&grant.requester) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&grant.requester);
            }
        }
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
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> Requester {
        Some(PeerId::from_bytes([n; 16]))
    }

    fn granted(answer: Answer) -> Grant {
        match answer {
            Answer::Granted(grant) => grant,
            Answer::Busy => panic!("busy"),
        }
    }

    #[test]
    fn a_lone_requester_may_have_every_slot_and_no_more() {
        let (mut slots, now) = (Slots::new(4), Instant::now());
        let grants: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), None, now))).collect();
        assert_eq!(slots.ask(peer(1), None, now), Answer::Busy, "the fifth is refused");
        assert_eq!(slots.taken(), 4);
        for grant in grants {
            slots.release(grant);
        }
        assert_eq!(slots.taken(), 0);
        let _last = granted(slots.ask(peer(1), None, now));
    }

    #[test]
    fn no_peer_keeps_every_slot_while_another_one_waits_however_long_its_streams_take() {
        let (mut slots, now) = (Slots::new(4), Instant::now());
        let mut hog: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), None, now))).collect();
        // None of its streams ends.
        let other: Vec<_> = (0..2).map(|_| granted(slots.ask(peer(2), None, now))).collect();
        assert_eq!(slots.ask(peer(2), None, now), Answer::Busy, "it has its half");
        // What it holds beyond its share is not replaced.
        for _ in 0..2 {
            slots.release(hog.pop().unwrap());
            assert_eq!(slots.ask(peer(1), None, now), Answer::Busy);
        }
        slots.release(hog.pop().unwrap());
        hog.push(granted(slots.ask(peer(1), None, now)));
        assert_eq!((hog.len(), other.len(), slots.taken()), (2, 2, 4));
    }

    #[test]
    fn a_slot_that_is_released_goes_to_the_peer_that_waits() {
        let (mut slots, now) = (Slots::new(2), Instant::now());
        let mut first = vec![granted(slots.ask(peer(1), None, now))];
        let _second = granted(slots.ask(peer(2), None, now));
        assert_eq!(slots.ask(peer(3), None, now), Answer::Busy, "each of two peers has its share");
        slots.release(first.pop().unwrap());
        assert_eq!(slots.ask(peer(2), None, now), Answer::Busy, "kept for a peer that has none");
        let _third = granted(slots.ask(peer(3), None, now));
    }

    #[test]
    fn a_peer_that_was_refused_and_went_away_is_forgotten() {
        let (mut slots, now) = (Slots::new(2), Instant::now());
        let first = granted(slots.ask(peer(1), None, now));
        let _second = granted(slots.ask(peer(2), None, now));
        assert_eq!(slots.ask(peer(3), None, now), Answer::Busy);
        slots.release(first);
        assert_eq!(slots.ask(peer(2), None, now), Answer::Busy, "a slot is kept for the one that waits");
        let _first = granted(slots.ask(peer(2), None, now + MEMORY));
    }

    #[test]
    fn slots_follow_the_uplink_while_slow_receivers_leave_room_in_it() {
        let (mut slots, mut now) = (Slots::new(2), Instant::now());
        let _slow = [granted(slots.ask(peer(1), None, now)), granted(slots.ask(peer(2), None, now))];
        let mut fast = None;
        for _ in 0..20 {
            now += MEMORY / 10;
            slots.sent(1000, now);
            if let Answer::Granted(grant) = slots.ask(peer(3), None, now) {
                fast.get_or_insert(grant);
            }
        }
        assert!(fast.is_some(), "a third stream is tried after a window, though each peer has but one");
        let refused = (0..Slots::most(2) + 1).filter(|_| matches!(slots.ask(peer(4), None, now), Answer::Busy)).count();
        assert!(refused > 0, "there is a bound");
    }

    #[test]
    fn a_flood_of_requesters_takes_little_memory() {
        let (mut slots, mut now) = (Slots::new(1), Instant::now());
        let _only = granted(slots.ask(peer(1), None, now));
        let stranger = |n: u32| {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&n.to_le_bytes());
            Some(PeerId::from_bytes(id))
        };
        for n in 0..5_000 {
            now += Duration::from_nanos(1);
            assert_eq!(slots.ask(stranger(n), None, now), Answer::Busy);
            assert!(slots.refused.len() <= REMEMBERED);
        }
        assert!(slots.refused.contains_key(&stranger(4_999)) && !slots.refused.contains_key(&stranger(0)));
    }

    #[test]
    fn a_peer_to_which_little_comes_is_served_beyond_the_slots_and_one_to_which_much_comes_waits_for_others() {
        let (mut slots, now) = (Slots::new(4), Instant::now());
        let grants: Vec<_> = (0..4).map(|n| granted(slots.ask(peer(n), Some(8), now))).collect();
        assert_eq!(slots.ask(peer(8), Some(8), now), Answer::Busy, "as much as usual");
        let needy = granted(slots.ask(peer(9), Some(0), now));
        assert_eq!(slots.taken(), 5);
        grants.into_iter().skip(1).chain([needy]).for_each(|grant| slots.release(grant));
        assert_eq!(slots.ask(peer(10), Some(64), now), Answer::Busy, "the free slots are for the one that waits");
        let _next = granted(slots.ask(peer(8), Some(8), now));
    }

    #[test]
    fn several_downloads_of_one_peer_are_one_requester() {
        let (mut slots, now) = (Slots::new(4), Instant::now());
        // Whichever files they are of: a request has no more than its peer's name.
        let mut many: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), None, now))).collect();
        let other: Vec<_> = (0..2).map(|_| granted(slots.ask(peer(2), None, now))).collect();
        assert_eq!(slots.ask(peer(2), None, now), Answer::Busy);
        (0..3).for_each(|_| slots.release(many.pop().unwrap()));
        many.push(granted(slots.ask(peer(1), None, now)));
        assert_eq!(slots.ask(peer(1), None, now), Answer::Busy, "half of them, for two peers");
        assert_eq!((many.len(), other.len()), (2, 2));
    }

    /// Requesters that ask again every `every`, and at once when their chunk has come: how many chunks each got.
    fn served(limit: RateLimit, count: usize, requesters: u8, every: Duration, chunks: usize) -> Vec<usize> {
        let (mut slots, mut now) = (Slots::new(count), Instant::now());
        slots.limit(limit);
        slots.begins(256 << 10);
        let (mut got, mut out) = (vec![0; requesters.into()], Vec::new());
        for chunk in 0.. {
            // The time of a chunk, in which all others ask again and again.
            for _ in 0..8 {
                now += every;
                for n in 0..requesters {
                    if let Answer::Granted(grant) = slots.ask(peer(n), None, now) {
                        out.push((n, grant));
                    }
                }
            }
            if chunk == chunks {
                break;
            }
            let (n, grant) = out.remove(0);
            slots.release(grant);
            got[usize::from(n)] += 1;
            // Nobody is as quick as the one whose chunk has just come.
            if let Answer::Granted(grant) = slots.ask(peer(n), None, now) {
                out.push((n, grant));
            }
        }
        got
    }

    #[test]
    fn under_a_low_limit_more_requesters_than_slots_are_served_in_turn() {
        for (rate, requesters) in [(16 << 10, 3), (16 << 10, 7), (128 << 10, 3), (192 << 10, 8)] {
            let got = served(RateLimit::new(rate).unwrap(), 4, requesters, MEMORY / 2, 60);
            let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
            assert!(most - least <= 1, "{got:?}");
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(u8, Option<u32>),
        Release(prop::sample::Index),
        Pass(u64),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u8..12, prop::option::of(0u32..20)).prop_map(|(peer, receiving)| Event::Ask(peer, receiving)),
            2 => any::<prop::sample::Index>().prop_map(Event::Release),
            1 => (0u64..1500).prop_map(Event::Pass),
        ]
    }

    proptest! {
        #[test]
        fn the_properties_hold(count in 1usize..9, bytes in 0u64..1000, events in proptest::collection::vec(events(), 1..200)) {
            let (mut slots, mut now) = (Slots::new(count), Instant::now());
            let mut grants: Vec<Grant> = Vec::new();
            let mut refused: BTreeMap<Requester, Instant> = BTreeMap::new();
            for event in events {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::Release(at) if !grants.is_empty() => slots.release(grants.swap_remove(at.index(grants.len()))),
                    Event::Release(_) => {}
                    Event::Ask(n, receiving) => {
                        let requester = peer(n);
                        let held = grants.iter().filter(|grant| grant.requester == requester).count();
                        slots.sent(bytes, now);
                        refused.retain(|_, at| now < *at + MEMORY);
                        let holders = grants.iter().map(|grant| grant.requester);
                        let competing: BTreeSet<_> =
                            holders.chain(refused.keys().copied()).chain([requester]).collect();
                        let wanted = refused.keys().any(|other| *other != requester);
                        let answer = slots.ask(requester, receiving, now);
                        let share = slots.count().div_ceil(competing.len());
                        let others = |other: &Requester| grants.iter().filter(|g| g.requester == *other).count();
                        let within: usize = competing.iter().map(|other| others(other).min(share)).sum();
                        match answer {
                            Answer::Granted(grant) => {
                                let most = slots.count() * if receiving.is_some() { 2 } else { 1 };
                                prop_assert!(within < most, "a slot that was taken was granted");
                                prop_assert!(!wanted || held < share, "more than a fair share");
                                refused.remove(&requester);
                                grants.push(grant);
                            }
                            Answer::Busy => {
                                let free = within < slots.count() && grants.len() < Slots::most(count);
                                let needs = receiving.is_none() || !wanted;
                                prop_assert!(!free || !needs || held >= share, "refused though there was a slot of its share");
                                prop_assert!(wanted || grants.len() >= slots.count(), "refused for no reason");
                                refused.insert(requester, now);
                            }
                        }
                    }
                }
                prop_assert_eq!(slots.taken(), grants.len());
                prop_assert!(slots.taken() <= Slots::most(count));
            }
        }
    }
}
