//! Membership: a lease with the tracker, and the announcements under it.
//!
//! One task owns the lease. Whatever goes wrong, it goes back to the same place: take a lease, announce
//! everything that is held. So a tracker that restarts, forgets or was never there is healed without
//! anybody asking (invariant 5). The log hears of a change once, not of every attempt.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use drizzle_proto::{
    Address, FileInfo, FileName, Labels, PeerId, PeerInfo,
    client::{ClientError, Lease, TrackerClient},
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::holdings::{Holdings, Refusal, Registration};

/// News is gathered this long before it is sent.
const BATCH: Duration = Duration::from_millis(40);
/// Between attempts to reach the tracker.
const RETRY: Duration = Duration::from_millis(500);
/// Without a tracker for this long, a share is reported as pending.
const AWAY: Duration = Duration::from_secs(3);
/// The same with a tracker that is there but answers no announcement.
const SILENT: Duration = Duration::from_secs(15);
/// Before hashes are sent again that the tracker had no room for.
const STUCK: Duration = Duration::from_secs(1);
/// Leaving is a courtesy: the lease ends by itself.
const LEAVE: Duration = Duration::from_secs(2);

/// What the rest of the daemon hears of.
#[derive(Debug)]
pub enum Notice {
    /// A file that the tracker did not take.
    Refused(Refusal),
    /// A name that its owner released.
    Released(FileInfo),
}

/// How to be reached.
#[derive(Debug, Clone)]
pub enum Advertise {
    /// As told with `--advertise`.
    Fixed(Address),
    /// The local address that routes to the tracker, with this port.
    Routed {
        /// The tracker.
        tracker: Address,
        /// Our real port.
        port: u16,
    },
}

impl Advertise {
    /// The address to tell others. Resolved anew each time: a laptop moves, a container gets its network late.
    pub async fn address(&self) -> std::io::Result<Address> {
        match self {
            Self::Fixed(address) => Ok(address.clone()),
            Self::Routed { tracker, port } => {
                let mut error = std::io::Error::other(format!("{tracker} has no address"));
                for remote in tokio::net::lookup_host(tracker.as_str()).await? {
                    match local_address_towards(remote) {
                        Ok(ip) => return Ok(SocketAddr::new(ip, *port).into()),
                        Err(why) => error = why,
                    }
                }
                Err(error)
            }
        }
    }
}

/// Connecting a UDP socket sends nothing; it only asks the routing table.
fn local_address_towards(remote: SocketAddr) -> std::io::Result<IpAddr> {
    let any: SocketAddr = if remote.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// What others may ask about the membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The lease, while one is held and the tracker answers.
    pub lease: Option<u64>,
    /// The address told last.
    pub advertised: Option<Address>,
}

/// The membership task.
#[derive(Debug)]
pub struct Membership {
    /// The tracker.
    pub tracker: TrackerClient,
    /// Its address, for messages.
    pub tracker_address: Address,
    /// This peer.
    pub peer: PeerId,
    /// What it says of where it is.
    pub labels: Labels,
    /// Where we are.
    pub advertise: Advertise,
    /// What we hold.
    pub holdings: Arc<Holdings>,
    /// Where to publish the standing.
    pub standing: watch::Sender<Standing>,
    /// Where to tell of refusals and releases.
    pub notices: mpsc::Sender<Notice>,
}

