//! The Peer service: chunks for others, through a bounded number of upload slots.
//!
//! Few streams at full rate finish chunks sooner than many slow ones, and a finished chunk can be served
//! by someone else. So a request beyond the slots is told "busy" at once and asks elsewhere. A slot is
//! free again the moment its last byte is handed to the transport, and a receiver that takes nothing for
//! [`IDLE`] loses it. This module decides nothing about who deserves a slot.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use drizzle_proto::{FileId, convert, limits::MESSAGE_SIZE, wire};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::holdings::{Holdings, ReadError, Readable};
use crate::store::read::read_exact;

/// A receiver that takes no message for this long is dropped.
pub const IDLE: Duration = Duration::from_secs(10);
/// Messages read ahead of the transport.
const READ_AHEAD: usize = 2;

/// Why a chunk is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The offset is not below the chunk's length.
    #[error("offset {offset} is beyond the chunk's {len} bytes")]
    Offset {
        /// What was asked for.
        offset: u32,
        /// Bytes of the chunk.
        len: u32,
    },
    /// Every slot is taken.
    #[error("all {0} upload slots are taken; ask another holder, or again shortly")]
    Busy(usize),
    /// The reading task is gone: the daemon stops.
    #[error("the peer is shutting down")]
    Stopping,
}

/// The one table from errors to codes.
impl From<ServeError> for Status {
    fn from(error: ServeError) -> Self {
        let text = error.to_string();
        match error {
            ServeError::Read(ReadError::UnknownFile(_)) => Status::not_found(text),
            ServeError::Read(ReadError::NoSuchChunk { .. }) | ServeError::Offset { .. } => Status::out_of_range(text),
            ServeError::Read(ReadError::NotHeld(_)) => Status::failed_precondition(text),
            ServeError::Read(ReadError::Changed) => Status::data_loss(text),
            ServeError::Read(ReadError::Io(_)) => Status::internal(text),
            ServeError::Busy(_) => Status::resource_exhausted(text),
            ServeError::Stopping => Status::unavailable(text),
        }
    }
}

/// Everything that is uploaded by this peer.
#[derive(Debug)]
pub struct Uploads {
    holdings: Arc<Holdings>,
    slots: Arc<Semaphore>,
    slot_count: usize,
    sent: Arc<AtomicU64>,
}

impl Uploads {
    /// With this many slots, at least one.
    pub fn new(holdings: Arc<Holdings>, slots: usize) -> Self {
        let slot_count = slots.clamp(1, Semaphore::MAX_PERMITS);
        Self { holdings, slots: Arc::new(Semaphore::new(slot_count)), slot_count, sent: Arc::default() }
    }

    /// How many slots there are, and how many are taken.
    pub fn slots(&self) -> (usize, usize) {
        (self.slot_count, self.slot_count - self.slots.available_permits())
    }

    /// Bytes handed to the transport since the start.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Begins to stream a chunk from `offset` (bytes) to its end.
    pub async fn open(&self, file: FileId, chunk: u32, offset: u32) -> Result<ChunkStream, ServeError> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| ServeError::Busy(self.slot_count))?;
        let holdings = self.holdings.clone();
        let opened = tokio::task::spawn_blocking(move || holdings.open_chunk(file, chunk)).await;
        let readable = opened.map_err(|_| ServeError::Stopping)??;
        if offset >= readable.len {
            return Err(ServeError::Offset { offset, len: readable.len });
        }
        let left = readable.len - offset;
        let (sender, messages) = mpsc::channel(READ_AHEAD);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            read_ahead(&runtime, &readable, offset, &sender);
            // The reader holds the slot and not the stream: a stream that nobody polls would keep it.
            drop(slot);
        });
        Ok(ChunkStream { messages, left: left.into(), sent: self.sent.clone() })
    }
}

/// Reads the rest of a chunk into the channel until it ends or nobody takes it.
fn read_ahead(runtime: &Handle, readable: &Readable, offset: u32, sender: &mpsc::Sender<Result<Bytes, Status>>) {
    let mut at = offset;
    while at < readable.len {
        let len = MESSAGE_SIZE.min((readable.len - at) as usize);
        let message = read_exact(&readable.file, readable.offset + u64::from(at), len)
            .map_err(|error| Status::internal(format!("cannot read: {error}")));
        let failed = message.is_err();
        let sent = runtime.block_on(tokio::time::timeout(IDLE, sender.send(message)));
        if failed || !matches!(sent, Ok(Ok(()))) {
            return;
        }
        at += u32::try_from(len).unwrap_or(u32::MAX);
    }
    // All is read, not all is taken.
    let _ = runtime.block_on(tokio::time::timeout(IDLE, sender.reserve_many(READ_AHEAD)));
}

/// The bytes of a chunk; an error if the reader gave up before the last of them.
#[derive(Debug)]
pub struct ChunkStream {
    messages: mpsc::Receiver<Result<Bytes, Status>>,
    left: u64,
    sent: Arc<AtomicU64>,
}

impl Stream for ChunkStream {
    type Item = Result<wire::FetchChunkResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = std::task::ready!(self.messages.poll_recv(context));
        Poll::Ready(match message {
            Some(Ok(data)) => {
                self.left = self.left.saturating_sub(data.len() as u64);
                self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
                Some(Ok(wire::FetchChunkResponse { data }))
            }
            Some(Err(status)) => Some(Err(status)),
            // Ended early: OK would pass for a short chunk.
            None if self.left > 0 => {
                self.left = 0;
                Some(Err(Status::aborted("the receiver took nothing for too long")))
            }
            None => None,
        })
    }
}

/// The gRPC adapter.
#[derive(Debug, Clone)]
pub struct PeerService(pub Arc<Uploads>);

#[tonic::async_trait]
impl wire::peer_server::Peer for PeerService {
    type FetchChunkStream = ChunkStream;

    async fn fetch_chunk(&self, request: Request<wire::FetchChunkRequest>) -> Result<Response<ChunkStream>, Status> {
        let request = request.into_inner();
        let file = convert::file_id(&request.file_id)?;
        Ok(Response::new(self.0.open(file, request.chunk, request.offset).await?))
    }
}
