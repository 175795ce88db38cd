//! What the tests of a download need: a daemon's context without a daemon.

use std::{path::Path, sync::Arc, time::Duration};

use drizzle_proto::{
    Address, ChunkSet, FileName, Manifest, RateLimit, client::TrackerClient, net::transport::Transport,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::job::{Context, Job};
use crate::{
    fetch::{connections::Connections, memory::ChunkMemory},
    identity::Identity,
    lanes::Lanes,
    limits::Limits,
    share::{Exclusions, Sharer, Shelf},
    store::{disk::Disk, hash::HashProgress, journal::Journal, partials::Partials},
};

/// A peer whose folder is `folder`, on a disk; its tracker is away.
pub(crate) fn context(folder: &Path, disk: Disk) -> Context {
    let journal = Arc::new(Journal::open(&folder.join("state"), disk.clone()).unwrap());
    let partials = Partials::open(journal.folder(), disk).unwrap();
    let transport = Transport::plaintext();
    let sharer = Sharer {
        journal: journal.clone(),
        partials: Arc::new(partials),
        holdings: Arc::default(),
        dir: folder.to_owned(),
        shelf: Shelf::new(Exclusions::new(&[]).unwrap(), Duration::ZERO),
        trust: drizzle_proto::trust::TrustedKeys::default(),
        untrusted: crate::share::Untrusted::default(),
        progress: HashProgress::default(),
        stop: CancellationToken::new(),
    };
    let identity = Identity::load(journal, None, false).unwrap();
    let standing = tokio::sync::watch::channel(Default::default()).1;
    Context {
        tracker: TrackerClient::new(&transport, &Address::new("127.0.0.1:1").unwrap()).unwrap(),
        connections: Arc::new(Connections::new(transport, identity.clone(), standing.clone())),
        identity,
        standing,
        access: tokio::sync::watch::channel(Default::default()).1,
        labels: drizzle_proto::Labels::default(),
        sharer: Arc::new(sharer),
        lanes: Lanes::new(1).unwrap(),
        memory: ChunkMemory::new(1),
        far_memory: ChunkMemory::new(1),
        parts: Arc::new(Semaphore::new(0)),
        limits: Limits::new(RateLimit::UNLIMITED, RateLimit::UNLIMITED),
        ranks: Arc::default(),
        metrics: Arc::default(),
        downlink: Default::default(),
    }
}

/// Of all chunks, without a destination.
pub(crate) fn job(manifest: &Manifest) -> Job {
    let wanted = ChunkSet::full(manifest.layout().chunk_count());
    let (name, timeout) = (FileName::new("a").unwrap(), Duration::from_secs(1));
    Job { name, manifest: manifest.clone(), holders: Vec::new(), wanted, destination: None, timeout, seed: 1 }
}
