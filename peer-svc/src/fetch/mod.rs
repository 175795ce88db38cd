//! The task of one fetch: memory, bytes, proof, disk; then a report.

pub mod peer;
pub mod pool;

use std::sync::{Arc, atomic::AtomicU64};

use drizzle_engine::schedule::{Fetch, FetchId};
use drizzle_proto::Manifest;
use tokio::sync::Semaphore;

use crate::{
    fetch::{peer::FetchError, pool::Connections},
    store::write::{PartialFile, StoredChunk},
};

/// What a task reports.
#[derive(Debug)]
pub(crate) enum Report {
    Fetch(FetchId, Result<StoredChunk, FetchFailure>),
    Recorded(std::io::Result<()>),
}

#[derive(Debug)]
pub(crate) enum FetchFailure {
    Fetch(FetchError),
    Storage(std::io::Error),
}

/// What a fetch needs.
pub(crate) struct FetchTask {
    pub(crate) manifest: Manifest,
    pub(crate) partial: Arc<PartialFile>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) budget: Arc<Semaphore>,
    pub(crate) received: Arc<AtomicU64>,
    pub(crate) fetch: Fetch,
}

pub(crate) async fn fetch_and_store(task: FetchTask) -> Report {
    let id = task.fetch.id;
    Report::Fetch(id, try_fetch_and_store(task).await)
}

async fn try_fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask { manifest, partial, connections, budget, received, fetch } = task;
    let kib = manifest.layout().chunk_len(fetch.chunk).div_ceil(1024);
    let stopped = || FetchFailure::Storage(std::io::Error::other("the daemon is shutting down"));
    let room = budget.acquire_many_owned(kib).await.map_err(|_| stopped())?;
    let verified =
        connections.fetch(&manifest, fetch.chunk, &fetch.holder, &received).await.map_err(FetchFailure::Fetch)?;
    let written = tokio::task::spawn_blocking(move || {
        let stored = partial.write(&verified);
        drop((verified, room));
        stored
    });
    written.await.map_err(|_| stopped())?.map_err(FetchFailure::Storage)
}
