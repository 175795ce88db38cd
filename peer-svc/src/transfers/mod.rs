//! The downloads that run: begins them, lets callers join and leave, cancels them.
//!
//! A download belongs to the daemon, not to its caller: asking again for the same name joins it. What becomes of it
//! when callers leave is decided by [`drizzle_engine::callers`].
//! At most one transfer runs for a name. What a caller asks for is in [`request`], one that runs in [`underway`].

mod reasons;
mod request;
mod underway;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drizzle_engine::{
    callers::{Callers, Leave},
    neighbours::WANTED,
    priority::Priority,
};
use drizzle_proto::{FileInfo, FileName, client::Content};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::request::{Request, StartError};
use self::{
    reasons::Remembered,
    request::{of_task, wanted},
    underway::Underway,
};
use crate::{
    download::{
        self, Broadcast, Context, Destination, DownloadEvent, Existing, FailureKind, Job, Progress, Reasons,
        Subscription, inspect,
    },
    holdings::{Backing, Registration},
    share::Sharer,
    store::{
        fence::Outside,
        journal::{JournalError, PartialRecord, ShareRecord},
        paths::{self, PathError},
        read::open_unchanged,
        stamp::Stamp,
    },
    vouching,
};

/// What stands at a path, if it is no regular file, in words.
fn not_a_file(path: &Path) -> io::Result<Option<&'static str>> {
    use std::os::unix::fs::FileTypeExt;
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(match kind {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a folder"),
        kind if kind.is_symlink() => Some("a symbolic link, which is not followed"),
        kind if kind.is_char_device() || kind.is_block_device() => Some("a device"),
        kind if kind.is_fifo() => Some("a named pipe"),
        kind if kind.is_socket() => Some("a socket"),
        _ => Some("no regular file"),
    })
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
    /// The file that is fetched.
    pub(crate) file: FileInfo,
    /// Bytes of the wanted chunks.
    pub(crate) wanted: u64,
    /// How urgent it is.
    pub(crate) priority: Priority,
    /// How far it is.
    pub(crate) progress: Progress,
    /// Time since it began.
    pub(crate) elapsed: Duration,
}

/// All transfers of a daemon.
#[derive(Debug)]
pub(crate) struct Transfers {
    context: Arc<Context>,
    running: Mutex<BTreeMap<FileName, Arc<Underway>>>,
    /// Why those that ended took as long as they did.
    ended: Remembered,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Gives each download its seed.
    seeds: Mutex<StdRng>,
}

