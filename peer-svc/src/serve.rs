//! The Peer service: chunks for other peers, through a bounded number of upload slots.
//!
//! Which request gets a slot is decided by [`drizzle_engine::slots`], and when a receiver is too slow to keep one
//! by [`drizzle_engine::pace`]; here are the streams around these decisions. A slot is free again the moment its
//! last byte is handed to the transport. Reading happens on blocking threads.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use drizzle_engine::{
    pace::{self, Pace, Verdict},
    slots::{Answer, Grant, Requester, Slots},
};
use drizzle_proto::{FileId, PeerId, WireError, convert, limits::MESSAGE_SIZE, wire};
use tokio::{runtime::Handle, sync::mpsc, task::JoinError};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::{
    holdings::{Holdings, ReadError, Readable},
    store::read::read_exact,
};

/// Messages read ahead of the transport.
const READ_AHEAD: usize = 2;

/// Why a chunk is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
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
    /// No slot is free for this requester.
    #[error("all {0} upload slots are taken, or kept for a peer that waits; ask another holder, or again shortly")]
    Busy(usize),
    /// The daemon stops.
    #[error("the peer is shutting down")]
    Stopping,
    /// The reading task panicked; the log has its text.
    #[error("internal error: reading the chunk panicked")]
    Panicked,
}

impl ServeError {
    fn of_task(error: JoinError) -> Self {
        if error.is_panic() { Self::Panicked } else { Self::Stopping }
    }
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
            ServeError::Read(ReadError::Io(_)) | ServeError::Panicked => Status::internal(text),
            ServeError::Busy(_) => Status::resource_exhausted(text),
            ServeError::Stopping => Status::unavailable(text),
        }
    }
}

/// Everything that is uploaded by this peer.
#[derive(Debug)]
pub(crate) struct Uploads {
    holdings: Arc<Holdings>,
    slots: Arc<Mutex<Slots>>,
    sent: Arc<AtomicU64>,
}

/// What a monitor may ask of the uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UploadCounts {
    /// Upload slots.
    pub(crate) slots: usize,
    /// Slots that are taken.
    pub(crate) taken: usize,
    /// Bytes handed to the transport since the start.
    pub(crate) sent: u64,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkRequest {
    pub(crate) file: FileId,
    pub(crate) chunk: u32,
    /// Bytes of the chunk that are not wanted.
    pub(crate) offset: u32,
    pub(crate) requester: Requester,
}

impl TryFrom<wire::FetchChunkRequest> for ChunkRequest {
    type Error = WireError;

    fn try_from(request: wire::FetchChunkRequest) -> Result<Self, WireError> {
        let requester = match request.requester.as_str() {
            "" => None,
            id => Some(id.parse::<PeerId>()?),
        };
        let file = convert::file_id(&request.file_id)?;
        Ok(Self { file, chunk: request.chunk, offset: request.offset, requester })
    }
}

/// A slot that is taken; free again when dropped.
#[derive(Debug)]
struct Slot {
    slots: Arc<Mutex<Slots>>,
    requester: Requester,
    grant: Option<Grant>,
}

impl Slot {
    /// Whether another peer was refused for want of a slot.
    fn is_wanted(&self) -> bool {
        lock(&self.slots).others_wait(self.requester, Instant::now())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            lock(&self.slots).release(grant);
        }
    }
}

