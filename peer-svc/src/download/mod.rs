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
//! | [`explanation`] | why it takes as long as it does |
//!
//! Here is the driver: it waits for one thing at a time, applies it, and performs the effects. Whatever way a
//! download ends, the chunks that it stored are recorded and stay.

mod effects;
mod ending;
mod events;
mod explanation;
mod failure;
mod job;
mod prepare;
mod sources;
#[cfg(test)]
pub(crate) mod testing;
mod transfer;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_engine::{
    meter::Meter,
    pace,
    schedule::{FetchId, Limits},
};
use drizzle_proto::{ChunkSet, PeerId};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    effects::{Bounds, Counts, Effect, Ended, Input},
    failure::Failure,
    prepare::Prepared,
    transfer::Transfer,
};
pub(crate) use self::{
    events::{Blamed, Broadcast, Contribution, DownloadEvent, FailureKind, Progress, Step, Subscription, over},
    explanation::{Explanation, HolderSeen, Reasons},
    failure::{failed_text, named, reason_text},
    job::{Context, Destination, FAR_MEMORY, Job, MEMORY, PARTS_KIB, bytes_of},
    prepare::{Existing, inspect},
};
use crate::{
    fetch::{
        FetchTask, Gauges, NOT_ASKED, News, Soonest,
        hands::{self, Hands},
        intake::Intake,
        memory::Account,
        parts::Parts,
        receiver::Receivers,
    },
    limits::HeldUp,
    locate::{Located, Sought, locate},
    ranks::Rank,
    shortage::{self, Shortage},
    store::{
        partials::{RecordError, record},
        write::{PartialFile, StoredChunk},
    },
};

/// Changes of holders that may wait to be applied.
const LOCATED: usize = 64;
/// News of fetches that may wait to be applied.
const NEWS: usize = 16;
/// Progress is told this often while bytes flow.
const PROGRESS: Duration = Duration::from_millis(200);

/// The reasons for a download's pace are made anew this often.
const EXPLAINED: Duration = Duration::from_secs(1);

/// Runs a download to its end; the last event tells how it ended. `stop` is the daemon's own end.
pub(crate) async fn run(
    context: Arc<Context>,
    job: Job,
    events: Broadcast,
    asked: (watch::Receiver<Duration>, Arc<Rank>, Reasons),
    cancel: CancellationToken,
    stop: CancellationToken,
) -> DownloadEvent {
    let last = run_to_its_end(context.clone(), job, events, asked, cancel, stop).await;
    context.metrics.ended(&last);
    last
}

