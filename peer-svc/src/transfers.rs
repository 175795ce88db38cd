//! The transfers that run: begins them, lets others join, cancels them.
//!
//! A transfer belongs to the daemon, not to the one who asked: asking again for the same name joins it.
//! At most one transfer runs for a name.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drizzle_proto::{ChunkRanges, ChunkSet, FileInfo, FileName, chunk_set::NoSuchChunk, client::ClientError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    download::{self, Broadcast, Context, Destination, Event, Existing, Job, Progress, Subscription, inspect},
    holdings::{Registration, Source},
    store::{
        assemble::AssembleError,
        paths,
        read::open_unchanged,
        record::{ShareRecord, StateError},
        stamp::Stamp,
    },
};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The file's name.
    pub name: FileName,
    /// Where it goes, if not below the daemon's folder.
    pub output: Option<PathBuf>,
    /// Only these chunks.
    pub chunks: Option<ChunkRanges>,
    /// Without a stored chunk for this long, give up.
    pub timeout: Duration,
}

/// Why a transfer does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
    /// The output path makes no sense.
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
    State(#[from] StateError),
    /// The daemon stops.
    #[error("the daemon is shutting down")]
    Stopping,
}

fn tracker_text(name: &FileName, error: &ClientError) -> String {
    match error.code() {
        tonic::Code::NotFound => format!("no file {name:?} is registered with the tracker", name = name.as_str()),
        _ if error.is_unreachable() => format!("the tracker cannot be reached: {error}"),
        _ => error.to_string(),
    }
}

