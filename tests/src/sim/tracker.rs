//! The tracker: its real registry, over a catalogue in memory. What its daemon does around it in `grpc.rs` and
//! `watch.rs` is done here by events of the virtual clock.

use std::time::{Duration, Instant};

use drizzle_proto::{
    FileName, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    holder::HolderChanges,
};
use tokio::runtime::{Builder, Runtime};
use tracker_svc::{
    catalogue::memory::MemoryCatalogue,
    error::Error,
    live::watches::Newcomer,
    registry::{Registry, Watcher},
};

use super::clock::Nanos;

/// How long a lease lasts, as the daemon's default.
pub const LEASE: Duration = Duration::from_secs(15);

struct Watch {
    peer: u32,
    file: usize,
    /// `None` once it has ended.
    watcher: Option<Watcher>,
    /// A push is planned.
    rung: bool,
    /// No push was made yet.
    is_new: bool,
    /// When there was something to tell last.
    told_at: Option<Nanos>,
}

/// The tracker of the simulated fleet.
pub struct Tracker {
    /// The registry's calls that need the catalogue run on a thread of this one; each is waited for, so that their
    /// order is that of the virtual clock.
    runtime: Runtime,
    registry: Registry,
    watches: Vec<Watch>,
}

impl Tracker {
    /// Without peers.
    pub fn new(seed: u64, now: Instant) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().build()?;
        Ok(Self { runtime, registry: Registry::new(MemoryCatalogue::default(), LEASE, seed, now), watches: Vec::new() })
    }

    /// Opens a lease.
    pub fn register(&self, peer: &PeerInfo, now: Instant) -> Result<u64, Error> {
        self.registry.register_peer(peer, now)
    }

    /// Prolongs a lease.
    pub fn renew(&self, lease: u64, now: Instant) -> Result<(), Error> {
        self.registry.renew(lease, now).map(|_| ())
    }

    /// Takes a batch of news.
    pub fn announce(&self, lease: u64, entries: Vec<FileChunks>, now: Instant) -> Result<Vec<FileOutcome>, Error> {
        self.runtime.block_on(self.registry.announce(lease, entries, now))
    }

    /// How long a peer should wait between two announcements.
    pub fn announce_pause(&self) -> Duration {
        self.registry.announce_pause()
    }

    /// Ends a lease.
    pub fn leave(&self, lease: u64) {
        self.registry.leave(lease);
    }

    /// Says that the tracker runs, and ends leases that are over.
    pub fn pulse(&self, now: Instant) {
        self.registry.pulse(now);
        self.registry.expire(now);
    }

    /// Begins a watch; names it.
    pub fn watch(
        &mut self,
        peer: u32,
        file: usize,
        name: &FileName,
        newcomer: Option<Newcomer>,
        now: Instant,
    ) -> Result<u32, Error> {
        let watcher = self.runtime.block_on(self.registry.watch(name.clone(), newcomer, now))?;
        self.watches.push(Watch { peer, file, watcher: Some(watcher), rung: true, is_new: true, told_at: None });
        Ok(u32::try_from(self.watches.len() - 1).unwrap_or(u32::MAX))
    }

    /// Ends the watches of a peer on a file.
    pub fn unwatch(&mut self, peer: u32, file: usize) {
        for watch in self.watches.iter_mut().filter(|watch| (watch.peer, watch.file) == (peer, file)) {
            watch.watcher = None;
        }
    }

    /// Something may have changed: the watches of which a push is to be planned now, and when each was told something last.
    pub fn ring(&mut self, file: Option<usize>) -> Vec<(u32, Option<Nanos>)> {
        let mut rung = Vec::new();
        for (nth, watch) in (0..).zip(&mut self.watches) {
            let concerns = file.is_none_or(|file| file == watch.file) && watch.watcher.is_some();
            if concerns && !std::mem::replace(&mut watch.rung, true) {
                rung.push((nth, watch.told_at));
            }
        }
        rung
    }

    /// What a watch is to be told now: to which peer, of which file, and the messages.
    pub fn push(&mut self, watch: u32, now: Nanos) -> (u32, usize, Vec<HolderChanges>) {
        let watch = &mut self.watches[watch as usize];
        watch.rung = false;
        let mut messages = Vec::new();
        let is_new = std::mem::take(&mut watch.is_new);
        // Every change rings every watch, and of a large fleet's few have something to tell.
        if let Some(watcher) = &mut watch.watcher
            && (watcher.has_changed() || is_new)
        {
            while let Ok(Some(changes)) = watcher.next_message() {
                messages.push(changes);
                watch.told_at = Some(now);
            }
        }
        (watch.peer, watch.file, messages)
    }
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("watches", &self.watches.len()).finish_non_exhaustive()
    }
}