impl Transfers {
    /// None yet. `stop` ends them all; the seed decides every random choice of every download.
    pub(crate) fn new(context: Arc<Context>, tasks: TaskTracker, stop: CancellationToken, seed: u64) -> Self {
        let seeds = Mutex::new(StdRng::seed_from_u64(seed));
        Self { context, running: Mutex::default(), ended: Remembered::default(), tasks, stop, seeds }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FileName, Arc<Underway>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transfer, or joins the one that runs: for that nothing but this daemon is needed.
    pub(crate) async fn start(self: &Arc<Self>, request: Request) -> Result<Subscription, StartError> {
        let name = request.name.clone();
        let destination = match (&request.chunks, request.output.clone()) {
            (Some(_), _) => None,
            (None, Some(path)) => {
                let (this, name) = (self.clone(), name.clone());
                Some(tokio::task::spawn_blocking(move || this.destination(path, &name)).await.map_err(of_task)??)
            }
            (None, None) => Some(Destination::Named),
        };
        self.until_cancelled(&name).await;
        if let Some(events) = self.join(&self.lock(), &request, destination.as_ref())? {
            return Ok(events);
        }
        let content = self.context.tracker.clone().content(&name, self.context.identity.id(), WANTED).await;
        let content = content.map_err(|source| StartError::Tracker { name: name.clone(), source });
        let Content { manifest, signature, holders } = content?;
        let signature = vouching::judge(&self.context.sharer.trust, &manifest.describe(name.clone()), signature)
            .map_err(|why| StartError::Untrusted { name: name.clone(), why })?;
        let wanted = wanted(&manifest, &request)?;
        let (timeout, seed) = (request.timeout, self.next_seed());
        let job = Job { name: name.clone(), manifest, holders, wanted, destination, timeout, seed };
        let this = self.clone();
        let looked = self.context.lanes.hashing.run(move || {
            // Before anything of it is recorded or offered: that asks for the signature.
            signature.iter().try_for_each(|signature| this.context.sharer.journal.put_signature(signature))?;
            this.look(&job).map(|place| (job, place))
        });
        match looked.await.map_err(of_task)?? {
            (_, Place::Done(events)) => Ok(download::over(events)),
            (job, Place::Free) => {
                self.until_cancelled(&name).await;
                self.begin(job, &request)
            }
        }
    }

    /// If a download of that name is being cancelled, waits for its end: who asks now wants it.
    async fn until_cancelled(&self, name: &FileName) {
        let ends = self.lock().get(name).filter(|transfer| transfer.cancel.is_cancelled()).cloned();
        if let Some(transfer) = ends {
            transfer.ended.cancelled().await;
        }
    }

    /// Where a path leads: links in its folders are followed, so that one place has one path, and the default place
    /// is what it is, however it is written.
    fn destination(&self, path: PathBuf, name: &FileName) -> Result<Destination, Outside> {
        let fence = self.context.sharer.holdings.calls().fence();
        let path = fence.check_destination(&path)?;
        let resolved = path.parent().and_then(|folder| folder.canonicalize().ok()).zip(path.file_name());
        let path = resolved.map_or(path.clone(), |(folder, file)| folder.join(file));
        // What is written goes by this path, and is held to it from here on.
        fence.admit(&path)?;
        Ok(if path == paths::path_of(&self.context.sharer.dir, name) {
            Destination::Named
        } else {
            Destination::Path(path)
        })
    }

    /// The events of the download of that name, if one runs and does what is asked for.
    fn join(
        &self,
        running: &BTreeMap<FileName, Arc<Underway>>,
        request: &Request,
        destination: Option<&Destination>,
    ) -> Result<Option<Subscription>, StartError> {
        let Some(transfer) = running.get(&request.name) else { return Ok(None) };
        let job = &transfer.job;
        if job.destination.as_ref() != destination || job.wanted != wanted(&job.manifest, request)? {
            return Err(StartError::Conflict { name: request.name.clone(), to: transfer.to() });
        }
        if request.priority > transfer.rank.priority() {
            transfer.rank.raise(request.priority);
            self.note_priority(request.name.clone(), request.priority);
        }
        Ok(Some(transfer.follow(request)))
    }

    /// A download that goes on after a restart is as urgent then.
    fn note_priority(&self, name: FileName, priority: Priority) {
        let journal = self.context.sharer.journal.clone();
        self.tasks.spawn_blocking(move || {
            if let Err(error) = journal.raise_order(&name, priority) {
                tracing::warn!(%name, %error, "cannot record a higher priority; after a restart the download has its old one");
            }
        });
    }

    fn begin(self: &Arc<Self>, job: Job, request: &Request) -> Result<Subscription, StartError> {
        let mut running = self.lock();
        if self.stop.is_cancelled() {
            return Err(StartError::Stopping);
        }
        // Another caller may have been faster while the destination was looked at.
        if let Some(events) = self.join(&running, request, job.destination.as_ref())? {
            return Ok(events);
        }
        let transfer = self.spawn(&mut running, job, request.priority, Duration::ZERO);
        Ok(transfer.follow(request))
    }

    /// Runs a download that waits for at least `least`.
    fn spawn(
        self: &Arc<Self>,
        running: &mut BTreeMap<FileName, Arc<Underway>>,
        job: Job,
        priority: Priority,
        least: Duration,
    ) -> Arc<Underway> {
        let (patience, patient) = watch::channel(job.timeout);
        let rank = self.context.ranks.enter(priority);
        let transfer = Arc::new(Underway {
            job: job.clone(),
            started: Instant::now(),
            events: Broadcast::default(),
            reasons: Reasons::default(),
            callers: Mutex::new(Callers::new(least)),
            patience,
            rank: rank.clone(),
            cancel: self.stop.child_token(),
            ended: CancellationToken::new(),
        });
        running.insert(job.name.clone(), transfer.clone());
        let (this, underway) = (self.clone(), transfer.clone());
        self.tasks.spawn(async move {
            let name = job.name.clone();
            let context = this.context.clone();
            let (events, cancel) = (underway.events.clone(), underway.cancel.clone());
            // In a task of its own, so that a panic in there ends the transfer and not this bookkeeping.
            let asked = (patient, rank, underway.reasons.clone());
            let run = download::run(context, job.clone(), events, asked, cancel, this.stop.clone());
            let last = tokio::spawn(run).await;
            let last = last.unwrap_or_else(|error| download::panicked(&this.context, &job, &error));
            match &last {
                DownloadEvent::Failed { reason, .. } => tracing::warn!(%name, reason, "download failed"),
                _ => tracing::info!(%name, "downloaded"),
            }
            // What the daemon's end cut short goes on at its next start.
            if !matches!(last, DownloadEvent::Failed { kind: FailureKind::Shutdown, .. }) {
                this.forget_order(&name).await;
            }
            if let Some(reasons) = underway.reasons.latest() {
                this.ended.add(reasons);
            }
            // A caller that asks now either joined before and hears the end, or begins anew.
            let mut running = this.lock();
            running.remove(&name);
            underway.events.send(last);
            underway.ended.cancel();
        });
        transfer
    }

    async fn forget_order(&self, name: &FileName) {
        let (journal, owned) = (self.context.sharer.journal.clone(), name.clone());
        match tokio::task::spawn_blocking(move || journal.forget_order(&owned)).await {
            Ok(Err(error)) => {
                tracing::warn!(%name, %error, "cannot record that a download ended; it goes on at the next start");
            }
            Err(error) if error.is_panic() => {
                tracing::error!(%name, %error, "internal error: recording an end panicked");
            }
            _ => {}
        }
    }

    /// Goes on with the downloads that ran when the daemon stopped or crashed, from what the journal knows of them: no
    /// caller and no tracker is needed for that. Blocks.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<(), JournalError> {
        let Sharer { journal, partials, .. } = &*self.context.sharer;
        for (name, order) in journal.orders()? {
            let (record, priority) = (journal.partial(&name)?, order.priority);
            let record = match record {
                Some(record) if !self.is_trusted(&record)? => {
                    tracing::warn!(%name, "an unfinished download does not go on by itself: it was not signed by a key that is trusted now; run the command again to ask for its signature");
                    journal.forget_order(&name)?;
                    continue;
                }
                record => record,
            };
            let is_whole = record.as_ref().is_some_and(|record| partials.is_whole(record).unwrap_or(false));
            let job = record.and_then(|record| Job::noted(name.clone(), record.manifest, order, self.next_seed()));
            let Some(job) = job else {
                tracing::warn!(%name, "an unfinished download cannot go on by itself; run the command again");
                journal.forget_order(&name)?;
                continue;
            };
            tracing::info!(%name, "goes on with an unfinished download");
            if is_whole {
                let least = job.timeout;
                self.spawn(&mut self.lock(), job, priority, least);
            } else {
                // Without its data it may have been put in place just before the crash.
                let this = self.clone();
                self.tasks.spawn(async move { this.look_and_resume(job, priority).await });
            }
        }
        Ok(())
    }

