//! When the files are looked at: once at the start, then round and round at a steady pace, and at once when one was
//! lost while it was served, or when the system tells of a change in the folder. All of the folder is looked at for new
//! files at the same pace, for what is not told.
//!
//! One look is waited for at a time; files are hashed beside it, so that a large one keeps no look waiting. A look that
//! takes long (a dead disk below the folder, or a very large folder) goes on beside the others, and so does the hashing of
//! a file that hangs. How many do is bounded, because each costs a thread.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use drizzle_engine::{
    calls::PER_MOUNT,
    folder::{BATCH, Rounds},
};
use drizzle_proto::FileName;
use tokio::{
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Busy, Found, ShareError, Sharer,
    changes::{Changes, Heard},
    folder::New,
};
use crate::{lanes::Lanes, transfers::Transfers};

/// The log hears of long hashing this often.
const HASHING: Duration = Duration::from_secs(5);
/// Files that are quiet, or that changed, are gathered for this long.
const GATHER: Duration = Duration::from_millis(200);
/// Without anything to wait for.
const IDLE: Duration = Duration::from_secs(3600);
/// A look at the whole folder takes at most this share of the time.
const SHARE: u32 = 50;
/// A look at what changed, at most this: a folder of many files takes long to read for the sake of one.
const SHARE_OF_CHANGES: u32 = 10;

/// A look is waited for this long: more than a disk takes that is only busy.
const LATE: Duration = Duration::from_secs(3);
/// So many looks may be late before they are waited for after all. On one dead disk no more hang than
/// [`PER_MOUNT`] and those that walk through folders.
const LATE_LOOKS: usize = 2 * PER_MOUNT;
/// So many of them may be looks at the whole folder: where one hangs, the next one does not go.
const LATE_WHOLES: usize = 2;
/// What a late look looks at is looked at again this much later.
const AGAIN: Duration = Duration::from_secs(1);
/// Groups of files that are hashed side by side.
const HASHED_AT_ONCE: usize = 4;

/// How the folder is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Care {
    /// A round over all shared files takes this long.
    pub(crate) look_every: Duration,
    /// Whether new files are looked for after the start.
    pub(crate) watch: bool,
}

/// What to look at.
#[derive(Debug)]
enum Look {
    /// These recorded files.
    At(Vec<FileName>),
    /// These paths of the folder.
    Paths(BTreeSet<PathBuf>),
    /// The whole folder.
    Folder,
}

/// Shares the folder, then keeps it shared until the daemon stops.
pub(crate) async fn keep(
    sharer: Arc<Sharer>,
    transfers: Arc<Transfers>,
    lanes: Arc<Lanes>,
    care: Care,
    stop: CancellationToken,
) {
    // A look may hang on a dead disk, and is then not waited for.
    stop.run_until_cancelled(share_and_look(sharer, transfers, lanes, care)).await;
}

async fn share_and_look(sharer: Arc<Sharer>, transfers: Arc<Transfers>, lanes: Arc<Lanes>, care: Care) {
    let unfinished = share_folder(sharer.clone(), transfers.clone(), lanes.clone()).await;
    let changes = if care.watch { Changes::of(&sharer.dir, care.look_every).map(Arc::new) } else { None };
    let mut keeper = Keeper {
        sharer,
        transfers,
        lanes,
        changes,
        waiting: BTreeMap::new(),
        hashing: JoinSet::new(),
        names: HashMap::new(),
        late: JoinSet::new(),
        late_paths: BTreeMap::new(),
    };
    if let Some(sharing) = unfinished {
        keeper.goes_on(async move { sharing.await.map(|shared| shared.map(|()| Vec::new())) }, BTreeSet::new());
    }
    let mut rounds = Rounds::new(care.look_every, keeper.sharer.shelf.len(), Instant::now());
    // What came while the first files were hashed, and every folder, to be watched.
    let mut whole = WholeLooks { next: Instant::now(), soonest: Instant::now() };
    let mut is_watching = false;
    let mut may_hear = Instant::now();
    loop {
        keeper.hash_what_waits();
        let (settled, settling) = keeper.sharer.shelf.settled(Instant::now());
        let (late, settled): (BTreeSet<_>, BTreeSet<_>) = settled.into_iter().partition(|path| keeper.is_late(path));
        if !settled.is_empty() {
            keeper.look(Look::Paths(settled)).await;
            tokio::time::sleep(GATHER).await;
            continue;
        }
        let settling = match settling {
            _ if !late.is_empty() => Instant::now() + AGAIN,
            settling => settling.unwrap_or_else(|| Instant::now() + IDLE),
        };
        tokio::select! {
            Some(done) = keeper.hashing.join_next_with_id() => keeper.hashed(done),
            Some(done) = keeper.late.join_next_with_id() => keeper.looked_late(done),
            doubts = keeper.sharer.holdings.doubts() => {
                keeper.look(Look::At(doubts.into_iter().collect())).await;
            }
            () = sleep_until(rounds.next_due().into()) => {
                let shelf = &keeper.sharer.shelf;
                let batch = rounds.batch(shelf.len(), Instant::now(), |after| shelf.following(after, BATCH));
                keeper.look(Look::At(batch)).await;
            }
            () = sleep_until(whole.next.into()), if care.watch && keeper.late_wholes() < LATE_WHOLES => {
                let begun = Instant::now();
                let is_over = keeper.look(Look::Folder).await;
                // One that hangs costs no time.
                whole.done(if is_over { begun.elapsed() } else { Duration::ZERO }, care.look_every);
                let begins = is_over && !is_watching;
                is_watching |= is_over;
                if let Some(changes) = keeper.changes.as_ref().filter(|_| begins) {
                    tracing::info!(folders = changes.folders(), "watching the folder for new files");
                }
            }
            changes = heard(keeper.changes.clone(), may_hear) => {
                tokio::time::sleep(GATHER).await;
                let begun = Instant::now();
                match changes.take() {
                    Heard::Paths(mut paths) => {
                        paths.retain(|path| !keeper.is_late(path));
                        keeper.look(Look::Paths(paths)).await;
                    }
                    Heard::TooMuch => whole.next = whole.soonest,
                }
                may_hear = Instant::now() + begun.elapsed() * SHARE_OF_CHANGES;
            }
            () = sleep_until(settling.into()) => {}
        }
    }
}

