//! The tracker's decisions: what the catalogue remembers and what the live peers tell, brought together.
//!
//! Two kinds of lock. Those in `locks.rs` are held alone while a name is released and shared while names are
//! looked up or registered on behalf of a swarm, so that no swarm outlives its name; they span disk
//! writes and are only ever taken on blocking threads. The other one is a std mutex over everything in memory, taken
//! for one step at a time and never held over an `.await` or a disk access. Order: names first.
//!
//! A call reads no clock and draws from no global random source: `now` comes from the caller, once, and the ids of
//! leases from a seeded source.
//!
//! Announcing chunks of a file that has a swarm is the hot path: it takes the mutex alone. Anything that
//! needs the catalogue runs as one piece on a blocking thread, so that a caller that goes away in the
//! middle (a cancelled call) cannot leave the two halves at odds.
//!
//! That half is in `names.rs`; what is asked for and answered is in `answers.rs`, and watches are in `watcher.rs`.
//!
//! What is told under one lease takes effect in order: each such call takes the lease's turn first and
//! keeps it until its blocking work is done, whether or not its caller is still there.

mod answers;
mod hashes;
mod locks;
mod names;
#[cfg(test)]
mod tests;
mod watcher;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use drizzle_proto::{
    Address, FileInfo, FileName, PeerClaim, PeerId,
    announcement::{FileChunks, FileOutcome},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tracing::{info, warn};

pub use self::{
    answers::{Dropped, HolderPage, Listing, Locations, OwnedName, Wanted},
    watcher::Watcher,
};
use self::{hashes::Pages, locks::Locks};
use crate::{
    catalogue::{Catalogue, Record},
    census::{Census, Counts},
    error::Error,
    limits::{ANNOUNCEMENTS, HOLDERS_BUDGET, MAX_WRITING, NAMES_BUDGET},
    live::{Live, News, Opened, identities::Ruling},
    verdict::same_address,
};

/// The tracker's domain. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    catalogue: Box<dyn Catalogue>,
    names: Locks,
    pages: Pages,
    guarded: Mutex<Guarded>,
    lease: Duration,
    started: Instant,
    writing: Arc<Semaphore>,
    /// Hears of each name that a peer registers first, or gives other content.
    heard: OnceLock<Hears>,
}

/// Told which peer registered which name, and whether that replaced what it stood for.
type Hears = Box<dyn Fn(PeerId, &FileName, bool) + Send + Sync>;

/// Everything below the one mutex: the pure half, and what its [`News`] is for.
struct Guarded {
    live: Live,
    /// Held while something that a peer told under its lease takes effect, by lease.
    turns: HashMap<u64, Arc<tokio::sync::Mutex<()>>>,
    /// Wake the watchers of a swarm, or one that is introduced, by its serial number.
    bells: HashMap<u64, watch::Sender<()>>,
    /// Draws the ids of leases.
    rng: StdRng,
    counts: Counts,
}

impl Registry {
    /// Over a catalogue, with leases of this length. The seed decides the ids of leases.
    pub fn new(catalogue: impl Catalogue, lease: Duration, seed: u64, now: Instant) -> Self {
        let guarded = Mutex::new(Guarded {
            live: Live::new(lease),
            turns: HashMap::new(),
            bells: HashMap::new(),
            rng: StdRng::seed_from_u64(seed),
            counts: Counts::default(),
        });
        let writing = Arc::new(Semaphore::new(MAX_WRITING));
        let (catalogue, names, pages) = (Box::new(catalogue), Locks::new(), Pages::new());
        let heard = OnceLock::new();
        Self { inner: Arc::new(Inner { catalogue, names, pages, guarded, lease, started: now, writing, heard }) }
    }

    /// Tells of each name that is registered from now on, once. To be called once.
    pub fn on_registered(&self, hears: impl Fn(PeerId, &FileName, bool) + Send + Sync + 'static) {
        // A second one hears nothing.
        let _ = self.inner.heard.set(Box::new(hears));
    }

    /// How long a lease lasts.
    pub fn lease(&self) -> Duration {
        self.inner.lease
    }

    /// How much there is of everything that lives in memory. Never asks the catalogue: a shutdown begins with this, and
    /// a disk that hangs must not hold it up.
    pub fn census(&self, now: Instant) -> Census {
        let (live, counts) = self.inner.at(now, |guarded| (guarded.live.counts_all(now), guarded.counts));
        let uptime = now.saturating_duration_since(self.inner.started);
        Census { live, counts, uptime, hash_bytes: self.inner.pages.bytes() }
    }

    /// Passes if the catalogue answers, and no release of a name hangs.
    pub async fn check(&self) -> Result<(), Error> {
        self.blocking(|inner| {
            inner.names.pass();
            Ok(inner.catalogue.check()?)
        })
        .await
    }

