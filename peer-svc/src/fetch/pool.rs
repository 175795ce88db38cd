//! Connections to holders: a few to each, lent to one fetch at a time where possible.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use drizzle_engine::schedule::Offence;
use drizzle_proto::{Address, PeerId, PeerInfo, client::PeerClient, net::transport::Transport};
use tokio::sync::watch;
use tonic::Status;

use super::error::FetchError;
use crate::{identity::Identity, register::Standing};

/// Connections to one holder at once: four streams over four connections are a fifth faster than over
/// one, because each connection has a task and a socket buffer of its own.
const CONNECTIONS: usize = 4;

/// Holders that are kept connected though nothing is asked of them.
const IDLE_HOLDERS: usize = 64;

/// Connections to holders, made when first used and closed with the last handle. One per daemon.
#[derive(Debug)]
pub(crate) struct Connections {
    transport: Transport,
    /// This peer, which each request names.
    own: Identity,
    /// The address at which it says it is reached.
    standing: watch::Receiver<Standing>,
    pool: Mutex<HashMap<PeerId, (Address, Vec<Pooled>)>>,
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

/// One connection to a holder, and how many streams are on it.
#[derive(Debug, Clone)]
pub(super) struct Pooled {
    pub(super) client: PeerClient,
    pub(super) streams: Arc<AtomicUsize>,
}

/// One stream's share of a connection.
#[derive(Debug)]
pub(super) struct Lent(pub(super) Pooled);

impl Pooled {
    fn is_idle(&self) -> bool {
        self.streams() == 0
    }

    /// Streams that it carries now.
    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// None yet.
    pub(crate) fn new(transport: Transport, own: Identity, standing: watch::Receiver<Standing>) -> Self {
        Self { transport, own, standing, pool: Mutex::default(), receiving: Arc::default() }
    }

    pub(super) fn own(&self) -> PeerId {
        self.own.id()
    }

    /// Chunks that come at present, for all downloads.
    pub(super) fn receiving(&self) -> u32 {
        self.receiving.load(Ordering::Relaxed)
    }

    /// A chunk begins to come.
    pub(super) fn receive(&self) -> Receiving {
        self.receiving.fetch_add(1, Ordering::Relaxed);
        Receiving(self.receiving.clone())
    }

    /// The least used connection to a holder, or a new one while there are few.
    pub(super) fn lend(&self, peer: &PeerInfo) -> Result<Lent, FetchError> {
        if self.is_own_address(peer) {
            return Err(FetchError::own_address(peer));
        }
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() >= IDLE_HOLDERS && !pool.contains_key(&peer.id()) {
            // A large swarm must not cost a socket for every peer that was ever asked.
            pool.retain(|_, (_, connections)| !connections.iter().all(Pooled::is_idle));
        }
        let address = peer.address();
        let (known_address, connections) = pool.entry(peer.id()).or_insert_with(|| (address.clone(), Vec::new()));
        if known_address != address {
            // The peer moved: what is open to its old address serves out.
            *known_address = address.clone();
            connections.clear();
        }
        let least = connections.iter().min_by_key(|connection| connection.streams()).cloned();
        let connection = match least {
            Some(idle) if idle.is_idle() || connections.len() >= CONNECTIONS => idle,
            _ => {
                let client = PeerClient::new(&self.transport, address)
                    .map_err(|error| FetchError::Offence(Offence::Unreachable, format!("{address}: {error}")))?;
                let connection = Pooled { client, streams: Arc::default() };
                connections.push(connection.clone());
                connection
            }
        };
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Lent(connection))
    }

    /// A connection of its own to a peer, for what it tells: on one that carries chunks news would stand behind them, and
    /// bytes of news would hide that a chunk has stalled.
    pub(crate) fn ear(&self, peer: &PeerInfo) -> Result<PeerClient, Status> {
        if self.is_own_address(peer) {
            return Err(Status::unavailable("another peer tells this one's address"));
        }
        PeerClient::new(&self.transport, peer.address()).map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Another peer's requests to this one would be answered here, and a peer's own are no use.
    fn is_own_address(&self, peer: &PeerInfo) -> bool {
        self.standing.borrow().advertised.as_ref() == Some(peer.address())
    }

    /// Forgets a connection on which a stream has stalled: it may be dead, and what is still on its way is not wanted.
    /// Other streams that it carries go on.
    pub(super) fn discard(&self, peer: PeerId, lent: &Lent) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connections)) = pool.get_mut(&peer) {
            connections.retain(|connection| !Arc::ptr_eq(&connection.streams, &lent.0.streams));
        }
    }

    /// Forgets the connections to a peer that is gone, unless another download uses them.
    pub(crate) fn forget(&self, peer: PeerId) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.get(&peer).is_some_and(|(_, connections)| connections.iter().all(Pooled::is_idle)) {
            pool.remove(&peer);
        }
    }

    /// Looks at why a holder was not reached: what is short on this machine is said, and what is idle here makes room.
    pub(super) fn not_asked(&self, error: FetchError) -> FetchError {
        if let FetchError::Short(shortage) = error {
            shortage.say("connect to other peers");
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            pool.retain(|_, (_, connections)| {
                connections.retain(|connection| !connection.is_idle());
                !connections.is_empty()
            });
        }
        error
    }
}
