//! One chunk from one holder: a gRPC stream in, a verified chunk or a failure out.
//!
//! Invariants: a fetch ends, for every wait has a limit; a failure says whose fault it is; what came is
//! checked before anyone else sees it. No file is touched here, and nothing is decided: which chunk comes
//! from whom is the scheduler's business.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use drizzle_proto::{
    Address, ChunkIndex, Manifest, PeerId,
    client::PeerClient,
    transport::{CONNECT_TIMEOUT, MESSAGE_SIZE},
};
use tonic::{Code, Status};

use crate::{
    schedule::Offence,
    verify::{Mismatch, VerifiedChunk, Verifier},
};

/// A holder that sends no byte for this long has stalled.
pub const STALL: Duration = Duration::from_secs(4);

/// Connections to one holder at once: four streams over four connections are a fifth faster than over
/// one, because each connection has a task and a socket buffer of its own.
const CONNECTIONS: usize = 4;

/// Holders that are kept connected though nothing is asked of them.
const IDLE_HOLDERS: usize = 64;

/// Within each [`STALL`] a holder has to send this many bytes: one that drips holds up a chunk as well as
/// one that sends nothing.
const LEAST_BYTES: u64 = 4 << 10;

/// Why a chunk did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Every upload slot of the holder is taken: nobody's fault.
    #[error("busy")]
    Busy,
    /// The holder is to blame.
    #[error("{}", .1)]
    Offence(Offence, String),
}

impl FetchError {
    fn status(status: &Status) -> Self {
        let offence = match status.code() {
            Code::ResourceExhausted => return Self::Busy,
            Code::DataLoss => Offence::Changed,
            Code::NotFound | Code::FailedPrecondition | Code::OutOfRange => Offence::NotHeld,
            // The transport's own errors: no connection, connection lost.
            Code::Unavailable => Offence::Unreachable,
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => Offence::BrokeOff,
            _ => Offence::Refused,
        };
        // A remote text is cut: it goes to logs and reports.
        Self::Offence(offence, status.message().chars().filter(|c| !c.is_control()).take(200).collect())
    }
}

impl FetchError {
    /// A status that ends a stream which had begun: the holder was reached and had the chunk.
    fn in_stream(status: &Status) -> Self {
        match Self::status(status) {
            Self::Offence(Offence::Unreachable, text) => Self::Offence(Offence::BrokeOff, text),
            Self::Offence(Offence::NotHeld, text) => Self::Offence(Offence::Refused, text),
            Self::Busy => Self::Offence(Offence::Refused, "said busy in the middle of a chunk".to_owned()),
            other => other,
        }
    }
}

/// Connections to holders, made when first used and closed with the last handle. One per download.
#[derive(Debug, Default)]
pub struct Connections {
    pool: Mutex<HashMap<PeerId, (Address, Vec<Connection>)>>,
}

#[derive(Debug, Clone)]
struct Connection {
    client: PeerClient,
    streams: Arc<AtomicUsize>,
}

/// One stream's share of a connection.
#[derive(Debug)]
struct Lent(Connection);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// The least used connection to a holder, or a new one while there are few.
    fn lend(&self, peer: PeerId, address: &Address) -> Result<Lent, FetchError> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() >= IDLE_HOLDERS && !pool.contains_key(&peer) {
            // A large swarm must not cost a socket for everybody who was ever asked.
            pool.retain(|_, (_, connections)| connections.iter().any(|c| c.streams.load(Ordering::Relaxed) > 0));
        }
        let (known_address, connections) = pool.entry(peer).or_insert_with(|| (address.clone(), Vec::new()));
        if known_address != address {
            // The peer moved: what is open to its old address serves out.
            *known_address = address.clone();
            connections.clear();
        }
        let least = connections.iter().min_by_key(|connection| connection.streams.load(Ordering::Relaxed)).cloned();
        let connection = match least {
            Some(idle) if idle.streams.load(Ordering::Relaxed) == 0 || connections.len() >= CONNECTIONS => idle,
            _ => {
                let client = PeerClient::new(address)
                    .map_err(|error| FetchError::Offence(Offence::Unreachable, format!("{address}: {error}")))?;
                let connection = Connection { client, streams: Arc::default() };
                connections.push(connection.clone());
                connection
            }
        };
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Lent(connection))
    }

    /// Forgets the connections to a peer that is gone.
    pub fn forget(&self, peer: PeerId) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    /// Fetches one chunk and verifies it. `received` counts its bytes as they come.
    pub async fn fetch(
        &self,
        manifest: &Manifest,
        chunk: ChunkIndex,
        peer: PeerId,
        address: &Address,
        received: &AtomicU64,
    ) -> Result<VerifiedChunk, FetchError> {
        let mut lent = self.lend(peer, address)?;
        let begin = lent.0.client.fetch_chunk(manifest.id(), chunk, 0);
        let mut stream = within(CONNECT_TIMEOUT + STALL, begin).await?.map_err(|status| FetchError::status(&status))?;
        let mut verifier = Verifier::new(manifest, chunk);
        let (mut window, mut in_window) = (Instant::now(), 0);
        while let Some(message) =
            within(STALL, stream.message()).await?.map_err(|status| FetchError::in_stream(&status))?
        {
            if message.data.is_empty() || message.data.len() > MESSAGE_SIZE {
                return Err(FetchError::Offence(
                    Offence::Refused,
                    format!("sent a message of {} bytes", message.data.len()),
                ));
            }
            received.fetch_add(message.data.len() as u64, Ordering::Relaxed);
            in_window += message.data.len() as u64;
            if window.elapsed() >= STALL {
                if in_window < LEAST_BYTES {
                    return Err(stalled(format!("{in_window} bytes in {} s", STALL.as_secs())));
                }
                (window, in_window) = (Instant::now(), 0);
            }
            verifier.push(message.data).map_err(blame)?;
        }
        verifier.finish().map_err(blame)
    }
}

fn blame(mismatch: Mismatch) -> FetchError {
    let offence = match mismatch {
        Mismatch::TooShort { .. } => Offence::BrokeOff,
        Mismatch::TooLong(_) | Mismatch::Hash => Offence::WrongBytes,
        Mismatch::Fragmented => Offence::Refused,
    };
    FetchError::Offence(offence, mismatch.to_string())
}

async fn within<T>(limit: Duration, wait: impl Future<Output = T>) -> Result<T, FetchError> {
    tokio::time::timeout(limit, wait).await.map_err(|_| stalled(format!("no byte for {} s", limit.as_secs())))
}

fn stalled(detail: String) -> FetchError {
    FetchError::Offence(Offence::Stalled, detail)
}
