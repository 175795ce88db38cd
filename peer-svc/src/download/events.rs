//! What a transfer tells those who watch it.
//!
//! Anybody may join late: a subscription begins with the start and the latest progress. A watcher that
//! reads too slowly misses chunk events, never the last event.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drizzle_proto::{Address, ChunkIndex, ChunkRanges, FileInfo};
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};

use drizzle_engine::schedule::Offence;

/// Events that a watcher may lag behind.
const BACKLOG: usize = 4096;

/// Something that a person may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first event.
    Started {
        /// What is fetched.
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
        /// What happened.
        step: Step,
        /// To which chunk.
        chunk: ChunkIndex,
        /// At which holder.
        peer: Address,
    },
    /// Nothing can be asked for now, and why.
    Waiting(String),
    /// The last event of a good end.
    Done {
        /// Where the file is; `None` if only chunks were wanted.
        path: Option<PathBuf>,
        /// Verified bytes of this run.
        bytes: u64,
        /// How long it took.
        elapsed: Duration,
        /// Who gave what.
        sources: Vec<SourceProgress>,
        /// Who misbehaved on the way.
        blamed: Vec<Blamed>,
    },
    /// The last event of a bad end.
    Failed {
        /// For programs.
        kind: FailureKind,
        /// For people.
        reason: String,
        /// What is still missing.
        chunks: ChunkRanges,
        /// Who misbehaved.
        blamed: Vec<Blamed>,
    },
}

/// What happened to a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Asked for.
    Requested,
    /// Verified and written.
    Stored,
    /// Did not come; why.
    Failed(String),
}

/// How a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No honest holder.
    Integrity,
    /// Nobody to serve.
    Timeout,
    /// On request.
    Cancelled,
    /// Other content stands at the destination.
    DestinationExists,
    /// Local I/O.
    Storage,
    /// The name was released, or is something else now.
    Withdrawn,
    /// The daemon stops.
    Shutdown,
}

/// How far a transfer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Stored bytes of the wanted chunks.
    pub stored: u64,
    /// Everybody who was asked.
    pub sources: Vec<SourceProgress>,
}

/// What one holder gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProgress {
    /// Its address.
    pub peer: Address,
    /// Bytes of this run: received so far, or verified in the last event.
    pub bytes: u64,
    /// Verified chunks of this run.
    pub chunks: u32,
    /// Chunks that are on their way.
    pub in_flight: u32,
}

/// What one holder did wrong in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blamed {
    /// Its address.
    pub peer: Address,
    /// What it did.
    pub offence: Offence,
    /// With which chunks.
    pub chunks: ChunkRanges,
}

/// An offence in words.
pub fn offence_text(offence: Offence) -> &'static str {
    match offence {
        Offence::WrongBytes => "wrong bytes",
        Offence::Changed => "changed file",
        Offence::Stalled => "stalled",
        Offence::BrokeOff => "broke off",
        Offence::Refused => "refused",
        Offence::NotHeld => "does not hold it",
        Offence::Unreachable => "unreachable",
    }
}

pub(super) fn failed(kind: FailureKind, reason: String, chunks: ChunkRanges, blamed: Vec<Blamed>) -> Event {
    Event::Failed { kind, reason, chunks, blamed }
}

#[derive(Debug, Default)]
struct Latest {
    started: Option<Event>,
    progress: Progress,
}

/// Where a transfer sends its events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Broadcast {
    sender: broadcast::Sender<Event>,
    /// Locked while sending, so that who joins neither misses an event nor sees one twice.
    latest: Arc<Mutex<Latest>>,
}

impl Default for Broadcast {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), latest: Arc::default() }
    }
}

impl Broadcast {
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody.
    pub fn send(&self, event: Event) {
        let mut latest = self.lock();
        match &event {
            Event::Started { .. } => latest.started = Some(event.clone()),
            Event::Progress(progress) => latest.progress = progress.clone(),
            _ => {}
        }
        // Nobody watching is fine.
        let _ = self.sender.send(event);
    }

    /// The latest progress.
    pub fn progress(&self) -> Progress {
        self.lock().progress.clone()
    }

    /// Watches from now on. The stream ends when the transfer does.
    pub fn subscribe(&self) -> Subscription {
        let latest = self.lock();
        let mut first: Vec<Event> = latest.started.iter().cloned().collect();
        if latest.progress != Progress::default() {
            first.push(Event::Progress(latest.progress.clone()));
        }
        // Events that a slow watcher missed are left out.
        let rest = BroadcastStream::new(self.sender.subscribe()).filter_map(Result::ok);
        Box::pin(tokio_stream::iter(first).chain(rest))
    }
}

/// Events of one transfer, ending with the last one.
pub type Subscription = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Of a transfer that was over before it began.
pub fn over(events: Vec<Event>) -> Subscription {
    Box::pin(tokio_stream::iter(events))
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{ChunkCount, FileName, Layout, Manifest};

    use super::*;

    fn chunk_event() -> Event {
        let chunk = ChunkCount::new(1).unwrap().index(0).unwrap();
        Event::Chunk { step: Step::Requested, chunk, peer: Address::new("h:1").unwrap() }
    }

    fn last_event() -> Event {
        failed(FailureKind::Cancelled, String::new(), ChunkRanges::default(), Vec::new())
    }

    #[tokio::test]
    async fn who_joins_late_hears_the_start_and_the_end() {
        let events = Broadcast::default();
        let layout = Layout::new(0, 1 << 14).unwrap();
        let file = Manifest::new(layout, Vec::new()).unwrap().describe(FileName::new("a").unwrap());
        let started = Event::Started { file, wanted: 5, resumed: 0 };
        events.send(started.clone());
        events.send(chunk_event());
        let mut late = events.subscribe();
        events.send(last_event());
        assert_eq!(late.next().await, Some(started));
        assert_eq!(late.next().await, Some(last_event()));
        drop(events);
        assert_eq!(late.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_watcher_still_hears_the_end() {
        let events = Broadcast::default();
        let mut slow = events.subscribe();
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
