//! After the last fetch: the file in its place, or the reason why not, in words that say what to do.

use std::{path::PathBuf, time::Instant};

use drizzle_proto::{ChunkRanges, ChunkSet};
use tokio_util::sync::CancellationToken;

use super::{
    Blamed, Context, Destination, Event, Existing, FailureKind, Job, SourceProgress, events, inspect,
    transfer::Transfer,
};
use crate::store::{
    assemble::{self, AssembleError},
    record::ShareRecord,
    write::PartialFile,
};

/// Why a transfer failed.
#[derive(Debug)]
pub(super) enum Failure {
    Cancelled,
    Shutdown,
    Withdrawn(String),
    NoProgress,
    Exists(PathBuf),
    Storage(String),
}

impl Transfer {
    /// For a person: why nothing can be fetched.
    pub(super) fn lack(&self, now: Instant) -> String {
        if !self.synced {
            return "the tracker did not tell who holds it".to_owned();
        }
        let supply = self.scheduler.supply(now);
        let nobody = format!("nobody holds chunks {}", brief(&supply.unheld));
        let avoided =
            format!("every holder of chunks {} has misbehaved and is left alone for a while", brief(&supply.avoided));
        match (supply.unheld.is_empty(), supply.avoided.is_empty()) {
            (false, true) => nobody,
            (true, false) => avoided,
            (false, false) => format!("{nobody}; {avoided}"),
            (true, true) => "every holder is busy".to_owned(),
        }
    }

    /// Puts things in order, and makes the last event.
    pub(super) async fn finish(mut self, ended: Result<(), Failure>) -> Event {
        let ended = match ended {
            Ok(()) => self.complete().await,
            Err(failure) => Err(failure),
        };
        match ended {
            Ok(path) => {
                let sources = self.sources.values().filter(|source| source.chunks > 0);
                let sources: Vec<_> = sources
                    .map(|source| SourceProgress {
                        peer: source.address.clone(),
                        bytes: source.verified,
                        chunks: source.chunks,
                        in_flight: 0,
                    })
                    .collect();
                let bytes = sources.iter().map(|source| source.bytes).sum();
                Event::Done { path, bytes, elapsed: self.start.elapsed(), sources, blamed: self.blamed() }
            }
            Err(failure) => {
                self.save().await;
                self.failed(failure)
            }
        }
    }

    async fn complete(&mut self) -> Result<Option<PathBuf>, Failure> {
        let Some(destination) = self.job.destination.clone() else {
            self.save().await;
            return Ok(None);
        };
        let (context, job, partial, offered) =
            (self.context.clone(), self.job.clone(), self.partial.clone(), self.offered);
        let placed = tokio::task::spawn_blocking(move || place(&context, &job, &partial, &destination, offered)).await;
        placed.map_err(|error| Failure::Storage(error.to_string()))?.map(Some)
    }

    /// Best effort: what cannot be recorded now is proved by its hashes the next time.
    async fn save(&mut self) {
        let saved = tokio::task::spawn_blocking(self.saver()).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(name = %self.job.name, %error, "cannot record the stored chunks");
        }
    }

    fn failed(&self, failure: Failure) -> Event {
        let now = Instant::now();
        let name = &self.job.name;
        let (kind, reason) = match failure {
            Failure::Cancelled => (FailureKind::Cancelled, "cancelled; its chunks are kept".to_owned()),
            Failure::Shutdown => (FailureKind::Shutdown, "the daemon is shutting down; its chunks are kept".to_owned()),
            Failure::Withdrawn(why) => (FailureKind::Withdrawn, why),
            Failure::Exists(path) => (
                FailureKind::DestinationExists,
                format!("{} appeared meanwhile with other content; the chunks are kept", path.display()),
            ),
            Failure::Storage(why) => (FailureKind::Storage, why),
            Failure::NoProgress => {
                let seconds = self.job.timeout.as_secs_f32();
                let tainted = self.scheduler.tainted();
                if tainted.is_empty() {
                    (FailureKind::Timeout, format!("no chunk of {name} came for {seconds} s: {}", self.lack(now)))
                } else {
                    let text = format!(
                        "the bytes offered for chunks {} of {name} are not those first registered with the tracker, and no honest holder appeared within {seconds} s",
                        brief(&tainted)
                    );
                    (FailureKind::Integrity, text)
                }
            }
        };
        events::failed(kind, reason, self.scheduler.missing().ranges(), self.blamed())
    }

    fn blamed(&self) -> Vec<Blamed> {
        let name = |peer| self.sources.get(&peer).map(|source| source.address.clone());
        let blame = self.scheduler.blame().into_iter();
        blame
            .filter_map(|blame| {
                Some(Blamed { peer: name(blame.holder)?, offence: blame.offence, chunks: blame.chunks.ranges() })
            })
            .collect()
    }
}

/// Puts the file in place and shares it from there. Blocks.
fn place(
    context: &Context,
    job: &Job,
    partial: &PartialFile,
    destination: &Destination,
    offered: bool,
) -> Result<PathBuf, Failure> {
    let storage = |error: &dyn std::error::Error| Failure::Storage(error.to_string());
    let path = destination.path(&context.dir, &job.name);
    if *destination == Destination::Named {
        crate::store::paths::make_parents(&context.dir, &job.name).map_err(|error| storage(&error))?;
    }
    let stamp = match assemble::assemble(partial, &path) {
        Ok(stamp) => stamp,
        Err(AssembleError::Exists(path)) => match inspect(&path, &job.manifest, &CancellationToken::new()) {
            Ok(Existing::Same(stamp)) => {
                partial.discard().map_err(|error| storage(&error))?;
                stamp
            }
            _ => return Err(Failure::Exists(path)),
        },
        Err(error) => return Err(storage(&error)),
    };
    context.state.set_running(&job.name, false);
    if offered {
        let record = ShareRecord { path: path.clone(), stamp, manifest: job.manifest.clone(), shared: true };
        context.state.put_shares([(&job.name, &record)]).map_err(|error| storage(&error))?;
        context.holdings.insert_shared(job.name.clone(), record.manifest, record.path, record.stamp);
    } else {
        context.state.forget_partial(&job.name).map_err(|error| storage(&error))?;
    }
    Ok(path)
}

/// What to do about the common causes.
pub(super) fn storage_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            "the disk is full: make room and download again; the verified chunks are kept".to_owned()
        }
        _ => format!("cannot write: {error}"),
    }
}

/// Chunk ranges for a message, cut when long.
fn brief(chunks: &ChunkSet) -> String {
    const RANGES: usize = 12;
    let ranges = chunks.ranges();
    let shown = ChunkRanges::new(ranges.iter().take(RANGES)).unwrap_or_default();
    let more = ranges.iter().skip(RANGES).len();
    if more == 0 { shown.to_string() } else { format!("{shown} and {more} more ranges") }
}