    /// Opens a lease.
    pub fn register_peer(&self, claim: impl Into<PeerClaim>, now: Instant) -> Result<u64, Error> {
        let claim = claim.into();
        let (peer, address) = (claim.peer.id(), claim.peer.address().clone());
        let opened = self.inner.at(now, |Guarded { live, rng, .. }| {
            let candidates = std::iter::repeat_with(|| rng.random::<u64>()).take(16);
            live.open_lease(candidates, claim, now)
        });
        log_opened(peer, &address, &opened);
        let lease = opened?.lease;
        if let Some(warning) = self.warning(lease, now) {
            warn!(%peer, "{warning}");
        }
        Ok(lease)
    }

    /// How long each peer should wait between two announcements, so that all together keep to [`ANNOUNCEMENTS`].
    pub fn announce_pause(&self) -> Duration {
        let peers = self.inner.with(|guarded| guarded.live.peers()) as u64;
        Duration::from_millis(peers * 1000 / ANNOUNCEMENTS)
    }

    /// What the operator of a lease's peer should look into.
    pub fn warning(&self, lease: u64, now: Instant) -> Option<String> {
        self.inner.with(|guarded| guarded.live.same_address(lease, now).map(same_address))
    }

    /// Prolongs a lease; files whose names were released meanwhile, and as [`Registry::warning`].
    pub fn renew(&self, lease: u64, now: Instant) -> Result<(Vec<FileInfo>, Option<String>), Error> {
        self.inner.at(now, |Guarded { live, .. }| {
            let released = live.renew(lease, NAMES_BUDGET, now)?;
            Ok((released, live.same_address(lease, now).map(same_address)))
        })
    }

    /// Ends a lease, if it is known.
    pub fn leave(&self, lease: u64) {
        if let Some((peer, files)) = self.inner.with(|guarded| guarded.live.leave(lease)) {
            info!(%peer, files, "peer left");
        }
    }

    /// The tracker runs; to be told every [`PULSE`](crate::live::leases::PULSE).
    pub fn pulse(&self, now: Instant) {
        log_asleep(self.inner.with(|Guarded { live, .. }| live.pulse(now)));
    }

    /// Ends leases whose time is over; when to call again.
    pub fn expire(&self, now: Instant) -> Instant {
        let (gone, next, peers) = self.inner.at(now, |Guarded { live, .. }| {
            let gone = live.expire(now);
            (gone, live.next_expiry(now), live.peers())
        });
        for (peer, files) in gone {
            info!(%peer, files, peers, "peer expired: it stopped renewing its lease");
        }
        next
    }

    /// Registers files and announces chunks; one outcome for each entry, in order.
    pub async fn announce(
        &self,
        lease: u64,
        entries: Vec<FileChunks>,
        now: Instant,
    ) -> Result<Vec<FileOutcome>, Error> {
        self.announce_barred(lease, entries, HashSet::new(), now).await
    }

    /// Likewise for a peer that may not register these names first, nor give them other content.
    pub async fn announce_barred(
        &self,
        lease: u64,
        entries: Vec<FileChunks>,
        barred: HashSet<FileName>,
        now: Instant,
    ) -> Result<Vec<FileOutcome>, Error> {
        let turn = self.turn(lease, now).await?;
        let (peer, outcomes, unknown) = self.inner.with(|Guarded { live, .. }| {
            let mut outcomes = Vec::with_capacity(entries.len());
            let (mut unknown, mut unknown_names) = (Vec::new(), HashSet::new());
            let peer = live.peer(lease, now)?;
            for mut entry in entries {
                entry.replace &= !barred.contains(&entry.file.name);
                // What follows on an entry that must wait for the catalogue waits with it.
                // Signatures are kept there.
                let waits = entry.signature.is_some() || unknown_names.contains(&entry.file.name);
                let outcome = if waits { None } else { live.announce(lease, &entry, now)? };
                if outcome.is_none() {
                    unknown_names.insert(entry.file.name.clone());
                    unknown.push(entry);
                }
                outcomes.push(outcome);
            }
            Ok::<_, Error>((peer, outcomes, unknown))
        })?;
        let mut rest = Vec::new();
        if !unknown.is_empty() {
            rest = self.writing(turn, move |inner| inner.register(lease, unknown, &barred, now)).await?;
        }
        let mut rest = rest.into_iter();
        let outcomes = outcomes.into_iter().map(|outcome| outcome.or_else(|| rest.next()).ok_or(Error::Panicked));
        let outcomes: Vec<FileOutcome> = outcomes.collect::<Result<_, _>>()?;
        self.inner.with(|guarded| guarded.counts.add(&outcomes));
        log_refused(peer, &outcomes);
        Ok(outcomes)
    }

