//! The watchers of a file's holders: those that are told of every holder and chunk, and those that are introduced to a
//! bounded number of neighbours.

use std::time::Instant;

use drizzle_proto::{
    ChunkSet, FileInfo, FileName, PeerId, PeerInfo,
    holder::{Holder, HolderChange, HolderChanges},
};
use rand::{SeedableRng, rngs::StdRng};

use super::{
    Live, LiveSwarm, News,
    introductions::{Introductions, Link, Telling},
    swarm::Cursor,
    swarm_of,
};
use crate::{
    error::Error,
    limits::{MAX_WATCHERS, MESSAGE_BUDGET},
};

/// Bytes of one introduction at most, but for its chunks: its address and its labels.
const INTRODUCTION: usize = 8 << 10;

/// A watcher that wants neighbours.
#[derive(Debug, Clone)]
pub struct Newcomer {
    /// Its lease.
    pub lease: u64,
    /// How many it wants.
    pub wanted: usize,
    /// Those that it has already.
    pub known: Vec<PeerId>,
}

/// A watch that was begun: what [`Live::next_message`] and [`Live::unwatch`] need.
#[derive(Debug)]
pub struct Watch {
    name: FileName,
    /// The swarm's serial number.
    swarm: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// It is told of every holder.
    All(Cursor),
    /// It is told of its neighbours; with a serial number of its own.
    Neighbours(u64),
}

impl Watch {
    /// Names what is watched in [`News`].
    pub fn serial(&self) -> u64 {
        match self.kind {
            Kind::All(_) => self.swarm,
            Kind::Neighbours(serial) => serial,
        }
    }
}

impl Live {
    /// Begins a watch on a file whose name stands for it in the catalogue. A newcomer whose lease is not known is told
    /// of every holder.
    pub fn watch(&mut self, file: &FileInfo, newcomer: Option<&Newcomer>, now: Instant) -> Result<Watch, Error> {
        if self.watchers >= MAX_WATCHERS {
            return Err(Error::TooManyWatchers);
        }
        self.watchers += 1;
        let peer = newcomer.and_then(|newcomer| Some((newcomer, self.leases.get(newcomer.lease, now)?.peer.clone())));
        let entry = swarm_of(&mut self.swarms, &mut self.serials, file);
        let kind = match peer {
            None => Kind::All(entry.swarm.watch()),
            Some((newcomer, peer)) => {
                self.serials += 1;
                // A seed of its own for each swarm: which links are drawn need not be secret.
                let seed = entry.serial;
                let holders = entry.swarm.infos();
                let introductions = entry
                    .introductions
                    .get_or_insert_with(|| Box::new(Introductions::new(holders, StdRng::seed_from_u64(seed))));
                introductions.watch(self.serials, peer, newcomer.wanted, &newcomer.known);
                entry.ring(&mut self.news);
                Kind::Neighbours(self.serials)
            }
        };
        Ok(Watch { name: file.name.clone(), swarm: entry.serial, kind })
    }

    /// What a watcher must be told next, if anything; an error once the name is released.
    pub fn next_message(&mut self, watch: &mut Watch) -> Result<Option<HolderChanges>, Error> {
        match self.swarms.get_mut(&watch.name).filter(|entry| entry.serial == watch.swarm) {
            None => Err(Error::NoSuchFile(watch.name.clone())),
            Some(entry) => Ok(match &mut watch.kind {
                Kind::All(cursor) => entry.swarm.next_message(cursor),
                Kind::Neighbours(serial) => entry.introduce(*serial),
            }),
        }
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, watch: &Watch) {
        self.watchers -= 1;
        let Some(entry) = self.swarms.get_mut(&watch.name).filter(|entry| entry.serial == watch.swarm) else { return };
        match watch.kind {
            Kind::All(_) => {
                entry.swarm.unwatch();
                if entry.swarm.watchers() == 0 {
                    self.news.push(News::SwarmEnded(entry.serial));
                }
            }
            Kind::Neighbours(serial) => {
                self.news.push(News::SwarmEnded(serial));
                if let Some(introductions) = &mut entry.introductions {
                    introductions.unwatch(serial);
                    entry.ring(&mut self.news);
                }
            }
        }
        self.drop_if_idle(&watch.name);
    }
}

impl LiveSwarm {
    /// How many watch.
    pub(super) fn watchers(&self) -> usize {
        self.swarm.watchers() + self.introductions.as_ref().map_or(0, |introductions| introductions.watches().count())
    }

    /// A peer holds these chunks, too; whether that is news.
    pub(super) fn announce(&mut self, peer: &PeerInfo, held: &ChunkSet, news: &mut Vec<News>) -> bool {
        let before = (self.swarm.is_holder(peer.id()), self.swarm.counts().0);
        let is_news = self.swarm.announce(peer, held);
        if is_news {
            self.note_change(news);
            if let Some(introductions) = &mut self.introductions {
                match before {
                    (false, _) => introductions.appeared(peer),
                    (true, full) if full < self.swarm.counts().0 => introductions.changed(peer.id()),
                    (true, _) => {}
                }
                self.ring(news);
            }
        }
        is_news
    }

    /// A peer holds nothing any more; whether it did.
    pub(super) fn remove(&mut self, peer: PeerId, news: &mut Vec<News>) -> bool {
        let held = self.swarm.remove(peer);
        if held {
            self.note_change(news);
            if let Some(introductions) = &mut self.introductions {
                introductions.disappeared(peer);
                self.ring(news);
            }
        }
        held
    }

    /// The name was released: every watch ends.
    pub(super) fn ended(&self, news: &mut Vec<News>) {
        if self.swarm.watchers() > 0 {
            news.push(News::SwarmEnded(self.serial));
        }
        let introduced = self.introductions.iter().flat_map(|introductions| introductions.watches());
        news.extend(introduced.map(News::SwarmEnded));
    }

    /// Whether it has neither a holder nor a watcher.
    pub(super) fn is_idle(&mut self) -> bool {
        // Holders alone need no links.
        if self.introductions.as_ref().is_some_and(|introductions| introductions.is_idle()) {
            self.introductions = None;
        }
        self.introductions.is_none() && self.swarm.is_idle()
    }

    /// Without watchers no one waits.
    fn note_change(&self, news: &mut Vec<News>) {
        if self.swarm.watchers() > 0 {
            news.push(News::SwarmChanged(self.serial));
        }
    }

    fn ring(&mut self, news: &mut Vec<News>) {
        let rung = self.introductions.as_mut().map(|introductions| introductions.take_rung());
        news.extend(rung.into_iter().flatten().map(News::SwarmChanged));
    }

    fn introduce(&mut self, serial: u64) -> Option<HolderChanges> {
        let count = self.swarm.file().layout.chunk_count();
        let most = MESSAGE_BUDGET / (INTRODUCTION + count.get() as usize / 8);
        let introductions = self.introductions.as_mut()?;
        let Telling { begins, peers, is_all } = introductions.next_telling(serial, most.max(1))?;
        let changes = peers.into_iter().filter_map(|(peer, link)| match link {
            Link::Gone => Some(HolderChange::Gone(peer)),
            Link::Parted => Some(HolderChange::Parted(peer)),
            Link::Linked(watcher) => {
                let nothing = |peer| Holder { peer, chunks: ChunkSet::empty(count) };
                let holder = self.swarm.holder_of(peer).or_else(|| watcher.map(nothing));
                holder.map(HolderChange::Is)
            }
        });
        let changes = changes.collect();
        Some(HolderChanges { reset: begins, changes, synced: is_all, introduces: true })
    }
}
