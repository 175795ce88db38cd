//! What a peer asks of another one.

use prost::{
    Message as _,
    bytes::{BufMut as _, Bytes, BytesMut},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Status};

use super::{ChunkStream, ClientError, call};
use crate::{
    Address, ChunkIndex, FileId, PeerId,
    convert::WireError,
    holder::ChunkNews,
    net::{chunk_message::FETCH_CHUNK, line::Line, tls::Meant, transport::Transport, wary::Wary},
    ticket,
    wire::{self, peer_client},
};

/// Names the peer that answers, in the trailers of a refusal because another one was meant: see `peer.proto`.
pub const PEER_ID_TRAILER: &str = "drizzle-peer-id";

/// In the trailers of NOT_FOUND if the file was held and is no longer there: see `peer.proto`.
pub const GONE_TRAILER: &str = "drizzle-gone";

/// What is asked of a peer.
#[derive(Debug, Clone, Copy)]
pub struct ChunkWish<'a> {
    /// The content.
    pub file: FileId,
    /// What is wanted of it.
    pub chunk: ChunkIndex,
    /// What would do as well, with an offset of 0; at most [`MAX_ALTERNATIVES`](crate::limits::MAX_ALTERNATIVES).
    pub alternatives: &'a [ChunkIndex],
    /// Bytes of the chunk that are here already.
    pub offset: u32,
    /// The peer that asks.
    pub requester: PeerId,
    /// The peer that is meant, and no other at its address.
    pub holder: PeerId,
    /// Chunks that come to the requester at present, if it says so.
    pub receiving: Option<u32>,
    /// Whether the holder is far, by the labels.
    pub is_far: bool,
}

/// Asks one other peer for chunks, and what it has. Cheap to clone; connects when first used, for either by itself.
#[derive(Debug, Clone)]
pub struct PeerClient {
    transport: Transport,
    address: Address,
    holder: PeerId,
    line: Line,
    /// For what is not asked as often as chunks are; made when it is.
    channel: Option<Wary>,
}

impl PeerClient {
    /// A client of this peer, over connections of its own, whose tasks run where this is called.
    pub fn new(transport: &Transport, address: &Address, holder: PeerId) -> Result<Self, tonic::transport::Error> {
        let (transport, address) = (transport.clone(), address.clone());
        let line = transport.line(&address, Meant::Peer(holder))?;
        Ok(Self { transport, address, holder, line, channel: None })
    }

    /// Every byte that came with chunks over this client's connection so far, also of messages that are not whole yet.
    pub fn received(&self) -> u64 {
        self.line.received()
    }

    /// Streams a chunk, or one of its alternatives, which its first bytes then name. The bytes are as untrusted as their
    /// sender; the caller bounds the wait for them.
    ///
    /// The call is made by hand, the same on the wire as the generated client's, which would copy every byte once more.
    pub async fn fetch_chunk(&mut self, wish: ChunkWish<'_>) -> Result<ChunkStream, Status> {
        let message = wire::FetchChunkRequest {
            file_id: wish.file.to_string(),
            chunk: wish.chunk.get(),
            offset: wish.offset,
            requester: wish.requester.to_string(),
            holder: wish.holder.to_string(),
            alternatives: wish.alternatives.iter().map(|chunk| chunk.get()).collect(),
            receiving: wish.receiving,
            far: wish.is_far,
        };
        ChunkStream::new(self.line.call(FETCH_CHUNK, framed(&message)).await?)
    }

    /// Which chunks of a file `holder` has, and which it gets.
    pub async fn watch_chunks(
        &mut self,
        file: FileId,
        holder: PeerId,
    ) -> Result<impl Stream<Item = Result<ChunkNews, ClientError>> + Unpin + Send + use<>, ClientError> {
        let mut request =
            Request::new(wire::WatchChunksRequest { file_id: file.to_string(), holder: holder.to_string() });
        if let Some(ticket) = self.transport.pass().metadata() {
            request.metadata_mut().insert_bin(ticket::HEADER, ticket);
        }
        let channel = match &self.channel {
            Some(channel) => channel,
            None => {
                let new = self.transport.connect_lazy(&self.address, Meant::Peer(self.holder));
                self.channel.insert(Wary::new(new.map_err(|error| Status::unavailable(error.to_string()))?))
            }
        };
        let stream = call(peer_client::PeerClient::new(channel.clone()).watch_chunks(request)).await?;
        Ok(stream.map(|message| {
            let message = message?;
            let chunks = message.chunks.ok_or(WireError::Missing("chunks"))?.try_into()?;
            Ok(if message.reset { ChunkNews::All(chunks) } else { ChunkNews::More(chunks) })
        }))
    }
}

/// A request's only message, not compressed.
fn framed(message: &wire::FetchChunkRequest) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + len);
    bytes.put_u8(0);
    // A thousand alternatives take some KiB.
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}
