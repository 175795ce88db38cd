//! One fetch: memory, bytes from a holder, proof, disk; then the outcome.
//!
//! | module | is |
//! |---|---|
//! | [`peer`] | a gRPC stream in, a verified chunk out |
//! | [`pool`] | connections to holders |
//! | [`error`] | why a fetch fails, and whose fault that is |
//!
//! Which chunk comes from which holder is decided by [`drizzle_engine::schedule`].

pub(crate) mod error;
mod peer;
pub(crate) mod pool;

use std::sync::{Arc, atomic::AtomicU64};

use drizzle_engine::schedule::Fetch;
use tokio::{sync::Semaphore, task::JoinError};

use self::{error::FetchError, pool::Connections};
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
    /// Counts the bytes that come from this holder.
    pub(crate) received: Arc<AtomicU64>,
}

/// Fetches, proves and writes one chunk.
pub(crate) async fn fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask { fetch, partial, connections, budget, received } = task;
    let manifest = partial.manifest();
    let kib = manifest.layout().chunk_len(fetch.chunk).div_ceil(1024);
    let room = budget.acquire_many_owned(kib).await.map_err(|_| FetchFailure::Stopping)?;
    let verified = connections.fetch(manifest, fetch.chunk, &fetch.holder, &received).await;
    let verified = verified.map_err(FetchFailure::Holder)?;
    let partial = partial.clone();
    let written = tokio::task::spawn_blocking(move || {
        let stored = partial.write(&verified);
        drop((verified, room));
        stored
    });
    written.await.map_err(FetchFailure::of_task)?.map_err(FetchFailure::Storage)
}
