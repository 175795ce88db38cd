//! One fetch: memory, bytes from a holder, proof, disk; then the outcome.
//!
//! | module | is |
//! |---|---|
//! | [`receiver`] | the threads on which chunks come in, by the disk that they go to |
//! | [`hands`] | the fetches of one download on these threads |
//! | [`peer`] | a gRPC stream in, a verified chunk out |
//! | [`parts`] | what came of chunks that are not whole yet |
//! | [`intake`] | the limit under which bytes are taken |
//! | [`memory`] | room for chunks in flight, shared between downloads |
//! | [`connections`] | how this peer reaches others |
//! | [`pool`] | the connections of one thread |
//! | [`error`] | why a fetch fails, and whose fault that is |
//!
//! Which chunk comes from which holder is decided by [`drizzle_engine::schedule`].

pub(crate) mod connections;
pub(crate) mod error;
pub(crate) mod hands;
pub(crate) mod intake;
pub(crate) mod memory;
pub(crate) mod parts;
mod peer;
mod pool;
pub(crate) mod receiver;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use drizzle_engine::schedule::{Fetch, FetchId};
use drizzle_proto::{ChunkIndex, net::transport::STREAM_WINDOW};
use tokio::{sync::mpsc, task::JoinError};

use self::{
    connections::Connections, error::FetchError, intake::Intake, memory::Account, parts::Parts, peer::Asked,
    receiver::Running,
};
use crate::{
    limits::HeldUp,
    store::{
        data::PutError,
        write::{PartialFile, StoredChunk},
    },
    verify::PushError,
};

/// How a fetch ended without a stored chunk.
#[derive(Debug)]
pub(crate) enum FetchFailure {
    /// The holder was busy, or is to blame.
    Holder(FetchError),
    /// The chunk came, and could not be written.
    Storage(std::io::Error),
    /// Another copy of the chunk came first.
    Overtaken,
    /// A panic, with its text: a bug.
    Internal(String),
    /// The daemon stops.
    Stopping,
}

impl FetchFailure {
    /// From the end of a task that gave no answer.
    pub(crate) fn of_task(error: JoinError) -> Self {
        if error.is_panic() { Self::Internal(error.to_string()) } else { Self::Stopping }
    }
}

impl From<FetchError> for FetchFailure {
    fn from(error: FetchError) -> Self {
        Self::Holder(error)
    }
}

impl From<PutError> for FetchFailure {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Io(error) => Self::Storage(error),
            PutError::Overtaken => Self::Overtaken,
        }
    }
}

impl From<PushError> for FetchFailure {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Mismatch(mismatch) => FetchError::mismatch(mismatch).into(),
            PushError::Put(error) => error.into(),
        }
    }
}

/// What a fetch needs.
pub(crate) struct FetchTask {
    pub(crate) fetch: Fetch,
    /// Whether its holder is far, by the labels.
    pub(crate) is_far: bool,
    /// Connections that there may be to its holder.
    pub(crate) most_connections: usize,
    pub(crate) partial: Arc<PartialFile>,
    pub(crate) connections: Arc<Connections>,
    /// The thread that it runs on.
    pub(crate) running: Running,
    /// This download's part of the memory for chunks in flight.
    pub(crate) memory: Arc<Account>,
    /// Hears what happens before its end.
    pub(crate) news: mpsc::Sender<(FetchId, News)>,
    /// What came of chunks before.
    pub(crate) parts: Arc<Parts>,
    /// What it tells while it runs.
    pub(crate) gauges: Gauges,
    /// The limit that its bytes are under.
    pub(crate) intake: Intake,
}

/// A fetch that has not asked its holder yet.
pub(crate) const NOT_ASKED: u32 = u32::MAX;

/// What a fetch tells while it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauges {
    /// Bytes that came from its holder, whole messages only.
    pub(crate) received: Arc<AtomicU64>,
    /// How soon its holder answered.
    pub(crate) answered: Arc<Soonest>,
    /// Bytes that came for the whole download, as the transport counts them.
    pub(crate) wire: Arc<AtomicU64>,
    /// Bytes that are here of this chunk, from whichever holder, about; [`NOT_ASKED`] while no peer is asked.
    pub(crate) had: Arc<AtomicU32>,
    /// For how long the limit of this peer held it up.
    pub(crate) held_up: Arc<HeldUp>,
}

