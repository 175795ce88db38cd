//! The tracker's decisions: what the catalogue remembers and what the live peers tell, brought together.
//!
//! Two locks. `names` is held for writing while a name is released and for reading while names are
//! looked up or registered on behalf of a swarm, so that no swarm outlives its name; it spans disk
//! writes and is only ever taken on blocking threads. `state` is a std mutex, held for memory work only and
//! never over an `.await` or a disk access. Order: `names` before `state`.
//!
//! Announcing chunks of a file that has a swarm is the hot path: it takes `state` alone. Anything that
//! needs the catalogue runs as one piece on a blocking thread, so that a caller that goes away in the
//! middle (a cancelled call) cannot leave the two halves at odds.
//!
//! What is told under one lease takes effect in order: each such call takes the lease's turn first and
//! keeps it until its blocking work is done, whether or not its caller is still there.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use drizzle_proto::{
    Digest, FileInfo, FileName, Manifest, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    holder::{Holder, HolderChanges},
    limits::MAX_HASHES,
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use crate::{
    catalogue::{Catalogue, Registration, Verdict},
    error::Error,
    live::{Replaced, State, Watch, staging::Staged},
    verdict::{judge, outcome_of, wrong_hashes, wrong_layout},
};

/// Bytes of holders in one answer, about; the hashes beside them are half a MiB at most.
const HOLDERS_BUDGET: usize = 384 << 10;
/// Bytes of names in one answer, about.
const NAMES_BUDGET: usize = 768 << 10;
/// Calls that write to the catalogue under way at once. It has one writer, each call may hold a few MiB, and
/// threads must be left for reading.
const MAX_WRITING: usize = 32;

/// The tracker's domain. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    catalogue: Box<dyn Catalogue>,
    names: RwLock<()>,
    state: Mutex<State>,
    lease: Duration,
    started: Instant,
    writing: Arc<Semaphore>,
}

/// A page of names with their numbers of holders.
#[derive(Debug)]
pub struct Listing {
    /// Each file, its full and its partial holders.
    pub files: Vec<(FileInfo, u32, u32)>,
    /// Where the next page begins, unless this is the last one.
    pub next: Option<FileName>,
}

/// Which part of a file's locations is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The first chunk whose hash is wanted, if hashes are.
    pub hashes_from: Option<u32>,
    /// The holder after which the page begins, if holders are wanted.
    pub holders_after: Option<Option<PeerId>>,
}

/// A part of a file's locations.
#[derive(Debug)]
pub struct Locations {
    /// Which file.
    pub file: FileInfo,
    /// Hashes from the wanted one on.
    pub hashes: Vec<Digest>,
    /// A page of holders.
    pub holders: Vec<Holder>,
    /// The holder after which the next page begins, unless this is the last one.
    pub next: Option<PeerId>,
}

impl Registry {
    /// Over a catalogue, with leases of this length.
    pub fn new(catalogue: impl Catalogue, lease: Duration) -> Self {
        let state = Mutex::new(State::new(lease));
        let writing = Arc::new(Semaphore::new(MAX_WRITING));
        let (catalogue, names, started) = (Box::new(catalogue), RwLock::new(()), Instant::now());
        Self { inner: Arc::new(Inner { catalogue, names, state, lease, started, writing }) }
    }

    /// How long a lease lasts.
    pub fn lease(&self) -> Duration {
        self.inner.lease
    }

    /// Opens a lease.
    pub fn register_peer(&self, peer: PeerInfo) -> Result<u64, Error> {
        let candidates = std::iter::repeat_with(rand::random::<u64>).take(16);
        let (lease, replaced) = self.state().open_lease(candidates, peer.clone(), Instant::now())?;
        let (peer, address) = (peer.id(), peer.address());
        match replaced {
            Replaced::Nothing => info!(%peer, %address, "peer registered"),
            Replaced::SamePlace => info!(%peer, %address, "peer registered anew"),
            Replaced::OtherPlace(before) => warn!(
                %peer, %address, %before,
                "peer registered at another address while its lease was live: it moved, or two peers share one id"
            ),
        }
        Ok(lease)
    }

