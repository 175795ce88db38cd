//! One transfer: drives the way of a byte from locate to assemble.
//!
//! One task owns the state of a transfer. It waits for one thing at a time (a [`Happening`]) and applies
//! it without waiting; everything slow runs in tasks that report back. What to fetch next, from whom,
//! and whom to avoid is [`crate::schedule`]'s decision. Whatever way a transfer ends, the chunks that it
//! stored are recorded and stay.

mod events;
mod prepare;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_proto::{
    Address, ChunkRanges, ChunkSet, FileName, Manifest, PeerId, client::TrackerClient, convert::HolderChange,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use self::events::{
    Blamed, Broadcast, Event, FailureKind, Progress, SourceProgress, Step, Subscription, offence_text, over,
};
pub use self::prepare::{Existing, inspect};
use crate::{
    assemble::{self, AssembleError},
    fetch::{Connections, FetchError},
    holdings::Holdings,
    locate::{self, Located},
    schedule::{Fetch, FetchId, Limits, Outcome, Scheduler},
    state::{ShareRecord, State},
    write::{PartialFile, StoredChunk},
};

/// Bytes of chunks in memory at once, over all downloads of this daemon, in KiB.
pub const BUDGET_KIB: usize = 64 << 10;
/// Progress is told this often while bytes flow.
const PROGRESS: Duration = Duration::from_millis(200);
/// Stored chunks are synced and recorded this often: what a power cut can cost.
const RECORD: Duration = Duration::from_secs(1);
/// Changes of holders that may wait to be applied.
const LOCATED: usize = 64;

/// What every transfer of a daemon needs.
#[derive(Debug)]
pub struct Context {
    /// Whom to ask for holders.
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
            Self::Named => assemble::path_of(dir, name),
            Self::Path(path) => path.clone(),
        }
    }
}

/// Why a transfer failed.
#[derive(Debug)]
enum Failure {
    Cancelled,
    Shutdown,
    Withdrawn(String),
    NoProgress,
    Exists(PathBuf),
    Storage(String),
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
        let (context, job) = (context.clone(), job.clone());
        tokio::task::spawn_blocking(move || prepare::prepare(&context, &job)).await
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
    let mut transfer = Transfer {
        scheduler: Scheduler::new(&missing, Limits::default()),
        stored: prepared.stored,
        partial: prepared.partial,
        offered: prepared.offered,
        stored_bytes: resumed,
        addresses: HashMap::new(),
        sources: BTreeMap::new(),
        connections: Arc::default(),
        running: HashMap::new(),
        recording: false,
        unrecorded: true,
        told: Progress::default(),
        waiting: None,
        synced: false,
        progress_at: start,
        rng: StdRng::from_rng(&mut rand::rng()),
        context,
        job,
        events,
        start,
    };
    let ended = transfer.drive(&mut tasks, located, cancel, stop).await;
    tasks.shutdown().await;
    watch.abort();
    let _ = watch.await;
    transfer.finish(ended).await
}

/// Bytes of a set of chunks.
pub fn bytes_of(manifest: &Manifest, chunks: &ChunkSet) -> u64 {
    let layout = manifest.layout();
    chunks.iter().map(|chunk| u64::from(layout.chunk_len(chunk))).sum()
}

/// What one holder has given.
#[derive(Debug)]
struct Source {
    address: Address,
    received: Arc<AtomicU64>,
    verified: u64,
    chunks: u32,
    in_flight: u32,
}

/// The one thing that happened.
enum Happening {
    Cancelled,
    Shutdown,
    Located(Option<Located>),
    Fetched(Result<Report, JoinError>),
    Recorded,
    Tick,
    TimeToRecord,
    /// A back-off is over, or the timeout has come.
    Woken,
}

/// What a task reports.
#[derive(Debug)]
enum Report {
    Fetch(FetchId, Result<StoredChunk, FetchFailure>),
    Recorded(std::io::Result<()>),
}

#[derive(Debug)]
enum FetchFailure {
    Fetch(FetchError),
    Storage(std::io::Error),
}

