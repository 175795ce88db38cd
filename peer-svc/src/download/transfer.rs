//! The state of one download: what happened goes in, what is to be done comes out.
//!
//! [`Transfer::apply`] is the only way in, it never waits, and it touches no disk, network, clock or runtime: a
//! test builds a transfer and drives it. What to fetch, from which holder, and when to give up is decided by
//! [`drizzle_engine`]; here the decisions of one download are brought together.
//!
//! Invariants (tested):
//! - a chunk counts as stored only by a [`StoredChunk`] of that very chunk, or by a record that vouches for it;
//! - a download is complete only when every wanted chunk is stored and every chunk that only the record vouched for
//!   was proved by its hash since; a chunk that fails the proof is missing again;
//! - each fetch is started once and ends once; after [`Effect::End`] there are no further effects.

mod fetched;
mod figures;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use drizzle_engine::{
    locality::Locality,
    reach::Reach,
    schedule::{Fetch, FetchId, Limits, Scheduler},
    seek::Seek,
    streams::Streams,
    waiting::{Fetches, Reason, Waiting},
};
use drizzle_proto::{
    ChunkSet, Labels, PeerId,
    holder::{Holder, HolderChange},
    net::transport::STREAM_WINDOW,
};
use rand::{SeedableRng, rngs::StdRng};

use self::figures::Account;
use super::{
    effects::{Bounds, Counts, Effect, Ended, Input},
    events::{Blamed, Contribution, DownloadEvent, Progress, Step},
    failure::Failure,
    job::{Job, bytes_of},
    sources::Sources,
};
use crate::{locate::Located, shortage::Shortage};

/// Stored chunks are synced and recorded this often: what a power cut can cost.
pub(super) const RECORD: Duration = Duration::from_secs(1);
/// Syncing takes at most this share of the time: on a slow disk a record comes later.
const RECORD_SHARE: u32 = 10;
/// Chunks that are proved in one go: little enough for a cancellation to be prompt, and for progress to be seen.
const PROVE_AT_ONCE: u32 = 64;
/// Bytes of them, if that is more than one chunk.
const PROVE_BYTES: u32 = 64 << 20;

/// The state of one download.
#[derive(Debug)]
pub(super) struct Transfer {
    job: Job,
    /// Stored chunks, wanted or not.
    stored: ChunkSet,
    /// Of these, chunks that only the record vouches for.
    unproved: ChunkSet,
    proving: bool,
    stored_bytes: u64,
    resumed_bytes: u64,
    recorded: ChunkSet,
    recording: Option<ChunkSet>,
    record_from: Instant,
    locality: Locality,
    scheduler: Scheduler,
    streams: Streams,
    /// Streams of the whole download where nothing is far.
    usual: usize,
    reach: Reach,
    /// Streams that it may run because of its priority.
    allowed: usize,
    sources: Sources,
    running: BTreeMap<FetchId, Fetch>,
    /// Fetches that ran when this process was stopped for a while.
    slept_through: BTreeSet<FetchId>,
    waiting: Waiting,
    /// Fetches that wait for memory and have asked no peer.
    without_memory: BTreeSet<FetchId>,
    /// What this machine ran out of when a holder was to be asked last, until a chunk is stored.
    shortage: Option<Shortage>,
    located: bool,
    seek: Seek,
    account: Account,
    told: Progress,
    ended: bool,
    rng: StdRng,
}

impl Transfer {
    /// A download of which some chunks are stored already; `unproved` of them only a record vouches for.
    pub(super) fn new(job: Job, stored: ChunkSet, unproved: ChunkSet, now: Instant) -> Self {
        let missing = job.wanted.difference(&stored);
        let resumed_bytes = bytes_of(&job.manifest, &job.wanted.intersection(&stored));
        let limits = Limits::for_chunks_of(job.manifest.layout().chunk_size());
        Self {
            // Nowhere, until it is said where.
            locality: Locality::new(PeerId::from_bytes([0; 16]), Labels::default(), missing.count()),
            scheduler: Scheduler::new(&missing, limits),
            allowed: limits.in_flight,
            usual: limits.in_flight,
            reach: Reach::new(job.manifest.layout().chunk_size(), STREAM_WINDOW),
            streams: Streams::new(job.manifest.layout().chunk_size(), limits.in_flight, now),
            waiting: Waiting::new(job.timeout, now),
            recorded: unproved.clone(),
            stored,
            unproved,
            proving: false,
            stored_bytes: resumed_bytes,
            resumed_bytes,
            recording: None,
            record_from: now,
            sources: Sources::default(),
            running: BTreeMap::new(),
            slept_through: BTreeSet::new(),
            without_memory: BTreeSet::new(),
            shortage: None,
            located: false,
            seek: Seek::default(),
            account: Account::new(now),
            told: Progress::default(),
            ended: false,
            rng: StdRng::seed_from_u64(job.seed),
            job,
        }
    }