/// The shortest of some times, in microseconds.
#[derive(Debug)]
pub(crate) struct Soonest(AtomicU32);

impl Default for Soonest {
    fn default() -> Self {
        Self(AtomicU32::new(u32::MAX))
    }
}

impl Soonest {
    /// One of them.
    fn took(&self, time: Duration) {
        self.0.fetch_min(u32::try_from(time.as_micros()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Of those since this was asked last.
    pub(crate) fn take(&self) -> Option<Duration> {
        let micros = self.0.swap(u32::MAX, Ordering::Relaxed);
        (micros < u32::MAX).then(|| Duration::from_micros(micros.into()))
    }
}

/// What happens to a fetch before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Other chunks use all memory. No peer is asked before there is room for this one.
    AwaitsRoom,
    /// There is, after it had to wait.
    HasRoom,
    /// Its holder chose this chunk, which was asked for or is one of the alternatives.
    Bound(ChunkIndex),
}

/// Tells which chunk the holder of a fetch chose.
struct Choice<'a> {
    fetch: &'a Fetch,
    news: &'a mpsc::Sender<(FetchId, News)>,
    /// The chunk, if its end is to tell it.
    untold: OnceLock<ChunkIndex>,
}

impl Choice<'_> {
    async fn is(&self, chunk: ChunkIndex) {
        if !self.fetch.alternatives.is_empty() {
            let _ = self.news.send((self.fetch.id, News::Bound(chunk))).await;
        }
    }

    /// All of the chunk has come, so that its end follows at once and names it: that saves a wake-up for each small chunk.
    fn ends_as(&self, chunk: ChunkIndex) {
        let _ = self.untold.set(chunk);
    }

    /// It ends without naming the chunk.
    async fn failed(&self) {
        if let Some(chunk) = self.untold.get() {
            self.is(*chunk).await;
        }
    }
}

/// Fetches, proves and writes one chunk. What it gives names the chunk, which may be an alternative that was not told of
/// before. Blocks on disk I/O: it runs on the thread that it was given.
pub(crate) async fn fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask {
        fetch,
        is_far,
        most_connections,
        partial,
        connections,
        running,
        memory,
        news,
        parts,
        gauges,
        intake,
    } = task;
    let manifest = partial.manifest();
    let mut has_waited = false;
    let must_wait = async || {
        has_waited = true;
        // A download that hears no news has ended.
        let _ = news.send((fetch.id, News::AwaitsRoom)).await;
    };
    let choice = Choice { fetch: &fetch, news: &news, untold: OnceLock::new() };
    if let Some(stored) = partial.stored(fetch.chunk) {
        choice.is(fetch.chunk).await;
        return Ok(stored);
    }
    let mut begun = parts.begin(fetch.chunk, fetch.holder.id());
    let largest =
        [fetch.chunk].iter().chain(&fetch.alternatives).map(|chunk| manifest.layout().chunk_len(*chunk)).max();
    // What waits in the transport, and what is gathered.
    let most = largest.unwrap_or(0).min(STREAM_WINDOW).max(begun.memory());
    let room = memory.room(most.into(), must_wait).await;
    if has_waited {
        let _ = news.send((fetch.id, News::HasRoom)).await;
    }
    let asked = Asked {
        connections: &connections,
        pool: running.pool(),
        manifest,
        is_far,
        most_connections,
        parts: &parts,
        gauges: &gauges,
        intake: &intake,
        choice,
        fetch: &fetch,
        memory: most.into(),
    };
    let fetched = asked.fetch(&mut begun).await.and_then(|verified| Ok(partial.store(verified)?));
    drop(room);
    let fetched = match fetched {
        // By whom does not matter.
        Err(FetchFailure::Overtaken) => partial.stored(begun.chunk()).ok_or(FetchFailure::Overtaken),
        fetched => fetched,
    };
    if fetched.is_err() {
        asked.choice.failed().await;
    }
    fetched
}

#[cfg(test)]
mod tests;
