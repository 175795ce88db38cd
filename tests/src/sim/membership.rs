//! A peer and the tracker: the lease, the announcements, the watch. Mirrors the daemon's `register` and `locate`, and
//! the tracker's `watch`.

use std::time::Duration;

use drizzle_engine::lease::{Answer, Call, Terms};
use drizzle_proto::{
    ChunkIndex, ChunkSet, FileName,
    announcement::{FileChunks, FileOutcome},
    holder::HolderChange,
};

use tracker_svc::live::watches::Newcomer;

use super::{
    clock::Nanos,
    event::{Event, TrackerAnswer, TrackerCall, nth},
    neighbours::set_bytes,
    options::millis,
    tracker::LEASE,
    world::World,
};

/// A lease is renewed this often, as the tracker tells.
const RENEW_EVERY: Duration = Duration::from_secs(LEASE.as_secs() / 3);
/// Bytes of a call that carries nothing else, and of each file or holder in one.
const HEAD: u64 = 64;

impl World {
    /// Makes the calls that are due.
    pub(super) fn lease_due(&mut self, index: u32) {
        let now = self.clock.instant();
        loop {
            let peer = &mut self.peers[index as usize];
            if !peer.alive {
                return;
            }
            let Some(call) = peer.lease.next(now) else { break };
            let call = match call {
                Call::Register => TrackerCall::Register,
                Call::Renew(id) => TrackerCall::Renew(id),
                Call::Announce(id) => {
                    let files = &self.files;
                    let held_as = |name: &FileName| {
                        files.iter().find(|file| file.name == *name).map(|file| (file.manifest.clone(), false, None))
                    };
                    TrackerCall::Announce(id, peer.announcements.take_batch(held_as))
                }
            };
            let bytes = match &call {
                TrackerCall::Register => 2 * HEAD,
                TrackerCall::Renew(_) => HEAD,
                TrackerCall::Announce(_, batch) => {
                    let entry = |entry: &FileChunks| 2 * HEAD + set_bytes(&entry.held) + 32 * entry.hashes.len() as u64;
                    HEAD + batch.iter().map(entry).sum::<u64>()
                }
            };
            self.tally.to_tracker.add(1, bytes);
            let at = self.clock.now() + self.delay(index);
            self.clock.plan(at, Event::Call(index, Box::new(call)));
        }
        self.plan_lease(index);
    }

    fn plan_lease(&mut self, index: u32) {
        let now = self.clock.now();
        let peer = &mut self.peers[index as usize];
        let Some(at) = peer.lease.wake_at().map(|at| self.clock.moment(at)) else { return };
        if peer.lease_at.is_none_or(|planned| at < planned || planned <= now) {
            peer.lease_at = Some(at);
            self.clock.plan(at, Event::Lease(index));
        }
    }

    /// A chunk can be told of.
    pub(super) fn offer(&mut self, index: u32, file: usize, chunk: ChunkIndex) {
        let mut one = ChunkSet::empty(self.files[file].count());
        one.insert(chunk);
        let (name, id) = (&self.files[file].name, self.files[file].manifest.id());
        self.peers[index as usize].announcements.held(name, id, &one, false);
        self.has_news(index);
        self.plan_telling(index, file);
    }

    fn has_news(&mut self, index: u32) {
        let peer = &mut self.peers[index as usize];
        if peer.lease.listens() && !peer.announcements.is_empty() {
            peer.lease.has_news();
            self.plan_lease(index);
        }
    }

    /// The tracker hears a call.
    pub(super) fn tracker_called(&mut self, index: u32, call: TrackerCall) {
        let now = self.clock.instant();
        let answer = match call {
            TrackerCall::Register => {
                let lease = self.tracker.register(&self.peers[index as usize].info, now).ok();
                TrackerAnswer::Registered(lease)
            }
            TrackerCall::Renew(id) => TrackerAnswer::Renewed(id, self.tracker.renew(id, now).is_ok()),
            TrackerCall::Announce(id, batch) => {
                let outcomes = if batch.is_empty() {
                    Some(Vec::new())
                } else {
                    self.tracker.announce(id, batch.clone(), now).ok()
                };
                for entry in &batch {
                    let file = self.files.iter().position(|file| file.name == entry.file.name);
                    // What else a peer gets it tells its neighbours by itself.
                    if self.options.neighbours == 0 || entry.held.is_full() {
                        self.ring(file);
                    }
                }
                TrackerAnswer::Announced(id, batch, outcomes)
            }
        };
        self.tally.from_tracker.add(1, HEAD);
        let at = self.clock.now() + millis(self.options.latency) + self.repeated();
        self.clock.plan(at, Event::Answer(index, Box::new(answer)));
    }

