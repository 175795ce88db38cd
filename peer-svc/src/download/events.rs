//! What a transfer tells those that watch it.
//!
//! A watcher may join late: a subscription begins with the start and the latest progress. The steps of chunks that went
//! well are thousands a second, and are told only to watchers that want them. A watcher that
//! reads too slowly misses events, never the last one.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drizzle_proto::{Address, ChunkIndex, ChunkRanges, FileInfo};
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};

use drizzle_engine::{
    bound::Bound,
    limiting::{Cause, Limited},
    schedule::Offence,
    waiting::Reason,
};

/// Events that a watcher may lag behind.
const BACKLOG: usize = 4096;

/// Something that a person may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DownloadEvent {
    /// The first event.
    Started {
        /// The file that is fetched, whole or in part.
        file: FileInfo,
        /// Bytes of the wanted chunks.
        wanted: u64,
        /// Of these, bytes that an earlier run had stored.
        resumed: u64,
    },
    /// How far it is.
    Progress(Progress),
    /// A step of one chunk.
    Chunk {
        /// The step.
        step: Step,
        /// The chunk that took it.
        chunk: ChunkIndex,
        /// Where the holder is reached that was asked for it.
        peer: Address,
    },
    /// Nothing can be asked for now, and why.
    Waiting(Reason),
    /// Something else than fetching takes its time, in words.
    Working(String),
    /// The last event of a good end.
    Done {
        /// Where the file is; `None` if only chunks were wanted.
        path: Option<PathBuf>,
        /// Verified bytes of this run.
        bytes: u64,
        /// How long it took.
        elapsed: Duration,
        /// What each holder gave.
        sources: Vec<Contribution>,
        /// Which holders misbehaved on the way.
        blamed: Vec<Blamed>,
        /// How near it came to its bound, and why no nearer; `None` if nothing was fetched, or too quickly to tell.
        figures: Option<Figures>,
    },
    /// The last event of a bad end.
    Failed {
        /// What callers decide by.
        kind: FailureKind,
        /// What a person reads: what happened, and what to do.
        reason: String,
        /// What is still missing.
        chunks: ChunkRanges,
        /// Which holders misbehaved, and how.
        blamed: Vec<Blamed>,
    },
}

impl DownloadEvent {
    /// Whether it is a step of a chunk that goes well.
    fn is_step(&self) -> bool {
        matches!(self, Self::Chunk { step: Step::Requested | Step::Stored, .. })
    }
}

/// What happened to a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Asked for.
    Requested,
    /// Verified and written.
    Stored,
    /// Did not come, through the holder's fault.
    Failed {
        /// What the holder did.
        offence: Offence,
        /// More of it, for people; part of it may be the holder's own text.
        detail: String,
    },
}

/// How a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No honest holder.
    Integrity,
    /// No holder to serve it.
    Timeout,
    /// A caller cancelled it, or the last one left.
    Cancelled,
    /// Other content stands at the destination.
    DestinationExists,
    /// Local I/O.
    Storage,
    /// The name was released, or is something else now.
    Withdrawn,
    /// The daemon stops.
    Shutdown,
    /// A bug.
    Internal,
}

/// How far a transfer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Stored bytes of the wanted chunks.
    pub(crate) stored: u64,
    /// Of these, bytes that a power cut cannot take.
    pub(crate) recorded: u64,
    /// Of the stored bytes, those that are still to be proved before the file is put in place.
    pub(crate) unchecked: u64,
    /// Every holder that was asked.
    pub(crate) sources: Vec<Contribution>,
    /// What limits it at present.
    pub(crate) limited_by: Option<Cause>,
}

/// How near a download came to its bound, and why no nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    /// How long it took at the least.
    pub(crate) bound: Bound,
    /// What had most of its time.
    pub(crate) limited: Limited,
}

/// What one holder gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contribution {
    /// Where it is reached.
    pub(crate) peer: Address,
    /// Whether its labels name another place than this peer's.
    pub(crate) is_far: bool,
    /// Bytes of this run: received so far, or verified in the last event.
    pub(crate) bytes: u64,
    /// Verified chunks of this run.
    pub(crate) chunks: u32,
    /// Chunks that are on their way.
    pub(crate) in_flight: u32,
}

/// What one holder did wrong in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blamed {
    /// Where it is reached.
    pub(crate) peer: Address,
    /// What it did.
    pub(crate) offence: Offence,
    /// The chunks that it did that with.
    pub(crate) chunks: ChunkRanges,
}

#[derive(Debug, Default)]
struct Latest {
    started: Option<DownloadEvent>,
    progress: Progress,
    work: String,
}

