//! The connections of one receiving thread: a few to each holder, lent to one fetch at a time where possible.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use drizzle_engine::schedule::Offence;
use drizzle_proto::{Address, PeerId, PeerInfo, client::PeerClient, net::transport::Transport};

use super::error::FetchError;

/// Holders that are kept connected though nothing is asked of them, over all threads of a disk.
const IDLE_HOLDERS: usize = 64;

/// Connections of one thread.
#[derive(Debug)]
pub(super) struct Pool {
    holders: Mutex<HashMap<PeerId, Connected>>,
    /// Of so many threads this is one.
    threads: usize,
    /// Most holders that are kept connected for nothing.
    idle: usize,
}

#[derive(Debug)]
struct Connected {
    address: Address,
    connections: Vec<Pooled>,
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

impl Connected {
    fn is_idle(&self) -> bool {
        self.connections.iter().all(Pooled::is_idle)
    }
}

impl Pool {
    /// Of one of so many threads.
    pub(super) fn of(threads: usize) -> Self {
        let threads = threads.max(1);
        Self { holders: Mutex::default(), threads, idle: IDLE_HOLDERS.div_ceil(threads) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Connected>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection to this holder is open and carries nothing.
    pub(super) fn has_idle(&self, holder: PeerId) -> bool {
        self.lock().get(&holder).is_some_and(|connected| connected.connections.iter().any(Pooled::is_idle))
    }

    /// The least used connection to a holder, or a new one while there are fewer than `most` over all threads. Its tasks run
    /// where this is called.
    pub(super) fn lend(&self, transport: &Transport, holder: &PeerInfo, most: usize) -> Result<Lent, FetchError> {
        let mut holders = self.lock();
        if holders.len() >= self.idle && !holders.contains_key(&holder.id()) {
            // A large swarm must not cost a socket for every peer that was ever asked.
            holders.retain(|_, connected| !connected.is_idle());
        }
        let address = holder.address();
        let new = || Connected { address: address.clone(), connections: Vec::new() };
        let connected = holders.entry(holder.id()).or_insert_with(new);
        if connected.address != *address {
            // The peer moved: what is open to its old address serves out.
            *connected = new();
        }
        let most = most.div_ceil(self.threads);
        let least = connected.connections.iter().min_by_key(|connection| connection.streams()).cloned();
        let connection = match least {
            Some(idle) if idle.is_idle() || connected.connections.len() >= most => idle,
            _ => {
                let client = PeerClient::new(transport, address, holder.id())
                    .map_err(|error| FetchError::Offence(Offence::Unreachable, format!("{address}: {error}")))?;
                let connection = Pooled { client, streams: Arc::default() };
                connected.connections.push(connection.clone());
                connection
            }
        };
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Lent(connection))
    }

    /// Forgets a connection on which a stream has stalled: it may be dead, and what is still on its way is not wanted.
    /// Other streams that it carries go on.
    pub(super) fn discard(&self, holder: PeerId, lent: &Lent) {
        if let Some(connected) = self.lock().get_mut(&holder) {
            connected.connections.retain(|connection| !Arc::ptr_eq(&connection.streams, &lent.0.streams));
        }
    }

    /// Forgets the connections to a peer, unless one is in use.
    pub(super) fn forget(&self, peer: PeerId) {
        let mut holders = self.lock();
        if holders.get(&peer).is_some_and(Connected::is_idle) {
            holders.remove(&peer);
        }
    }

    /// Closes every connection that carries nothing.
    pub(super) fn close_idle(&self) {
        self.lock().retain(|_, connected| {
            connected.connections.retain(|connection| !connection.is_idle());
            !connected.connections.is_empty()
        });
    }
}
