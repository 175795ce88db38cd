//! Neighbours: above some hundred peers each knows a bounded random set of others, and they tell each other directly
//! which chunks they have got.
//!
//! The tracker introduces: each peer that comes is given half of its neighbours, each the less known one of two drawn
//! at random, and is given to others as theirs. The registry cannot do that yet, so it is done here. News is told to
//! all neighbours at once: at first immediately, then gathered for `--news`.

use std::rc::Rc;

use drizzle_proto::{
    ChunkSet,
    holder::{Holder, HolderChange},
};
use rand::RngExt;

use super::{
    event::{Event, nth},
    membership::set_bytes,
    options::millis,
    world::World,
};

/// Draws for each neighbour that is wanted.
const DRAWS: usize = 8;
/// Bytes of ids and framing in a message of news.
const NEWS_HEAD: u64 = 48;

impl World {
    /// The tracker names neighbours to a peer that begins, or that has few left.
    pub(super) fn introduce(&mut self, index: u32) {
        let wanted = self.options.neighbour_count().unwrap_or(0).div_ceil(2);
        let met = self.clock.now() + 2 * millis(self.options.latency);
        for _ in 0..wanted {
            let Some(other) = self.draw(index) else { continue };
            self.peers[index as usize].neighbours.push(other);
            self.peers[other as usize].neighbours.push(index);
            let at = met + self.repeated();
            self.tally.from_tracker.add(1, 96);
            self.clock.plan(at, Event::Meet(index, other));
        }
    }

    fn draw(&mut self, index: u32) -> Option<u32> {
        let mut best: Option<u32> = None;
        let mut found = 0;
        for _ in 0..DRAWS {
            let other = self.present[self.rng.random_range(0..self.present.len())];
            let known = &self.peers[index as usize].neighbours;
            if other == index || known.contains(&other) || best == Some(other) {
                continue;
            }
            let degree = |peer: u32| self.peers[peer as usize].neighbours.len();
            best = Some(best.filter(|best| degree(*best) <= degree(other)).unwrap_or(other));
            found += 1;
            if found == 2 {
                break;
            }
        }
        best
    }

    /// Two peers tell each other what they have.
    pub(super) fn meet(&mut self, one: u32, other: u32) {
        for (peer, from) in [(one, other), (other, one)] {
            if !self.peers[from as usize].alive {
                continue;
            }
            for file in 0..self.files.len() {
                let holder = &self.peers[from as usize];
                let chunks = holder.shares[file].held.clone();
                self.tally.news.add(1, NEWS_HEAD + set_bytes(&chunks));
                let holder = Holder { peer: holder.info.clone(), chunks };
                self.locate(peer, file, HolderChange::Is(holder));
                if let Some(download) = &mut self.peers[peer as usize].shares[file].download {
                    download.located = true;
                }
                self.pump(peer, file);
            }
        }
    }

    /// When a peer that has news tells its neighbours.
    pub(super) fn plan_telling(&mut self, peer: u32, file: usize) {
        let (now, gather) = (self.clock.now(), millis(self.options.news));
        let share = &mut self.peers[peer as usize].shares[file];
        if share.tells_at.is_none() {
            let at = share.told_at.map_or(now, |told| now.max(told + gather));
            share.tells_at = Some(at);
            self.clock.plan(at, Event::Tell { peer, file: nth(file) });
        }
    }

    /// A peer tells its neighbours what is new.
    pub(super) fn tell(&mut self, peer: u32, file: usize) {
        if !self.peers[peer as usize].alive {
            return;
        }
        let (now, empty) = (self.clock.now(), ChunkSet::empty(self.files[file].count()));
        let share = &mut self.peers[peer as usize].shares[file];
        (share.tells_at, share.told_at) = (None, Some(now));
        let chunks = Rc::new(std::mem::replace(&mut share.unsaid, empty));
        let at = now + self.delay(peer);
        self.clock.plan(at, Event::Told { peer, file: nth(file), chunks });
    }

    /// The neighbours hear it, those that still miss something.
    pub(super) fn told(&mut self, peer: u32, file: usize, chunks: &ChunkSet) {
        let id = self.peers[peer as usize].info.id();
        let bytes = NEWS_HEAD + set_bytes(chunks);
        for nth in 0..self.peers[peer as usize].neighbours.len() {
            let other = self.peers[peer as usize].neighbours[nth];
            let Some(download) = &mut self.peers[other as usize].shares[file].download else { continue };
            if download.ended.is_some() {
                continue;
            }
            self.tally.news.add(1, bytes);
            download.scheduler.holder_added(id, chunks);
            self.pump(other, file);
        }
    }

    /// The neighbours of a peer notice that it is gone, and ask for others if they have few left.
    pub(super) fn gone(&mut self, gone: u32) {
        let id = self.peers[gone as usize].info.id();
        let few = self.options.neighbour_count().unwrap_or(0) / 2;
        for other in std::mem::take(&mut self.peers[gone as usize].neighbours) {
            self.peers[other as usize].neighbours.retain(|neighbour| *neighbour != gone);
            for file in 0..self.files.len() {
                self.locate(other, file, HolderChange::Gone(id));
                self.pump(other, file);
            }
            if self.peers[other as usize].neighbours.len() < few {
                self.tally.to_tracker.add(1, 64);
                self.clock.plan(self.clock.now() + millis(self.options.latency), Event::Introduce(other));
            }
        }
    }
}