impl Membership {
    /// Runs until `stop`, then leaves the tracker.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut away = Away::default();
        loop {
            let lease = tokio::select! {
                () = stop.cancelled() => return,
                lease = self.take_lease(&mut away) => lease,
            };
            self.holdings.announce_everything();
            let ended = tokio::select! {
                () = stop.cancelled() => true,
                () = self.keep(lease, &mut away) => false,
            };
            self.standing.send_modify(|standing| standing.lease = None);
            if ended {
                let _ = tokio::time::timeout(LEAVE, self.tracker.leave(lease.id)).await;
                return;
            }
        }
    }

    async fn take_lease(&mut self, away: &mut Away) -> Lease {
        loop {
            match self.try_lease().await {
                Ok(lease) => {
                    away.back(&self.tracker_address);
                    return lease;
                }
                Err(error) => away.tell(&self.tracker_address, &error),
            }
            sleep(RETRY).await;
        }
    }

    async fn try_lease(&mut self) -> Result<Lease, ClientError> {
        let address =
            self.advertise.address().await.map_err(|error| tonic::Status::unavailable(format!("no route: {error}")))?;
        let lease = self.tracker.register_peer(&PeerInfo::new(self.peer, address.clone(), self.labels.clone())).await?;
        tracing::info!(tracker = %self.tracker_address, advertise = %address, "registered with the tracker");
        if matches!(self.advertise, Advertise::Routed { .. }) && address.is_loopback() {
            tracing::warn!(advertise = %address, "only peers on this very machine can reach that address; give the right one with --advertise");
        }
        self.standing.send_replace(Standing { lease: Some(lease.id), advertised: Some(address) });
        Ok(lease)
    }

    /// Renews and announces until the lease is lost.
    async fn keep(&mut self, lease: Lease, away: &mut Away) {
        let holdings = self.holdings.clone();
        let mut renew_at = Instant::now() + lease.renew_every;
        loop {
            let result = tokio::select! {
                // First, and only here is the next renewal put off: however much there is to announce, and
                // whatever it is answered, an announcement renews nothing.
                biased;
                () = tokio::time::sleep_until(renew_at) => {
                    let renewed = self.renew(lease).await;
                    renew_at = Instant::now() + lease.renew_every;
                    renewed
                }
                () = holdings.wait_for_news() => {
                    sleep(BATCH).await;
                    self.announce(lease).await
                }
            };
            match result {
                Ok(()) => {
                    away.back(&self.tracker_address);
                    self.standing.send_if_modified(|standing| standing.lease.replace(lease.id).is_none());
                }
                Err(error) if error.code() == Code::FailedPrecondition => {
                    tracing::info!(tracker = %self.tracker_address, "the tracker does not know our lease: registering again");
                    return;
                }
                Err(error) => {
                    away.tell(&self.tracker_address, &error);
                    self.standing.send_modify(|standing| standing.lease = None);
                    sleep(RETRY).await;
                    // Finds out soon whether the tracker is back, and whether it remembers us.
                    renew_at = Instant::now();
                }
            }
        }
    }

    async fn renew(&mut self, lease: Lease) -> Result<(), ClientError> {
        for released in self.tracker.renew_lease(lease.id).await? {
            // Waits if need be: it is told only once.
            let _ = self.notices.send(Notice::Released(released)).await;
        }
        Ok(())
    }

    async fn announce(&mut self, lease: Lease) -> Result<(), ClientError> {
        let batch = self.holdings.take_batch();
        if batch.is_empty() {
            return Ok(());
        }
        match self.tracker.register_chunk(lease.id, &batch).await {
            Ok(outcomes) => {
                let applied = self.holdings.apply(batch, outcomes);
                for refusal in applied.refusals {
                    // Looking into a refusal may take long; renewing must not wait for it.
                    if let Err(error) = self.notices.try_send(Notice::Refused(refusal)) {
                        let (TrySendError::Full(notice) | TrySendError::Closed(notice)) = error;
                        if let Notice::Refused(refusal) = notice {
                            self.holdings.refuse(&refusal);
                        }
                    }
                }
                if applied.stuck {
                    // The tracker has no room for the manifest now.
                    sleep(STUCK).await;
                }
                Ok(())
            }
            Err(error) => {
                self.holdings.put_back(batch);
                Err(error)
            }
        }
    }
}

/// Waits for registrations, for as long as there is hope.
#[derive(Debug)]
pub struct Patience {
    changes: watch::Receiver<u64>,
    standing: watch::Receiver<Standing>,
    /// When the tracker last answered an announcement.
    heard: Instant,
}

impl Patience {
    /// One for all files of a request, so that a tracker that is away is waited for once.
    pub fn new(holdings: &Holdings, standing: &watch::Sender<Standing>) -> Self {
        Self { changes: holdings.registrations(), standing: standing.subscribe(), heard: Instant::now() }
    }

    /// Waits until a file's registration is decided; `Pending` if the tracker is away, or takes nothing.
    pub async fn registration(&mut self, holdings: &Holdings, name: &FileName) -> Registration {
        loop {
            let connected = self.standing.borrow_and_update().lease.is_some();
            match holdings.get(name).map(|view| view.registration) {
                Some(Registration::Pending) => {}
                Some(decided) => return decided,
                None => return Registration::Pending,
            }
            let patience = if connected { SILENT } else { AWAY };
            tokio::select! {
                Ok(()) = self.changes.changed() => self.heard = Instant::now(),
                Ok(()) = self.standing.changed() => {}
                () = tokio::time::sleep_until(self.heard + patience) => return Registration::Pending,
            }
        }
    }
}

/// Says that the tracker is away once, and once that it is back.
#[derive(Debug, Default)]
struct Away(bool);

impl Away {
    fn tell(&mut self, tracker: &Address, error: &ClientError) {
        if !std::mem::replace(&mut self.0, true) {
            tracing::warn!(%tracker, %error, "cannot reach the tracker; retrying");
        }
    }

    fn back(&mut self, tracker: &Address) {
        if std::mem::take(&mut self.0) {
            tracing::info!(%tracker, "the tracker answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_routed_address_is_the_one_towards_the_tracker() {
        let advertise = Advertise::Routed { tracker: Address::new("127.0.0.3:7400").unwrap(), port: 99 };
        assert_eq!(advertise.address().await.unwrap().as_str(), "127.0.0.1:99");
    }
}
