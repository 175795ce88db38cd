//! One fetch: memory, bytes from a holder, proof, disk; then the outcome.
//!
//! | module | is |
//! |---|---|
//! | [`peer`] | a gRPC stream in, a verified chunk out |
//! | [`parts`] | what came of chunks that are not whole yet |
//! | [`intake`] | the limit under which bytes are taken |
//! | [`memory`] | room for chunks in flight, shared between downloads |
//! | [`pool`] | connections to holders |
//! | [`error`] | why a fetch fails, and whose fault that is |
//!
//! Which chunk comes from which holder is decided by [`drizzle_engine::schedule`].

pub(crate) mod error;
pub(crate) mod intake;
pub(crate) mod memory;
pub(crate) mod parts;
mod peer;
pub(crate) mod pool;

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use drizzle_engine::schedule::{Fetch, FetchId};
use drizzle_proto::ChunkIndex;
use tokio::{sync::mpsc, task::JoinError};

use self::{error::FetchError, intake::Intake, memory::Account, parts::Parts, pool::Connections};
use crate::{
    lanes::Lanes,
    limits::HeldUp,
    store::write::{PartialFile, StoredChunk},
};

/// How a fetch ended without a stored chunk.
#[derive(Debug)]
pub(crate) enum FetchFailure {
    /// The holder was busy, or is to blame.
    Holder(FetchError),
    /// The chunk came, and could not be written.
    Storage(std::io::Error),
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

/// What a fetch needs.
pub(crate) struct FetchTask {
    pub(crate) fetch: Fetch,
    /// Whether its holder is far, by the labels.
    pub(crate) is_far: bool,
    pub(crate) partial: Arc<PartialFile>,
    pub(crate) connections: Arc<Connections>,
    /// Threads for what blocks: the chunk is written on one of them.
    pub(crate) lanes: Arc<Lanes>,
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
    /// Bytes that came for the whole download, as the transport counts them.
    pub(crate) wire: Arc<AtomicU64>,
    /// Bytes that are here of this chunk, from whichever holder, about; [`NOT_ASKED`] while no peer is asked.
    pub(crate) had: Arc<AtomicU32>,
    /// For how long the limit of this peer held it up.
    pub(crate) held_up: Arc<HeldUp>,
    /// Chunks of the whole download that came and wait to be written.
    pub(crate) at_disk: Arc<AtomicUsize>,
}

/// A chunk that waits to be written, until this is dropped.
struct AtDisk<'a>(&'a AtomicUsize);

impl<'a> AtDisk<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for AtDisk<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
}

impl Choice<'_> {
    async fn is(&self, chunk: ChunkIndex) {
        if !self.fetch.alternatives.is_empty() {
            let _ = self.news.send((self.fetch.id, News::Bound(chunk))).await;
        }
    }
}

/// Fetches, proves and writes one chunk.
pub(crate) async fn fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask { fetch, is_far, partial, connections, lanes, memory, news, parts, gauges, intake } = task;
    let manifest = partial.manifest();
    let mut has_waited = false;
    let must_wait = async || {
        has_waited = true;
        // A download that hears no news has ended.
        let _ = news.send((fetch.id, News::AwaitsRoom)).await;
    };
    let largest =
        [fetch.chunk].iter().chain(&fetch.alternatives).map(|chunk| manifest.layout().chunk_len(*chunk)).max();
    let room = memory.room(largest.unwrap_or(0).into(), must_wait).await;
    if has_waited {
        let _ = news.send((fetch.id, News::HasRoom)).await;
    }
    let choice = Choice { fetch: &fetch, news: &news };
    let verified = connections.fetch(manifest, (&fetch, is_far), &parts, (&gauges, &intake), &choice).await;
    let verified = verified.map_err(FetchFailure::Holder)?;
    let _at_disk = AtDisk::new(&gauges.at_disk);
    let partial = partial.clone();
    let written = lanes.disk.run(move || {
        let stored = partial.write(&verified);
        drop((verified, room));
        stored
    });
    written.await.map_err(FetchFailure::of_task)?.map_err(FetchFailure::Storage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_internal_error_and_an_end_is_not() {
        let panics = tokio::spawn(async { panic!("a bug") }).await.map_err(FetchFailure::of_task);
        let Err(FetchFailure::Internal(text)) = panics else { panic!("{panics:?}") };
        assert!(text.contains("a bug"), "{text}");
        let endless = tokio::spawn(std::future::pending::<()>());
        endless.abort();
        assert!(matches!(endless.await.map_err(FetchFailure::of_task), Err(FetchFailure::Stopping)));
    }
}
