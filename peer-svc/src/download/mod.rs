//! One download: drives the way of a byte from locate to assemble.
//!
//! | module | is |
//! |---|---|
//! | [`prepare`](mod@prepare) | before the first fetch: what is here already |
//! | [`transfer`] | the state; what happened goes in, what is to be done comes out |
//! | [`ending`] | after the last fetch: the file in its place, or the chunks recorded |
//! | [`failure`] | why a download fails, and the texts that say so |
//! | [`events`] | what those that watch are told |
//!
//! Here is the driver: it waits for one thing at a time, applies it, and performs the effects. Whatever way a
//! download ends, the chunks that it stored are recorded and stay.

mod ending;
mod events;
mod failure;
mod prepare;
mod transfer;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_engine::schedule::FetchId;
use drizzle_proto::{ChunkSet, FileName, Manifest, PeerId, client::TrackerClient, net::transport::Transport};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinError, JoinSet},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    events::{Blamed, Broadcast, Contribution, DownloadEvent, FailureKind, Progress, Step, Subscription, over},
    failure::reason_text,
    prepare::{Existing, inspect},
};
use self::{
    failure::Failure,
    prepare::Prepared,
    transfer::{Effect, Ended, Input, Transfer},
};
use crate::{
    fetch::{FetchFailure, FetchTask, fetch_and_store, pool::Connections},
    locate::{self, Located},
    share::Sharer,
    store::{
        partials::{RecordError, record},
        paths,
        write::{PartialFile, StoredChunk},
    },
};

/// Bytes of chunks in memory at once, over all downloads of this daemon, in KiB.
pub(crate) const BUDGET_KIB: usize = 64 << 10;
/// Changes of holders that may wait to be applied.
const LOCATED: usize = 64;
/// Progress is told this often while bytes flow.
const PROGRESS: Duration = Duration::from_millis(200);

/// What every download of a daemon needs.
#[derive(Debug)]
pub(crate) struct Context {
    /// How holders are dialled.
    pub(crate) transport: Transport,
    /// For manifests and holders.
    pub(crate) tracker: TrackerClient,
    /// This peer.
    pub(crate) peer: PeerId,
    /// What is held, recorded and offered here.
    pub(crate) sharer: Arc<Sharer>,
    /// Memory for chunks in flight, in KiB.
    pub(crate) budget: Arc<Semaphore>,
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

/// Runs a download to its end; the last event tells how it ended. `stop` is the daemon's own end.
pub(crate) async fn run(
    context: Arc<Context>,
    job: Job,
    events: Broadcast,
    cancel: CancellationToken,
    stop: CancellationToken,
) -> DownloadEvent {
    let start = Instant::now();
    let prepared = {
        let (context, job, cancel) = (context.clone(), job.clone(), cancel.clone());
        tokio::task::spawn_blocking(move || prepare::prepare(&context, &job, &cancel)).await
    };
    let prepared = match prepared {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(failure)) => return ending::stillborn(&context, &job, &failure),
        Err(error) => return panicked(&context, &job, &error),
    };
    let (located_to, located) = mpsc::channel(LOCATED);
    let file = job.manifest.id();
    let watch = locate::watch(context.tracker.clone(), job.name.clone(), file, context.peer, job.seed, located_to);
    let watch = tokio::spawn(watch);
    let Prepared { partial, stored, unproved, offered } = prepared;
    let seed = job.seed;
    let mut transfer = Transfer::new(job, stored, unproved, seed, Instant::now());
    let mut driver = Driver {
        connections: Arc::new(Connections::new(context.transport.clone(), context.peer)),
        context: context.clone(),
        partial: partial.clone(),
        offered,
        events,
        cancel,
        tasks: JoinSet::new(),
        received: HashMap::new(),
        aborts: HashMap::new(),
        fetches: HashMap::new(),
    };
    let ended = driver.drive(&mut transfer, located, &stop).await;
    driver.tasks.shutdown().await;
    watch.abort();
    let _ = watch.await;
    ending::finish(context, transfer, partial, offered, ended, start.elapsed()).await
}

/// The last event of a download whose task panicked.
pub(crate) fn panicked(context: &Context, job: &Job, error: &JoinError) -> DownloadEvent {
    ending::stillborn(context, job, &Failure::Internal(error.to_string()))
}

/// What a task reports.
enum Report {
    Fetched(FetchId, Result<StoredChunk, FetchFailure>),
    Recorded(Result<(), RecordError>, Duration),
    Proved { checked: ChunkSet, sound: ChunkSet },
}

/// Performs the effects of one download.
struct Driver {
    context: Arc<Context>,
    connections: Arc<Connections>,
    partial: Arc<PartialFile>,
    offered: bool,
    events: Broadcast,
    cancel: CancellationToken,
    tasks: JoinSet<Report>,
    /// Bytes that came from each holder, counted by its fetches.
    received: HashMap<PeerId, Arc<AtomicU64>>,
    aborts: HashMap<FetchId, AbortHandle>,
    /// Which fetch a task is, for one that panics.
    fetches: HashMap<tokio::task::Id, FetchId>,
}