struct Transfer {
    context: Arc<Context>,
    job: Job,
    events: Broadcast,
    start: Instant,
    partial: Arc<PartialFile>,
    /// Whether the partial is what we hold under the name, as opposed to a complete file elsewhere.
    offered: bool,
    stored: ChunkSet,
    stored_bytes: u64,
    scheduler: Scheduler,
    addresses: HashMap<PeerId, Address>,
    sources: BTreeMap<PeerId, Source>,
    connections: Arc<Connections>,
    running: HashMap<FetchId, Running>,
    recording: bool,
    unrecorded: bool,
    told: Progress,
    waiting: Option<String>,
    synced: bool,
    progress_at: Instant,
    rng: StdRng,
}

#[derive(Debug)]
struct Running {
    fetch: Fetch,
    abort: AbortHandle,
}

impl Transfer {
    /// Until every wanted chunk is stored, or something ends the transfer.
    async fn drive(
        &mut self,
        tasks: &mut JoinSet<Report>,
        mut located: mpsc::Receiver<Located>,
        cancel: CancellationToken,
        stop: CancellationToken,
    ) -> Result<(), Failure> {
        let (mut ticks, mut records) = (every(PROGRESS), every(RECORD));
        loop {
            self.start_fetches(tasks);
            if self.scheduler.is_complete() {
                return Ok(());
            }
            let now = Instant::now();
            let give_up = self.progress_at + self.job.timeout;
            if now >= give_up {
                return Err(Failure::NoProgress);
            }
            let wake = self.scheduler.wake_at(now).map_or(give_up, |at| at.min(give_up));
            let happening = tokio::select! {
                () = cancel.cancelled() => Happening::Cancelled,
                () = stop.cancelled() => Happening::Shutdown,
                located = located.recv() => Happening::Located(located),
                Some(report) = tasks.join_next() => Happening::Fetched(report),
                _ = ticks.tick() => Happening::Tick,
                _ = records.tick(), if self.unrecorded && !self.recording => Happening::TimeToRecord,
                () = sleep_until(wake.into()) => Happening::Woken,
            };
            let happening = match happening {
                Happening::Fetched(Ok(Report::Recorded(result))) => {
                    self.recording = false;
                    result.map_err(|error| Failure::Storage(storage_text(&error)))?;
                    Happening::Recorded
                }
                other => other,
            };
            if matches!(happening, Happening::TimeToRecord) {
                self.record(tasks);
            }
            self.apply(happening)?;
        }
    }

    /// Changes the state; never waits.
    fn apply(&mut self, happening: Happening) -> Result<(), Failure> {
        match happening {
            Happening::Cancelled => return Err(Failure::Cancelled),
            Happening::Shutdown => return Err(Failure::Shutdown),
            Happening::Located(Some(Located::Change(change))) => self.locate(change),
            Happening::Located(Some(Located::Synced)) => self.synced = true,
            Happening::Located(Some(Located::Withdrawn(why))) => return Err(Failure::Withdrawn(why)),
            Happening::Located(None) => return Err(Failure::Withdrawn("the watch of its holders ended".to_owned())),
            Happening::Fetched(Ok(Report::Fetch(id, result))) => self.fetched(id, result)?,
            Happening::Fetched(Err(error)) if error.is_panic() => return Err(Failure::Storage(error.to_string())),
            Happening::Tick => self.tell_progress(),
            Happening::Fetched(_) | Happening::Recorded | Happening::TimeToRecord | Happening::Woken => {}
        }
        Ok(())
    }

    fn locate(&mut self, change: HolderChange) {
        let count = self.job.wanted.count();
        match change {
            HolderChange::Is(holder) if holder.chunks.count() == count => {
                self.addresses.insert(holder.peer, holder.address);
                self.scheduler.holder_is(holder.peer, holder.chunks);
            }
            HolderChange::Added(peer, chunks) if chunks.count() == count => self.scheduler.holder_added(peer, &chunks),
            HolderChange::Gone(peer) => {
                self.scheduler.holder_gone(peer);
                self.connections.forget(peer);
            }
            // Chunks of some other file: the tracker is confused, the holder is not asked.
            HolderChange::Is(_) | HolderChange::Added(..) => {}
        }
    }

