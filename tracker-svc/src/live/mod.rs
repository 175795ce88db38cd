//! The half of the tracker that lives in memory: leases, swarms, manifests that arrive in parts.
//!
//! Invariants: a peer is a holder in exactly the swarms that its lease lists; a swarm is kept while it has a
//! holder or a watcher; a swarm's name stands for the swarm's content in the catalogue. The last one is
//! why [`Live::settle`] and [`Live::release`] are only called under the lock on names in [`crate::registry`].
//! Everything here is lost at a restart and told anew by the peers.
//!
//! Pure: never blocks, reads no clock, knows no runtime. What happened that others wait for is noted as [`News`],
//! which the caller takes after each change.

pub mod identities;
pub mod introductions;
pub mod leases;
pub mod staging;
pub mod swarm;
pub mod watches;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use self::{
    identities::{Held, Identities, Ruling},
    introductions::Introductions,
    leases::{Lease, Leases},
    staging::{Staged, Staging},
    swarm::Swarm,
};
use crate::{error::Error, limits::MAX_PEERS, verdict::judge};
use drizzle_proto::{
    Address, FileInfo, FileName, PeerClaim, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    holder::Holder,
};

#[derive(Debug)]
struct LiveSwarm {
    /// Tells this swarm from a later one of the same name.
    serial: u64,
    swarm: Swarm,
    /// The neighbours of those that watch in that way; none watches.
    introductions: Option<Box<Introductions>>,
}

/// Something that others may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// This lease has ended.
    LeaseEnded(u64),
    /// A watched swarm changed, or the neighbours of one watcher, by its serial number.
    SwarmChanged(u64),
    /// That is gone, by its serial number: the name was released, or the last watcher left.
    SwarmEnded(u64),
}

/// Leases, swarms and staged manifests.
#[derive(Debug)]
pub struct Live {
    leases: Leases,
    identities: Identities,
    swarms: HashMap<FileName, LiveSwarm>,
    staging: Staging,
    watchers: usize,
    serials: u64,
    news: Vec<News>,
}

/// How much lives here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveCounts {
    /// Live peers.
    pub peers: usize,
    /// Files with a swarm.
    pub swarms: usize,
    /// Holders over all swarms.
    pub holders: usize,
    /// Watches.
    pub watches: usize,
    /// Bytes set aside for manifests that arrive in parts.
    pub staged_bytes: usize,
}

/// A lease that was opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Names it.
    pub lease: u64,
    /// Why the peer id was granted.
    pub ruling: Ruling,
    /// Where the lease that it replaced was, if that was live.
    pub before: Option<Address>,
}

impl Live {
    /// No peer is known yet; leases will last this long.
    pub fn new(lease: Duration) -> Self {
        let (leases, swarms, staging) = (Leases::new(lease), HashMap::new(), Staging::default());
        Self { leases, identities: Identities::new(lease), swarms, staging, watchers: 0, serials: 0, news: Vec::new() }
    }

    /// Opens a lease for a peer under one of the candidate ids, replacing an earlier one, unless the id is another
    /// process's.
    pub fn open_lease(
        &mut self,
        candidates: impl IntoIterator<Item = u64>,
        claim: PeerClaim,
        now: Instant,
    ) -> Result<Opened, Error> {
        let peer = claim.peer.id();
        let held = self.leases.of_live_peer(peer, now);
        let before = held.map(|lease| lease.peer.address().clone());
        let held = held.map(|lease| Held {
            lease: lease.id,
            session: lease.session,
            address: lease.peer.address(),
            renewed: lease.renewed(),
        });
        let ruling = self.identities.judge(&claim, held, now);
        let holder = before.clone();
        match ruling {
            Ruling::Wait { first } => return Err(Error::IdInUse { peer, holder, first }),
            Ruling::Copy => return Err(Error::CopiedState { peer, holder }),
            _ => {}
        }
        if let Some((old, _)) = self.leases.of_peer(peer) {
            self.close_lease(old);
        }
        if self.leases.len() >= MAX_PEERS {
            return Err(Error::TooManyPeers);
        }
        let id = candidates.into_iter().find(|&id| id != 0 && !self.leases.contains(id));
        let id = id.ok_or(Error::TooManyPeers)?;
        self.leases.open(id, claim.peer, claim.session, now);
        Ok(Opened { lease: id, ruling, before })
    }

    /// A live peer that tells the same address as the peer of this lease, if there is one.
    pub fn same_address(&self, lease: u64, now: Instant) -> Option<&PeerInfo> {
        self.leases.same_address(lease, now)
    }

    /// Ends a lease because its process ends.
    pub fn leave(&mut self, lease: u64) -> Option<(PeerId, usize)> {
        if let Some(lease) = self.leases.find(lease) {
            self.identities.left(lease.peer.id(), lease.session);
        }
        self.close_lease(lease)
    }

