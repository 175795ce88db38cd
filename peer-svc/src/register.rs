//! Membership: a lease with the tracker, and the announcements under it.
//!
//! One task owns the lease; which call is due is decided by [`drizzle_engine::lease`]. Calls run beside each
//! other, so that a renewal never waits for an announcement. A lost lease leads back to the beginning: take a
//! lease, announce everything that is held. So a tracker that restarts, forgets or was never there is healed by
//! itself (invariant 5). The log hears of a change once, not of every attempt.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use drizzle_engine::lease::{Answer, Call, Change, Lease, Terms};
use drizzle_proto::{
    Address, FileInfo, FileName, Labels, Manifest, PeerClaim, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    client::{ClientError, Lease as GrantedLease, Renewal, Rights as ToldRights, TrackerClient},
};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    advertise::{Advertise, AdvertiseError, Told},
    holdings::{Holdings, Refusal, Registration},
    identity::Identity,
    outage::Outage,
    store::journal::JournalError,
    trust::Rights,
};

/// Without a tracker for this long, a share is reported as pending.
const AWAY: Duration = Duration::from_secs(3);
/// The same with a tracker that is there but answers no announcement.
const SILENT: Duration = Duration::from_secs(15);
/// Leaving is a courtesy: the lease ends by itself.
const LEAVE: Duration = Duration::from_secs(2);
/// Without anything due, the task looks again this often.
const IDLE: Duration = Duration::from_secs(3600);

/// What the rest of the daemon hears of.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A file that the tracker refused.
    Refused(Refusal),
    /// A name that its owner released.
    Released(FileInfo),
}

/// What others may ask about the membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The lease, while one is held and the tracker answers.
    pub(crate) lease: Option<u64>,
    /// The address told last.
    pub(crate) advertised: Option<Address>,
    /// What a person should look into.
    pub(crate) concerns: Concerns,
}

/// What may keep this peer or others from what they want, each in a sentence for a person.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Concerns {
    /// Another process has this peer's id, and it is not clear whether it lives.
    contested: Option<String>,
    /// This daemon was started with a copy of another peer's state, and has another id now.
    copied: Option<String>,
    /// Others may not reach the address told to them.
    doubt: Option<String>,
    /// What the tracker said: another peer tells the same address.
    warned: Option<String>,
}

impl Concerns {
    /// All of them.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &String> {
        [&self.contested, &self.copied, &self.doubt, &self.warned].into_iter().flatten()
    }
}

