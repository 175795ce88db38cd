//! After the last fetch: the file in its place, or what is stored recorded for the next attempt; and the last event.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_proto::ChunkRanges;
use tokio_util::sync::CancellationToken;

use super::{
    effects::Ended,
    events::{Blamed, Broadcast, DownloadEvent},
    failure::Failure,
    job::{Context, Destination, Job, bytes_of},
    prepare::{Existing, held_elsewhere, inspect, tell_move},
    transfer::Transfer,
};
use crate::{
    holdings::{Held, Registration},
    share::IsDownloading,
    store::{
        assemble::{AssembleError, assemble},
        calls::Calls,
        journal::ShareRecord,
        partials::record,
        paths,
        place::{Opened, Place, folder_above},
        stamp::Stamp,
        write::PartialFile,
    },
};

/// Writing the last bytes is told if it takes longer than this.
const WRITING: Duration = Duration::from_secs(1);

/// What comes first: the file in its place, or the word that it is not wanted any more.
#[derive(Debug, Default)]
struct LastStep(AtomicU8);

impl LastStep {
    const PLACED: u8 = 1;
    const CALLED_OFF: u8 = 2;

    fn is_first(&self, which: u8) -> bool {
        self.0.compare_exchange(0, which, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Puts things in order, and makes the last event.
pub(super) async fn finish(
    context: Arc<Context>,
    transfer: Transfer,
    partial: Arc<PartialFile>,
    offered: bool,
    ended: Ended,
    run: Run<'_>,
) -> DownloadEvent {
    let job = transfer.job().clone();
    let finished = match (ended, job.destination.is_some()) {
        (Ended::Complete, true) => {
            let step = Arc::new(LastStep::default());
            let mut placing = {
                let (here, job, partial, step) = (context.clone(), job.clone(), partial.clone(), step.clone());
                let (events, cancel) = (run.events.clone(), run.cancel.clone());
                let end = move || {
                    place(&here, &job, &partial, offered, &End { step: &step, events: &events, cancel: &cancel })
                };
                context.lanes.hashing.run(end)
            };
            // Writing may take long on a slow disk; whoever gives up meanwhile is not to wait for that.
            let called_off = loop {
                tokio::select! {
                    placed = &mut placing => break Err(placed),
                    () = run.cancel.cancelled() => break Ok(step.is_first(LastStep::CALLED_OFF)),
                    () = tokio::time::sleep(WRITING) => run.events.work("writing the last bytes to the disk".to_owned()),
                }
            };
            let placed = match called_off {
                Ok(true) => Ok(Err(run.called_off())),
                Ok(false) => placing.await,
                Err(placed) => placed,
            };
            match placed {
                Ok(placed) => placed.map(Some),
                Err(error) => Err(Failure::Internal(error.to_string())),
            }
        }
        (Ended::Complete, false) => Ok(None),
        (Ended::Failed(failure), _) => Err(failure),
    };
    // A last step that was called off may still be writing, for long: what it wrote is not waited for.
    let is_closed = job.destination.is_some() && transfer.missing().is_empty();
    let is_over = matches!(finished, Ok(Some(_)) | Err(Failure::Cancelled | Failure::Shutdown)) && is_closed;
    if !is_over {
        save(&context, &transfer, &partial).await;
    }
    match finished {
        Ok(path) => {
            let sources = transfer.contributions();
            let bytes = sources.iter().map(|source| source.bytes).sum();
            let elapsed = run.start.elapsed();
            let figures = transfer.figures(run.start, elapsed);
            DownloadEvent::Done { path, bytes, elapsed, sources, blamed: transfer.blamed(), figures }
        }
        Err(failure) => {
            let missing = bytes_of(&job.manifest, transfer.missing());
            let folder = partial.path().parent().unwrap_or(Path::new("/"));
            let reason = failure.text(&job.name, missing, folder);
            failed(&failure, reason, transfer.missing().ranges(), transfer.blamed())
        }
    }
}

/// What a download is told from outside, and what it tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) start: Instant,
    pub(super) events: &'a Broadcast,
    pub(super) cancel: &'a CancellationToken,
    /// The daemon's own end.
    pub(super) stop: &'a CancellationToken,
}

impl Run<'_> {
    /// Why it was called off.
    pub(super) fn called_off(&self) -> Failure {
        if self.stop.is_cancelled() { Failure::Shutdown } else { Failure::Cancelled }
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
    match saved {
        Ok(Err(error)) => tracing::warn!(name = %transfer.job().name, %error, "cannot record the stored chunks"),
        Err(error) if error.is_panic() => {
            tracing::error!(name = %transfer.job().name, %error, "internal error: recording the stored chunks panicked");
        }
        _ => {}
    }
}

/// What the last step is told from outside, and what it tells.
struct End<'a> {
    step: &'a LastStep,
    events: &'a Broadcast,
    cancel: &'a CancellationToken,
}

/// Puts the file in place and shares it from there. Blocks.
fn place(
    context: &Context,
    job: &Job,
    partial: &PartialFile,
    offered: bool,
    end: &End<'_>,
) -> Result<PathBuf, Failure> {
    let sharer = &context.sharer;
    let Some(destination) = &job.destination else {
        return Err(Failure::Internal("a file without a destination".to_owned()));
    };
    let path = destination.path(&sharer.dir, &job.name);
    if *destination == Destination::Named {
        paths::make_parents(partial.disk(), &sharer.dir, &job.name).map_err(Failure::Path)?;
    }
    let may_place = || end.step.is_first(LastStep::PLACED);
    let placed = match assemble(partial, &path, &may_place) {
        Err(AssembleError::OtherFileSystem(_)) => {
            let moved = relocate(context, job, partial, &path, end)?;
            // The step was taken; what was not possible before is tried once more.
            assemble(&moved, &path, &|| !end.cancel.is_cancelled())
        }
        placed => placed,
    };
    let stamp = match placed {
        Ok(stamp) => stamp,
        Err(AssembleError::Exists(path)) => there_already(sharer.holdings.calls(), job, partial, path)?,
        Err(error) => return Err(Failure::Assemble(error)),
    };
    // What was held under the name may be gone since, or be what the tracker refused: then this is the file to offer.
    let is_refused = |held: Held| matches!(held.registration, Registration::Refused(_));
    if offered || held_elsewhere(context, &job.name).is_none_or(is_refused) {
        let record = ShareRecord { path: path.clone(), stamp, manifest: job.manifest.clone(), shared: true };
        // This very download is over; the record of its chunks goes with it.
        let is_downloading: IsDownloading<'_> = &|_| false;
        sharer.offer(vec![(job.name.clone(), record)], is_downloading).map_err(Failure::Journal)?;
    } else if let Some(ended) = sharer.journal.forget_partial(&job.name).map_err(Failure::Journal)? {
        sharer.discard(&ended);
    }
    Ok(path)
}

/// The destination appeared in the meantime: fine, if it is the same file.
fn there_already(calls: &Calls, job: &Job, partial: &PartialFile, path: PathBuf) -> Result<Stamp, Failure> {
    match inspect(calls, &path, &job.manifest, &CancellationToken::new()) {
        Ok(Existing::Same(stamp)) => {
            partial.discard().map_err(Failure::Storage)?;
            Ok(stamp)
        }
        _ => Err(Failure::Exists(path)),
    }
}

/// The rename does not lead to the destination although it looked so before the first fetch: quotas of some file
/// systems are such a border, and a disk may have been mounted since.
fn relocate(
    context: &Context,
    job: &Job,
    partial: &PartialFile,
    destination: &Path,
    end: &End<'_>,
) -> Result<PartialFile, Failure> {
    let (journal, partials) = (&context.sharer.journal, &context.sharer.partials);
    record(journal, &job.name, partial, &job.wanted)?;
    let known = journal.partial(&job.name).map_err(Failure::Journal)?;
    let known = known.ok_or_else(|| Failure::Internal("the record of a running download is gone".to_owned()))?;
    let tell = |moved: crate::store::place::Moved<'_>| tell_move(end.events, moved);
    let place = Place { journal, partials, cancel: end.cancel, tell: &tell };
    let Opened { partial: moved, recorded, .. } = place.relocate(&known, folder_above(destination))?;
    if recorded.is_full() { Ok(moved) } else { Err(Failure::Storage(std::io::ErrorKind::InvalidData.into())) }
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        sync::mpsc::{Receiver, Sender, channel},
    };

