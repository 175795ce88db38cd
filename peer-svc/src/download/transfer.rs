//! The state of one transfer, owned by one task.
//!
//! It waits for one thing at a time (a `Happening`) and applies it without waiting; everything slow runs in
//! tasks that report back.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_engine::schedule::{Fetch, FetchId, Limits, Outcome, Scheduler};
use drizzle_proto::{Address, ChunkSet, PeerId, holder::HolderChange};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Broadcast, Context, Event, Job, Progress, SourceProgress, Step, bytes_of,
    ending::{Failure, storage_text},
    offence_text,
    prepare::Prepared,
};
use crate::{
    fetch::{FetchFailure, FetchTask, Report, fetch_and_store, peer::FetchError, pool::Connections},
    store::write::{PartialFile, StoredChunk},
};
use drizzle_engine::holder_view::Located;

/// Progress is told this often while bytes flow.
const PROGRESS: Duration = Duration::from_millis(200);
/// Stored chunks are synced and recorded this often: what a power cut can cost.
const RECORD: Duration = Duration::from_secs(1);

/// What one holder has given.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) address: Address,
    pub(super) verified: u64,
    pub(super) chunks: u32,
    received: Arc<AtomicU64>,
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

pub(super) struct Transfer {
    pub(super) context: Arc<Context>,
    pub(super) job: Job,
    pub(super) events: Broadcast,
    pub(super) start: Instant,
    pub(super) partial: Arc<PartialFile>,
    /// Whether the partial is what we hold under the name, as opposed to a complete file elsewhere.
    pub(super) offered: bool,
    pub(super) stored: ChunkSet,
    pub(super) stored_bytes: u64,
    pub(super) scheduler: Scheduler,
    pub(super) sources: BTreeMap<PeerId, Source>,
    pub(super) connections: Arc<Connections>,
    pub(super) running: HashMap<FetchId, Running>,
    pub(super) recording: bool,
    pub(super) unrecorded: bool,
    pub(super) told: Progress,
    pub(super) waiting: Option<String>,
    pub(super) synced: bool,
    pub(super) progress_at: Instant,
    /// Bytes from all sources when last looked at.
    pub(super) received: u64,
    pub(super) rng: StdRng,
}

#[derive(Debug)]
pub(super) struct Running {
    fetch: Fetch,
    abort: AbortHandle,
}

impl Transfer {
    pub(super) fn new(context: Arc<Context>, job: Job, prepared: Prepared, events: Broadcast, start: Instant) -> Self {
        let missing = job.wanted.difference(&prepared.stored);
        Self {
            scheduler: Scheduler::new(&missing, Limits::default()),
            stored: prepared.stored,
            partial: prepared.partial,
            offered: prepared.offered,
            stored_bytes: bytes_of(&job.manifest, &job.wanted.difference(&missing)),
            sources: BTreeMap::new(),
            connections: Arc::new(Connections::new(context.transport.clone())),
            running: HashMap::new(),
            recording: false,
            unrecorded: true,
            told: Progress::default(),
            waiting: None,
            synced: false,
            progress_at: Instant::now(),
            received: 0,
            rng: StdRng::from_rng(&mut rand::rng()),
            context,
            job,
            events,
            start,
        }
    }

    /// Until every wanted chunk is stored, or something ends the transfer.
    pub(super) async fn drive(
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
                // Stopping cancels too.
                () = cancel.cancelled() => if stop.is_cancelled() { Happening::Shutdown } else { Happening::Cancelled },
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
            Happening::Tick => {
                self.notice_bytes();
                self.tell_progress();
            }
            Happening::Fetched(_) | Happening::Recorded | Happening::TimeToRecord | Happening::Woken => {}
        }
        Ok(())
    }

    fn locate(&mut self, change: HolderChange) {
        let count = self.job.wanted.count();
        match change {
            HolderChange::Is(holder) if holder.chunks.count() == count => {
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
            let address = fetch.holder.address().clone();
            let source = self.sources.entry(fetch.holder.id()).or_insert_with(|| Source {
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
                fetch: fetch.clone(),
            });
            let abort = tasks.spawn(task);
            self.running.insert(fetch.id, Running { fetch, abort });
        }
        self.tell_waiting();
    }

    fn fetched(&mut self, id: FetchId, result: Result<StoredChunk, FetchFailure>) -> Result<(), Failure> {
        let Some(Running { fetch, .. }) = self.running.remove(&id) else { return Ok(()) };
        let now = Instant::now();
        let Some(source) = self.sources.get_mut(&fetch.holder.id()) else { return Ok(()) };
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
                let step = Step::Failed(format!("{}: {detail}", offence_text(offence)));
                self.events.send(Event::Chunk { step, chunk: fetch.chunk, peer });
                Outcome::Failed(offence)
            }
            Err(FetchFailure::Storage(error)) => return Err(Failure::Storage(storage_text(&error))),
        };
        for loser in self.scheduler.finished(id, outcome, now, &mut self.rng) {
            if let Some(Running { fetch, abort }) = self.running.remove(&loser) {
                abort.abort();
                if let Some(source) = self.sources.get_mut(&fetch.holder.id()) {
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
    pub(super) fn saver(&self) -> impl FnOnce() -> std::io::Result<()> + use<> {
        let (context, job, partial, stored) =
            (self.context.clone(), self.job.clone(), self.partial.clone(), self.stored.clone());
        move || {
            partial.sync()?;
            context.state.record_chunks(&job.name, &job.manifest, &stored).map_err(std::io::Error::other)
        }
    }

    /// Large chunks over slow links take longer than the timeout: bytes on their way are progress too. A
    /// holder that only drips is given up by the fetch itself.
    fn notice_bytes(&mut self) {
        let received = self.sources.values().map(|source| source.received.load(Ordering::Relaxed)).sum();
        if received > std::mem::replace(&mut self.received, received) {
            self.progress_at = Instant::now();
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
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