/// The membership task.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) tracker: TrackerClient,
    /// As it was configured; for the log and for errors.
    pub(crate) tracker_address: Address,
    /// Likewise.
    pub(crate) state_dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) labels: Labels,
    pub(crate) advertise: Advertise,
    pub(crate) holdings: Arc<Holdings>,
    /// What the tracker tells of rights goes there.
    pub(crate) rights: Arc<Rights>,
    /// Where the standing is published.
    pub(crate) standing: watch::Sender<Standing>,
    /// Where refusals and releases go.
    pub(crate) notices: mpsc::Sender<Notice>,
    /// For the jitter of pauses.
    pub(crate) seed: u64,
    pub(crate) outage: Outage,
    /// A look at this machine's addresses is under way.
    pub(crate) looking: bool,
    /// The last lease that was held in this run.
    pub(crate) last_lease: Option<u64>,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error(transparent)]
    NoAddress(#[from] AdvertiseError),
    #[error(transparent)]
    Tracker(#[from] ClientError),
    /// Another process has this peer's id; it may be what this one was before a restart.
    #[error(transparent)]
    IdInUse(ClientError),
    /// Likewise, with a certificate, which is for that id alone.
    #[error("{0}")]
    CertifiedCopy(ClientError),
    /// This daemon works on a copy of the state folder of `copied`; the new id, unless that could not be recorded.
    #[error("{error}")]
    Copied { error: ClientError, copied: PeerId, replaced: Result<PeerId, JournalError> },
}

/// A call that has ended.
#[derive(Debug)]
enum Ended {
    Registered(Result<(Told, GrantedLease), RegisterError>),
    Renewed(u64, Result<Renewal, ClientError>),
    /// At which address this peer is reached now, looked up under this lease.
    Looked(u64, Result<Told, AdvertiseError>),
    /// With how long the tracker wants to be left alone, if it said so.
    Announced(u64, Vec<FileChunks>, Result<(Vec<FileOutcome>, Option<Duration>), ClientError>),
}

impl Membership {
    /// Runs until `stop`, then leaves the tracker.
    ///
    /// # Panics
    /// If a call panicked, which is a bug: a peer without its lease is no peer.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut lease = Lease::new(self.seed, Instant::now());
        let mut calls = JoinSet::new();
        let (holdings, notices) = (self.holdings.clone(), self.notices.clone());
        // Releases are told once and so must wait here rather than be dropped; the tracker bounds how many.
        let mut unsaid: VecDeque<Notice> = VecDeque::new();
        loop {
            let now = Instant::now();
            while let Some(call) = lease.next(now) {
                tracing::trace!(target: "drizzle::decisions", ?call, "tracker");
                self.start(call, lease.renew_within(), &mut calls);
            }
            let wake = lease.wake_at().unwrap_or(now + IDLE);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = calls.join_next() => {
                    let change = self.apply(ended.unwrap_or_else(panicked), &mut lease, &mut unsaid);
                    let pause = lease.wake_at().map(|at| at.saturating_duration_since(Instant::now()));
                    tracing::trace!(target: "drizzle::decisions", ?change, ?pause, "tracker");
                    self.publish(change);
                }
                () = holdings.wait_for_news(), if lease.listens() => lease.has_news(),
                Ok(room) = notices.reserve(), if !unsaid.is_empty() => {
                    if let Some(notice) = unsaid.pop_front() {
                        room.send(notice);
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
        }
        self.publish(Change::Lost);
        if let Some(id) = lease.id() {
            let _ = tokio::time::timeout(LEAVE, self.tracker.leave(id)).await;
        }
    }

    fn start(&mut self, call: Call, renew_within: Duration, calls: &mut JoinSet<Ended>) {
        let mut tracker = self.tracker.clone();
        match call {
            Call::Register => {
                let (advertise, identity, labels) =
                    (self.advertise.clone(), self.identity.clone(), self.labels.clone());
                let (told, last_lease) = (self.standing.borrow().advertised.clone(), self.last_lease);
                calls.spawn(async move {
                    let told = match advertise.address(told.as_ref()).await {
                        Ok(told) => told,
                        Err(error) => return Ended::Registered(Err(error.into())),
                    };
                    let peer = PeerInfo::new(identity.id(), told.address.clone(), labels);
                    let claim = PeerClaim { peer, session: Some(identity.session()), last_lease };
                    Ended::Registered(match tracker.register_peer(claim.clone()).await {
                        Ok(lease) => Ok((told, lease)),
                        Err(error) if error.code() == Code::Aborted => Err(RegisterError::IdInUse(error)),
                        Err(error) if error.code() == Code::AlreadyExists && identity.is_certified() => {
                            Err(RegisterError::CertifiedCopy(error))
                        }
                        Err(error) if error.code() == Code::AlreadyExists => {
                            let copied = claim.peer.id();
                            let replaced = tokio::task::spawn_blocking(move || identity.replace(copied)).await;
                            Err(RegisterError::Copied { error, copied, replaced: replaced.unwrap_or_else(panicked) })
                        }
                        Err(error) => Err(error.into()),
                    })
                });
            }
            Call::Renew(id) => {
                let known = self.rights.known();
                calls.spawn(async move {
                    let renewed = tokio::time::timeout(renew_within, tracker.renew_lease(id, known)).await;
                    let late = || tonic::Status::deadline_exceeded(format!("no answer within {renew_within:?}")).into();
                    Ended::Renewed(id, renewed.unwrap_or_else(|_| Err(late())))
                });
                self.look(id, calls);
            }
            Call::Announce(id) => {
                let batch = self.holdings.take_batch();
                let long = self.holdings.long_manifests(&batch);
                calls.spawn(async move {
                    let told = tell(&mut tracker, id, &batch, long).await;
                    Ended::Announced(id, batch, told)
                });
            }
        }
    }

    /// Looks whether the address that was told is still this machine's. Beside the renewal and not before it: a name
    /// server that hangs must not cost the lease.
    fn look(&mut self, lease: u64, calls: &mut JoinSet<Ended>) {
        if matches!(self.advertise, Advertise::Routed(_)) && !std::mem::replace(&mut self.looking, true) {
            let (advertise, told) = (self.advertise.clone(), self.standing.borrow().advertised.clone());
            calls.spawn(async move { Ended::Looked(lease, advertise.address(told.as_ref()).await) });
        }
    }

    fn apply(&mut self, ended: Ended, lease: &mut Lease, unsaid: &mut VecDeque<Notice>) -> Change {
        let now = Instant::now();
        match ended {
            Ended::Registered(Ok((Told { address, doubt }, granted))) => {
                let terms = Terms { id: granted.id, renew_every: granted.renew_every };
                self.heed_rights(granted.rights);
                let tracker = &self.tracker_address;
                tracing::info!(%tracker, advertise = %address, "registered with the tracker");
                if let Some(doubt) = &doubt {
                    tracing::warn!(advertise = %address, "{doubt}");
                }
                self.last_lease = Some(terms.id);
                self.standing.send_modify(|standing| {
                    standing.concerns.contested = None;
                    standing.concerns.doubt = doubt;
                    standing.advertised = Some(address);
                });
                self.heed_warning(granted.warning);
                self.holdings.announce_everything();
                lease.registered(terms, now)
            }
            Ended::Registered(Err(error)) => {
                self.not_registered(error);
                lease.register_failed(now)
            }
            Ended::Renewed(id, result) => {
                let answer = self.answer(&result);
                if let Ok(Renewal { released, warning, rights }) = result {
                    self.heed_rights(rights);
                    unsaid.extend(released.into_iter().map(Notice::Released));
                    self.heed_warning(warning);
                }
                lease.renewed(id, answer, now)
            }
            Ended::Looked(id, looked) => {
                self.looking = false;
                let told = self.standing.borrow().advertised.clone();
                match looked {
                    Ok(now_at) if told.as_ref() != Some(&now_at.address) => {
                        let change = lease.moved(id, now);
                        if change == Change::Moved {
                            let before = told.as_ref().map(Address::as_str);
                            tracing::warn!(before, now = %now_at.address, "this machine's address changed: registering with the tracker again");
                            self.tracker.reconnect();
                        }
                        change
                    }
                    // In no network for a moment, or no name server: the old address may come back.
                    _ => Change::Nothing,
                }
            }
            Ended::Announced(id, batch, result) => {
                let mut answer = self.answer(&result);
                match result {
                    // What an earlier lease was told, or was not, is told again under the next one.
                    _ if lease.id() != Some(id) => {}
                    Ok((outcomes, pause)) => {
                        if let Some(pause) = pause {
                            lease.gather(pause);
                        }
                        let applied = self.holdings.apply(batch, outcomes);
                        unsaid.extend(applied.refusals.into_iter().map(Notice::Refused));
                        if applied.stuck {
                            answer = Answer::NoRoom;
                        }
                    }
                    Err(_) => self.holdings.put_back(batch),
                }
                lease.announced(id, answer, now)
            }
        }
    }

    /// Says why there is no lease, and keeps for the status what a person should know of it.
    fn not_registered(&mut self, error: RegisterError) {
        match error {
            RegisterError::NoAddress(error) => {
                self.outage.without_address(&error);
                self.standing.send_modify(|standing| standing.concerns.doubt = Some(error.to_string()));
            }
            RegisterError::Tracker(error) => self.outage.begins(&self.tracker_address, &error),
            RegisterError::IdInUse(error) => {
                let text = format!("not registered with the tracker, waiting: {error}");
                self.standing.send_modify(|standing| {
                    if standing.concerns.contested.replace(text.clone()).as_ref() != Some(&text) {
                        tracing::warn!("{text}");
                    }
                });
            }
            RegisterError::CertifiedCopy(error) => {
                let text = format!(
                    "{error}. Its certificate was copied with it: stop this daemon, delete its state folder {}, and start it with --join and a new token",
                    self.state_dir.display()
                );
                self.standing.send_modify(|standing| {
                    standing.concerns.contested = None;
                    if standing.concerns.copied.replace(text.clone()).as_ref() != Some(&text) {
                        tracing::error!("{text}");
                    }
                });
            }
            RegisterError::Copied { error, copied, replaced: Ok(id) } => {
                tracing::error!(old = %copied, new = %id, "{error}; it takes a new id, and the other peer is left alone");
                let text = format!(
                    "this peer was started with a copy of the state folder of peer {copied} and took the new id {id}; leave the state folder out of machine images"
                );
                self.last_lease = None;
                self.standing.send_modify(|standing| {
                    standing.concerns.contested = None;
                    standing.concerns.copied = Some(text);
                });
            }
            RegisterError::Copied { error, replaced: Err(journal), .. } => {
                let text = format!("{error}, which cannot be recorded: {journal}");
                tracing::error!("{text}");
                self.standing.send_modify(|standing| standing.concerns.contested = Some(text));
            }
        }
    }

    /// What the tracker told of rights counts at once; that it is kept must not cost the lease, should the disk hang.
    fn heed_rights(&self, told: ToldRights) {
        if self.rights.heed(told) {
            let rights = self.rights.clone();
            tokio::task::spawn_blocking(move || rights.keep());
        }
    }

    /// What the tracker wants a person to look into: told once, and once that it is over.
    fn heed_warning(&self, warning: Option<String>) {
        self.standing.send_if_modified(|standing| {
            let known = &mut standing.concerns.warned;
            let news = *known != warning;
            match (&known, &warning) {
                (_, Some(warning)) if news => tracing::warn!("the tracker warns: {warning}"),
                (Some(over), None) => tracing::info!("no longer so: {over}"),
                _ => {}
            }
            *known = warning.clone();
            news
        });
    }

    fn answer<T>(&mut self, result: &Result<T, ClientError>) -> Answer {
        match result {
            Ok(_) => Answer::Taken,
            Err(error) if error.code() == Code::FailedPrecondition => Answer::UnknownLease,
            Err(error) => {
                self.outage.begins(&self.tracker_address, error);
                Answer::Failed
            }
        }
    }

    fn publish(&mut self, change: Change) {
        let tracker = &self.tracker_address;
        let lease = match change {
            Change::Nothing => return,
            Change::Connected(id) => {
                self.outage.ends(tracker);
                Some(id)
            }
            Change::Away | Change::Moved => None,
            Change::Lost => {
                tracing::info!(%tracker, "the lease has ended");
                None
            }
        };
        self.standing.send_if_modified(|standing| std::mem::replace(&mut standing.lease, lease) != lease);
    }
}

/// Tells the tracker a batch. The entries whose hashes go on beyond what one message takes, at these places of it, are
/// told by streams of their own.
async fn tell(
    tracker: &mut TrackerClient,
    lease: u64,
    batch: &[FileChunks],
    long: BTreeMap<usize, Manifest>,
) -> Result<(Vec<FileOutcome>, Option<Duration>), ClientError> {
    let mut pause = None;
    let mut short = Vec::new().into_iter();
    if batch.len() > long.len() {
        let entries = batch.iter().enumerate().filter(|(at, _)| !long.contains_key(at)).map(|(_, entry)| entry);
        let (outcomes, wanted) = tracker.announce(lease, entries).await?;
        (short, pause) = (outcomes.into_iter(), Some(wanted));
    }
    let mut outcomes = Vec::with_capacity(batch.len());
    for (at, entry) in batch.iter().enumerate() {
        match long.get(&at) {
            // As many as there are entries that are not long.
            None => outcomes.extend(short.next()),
            Some(manifest) => match tracker.register_manifest(lease, entry, manifest).await {
                // A tracker of an earlier version takes it in parts.
                Err(error) if error.code() == Code::Unimplemented => {
                    let (outcome, wanted) = tracker.announce(lease, [entry]).await?;
                    outcomes.extend(outcome);
                    pause = Some(wanted);
                }
                told => outcomes.push(told?),
            },
        }
    }
    Ok((outcomes, pause))
}

fn panicked<T>(error: JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}

/// Waits for registrations, for as long as there is hope.
#[derive(Debug)]
pub(crate) struct Patience {
    changes: watch::Receiver<u64>,
    standing: watch::Receiver<Standing>,
    /// When the tracker last answered an announcement.
    heard: tokio::time::Instant,
}

impl Patience {
    /// One for all files of a request, so that a tracker that is away is waited for once.
    pub(crate) fn new(holdings: &Holdings, standing: &watch::Sender<Standing>) -> Self {
        let (changes, standing) = (holdings.registrations(), standing.subscribe());
        Self { changes, standing, heard: tokio::time::Instant::now() }
    }

    /// Waits until a file's registration is decided; `Pending` if the tracker is away, or answers nothing.
    pub(crate) async fn registration(&mut self, holdings: &Holdings, name: &FileName) -> Registration {
        loop {
            let connected = self.standing.borrow_and_update().lease.is_some();
            match holdings.get(name).map(|held| held.registration) {
                Some(Registration::Pending) => {}
                Some(decided) => return decided,
                None => return Registration::Pending,
            }
            let patience = if connected { SILENT } else { AWAY };
            tokio::select! {
                Ok(()) = self.changes.changed() => self.heard = tokio::time::Instant::now(),
                Ok(()) = self.standing.changed() => {}
                () = tokio::time::sleep_until(self.heard + patience) => return Registration::Pending,
            }
        }
    }
}