    use drizzle_engine::priority::Priority;
    use drizzle_proto::{ChunkSet, Manifest};

    use super::{
        super::{
            FailureKind,
            prepare::{Prepared, prepare},
            testing::{context, job},
        },
        *,
    };
    use crate::store::{
        disk::{Disk, Step, Witness},
        faults::Faults,
        testing::{content, verified},
    };

    /// A disk on which writing the data of a download takes until the test says so.
    struct Slow {
        writing: Sender<()>,
        go_on: std::sync::Mutex<Receiver<()>>,
    }

    impl Witness for Slow {
        fn before(&self, step: Step<'_>) -> io::Result<()> {
            if matches!(step, Step::Sync(path) if path.parent().is_some_and(|folder| folder.ends_with("partial"))) {
                self.writing.send(()).unwrap();
                self.go_on.lock().unwrap().recv().unwrap();
            }
            Ok(())
        }
    }

    /// A download of which every chunk is written.
    fn complete(context: &Context, data: &[u8], manifest: &Manifest) -> (Job, Prepared) {
        let job = Job { destination: Some(Destination::Named), ..job(manifest) };
        let prepared =
            prepare(context, &job, Priority::Normal, &Broadcast::default(), &CancellationToken::new()).unwrap();
        for chunk in 0..3 {
            prepared.partial.store(verified(data, manifest, chunk)).unwrap();
        }
        (job, prepared)
    }

