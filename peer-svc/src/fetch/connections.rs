//! How this peer reaches others: one value for the whole daemon.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use drizzle_proto::{PeerId, PeerInfo, client::PeerClient, net::transport::Transport};
use tokio::sync::watch;
use tonic::Status;

use super::{
    error::FetchError,
    pool::{Lent, Pool},
    receiver::Receivers,
};
use crate::{identity::Identity, register::Standing};

/// Connections to holders, made when first used. One per daemon.
#[derive(Debug)]
pub(crate) struct Connections {
    transport: Transport,
    /// This peer, which each request names.
    own: Identity,
    /// The address at which it says it is reached.
    standing: watch::Receiver<Standing>,
    /// By the number of the disk. A machine has few, so their threads stay.
    receivers: Mutex<BTreeMap<u64, Arc<Receivers>>>,
    /// Chunks that come at present, over all of them.
    receiving: Arc<AtomicU32>,
}

/// A chunk that comes, until this is dropped.
#[derive(Debug)]
pub(super) struct Receiving(Arc<AtomicU32>);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// None yet.
    pub(crate) fn new(transport: Transport, own: Identity, standing: watch::Receiver<Standing>) -> Self {
        Self { transport, own, standing, receivers: Mutex::default(), receiving: Arc::default() }
    }

    pub(super) fn own(&self) -> PeerId {
        self.own.id()
    }

    /// Chunks that come at present, for all downloads.
    pub(crate) fn receiving(&self) -> u32 {
        self.receiving.load(Ordering::Relaxed)
    }

    /// A chunk begins to come.
    pub(super) fn receive(&self) -> Receiving {
        self.receiving.fetch_add(1, Ordering::Relaxed);
        Receiving(self.receiving.clone())
    }

    /// The threads for downloads to a disk. An error if the machine has no more threads or files.
    pub(crate) fn receivers(&self, disk: u64) -> io::Result<Arc<Receivers>> {
        let mut all = self.receivers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&disk) {
            return Ok(known.clone());
        }
        let new = Arc::new(Receivers::start()?);
        all.insert(disk, new.clone());
        Ok(new)
    }

    /// A connection to a holder, to which there are so many at the most, of the thread that this runs on.
    pub(super) fn lend(&self, pool: &Pool, holder: &PeerInfo, most: usize) -> Result<Lent, FetchError> {
        if self.is_own_address(holder) {
            return Err(FetchError::own_address(holder));
        }
        pool.lend(&self.transport, holder, most)
    }

    /// A connection of its own to a peer, for what it tells: on one that carries chunks news would stand behind them, and
    /// bytes of news would hide that a chunk has stalled.
    pub(crate) fn ear(&self, peer: &PeerInfo) -> Result<PeerClient, Status> {
        if self.is_own_address(peer) {
            return Err(Status::unavailable("another peer tells this one's address"));
        }
        PeerClient::new(&self.transport, peer.address(), peer.id())
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Another peer's requests to this one would be answered here, and a peer's own are no use.
    fn is_own_address(&self, peer: &PeerInfo) -> bool {
        self.standing.borrow().advertised.as_ref() == Some(peer.address())
    }

    /// Forgets the connections to a peer that is gone, unless another download uses them.
    pub(crate) fn forget(&self, peer: PeerId) {
        self.each_pool(|pool| pool.forget(peer));
    }

    /// Looks at why a holder was not reached: what is short on this machine is said, and what is idle here makes room.
    pub(super) fn not_asked(&self, error: FetchError) -> FetchError {
        if let FetchError::Short(shortage) = error {
            shortage.say("connect to other peers");
            self.each_pool(Pool::close_idle);
        }
        error
    }

    fn each_pool(&self, act: impl Fn(&Pool)) {
        let all = self.receivers.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flat_map(|receivers| receivers.pools()).for_each(act);
    }
}