    /// Asks for as much as the scheduler lets run.
    fn start_fetches(&mut self, tasks: &mut JoinSet<Report>) {
        // Before the whole picture is there, the rarest chunk is not known.
        while self.synced {
            let now = Instant::now();
            let Some(fetch) = self.scheduler.next(now, &mut self.rng) else { break };
            let Some(address) = self.addresses.get(&fetch.holder).cloned() else {
                self.scheduler.finished(fetch.id, Outcome::Cancelled, now, &mut self.rng);
                self.scheduler.holder_gone(fetch.holder);
                continue;
            };
            let source = self.sources.entry(fetch.holder).or_insert_with(|| Source {
                address: address.clone(),
                received: Arc::default(),
                verified: 0,
                chunks: 0,
                in_flight: 0,
            });
            source.in_flight += 1;
            source.address = address.clone();
            self.events.send(Event::Chunk { step: Step::Requested, chunk: fetch.chunk, peer: address.clone() });
            let task = fetch_and_store(FetchTask {
                manifest: self.job.manifest.clone(),
                partial: self.partial.clone(),
                connections: self.connections.clone(),
                budget: self.context.budget.clone(),
                received: source.received.clone(),
                address,
                fetch,
            });
            let abort = tasks.spawn(task);
            self.running.insert(fetch.id, Running { fetch, abort });
        }
        self.tell_waiting();
    }

    fn fetched(&mut self, id: FetchId, result: Result<StoredChunk, FetchFailure>) -> Result<(), Failure> {
        let Some(Running { fetch, .. }) = self.running.remove(&id) else { return Ok(()) };
        let now = Instant::now();
        let Some(source) = self.sources.get_mut(&fetch.holder) else { return Ok(()) };
        source.in_flight -= 1;
        let peer = source.address.clone();
        let outcome = match result {
            Ok(stored) => {
                let len = u64::from(self.job.manifest.layout().chunk_len(stored.chunk()));
                source.verified += len;
                source.chunks += 1;
                self.context.downloaded.fetch_add(len, Ordering::Relaxed);
                self.stored(stored, len, now);
                self.events.send(Event::Chunk { step: Step::Stored, chunk: fetch.chunk, peer });
                Outcome::Stored
            }
            Err(FetchFailure::Fetch(FetchError::Busy)) => Outcome::Busy,
            Err(FetchFailure::Fetch(FetchError::Offence(offence, detail))) => {
                tracing::debug!(name = %self.job.name, chunk = %fetch.chunk, %peer, ?offence, detail, "a holder failed");
                let step = Step::Failed(format!("{}: {detail}", events::offence_text(offence)));
                self.events.send(Event::Chunk { step, chunk: fetch.chunk, peer });
                Outcome::Failed(offence)
            }
            Err(FetchFailure::Storage(error)) => return Err(Failure::Storage(storage_text(&error))),
        };
        for loser in self.scheduler.finished(id, outcome, now, &mut self.rng) {
            if let Some(Running { fetch, abort }) = self.running.remove(&loser) {
                abort.abort();
                if let Some(source) = self.sources.get_mut(&fetch.holder) {
                    source.in_flight -= 1;
                }
            }
            self.scheduler.finished(loser, Outcome::Cancelled, now, &mut self.rng);
        }
        Ok(())
    }

    fn stored(&mut self, stored: StoredChunk, len: u64, now: Instant) {
        if self.stored.insert(stored.chunk()) {
            self.stored_bytes += len;
            self.unrecorded = true;
        }
        if self.offered {
            self.context.holdings.stored(&self.job.name, stored);
        }
        self.progress_at = now;
        self.waiting = None;
    }

    /// Syncs and records in the background what is stored by now.
    fn record(&mut self, tasks: &mut JoinSet<Report>) {
        self.recording = true;
        self.unrecorded = false;
        let save = self.saver();
        tasks.spawn_blocking(move || Report::Recorded(save()));
    }

