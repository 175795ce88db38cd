//! Which requests get an upload slot.
//!
//! Few streams at full rate finish chunks sooner than many slow ones, and a finished chunk can be served by the
//! peer that got it. So there is a fixed number of slots, and a request beyond them is told "busy" at once and
//! goes elsewhere; there is no queue, because a wish that waited is stale.
//!
//! What holds at all times (each line has a property test):
//! - no more grants are out than there are slots;
//! - a requester alone may have every slot;
//! - while another requester was refused within [`MEMORY`], none gets more than its fair share: the slots
//!   divided by the requesters that hold or want one, rounded up;
//! - a released slot is free at once;
//! - however many requesters ask, no more than [`REMEMBERED`] are remembered, the latest ones.
//!
//! Anonymous requests (from clients that name no peer) count as one requester.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::PeerId;

/// A refused requester counts as waiting for this long: twice the longest pause after which it asks again.
pub const MEMORY: Duration = Duration::from_secs(1);

/// Refused requesters that are remembered at once: far more than peers that share a few slots, and little memory.
pub const REMEMBERED: usize = 1024;

/// The peer that asks; `None` if it did not say.
pub type Requester = Option<PeerId>;

/// The upload slots of one peer.
#[derive(Debug)]
pub struct Slots {
    count: usize,
    /// Grants that are out, by requester; none is 0.
    held: BTreeMap<Requester, usize>,
    /// When each requester that was refused and has got nothing since was refused last.
    refused: BTreeMap<Requester, Instant>,
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
    /// So many slots, at least one.
    pub fn new(count: usize) -> Self {
        Self { count: count.max(1), held: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.count
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
    pub fn ask(&mut self, requester: Requester, now: Instant) -> Answer {
        self.refused.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        let held = self.held.get(&requester).copied().unwrap_or(0);
        let within_share = held < self.fair_share(requester) || !self.others_wait(requester, now);
        if self.taken() < self.count && within_share {
            self.refused.remove(&requester);
            *self.held.entry(requester).or_default() += 1;
            Answer::Granted(Grant { requester })
        } else {
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
        self.refused.insert(requester, now);
        if self.refused.len() > REMEMBERED {
            let oldest = self.refused.iter().min_by_key(|(_, at)| **at).map(|(requester, _)| *requester);
            oldest.map(|oldest| self.refused.remove(&oldest));
        }
    }

    fn waiting(&self, now: Instant) -> impl Iterator<Item = Requester> + '_ {
        let recent = move |at: &Instant| now.saturating_duration_since(*at) < MEMORY;
        self.refused.iter().filter(move |(_, at)| recent(at)).map(|(requester, _)| *requester)
    }

    /// What each requester may hold while others want more, the asking one counted; at least 1.
    fn fair_share(&self, asking: Requester) -> usize {
        let others = self.refused.keys().filter(|other| !self.held.contains_key(*other) && **other != asking).count();
        let asking = usize::from(!self.held.contains_key(&asking));
        self.count.div_ceil(self.held.len() + others + asking)
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
        let grants: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), now))).collect();
        assert_eq!(slots.ask(peer(1), now), Answer::Busy, "the fifth is refused");
        assert_eq!(slots.taken(), 4);
        for grant in grants {
            slots.release(grant);
        }
        assert_eq!(slots.taken(), 0);
        let _last = granted(slots.ask(peer(1), now));
    }

    #[test]
    fn a_slot_that_is_released_goes_to_the_peer_that_waits() {
        let (mut slots, mut now) = (Slots::new(4), Instant::now());
        let mut hog: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), now))).collect();
        assert_eq!(slots.ask(peer(2), now), Answer::Busy);
        // The hog is faster to ask again: it is refused, the other one is served, until both hold half.
        let mut other = Vec::new();
        for _ in 0..2 {
            slots.release(hog.pop().unwrap());
            now += Duration::from_millis(1);
            assert_eq!(slots.ask(peer(1), now), Answer::Busy);
            other.push(granted(slots.ask(peer(2), now)));
            assert_eq!(slots.ask(peer(2), now), Answer::Busy, "it wants more");
        }
        slots.release(hog.pop().unwrap());
        hog.push(granted(slots.ask(peer(1), now)));
        assert_eq!((hog.len(), other.len(), slots.taken()), (2, 2, 4));
    }

    #[test]
    fn a_peer_that_was_refused_and_went_away_is_forgotten() {
        let (mut slots, now) = (Slots::new(2), Instant::now());
        let _first = granted(slots.ask(peer(1), now));
        let second = granted(slots.ask(peer(1), now));
        assert_eq!(slots.ask(peer(2), now), Answer::Busy);
        slots.release(second);
        assert_eq!(slots.ask(peer(1), now), Answer::Busy, "a slot is kept for the one that waits");
        let _second = granted(slots.ask(peer(1), now + MEMORY));
    }

    #[test]
    fn a_flood_of_requesters_takes_little_memory() {
        let (mut slots, mut now) = (Slots::new(1), Instant::now());
        let _only = granted(slots.ask(peer(1), now));
        let stranger = |n: u32| {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&n.to_le_bytes());
            Some(PeerId::from_bytes(id))
        };
        for n in 0..5_000 {
            now += Duration::from_nanos(1);
            assert_eq!(slots.ask(stranger(n), now), Answer::Busy);
            assert!(slots.refused.len() <= REMEMBERED);
        }
        assert!(slots.refused.contains_key(&stranger(4_999)) && !slots.refused.contains_key(&stranger(0)));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(u8),
        Release(prop::sample::Index),
        Pass(u64),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u8..12).prop_map(Event::Ask),
            2 => any::<prop::sample::Index>().prop_map(Event::Release),
            1 => (0u64..1500).prop_map(Event::Pass),
        ]
    }

    proptest! {
        #[test]
        fn the_properties_hold(count in 1usize..9, events in proptest::collection::vec(events(), 1..200)) {
            let (mut slots, mut now) = (Slots::new(count), Instant::now());
            let mut grants: Vec<Grant> = Vec::new();
            let mut refused: BTreeMap<Requester, Instant> = BTreeMap::new();
            for event in events {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::Release(at) if !grants.is_empty() => slots.release(grants.swap_remove(at.index(grants.len()))),
                    Event::Release(_) => {}
                    Event::Ask(n) => {
                        let requester = peer(n);
                        let held = grants.iter().filter(|grant| grant.requester == requester).count();
                        refused.retain(|_, at| now < *at + MEMORY);
                        let holders = grants.iter().map(|grant| grant.requester);
                        let competing: BTreeSet<_> =
                            holders.chain(refused.keys().copied()).chain([requester]).collect();
                        let free = count - grants.len();
                        let wanted = refused.keys().any(|other| *other != requester);
                        match slots.ask(requester, now) {
                            Answer::Granted(grant) => {
                                prop_assert!(free > 0, "a slot that was taken was granted");
                                prop_assert!(!wanted || held < count.div_ceil(competing.len()), "more than a fair share");
                                refused.remove(&requester);
                                grants.push(grant);
                            }
                            Answer::Busy => {
                                prop_assert!(free == 0 || wanted, "refused for no reason");
                                prop_assert!(free == 0 || held > 0, "the share of a peer that holds nothing is at least 1");
                                refused.insert(requester, now);
                            }
                        }
                    }
                }
                prop_assert_eq!(slots.taken(), grants.len());
                prop_assert!(slots.taken() <= count);
            }
        }
    }
}