    /// A peer hears the tracker's answer.
    pub(super) fn tracker_answered(&mut self, index: u32, answer: TrackerAnswer) {
        let now = self.clock.instant();
        let peer = &mut self.peers[index as usize];
        match answer {
            TrackerAnswer::Registered(Some(id)) => {
                peer.announcements.clear();
                for (file, share) in self.files.iter().zip(&peer.shares).filter(|(_, share)| !share.held.is_empty()) {
                    peer.announcements.held(&file.name, file.manifest.id(), &share.held, true);
                }
                peer.lease.registered(Terms { id, renew_every: RENEW_EVERY }, now);
            }
            TrackerAnswer::Registered(None) => drop(peer.lease.register_failed(now)),
            TrackerAnswer::Renewed(id, known) => {
                let answer = if known { Answer::Taken } else { Answer::UnknownLease };
                peer.lease.renewed(id, answer, now);
            }
            TrackerAnswer::Announced(id, batch, outcomes) => {
                let answer = if outcomes.is_some() { Answer::Taken } else { Answer::UnknownLease };
                for (told, outcome) in batch.into_iter().zip(outcomes.into_iter().flatten()) {
                    if let FileOutcome::NeedHashes(from) = outcome {
                        peer.announcements.wants_hashes(&told.file.name, told.file.id, &told.held, from);
                    }
                }
                peer.lease.gather(self.tracker.announce_pause());
                peer.lease.announced(id, answer, now);
            }
        }
        self.has_news(index);
        self.lease_due(index);
    }

    /// Something may have changed at the tracker: its watchers hear at once, but not too soon after what they heard last.
    pub(super) fn ring(&mut self, file: Option<usize>) {
        let (now, push) = (self.clock.now(), millis(self.options.push));
        let at = |told: Option<Nanos>| told.map_or(now, |told| now.max(told + push));
        let mut rung: Vec<_> =
            self.tracker.ring(file).into_iter().map(|(watch, told_at)| (at(told_at), watch)).collect();
        // Pushes of one time come one after the other, so they can as well be one event: every peer that comes or is
        // done rings all watches.
        rung.sort_by_key(|(at, _)| *at);
        for pushes in rung.chunk_by(|(at, _), (other, _)| at == other) {
            let watches = pushes.iter().map(|(_, watch)| *watch).collect();
            self.clock.plan_together(pushes[0].0, pushes.len(), Event::Push(watches));
        }
    }

    /// A peer begins to watch every file.
    pub(super) fn watch(&mut self, index: u32) {
        for file in 0..self.files.len() {
            let peer = &self.peers[index as usize];
            if peer.shares[file].download.is_none() {
                continue;
            }
            let wanted = self.options.neighbours as usize;
            let lease = peer.lease.id().filter(|_| wanted > 0);
            let newcomer = lease.map(|lease| Newcomer { lease, wanted, known: Vec::new() });
            match self.tracker.watch(index, file, &self.files[file].name, newcomer, self.clock.instant()) {
                Ok(watch) => {
                    self.push(watch);
                    self.ring(Some(file));
                }
                // No source has registered it yet.
                Err(_) => self.clock.plan(self.clock.now() + millis(250.0), Event::Watch(index)),
            }
        }
    }

    /// The tracker tells what is new, in each of some watches.
    pub(super) fn push_all(&mut self, watches: Box<[u32]>) {
        watches.into_iter().for_each(|watch| self.push(watch));
    }

    /// The tracker tells what is new.
    fn push(&mut self, watch: u32) {
        let (peer, file, messages) = self.tracker.push(watch, self.clock.now());
        for message in messages {
            let change = |change: &HolderChange| match change {
                HolderChange::Is(holder) => 2 * HEAD + set_bytes(&holder.chunks),
                HolderChange::Added(_, chunks) => 24 + set_bytes(chunks),
                HolderChange::Gone(_) | HolderChange::Parted(_) => 24,
            };
            self.tally.from_tracker.add(1, 16 + message.changes.iter().map(change).sum::<u64>());
            let at = self.clock.now() + millis(self.options.latency) + self.repeated();
            self.clock.plan(at, Event::Pushed { peer, file: nth(file), message: Box::new(message) });
        }
    }
}
