//! The downloads that run: begins them, lets callers join, cancels them.
//!
//! A download belongs to the daemon, not to its caller: asking again for the same name joins it.
//! At most one transfer runs for a name.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drizzle_proto::{ChunkRanges, ChunkSet, FileInfo, FileName, chunk_set::NoSuchChunk, client::ClientError};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    download::{self, Broadcast, Context, Destination, DownloadEvent, Existing, Job, Progress, Subscription, inspect},
    holdings::{Backing, Registration},
    share::Sharer,
    store::{
        journal::{JournalError, ShareRecord},
        paths::{self, PathError},
        read::open_unchanged,
        stamp::Stamp,
    },
};

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The file's name.
    pub(crate) name: FileName,
    /// Where it goes, if not below the daemon's folder.
    pub(crate) output: Option<PathBuf>,
    /// Only these chunks.
    pub(crate) chunks: Option<ChunkRanges>,
    /// Without a stored chunk for this long, give up.
    pub(crate) timeout: Duration,
}

/// Why a transfer does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The tracker does not know the name, or is away.
    #[error("{}", tracker_text(.name, .source))]
    Tracker {
        /// The file's name.
        name: FileName,
        /// What the tracker said.
        source: ClientError,
    },
    /// A wanted chunk does not exist.
    #[error(transparent)]
    NoSuchChunk(#[from] NoSuchChunk),
    /// Other content is there.
    #[error("{} exists with other content; move it away, or give another path with -o", .0.display())]
    DestinationExists(PathBuf),
    /// The output path cannot be used.
    #[error("cannot download to {}: {reason}", path.display())]
    Output {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A transfer of that name runs already and wants something else.
    #[error("{0} is being downloaded with other options; cancel that download first, or wait for its end")]
    Conflict(FileName),
    /// The state folder cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The daemon stops.
    #[error("the daemon is shutting down")]
    Stopping,
    /// A bug; the log has the panic's text.
    #[error("internal error: looking at the destination panicked")]
    Panicked,
}

fn tracker_text(name: &FileName, error: &ClientError) -> String {
    match error.code() {
        tonic::Code::NotFound => format!("no file {name:?} is registered with the tracker", name = name.as_str()),
        _ if error.is_unreachable() => format!("the tracker cannot be reached: {error}"),
        _ => error.to_string(),
    }
}

/// A download that runs.
#[derive(Debug)]
struct Underway {
    job: Job,
    started: Instant,
    events: Broadcast,
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// The answer to a caller that may join.
enum Join {
    /// No download of that name runs.
    NoneRuns,
    /// The events of the one that does.
    Joined(Subscription),
}

/// What there is at a destination.
enum Place {
    /// Nothing that is in the way.
    Free,
    /// The right content; the events of a download with nothing to do.
    Done(Vec<DownloadEvent>),
}

/// A running download as a person sees it.
#[derive(Debug, Clone)]
pub(crate) struct TransferStatus {
    /// What is fetched.
    pub(crate) file: FileInfo,
    /// Bytes of the wanted chunks.
    pub(crate) wanted: u64,
    /// How far it is.
    pub(crate) progress: Progress,
    /// Since it began.
    pub(crate) elapsed: Duration,
}

/// All transfers of a daemon.
#[derive(Debug)]
pub(crate) struct Transfers {
    context: Arc<Context>,
    running: Mutex<BTreeMap<FileName, Arc<Underway>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Gives each download its seed.
    seeds: Mutex<StdRng>,
}

impl Transfers {
    /// None yet. `stop` ends them all; the seed decides every random choice of every download.
    pub(crate) fn new(context: Arc<Context>, tasks: TaskTracker, stop: CancellationToken, seed: u64) -> Self {
        let seeds = Mutex::new(StdRng::seed_from_u64(seed));
        Self { context, running: Mutex::default(), tasks, stop, seeds }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FileName, Arc<Underway>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transfer, or joins the one that runs.
    pub(crate) async fn start(self: &Arc<Self>, request: Request) -> Result<Subscription, StartError> {
        let name = request.name.clone();
        let manifest = self.context.tracker.clone().manifest(&name).await;
        let manifest = manifest.map_err(|source| StartError::Tracker { name: name.clone(), source })?;
        let count = manifest.layout().chunk_count();
        let wanted = match &request.chunks {
            Some(ranges) => ChunkSet::from_ranges(count, ranges)?,
            None => ChunkSet::full(count),
        };
        let destination = match (&request.chunks, request.output) {
            (Some(_), _) => None,
            (None, Some(path)) => Some(Destination::Path(path)),
            (None, None) => Some(Destination::Named),
        };
        let job = Job { name, manifest, wanted, destination, timeout: request.timeout, seed: self.next_seed() };
        if let Join::Joined(events) = Self::join(&self.lock(), &job)? {
            return Ok(events);
        }
        let this = self.clone();
        let checked = tokio::task::spawn_blocking(move || this.look(&job).map(|place| (job, place))).await;
        let checked =
            checked.map_err(|error| if error.is_panic() { StartError::Panicked } else { StartError::Stopping });
        match checked?? {
            (_, Place::Done(events)) => Ok(download::over(events)),
            (job, Place::Free) => self.spawn(job),
        }
    }

    fn join(running: &BTreeMap<FileName, Arc<Underway>>, job: &Job) -> Result<Join, StartError> {
        match running.get(&job.name) {
            None => Ok(Join::NoneRuns),
            Some(transfer) if transfer.job.wanted == job.wanted && transfer.job.destination == job.destination => {
                Ok(Join::Joined(transfer.events.subscribe()))
            }
            Some(_) => Err(StartError::Conflict(job.name.clone())),
        }
    }

    fn spawn(self: &Arc<Self>, job: Job) -> Result<Subscription, StartError> {
        let mut running = self.lock();
        if self.stop.is_cancelled() {
            return Err(StartError::Stopping);
        }
        // Another caller may have been faster while the destination was looked at.
        if let Join::Joined(events) = Self::join(&running, &job)? {
            return Ok(events);
        }
        let transfer = Arc::new(Underway {
            job: job.clone(),
            started: Instant::now(),
            events: Broadcast::default(),
            cancel: self.stop.child_token(),
            ended: CancellationToken::new(),
        });
        let subscription = transfer.events.subscribe();
        running.insert(job.name.clone(), transfer.clone());
        let this = self.clone();
        self.tasks.spawn(async move {
            let name = job.name.clone();
            let context = this.context.clone();
            let (events, cancel) = (transfer.events.clone(), transfer.cancel.clone());
            // In a task of its own, so that a panic in there ends the transfer and not this bookkeeping.
            let ran = tokio::spawn(download::run(context, job.clone(), events, cancel, this.stop.clone())).await;
            let last = ran.unwrap_or_else(|error| download::panicked(&this.context, &job, &error));
            match &last {
                DownloadEvent::Failed { reason, .. } => tracing::warn!(%name, reason, "download failed"),
                _ => tracing::info!(%name, "downloaded"),
            }
            // A caller that asks now either joined before and hears the end, or begins anew.
            let mut running = this.lock();
            running.remove(&name);
            transfer.events.send(last);
            transfer.ended.cancel();
        });
        Ok(subscription)
    }

    /// Looks at the destination, and shares what is there already.
    fn look(&self, job: &Job) -> Result<Place, StartError> {
        let context = &self.context;
        let Some(destination) = &job.destination else { return Ok(Place::Free) };
        let path = destination.path(&context.sharer.dir, &job.name);
        let output = |reason: String| StartError::Output { path: path.clone(), reason };
        if let Destination::Path(path) = destination {
            let folder = path.parent().filter(|_| path.is_absolute() && path.file_name().is_some());
            let folder = folder.ok_or_else(|| output("not the absolute path of a file".to_owned()))?;
            if !folder.is_dir() {
                return Err(output(format!("the folder {} does not exist", folder.display())));
            }
        }
        let held = context.sharer.holdings.get(&job.name);
        let known = held.as_ref().and_then(|held| match &held.backing {
            Backing::Shared { path: shared, stamp } if *shared == path && held.manifest.id() == job.manifest.id() => {
                Some(*stamp)
            }
            _ => None,
        });
        let stamp = match known {
            // Hashed before and not touched since: no need to read it all again.
            Some(stamp) if matches!(open_unchanged(&path, stamp), Ok(Some(_))) => stamp,
            _ => match inspect(&path, &job.manifest, &self.stop).map_err(|error| output(error.to_string()))? {
                Existing::Nothing => {
                    if *destination == Destination::Named {
                        Self::way_is_free(&context.sharer.dir, &job.name)?;
                    }
                    return Ok(Place::Free);
                }
                Existing::Other => return Err(StartError::DestinationExists(path)),
                Existing::Same(stamp) => stamp,
            },
        };
        let refused = |registration: &Registration| matches!(registration, Registration::Refused(_));
        if known.is_none()
            && held.is_none_or(|held| matches!(held.backing, Backing::Partial(_)) || refused(&held.registration))
        {
            self.offer(job, path.clone(), stamp)?;
        }
        let size = job.manifest.layout().size();
        Ok(Place::Done(vec![
            DownloadEvent::Started { file: job.manifest.describe(job.name.clone()), wanted: size, resumed: size },
            DownloadEvent::Done {
                path: Some(path),
                bytes: 0,
                elapsed: Duration::ZERO,
                sources: Vec::new(),
                blamed: Vec::new(),
            },
        ]))
    }

    /// No part of the name's folders is a link or a file.
    fn way_is_free(dir: &std::path::Path, name: &FileName) -> Result<(), StartError> {
        paths::check_parents(dir, name).map_err(|error| match error {
            PathError::InTheWay(path) => {
                StartError::Output { path, reason: "a link or a file stands where a folder should be".to_owned() }
            }
            PathError::Io { path, source } => StartError::Output { path, reason: source.to_string() },
        })
    }

    /// The right content stood there already: shares it like a download.
    fn offer(&self, job: &Job, path: PathBuf, stamp: Stamp) -> Result<(), JournalError> {
        let record = ShareRecord { path, stamp, manifest: job.manifest.clone(), shared: true };
        self.context.sharer.offer(vec![(job.name.clone(), record)], &|name| self.is_running(name))
    }

    /// Cancels a transfer and waits for its end; whether there was one.
    pub(crate) async fn cancel(&self, name: &FileName) -> bool {
        let Some(transfer) = self.lock().get(name).cloned() else { return false };
        transfer.cancel.cancel();
        transfer.ended.cancelled().await;
        true
    }

    /// Whether a transfer of this name runs.
    pub(crate) fn is_running(&self, name: &FileName) -> bool {
        self.lock().contains_key(name)
    }

    /// Whether a transfer runs that puts its file at this path.
    pub(crate) fn is_destination(&self, path: &std::path::Path) -> bool {
        let dir = &self.context.sharer.dir;
        let goes_there = |job: &Job| job.destination.as_ref().is_some_and(|to| to.path(dir, &job.name) == path);
        self.lock().values().any(|transfer| goes_there(&transfer.job))
    }

    /// What runs now.
    pub(crate) fn list(&self) -> Vec<TransferStatus> {
        let running: Vec<Arc<Underway>> = self.lock().values().cloned().collect();
        let view = |transfer: Arc<Underway>| TransferStatus {
            file: transfer.job.manifest.describe(transfer.job.name.clone()),
            wanted: download::bytes_of(&transfer.job.manifest, &transfer.job.wanted),
            progress: transfer.events.progress(),
            elapsed: transfer.started.elapsed(),
        };
        running.into_iter().map(view).collect()
    }

    /// Offers what is left of the unfinished downloads of an earlier run: the chunks that the journal vouches for.
    /// Blocks.
    pub(crate) fn restore(&self) -> Result<(), JournalError> {
        let Sharer { journal, partials, holdings, .. } = &*self.context.sharer;
        let records = journal.partials()?;
        partials.sweep(records.iter().map(|record| &record.name));
        for record in records {
            let opened = match partials.is_whole(&record.name, &record.manifest) {
                Ok(false) => continue,
                Ok(true) => partials.open_file(&record.name, record.manifest, false),
                Err(error) => Err(error),
            };
            match opened {
                Ok(partial) => holdings.insert_partial(record.name, Arc::new(partial), record.chunks),
                Err(error) => tracing::warn!(name = %record.name, %error, "cannot open an unfinished download"),
            }
        }
        Ok(())
    }

    fn next_seed(&self) -> u64 {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}
