//! The holders that a download knows of, and which of them a new snapshot leaves in doubt.
//!
//! A tracker that restarts knows no holders at first; the peers re-register by themselves. So what was known
//! stays known for a grace period (invariant 5).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::{
    PeerId,
    holder::{HolderChange, HolderChanges},
};

/// A holder that a new snapshot does not name is believed this long: peers renew every 5 s by default.
const GRACE: Duration = Duration::from_secs(20);
/// What a download hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Located {
    /// Apply this.
    Change(HolderChange),
    /// The first snapshot is complete.
    Synced,
    /// The name was released, or stands for other content now: this download cannot go on.
    Withdrawn(String),
}

/// The holders that were told on, and which of them a snapshot has yet to confirm. Pure.
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
                HolderChange::Is(holder) if holder.peer.id() != self.own => {
                    self.known.insert(holder.peer.id(), None);
                }
                // Chunks of a holder that was never described cannot be asked for: no address.
                HolderChange::Added(peer, _) if self.known.contains_key(peer) => {}
                HolderChange::Gone(peer) if self.known.remove(peer).is_some() => {}
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
        HolderChanges { reset: true, changes: peers.iter().map(|&n| is(n)).collect(), synced: true }
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
    fn changes_of_unknown_holders_are_dropped() {
        let mut view = HolderView::new(peer(0));
        let chunks = ChunkSet::empty(ChunkCount::new(3).unwrap());
        let changes = vec![HolderChange::Added(peer(1), chunks), HolderChange::Gone(peer(2)), is(0)];
        assert_eq!(view.apply(HolderChanges { changes, ..Default::default() }, Instant::now()), []);
    }
}