async fn run_to_its_end(
    context: Arc<Context>,
    job: Job,
    events: Broadcast,
    (patience, rank, reasons): (watch::Receiver<Duration>, Arc<Rank>, Reasons),
    cancel: CancellationToken,
    stop: CancellationToken,
) -> DownloadEvent {
    let start = Instant::now();
    let prepared = loop {
        let (here, job, events, token) = (context.clone(), job.clone(), events.clone(), cancel.clone());
        let prepare = {
            let rank = rank.clone();
            move || prepare::prepare(&here, &job, rank.priority(), &events, &token)
        };
        let prepared = context.lanes.hashing.run(prepare).await;
        let shortage = match &prepared {
            Ok(Err(Failure::Storage(error))) => Shortage::of_io(error),
            _ => None,
        };
        let Some(shortage) = shortage.filter(|_| !cancel.is_cancelled()) else { break prepared };
        shortage.say("begin a download");
        tokio::time::sleep(shortage::PAUSE).await;
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
    // One wish at a time is enough.
    let (seek, unheld) = mpsc::channel(1);
    let sought = Sought {
        tracker: context.tracker.clone(),
        connections: context.connections.clone(),
        name: job.name.clone(),
        file,
        own: context.identity.changes(),
        standing: context.standing.clone(),
        access: context.access.clone(),
        unheld,
        told: job.holders.clone(),
        seed: job.seed,
    };
    let locating = tokio::spawn(locate(sought, located_to));
    // The file stays open as long as the download runs.
    let Prepared { partial, file: _file, receivers, stored, unproved, offered } = prepared;
    let mut transfer =
        Transfer::new(job, stored, unproved, Instant::now()).at(context.identity.id(), context.labels.clone());
    let (news, fetch_news) = mpsc::channel(NEWS);
    let mut driver = Driver {
        context: context.clone(),
        partial: partial.clone(),
        offered,
        events: events.clone(),
        patience,
        cancel: cancel.clone(),
        tasks: JoinSet::new(),
        parts: Parts::new(partial.clone(), context.parts.clone()),
        receivers,
        received: HashMap::new(),
        answered: HashMap::new(),
        wire: Arc::default(),
        taken_in: 0,
        writing: Meter::default(),
        written_for: Duration::ZERO,
        start,
        explained: None,
        reasons: reasons.clone(),
        with_choice: HashSet::new(),
        had: HashMap::new(),
        held_up: HashMap::new(),
        memory: context.memory.account(rank.clone()),
        far_memory: context.far_memory.account(rank.clone()),
        rank,
        news,
        fetch_news,
        seek,
        hands: Hands::new(),
    };
    let ended = driver.drive(&mut transfer, located, &stop).await;
    driver.hands.stop().await;
    driver.note_writing(partial.time_writing());
    driver.tasks.shutdown().await;
    locating.abort();
    let _ = locating.await;
    let end = Instant::now();
    let explanation = transfer.explain(start, end);
    let last = ending::finish(context, transfer, partial, offered, ended, outside).await;
    let how = match &last {
        DownloadEvent::Failed { reason, .. } => Err(reason.clone()),
        _ => Ok(()),
    };
    reasons.are(explanation.ended(how, end.elapsed()));
    last
}

/// The last event of a download whose task panicked.
pub(crate) fn panicked(context: &Context, job: &Job, error: &JoinError) -> DownloadEvent {
    ending::stillborn(context, job, &Failure::Internal(error.to_string()))
}

/// What a task reports.
enum Report {
    Recorded(Result<(), RecordError>, Duration),
    Proved { checked: ChunkSet, sound: ChunkSet },
}

/// Performs the effects of one download.
struct Driver {
    context: Arc<Context>,
    partial: Arc<PartialFile>,
    offered: bool,
    events: Broadcast,
    /// As its callers want it.
    patience: watch::Receiver<Duration>,
    cancel: CancellationToken,
    tasks: JoinSet<Report>,
    /// Bytes that came from each holder, counted by its fetches.
    received: HashMap<PeerId, Arc<AtomicU64>>,
    /// How soon each holder answered of late.
    answered: HashMap<PeerId, Arc<Soonest>>,
    /// Bytes that came over the connections of this download.
    wire: Arc<AtomicU64>,
    /// Of these, those that the machine's downlink was told of.
    taken_in: u64,
    /// For how long its threads wrote, in microseconds.
    writing: Meter,
    /// Of that, what the monitor was told of.
    written_for: Duration,
    /// When the download was asked for, and when its reasons were made last.
    start: Instant,
    explained: Option<Instant>,
    reasons: Reasons,
    /// The threads on which its chunks come in.
    receivers: Arc<Receivers>,
    /// The fetches whose holders may choose among alternatives.
    with_choice: HashSet<FetchId>,
    /// Bytes that are here of each chunk that is being fetched.
    had: HashMap<FetchId, Arc<AtomicU32>>,
    /// For how long the limit held each of them up.
    held_up: HashMap<FetchId, Arc<HeldUp>>,
    /// Its priority among the downloads of this peer.
    rank: Arc<Rank>,
    parts: Arc<Parts>,
    /// This download's part of the memory for chunks, and for those beyond the usual number.
    memory: Arc<Account>,
    far_memory: Arc<Account>,
    /// Given to each fetch.
    news: mpsc::Sender<(FetchId, News)>,
    fetch_news: mpsc::Receiver<(FetchId, News)>,
    /// Where chunks that no known holder has are asked for.
    seek: mpsc::Sender<ChunkSet>,
    hands: Hands,
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
        let mut inputs = vec![Input::Begin];
        loop {
            for input in inputs.drain(..) {
                let name = &transfer.job().name;
                tracing::trace!(target: "drizzle::decisions", %name, ?input, "download event");
                let counts = matches!(input, Input::Begin | Input::Counted(_));
                for effect in transfer.apply(input, Instant::now()) {
                    if let Some(ended) = self.perform(transfer, effect) {
                        return ended;
                    }
                }
                if counts {
                    self.explain(transfer);
                }
            }
            let now = Instant::now();
            let wake = transfer.wake_at(now);
            let due = wake.min(now + PROGRESS);
            let mut fetched = Vec::new();
            let input = tokio::select! {
                // Stopping cancels too.
                () = cancel.cancelled() => if stop.is_cancelled() { Input::Shutdown } else { Input::Cancelled },
                located = located.recv() => located.map_or(Input::LocatingEnded, Input::Located),
                ended = self.hands.ended() => match ended {
                    Ok(ended) => { fetched = ended; Input::Woken }
                    Err(error) => Input::Panicked(error.to_string()),
                },
                Some(ended) = self.tasks.join_next() => reported(ended),
                Ok(()) = self.patience.changed() => Input::Patience(*self.patience.borrow_and_update()),
                _ = ticks.tick() => self.count(),
                Some((id, news)) = self.fetch_news.recv() => Input::News(id, news),
                // Whether fetches that seem overdue have moved is to be known first.
                () = sleep_until(wake.into()) => self.count(),
            };
            let now = Instant::now();
            if pace::was_asleep(due, now) {
                let asleep = now - due;
                tracing::info!(name = %transfer.job().name, ?asleep, "this process did not run for a while; waiting anew");
                inputs.push(Input::Slept(asleep));
            }
            // What a fetch told before it ended comes before its end.
            while let Ok((id, news)) = self.fetch_news.try_recv() {
                inputs.push(Input::News(id, news));
            }
            if fetched.is_empty() {
                inputs.push(input);
            }
            for ended in fetched {
                self.fetched(ended, &mut inputs);
            }
        }
    }

    /// Has the reasons at hand for whoever asks, once a second.
    fn explain(&mut self, transfer: &Transfer) {
        let now = Instant::now();
        if self.explained.is_none_or(|explained| now.duration_since(explained) >= EXPLAINED) {
            self.explained = Some(now);
            self.reasons.are(transfer.explain(self.start, now));
        }
    }

    fn count(&mut self) -> Input {
        let wrote = self.partial.time_writing();
        self.note_writing(wrote);
        self.writing.count(u64::try_from(wrote.as_micros()).unwrap_or(u64::MAX), Instant::now());
        let wire = self.wire.load(Ordering::Relaxed);
        let new = wire - std::mem::replace(&mut self.taken_in, wire);
        let intake = {
            // No change of it can panic half-way.
            let mut downlink = self.context.downlink.lock().unwrap_or_else(PoisonError::into_inner);
            downlink.came(new, Instant::now())
        };
        let received = self.received.iter().map(|(peer, bytes)| (*peer, bytes.load(Ordering::Relaxed)));
        let answered = self.answered.iter().filter_map(|(peer, soonest)| Some((*peer, soonest.take()?)));
        let had = self.had.iter().map(|(id, had)| (*id, had.load(Ordering::Relaxed)));
        let most = Limits::for_chunks_of(self.partial.manifest().layout().chunk_size()).in_flight;
        let own = Bounds {
            limit: self.context.limits.down.limit(),
            streams: Some(self.rank.streams(wire, most)),
            held_up: self.held_up.iter().map(|(id, held_up)| (*id, held_up.so_far())).collect(),
        };
        Input::Counted(Counts {
            received: received.collect(),
            answered: answered.collect(),
            had: had.filter(|(_, had)| *had != NOT_ASKED).collect(),
            wire,
            own,
            writing: self.writing.rate() / 1e6 / self.receivers.count() as f64,
            intake,
            receiving: self.context.connections.receiving(),
        })
    }

    /// Its threads wrote for so long by now.
    fn note_writing(&mut self, wrote: Duration) {
        let new = wrote.saturating_sub(std::mem::replace(&mut self.written_for, wrote));
        self.context.metrics.writing.inc_by(new.as_secs_f64());
    }

    /// A fetch has ended: it tells nothing any more.
    fn forget(&mut self, id: FetchId) {
        self.with_choice.remove(&id);
        self.had.remove(&id);
        self.held_up.remove(&id);
    }

    /// What an end says: also which chunk came, if its holder could choose. That may have been told before.
    fn fetched(&mut self, (id, result): hands::Ended, inputs: &mut Vec<Input>) {
        let had_choice = self.with_choice.contains(&id);
        self.forget(id);
        if let Ok(stored) = &result {
            self.parts.stored(stored.chunk());
            if had_choice {
                inputs.push(Input::News(id, News::Bound(stored.chunk())));
            }
        }
        inputs.push(Input::Fetched(id, result));
    }

    /// How it ended, once it has.
    fn perform(&mut self, transfer: &Transfer, effect: Effect) -> Option<Ended> {
        let name = &transfer.job().name;
        tracing::trace!(target: "drizzle::decisions", %name, ?effect, "download");
        match effect {
            Effect::Fetch(fetch) => {
                let id = fetch.id;
                let gauges = Gauges {
                    received: self.received.entry(fetch.holder.id()).or_default().clone(),
                    answered: self.answered.entry(fetch.holder.id()).or_default().clone(),
                    wire: self.wire.clone(),
                    had: self.had.entry(id).or_insert_with(|| Arc::new(AtomicU32::new(NOT_ASKED))).clone(),
                    held_up: self.held_up.entry(id).or_default().clone(),
                };
                if !fetch.alternatives.is_empty() {
                    self.with_choice.insert(id);
                }
                let task = FetchTask {
                    gauges,
                    parts: self.parts.clone(),
                    is_far: transfer.is_far(&fetch),
                    most_connections: transfer.connections(fetch.holder.id()),
                    partial: self.partial.clone(),
                    connections: self.context.connections.clone(),
                    memory: if transfer.reaches_far() { &self.far_memory } else { &self.memory }.clone(),
                    running: self.receivers.pick(fetch.holder.id()),
                    fetch,
                    news: self.news.clone(),
                    intake: Intake { gate: self.context.limits.down.clone(), rank: self.rank.clone() },
                };
                self.hands.start(task);
            }
            Effect::Abort(id) => {
                self.hands.abort(id);
                self.forget(id);
            }
            Effect::Offer { stored, is_scarce, is_far } => {
                let received = &self.context.metrics.received;
                received.bytes(is_far, partial_len(&self.partial, stored));
                received.chunk(is_far);
                if self.offered {
                    self.context.sharer.holdings.stored(name, stored, is_scarce);
                }
            }
            Effect::TakeBack(chunks) => {
                tracing::warn!(%name, chunks = %chunks.ranges(), "chunks of an earlier run are damaged on disk; fetching them again");
                self.context.sharer.holdings.take_back(name, self.partial.manifest().id(), &chunks);
                self.partial.take_back(&chunks);
                self.context.metrics.damaged(chunks.len().into());
            }
            Effect::Tell(event) => {
                self.context.metrics.told(&event);
                self.events.send(event);
            }
            Effect::Record(stored) => {
                let (context, name, partial) = (self.context.clone(), name.clone(), self.partial.clone());
                let record_it = move || {
                    let begun = Instant::now();
                    let result = record(&context.sharer.journal, &name, &partial, &stored);
                    context.metrics.synced(begun.elapsed());
                    Report::Recorded(result, begun.elapsed())
                };
                self.tasks.spawn_blocking_on(record_it, self.context.lanes.disk.handle());
            }
            Effect::Prove(checked) => {
                let (partial, cancel) = (self.partial.clone(), self.cancel.clone());
                let prove = move || {
                    let sound = partial.prove(&checked, &cancel);
                    // Cancelled, it read fewer: what it did not read is not unsound.
                    let checked = if cancel.is_cancelled() { sound.clone() } else { checked };
                    Report::Proved { checked, sound }
                };
                self.tasks.spawn_blocking_on(prove, self.context.lanes.hashing.handle());
            }
            // One that was told before is not taken up yet: it is the same.
            Effect::Seek(unheld) => _ = self.seek.try_send(unheld),
            Effect::Forget(peer) => self.context.connections.forget(peer),
            Effect::End(ended) => return Some(ended),
        }
        None
    }
}

fn reported(ended: Result<Report, JoinError>) -> Input {
    match ended {
        Ok(Report::Recorded(result, took)) => Input::Recorded(result, took),
        Ok(Report::Proved { checked, sound }) => Input::Proved { checked, sound },
        Err(error) if error.is_panic() => Input::Panicked(error.to_string()),
        Err(_) => Input::Woken,
    }
}

/// What is here of a chunk, if a peer was asked for it.
fn partial_len(partial: &PartialFile, stored: StoredChunk) -> u64 {
    partial.manifest().layout().chunk_len(stored.chunk()).into()
}
