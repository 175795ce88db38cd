//! One chunk from one holder: a gRPC stream in, a verified chunk or a failure out.
//!
//! Invariants: a fetch ends, for every wait has a limit; a failure says whose fault it is; what came is
//! checked before anyone else sees it. No file is touched here, and nothing is decided: which chunk comes
//! from whom is the scheduler's business.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use drizzle_engine::{
    pace::{self, Pace, Verdict},
    schedule::Offence,
};
use drizzle_proto::{ChunkIndex, Manifest, PeerInfo, limits::MESSAGE_SIZE, net::transport::CONNECT_TIMEOUT, wire};
use tonic::Streaming;

use super::{error::FetchError, pool::Connections};
use crate::verify::{VerifiedChunk, Verifier};

impl Connections {
    /// Fetches one chunk and verifies it. `received` counts its bytes as they come.
    pub(super) async fn fetch(
        &self,
        manifest: &Manifest,
        chunk: ChunkIndex,
        peer: &PeerInfo,
        received: &AtomicU64,
    ) -> Result<VerifiedChunk, FetchError> {
        let mut lent = self.lend(peer)?;
        let own = self.own();
        let begin = lent.0.client.fetch_chunk(manifest.id(), chunk, 0, own, peer.id());
        let begun = tokio::time::timeout(CONNECT_TIMEOUT + pace::RECEIVING.silence, begin).await;
        let begun = begun.map_err(|_| FetchError::silent())?;
        let mut stream = begun.map_err(|status| self.not_asked(FetchError::begun(&status, peer, own)))?;
        let mut verifier = Verifier::new(manifest, chunk);
        let mut pace = Pace::new(pace::RECEIVING, Instant::now());
        while let Some(message) = next_message(&mut stream, &mut pace).await? {
            if message.data.is_empty() || message.data.len() > MESSAGE_SIZE {
                let text = format!("sent a message of {} bytes", message.data.len());
                return Err(FetchError::Offence(Offence::Refused, text));
            }
            received.fetch_add(message.data.len() as u64, Ordering::Relaxed);
            pace.moved(message.data.len() as u64, Instant::now());
            verifier.push(message.data).map_err(FetchError::mismatch)?;
        }
        verifier.finish().map_err(FetchError::mismatch)
    }
}

/// The next message, as long as the stream keeps its pace; nothing at its end.
async fn next_message(
    stream: &mut Streaming<wire::FetchChunkResponse>,
    pace: &mut Pace,
) -> Result<Option<wire::FetchChunkResponse>, FetchError> {
    loop {
        if let Ok(message) = tokio::time::timeout_at(pace.next_look().into(), stream.message()).await {
            return message.map_err(|status| FetchError::in_stream(&status));
        }
        match pace.look(Instant::now()) {
            Verdict::Fine => {}
            Verdict::Silent => return Err(FetchError::silent()),
            Verdict::Drips(bytes) => return Err(FetchError::drips(bytes)),
        }
    }
}