    /// The peer whose lease this is.
    pub fn peer(&self, lease: u64, now: Instant) -> Result<PeerId, Error> {
        self.leases.get(lease, now).map(|lease| lease.peer.id()).ok_or(Error::UnknownLease)
    }

    /// What happened since this was called last.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// How much there is, without what a lease holds that is over and not yet reaped. Looks at every swarm.
    pub fn counts_all(&self, now: Instant) -> LiveCounts {
        let holders = |known: &LiveSwarm| known.swarm.peers().filter(|peer| self.is_alive(*peer, now)).count();
        let swarms = self.swarms.values().map(|known| (holders(known), known.watchers()));
        let (mut live, mut held) = (0, 0);
        for (holders, watchers) in swarms {
            live += usize::from(holders + watchers > 0);
            held += holders;
        }
        LiveCounts {
            peers: self.leases.live(now),
            swarms: live,
            holders: held,
            watches: self.watchers,
            staged_bytes: self.staging.bytes(),
        }
    }

    /// Whether a peer has a lease.
    pub fn is_alive(&self, peer: PeerId, now: Instant) -> bool {
        self.leases.is_alive(peer, now)
    }

    /// Prolongs a lease; files of the peer that were released meanwhile, at most about `budget` bytes.
    pub fn renew(&mut self, lease: u64, budget: usize, now: Instant) -> Result<Vec<FileInfo>, Error> {
        self.leases.renew(lease, budget, now).ok_or(Error::UnknownLease)
    }

    /// Ends a lease and with it everything its peer held; the peer and how many files it held.
    fn close_lease(&mut self, id: u64) -> Option<(PeerId, usize)> {
        let lease = self.leases.close(id)?;
        self.news.push(News::LeaseEnded(id));
        Some(self.forget(&lease))
    }

    /// Ends leases whose time is over; their peers and how many files each held.
    pub fn expire(&mut self, now: Instant) -> Vec<(PeerId, usize)> {
        let mut gone = Vec::new();
        while let Some(lease) = self.leases.pop_expired(now) {
            self.news.push(News::LeaseEnded(lease.id));
            gone.push(self.forget(&lease));
        }
        gone
    }

    /// The tracker runs; how long it did not before, if that was long. See [`Leases::pulse`].
    pub fn pulse(&mut self, now: Instant) -> Option<Duration> {
        self.leases.pulse(now)
    }

    /// As [`Live::pulse`], at each call. See [`Leases::woke`].
    pub fn woke(&mut self, now: Instant) -> Option<Duration> {
        self.leases.woke(now)
    }

    /// When [`Live::expire`] is worth calling next.
    pub fn next_expiry(&self, now: Instant) -> Instant {
        self.leases.next_expiry(now)
    }

    /// How many peers live.
    pub fn peers(&self) -> usize {
        self.leases.len()
    }

    /// Judges an announcement by the swarms alone; `None` if the name has none, or other content than the claimed one,
    /// and the catalogue must say.
    pub fn announce(&mut self, lease: u64, entry: &FileChunks, now: Instant) -> Result<Option<FileOutcome>, Error> {
        let outcome = match self.swarms.get(&entry.file.name) {
            _ if entry.gone => FileOutcome::Registered,
            Some(known) if known.swarm.file().id == entry.file.id => judge(known.swarm.file(), &entry.file, false),
            // Which peer owns the name, and so may replace its content, stands in the catalogue.
            _ => return self.peer(lease, now).map(|_| None),
        };
        self.settle(lease, entry, &outcome, now)?;
        Ok(Some(outcome))
    }

    /// Does to the swarms what the outcome of an entry says. If that is `Registered`, the name must stand
    /// for the entry's file in the catalogue.
    pub fn settle(&mut self, lease: u64, entry: &FileChunks, outcome: &FileOutcome, now: Instant) -> Result<(), Error> {
        match outcome {
            FileOutcome::Registered if entry.gone => self.drop_holder(self.peer(lease, now)?, &entry.file.name),
            FileOutcome::Registered => self.enter(lease, entry, now)?,
            // Its copy of the registered content is no more, if it ever had one.
            FileOutcome::Refused { .. } => self.drop_holder(self.peer(lease, now)?, &entry.file.name),
            FileOutcome::NeedHashes(_) | FileOutcome::Invalid(_) => {}
        }
        Ok(())
    }

    fn enter(&mut self, lease: u64, entry: &FileChunks, now: Instant) -> Result<(), Error> {
        let lease = self.leases.get_mut(lease, now).ok_or(Error::UnknownLease)?;
        if !Swarm::makes_holder(&entry.held) {
            return Ok(());
        }
        let known = swarm_of(&mut self.swarms, &mut self.serials, &entry.file);
        if known.announce(&lease.peer, &entry.held, &mut self.news) {
            lease.files.insert(known.swarm.file().name.clone());
        }
        Ok(())
    }

