//! Listens to one neighbour of a download: which chunks it has, and which it gets.

use std::sync::Arc;

use drizzle_engine::neighbours::Silence;
use drizzle_proto::{FileId, PeerId, PeerInfo, client::ClientError, holder::ChunkNews};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Code;

use crate::fetch::connections::Connections;

/// What one neighbour said.
#[derive(Debug)]
pub(super) enum Heard {
    /// This, of its chunks.
    News(ChunkNews),
    /// Nothing more.
    Silence(Silence),
}

/// Passes on what a neighbour tells, as the nth listener, until it falls silent; that is passed on last. Whether the
/// chunks can be the file's is for the download to see.
pub(super) async fn listen(
    connections: Arc<Connections>,
    peer: PeerInfo,
    file: FileId,
    nth: u64,
    out: mpsc::Sender<(u64, PeerId, Heard)>,
) {
    let id = peer.id();
    let silence = match hear(&connections, &peer, file, nth, &out).await {
        Ok(()) => Silence::Complete,
        Err(error) => {
            tracing::debug!(peer = %peer.address(), %error, "a neighbour tells nothing more of its chunks");
            match error.code() {
                Code::Unimplemented => Silence::Unable,
                _ => Silence::Lost,
            }
        }
    };
    // The download may be over.
    let _ = out.send((nth, id, Heard::Silence(silence))).await;
}

async fn hear(
    connections: &Connections,
    peer: &PeerInfo,
    file: FileId,
    nth: u64,
    out: &mpsc::Sender<(u64, PeerId, Heard)>,
) -> Result<(), ClientError> {
    let mut client = connections.ear(peer)?;
    let mut news = client.watch_chunks(file, peer.id()).await?;
    while let Some(news) = news.next().await {
        if out.send((nth, peer.id(), Heard::News(news?))).await.is_err() {
            break;
        }
    }
    Ok(())
}