/// When the whole folder is looked at.
struct WholeLooks {
    next: Instant,
    /// No look is due before this, whatever happens.
    soonest: Instant,
}

impl WholeLooks {
    fn done(&mut self, took: Duration, look_every: Duration) {
        let now = Instant::now();
        self.soonest = now + took * SHARE;
        self.next = self.soonest.max(now + look_every);
    }
}

/// Something changed in the folder; not before this time.
async fn heard(changes: Option<Arc<Changes>>, not_before: Instant) -> Arc<Changes> {
    let Some(changes) = changes else { return std::future::pending().await };
    sleep_until(not_before.into()).await;
    changes.heard().await;
    changes
}

fn report(done: Result<Result<(), ShareError>, JoinError>, what: &str) {
    match done {
        Ok(Err(error)) => tracing::error!(%error, "{what}"),
        // The daemon notices, and ends.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        _ => {}
    }
}

type Looked = Result<Vec<Found>, ShareError>;

struct Keeper {
    sharer: Arc<Sharer>,
    transfers: Arc<Transfers>,
    lanes: Arc<Lanes>,
    /// What the system tells, if it does.
    changes: Option<Arc<Changes>>,
    /// Files to be hashed next.
    waiting: BTreeMap<FileName, Found>,
    hashing: JoinSet<Result<(), ShareError>>,
    /// What each of them hashes.
    names: HashMap<Id, BTreeSet<FileName>>,
    /// Looks that are not waited for any more.
    late: JoinSet<Looked>,
    /// What these look at, as far as it is no recorded file; the whole folder by its own path.
    late_paths: BTreeMap<Id, BTreeSet<PathBuf>>,
}

impl Keeper {
    /// Whether it is over, and not late.
    async fn look(&mut self, look: Look) -> bool {
        let (sharer, transfers, changes) = (self.sharer.clone(), self.transfers.clone(), self.changes.clone());
        let paths = match &look {
            Look::At(_) => BTreeSet::new(),
            Look::Paths(paths) => paths.clone(),
            Look::Folder => [self.sharer.dir.clone()].into(),
        };
        let mut looking = self.lanes.hashing.run(move || {
            let busy = Busy { name: &|name| transfers.is_running(name), path: &|path| transfers.is_destination(path) };
            match look {
                Look::At(names) => Ok(sharer.look_at(names, &busy)?),
                Look::Paths(paths) => {
                    let known: BTreeSet<FileName> =
                        paths.iter().flat_map(|path| sharer.shelf.at_or_below(path)).collect();
                    let mut found = sharer.look_at(known, &busy)?;
                    let inside = paths.into_iter().filter(|path| path.starts_with(&sharer.dir)).collect();
                    found.extend(look_for_new(&sharer, Some(inside), &busy, changes.as_deref()));
                    Ok(found)
                }
                Look::Folder => Ok(look_for_new(&sharer, None, &busy, changes.as_deref())),
            }
        });
        let looked = match timeout(LATE, &mut looking).await {
            Err(_) if self.late.len() < LATE_LOOKS => {
                self.goes_on(looking, paths);
                return false;
            }
            Err(_) => looking.await,
            Ok(looked) => looked,
        };
        self.looked(looked);
        true
    }