    /// Prolongs a lease; files whose names were released meanwhile.
    pub fn renew(&self, lease: u64) -> Result<Vec<FileInfo>, Error> {
        self.state().renew(lease, NAMES_BUDGET, Instant::now())
    }

    /// Ends a lease, if it is known.
    pub fn leave(&self, lease: u64) {
        let left = self.state().close_lease(lease);
        if let Some((peer, files)) = left {
            info!(%peer, files, "peer left");
        }
    }

    /// Ends leases whose time is over; when to call again.
    pub fn expire(&self) -> Instant {
        let now = Instant::now();
        let mut state = self.state();
        let gone = state.expire(now);
        let next = state.next_expiry(now);
        let peers = state.peers();
        drop(state);
        for (peer, files) in gone {
            info!(%peer, files, peers, "peer expired: it stopped renewing its lease");
        }
        next
    }

    /// Registers files and announces chunks; one outcome for each entry, in order.
    pub async fn announce(&self, lease: u64, entries: Vec<FileChunks>) -> Result<Vec<FileOutcome>, Error> {
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut unknown = Vec::new();
        let mut unknown_names = HashSet::new();
        let peer;
        let turn = self.turn(lease).await?;
        {
            let now = Instant::now();
            let mut state = self.state();
            peer = state.peer(lease, now)?;
            for entry in entries {
                // What follows on an entry that must wait for the catalogue waits with it.
                let waits = unknown_names.contains(&entry.file.name);
                let outcome = if waits { None } else { state.announce(lease, &entry, now)? };
                if outcome.is_none() {
                    unknown_names.insert(entry.file.name.clone());
                    unknown.push(entry);
                }
                outcomes.push(outcome);
            }
        }
        let mut rest = Vec::new();
        if !unknown.is_empty() {
            rest = self.writing(turn, move |inner| inner.register(lease, unknown)).await?;
        }
        let mut rest = rest.into_iter();
        let outcomes = outcomes.into_iter().map(|outcome| outcome.or_else(|| rest.next()).ok_or(Error::Panicked));
        let outcomes: Vec<FileOutcome> = outcomes.collect::<Result<_, _>>()?;
        log_refused(peer, &outcomes);
        Ok(outcomes)
    }

    /// Takes a file back; whether its name is free now.
    pub async fn withdraw(&self, lease: u64, name: FileName) -> Result<bool, Error> {
        let turn = self.turn(lease).await?;
        self.writing(turn, move |inner| inner.withdraw(lease, &name)).await
    }

    /// A page of names with a prefix, in byte order, after the given one.
    pub async fn list(&self, prefix: String, after: Option<FileName>, limit: usize) -> Result<Listing, Error> {
        // One more than wanted tells whether there is another page.
        let read = move |inner: &Inner| Ok(inner.catalogue.list(&prefix, after.as_ref(), limit + 1)?);
        let mut names: Vec<FileInfo> = self.blocking(read).await?;
        let mut bytes = 0;
        let fits = names.iter().take(limit).take_while(|file| {
            bytes += file.name.as_str().len() + 128;
            bytes <= NAMES_BUDGET
        });
        let fits = fits.count();
        let next = (names.len() > fits).then(|| names[fits - 1].name.clone());
        names.truncate(fits);
        let state = self.state();
        let files = names.into_iter().map(|file| {
            let (full, partial) = state.counts(&file);
            (file, full, partial)
        });
        Ok(Listing { files: files.collect(), next })
    }

    /// What a name stands for and who holds it, in parts.
    pub async fn locate(&self, name: FileName, wanted: Wanted) -> Result<Locations, Error> {
        let live = match wanted.hashes_from {
            None => self.state().file(&name).cloned(),
            Some(_) => None,
        };
        let (file, hashes) = match live {
            Some(file) => (file, Vec::new()),
            None => self.blocking(move |inner| inner.content(&name, wanted.hashes_from)).await?,
        };
        let (holders, complete) = match wanted.holders_after {
            Some(after) => self.state().page(&file, after, HOLDERS_BUDGET),
            None => (Vec::new(), true),
        };
        let next = holders.last().filter(|_| !complete).map(|last| last.peer.id());
        Ok(Locations { file, hashes, holders, next })
    }