/// One running transfer.
#[derive(Debug)]
struct Transfer {
    job: Job,
    started: Instant,
    events: Broadcast,
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// A running transfer as others see it.
#[derive(Debug, Clone)]
pub struct Running {
    /// What is fetched.
    pub file: FileInfo,
    /// Bytes of the wanted chunks.
    pub wanted: u64,
    /// How far it is.
    pub progress: Progress,
    /// Since it began.
    pub elapsed: Duration,
}

/// All transfers of a daemon.
#[derive(Debug)]
pub struct Transfers {
    context: Arc<Context>,
    running: Mutex<BTreeMap<FileName, Arc<Transfer>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Transfers {
    /// None yet. `stop` ends them all.
    pub fn new(context: Arc<Context>, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { context, running: Mutex::default(), tasks, stop }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FileName, Arc<Transfer>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transfer, or joins the one that runs.
    pub async fn start(self: &Arc<Self>, request: Request) -> Result<Subscription, StartError> {
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
        let job = Job { name, manifest, wanted, destination, timeout: request.timeout };
        if let Some(joined) = self.join(&job)? {
            return Ok(joined);
        }
        let this = self.clone();
        let checked = tokio::task::spawn_blocking(move || this.already_there(&job).map(|there| (job, there))).await;
        match checked.map_err(|_| StartError::Stopping)?? {
            (_, Some(events)) => Ok(download::over(events)),
            (job, None) => self.spawn(job),
        }
    }

    fn join(&self, job: &Job) -> Result<Option<Subscription>, StartError> {
        match self.lock().get(&job.name) {
            None => Ok(None),
            Some(transfer) if transfer.job.wanted == job.wanted && transfer.job.destination == job.destination => {
                Ok(Some(transfer.events.subscribe()))
            }
            Some(_) => Err(StartError::Conflict(job.name.clone())),
        }
    }

    fn spawn(self: &Arc<Self>, job: Job) -> Result<Subscription, StartError> {
        let mut running = self.lock();
        if self.stop.is_cancelled() {
            return Err(StartError::Stopping);
        }
        if running.contains_key(&job.name) {
            drop(running);
            // Somebody was faster between the check and here.
            return self.join(&job)?.ok_or(StartError::Stopping);
        }
        let transfer = Arc::new(Transfer {
            job: job.clone(),
            started: Instant::now(),
            events: Broadcast::default(),
            cancel: self.stop.child_token(),
            ended: CancellationToken::new(),
        });
        let subscription = transfer.events.subscribe();
        running.insert(job.name.clone(), transfer.clone());
        self.context.state.set_running(&job.name, true);
        let this = self.clone();
        self.tasks.spawn(async move {
            let name = job.name.clone();
            let context = this.context.clone();
            let (events, cancel) = (transfer.events.clone(), transfer.cancel.clone());
            // In a task of its own, so that a panic in there ends the transfer and not this bookkeeping.
            let ran = tokio::spawn(download::run(context, job, events, cancel, this.stop.clone())).await;
            let last = ran.unwrap_or_else(|error| download::broken(&error));
            this.context.state.set_running(&name, false);
            match &last {
                Event::Failed { reason, .. } => tracing::warn!(%name, reason, "download failed"),
                _ => tracing::info!(%name, "downloaded"),
            }
            // Who asks now either joined before and hears the end, or begins anew.
            let mut running = this.lock();
            running.remove(&name);
            transfer.events.send(last);
            transfer.ended.cancel();
        });
        Ok(subscription)
    }

    /// Checks the destination. The events of a transfer with nothing to do, if the content is there.
    fn already_there(&self, job: &Job) -> Result<Option<Vec<Event>>, StartError> {
        let context = &self.context;
        let Some(destination) = &job.destination else { return Ok(None) };
        let path = destination.path(&context.dir, &job.name);
        let output = |reason: String| StartError::Output { path: path.clone(), reason };
        if let Destination::Path(path) = destination {
            let folder = path.parent().filter(|_| path.is_absolute() && path.file_name().is_some());
            let folder = folder.ok_or_else(|| output("not the absolute path of a file".to_owned()))?;
            if !folder.is_dir() {
                return Err(output(format!("the folder {} does not exist", folder.display())));
            }
        }
        let held = context.holdings.get(&job.name);
        let known = held.as_ref().and_then(|view| match &view.source {
            Source::Shared { path: shared, stamp } if *shared == path && view.manifest.id() == job.manifest.id() => {
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
                        Self::way_is_free(&context.dir, &job.name)?;
                    }
                    return Ok(None);
                }
                Existing::Other => return Err(StartError::DestinationExists(path)),
                Existing::Same(stamp) => stamp,
            },
        };
        let refused = |registration: &Registration| matches!(registration, Registration::Refused(_));
        if known.is_none()
            && held.is_none_or(|view| matches!(view.source, Source::Partial(_)) || refused(&view.registration))
        {
            self.offer(job, path.clone(), stamp)?;
        }
        let size = job.manifest.layout().size();
        Ok(Some(vec![
            Event::Started { file: job.manifest.describe(job.name.clone()), wanted: size, resumed: size },
            Event::Done {
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
            AssembleError::InTheWay(path) | AssembleError::Exists(path) => {
                StartError::Output { path, reason: "a link or a file stands where a folder should be".to_owned() }
            }
            AssembleError::Io { path, source } => StartError::Output { path, reason: source.to_string() },
        })
    }

    /// The right content stood there already: shares it like a download.
    fn offer(&self, job: &Job, path: PathBuf, stamp: Stamp) -> Result<(), StateError> {
        let record = ShareRecord { path, stamp, manifest: job.manifest.clone(), shared: true };
        self.context.state.put_shares([(&job.name, &record)])?;
        self.context.state.discard_partial_data(&job.name);
        self.context.holdings.insert_shared(job.name.clone(), record.manifest, record.path, record.stamp);
        Ok(())
    }

    /// Cancels a transfer and waits for its end; whether there was one.
    pub async fn cancel(&self, name: &FileName) -> bool {
        let Some(transfer) = self.lock().get(name).cloned() else { return false };
        transfer.cancel.cancel();
        transfer.ended.cancelled().await;
        true
    }

    /// Whether a transfer of this name runs.
    pub fn is_running(&self, name: &FileName) -> bool {
        self.lock().contains_key(name)
    }

    /// What runs now.
    pub fn list(&self) -> Vec<Running> {
        let running: Vec<Arc<Transfer>> = self.lock().values().cloned().collect();
        let view = |transfer: Arc<Transfer>| Running {
            file: transfer.job.manifest.describe(transfer.job.name.clone()),
            wanted: download::bytes_of(&transfer.job.manifest, &transfer.job.wanted),
            progress: transfer.events.progress(),
            elapsed: transfer.started.elapsed(),
        };
        running.into_iter().map(view).collect()
    }

    /// Offers what is left of the unfinished downloads of an earlier run: the chunks whose record is
    /// sound. Blocks.
    pub fn restore(&self) -> Result<(), StateError> {
        self.context.state.discard_orphans()?;
        for record in self.context.state.partials()? {
            let path = self.context.state.partial_path(&record.name);
            // A data file that was cut short or is gone proves nothing.
            let size = record.manifest.layout().size();
            if !std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == size) {
                continue;
            }
            match crate::store::write::PartialFile::open(&path, record.manifest, false) {
                Ok(partial) => self.context.holdings.insert_partial(record.name, Arc::new(partial), record.chunks),
                Err(error) => tracing::warn!(name = %record.name, %error, "cannot open an unfinished download"),
            }
        }
        Ok(())
    }
}