impl Driver {
    async fn drive(
        &mut self,
        transfer: &mut Transfer,
        mut located: mpsc::Receiver<Located>,
        stop: &CancellationToken,
    ) -> Ended {
        let cancel = self.cancel.clone();
        let mut ticks = interval(PROGRESS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut input = Input::Begin;
        loop {
            for effect in transfer.apply(input, Instant::now()) {
                if let Some(ended) = self.perform(transfer, effect) {
                    return ended;
                }
            }
            let wake = transfer.wake_at(Instant::now());
            input = tokio::select! {
                // Stopping cancels too.
                () = cancel.cancelled() => if stop.is_cancelled() { Input::Shutdown } else { Input::Cancelled },
                located = located.recv() => located.map_or(Input::LocatingEnded, Input::Located),
                Some(ended) = self.tasks.join_next_with_id() => self.reported(ended),
                _ = ticks.tick() => Input::Received(self.count_bytes()),
                () = sleep_until(wake.into()) => Input::Woken,
            };
        }
    }

    fn count_bytes(&self) -> BTreeMap<PeerId, u64> {
        self.received.iter().map(|(peer, bytes)| (*peer, bytes.load(Ordering::Relaxed))).collect()
    }

    fn reported(&mut self, ended: Result<(tokio::task::Id, Report), JoinError>) -> Input {
        match ended {
            Ok((task, report)) => {
                self.fetches.remove(&task);
                match report {
                    Report::Fetched(id, result) => {
                        self.aborts.remove(&id);
                        Input::Fetched(id, result)
                    }
                    Report::Recorded(result, took) => Input::Recorded(result, took),
                    Report::Proved { checked, sound } => Input::Proved { checked, sound },
                }
            }
            Err(error) => match self.fetches.remove(&error.id()) {
                Some(id) => {
                    self.aborts.remove(&id);
                    Input::Fetched(id, Err(FetchFailure::of_task(error)))
                }
                None if error.is_panic() => Input::Panicked(error.to_string()),
                None => Input::Woken,
            },
        }
    }

    /// How it ended, once it has.
    fn perform(&mut self, transfer: &Transfer, effect: Effect) -> Option<Ended> {
        let name = &transfer.job().name;
        tracing::trace!(target: "drizzle::decisions", %name, ?effect, "download");
        match effect {
            Effect::Fetch(fetch) => {
                let id = fetch.id;
                let task = FetchTask {
                    received: self.received.entry(fetch.holder.id()).or_default().clone(),
                    fetch,
                    partial: self.partial.clone(),
                    connections: self.connections.clone(),
                    budget: self.context.budget.clone(),
                };
                let abort = self.tasks.spawn(async move { Report::Fetched(id, fetch_and_store(task).await) });
                self.fetches.insert(abort.id(), id);
                self.aborts.insert(id, abort);
            }
            Effect::Abort(id) => {
                if let Some(abort) = self.aborts.remove(&id) {
                    self.fetches.remove(&abort.id());
                    abort.abort();
                }
            }
            Effect::Offer(stored) => {
                let len = partial_len(&self.partial, stored);
                self.context.downloaded.fetch_add(len, Ordering::Relaxed);
                if self.offered {
                    self.context.sharer.holdings.stored(name, stored);
                }
            }
            Effect::TakeBack(chunks) => {
                tracing::warn!(%name, chunks = %chunks.ranges(), "chunks of an earlier run are damaged on disk; fetching them again");
                self.context.sharer.holdings.take_back(name, self.partial.manifest().id(), &chunks);
            }
            Effect::Tell(event) => self.events.send(event),
            Effect::Record(stored) => {
                let (context, name, partial) = (self.context.clone(), name.clone(), self.partial.clone());
                self.tasks.spawn_blocking(move || {
                    let begun = Instant::now();
                    let result = record(&context.sharer.journal, &name, &partial, &stored);
                    Report::Recorded(result, begun.elapsed())
                });
            }
            Effect::Prove(checked) => {
                let (partial, cancel) = (self.partial.clone(), self.cancel.clone());
                self.tasks.spawn_blocking(move || {
                    let sound = partial.prove(&checked, &cancel);
                    // Cancelled, it read fewer: what it did not read is not unsound.
                    let checked = if cancel.is_cancelled() { sound.clone() } else { checked };
                    Report::Proved { checked, sound }
                });
            }
            Effect::Forget(peer) => self.connections.forget(peer),
            Effect::End(ended) => return Some(ended),
        }
        None
    }
}

fn partial_len(partial: &PartialFile, stored: StoredChunk) -> u64 {
    partial.manifest().layout().chunk_len(stored.chunk()).into()
}