    /// The download of this peer, with these labels.
    pub(super) fn at(mut self, own: PeerId, labels: Labels) -> Self {
        self.locality = Locality::new(own, labels, self.job.wanted.count());
        self
    }

    /// What it is for.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Whether the holder of a fetch is far, by the labels.
    pub(super) fn is_far(&self, fetch: &Fetch) -> bool {
        self.locality.is_far(fetch.holder.labels())
    }

    /// Stored chunks, to be recorded when it is over.
    pub(super) fn stored(&self) -> &ChunkSet {
        &self.stored
    }

    /// The wanted chunks that are missing.
    pub(super) fn missing(&self) -> &ChunkSet {
        self.scheduler.missing()
    }

    /// Applies something that happened; what is to be done now.
    pub(super) fn apply(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.ended {
            return effects;
        }
        // Told at a steady pace, and not with each of a thousand chunks.
        let tells_progress = matches!(input, Input::Counted(_));
        match self.happened(input, now, &mut effects) {
            Ok(()) => self.go_on(tells_progress, now, &mut effects),
            Err(failure) => self.end(Ended::Failed(failure), now, &mut effects),
        }
        effects
    }

    /// When to apply [`Input::Woken`] if nothing happens before.
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        let due = self.record_is_wanted().then_some(self.record_from);
        let wake = self.scheduler.wake_at(now).into_iter().chain(due).min();
        wake.map_or(self.waiting.gives_up_at(), |at| at.min(self.waiting.gives_up_at()))
    }

    fn happened(&mut self, input: Input, now: Instant, effects: &mut Vec<Effect>) -> Result<(), Failure> {
        match input {
            Input::Begin => effects.push(Effect::Tell(DownloadEvent::Started {
                file: self.job.manifest.describe(self.job.name.clone()),
                wanted: bytes_of(&self.job.manifest, &self.job.wanted),
                resumed: self.resumed_bytes,
            })),
            Input::Cancelled => return Err(Failure::Cancelled),
            Input::Shutdown => return Err(Failure::Shutdown),
            Input::Located(Located::Change(change)) => self.locate(change, effects),
            Input::Located(Located::Synced) => {
                self.look(now);
                self.account.located(now);
                self.located = true;
            }
            Input::Located(Located::Withdrawn(withdrawal)) => return Err(Failure::Withdrawn(withdrawal)),
            Input::LocatingEnded => {
                return Err(Failure::Internal("the watch of the file's holders ended".to_owned()));
            }
            Input::Fetched(id, result) => self.fetched(id, result, now, effects)?,
            Input::Recorded(result, took) => {
                result?;
                if let Some(chunks) = self.recording.take() {
                    self.recorded = chunks;
                }
                self.record_from = now + RECORD.max(took * RECORD_SHARE);
            }
            Input::Proved { checked, sound } => {
                self.look(now);
                self.proved(&checked, &sound, effects);
            }
            Input::Panicked(text) => return Err(Failure::Internal(text)),
            Input::News(id, news) => self.news(id, news, now, effects),
            Input::Counted(Counts { received, answered, had, wire, own, writing, intake, receiving }) => {
                self.sources.received(&received);
                self.account.counted(&received, (writing, receiving), intake, now);
                self.moved(&had, now);
                self.held_to(own, now);
                self.reach(&received, &answered, now);
                let Fetches { under_way, without_memory } = self.fetches();
                self.streams.counted(wire, under_way - without_memory, now);
                self.look(now);
            }
            Input::Patience(patience) => self.waiting.be_patient(patience),
            Input::Woken => {}
            Input::Slept(asleep) => {
                self.waiting.slept(asleep);
                self.scheduler.slept(asleep);
                self.account.slept(asleep);
                self.slept_through.extend(self.running.keys().copied());
            }
        }
        Ok(())
    }

    /// Whatever follows from the present state.
    fn go_on(&mut self, tells_progress: bool, now: Instant, effects: &mut Vec<Effect>) {
        if !self.unproved.is_empty() && !self.proving {
            self.proving = true;
            let fit = PROVE_BYTES / self.job.manifest.layout().chunk_size();
            effects.push(Effect::Prove(first(&self.unproved, fit.clamp(1, PROVE_AT_ONCE))));
        }
        self.start_fetches(now, effects);
        if self.takes_over(now) {
            self.start_fetches(now, effects);
        }
        if self.scheduler.is_complete() && self.unproved.is_empty() {
            return self.end(Ended::Complete, now, effects);
        }
        // Chunks that are read again are progress enough: the disk answers or fails.
        if self.scheduler.is_complete() {
            self.waiting.chunk_proved(now);
        }
        let fetches = self.fetches();
        let reason = || match (Reason::of(self.located, self.scheduler.supply(now), fetches), self.shortage) {
            (Reason::Busy, Some(shortage)) => Reason::Short(shortage.to_string()),
            (reason, _) => reason,
        };
        // What busy holders can send goes to other downloads of this peer, if those get anything.
        let others_get = || fetches.under_way == 0 && self.account.receives() && matches!(reason(), Reason::Busy);
        if fetches.wait_for_memory() || others_get() {
            self.waiting.waits_for_itself(now);
        }
        if let Some(why) = self.waiting.gives_up(self.scheduler.tainted(), reason, now) {
            let patience = self.waiting.patience();
            return self.end(Ended::Failed(Failure::GaveUp { why, patience }), now, effects);
        }
        // What near peers are to bring is not waited for in vain: it is taken over.
        let stands_still = self.located
            && fetches.ask_no_peer()
            && !self.scheduler.is_complete()
            && self.locality.withheld(self.scheduler.missing()).is_empty();
        let reason = stands_still.then(reason);
        match &reason {
            Some(Reason::NoSupply(supply)) if !supply.unheld.is_empty() => {
                if self.seek.stands_still(now) {
                    effects.push(Effect::Seek(supply.unheld.clone()));
                }
            }
            _ => self.seek.goes_on(),
        }
        if let Some(news) = reason.and_then(|reason| self.waiting.stands_still(reason)) {
            effects.push(Effect::Tell(DownloadEvent::Waiting(news)));
        }
        if self.record_is_wanted() && self.record_from <= now {
            self.recording = Some(self.stored.clone());
            effects.push(Effect::Record(self.stored.clone()));
        }
        if tells_progress {
            self.tell_progress(effects);
        }
    }

    fn tell_progress(&mut self, effects: &mut Vec<Effect>) {
        let progress = self.progress();
        if progress != self.told {
            self.told = progress.clone();
            effects.push(Effect::Tell(DownloadEvent::Progress(progress)));
        }
    }

    fn end(&mut self, ended: Ended, now: Instant, effects: &mut Vec<Effect>) {
        self.ended = true;
        self.account.ended(now);
        self.tell_progress(effects);
        effects.extend(std::mem::take(&mut self.running).into_keys().map(Effect::Abort));
        effects.push(Effect::End(ended));
    }

    fn record_is_wanted(&self) -> bool {
        self.recording.is_none() && self.recorded != self.stored
    }

    fn locate(&mut self, change: HolderChange, effects: &mut Vec<Effect>) {
        let count = self.job.wanted.count();
        match &change {
            // Chunks of some other file: the tracker is confused, the holder is not asked.
            HolderChange::Is(Holder { chunks, .. }) | HolderChange::Added(_, chunks) if chunks.count() != count => {
                return;
            }
            HolderChange::Gone(peer) | HolderChange::Parted(peer) => effects.push(Effect::Forget(*peer)),
            HolderChange::Is(_) | HolderChange::Added(..) => {}
        }
        let told = self.locality.apply(change);
        self.tell_scheduler(told);
    }

    fn tell_scheduler(&mut self, told: Vec<HolderChange>) {
        for change in told {
            match change {
                HolderChange::Is(holder) => self.scheduler.holder_is(holder.peer, holder.chunks),
                HolderChange::Added(peer, chunks) => self.scheduler.holder_added(peer, &chunks),
                HolderChange::Gone(peer) | HolderChange::Parted(peer) => self.scheduler.holder_gone(peer),
            }
        }
    }

    /// While nothing is under way, takes over what near peers do not bring from afar; whether there is more to ask for now.
    fn takes_over(&mut self, now: Instant) -> bool {
        if !self.located || !self.running.is_empty() || self.scheduler.is_complete() {
            self.locality.goes_on();
            return false;
        }
        let told = self.locality.stands_still(self.scheduler.missing(), now, &mut self.rng);
        let is_more = !told.is_empty();
        self.tell_scheduler(told);
        is_more
    }

    /// Asks for as much as the scheduler lets run.
    fn start_fetches(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.scheduler.allow(self.streams.room().min(self.allowed), self.streams.is_slow());
        // Before the whole picture is there, the rarest chunk is not known.
        while self.located
            && let Some(fetch) = self.scheduler.next(now, &mut self.rng)
        {
            self.sources.asked(&fetch.holder, self.is_far(&fetch));
            let holder = fetch.holder.id();
            self.account.asked(holder, self.scheduler.is_full_holder(holder) || self.locality.is_full(holder), now);
            self.running.insert(fetch.id, fetch.clone());
            effects.push(Effect::Tell(DownloadEvent::Chunk {
                step: Step::Requested,
                chunk: fetch.chunk,
                peer: fetch.holder.address().clone(),
            }));
            effects.push(Effect::Fetch(fetch));
        }
    }

    fn fetches(&self) -> Fetches {
        Fetches { under_way: self.running.len(), without_memory: self.without_memory.len() }
    }

    fn proved(&mut self, checked: &ChunkSet, sound: &ChunkSet, effects: &mut Vec<Effect>) {
        self.proving = false;
        self.unproved = self.unproved.difference(checked);
        let unsound = checked.difference(sound);
        if unsound.is_empty() {
            return;
        }
        self.stored = self.stored.difference(&unsound);
        self.recorded = self.recorded.difference(&unsound);
        for chunk in unsound.iter().filter(|chunk| self.job.wanted.contains(*chunk)) {
            self.stored_bytes -= u64::from(self.job.manifest.layout().chunk_len(chunk));
            self.scheduler.lost(chunk);
        }
        effects.push(Effect::TakeBack(unsound));
    }

    /// What the fetches got so far.
    fn moved(&mut self, had: &BTreeMap<FetchId, u32>, now: Instant) {
        for (id, had) in had {
            let Some(chunk) = self.scheduler.chunk(*id).filter(|_| self.running.contains_key(id)) else { continue };
            let len = self.job.manifest.layout().chunk_len(chunk);
            self.waiting.chunk_grew(chunk, (*had).min(len), now);
            self.scheduler.moved(*id, *had, len, now);
        }
    }

    /// More is asked of holders that are far, by what came from them.
    fn reach(&mut self, received: &BTreeMap<PeerId, u64>, answered: &BTreeMap<PeerId, Duration>, now: Instant) {
        for (holder, took) in answered {
            self.reach.answered(*holder, *took, now);
        }
        for (holder, bytes) in received {
            self.reach.counted(*holder, *bytes, now);
        }
        let beyond = self.reach.all();
        self.streams.widen(self.usual + beyond);
        self.scheduler.reach(beyond);
        for holder in self.reach.holders() {
            self.scheduler.reach_at(holder, self.reach.of(holder));
        }
    }

    /// Whether more fetches run than usual.
    pub(super) fn reaches_far(&self) -> bool {
        self.running.len() > self.usual
    }

    /// Connections over which a holder is asked.
    pub(super) fn connections(&self, holder: PeerId) -> usize {
        self.reach.connections(holder)
    }

    /// A download that this peer itself holds up waits for no holder.
    fn held_to(&mut self, own: Bounds, now: Instant) {
        self.streams.limit(own.limit);
        // Its part of what is usual; with all of that, all that reaches far as well.
        self.allowed = own.streams.filter(|streams| *streams < self.usual).unwrap_or(usize::MAX);
        let mut longest = Duration::ZERO;
        for (id, total) in own.held_up {
            longest = longest.max(self.scheduler.held_up(id, total, now));
        }
        self.waiting.held_up(longest, now);
        self.account.held_up(longest);
    }

    fn progress(&self) -> Progress {
        let recorded = self.job.wanted.intersection(&self.recorded);
        let recorded = bytes_of(&self.job.manifest, &recorded);
        let unchecked = self.job.wanted.intersection(&self.unproved);
        let unchecked = bytes_of(&self.job.manifest, &unchecked);
        let (sources, limited_by) = (self.sources.asked_so_far(), self.account.live());
        Progress { stored: self.stored_bytes, recorded, unchecked, sources, limited_by }
    }

    /// What each holder gave in this run, verified bytes only.
    pub(super) fn contributions(&self) -> Vec<Contribution> {
        self.sources.contributions()
    }

    /// What holders did wrong in this run.
    pub(super) fn blamed(&self) -> Vec<Blamed> {
        let blamed = self.scheduler.blame().into_iter().filter_map(|blame| {
            let peer = self.sources.address(blame.holder)?.clone();
            Some(Blamed { peer, offence: blame.offence, chunks: blame.chunks.ranges() })
        });
        blamed.collect()
    }
}

/// The first chunks of a set, at most so many.
fn first(chunks: &ChunkSet, most: u32) -> ChunkSet {
    let mut some = ChunkSet::empty(chunks.count());
    for chunk in chunks.iter().take(most as usize) {
        some.insert(chunk);
    }
    some
}

#[cfg(test)]
#[path = "transfer_choice_tests.rs"]
mod choice_tests;
#[cfg(test)]
#[path = "transfer_limit_tests.rs"]
mod limit_tests;
#[cfg(test)]
#[path = "transfer_replay_tests.rs"]
mod replay_tests;
#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