    /// The set is taken before the sync: what is recorded was written before.
    fn saver(&self) -> impl FnOnce() -> std::io::Result<()> + use<> {
        let (context, job, partial, stored) =
            (self.context.clone(), self.job.clone(), self.partial.clone(), self.stored.clone());
        move || {
            partial.sync()?;
            context.state.record_chunks(&job.name, &job.manifest, &stored).map_err(std::io::Error::other)
        }
    }

    fn tell_progress(&mut self) {
        let progress = self.progress();
        if progress != self.told {
            self.told = progress.clone();
            self.events.send(Event::Progress(progress));
        }
    }

    fn progress(&self) -> Progress {
        let sources = self.sources.values().map(|source| SourceProgress {
            peer: source.address.clone(),
            bytes: source.received.load(Ordering::Relaxed),
            chunks: source.chunks,
            in_flight: source.in_flight,
        });
        Progress { stored: self.stored_bytes, sources: sources.collect() }
    }

    fn tell_waiting(&mut self) {
        if !self.synced || self.scheduler.in_flight() > 0 || self.scheduler.is_complete() {
            return;
        }
        let reason = self.lack(Instant::now());
        if self.waiting.as_ref() != Some(&reason) {
            self.events.send(Event::Waiting(reason.clone()));
            self.waiting = Some(reason);
        }
    }

    /// For a person: why nothing can be fetched.
    fn lack(&self, now: Instant) -> String {
        let supply = self.scheduler.supply(now);
        let nobody = format!("nobody holds chunks {}", brief(&supply.unheld));
        let avoided =
            format!("every holder of chunks {} has misbehaved and is left alone for a while", brief(&supply.avoided));
        match (supply.unheld.is_empty(), supply.avoided.is_empty()) {
            (false, true) => nobody,
            (true, false) => avoided,
            (false, false) => format!("{nobody}; {avoided}"),
            (true, true) => "every holder is busy".to_owned(),
        }
    }

    /// Puts things in order, and makes the last event.
    async fn finish(mut self, ended: Result<(), Failure>) -> Event {
        let ended = match ended {
            Ok(()) => self.complete().await,
            Err(failure) => Err(failure),
        };
        match ended {
            Ok(path) => {
                let sources = self.sources.values().filter(|source| source.chunks > 0);
                let sources: Vec<_> = sources
                    .map(|source| SourceProgress {
                        peer: source.address.clone(),
                        bytes: source.verified,
                        chunks: source.chunks,
                        in_flight: 0,
                    })
                    .collect();
                let bytes = sources.iter().map(|source| source.bytes).sum();
                Event::Done { path, bytes, elapsed: self.start.elapsed(), sources, blamed: self.blamed() }
            }
            Err(failure) => {
                self.save().await;
                self.failed(failure)
            }
        }
    }

    async fn complete(&mut self) -> Result<Option<PathBuf>, Failure> {
        let Some(destination) = self.job.destination.clone() else {
            self.save().await;
            return Ok(None);
        };
        let (context, job, partial, offered) =
            (self.context.clone(), self.job.clone(), self.partial.clone(), self.offered);
        let placed = tokio::task::spawn_blocking(move || place(&context, &job, &partial, &destination, offered)).await;
        placed.map_err(|error| Failure::Storage(error.to_string()))?.map(Some)
    }

    /// Best effort: what cannot be recorded now is proved by its hashes the next time.
    async fn save(&mut self) {
        let saved = tokio::task::spawn_blocking(self.saver()).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(name = %self.job.name, %error, "cannot record the stored chunks");
        }
    }

    fn failed(&self, failure: Failure) -> Event {
        let now = Instant::now();
        let name = &self.job.name;
        let (kind, reason) = match failure {
            Failure::Cancelled => (FailureKind::Cancelled, "cancelled; its chunks are kept".to_owned()),
            Failure::Shutdown => (FailureKind::Shutdown, "the daemon is shutting down; its chunks are kept".to_owned()),
            Failure::Withdrawn(why) => (FailureKind::Withdrawn, why),
            Failure::Exists(path) => (
                FailureKind::DestinationExists,
                format!("{} appeared meanwhile with other content; the chunks are kept", path.display()),
            ),
            Failure::Storage(why) => (FailureKind::Storage, why),
            Failure::NoProgress => {
                let seconds = self.job.timeout.as_secs_f32();
                let tainted = self.scheduler.tainted();
                if tainted.is_empty() {
                    (FailureKind::Timeout, format!("no chunk of {name} came for {seconds} s: {}", self.lack(now)))
                } else {
                    let text = format!(
                        "the bytes offered for chunks {} of {name} are not those first registered with the tracker, and no honest holder appeared within {seconds} s",
                        brief(&tainted)
                    );
                    (FailureKind::Integrity, text)
                }
            }
        };
        events::failed(kind, reason, self.scheduler.missing().ranges(), self.blamed())
    }

    fn blamed(&self) -> Vec<Blamed> {
        let name = |peer| self.sources.get(&peer).map(|source| source.address.clone());
        let blame = self.scheduler.blame().into_iter();
        blame
            .filter_map(|blame| {
                Some(Blamed { peer: name(blame.holder)?, offence: blame.offence, chunks: blame.chunks.ranges() })
            })
            .collect()
    }
}

