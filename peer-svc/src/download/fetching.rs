//! The task of one fetch: memory, bytes, proof, disk; then a report.

use std::sync::{Arc, atomic::AtomicU64};

use drizzle_proto::{Address, Manifest};
use tokio::sync::Semaphore;

use crate::{
    fetch::{Connections, FetchError},
    schedule::{Fetch, FetchId},
    write::{PartialFile, StoredChunk},
};

/// What a task reports.
#[derive(Debug)]
pub(super) enum Report {
    Fetch(FetchId, Result<StoredChunk, FetchFailure>),
    Recorded(std::io::Result<()>),
}

#[derive(Debug)]
pub(super) enum FetchFailure {
    Fetch(FetchError),
    Storage(std::io::Error),
}

/// What a fetch needs.
pub(super) struct FetchTask {
    pub(super) manifest: Manifest,
    pub(super) partial: Arc<PartialFile>,
    pub(super) connections: Arc<Connections>,
    pub(super) budget: Arc<Semaphore>,
    pub(super) received: Arc<AtomicU64>,
    pub(super) address: Address,
    pub(super) fetch: Fetch,
}

pub(super) async fn fetch_and_store(task: FetchTask) -> Report {
    let id = task.fetch.id;
    Report::Fetch(id, try_fetch_and_store(task).await)
}

async fn try_fetch_and_store(task: FetchTask) -> Result<StoredChunk, FetchFailure> {
    let FetchTask { manifest, partial, connections, budget, received, address, fetch } = task;
    let kib = manifest.layout().chunk_len(fetch.chunk).div_ceil(1024);
    let stopped = || FetchFailure::Storage(std::io::Error::other("the daemon is shutting down"));
    let room = budget.acquire_many_owned(kib).await.map_err(|_| stopped())?;
    let verified = connections
        .fetch(&manifest, fetch.chunk, fetch.holder, &address, &received)
        .await
        .map_err(FetchFailure::Fetch)?;
    let written = tokio::task::spawn_blocking(move || {
        let stored = partial.write(&verified);
        drop((verified, room));
        stored
    });
    written.await.map_err(|_| stopped())?.map_err(FetchFailure::Storage)
}
