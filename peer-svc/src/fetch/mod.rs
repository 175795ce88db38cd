//! One fetch: memory, bytes from a holder, proof, disk; then the outcome.
//!
//! | module | is |
//! |---|---|
//! | [`peer`] | a gRPC stream in, a verified chunk out |
//! | [`parts`] | what came of chunks that are not whole yet |
//! | [`pool`] | connections to holders |
//! | [`error`] | why a fetch fails, and whose fault that is |
//!
//! Which chunk comes from which holder is decided by [`drizzle_engine::schedule`].

pub(crate) mod error;
pub(crate) mod parts;
mod peer;
pub(crate) mod pool;

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use drizzle_engine::schedule::Fetch;
use tokio::{sync::Semaphore, task::JoinError};

use self::{error::FetchError, parts::Parts, pool::Connections};
use crate::store::write::{PartialFile, StoredChunk};

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
    pub(crate) partial: Arc<PartialFile>,
    pub(crate) connections: Arc<Connections>,
    /// Memory for chunks in flight, in KiB.
    pub(crate) budget: Arc<Semaphore>,
    /// Counts the fetches that wait for memory.
    pub(crate) without_memory: Arc<AtomicUsize>,
    /// What came of chunks before.
    pub(crate) parts: Arc<Parts>,
    /// What it tells while it runs.
    pub(crate) gauges: Gauges,
}

/// A fetch that waits for memory for its chunk.
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
}

/// One fetch that waits for memory, while it exists.
struct WithoutMemory(Arc<AtomicUsize>);

impl WithoutMemory {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WithoutMemory {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Fetches, proves and writes one chunk.
pub(crate) async fn fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask { fetch, partial, connections, budget, without_memory, parts, gauges } = task;
    let manifest = partial.manifest();
    let kib = manifest.layout().chunk_len(fetch.chunk).div_ceil(1024);
    let waits = WithoutMemory::new(without_memory);
    let room = budget.acquire_many_owned(kib).await.map_err(|_| FetchFailure::Stopping)?;
    drop(waits);
    let verified = connections.fetch(manifest, fetch.chunk, &fetch.holder, &parts, &gauges).await;
    let verified = verified.map_err(FetchFailure::Holder)?;
    let partial = partial.clone();
    let written = tokio::task::spawn_blocking(move || {
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

    #[test]
    fn a_fetch_that_is_given_up_no_longer_waits_for_memory() {
        let count = Arc::new(AtomicUsize::new(0));
        let waits = WithoutMemory::new(count.clone());
        assert_eq!(count.load(Ordering::Relaxed), 1);
        drop(waits);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
