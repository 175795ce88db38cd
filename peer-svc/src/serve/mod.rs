//! The Peer service: chunks for other peers, through a bounded number of upload slots.
//!
//! | module | is |
//! |---|---|
//! | [`grpc`] | the wire |
//! | [`choice`] | which chunk that is |
//! | [`stream`] | one chunk on its way out |
//! | [`slot`] | how long it keeps its upload slot |
//! | [`message`] | a part of it, as the socket gets it |
//! | [`news`] | which chunks are held here, for neighbours |
//!
//! Which request gets a slot is decided by [`drizzle_engine::slots`], and when a receiver is too slow to keep one
//! by [`drizzle_engine::pace`]; when its bytes may go under a limit, by [`drizzle_engine::rate`]; here are the streams
//! around these decisions. A slot is free again once the socket has
//! accepted the chunk's last byte. What has to be read from a disk is read on threads that may block.

mod choice;
mod grpc;
mod message;
mod news;
mod slot;
mod stream;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use drizzle_engine::{
    calls::LATE,
    pace::{self, Pace},
    slots::{self, Answer, Requester, Slots},
};
use drizzle_proto::{
    FileId, PeerId, WireError,
    client::{GONE_TRAILER, PEER_ID_TRAILER},
    convert,
    limits::MAX_ALTERNATIVES,
    wire,
};
use tokio::{runtime::Handle, sync::watch, task::JoinError};
use tonic::{Status, metadata::MetadataValue};

use self::{
    choice::{Choice, Choices},
    message::Buffers,
    slot::{Holds, Slot, note_idle},
    stream::{Upload, Way},
};
pub(crate) use self::{
    grpc::{Peer, PeerService},
    news::NewsDesk,
    stream::ChunkStream,
};
use crate::{
    holdings::{Holdings, ReadError, Readable},
    lanes::Lanes,
    limits::Gate,
    metrics::Metrics,
    shortage::Shortage,
    trust::Permit,
};

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
    /// Too many peers want to be told which chunks are held.
    #[error("{0} peers listen for chunks already, which is as many as may; ask again later")]
    Listeners(usize),
    /// Opening it takes too long.
    #[error("the disk or network mount of the file does not answer")]
    Hangs,
    /// The requester means another peer, which tells this one's address.
    #[error("this is peer {own}, and not peer {meant}, which tells the same address: set --advertise on both")]
    OtherPeer {
        /// The id of this peer.
        own: PeerId,
        /// The peer that was asked for.
        meant: PeerId,
    },
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
            ServeError::Read(ReadError::Gone) => {
                let mut status = Status::not_found(text);
                status.metadata_mut().insert(GONE_TRAILER, MetadataValue::from_static("true"));
                status
            }
            ServeError::Read(ReadError::NoSuchChunk { .. }) | ServeError::Offset { .. } => Status::out_of_range(text),
            ServeError::Read(ReadError::NotHeld(_) | ReadError::InDoubt) => Status::failed_precondition(text),
            ServeError::Read(ReadError::Changed) => Status::data_loss(text),
            // As good as no slot: the caller goes elsewhere, and blames nobody.
            ServeError::Read(ReadError::Io(error)) if is_short(&error) => Status::resource_exhausted(text),
            ServeError::Read(ReadError::Io(_)) | ServeError::Hangs | ServeError::Panicked => Status::internal(text),
            ServeError::OtherPeer { own, .. } => {
                let mut status = Status::aborted(text);
                if let Ok(own) = own.to_string().parse() {
                    status.metadata_mut().insert(PEER_ID_TRAILER, own);
                }
                status
            }
            ServeError::Busy(_) | ServeError::Listeners(_) => Status::resource_exhausted(text),
            ServeError::Stopping => Status::unavailable(text),
        }
    }
}

fn is_short(error: &std::io::Error) -> bool {
    let shortage = Shortage::of_io(error);
    shortage.inspect(|shortage| shortage.say("serve chunks")).is_some()
}

/// Everything that is uploaded by this peer.
#[derive(Debug)]
pub(crate) struct Uploads {
    way: Way,
    idle: watch::Sender<bool>,
    choices: Choices,
    /// What is demanded of a receiver.
    limits: pace::Limits,
    holds: Holds,
}

/// What a monitor may ask of the uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UploadCounts {
    /// Slots that there are now; the number follows the uplink.
    pub(crate) slots: usize,
    /// Slots that are taken.
    pub(crate) taken: usize,
    /// Bytes handed to the transport since the start.
    pub(crate) sent: u64,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkRequest {
    pub(crate) file: FileId,
    pub(crate) chunk: u32,
    /// Chunks that would do as well.
    pub(crate) alternatives: Vec<u32>,
    /// Bytes of the chunk that are not wanted.
    pub(crate) offset: u32,
    /// For a slot.
    pub(crate) slot: slots::Request,
}

impl TryFrom<wire::FetchChunkRequest> for ChunkRequest {
    type Error = WireError;

