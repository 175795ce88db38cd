//! After the last fetch: the file in its place, or what is stored recorded for the next attempt; and the last event.

use std::{path::PathBuf, sync::Arc, time::Duration};

use drizzle_proto::ChunkRanges;
use tokio_util::sync::CancellationToken;

use super::{
    events::{Blamed, DownloadEvent},
    failure::Failure,
    job::{Context, Destination, Job, bytes_of},
    prepare::{Existing, inspect},
    transfer::{Ended, Transfer},
};
use crate::{
    share::IsDownloading,
    store::{
        assemble::{AssembleError, assemble},
        journal::ShareRecord,
        partials::record,
        paths,
        write::PartialFile,
    },
};

/// Puts things in order, and makes the last event.
pub(super) async fn finish(
    context: Arc<Context>,
    transfer: Transfer,
    partial: Arc<PartialFile>,
    offered: bool,
    ended: Ended,
    elapsed: Duration,
) -> DownloadEvent {
    let job = transfer.job().clone();
    let finished = match (ended, job.destination.is_some()) {
        (Ended::Complete, true) => {
            let (here, job, partial) = (context.clone(), job.clone(), partial.clone());
            match context.lanes.hashing.run(move || place(&here, &job, &partial, offered)).await {
                Ok(placed) => placed.map(Some),
                Err(error) => Err(Failure::Internal(error.to_string())),
            }
        }
        (Ended::Complete, false) => Ok(None),
        (Ended::Failed(failure), _) => Err(failure),
    };
    if !matches!(finished, Ok(Some(_))) {
        save(&context, &transfer, &partial).await;
    }
    match finished {
        Ok(path) => {
            let sources = transfer.contributions();
            let bytes = sources.iter().map(|source| source.bytes).sum();
            DownloadEvent::Done { path, bytes, elapsed, sources, blamed: transfer.blamed() }
        }
        Err(failure) => {
            let missing = bytes_of(&job.manifest, transfer.missing());
            let folder = context.sharer.journal.folder();
            let reason = failure.text(&job.name, missing, folder);
            failed(&failure, reason, transfer.missing().ranges(), transfer.blamed())
        }
    }
}

/// The last event of a download that never began to fetch, or whose task panicked.
pub(super) fn stillborn(context: &Context, job: &Job, failure: &Failure) -> DownloadEvent {
    let missing = bytes_of(&job.manifest, &job.wanted);
    let reason = failure.text(&job.name, missing, context.sharer.journal.folder());
    failed(failure, reason, job.wanted.ranges(), Vec::new())
}

fn failed(failure: &Failure, reason: String, chunks: ChunkRanges, blamed: Vec<Blamed>) -> DownloadEvent {
    DownloadEvent::Failed { kind: failure.kind(), reason, chunks, blamed }
}

/// Best effort: what cannot be recorded now is fetched again the next time.
async fn save(context: &Arc<Context>, transfer: &Transfer, partial: &Arc<PartialFile>) {
    let (here, partial) = (context.clone(), partial.clone());
    let (name, stored) = (transfer.job().name.clone(), transfer.stored().clone());
    let saved = context.lanes.disk.run(move || record(&here.sharer.journal, &name, &partial, &stored)).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!(name = %transfer.job().name, %error, "cannot record the stored chunks");
    }
}

/// Puts the file in place and shares it from there. Blocks.
fn place(context: &Context, job: &Job, partial: &PartialFile, offered: bool) -> Result<PathBuf, Failure> {
    let sharer = &context.sharer;
    let Some(destination) = &job.destination else {
        return Err(Failure::Internal("a file without a destination".to_owned()));
    };
    let path = destination.path(&sharer.dir, &job.name);
    if *destination == Destination::Named {
        paths::make_parents(partial.disk(), &sharer.dir, &job.name).map_err(Failure::Path)?;
    }
    let stamp = match assemble(partial, &path) {
        Ok(stamp) => stamp,
        Err(AssembleError::Exists(path)) => {
            match inspect(sharer.holdings.calls(), &path, &job.manifest, &CancellationToken::new()) {
                Ok(Existing::Same(stamp)) => {
                    partial.discard().map_err(Failure::Storage)?;
                    stamp
                }
                _ => return Err(Failure::Exists(path)),
            }
        }
        Err(error) => return Err(Failure::Assemble(error)),
    };
    if offered {
        let record = ShareRecord { path: path.clone(), stamp, manifest: job.manifest.clone(), shared: true };
        // This very download is over; the record of its chunks goes with it.
        let is_downloading: IsDownloading<'_> = &|_| false;
        sharer.offer(vec![(job.name.clone(), record)], is_downloading).map_err(Failure::Journal)?;
    } else {
        sharer.journal.forget_partial(&job.name).map_err(Failure::Journal)?;
    }
    Ok(path)
}