/// Where a transfer sends its events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Broadcast {
    sender: broadcast::Sender<DownloadEvent>,
    /// The same with every step of every chunk.
    with_steps: broadcast::Sender<DownloadEvent>,
    /// Locked while sending, so that a watcher that joins neither misses an event nor sees one twice.
    latest: Arc<Mutex<Latest>>,
}

impl Default for Broadcast {
    fn default() -> Self {
        let [sender, with_steps] = [(); 2].map(|()| broadcast::Sender::new(BACKLOG));
        Self { sender, with_steps, latest: Arc::default() }
    }
}

impl Broadcast {
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every watcher.
    pub(crate) fn send(&self, event: DownloadEvent) {
        let mut latest = self.lock();
        match &event {
            DownloadEvent::Started { .. } => latest.started = Some(event.clone()),
            DownloadEvent::Progress(progress) => latest.progress = progress.clone(),
            _ => {}
        }
        // Without watchers is fine.
        if !event.is_step() {
            let _ = self.sender.send(event.clone());
        }
        let _ = self.with_steps.send(event);
    }

    /// Tells what is done beside fetching, once.
    pub(crate) fn work(&self, text: String) {
        if std::mem::replace(&mut self.lock().work, text.clone()) != text {
            self.send(DownloadEvent::Working(text));
        }
    }

    /// The latest progress.
    pub(crate) fn progress(&self) -> Progress {
        self.lock().progress.clone()
    }

    /// Watches from now on, perhaps every step of every chunk. The stream ends when the transfer does.
    pub(crate) fn subscribe(&self, steps: bool) -> Subscription {
        let latest = self.lock();
        let mut first: Vec<DownloadEvent> = latest.started.iter().cloned().collect();
        if latest.progress != Progress::default() {
            first.push(DownloadEvent::Progress(latest.progress.clone()));
        }
        // Events that a slow watcher missed are left out.
        let sender = if steps { &self.with_steps } else { &self.sender };
        let rest = BroadcastStream::new(sender.subscribe()).filter_map(Result::ok);
        Box::pin(tokio_stream::iter(first).chain(rest))
    }
}

/// Events of one transfer, ending with the last one.
pub(crate) type Subscription = Pin<Box<dyn Stream<Item = DownloadEvent> + Send>>;

/// Of a transfer that was over before it began.
pub(crate) fn over(events: Vec<DownloadEvent>) -> Subscription {
    Box::pin(tokio_stream::iter(events))
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{ChunkCount, FileName, Layout, Manifest};

    use super::*;

    fn chunk_event() -> DownloadEvent {
        let chunk = ChunkCount::new(1).unwrap().index(0).unwrap();
        DownloadEvent::Chunk { step: Step::Requested, chunk, peer: Address::new("h:1").unwrap() }
    }

    fn last_event() -> DownloadEvent {
        let (kind, chunks) = (FailureKind::Cancelled, ChunkRanges::default());
        DownloadEvent::Failed { kind, reason: String::new(), chunks, blamed: Vec::new() }
    }

    #[tokio::test]
    async fn a_late_watcher_hears_the_start_and_the_end() {
        let events = Broadcast::default();
        let layout = Layout::new(0, 1 << 14).unwrap();
        let file = Manifest::new(layout, Vec::new()).unwrap().describe(FileName::new("a").unwrap());
        let started = DownloadEvent::Started { file, wanted: 5, resumed: 0 };
        events.send(started.clone());
        events.send(chunk_event());
        let mut late = events.subscribe(true);
        events.send(last_event());
        assert_eq!(late.next().await, Some(started));
        assert_eq!(late.next().await, Some(last_event()));
        drop(events);
        assert_eq!(late.next().await, None);
    }

    #[tokio::test]
    async fn steps_that_go_well_are_told_to_watchers_that_want_them_and_failures_to_all() {
        let events = Broadcast::default();
        let (few, all) = (events.subscribe(false), events.subscribe(true));
        let DownloadEvent::Chunk { chunk, peer, .. } = chunk_event() else { panic!("a chunk") };
        let step = Step::Failed { offence: Offence::Stalled, detail: String::new() };
        let failed = DownloadEvent::Chunk { step, chunk, peer };
        for event in [chunk_event(), failed.clone(), last_event()] {
            events.send(event);
        }
        drop(events);
        assert_eq!(few.collect::<Vec<_>>().await, [failed.clone(), last_event()]);
        assert_eq!(all.collect::<Vec<_>>().await, [chunk_event(), failed, last_event()]);
    }

    #[tokio::test]
    async fn a_slow_watcher_still_hears_the_end() {
        let events = Broadcast::default();
        let mut slow = events.subscribe(true);
        for _ in 0..BACKLOG * 2 {
            events.send(chunk_event());
        }
        events.send(last_event());
        drop(events);
        let mut last = None;
        while let Some(event) = slow.next().await {
            last = Some(event);
        }
        assert_eq!(last, Some(last_event()));
    }
}