    /// Withdraws a file; whether its name is free now. Without `may_release` only the peer's own holding ends.
    pub async fn withdraw(&self, lease: u64, name: FileName, may_release: bool, now: Instant) -> Result<bool, Error> {
        let turn = self.turn(lease, now).await?;
        self.writing(turn, move |inner| inner.withdraw(lease, &name, may_release, now)).await
    }

    /// Which peer holds a lease.
    pub fn holder_of(&self, lease: u64, now: Instant) -> Result<PeerId, Error> {
        self.inner.at(now, |guarded| guarded.live.peer(lease, now))
    }

    /// Frees the names that had neither a live owner nor a live holder for `limit`, as far as trackers ran; how many.
    /// `base` is what [`Registry::attendance`] said at the start. Does nothing before each peer had a lease's time to
    /// come back after a restart.
    pub async fn release_unattended(&self, base: Duration, limit: Duration, now: Instant) -> Result<usize, Error> {
        let up = now.saturating_duration_since(self.inner.started);
        if up < self.inner.lease {
            return Ok(0);
        }
        let clock = (base + up).as_secs();
        let (mut after, mut released) = (None, 0);
        loop {
            let from: Option<FileName> = after.take();
            let (freed, last) =
                self.blocking(move |inner| inner.sweep(from.as_ref(), clock, limit.as_secs(), now)).await?;
            released += freed;
            match last {
                Some(last) => after = Some(last),
                None => return Ok(released),
            }
        }
    }

    /// How long trackers ran on this catalogue before, as far as it was noted.
    pub async fn attendance(&self) -> Result<Duration, Error> {
        self.blocking(|inner| Ok(Duration::from_secs(inner.catalogue.clock()?))).await
    }

    /// A page of names with a prefix, in byte order, after the given one.
    pub async fn list(&self, prefix: String, after: Option<FileName>, limit: usize) -> Result<Listing, Error> {
        let (records, next) = self.page(prefix, after, limit).await?;
        let files = self.inner.with(|Guarded { live, .. }| {
            let counted = records.into_iter().map(|Record { file, .. }| {
                let (full, partial) = live.counts(&file);
                (file, full, partial)
            });
            counted.collect()
        });
        Ok(Listing { files, next })
    }

    /// As [`Registry::list`], with the owners; and whether there are more names.
    pub async fn owned(
        &self,
        prefix: String,
        after: Option<FileName>,
        limit: usize,
        now: Instant,
    ) -> Result<(Vec<OwnedName>, bool), Error> {
        let (records, next) = self.page(prefix, after, limit).await?;
        let names = self.inner.with(|Guarded { live, .. }| {
            let owned = records.into_iter().map(|record| {
                let (full_holders, partial_holders) = live.counts(&record.file);
                let owner_address = live.address(record.owner, now);
                OwnedName { record, owner_address, full_holders, partial_holders }
            });
            owned.collect()
        });
        Ok((names, next.is_some()))
    }

    /// Frees a name on behalf of an operator. Without `free` the same content is refused under it to every peer until
    /// other content was registered; with it, `None` says that the name was not taken.
    pub async fn drop_name(&self, name: FileName, free: bool) -> Result<Option<Dropped>, Error> {
        self.blocking(move |inner| inner.drop_name(&name, free)).await
    }

    /// Makes a peer the owner of a name; which one was before.
    pub async fn reassign(&self, name: FileName, owner: PeerId) -> Result<PeerId, Error> {
        self.blocking(move |inner| inner.reassign(&name, owner)).await
    }

    /// Records of names, and where the next page begins.
    async fn page(
        &self,
        prefix: String,
        after: Option<FileName>,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<FileName>), Error> {
        // One more than wanted tells whether there is another page.
        let read = move |inner: &Inner| Ok(inner.catalogue.list(&prefix, after.as_ref(), limit + 1)?);
        let mut page: Vec<Record> = self.blocking(read).await?;
        let mut bytes = 0;
        let fits = page.iter().take(limit).take_while(|record| {
            bytes += record.file.name.as_str().len() + 256;
            bytes <= NAMES_BUDGET
        });
        let fits = fits.count();
        let next = (page.len() > fits).then(|| page[fits - 1].file.name.clone());
        page.truncate(fits);
        Ok((page, next))
    }