    /// A look is not waited for any more.
    fn goes_on(
        &mut self,
        looking: impl Future<Output = Result<Looked, JoinError>> + Send + 'static,
        paths: BTreeSet<PathBuf>,
    ) {
        let late = self.late.spawn(async move {
            match looking.await {
                Ok(looked) => looked,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The daemon ends.
                Err(_) => Ok(Vec::new()),
            }
        });
        self.late_paths.insert(late.id(), paths);
    }

    fn looked(&mut self, looked: Result<Looked, JoinError>) {
        match looked {
            Ok(Ok(found)) => {
                let is_new = |file: &Found| !self.names.values().any(|names| names.contains(&file.name));
                let found: Vec<Found> = found.into_iter().filter(is_new).collect();
                self.waiting.extend(found.into_iter().map(|file| (file.name.clone(), file)));
            }
            Ok(Err(error)) => report(Ok(Err(error)), "cannot record what became of the shared files"),
            Err(error) => report(Err(error), ""),
        }
    }

    fn looked_late(&mut self, done: Result<(Id, Looked), JoinError>) {
        let (id, looked) = done.map_or_else(|error| (error.id(), Err(error)), |(id, looked)| (id, Ok(looked)));
        self.late_paths.remove(&id);
        self.looked(looked);
    }

    /// Whether a look at just this path is late.
    fn is_late(&self, path: &Path) -> bool {
        self.late_paths.values().any(|paths| paths.contains(path))
    }

    /// How many looks at the whole folder are late.
    fn late_wholes(&self) -> usize {
        self.late_paths.values().filter(|paths| paths.contains(&self.sharer.dir)).count()
    }

    fn hash_what_waits(&mut self) {
        if self.hashing.len() >= HASHED_AT_ONCE || self.waiting.is_empty() {
            return;
        }
        let files: Vec<Found> = std::mem::take(&mut self.waiting).into_values().collect();
        let names = files.iter().map(|file| file.name.clone()).collect();
        let (sharer, transfers) = (self.sharer.clone(), self.transfers.clone());
        let hash = move || sharer.hash(files, &|name| transfers.is_running(name));
        let hashing = self.hashing.spawn_blocking_on(hash, self.lanes.hashing.handle());
        self.names.insert(hashing.id(), names);
    }

    fn hashed(&mut self, done: Result<(Id, Result<(), ShareError>), JoinError>) {
        let (id, hashed) = done.map_or_else(|error| (error.id(), Err(error)), |(id, hashed)| (id, Ok(hashed)));
        self.names.remove(&id);
        report(hashed, "cannot record the files that were hashed");
    }
}

/// Looks for new files, and watches the folders that it meets. Those that were not watched before are looked at once
/// more: what came in between was neither seen nor told.
fn look_for_new(
    sharer: &Sharer,
    mut only: Option<BTreeSet<PathBuf>>,
    busy: &Busy<'_>,
    changes: Option<&Changes>,
) -> Vec<Found> {
    let mut found = Vec::new();
    loop {
        let New { files, folders } = sharer.look_for_new(only, busy);
        found.extend(files);
        let fresh = changes.map(|changes| changes.watch(folders)).unwrap_or_default();
        if fresh.is_empty() {
            return found;
        }
        only = Some(fresh);
    }
}

/// Shares the folder for the first time, saying now and then how far hashing is. What is returned hangs on a dead disk and
/// goes on by itself.
async fn share_folder(
    sharer: Arc<Sharer>,
    transfers: Arc<Transfers>,
    lanes: Arc<Lanes>,
) -> Option<JoinHandle<Result<(), ShareError>>> {
    let mut hashing = {
        let sharer = sharer.clone();
        lanes.hashing.run(move || {
            let busy = Busy { name: &|name| transfers.is_running(name), path: &|path| transfers.is_destination(path) };
            sharer.share_folder(&busy)
        })
    };
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + HASHING, HASHING);
    loop {
        tokio::select! {
            done = &mut hashing => {
                report(done, "cannot read or record what is shared of the folder");
                return None;
            }
            _ = ticks.tick() => {
                if !sharer.holdings.calls().hanging().is_empty() {
                    return Some(hashing);
                }
                let at = sharer.progress.read();
                let mib = |bytes: u64| bytes >> 20;
                tracing::info!("hashing: {} of {} files, {} of {} MiB", at.files_done, at.files_total, mib(at.bytes_done), mib(at.bytes_total));
            }
        }
    }
}