    /// Begins a watch on a file's holders.
    pub async fn watch(&self, name: FileName) -> Result<Watcher, Error> {
        let registry = self.clone();
        let begin = move |inner: &Inner| {
            // Held over both halves: the name must not be released between them.
            let _names = inner.names.read().unwrap_or_else(PoisonError::into_inner);
            let record = inner.catalogue.get(&name)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?;
            let watch = inner.state().watch(&record.file)?;
            Ok(Watcher { registry, watch })
        };
        self.blocking(begin).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }

    /// Waits until everything that was told under this lease before has taken effect.
    async fn turn(&self, lease: u64) -> Result<OwnedMutexGuard<()>, Error> {
        let turn = self.state().turn(lease, Instant::now())?;
        Ok(turn.lock_owned().await)
    }

    /// Work that writes to the catalogue. The turn and the permit go along, because the work goes on when its
    /// caller goes away.
    async fn writing<T: Send + 'static>(
        &self,
        turn: OwnedMutexGuard<()>,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.inner.writing.clone().acquire_owned().await.map_err(|_| Error::Stopping)?;
        self.blocking(move |inner| {
            let _held: (OwnedSemaphorePermit, OwnedMutexGuard<()>) = (permit, turn);
            work(inner)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|_| Error::Panicked)?
    }
}

impl Inner {
    /// The guarded state is changed in steps that cannot panic half-way in practice; serving on with it is
    /// better than turning one bug into a dead tracker.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges entries whose names had no swarm when they came; one outcome for each, in order.
    fn register(&self, lease: u64, entries: Vec<FileChunks>) -> Result<Vec<FileOutcome>, Error> {
        let _names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let files: Vec<FileInfo> = entries.iter().map(|entry| entry.file.clone()).collect();
        let mut outcomes: Vec<Option<FileOutcome>> = Vec::with_capacity(entries.len());
        let mut fresh = Vec::new();
        for (entry, known) in entries.iter().zip(self.catalogue.lookup(&files)?) {
            outcomes.push(match known.registered {
                _ if entry.gone => Some(FileOutcome::Registered),
                Some(registered) => Some(judge(&registered, &entry.file)),
                None if known.content.is_some_and(|layout| layout != entry.file.layout) => {
                    Some(FileOutcome::Invalid(wrong_layout(&entry.file)))
                }
                None if known.content.is_some() => {
                    fresh.push(Registration { file: entry.file.clone(), manifest: None });
                    None
                }
                None => match self.manifest(lease, entry)? {
                    Ok(manifest) => {
                        fresh.push(Registration { file: entry.file.clone(), manifest: Some(manifest) });
                        None
                    }
                    Err(outcome) => Some(outcome),
                },
            });
        }
        let peer = self.state().peer(lease, Instant::now())?;
        let verdicts = if fresh.is_empty() { Vec::new() } else { self.catalogue.register(peer, &fresh)? };
        log_new(peer, &fresh, &verdicts);
        let mut verdicts = verdicts.into_iter();
        let mut settled = Vec::with_capacity(entries.len());
        // Under one lock: the batch becomes visible as a whole.
        let mut state = self.state();
        let now = Instant::now();
        for (entry, outcome) in entries.iter().zip(outcomes) {
            let outcome = match outcome {
                Some(outcome) => outcome,
                None => outcome_of(verdicts.next().ok_or(Error::Panicked)?, entry),
            };
            state.settle(lease, entry, &outcome, now)?;
            settled.push(outcome);
        }
        Ok(settled)
    }

