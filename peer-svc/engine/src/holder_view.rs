//! The holders that a download knows of, and which of them a new snapshot leaves in doubt.
//!
//! A tracker that restarts knows no holders at first; the peers re-register by themselves. So what was known
//! stays known for a grace period (invariant 5).
//!
//! What holds (each line has a property test):
//! - the peer itself is never told of, and a holder only with its address: changes of one that was not described are
//!   dropped;
//! - a holder is told to be gone once: when the tracker says so, or when it stayed unconfirmed for [`GRACE`] after the
//!   first snapshot that did not name it, and not before;
//! - the first snapshot is told to be complete once;
//! - no more than [`MOST`] are known at once, whatever the tracker says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::{
    PeerId,
    holder::{HolderChange, HolderChanges},
};

/// A holder that a new snapshot does not name is believed this long: peers renew every 5 s by default.
pub const GRACE: Duration = Duration::from_secs(20);

/// Holders that a download knows at once: far more than it asks, and of the largest file 32 MiB.
pub const MOST: usize = 1024;

/// What a download hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Located {
    /// A holder came, went, or holds more than before.
    Change(HolderChange),
    /// The first snapshot is complete.
    Synced,
    /// This download cannot go on.
    Withdrawn(Withdrawal),
}

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    /// Its owner released it.
    Released,
    /// It stands for other content now.
    Replaced,
    /// An operator stopped it.
    Stopped,
    /// This peer may not read it, or no longer.
    Denied,
}

/// The holders that the download was told of, and which of them a snapshot has yet to confirm.
#[derive(Debug)]
pub struct HolderView {
    own: PeerId,
    /// With the moment at which an unconfirmed holder is given up.
    known: BTreeMap<PeerId, Option<Instant>>,
    synced: bool,
}

impl HolderView {
    /// No holder is known yet; the peer itself (`own`) is never one.
    pub fn new(own: PeerId) -> Self {
        Self { own, known: BTreeMap::new(), synced: false }
    }

    /// The peer itself has another id from now on; what a download must be told. Begin a new watch, too: its snapshot
    /// names the holder that had the id so far.
    pub fn renamed(&mut self, own: PeerId) -> Option<HolderChange> {
        self.own = own;
        self.known.remove(&own).map(|_| HolderChange::Gone(own))
    }

    /// What a download must be told after a message of the watch.
    pub fn apply(&mut self, message: HolderChanges, now: Instant) -> Vec<Located> {
        if message.reset {
            for doubt in self.known.values_mut() {
                doubt.get_or_insert(now + GRACE);
            }
        }
        let mut located = Vec::new();
        for change in message.changes {
            match &change {
                HolderChange::Is(holder) if holder.peer.id() != self.own && self.takes(holder.peer.id()) => {
                    self.known.insert(holder.peer.id(), None);
                }
                // Chunks of a holder that was never described cannot be asked for: no address.
                HolderChange::Added(peer, _) if self.known.contains_key(peer) => {}
                HolderChange::Gone(peer) | HolderChange::Parted(peer) if self.known.remove(peer).is_some() => {}
                _ => continue,
            }
            located.push(Located::Change(change));
        }
        located.extend(self.expire(now).into_iter().map(Located::Change));
        if message.synced && !std::mem::replace(&mut self.synced, true) {
            located.push(Located::Synced);
        }
        located
    }

    fn takes(&self, peer: PeerId) -> bool {
        self.known.len() < MOST || self.known.contains_key(&peer)
    }

    /// Gives up the holders that stayed in doubt for the whole grace period.
    pub fn expire(&mut self, now: Instant) -> Vec<HolderChange> {
        let over: Vec<PeerId> = self
            .known
            .iter()
            .filter(|(_, doubt)| doubt.is_some_and(|until| until <= now))
            .map(|(peer, _)| *peer)
            .collect();
        over.into_iter()
            .map(|peer| {
                self.known.remove(&peer);
                HolderChange::Gone(peer)
            })
            .collect()
    }

