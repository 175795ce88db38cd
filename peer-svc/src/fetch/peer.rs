//! One chunk from one holder: a gRPC stream in, a verified chunk or a failure out.
//!
//! Invariants: a fetch ends, for every wait has a limit; a failure says whose fault it is; what came is
//! checked before anyone else sees it. No file is touched here, and nothing is decided: which chunk comes
//! from whom is the scheduler's business.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use drizzle_engine::schedule::Offence;
use drizzle_proto::{ChunkIndex, Manifest, PeerInfo, limits::MESSAGE_SIZE, net::transport::CONNECT_TIMEOUT};
use tonic::{Code, Status};

use super::pool::Connections;
use crate::verify::{Mismatch, VerifiedChunk, Verifier};

/// A holder that sends no byte for this long has stalled.
pub const STALL: Duration = Duration::from_secs(4);

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

impl Connections {
    /// Fetches one chunk and verifies it. `received` counts its bytes as they come.
    pub async fn fetch(
        &self,
        manifest: &Manifest,
        chunk: ChunkIndex,
        peer: &PeerInfo,
        received: &AtomicU64,
    ) -> Result<VerifiedChunk, FetchError> {
        let mut lent = self.lend(peer)?;
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
