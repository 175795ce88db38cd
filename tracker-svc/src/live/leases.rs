//! Which peers are alive, and what each of them has told.
//!
//! A peer lives as long as its lease is renewed. Invariants: a peer has at most one lease; the queue holds
//! exactly one entry for each lease, and so do the addresses. Time in which the tracker itself did not run (stopped, or
//! its machine paused) ends no lease: it could hear no renewal. Never reads the clock: `now` is passed in, so that expiry
//! is testable.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use drizzle_proto::{Address, FileInfo, FileName, PeerId, PeerInfo, Session};

use crate::limits::MAX_RELEASED;

/// A live peer.
#[derive(Debug)]
pub struct Lease {
    /// Names the lease.
    pub id: u64,
    /// The peer as others know it.
    pub peer: PeerInfo,
    /// The process that holds it, if that tells.
    pub session: Option<Session>,
    /// Names of the files in whose swarm it is a holder.
    pub files: HashSet<FileName>,
    released: VecDeque<FileInfo>,
    renewed: Instant,
    expires: Instant,
}

impl Lease {
    /// When it was opened or last renewed.
    pub fn renewed(&self) -> Instant {
        self.renewed
    }

    /// Notes that a file of this peer was released.
    pub fn note_released(&mut self, file: FileInfo) {
        if self.released.len() == MAX_RELEASED {
            self.released.pop_front();
        }
        self.released.push_back(file);
    }
}

/// The live leases.
#[derive(Debug)]
pub struct Leases {
    lasts: Duration,
    by_id: HashMap<u64, Lease>,
    by_peer: HashMap<PeerId, u64>,
    by_address: HashMap<Address, BTreeSet<u64>>,
    queue: BTreeSet<(Instant, u64)>,
    /// When the tracker was last known to run, if it says so at all.
    pulse: Option<Instant>,
}

/// The tracker says this often that it runs.
pub const PULSE: Duration = Duration::from_millis(500);
/// Without a word for so long, it did not run.
const ASLEEP: Duration = Duration::from_millis(2500);