    /// When [`HolderView::expire`] is worth calling next.
    pub fn next_expiry(&self, now: Instant) -> Instant {
        self.known.values().flatten().min().copied().unwrap_or(now + GRACE)
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Address, ChunkCount, ChunkSet, Labels, PeerInfo, holder::Holder};
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 16])
    }

    fn is(n: u8) -> HolderChange {
        let chunks = ChunkSet::empty(ChunkCount::new(3).unwrap());
        let peer = PeerInfo::new(peer(n), Address::new("h:1").unwrap(), Labels::default());
        HolderChange::Is(Holder { peer, chunks })
    }

    fn snapshot(peers: &[u8]) -> HolderChanges {
        HolderChanges { reset: true, changes: peers.iter().map(|&n| is(n)).collect(), synced: true, introduces: false }
    }

    #[test]
    fn a_peer_that_takes_another_id_hears_of_the_one_that_had_its_old_id() {
        let (mut view, start) = (HolderView::new(peer(1)), Instant::now());
        assert_eq!(view.apply(snapshot(&[1, 2]), start), [Located::Change(is(2)), Located::Synced]);
        assert_eq!(view.renamed(peer(2)), Some(HolderChange::Gone(peer(2))));
        assert_eq!(view.apply(snapshot(&[1, 2]), start), [Located::Change(is(1))]);
    }

    #[test]
    fn a_snapshot_after_an_outage_forgets_nobody_at_once() {
        let (mut view, start) = (HolderView::new(peer(0)), Instant::now());
        assert_eq!(
            view.apply(snapshot(&[0, 1, 2]), start),
            [Located::Change(is(1)), Located::Change(is(2)), Located::Synced]
        );
        assert_eq!(view.apply(snapshot(&[2]), start), [Located::Change(is(2))], "1 may just not be back yet");
        assert_eq!(view.expire(start + GRACE / 2), []);
        assert_eq!(view.expire(start + GRACE), [HolderChange::Gone(peer(1))]);
        assert_eq!(view.expire(start + GRACE * 9), [], "2 was confirmed");
    }

    #[test]
    fn a_holder_that_comes_back_in_time_stays() {
        let (mut view, start) = (HolderView::new(peer(0)), Instant::now());
        view.apply(snapshot(&[1]), start);
        view.apply(snapshot(&[]), start);
        let back = HolderChanges { changes: vec![is(1)], ..Default::default() };
        view.apply(back, start + GRACE / 2);
        assert_eq!(view.expire(start + GRACE * 2), []);
    }

    #[test]
    fn a_tracker_that_tells_of_holders_without_end_is_not_believed() {
        let mut view = HolderView::new(peer(0));
        let nth = |n: u32| {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            let peer = PeerInfo::new(PeerId::from_bytes(id), Address::new("h:1").unwrap(), Labels::default());
            HolderChange::Is(Holder { peer, chunks: ChunkSet::empty(ChunkCount::new(3).unwrap()) })
        };
        let tell = |from: u32, to: u32| HolderChanges { changes: (from..to).map(nth).collect(), ..Default::default() };
        let most = u32::try_from(MOST).unwrap();
        assert_eq!(view.apply(tell(0, 3 * most), Instant::now()).len(), MOST);
        assert_eq!(view.apply(tell(2 * most, 3 * most), Instant::now()), [], "and not later either");
        assert_eq!(view.apply(tell(0, 1), Instant::now()).len(), 1, "one that is known may change");
    }

    #[test]
    fn changes_of_unknown_holders_are_dropped() {
        let mut view = HolderView::new(peer(0));
        let chunks = ChunkSet::empty(ChunkCount::new(3).unwrap());
        let changes = vec![HolderChange::Added(peer(1), chunks), HolderChange::Gone(peer(2)), is(0)];
        assert_eq!(view.apply(HolderChanges { changes, ..Default::default() }, Instant::now()), []);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Pass(u64),
        /// A message: a new snapshot or not, its last part or not, and changes of holders.
        Message(bool, bool, Vec<(u8, Kind)>),
    }

    #[derive(Debug, Clone, Copy)]
    enum Kind {
        Is,
        Added,
        Gone,
    }

    fn events() -> impl Strategy<Value = Event> {
        let kind = prop_oneof![2 => Just(Kind::Is), 1 => Just(Kind::Added), 1 => Just(Kind::Gone)];
        let changes = proptest::collection::vec((0u8..4, kind), 0..4);
        prop_oneof![
            1 => (0u64..15_000).prop_map(Event::Pass),
            2 => (prop::bool::weighted(0.3), any::<bool>(), changes).prop_map(|(reset, synced, c)| Event::Message(reset, synced, c)),
        ]
    }

    proptest! {
        #[test]
        fn the_download_hears_what_is_promised(events in proptest::collection::vec(events(), 1..80)) {
            let own = peer(0);
            let (mut view, mut now) = (HolderView::new(own), Instant::now());
            // Holders that the download knows, with the moment since which they are in doubt.
            let mut known = std::collections::BTreeMap::<PeerId, Option<Instant>>::new();
            let mut synced = 0;
            for event in events {
                let heard = match event {
                    Event::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        let due = view.next_expiry(now) <= now;
                        let gone = view.expire(now);
                        prop_assert_eq!(due, !gone.is_empty(), "worth looking at that moment, and only then");
                        gone.into_iter().map(Located::Change).collect()
                    }
                    Event::Message(reset, synced, changes) => {
                        if reset {
                            known.values_mut().for_each(|doubt| _ = doubt.get_or_insert(now));
                        }
                        let change = |(n, kind): &(u8, Kind)| match kind {
                            Kind::Is => is(*n),
                            Kind::Added => HolderChange::Added(peer(*n), ChunkSet::empty(ChunkCount::new(3).unwrap())),
                            Kind::Gone => HolderChange::Gone(peer(*n)),
                        };
                        let changes = changes.iter().map(change).collect();
                        view.apply(HolderChanges { reset, changes, synced, introduces: false }, now)
                    }
                };
                for located in heard {
                    match located {
                        Located::Change(HolderChange::Is(holder)) => {
                            prop_assert_ne!(holder.peer.id(), own);
                            known.insert(holder.peer.id(), None);
                        }
                        Located::Change(HolderChange::Added(peer, _)) => prop_assert!(known.contains_key(&peer)),
                        Located::Change(HolderChange::Gone(peer) | HolderChange::Parted(peer)) => prop_assert!(known.remove(&peer).is_some(), "told once"),
                        Located::Synced => synced += 1,
                        Located::Withdrawn(_) => prop_assert!(false, "no message says so"),
                    }
                }
                prop_assert!(synced <= 1);
                prop_assert!(known.values().flatten().all(|since| now < *since + GRACE), "given up when the grace is over");
                let believes = known.len() == view.known.len() && known.keys().all(|peer| view.known.contains_key(peer));
                prop_assert!(believes, "the download and the view know the same holders");
            }
        }

        #[test]
        fn a_holder_that_a_snapshot_leaves_out_is_given_up_after_its_grace_and_not_before(
            others in proptest::collection::vec((0u64..5_000, any::<bool>()), 0..10),
        ) {
            let (mut view, start) = (HolderView::new(peer(0)), Instant::now());
            view.apply(snapshot(&[1, 2]), start);
            let mut now = start + Duration::from_secs(100);
            let doubted = now;
            view.apply(snapshot(&[2]), now);
            let gone = Located::Change(HolderChange::Gone(peer(1)));
            for (ms, reset) in others {
                now += Duration::from_millis(ms);
                let heard = view.apply(HolderChanges { reset, changes: vec![is(2)], synced: true, introduces: false }, now);
                prop_assert_eq!(heard.contains(&gone), now >= doubted + GRACE, "a later snapshot prolongs no doubt");
                if now >= doubted + GRACE {
                    break;
                }
            }
        }
    }
}