    fn try_from(request: wire::FetchChunkRequest) -> Result<Self, WireError> {
        let requester = convert::optional_peer(&request.requester)?;
        let file = convert::file_id(&request.file_id)?;
        if request.alternatives.len() > MAX_ALTERNATIVES {
            return Err(WireError::Bounds("alternatives"));
        }
        let wire::FetchChunkRequest { chunk, alternatives, offset, receiving, far, .. } = request;
        let slot = slots::Request { requester, receiving, is_far: far };
        Ok(Self { file, chunk, alternatives, offset, slot })
    }
}

/// No change of the slots can panic half-way.
fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Uploads {
    /// With this many slots, at least one, these demands on each receiver, and this limit of all that is sent.
    pub(crate) fn new(
        holdings: Arc<Holdings>,
        lanes: Arc<Lanes>,
        slots: usize,
        limits: pace::Limits,
        gate: Arc<Gate<Requester>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let slots = Arc::new(Mutex::new(Slots::new(slots)));
        let holds = Holds::new(holdings.clone(), lanes.clone());
        let way = Way { holdings, lanes, slots, gate, buffers: Buffers::default(), metrics };
        let (idle, choices) = (watch::Sender::new(true), Choices::default());
        Self { way, idle, choices, limits, holds }
    }

    /// Whether no slot is taken, as it changes.
    pub(crate) fn idle(&self) -> watch::Receiver<bool> {
        self.idle.subscribe()
    }

    /// How many slots there are and are taken, and what was sent.
    pub(crate) fn counts(&self) -> UploadCounts {
        let slots = self.limited();
        UploadCounts {
            slots: slots.count().max(slots.taken()),
            taken: slots.taken(),
            sent: self.way.metrics.sent.all_bytes(),
        }
    }

    /// The slots, as many as there are under the present limit.
    fn limited(&self) -> MutexGuard<'_, Slots> {
        let limit = self.way.gate.limit();
        let mut slots = lock(&self.way.slots);
        slots.limit(limit);
        slots
    }

    fn take_slot(&self, request: slots::Request) -> Result<Slot, ServeError> {
        self.holds.look();
        let mut slots = self.limited();
        let answer = slots.ask(request, Instant::now());
        tracing::trace!(target: "drizzle::decisions", ?request, ?answer, taken = slots.taken(), "upload slot");
        match answer {
            Answer::Granted(grant) => {
                note_idle(&slots, &self.idle);
                Ok(Slot {
                    slots: self.way.slots.clone(),
                    idle: self.idle.clone(),
                    requester: request.requester,
                    grant: Some(grant),
                })
            }
            Answer::Busy => Err(ServeError::Busy(slots.count())),
        }
    }

    async fn open_file(&self, file: FileId, chunk: u32) -> Result<Readable, ServeError> {
        let (holdings, holds, runtime) = (self.way.holdings.clone(), self.holds.clone(), Handle::current());
        let opened = self.way.lanes.uploads.run(move || {
            let opened = holdings.open_chunk(file, chunk);
            // Whatever becomes of the request, the file is closed in time.
            holds.keep_looking(&runtime);
            opened
        });
        // The thread goes on; the slot is for a file that can be read.
        let opened = tokio::time::timeout(LATE, opened).await.map_err(|_| ServeError::Hangs)?;
        Ok(opened.map_err(ServeError::of_task)??)
    }

    /// Begins to stream a chunk from an offset to its end, for as long as that is permitted.
    pub(crate) async fn open(&self, request: ChunkRequest, permit: Permit) -> Result<ChunkStream, ServeError> {
        self.begin(request, permit).await.inspect_err(|error| self.way.metrics.refused(error))
    }

    /// A requester may not have what it asked for.
    pub(crate) fn not_permitted(&self) {
        self.way.metrics.not_permitted();
    }

    async fn begin(&self, request: ChunkRequest, permit: Permit) -> Result<ChunkStream, ServeError> {
        let ChunkRequest { file, offset, .. } = request;
        let (requester, is_far) = (request.slot.requester, request.slot.is_far);
        let slot = self.take_slot(request.slot)?;
        let whole = self.way.holdings.whole(file);
        let choice = whole.map(|count| self.choices.choose(&request, count)).transpose()?;
        let chunk = choice.as_ref().map_or(request.chunk, Choice::chunk);
        let named = (!request.alternatives.is_empty()).then_some(chunk);
        let readable = match self.way.holdings.open_chunk_now(file, chunk)? {
            Some(readable) => readable,
            None => self.open_file(file, chunk).await?,
        };
        if offset >= readable.len {
            return Err(ServeError::Offset { offset, len: readable.len });
        }
        lock(&self.way.slots).begins(readable.len.into());
        let hold = self.holds.begin(slot, Pace::new(self.limits, Instant::now()));
        let upload = Upload { readable: Arc::new(readable), named, choice, requester, is_far, permit };
        Ok(ChunkStream::new(self.way.clone(), upload, offset, hold))
    }
}

#[cfg(test)]
mod tests;
