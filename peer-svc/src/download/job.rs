//! What a download is asked to do, and what every download of a daemon needs for that. Everything else in this room
//! builds on these and they on nothing of it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use drizzle_engine::{meter::Downlink, priority::Priority, reach};
use drizzle_proto::{
    ChunkRanges, ChunkSet, FileName, Labels, Manifest, access::Access, client::TrackerClient, holder::Holder,
};
use tokio::sync::{Semaphore, watch};

use crate::{
    fetch::{connections::Connections, memory::ChunkMemory},
    identity::Identity,
    lanes::Lanes,
    limits::Limits,
    metrics::Metrics,
    ranks::Ranks,
    register::Standing,
    share::Sharer,
    store::{journal::Order, paths},
};

/// Bytes of chunks in memory at once, over all downloads of this daemon.
pub(crate) const MEMORY: u64 = 64 << 20;

/// And of chunks that are asked for because their holders are far, which may come at any time: 10 Gbit/s at 100 ms are 125 MB.
/// They are read as they come, unless this peer's own limit is set while they are under way.
pub(crate) const FAR_MEMORY: u64 = reach::MOST;

/// Bytes of chunks that broke off, kept in memory over all downloads of this daemon, in KiB: as much as the largest
/// chunk has.
pub(crate) const PARTS_KIB: usize = 64 << 10;

/// What every download of a daemon needs.
#[derive(Debug)]
pub(crate) struct Context {
    /// To holders, for all downloads.
    pub(crate) connections: Arc<Connections>,
    /// For manifests and holders.
    pub(crate) tracker: TrackerClient,
    /// Which peer this is.
    pub(crate) identity: Identity,
    /// How it stands with the tracker.
    pub(crate) standing: watch::Receiver<Standing>,
    /// What is stopped.
    pub(crate) access: watch::Receiver<Arc<Access>>,
    /// What this peer says of where it is.
    pub(crate) labels: Labels,
    /// What is held, recorded and offered here.
    pub(crate) sharer: Arc<Sharer>,
    /// Threads for work that blocks.
    pub(crate) lanes: Arc<Lanes>,
    /// Memory for chunks in flight.
    pub(crate) memory: Arc<ChunkMemory>,
    /// The same, for those that are asked for beyond the usual number.
    pub(crate) far_memory: Arc<ChunkMemory>,
    /// Memory for parts of chunks between two fetches, in KiB.
    pub(crate) parts: Arc<Semaphore>,
    /// How fast chunks may come.
    pub(crate) limits: Limits,
    /// Which download goes first.
    pub(crate) ranks: Arc<Ranks>,
    /// What is counted as it happens.
    pub(crate) metrics: Arc<Metrics>,
    /// What all downloads together take in.
    pub(crate) downlink: Mutex<Downlink>,
}

/// One download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    /// The file's name.
    pub(crate) name: FileName,
    /// What it is to become.
    pub(crate) manifest: Manifest,
    /// Some of its holders, as the tracker knew them when it was asked for the manifest.
    pub(crate) holders: Vec<Holder>,
    /// The chunks to have at the end.
    pub(crate) wanted: ChunkSet,
    /// Where the file goes; `None` leaves the chunks where they are.
    pub(crate) destination: Option<Destination>,
    /// Without progress for this long, give up.
    pub(crate) timeout: Duration,
    /// Decides every random choice.
    pub(crate) seed: u64,
}

impl Job {
    /// What is noted of it, so that it goes on after a restart.
    pub(super) fn order(&self, priority: Priority) -> Order {
        let ranges = || self.wanted.ranges().iter().collect();
        Order {
            chunks: self.destination.is_none().then(ranges),
            output: match &self.destination {
                Some(Destination::Path(path)) => Some(path.clone()),
                Some(Destination::Named) | None => None,
            },
            timeout_millis: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            priority,
        }
    }

    /// The job that was noted; `None` if it does not fit the file.
    pub(crate) fn noted(name: FileName, manifest: Manifest, order: Order, seed: u64) -> Option<Self> {
        let count = manifest.layout().chunk_count();
        let (wanted, destination) = match order.chunks {
            Some(ranges) => {
                let ranges = ChunkRanges::new(ranges)?;
                (ChunkSet::from_ranges(count, &ranges).ok()?, None)
            }
            None => (ChunkSet::full(count), Some(order.output.map_or(Destination::Named, Destination::Path))),
        };
        let timeout = Duration::from_millis(order.timeout_millis);
        Some(Self { name, manifest, holders: Vec::new(), wanted, destination, timeout, seed })
    }
}

/// Where a file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Its name, below the daemon's folder.
    Named,
    /// Where the local person said.
    Path(PathBuf),
}

impl Destination {
    /// The path that it means.
    pub(crate) fn path(&self, dir: &Path, name: &FileName) -> PathBuf {
        match self {
            Self::Named => paths::path_of(dir, name),
            Self::Path(path) => path.clone(),
        }
    }
}

/// Bytes of a set of chunks.
pub(crate) fn bytes_of(manifest: &Manifest, chunks: &ChunkSet) -> u64 {
    let layout = manifest.layout();
    chunks.iter().map(|chunk| u64::from(layout.chunk_len(chunk))).sum()
}
