//! Which peers are alive, and what each of them has told.
//!
//! A peer lives as long as its lease is renewed. Invariants: a peer has at most one lease; the queue holds
//! exactly one entry for each lease. Never reads the clock: `now` is passed in, so that expiry is testable.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use drizzle_proto::{FileInfo, FileName, PeerId, PeerInfo};

use crate::limits::MAX_RELEASED;

/// A live peer.
#[derive(Debug)]
pub struct Lease {
    /// Names the lease.
    pub id: u64,
    /// The peer as others know it.
    pub peer: PeerInfo,
    /// Names of the files in whose swarm it is a holder.
    pub files: HashSet<FileName>,
    released: VecDeque<FileInfo>,
    expires: Instant,
}

impl Lease {
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
    queue: BTreeSet<(Instant, u64)>,
}

impl Leases {
    /// No lease yet; each will last this long after its last renewal.
    pub fn new(lasts: Duration) -> Self {
        Self { lasts, by_id: HashMap::new(), by_peer: HashMap::new(), queue: BTreeSet::new() }
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
    pub fn open(&mut self, id: u64, peer: PeerInfo, now: Instant) {
        debug_assert!(!self.by_id.contains_key(&id) && !self.by_peer.contains_key(&peer.id()));
        let expires = now + self.lasts;
        let (files, released) = (HashSet::new(), VecDeque::new());
        self.by_peer.insert(peer.id(), id);
        let lease = Lease { id, peer, files, released, expires };
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
        self.by_peer.get(&peer).is_some_and(|&id| self.get(id, now).is_some())
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
        lease.expires = now + self.lasts;
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
        leases.open(id, PeerInfo::new(peer, "h:1".parse().unwrap(), Default::default()), now);
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
    fn a_closed_lease_leaves_nothing() {
        let mut leases = Leases::new(LASTS);
        let now = Instant::now();
        open(&mut leases, 1, now);
        assert!(leases.close(1).is_some());
        assert!(leases.close(1).is_none());
        assert!(leases.of_peer(PeerId::from_bytes([1; 16])).is_none());
        assert!(leases.is_empty() && leases.queue.is_empty());
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
