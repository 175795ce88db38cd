//! Neighbours: the tracker introduces each peer to a bounded number of others, and they tell each other directly which
//! chunks they have got. Mirrors the daemon's `locate` and `serve::news`.

use std::rc::Rc;

use drizzle_engine::{
    neighbours::{Silence, Step},
    telling::News,
};
use drizzle_proto::{
    ChunkSet,
    holder::{ChunkNews, HolderChanges},
};

use super::{
    event::{Event, nth},
    options::millis,
    peer::index_of,
    world::World,
};

/// Bytes of ids and framing in a message of news.
const NEWS_HEAD: u64 = 48;
/// Bytes of a call that asks for news.
const CALL: u64 = 120;

/// Bytes of a chunk set on the wire: a bitfield, or runs where they are shorter.
pub(super) fn set_bytes(chunks: &ChunkSet) -> u64 {
    u64::from(chunks.count().get().div_ceil(8).min(4 * chunks.len()))
}

impl World {
    /// A message of the tracker's watch is here.
    pub(super) fn pushed(&mut self, peer: u32, file: usize, message: HolderChanges) {
        let now = self.clock.instant();
        let Some(download) = self.download(peer, file).filter(|download| download.ended.is_none()) else { return };
        let steps = download.neighbours.heard(message, now);
        self.take(peer, file, steps);
        self.pump(peer, file);
    }