    /// The manifest of an entry once all its hashes are there, or what to answer instead.
    fn manifest(&self, lease: u64, entry: &FileChunks) -> Result<Result<Manifest, FileOutcome>, Error> {
        let staged = self.state().stage(lease, entry, Instant::now())?;
        let hashes = match staged {
            Staged::Whole(hashes) => hashes,
            Staged::Lacks(next) => return Ok(Err(FileOutcome::NeedHashes(next))),
        };
        Ok(match Manifest::new(entry.file.layout, hashes) {
            Ok(manifest) if manifest.id() == entry.file.id => Ok(manifest),
            Ok(manifest) => Err(FileOutcome::Invalid(wrong_hashes(manifest.id(), &entry.file))),
            Err(error) => Err(FileOutcome::Invalid(error.to_string())),
        })
    }

    fn withdraw(&self, lease: u64, name: &FileName) -> Result<bool, Error> {
        let _names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let peer = self.state().peer(lease, Instant::now())?;
        let record = self.catalogue.get(name)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?;
        let (holds, others_hold) = self.state().holders(name, peer);
        let owns = record.owner == peer;
        if !holds && !owns {
            return Err(Error::NotYours(name.clone()));
        }
        let released = owns || (!others_hold && self.is_abandoned_by(record.owner));
        if released {
            // Durable first: a crash in between leaves nothing in memory anyway.
            self.catalogue.release(name, peer)?;
            self.state().release(name, peer);
        } else {
            self.state().drop_holder(peer, name);
        }
        info!(%peer, %name, id = %record.file.id, released, "file withdrawn");
        Ok(released)
    }

    /// Whether an owner has had the time to show that it is alive, and has not.
    fn is_abandoned_by(&self, owner: PeerId) -> bool {
        let now = Instant::now();
        now.duration_since(self.started) >= self.lease && !self.state().is_alive(owner, now)
    }

    fn content(&self, name: &FileName, hashes_from: Option<u32>) -> Result<(FileInfo, Vec<Digest>), Error> {
        let file = self.catalogue.get(name)?.ok_or_else(|| Error::NoSuchFile(name.clone()))?.file;
        let hashes = match hashes_from {
            Some(first) if first > file.layout.chunk_count().get() => {
                return Err(drizzle_proto::WireError::Bounds("first_hash").into());
            }
            Some(first) => self.catalogue.hashes(file.id, first, MAX_HASHES)?,
            None => Vec::new(),
        };
        Ok((file, hashes))
    }
}

fn log_refused(peer: PeerId, outcomes: &[FileOutcome]) {
    let mut refused = outcomes.iter().filter_map(|outcome| match outcome {
        FileOutcome::Refused { detail, .. } => Some(detail),
        _ => None,
    });
    if let Some(first) = refused.next() {
        warn!(%peer, files = 1 + refused.count(), %first, "files refused");
    }
}

fn log_new(peer: PeerId, fresh: &[Registration], verdicts: &[Verdict]) {
    let new = || fresh.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::New);
    for (Registration { file, .. }, _) in new() {
        let (name, id, size) = (&file.name, file.id, file.layout.size());
        // One line for each file of a large folder would drown everything else.
        debug!(%peer, %name, %id, size, "name registered");
    }
    let files = new().count();
    if let Some((Registration { file, .. }, _)) = new().next() {
        info!(%peer, files, first = %file.name, id = %file.id, "files registered");
    }
}

/// A watch on one file's holders. Dropping it ends the watch.
pub struct Watcher {
    registry: Registry,
    watch: Watch,
}

impl Watcher {
    /// What to tell next, if anything is left to tell; an error once the name is released.
    pub fn next_message(&mut self) -> Result<Option<HolderChanges>, Error> {
        self.registry.inner.state().next_message(&mut self.watch)
    }

    /// Waits until [`Watcher::next_message`] may have something to tell.
    pub async fn changed(&mut self) {
        // An error means that the name was released, which `next_message` tells.
        let _ = self.watch.changed.changed().await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.registry.inner.state().unwatch(&self.watch);
    }
}