    #[tokio::test]
    async fn who_gives_up_does_not_wait_for_a_slow_disk_and_the_file_does_not_appear_later() {
        let folder = tempfile::tempdir().unwrap();
        let ((writing, is_writing), (go_on, may_go_on)) = (channel(), channel());
        let slow = Slow { writing, go_on: std::sync::Mutex::new(may_go_on) };
        let context = Arc::new(context(folder.path(), Disk::watched(Arc::new(slow))));
        let (data, manifest) = content(1);
        let (job, Prepared { partial, file: _file, offered, .. }) = complete(&context, &data, &manifest);
        let all = ChunkSet::full(manifest.layout().chunk_count());
        let transfer = Transfer::new(job, all.clone(), ChunkSet::empty(all.count()), Instant::now());
        let (events, cancel, stop) = (Broadcast::default(), CancellationToken::new(), CancellationToken::new());
        let run = Run { start: Instant::now(), events: &events, cancel: &cancel, stop: &stop };
        let give_up = async {
            let is_writing = tokio::task::spawn_blocking(move || is_writing.recv().map(|()| is_writing)).await;
            cancel.cancel();
            is_writing
        };
        let ending = finish(context.clone(), transfer, partial.clone(), offered, Ended::Complete, run);
        let (last, is_writing) = tokio::join!(ending, give_up);
        let _is_writing = is_writing.unwrap().unwrap();
        assert!(matches!(last, DownloadEvent::Failed { kind: FailureKind::Cancelled, .. }), "{last:?}");
        // The disk is done at last; the thread that waited for it holds the data until it has ended.
        go_on.send(()).unwrap();
        tokio::task::spawn_blocking({
            let partial = partial.clone();
            move || {
                while Arc::strong_count(&partial) > 3 {
                    std::thread::yield_now();
                }
            }
        })
        .await
        .unwrap();
        assert!(!folder.path().join("a").exists() && partial.path().exists());
    }

    #[tokio::test]
    async fn a_rename_that_turns_out_not_to_lead_to_the_destination_costs_a_move_and_not_the_download() {
        let folder = tempfile::tempdir().unwrap();
        let (faults, disk) = Faults::disk();
        let context = context(folder.path(), disk);
        let (data, manifest) = content(1);
        fs::create_dir(folder.path().join("out")).unwrap();
        let (job, Prepared { partial, offered, .. }) = complete(&context, &data, &manifest);
        let path = folder.path().join("out/file");
        let job = Job { destination: Some(Destination::Path(path.clone())), ..job };
        faults.is_elsewhere(&folder.path().join("out"));
        let (step, events, cancel) = (LastStep::default(), Broadcast::default(), CancellationToken::new());
        let end = End { step: &step, events: &events, cancel: &cancel };
        assert_eq!(place(&context, &job, &partial, offered, &end).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), data);
        assert_eq!(fs::read_dir(folder.path().join("out")).unwrap().count(), 1);
        assert!(!partial.path().exists() && context.sharer.journal.leftovers().unwrap().is_empty());
    }
}