/// Puts the file in place and shares it from there. Blocks.
fn place(
    context: &Context,
    job: &Job,
    partial: &PartialFile,
    destination: &Destination,
    offered: bool,
) -> Result<PathBuf, Failure> {
    let storage = |error: &dyn std::error::Error| Failure::Storage(error.to_string());
    let path = destination.path(&context.dir, &job.name);
    if *destination == Destination::Named {
        assemble::make_parents(&context.dir, &job.name).map_err(|error| storage(&error))?;
    }
    let stamp = match assemble::assemble(partial, &path) {
        Ok(stamp) => stamp,
        Err(AssembleError::Exists(path)) => match inspect(&path, &job.manifest) {
            Ok(Existing::Same(stamp)) => {
                partial.discard().map_err(|error| storage(&error))?;
                stamp
            }
            _ => return Err(Failure::Exists(path)),
        },
        Err(error) => return Err(storage(&error)),
    };
    if offered {
        let record = ShareRecord { path: path.clone(), stamp, manifest: job.manifest.clone(), shared: true };
        context.state.put_shares([(&job.name, &record)]).map_err(|error| storage(&error))?;
        context.holdings.insert_shared(job.name.clone(), record.manifest, record.path, record.stamp);
    } else {
        context.state.forget_partial(&job.name).map_err(|error| storage(&error))?;
    }
    Ok(path)
}

struct FetchTask {
    manifest: Manifest,
    partial: Arc<PartialFile>,
    connections: Arc<Connections>,
    budget: Arc<Semaphore>,
    received: Arc<AtomicU64>,
    address: Address,
    fetch: Fetch,
}

async fn fetch_and_store(task: FetchTask) -> Report {
    let id = task.fetch.id;
    Report::Fetch(id, try_fetch_and_store(task).await)
}

async fn try_fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask { manifest, partial, connections, budget, received, address, fetch } = task;
    let kib = manifest.layout().chunk_len(fetch.chunk).div_ceil(1024);
    let stopped = || FetchFailure::Storage(std::io::Error::other("the daemon is shutting down"));
    let room = budget.acquire_many_owned(kib).await.map_err(|_| stopped())?;
    let verified = connections
        .fetch(&manifest, fetch.chunk, fetch.holder, &address, &received)
        .await
        .map_err(FetchFailure::Fetch)?;
    let written = tokio::task::spawn_blocking(move || {
        let stored = partial.write(&verified);
        drop((verified, room));
        stored
    });
    written.await.map_err(|_| stopped())?.map_err(FetchFailure::Storage)
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What to do about the common causes.
fn storage_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            "the disk is full: make room and download again; the verified chunks are kept".to_owned()
        }
        _ => format!("cannot write: {error}"),
    }
}

/// Chunk ranges for a message, cut when long.
fn brief(chunks: &ChunkSet) -> String {
    const RANGES: usize = 12;
    let ranges = chunks.ranges();
    let shown = ChunkRanges::new(ranges.iter().take(RANGES)).unwrap_or_default();
    let more = ranges.iter().skip(RANGES).len();
    if more == 0 { shown.to_string() } else { format!("{shown} and {more} more ranges") }
}
