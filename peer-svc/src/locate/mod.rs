//! Which peer holds which chunk of one file, kept fresh while a download runs.
//!
//! The tracker introduces the download to a bounded number of neighbours, and these tell by themselves which chunks they
//! have and get ([`listen`]); which are listened to, and which word counts, decides [`drizzle_engine::neighbours`]. This
//! task keeps the watch and the listeners alive, and turns what they say into changes that a download can apply blindly.
//! A tracker that is away or restarts is invisible there: the neighbours go on telling, and what was known stays known for
//! a grace period, in which the peers re-register by themselves (invariant 5).

mod listen;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

pub(crate) use drizzle_engine::holder_view::Located;
use drizzle_engine::{
    holder_view::Withdrawal,
    neighbours::{Neighbours, Step, WANTED},
    retry::{self, Backoff},
};
use drizzle_proto::{
    ChunkSet, FileId, FileName, PeerId, PeerInfo,
    access::Access,
    client::{ClientError, STOPPED_TRAILER, TrackerClient, Wish},
    holder::{Holder, HolderChange, HolderChanges},
    wire,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use self::listen::{Heard, listen};
use crate::{fetch::connections::Connections, register::Standing};

/// What neighbours said and was not applied yet.
const HEARD: usize = 64;
/// Holders of chunks that no neighbour has, of those that the tracker knows.
const FOUND: usize = 32;

/// What is needed to locate a file's chunks.
#[derive(Debug)]
pub(crate) struct Sought {
    pub(crate) tracker: TrackerClient,
    pub(crate) connections: Arc<Connections>,
    pub(crate) name: FileName,
    pub(crate) file: FileId,
    /// This peer, which is left out; when it changes, the peer that it was is a holder like any other.
    pub(crate) own: watch::Receiver<PeerId>,
    /// For the lease, by which the tracker introduces this peer to others.
    pub(crate) standing: watch::Receiver<Standing>,
    /// Chunks that no known holder has, when the download waits for them.
    pub(crate) unheld: mpsc::Receiver<ChunkSet>,
    /// What is stopped.
    pub(crate) access: watch::Receiver<Arc<Access>>,
    /// Holders that the tracker told of before: used if it is lost before it tells of any neighbour.
    pub(crate) told: Vec<Holder>,
    /// Decides every random choice.
    pub(crate) seed: u64,
}

/// Locates a file's chunks until the receiver is gone, or the file is withdrawn or stopped.
pub(crate) async fn locate(mut sought: Sought, out: mpsc::Sender<Located>) {
    let (mut access, name, tells) = (sought.access.clone(), sought.name.clone(), out.clone());
    let stopped = async move { access.wait_for(|access| access.stops(&name)).await.is_ok() };
    let (heard_by, heard) = mpsc::channel(HEARD);
    let neighbours = Neighbours::new(*sought.own.borrow_and_update());
    let rng = StdRng::seed_from_u64(sought.seed);
    let locator = Locator {
        sought,
        neighbours,
        listeners: BTreeMap::new(),
        listened: 0,
        heard_by,
        heard,
        lease: None,
        backoff: Backoff::new(retry::TRACKER),
        rng,
        out,
    };
    tokio::select! {
        () = locator.run() => {}
        true = stopped => {
            let _ = tells.send(Located::Withdrawn(Withdrawal::Stopped)).await;
        }
    }
}

/// What an error of the tracker means for a watch. What the transport calls a refusal is none of the tracker's.
fn failed(error: ClientError) -> Ended {
    match &error {
        ClientError::Status(status)
            if status.code() == Code::PermissionDenied && std::error::Error::source(status).is_none() =>
        {
            let is_stopped = status.metadata().contains_key(STOPPED_TRAILER);
            Ended::Withdrawn(if is_stopped { Withdrawal::Stopped } else { Withdrawal::Denied })
        }
        _ => Ended::Lost(error),
    }
}

enum Ended {
    ReceiverGone,
    Withdrawn(Withdrawal),
    Lost(ClientError),
    /// This peer has another id now: the watch begins anew, because it left out another holder so far.
    Renamed,
    /// This peer has another lease now: the watch begins anew under it.
    OtherLease,
}

/// The download has ended, and wants to know no more.
struct ReceiverGone;

/// Some of many holders, each as likely as any other; the others are not kept.
struct Fitting {
    seen: usize,
    some: Vec<Holder>,
}

impl Fitting {
    fn take(&mut self, holder: Holder, unheld: &ChunkSet, rng: &mut StdRng) {
        if holder.chunks.count() != unheld.count() || !holder.chunks.intersects(unheld) {
            return;
        }
        self.seen += 1;
        if self.some.len() < FOUND {
            self.some.push(holder);
        } else if let Some(place) = self.some.get_mut(rng.random_range(0..self.seen)) {
            *place = holder;
        }
    }
}

struct Locator {
    sought: Sought,
    neighbours: Neighbours,
    /// One for each neighbour that is listened to, with its number.
    listeners: BTreeMap<PeerId, (u64, AbortOnDropHandle<()>)>,
    /// How many there were.
    listened: u64,
    heard_by: mpsc::Sender<(u64, PeerId, Heard)>,
    heard: mpsc::Receiver<(u64, PeerId, Heard)>,
    /// By which the present watch is introduced.
    lease: Option<u64>,
    backoff: Backoff,
    rng: StdRng,
    out: mpsc::Sender<Located>,
}

impl Locator {
    async fn run(mut self) {
        loop {
            self.lease = self.sought.standing.borrow_and_update().lease;
            match self.watch().await {
                Ended::ReceiverGone => return,
                Ended::Withdrawn(withdrawal) => {
                    let _ = self.out.send(Located::Withdrawn(withdrawal)).await;
                    return;
                }
                Ended::Renamed => {
                    let own = *self.sought.own.borrow_and_update();
                    let steps = self.neighbours.renamed(own);
                    if self.take(steps).await.is_err() {
                        return;
                    }
                    continue;
                }
                Ended::OtherLease => continue,
                Ended::Lost(error) => {
                    if self.use_what_was_told().await.is_err() {
                        return;
                    }
                    // Each outage is told once.
                    if self.backoff.is_fresh() {
                        let name = &self.sought.name;
                        tracing::info!(%name, %error, "the tracker's news of this file stopped; going on with the known holders, retrying");
                    }
                }
            }
            let pause = self.backoff.failed(&mut self.rng);
            tracing::trace!(target: "drizzle::decisions", name = %self.sought.name, ?pause, "watch again");
            if self.listen_only(Instant::now() + pause).await.is_err() {
                return;
            }
        }
    }

    /// If the tracker was lost before it introduced this download to anybody, begins with those that it told of before.
    async fn use_what_was_told(&mut self) -> Result<(), ReceiverGone> {
        let told = std::mem::take(&mut self.sought.told);
        if told.is_empty() {
            return Ok(());
        }
        let changes = told.into_iter().map(HolderChange::Is).collect();
        let message = HolderChanges { changes, introduces: true, synced: true, ..HolderChanges::default() };
        let steps = self.neighbours.heard(message, Instant::now());
        self.take(steps).await
    }

    /// Goes on without the tracker until a moment.
    async fn listen_only(&mut self, until: Instant) -> Result<(), ReceiverGone> {
        loop {
            let due = self.neighbours.next_due(Instant::now()).min(until);
            tokio::select! {
                () = self.out.closed() => return Err(ReceiverGone),
                Some((nth, peer, heard)) = self.heard.recv() => self.hears(nth, peer, heard).await?,
                () = tokio::time::sleep_until(due.into()) => {
                    let steps = self.neighbours.due(Instant::now());
                    self.take(steps).await?;
                    if Instant::now() >= until {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Follows one watch of the tracker to its end.
    async fn watch(&mut self) -> Ended {
        let (mut tracker, name, file) = (self.sought.tracker.clone(), self.sought.name.clone(), self.sought.file);
        // A name may have been released and taken by other content in the meantime.
        let request = wire::FileLocationsRequest {
            name: name.to_string(),
            omit_hashes: true,
            omit_holders: true,
            ..Default::default()
        };
        match tracker.file_locations_wire(request).await {
            Ok(answer) if answer.file.as_ref().is_some_and(|known| known.file_id != file.to_string()) => {
                return Ended::Withdrawn(Withdrawal::Replaced);
            }
            Ok(_) => {}
            // A tracker that lost its catalogue hears of the file again from its holders, us among them.
            Err(error) => return failed(error),
        }
        let known = self.neighbours.known();
        let wish = self.lease.map(|lease| Wish { lease, neighbours: WANTED, known });
        let mut stream = match tracker.watch_file(&name, wish).await {
            Ok(stream) => stream,
            Err(error) => return failed(error),
        };
        loop {
            let due = self.neighbours.next_due(Instant::now());
            let lease = self.lease;
            let has_other_lease = |standing: &Standing| standing.lease.is_some() && standing.lease != lease;
            let standing = &mut self.sought.standing;
            let other_lease = async move { standing.wait_for(has_other_lease).await.is_ok() };
            let taken = tokio::select! {
                () = self.out.closed() => Err(ReceiverGone),
                Ok(()) = self.sought.own.changed() => return Ended::Renamed,
                true = other_lease => return Ended::OtherLease,
                Some((nth, peer, heard)) = self.heard.recv() => self.hears(nth, peer, heard).await,
                () = tokio::time::sleep_until(due.into()) => {
                    let steps = self.neighbours.due(Instant::now());
                    self.take(steps).await
                }
                Some(unheld) = self.sought.unheld.recv() => {
                    let mut fitting = Fitting { seen: 0, some: Vec::with_capacity(FOUND) };
                    let rng = &mut self.rng;
                    match tracker.each_holder(&name, |holder| fitting.take(holder, &unheld, rng)).await {
                        Ok(_) => self.found(fitting.some).await,
                        Err(error) => return failed(error),
                    }
                }
                message = stream.next() => match message {
                    Some(Ok(message)) => {
                        self.backoff.succeeded();
                        self.sought.told.clear();
                        let steps = self.neighbours.heard(message, Instant::now());
                        self.take(steps).await
                    }
                    Some(Err(error)) if error.code() == Code::NotFound => return Ended::Withdrawn(Withdrawal::Released),
                    Some(Err(error)) => return failed(error),
                    None => return Ended::Lost(tonic::Status::unavailable("the tracker ended the stream").into()),
                },
            };
            if taken.is_err() {
                return Ended::ReceiverGone;
            }
        }
    }

    /// Adds some of the holders of chunks that no neighbour has.
    async fn found(&mut self, some: Vec<Holder>) -> Result<(), ReceiverGone> {
        let changes = some.into_iter().map(HolderChange::Is).collect();
        let message = HolderChanges { changes, introduces: true, ..HolderChanges::default() };
        let steps = self.neighbours.heard(message, Instant::now());
        self.take(steps).await
    }

    async fn hears(&mut self, nth: u64, peer: PeerId, heard: Heard) -> Result<(), ReceiverGone> {
        // Of an earlier listener, which was ended meanwhile.
        if self.listeners.get(&peer).is_none_or(|(listener, _)| *listener != nth) {
            return Ok(());
        }
        let located = match heard {
            Heard::News(news) => self.neighbours.told(peer, news),
            Heard::Silence(silence) => {
                self.listeners.remove(&peer);
                self.neighbours.fell_silent(peer, silence, Instant::now(), &mut self.rng)
            }
        };
        self.take(located.map(Step::Tell).into_iter().collect()).await
    }

    async fn take(&mut self, steps: Vec<Step>) -> Result<(), ReceiverGone> {
        for step in steps {
            match step {
                Step::Tell(located) => self.out.send(located).await.map_err(|_| ReceiverGone)?,
                Step::Listen(peer) => self.listen(peer),
                Step::Ignore(peer) => drop(self.listeners.remove(&peer)),
            }
        }
        Ok(())
    }

    fn listen(&mut self, peer: PeerInfo) {
        self.listened += 1;
        let (id, out, file) = (peer.id(), self.heard_by.clone(), self.sought.file);
        let listener = tokio::spawn(listen(self.sought.connections.clone(), peer, file, self.listened, out));
        self.listeners.insert(id, (self.listened, AbortOnDropHandle::new(listener)));
    }
}