    async fn look_and_resume(self: Arc<Self>, job: Job, priority: Priority) {
        let (this, name) = (self.clone(), job.name.clone());
        let looked = tokio::task::spawn_blocking(move || this.look(&job).map(|place| (job, place))).await;
        match looked.map_err(of_task).and_then(|looked| looked) {
            Ok((_, Place::Done(_))) => self.forget_order(&name).await,
            Ok((job, Place::Free)) => {
                let (mut running, least) = (self.lock(), job.timeout);
                if !running.contains_key(&name) && !self.stop.is_cancelled() {
                    self.spawn(&mut running, job, priority, least);
                }
            }
            Err(error) => {
                tracing::warn!(%name, %error, "an unfinished download cannot go on now; run the command again, or start the daemon again");
            }
        }
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
        if let Some(what) = not_a_file(&path).map_err(|error| output(error.to_string()))? {
            return Err(StartError::NotAFile { path, what });
        }
        let held = context.sharer.holdings.get(&job.name);
        let known = held.as_ref().and_then(|held| match &held.backing {
            Backing::Shared { path: shared, stamp } if *shared == path && held.manifest.id() == job.manifest.id() => {
                Some(*stamp)
            }
            _ => None,
        });
        let calls = context.sharer.holdings.calls();
        let stamp = match known {
            // Hashed before and not touched since: no need to read it all again.
            Some(stamp) if matches!(open_unchanged(calls, &path, stamp), Ok(Some(_))) => stamp,
            _ => match inspect(calls, &path, &job.manifest, &self.stop).map_err(|error| output(error.to_string()))? {
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
                figures: None,
            },
        ]))
    }

    /// No part of the name's folders is a link or a file.
    fn way_is_free(dir: &Path, name: &FileName) -> Result<(), StartError> {
        paths::check_parents(dir, name).map_err(|error| match error {
            PathError::InTheWay(path) => StartError::Output {
                path,
                reason: "a link or a file stands where a folder should be; move it away, or give another place with -o"
                    .to_owned(),
            },
            PathError::Io { path, source } => StartError::Output { path, reason: source.to_string() },
        })
    }

    /// The right content stood there already: shares it like a download.
    fn offer(&self, job: &Job, path: PathBuf, stamp: Stamp) -> Result<(), JournalError> {
        let record = ShareRecord { path, stamp, manifest: job.manifest.clone(), shared: true };
        self.context.sharer.offer(vec![(job.name.clone(), record)], &|name| self.is_running(name))
    }

    /// A caller leaves a transfer, which ends if no other follows it; without a caller's name it ends in any case. Waits
    /// for its end. `None`: there is no such transfer.
    pub(crate) async fn leave(&self, name: &FileName, caller: Option<&str>) -> Option<Leave> {
        let transfer = self.lock().get(name).cloned()?;
        // Under one lock with those that come: none joins a download that is about to be cancelled.
        let left = {
            let _running = self.lock();
            let left = caller.map_or(Leave::Ends, |caller| transfer.change(|callers| callers.leave(caller)));
            if left == Leave::Ends {
                transfer.cancel.cancel();
            }
            left
        };
        if left == Leave::Ends {
            transfer.ended.cancelled().await;
        }
        Some(left)
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
            priority: transfer.rank.priority(),
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
        partials.sweep(journal, &records)?;
        for record in records {
            if !self.is_trusted(&record)? {
                continue;
            }
            match partials.is_whole(&record) {
                Ok(false) => {}
                Ok(true) => holdings.insert_partial(record.name.clone(), Arc::new(partials.of(&record)), record.chunks),
                Err(error) => tracing::warn!(name = %record.name, %error, "cannot look at an unfinished download"),
            }
        }
        Ok(())
    }

    /// Whether chunks of an unfinished download may be fetched and offered.
    fn is_trusted(&self, record: &PartialRecord) -> Result<bool, JournalError> {
        let Sharer { journal, trust, .. } = &*self.context.sharer;
        let signature = journal.signature(&record.name, record.manifest.id())?;
        Ok(trust.check(&record.manifest.describe(record.name.clone()), signature.as_ref()).is_ok())
    }

    fn next_seed(&self) -> u64 {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}