    /// What a name stands for and which peers hold it, in parts.
    pub async fn locate(&self, name: FileName, wanted: Wanted) -> Result<Locations, Error> {
        // A name with a swarm stands for that swarm's file.
        let live = self.inner.with(|guarded| guarded.live.file(&name).cloned());
        let known = live.and_then(|file| match wanted.hashes_from {
            None => Some((file, Bytes::new())),
            Some(first) => self.inner.pages.get(file.id, first).map(|hashes| (file, hashes)),
        });
        let (file, hashes) = match known {
            Some(known) => known,
            None => self.blocking(move |inner| inner.content(&name, wanted.hashes_from)).await?,
        };
        let mut signature = None;
        if wanted.signature {
            let name = file.name.clone();
            let kept = self.blocking(move |inner| Ok(inner.catalogue.signature(&name)?)).await?;
            // The name may have got other content since.
            signature = kept.filter(|signature| signature.statement().is_about(&file));
        }
        let page = |after| self.inner.with(|guarded| guarded.live.page(&file, after, HOLDERS_BUDGET));
        let (holders, complete) = match wanted.holders {
            HolderPage::Omitted => (Vec::new(), true),
            HolderPage::First => page(None),
            HolderPage::After(peer) => page(Some(peer)),
            HolderPage::Sample { after, most } => {
                let sample = |live: &Live| live.sample(&file, after, most as usize, HOLDERS_BUDGET);
                (self.inner.with(|guarded| sample(&guarded.live)), true)
            }
        };
        let next = holders.last().filter(|_| !complete).map(|last| last.peer.id());
        Ok(Locations { file, hashes, signature, holders, next })
    }

    /// Waits until everything that was told under this lease before has taken effect.
    async fn turn(&self, lease: u64, now: Instant) -> Result<OwnedMutexGuard<()>, Error> {
        let turn = self.inner.at(now, |Guarded { live, turns, .. }| {
            live.peer(lease, now)?;
            Ok::<_, Error>(turns.entry(lease).or_default().clone())
        })?;
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
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(Error::of_task)?
    }
}

impl Guarded {
    /// Passes on what happened in the pure half.
    fn pass_on(&mut self) {
        for news in self.live.take_news() {
            match news {
                News::LeaseEnded(lease) => drop(self.turns.remove(&lease)),
                News::SwarmChanged(serial) => {
                    if let Some(bell) = self.bells.get(&serial) {
                        bell.send_replace(());
                    }
                }
                // Closed, it wakes its watchers a last time.
                News::SwarmEnded(serial) => drop(self.bells.remove(&serial)),
            }
        }
    }
}

impl Inner {
    /// One step under the mutex. What it guards is changed in steps that cannot panic half-way in practice; serving
    /// on with it is better than turning one bug into a dead tracker.
    fn with<T>(&self, step: impl FnOnce(&mut Guarded) -> T) -> T {
        let mut guarded = self.guarded.lock().unwrap_or_else(PoisonError::into_inner);
        let result = step(&mut guarded);
        guarded.pass_on();
        result
    }

    /// One step that a call begins with: it may be the first thing that happens after the tracker did not run.
    fn at<T>(&self, now: Instant, step: impl FnOnce(&mut Guarded) -> T) -> T {
        let (asleep, result) = self.with(|guarded| (guarded.live.woke(now), step(guarded)));
        log_asleep(asleep);
        result
    }
}

fn log_asleep(asleep: Option<Duration>) {
    if let Some(asleep) = asleep {
        warn!(?asleep, "the tracker did not run for a while; every lease lasts longer by that");
    }
}

fn log_opened(peer: PeerId, address: &Address, opened: &Result<Opened, Error>) {
    match opened {
        Ok(Opened { ruling, before, .. }) => {
            let before = before.as_ref().map(Address::as_str);
            match ruling {
                Ruling::Free => info!(%peer, %address, "peer registered"),
                Ruling::SamePlace => info!(%peer, %address, "peer registered anew"),
                Ruling::Moved => info!(%peer, %address, before, "peer moved to another address"),
                Ruling::Original => warn!(
                    %peer, %address, copy = before,
                    "two processes had this peer id: the first one got it back from a copy of its state folder"
                ),
                // Of the others no lease comes.
                Ruling::Unknown | Ruling::Wait { .. } | Ruling::Copy => warn!(
                    %peer, %address, before,
                    "peer registered at another address while its lease was live: it moved, or two peers share one id"
                ),
            }
        }
        Err(Error::IdInUse { first: false, .. }) => {}
        Err(Error::IdInUse { holder, .. }) => {
            let holder = holder.as_ref().map(Address::as_str);
            info!(%peer, %address, holder, "peer id is claimed from another address; waiting whether its holder is alive");
        }
        Err(Error::CopiedState { holder, .. }) => {
            let holder = holder.as_ref().map(Address::as_str);
            warn!(%peer, %address, holder, "a peer was refused: it works on a copy of the state folder of a live peer");
        }
        Err(error) => warn!(%peer, %address, %error, "peer refused"),
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
