//! What a download is asked to do, and what every download of a daemon needs for that. Everything else in this room
//! builds on these and they on nothing of it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use drizzle_proto::{ChunkSet, FileName, Manifest, client::TrackerClient};
use tokio::sync::watch;

use crate::{
    fetch::{memory::ChunkMemory, pool::Connections},
    identity::Identity,
    lanes::Lanes,
    register::Standing,
    share::Sharer,
    store::paths,
};

/// Bytes of chunks in memory at once, over all downloads of this daemon.
pub(crate) const MEMORY: u64 = 64 << 20;


/// What every download of a daemon needs.
#[derive(Debug)]
pub(crate) struct Context {
    /// To holders, for all downloads.
    pub(crate) connections: Arc<Connections>,
    /// For manifests and holders.
    pub(crate) tracker: TrackerClient,
    /// Which peer this is.
    pub(crate) identity: Identity,
    /// Where it is reached.
    pub(crate) standing: watch::Receiver<Standing>,
    /// What is held, recorded and offered here.
    pub(crate) sharer: Arc<Sharer>,
    /// Threads for work that blocks.
    pub(crate) lanes: Arc<Lanes>,
    /// Memory for chunks in flight.
    pub(crate) memory: Arc<ChunkMemory>,
    /// Verified bytes since the start.
    pub(crate) downloaded: AtomicU64,
}

/// One download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    /// The file's name.
    pub(crate) name: FileName,
    /// What it is to become.
    pub(crate) manifest: Manifest,
    /// The chunks to have at the end.
    pub(crate) wanted: ChunkSet,
    /// Where the file goes; `None` leaves the chunks where they are.
    pub(crate) destination: Option<Destination>,
    /// Without progress for this long, give up.
    pub(crate) timeout: Duration,
    /// Decides every random choice.
    pub(crate) seed: u64,
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