impl Leases {
    /// No lease yet; each will last this long after its last renewal.
    pub fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            by_id: HashMap::new(),
            by_peer: HashMap::new(),
            by_address: HashMap::new(),
            queue: BTreeSet::new(),
            pulse: None,
        }
    }

    /// The tracker runs: to be said every [`PULSE`]. How long it did not, if that was long enough to be noticed; all
    /// leases last longer by so much.
    pub fn pulse(&mut self, now: Instant) -> Option<Duration> {
        // A call that waited for its disk still has the time at which it began.
        let last = self.pulse.replace(self.pulse.map_or(now, |last| last.max(now)))?;
        let asleep = now.saturating_duration_since(last);
        if asleep < ASLEEP {
            return None;
        }
        for lease in self.by_id.values_mut() {
            lease.expires += asleep;
        }
        self.queue = self.by_id.values().map(|lease| (lease.expires, lease.id)).collect();
        Some(asleep)
    }

    /// As [`Leases::pulse`], for a call: one may come before the first pulse after a sleep. Nothing is known of a
    /// tracker that never said that it runs.
    pub fn woke(&mut self, now: Instant) -> Option<Duration> {
        self.pulse?;
        self.pulse(now)
    }

    /// How many leases are not over.
    pub fn live(&self, now: Instant) -> usize {
        self.queue.iter().rev().take_while(|(expires, _)| *expires > now).count()
    }

    /// How many leases there are, those included that are over and not yet reaped.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Opens a lease with an id that is not in use. An earlier lease of the peer must have been closed.
    pub fn open(&mut self, id: u64, peer: PeerInfo, session: Option<Session>, now: Instant) {
        debug_assert!(!self.by_id.contains_key(&id) && !self.by_peer.contains_key(&peer.id()));
        let expires = now + self.lasts;
        let (files, released) = (HashSet::new(), VecDeque::new());
        self.by_peer.insert(peer.id(), id);
        self.by_address.entry(peer.address().clone()).or_default().insert(id);
        let lease = Lease { id, peer, session, files, released, renewed: now, expires };
        self.by_id.insert(id, lease);
        self.queue.insert((expires, id));
    }

    /// Whether this id names a lease, live or about to be reaped.
    pub fn contains(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// A live lease. One whose time is over is unknown even before it is reaped.
    pub fn get(&self, id: u64, now: Instant) -> Option<&Lease> {
        self.by_id.get(&id).filter(|lease| lease.expires > now)
    }

    /// A live lease, to be changed.
    pub fn get_mut(&mut self, id: u64, now: Instant) -> Option<&mut Lease> {
        self.by_id.get_mut(&id).filter(|lease| lease.expires > now)
    }

    /// Whether a peer has a live lease.
    pub fn is_alive(&self, peer: PeerId, now: Instant) -> bool {
        self.of_live_peer(peer, now).is_some()
    }

    /// The live lease of a peer.
    pub fn of_live_peer(&self, peer: PeerId, now: Instant) -> Option<&Lease> {
        self.by_peer.get(&peer).and_then(|&id| self.get(id, now))
    }

    /// A live peer that tells the same address as the peer of this lease, if there is one.
    pub fn same_address(&self, id: u64, now: Instant) -> Option<&PeerInfo> {
        let told = self.by_id.get(&id)?.peer.address();
        let mut others = self.by_address.get(told)?.iter().filter(|other| **other != id);
        others.find_map(|&other| Some(&self.get(other, now)?.peer))
    }

    /// A lease, live or about to be reaped.
    pub fn find(&self, id: u64) -> Option<&Lease> {
        self.by_id.get(&id)
    }

    /// The lease of a peer, whether or not its time is over.
    pub fn of_peer(&mut self, peer: PeerId) -> Option<(u64, &mut Lease)> {
        let id = *self.by_peer.get(&peer)?;
        Some((id, self.by_id.get_mut(&id)?))
    }

    /// Prolongs a live lease and takes the released files that were not told yet, as many as fit into
    /// about `budget` bytes; the rest is told at the next renewal.
    pub fn renew(&mut self, id: u64, budget: usize, now: Instant) -> Option<Vec<FileInfo>> {
        let lease = self.by_id.get_mut(&id).filter(|lease| lease.expires > now)?;
        self.queue.remove(&(lease.expires, id));
        (lease.renewed, lease.expires) = (now, now + self.lasts);
        self.queue.insert((lease.expires, id));
        let mut told = Vec::new();
        let mut bytes = 0;
        while let Some(file) = lease.released.front()
            && (told.is_empty() || bytes + file.name.as_str().len() + 128 <= budget)
        {
            bytes += file.name.as_str().len() + 128;
            told.extend(lease.released.pop_front());
        }
        Some(told)
    }

    /// Ends a lease.
    pub fn close(&mut self, id: u64) -> Option<Lease> {
        let lease = self.by_id.remove(&id)?;
        self.by_peer.remove(&lease.peer.id());
        if let Some(leases) = self.by_address.get_mut(lease.peer.address()) {
            leases.remove(&id);
            if leases.is_empty() {
                self.by_address.remove(lease.peer.address());
            }
        }
        self.queue.remove(&(lease.expires, id));
        Some(lease)
    }

    /// Ends and returns one lease whose time is over, if there is one.
    pub fn pop_expired(&mut self, now: Instant) -> Option<Lease> {
        let &(expires, id) = self.queue.first()?;
        if expires > now { None } else { self.close(id) }
    }

    /// When [`Leases::pop_expired`] is worth calling next. Every later lease ends later than this.
    pub fn next_expiry(&self, now: Instant) -> Instant {
        self.queue.first().map_or(now + self.lasts, |&(expires, _)| expires)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test begins its own clock")]
mod tests {
    use drizzle_proto::{FileId, Layout, digest::Digest};

    use super::*;

    const LASTS: Duration = Duration::from_secs(15);

    fn open(leases: &mut Leases, id: u64, now: Instant) {
        let peer = PeerId::from_bytes([u8::try_from(id).unwrap(); 16]);
        leases.open(id, PeerInfo::new(peer, "h:1".parse().unwrap(), Default::default()), None, now);
    }

    #[test]
    fn a_lease_ends_unless_it_is_renewed() {
        let mut leases = Leases::new(LASTS);
        let start = Instant::now();
        open(&mut leases, 1, start);
        open(&mut leases, 2, start);
        assert_eq!(leases.next_expiry(start), start + LASTS);
        assert!(leases.renew(2, 0, start + LASTS / 2).is_some());
        assert!(leases.pop_expired(start + LASTS - Duration::from_nanos(1)).is_none());

        let end = start + LASTS;
        assert!(leases.get(1, end).is_none(), "over, though not reaped");
        let alive = |id| leases.is_alive(PeerId::from_bytes([id; 16]), end);
        assert_eq!((alive(1), alive(2), alive(3)), (false, true, false));
        assert!(leases.renew(1, 0, end).is_none(), "too late");
        assert_eq!((leases.live(end), leases.len()), (1, 2));
        assert_eq!(leases.pop_expired(end).map(|lease| lease.peer.id()), Some(PeerId::from_bytes([1; 16])));
        assert!(leases.pop_expired(end).is_none());
        assert!(leases.get(2, end).is_some());
        assert_eq!(leases.len(), 1);
        assert_eq!(leases.next_expiry(end), end + LASTS / 2);
    }

    #[test]
    fn a_call_that_began_long_before_does_not_make_the_tracker_seem_to_have_slept() {
        let start = Instant::now();
        let mut leases = Leases::new(LASTS);
        leases.pulse(start);
        for second in 1..=3 {
            leases.pulse(start + Duration::from_secs(second));
        }
        // A registration waited for its disk, and settles by its own clock.
        leases.woke(start);
        assert_eq!(leases.pulse(start + Duration::from_millis(3500)), None);
    }

    #[test]
    fn time_in_which_the_tracker_did_not_run_ends_no_lease() {
        let mut leases = Leases::new(LASTS);
        let start = Instant::now();
        assert_eq!(leases.pulse(start), None);
        open(&mut leases, 1, start);
        open(&mut leases, 2, start);
        let thawed = start + 10 * LASTS;
        assert!(
            leases.woke(thawed).is_some() && leases.renew(1, 0, thawed).is_some(),
            "a call that comes first is heard"
        );
        assert_eq!(leases.pulse(thawed), None, "noticed once");
        assert!(leases.pop_expired(thawed).is_none());
        assert_eq!(leases.next_expiry(thawed), thawed + LASTS);
        let again = thawed + 2 * ASLEEP;
        assert_eq!(leases.pulse(again), Some(2 * ASLEEP));
        // From now on it runs, and nothing is renewed.
        let mut now = again;
        while now < again + LASTS {
            assert!(leases.pop_expired(now).is_none());
            now += PULSE;
            assert_eq!(leases.pulse(now), None);
        }
        assert!(leases.pop_expired(now).is_some() && leases.pop_expired(now).is_some());
    }

    #[test]
    fn a_closed_lease_leaves_nothing() {
        let mut leases = Leases::new(LASTS);
        let now = Instant::now();
        open(&mut leases, 1, now);
        assert!(leases.close(1).is_some());
        assert!(leases.close(1).is_none());
        assert!(leases.of_peer(PeerId::from_bytes([1; 16])).is_none());
        assert!(leases.is_empty() && leases.queue.is_empty() && leases.by_address.is_empty());
    }

    #[test]
    fn peers_that_tell_one_address_know_of_each_other_while_both_live() {
        let mut leases = Leases::new(LASTS);
        let start = Instant::now();
        for id in 1..=3 {
            open(&mut leases, id, start);
        }
        let other = |leases: &Leases, id, now| leases.same_address(id, now).map(|peer| peer.id().as_bytes()[0]);
        assert_eq!(other(&leases, 1, start), Some(2));
        assert_eq!(other(&leases, 2, start), Some(1));
        leases.close(2);
        assert_eq!(other(&leases, 1, start), Some(3));
        leases.renew(1, 0, start + LASTS / 2);
        assert_eq!(other(&leases, 1, start + LASTS), None, "its time is over");
    }

    #[test]
    fn released_files_are_told_once_and_in_portions() {
        let mut leases = Leases::new(LASTS);
        let now = Instant::now();
        open(&mut leases, 1, now);
        for n in 0..MAX_RELEASED + 10 {
            leases.get_mut(1, now).unwrap().note_released(FileInfo {
                name: FileName::new(&format!("{n}-{}", "x".repeat(250))).unwrap(),
                id: FileId::from_digest(Digest::of(b"")),
                layout: Layout::new(0, 1 << 14).unwrap(),
            });
        }
        let mut told = Vec::new();
        loop {
            let portion = leases.renew(1, 100_000, now).unwrap();
            if portion.is_empty() {
                break;
            }
            assert!(portion.len() <= 100_000 / (128 + 250), "{}", portion.len());
            told.extend(portion);
        }
        assert_eq!(told.len(), MAX_RELEASED);
        assert!(told[0].name.as_str().starts_with("10-"), "the oldest ten are forgotten: {}", told[0].name);
    }
}