    fn take(&mut self, peer: u32, file: usize, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Tell(located) => self.located(peer, file, located),
                Step::Listen(other) => {
                    self.tally.news.add(1, CALL);
                    let at = self.clock.now() + self.delay(peer);
                    self.clock.plan(at, Event::Listen { peer, file: nth(file), to: index_of(other.id()) });
                }
                Step::Ignore(other) => self.ignore(peer, file, index_of(other)),
            }
        }
        self.plan_listening(peer, file);
    }

    fn ignore(&mut self, peer: u32, file: usize, other: u32) {
        self.peers[other as usize].shares[file].listeners.retain(|listener| *listener != peer);
    }

    /// When a peer looks after those that it listens to, if that is soon.
    fn plan_listening(&mut self, peer: u32, file: usize) {
        let now = self.clock.instant();
        let Some(download) = self.download(peer, file) else { return };
        let due = download.neighbours.next_due(now);
        let at = self.clock.moment(due);
        let Some(download) = self.download(peer, file) else { return };
        if download.listens_at.is_none_or(|planned| at < planned) {
            download.listens_at = Some(at);
            self.clock.plan(at, Event::Neighbours { peer, file: nth(file) });
        }
    }

    /// It looks.
    pub(super) fn neighbours_due(&mut self, peer: u32, file: usize) {
        let (at, now) = (self.clock.now(), self.clock.instant());
        let Some(download) = self.download(peer, file).filter(|download| download.ended.is_none()) else { return };
        if download.listens_at == Some(at) {
            download.listens_at = None;
            let steps = download.neighbours.due(now);
            self.take(peer, file, steps);
            self.pump(peer, file);
        }
    }

    /// A peer is asked to tell which chunks it gets.
    pub(super) fn listened(&mut self, peer: u32, file: usize, to: u32) {
        let other = &self.peers[to as usize];
        let share = &other.shares[file];
        let answers = other.alive && (share.download.is_some() || !share.held.is_empty());
        if !answers {
            return self.plan_silence(to, peer, file, Silence::Lost);
        }
        let chunks = Rc::new(share.held.clone());
        let is_full = chunks.is_full();
        self.tell_one(to, peer, file, &chunks, true);
        if is_full {
            self.plan_silence(to, peer, file, Silence::Complete);
        } else {
            self.peers[to as usize].shares[file].listeners.push(peer);
        }
    }

    fn tell_one(&mut self, from: u32, to: u32, file: usize, chunks: &Rc<ChunkSet>, all: bool) {
        self.tally.news.add(1, NEWS_HEAD + set_bytes(chunks));
        let at = self.clock.now() + self.delay(from);
        self.clock.plan(at, Event::Told { peer: to, file: nth(file), from, chunks: chunks.clone(), all });
    }

    fn plan_silence(&mut self, from: u32, to: u32, file: usize, silence: Silence) {
        let at = self.clock.now() + millis(self.options.latency) + self.repeated();
        self.clock.plan(at, Event::Silent { peer: to, file: nth(file), from, silence });
    }

    /// When a peer that has news tells its neighbours: the more there is, and the less it serves, the sooner.
    pub(super) fn plan_telling(&mut self, peer: u32, file: usize) {
        let (now, chunk) = (self.clock.now(), u64::from(self.files[file].manifest.layout().chunk_size()));
        let peer_state = &mut self.peers[peer as usize];
        let is_idle = peer_state.slots.taken() == 0;
        let share = &mut peer_state.shares[file];
        let unsaid = u64::from(share.unsaid.len());
        if unsaid == 0 {
            return;
        }
        let (is_last, is_scarce) = (share.held.is_full(), share.is_scarce);
        let news = News { listeners: share.listeners.len(), bytes: unsaid * chunk, is_last, is_scarce };
        let by_engine = news.pause(is_idle).as_secs_f64() * 1000.0;
        let pause = millis(self.options.news.unwrap_or(by_engine));
        let at = share.told_at.map_or(now, |told| now.max(told + pause));
        if share.tells_at.is_none_or(|planned| at < planned) {
            share.tells_at = Some(at);
            self.clock.plan(at, Event::Tell { peer, file: nth(file) });
        }
    }

    /// A peer tells its neighbours what is new.
    pub(super) fn tell(&mut self, peer: u32, file: usize) {
        let state = &self.peers[peer as usize];
        if !state.alive || state.shares[file].tells_at != Some(self.clock.now()) {
            return;
        }
        let (now, empty) = (self.clock.now(), ChunkSet::empty(self.files[file].count()));
        let share = &mut self.peers[peer as usize].shares[file];
        (share.tells_at, share.told_at, share.is_scarce) = (None, Some(now), false);
        let chunks = Rc::new(std::mem::replace(&mut share.unsaid, empty));
        let (is_full, listeners) = (share.held.is_full(), share.listeners.clone());
        for listener in listeners {
            self.tell_one(peer, listener, file, &chunks, false);
            if is_full {
                self.plan_silence(peer, listener, file, Silence::Complete);
            }
        }
        if is_full {
            self.peers[peer as usize].shares[file].listeners.clear();
        }
    }

    /// A neighbour hears it, if it still misses something.
    pub(super) fn told(&mut self, peer: u32, file: usize, from: u32, chunks: &Rc<ChunkSet>, all: bool) {
        let id = self.ids[from as usize];
        let Some(download) = self.download(peer, file).filter(|download| download.ended.is_none()) else { return };
        let chunks = (**chunks).clone();
        let news = if all { ChunkNews::All(chunks) } else { ChunkNews::More(chunks) };
        if let Some(located) = download.neighbours.told(id, news) {
            self.located(peer, file, located);
            self.pump(peer, file);
        }
    }

    /// A neighbour tells nothing more.
    pub(super) fn fell_silent(&mut self, peer: u32, file: usize, from: u32, silence: Silence) {
        let (id, now) = (self.peers[from as usize].info.id(), self.clock.instant());
        let Some(download) = self.download(peer, file).filter(|download| download.ended.is_none()) else { return };
        if let Some(located) = download.neighbours.fell_silent(id, silence, now, &mut download.rng) {
            self.located(peer, file, located);
            self.pump(peer, file);
        }
        self.plan_listening(peer, file);
    }

    /// A peer wants to hear nothing more of a file: it has it.
    pub(super) fn listen_no_more(&mut self, peer: u32, file: usize) {
        let Some(download) = self.download(peer, file) else { return };
        for other in download.neighbours.known() {
            self.ignore(peer, file, index_of(other));
        }
    }

    /// The connections of a peer that is gone break.
    pub(super) fn gone(&mut self, gone: u32) {
        for file in 0..self.files.len() {
            for listener in std::mem::take(&mut self.peers[gone as usize].shares[file].listeners) {
                self.plan_silence(gone, listener, file, Silence::Lost);
            }
        }
        for other in &mut self.peers {
            for share in &mut other.shares {
                share.listeners.retain(|listener| *listener != gone);
            }
        }
    }
}