/// No change of the slots can panic half-way.
fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Uploads {
    /// With this many slots, at least one.
    pub(crate) fn new(holdings: Arc<Holdings>, slots: usize) -> Self {
        Self { holdings, slots: Arc::new(Mutex::new(Slots::new(slots))), sent: Arc::default() }
    }

    /// How many slots there are and are taken, and what was sent.
    pub(crate) fn counts(&self) -> UploadCounts {
        let slots = lock(&self.slots);
        UploadCounts { slots: slots.count(), taken: slots.taken(), sent: self.sent.load(Ordering::Relaxed) }
    }

    fn take_slot(&self, requester: Requester) -> Result<Slot, ServeError> {
        let mut slots = lock(&self.slots);
        let answer = slots.ask(requester, Instant::now());
        tracing::trace!(target: "drizzle::decisions", ?requester, ?answer, taken = slots.taken(), "upload slot");
        match answer {
            Answer::Granted(grant) => Ok(Slot { slots: self.slots.clone(), requester, grant: Some(grant) }),
            Answer::Busy => Err(ServeError::Busy(slots.count())),
        }
    }

    /// Begins to stream a chunk from an offset to its end.
    pub(crate) async fn open(&self, request: ChunkRequest) -> Result<ChunkStream, ServeError> {
        let ChunkRequest { file, chunk, offset, requester } = request;
        let slot = self.take_slot(requester)?;
        let holdings = self.holdings.clone();
        let opened = tokio::task::spawn_blocking(move || holdings.open_chunk(file, chunk)).await;
        let readable = opened.map_err(ServeError::of_task)??;
        if offset >= readable.len {
            return Err(ServeError::Offset { offset, len: readable.len });
        }
        let left = readable.len - offset;
        let (sender, messages) = mpsc::channel(READ_AHEAD);
        let runtime = Handle::current();
        // The reader holds the slot and not the stream: a stream that nobody polls would keep it.
        tokio::task::spawn_blocking(move || read_ahead(&runtime, &readable, offset, &sender, slot));
        Ok(ChunkStream { messages, left: left.into(), sent: self.sent.clone() })
    }
}

type Message = Result<Bytes, Status>;

/// Reads the rest of a chunk into the channel until it ends or the receiver gives it no more room.
fn read_ahead(runtime: &Handle, readable: &Readable, offset: u32, sender: &mpsc::Sender<Message>, slot: Slot) {
    let mut pace = Pace::new(pace::SENDING, Instant::now());
    let mut at = offset;
    while at < readable.len {
        let len = MESSAGE_SIZE.min((readable.len - at) as usize);
        let message = read_exact(&readable.file, readable.offset + u64::from(at), len)
            .map_err(|error| Status::internal(format!("cannot read: {error}")));
        let failed = message.is_err();
        let Some(permit) = runtime.block_on(room(sender, 1, &mut pace, &slot)).and_then(|mut room| room.next()) else {
            return;
        };
        permit.send(message);
        if failed {
            return;
        }
        pace.moved(len as u64, Instant::now());
        at += u32::try_from(len).unwrap_or(u32::MAX);
    }
    // All is read, not all is taken.
    let _ = runtime.block_on(room(sender, READ_AHEAD, &mut pace, &slot));
}

/// Waits for room in the channel; `None` if the stream is gone, or its receiver is too slow to keep the slot.
async fn room<'a>(
    sender: &'a mpsc::Sender<Message>,
    messages: usize,
    pace: &mut Pace,
    slot: &Slot,
) -> Option<mpsc::PermitIterator<'a, Message>> {
    let reserve = sender.reserve_many(messages);
    tokio::pin!(reserve);
    loop {
        match tokio::time::timeout_at(pace.next_look().into(), &mut reserve).await {
            Ok(room) => return room.ok(),
            Err(_) => match pace.look(Instant::now()) {
                Verdict::Fine => {}
                Verdict::Drips(_) if !slot.is_wanted() => {}
                Verdict::Silent | Verdict::Drips(_) => return None,
            },
        }
    }
}

/// The bytes of a chunk; an error if the reader gave up before the last of them.
#[derive(Debug)]
pub(crate) struct ChunkStream {
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
                Some(Err(Status::aborted("the receiver took too little for too long")))
            }
            None => None,
        })
    }
}

/// The gRPC adapter.
#[derive(Debug, Clone)]
pub(crate) struct PeerService(pub(crate) Arc<Uploads>);

#[tonic::async_trait]
impl wire::peer_server::Peer for PeerService {
    type FetchChunkStream = ChunkStream;

    async fn fetch_chunk(&self, request: Request<wire::FetchChunkRequest>) -> Result<Response<ChunkStream>, Status> {
        let request = request.into_inner().try_into()?;
        Ok(Response::new(self.0.open(request).await?))
    }
}