    /// Adds hashes to a manifest that arrives in parts.
    pub fn stage(&mut self, lease: u64, entry: &FileChunks, now: Instant) -> Result<Staged, Error> {
        self.peer(lease, now)?;
        Ok(self.staging.add(lease, entry, now))
    }

    /// Whether a name's owner, or a holder of its file, is alive.
    pub fn is_attended(&self, name: &FileName, owner: PeerId, now: Instant) -> bool {
        let mut holders = self.swarms.get(name).into_iter().flat_map(|known| known.swarm.peers());
        self.is_alive(owner, now) || holders.any(|peer| self.is_alive(peer, now))
    }

    /// Whether the peer holds some of the file, and whether another one does.
    pub fn holders(&self, name: &FileName, peer: PeerId) -> (bool, bool) {
        let Some(entry) = self.swarms.get(name) else { return (false, false) };
        (entry.swarm.is_holder(peer), entry.swarm.peers().any(|other| other != peer))
    }

    /// Ends one peer's holding of one file.
    pub fn drop_holder(&mut self, peer: PeerId, name: &FileName) {
        if let Some((_, lease)) = self.leases.of_peer(peer) {
            lease.files.remove(name);
        }
        self.drop_from_swarm(peer, name);
    }

    /// Drops a file's swarm because its name was released, by a peer or by none: its watches end, its other holders are
    /// told when they renew. How many they are.
    pub fn release(&mut self, name: &FileName, by: Option<PeerId>) -> usize {
        let Some(entry) = self.swarms.remove(name) else { return 0 };
        let mut told = 0;
        entry.ended(&mut self.news);
        for peer in entry.swarm.peers() {
            if let Some((_, lease)) = self.leases.of_peer(peer) {
                lease.files.remove(name);
                if by != Some(peer) {
                    lease.note_released(entry.swarm.file().clone());
                    told += 1;
                }
            }
        }
        told
    }

    /// Where a live peer is reached.
    pub fn address(&self, peer: PeerId, now: Instant) -> Option<Address> {
        self.leases.of_live_peer(peer, now).map(|lease| lease.peer.address().clone())
    }

    /// The file that a name stands for, if it has a swarm.
    pub fn file(&self, name: &FileName) -> Option<&FileInfo> {
        self.swarms.get(name).map(|entry| entry.swarm.file())
    }

    /// Full and partial holders of exactly this file.
    pub fn counts(&self, file: &FileInfo) -> (u32, u32) {
        self.swarm(file).map_or((0, 0), Swarm::counts)
    }

    /// A page of the holders of exactly this file, and whether it is the last one.
    pub fn page(&self, file: &FileInfo, after: Option<PeerId>, budget: usize) -> (Vec<Holder>, bool) {
        self.swarm(file).map_or((Vec::new(), true), |swarm| swarm.page(after, budget))
    }

    /// Some holders of a file: see [`Swarm::sample`].
    pub fn sample(&self, file: &FileInfo, after: Option<PeerId>, most: usize, budget: usize) -> Vec<Holder> {
        self.swarm(file).map_or(Vec::new(), |swarm| swarm.sample(after, most, budget))
    }

    fn swarm(&self, file: &FileInfo) -> Option<&Swarm> {
        // The name may have been released and taken by other content since the caller looked it up.
        self.swarms.get(&file.name).map(|entry| &entry.swarm).filter(|swarm| swarm.file() == file)
    }

    fn forget(&mut self, lease: &Lease) -> (PeerId, usize) {
        self.staging.drop_lease(lease.id);
        for name in &lease.files {
            self.drop_from_swarm(lease.peer.id(), name);
        }
        (lease.peer.id(), lease.files.len())
    }

    fn drop_from_swarm(&mut self, peer: PeerId, name: &FileName) {
        if let Some(entry) = self.swarms.get_mut(name)
            && entry.remove(peer, &mut self.news)
        {
            self.drop_if_idle(name);
        }
    }

    fn drop_if_idle(&mut self, name: &FileName) {
        if self.swarms.get_mut(name).is_some_and(LiveSwarm::is_idle) {
            self.swarms.remove(name);
        }
    }
}

fn swarm_of<'a>(swarms: &'a mut HashMap<FileName, LiveSwarm>, serials: &mut u64, file: &FileInfo) -> &'a mut LiveSwarm {
    swarms.entry(file.name.clone()).or_insert_with(|| {
        *serials += 1;
        LiveSwarm { serial: *serials, swarm: Swarm::new(file.clone()), introductions: None }
    })
}
