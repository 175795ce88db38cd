//! One download: drives the way of a byte from locate to assemble.
//!
//! | module | is |
//! |---|---|
//! | [`job`] | what is to be done, and what every download needs for it |
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
mod job;
mod prepare;
#[cfg(test)]
pub(crate) mod testing;
mod transfer;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_engine::schedule::FetchId;
use drizzle_proto::{ChunkSet, PeerId};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinError, JoinSet},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    events::{Blamed, Broadcast, Contribution, DownloadEvent, FailureKind, Progress, Step, Subscription, over},
    failure::{brief, failed_text, reason_text},
    job::{BUDGET_KIB, Context, Destination, Job, bytes_of},
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
    store::{
        partials::{RecordError, record},
        write::{PartialFile, StoredChunk},
    },
};

/// Changes of holders that may wait to be applied.
const LOCATED: usize = 64;
/// Progress is told this often while bytes flow.
const PROGRESS: Duration = Duration::from_millis(200);

/// Runs a download to its end; the last event tells how it ended. `stop` is the daemon's own end.
pub(crate) async fn run(
    context: Arc<Context>,
    job: Job,
    events: Broadcast,
    patience: watch::Receiver<Duration>,
    cancel: CancellationToken,
    stop: CancellationToken,
) -> DownloadEvent {
    let start = Instant::now();
    let prepared = {
        let (context, job, events, cancel) = (context.clone(), job.clone(), events.clone(), cancel.clone());
        tokio::task::spawn_blocking(move || prepare::prepare(&context, &job, &events, &cancel)).await
    };
    let outside = ending::Run { start, events: &events, cancel: &cancel, stop: &stop };
    let prepared = match prepared {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(Failure::Cancelled)) => return ending::stillborn(&context, &job, &outside.called_off()),
        Ok(Err(failure)) => return ending::stillborn(&context, &job, &failure),
        Err(error) => return panicked(&context, &job, &error),
    };
    let (located_to, located) = mpsc::channel(LOCATED);
    let file = job.manifest.id();
    let watch = locate::watch(context.tracker.clone(), job.name.clone(), file, context.peer, job.seed, located_to);
    let watch = tokio::spawn(watch);
    // The file stays open as long as the download runs.
    let Prepared { partial, file: _file, stored, unproved, offered } = prepared;
    let mut transfer = Transfer::new(job, stored, unproved, Instant::now());
    let mut driver = Driver {
        connections: Arc::new(Connections::new(context.transport.clone(), context.peer)),
        context: context.clone(),
        partial: partial.clone(),
        offered,
        events: events.clone(),
        patience,
        cancel: cancel.clone(),
        tasks: JoinSet::new(),
        received: HashMap::new(),
        without_memory: Arc::default(),
        aborts: HashMap::new(),
        fetches: HashMap::new(),
    };
    let ended = driver.drive(&mut transfer, located, &stop).await;
    driver.tasks.shutdown().await;
    watch.abort();
    let _ = watch.await;
    ending::finish(context, transfer, partial, offered, ended, outside).await
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
    /// As its callers want it.
    patience: watch::Receiver<Duration>,
    cancel: CancellationToken,
    tasks: JoinSet<Report>,
    /// Bytes that came from each holder, counted by its fetches.
    received: HashMap<PeerId, Arc<AtomicU64>>,
    /// Fetches that wait for memory.
    without_memory: Arc<AtomicUsize>,
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
            let name = &transfer.job().name;
            tracing::trace!(target: "drizzle::decisions", %name, ?input, "download event");
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
                Ok(()) = self.patience.changed() => Input::Patience(*self.patience.borrow_and_update()),
                _ = ticks.tick() => self.count(),
                () = sleep_until(wake.into()) => Input::Woken,
            };
        }
    }

    fn count(&self) -> Input {
        let received = self.received.iter().map(|(peer, bytes)| (*peer, bytes.load(Ordering::Relaxed)));
        Input::Counted { received: received.collect(), without_memory: self.without_memory.load(Ordering::Relaxed) }
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
                    without_memory: self.without_memory.clone(),
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
