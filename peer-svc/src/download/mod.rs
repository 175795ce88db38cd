//! One transfer: drives the way of a byte from locate to assemble.
//!
//! `transfer` owns the state and decides nothing about chunks: what to fetch next, from whom, and whom to
//! avoid is [`drizzle_engine::schedule`]'s decision. `prepare` comes before the first fetch, `ending` after the
//! last, `events` tells those who watch. Whatever way a transfer ends, the chunks that it stored are
//! recorded and stay.

mod ending;
mod events;
mod prepare;
mod transfer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use drizzle_proto::{ChunkSet, FileName, Manifest, PeerId, client::TrackerClient, net::transport::Transport};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::events::{
    Blamed, Broadcast, Event, FailureKind, Progress, SourceProgress, Step, Subscription, offence_text, over,
};
pub use self::prepare::{Existing, inspect};
use self::transfer::Transfer;
use crate::{
    holdings::Holdings,
    locate,
    store::{paths, record::State},
};

/// Bytes of chunks in memory at once, over all downloads of this daemon, in KiB.
pub const BUDGET_KIB: usize = 64 << 10;
/// Changes of holders that may wait to be applied.
const LOCATED: usize = 64;

/// What every transfer of a daemon needs.
#[derive(Debug)]
pub struct Context {
    /// How holders are dialled.
    pub transport: Transport,
    /// For manifests and holders.
    pub tracker: TrackerClient,
    /// Who we are.
    pub peer: PeerId,
    /// What survives a restart.
    pub state: Arc<State>,
    /// What we serve.
    pub holdings: Arc<Holdings>,
    /// The daemon's folder, absolute.
    pub dir: PathBuf,
    /// Memory for chunks in flight, in KiB.
    pub budget: Arc<Semaphore>,
    /// Verified bytes since the start.
    pub downloaded: AtomicU64,
}

/// One transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The file's name.
    pub name: FileName,
    /// What it is to become.
    pub manifest: Manifest,
    /// The chunks to have at the end.
    pub wanted: ChunkSet,
    /// Where the file goes; `None` leaves the chunks where they are.
    pub destination: Option<Destination>,
    /// Without a stored chunk for this long, give up.
    pub timeout: Duration,
}

/// Where a file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Its name, below the daemon's folder.
    Named,
    /// Where the local person said.
    Path(PathBuf),
}

impl Destination {
    /// The path that it means.
    pub fn path(&self, dir: &Path, name: &FileName) -> PathBuf {
        match self {
            Self::Named => paths::path_of(dir, name),
            Self::Path(path) => path.clone(),
        }
    }
}

/// Runs a transfer to its end; the last event tells how it ended.
pub async fn run(
    context: Arc<Context>,
    job: Job,
    events: Broadcast,
    cancel: CancellationToken,
    stop: CancellationToken,
) -> Event {
    let start = Instant::now();
    let prepared = {
        let (context, job, cancel) = (context.clone(), job.clone(), cancel.clone());
        tokio::task::spawn_blocking(move || prepare::prepare(&context, &job, &cancel)).await
    };
    let prepared = match prepared {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(error)) => {
            return events::failed(FailureKind::Storage, error.to_string(), job.wanted.ranges(), Vec::new());
        }
        // A panic in there; the log has it.
        Err(error) => return events::failed(FailureKind::Storage, error.to_string(), job.wanted.ranges(), Vec::new()),
    };
    let (located_to, located) = mpsc::channel(LOCATED);
    let mut tasks = JoinSet::new();
    let watch = locate::watch(context.tracker.clone(), job.name.clone(), job.manifest.id(), context.peer, located_to);
    let watch = tokio::spawn(watch);
    let missing = job.wanted.difference(&prepared.stored);
    let resumed = bytes_of(&job.manifest, &job.wanted.difference(&missing));
    events.send(Event::Started {
        file: job.manifest.describe(job.name.clone()),
        wanted: bytes_of(&job.manifest, &job.wanted),
        resumed,
    });
    let mut transfer = Transfer::new(context, job, prepared, events, start);
    let ended = transfer.drive(&mut tasks, located, cancel, stop).await;
    tasks.shutdown().await;
    watch.abort();
    let _ = watch.await;
    transfer.finish(ended).await
}

/// The last event of a transfer that broke inside.
pub fn broken(error: &tokio::task::JoinError) -> Event {
    events::failed(FailureKind::Storage, format!("the download broke inside: {error}"), Default::default(), Vec::new())
}

/// Bytes of a set of chunks.
pub fn bytes_of(manifest: &Manifest, chunks: &ChunkSet) -> u64 {
    let layout = manifest.layout();
    chunks.iter().map(|chunk| u64::from(layout.chunk_len(chunk))).sum()
}
