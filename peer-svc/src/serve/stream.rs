//! One chunk on its way out: read when the transport has room for it, and taken as a body.
//!
//! What is in memory is read at once, on the thread that sends it. What is not is read on a thread that may block.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use drizzle_engine::slots::{Requester, Slots};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tonic::Status;

use super::{
    ServeError,
    choice::Choice,
    lock,
    message::{Buffers, Draft, Framed},
    slot::Hold,
};
use crate::{
    holdings::{Holdings, Readable},
    lanes::Lanes,
    limits::Gate,
    metrics::Metrics,
    store::read::{read_and_go_on, read_now},
    trust::Permit,
};

/// What every stream passes on its way out.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) holdings: Arc<Holdings>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) slots: Arc<Mutex<Slots>>,
    /// All that is sent goes through it. Requesters share a limit alike, however many streams each has.
    pub(super) gate: Arc<Gate<Requester>>,
    pub(super) buffers: Buffers,
    /// Bytes and chunks handed to the transport are counted there.
    pub(super) metrics: Arc<Metrics>,
}

/// What is sent.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) readable: Arc<Readable>,
    /// The chunk, if its first message is to name it.
    pub(super) named: Option<u32>,
    /// If it was chosen here.
    pub(super) choice: Option<Choice>,
    pub(super) requester: Requester,
    /// Whether it goes far.
    pub(super) is_far: bool,
    pub(super) permit: Permit,
}

/// The messages of a chunk; an error if it ends before the last of them.
pub(crate) struct ChunkStream {
    way: Way,
    upload: Upload,
    /// Where in the chunk the next message begins.
    at: u32,
    /// Until the last message is handed over.
    hold: Option<Arc<Hold>>,
    step: Step,
    /// The last frame, which says how it ended, was given.
    has_ended: bool,
}

/// What the next message waits for.
enum Step {
    /// For room in the transport.
    Room,
    /// For the limit, since then; what comes out is its length.
    Limit(Instant, Pin<Box<dyn Future<Output = u64> + Send>>),
    /// For the disk.
    Disk(JoinHandle<io::Result<Draft>>),
}

impl std::fmt::Debug for ChunkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStream").field("upload", &self.upload).field("at", &self.at).finish_non_exhaustive()
    }
}

impl ChunkStream {
    pub(super) fn new(way: Way, upload: Upload, offset: u32, hold: Arc<Hold>) -> Self {
        Self { way, upload, at: offset, hold: Some(hold), step: Step::Room, has_ended: false }
    }

    /// The thread that reads its next message panics.
    #[cfg(test)]
    pub(super) fn panics(&mut self) {
        self.step = Step::Disk(tokio::task::spawn_blocking(|| panic!("on purpose")));
    }

    /// The length of the next message, once it may go.
    fn poll_len(&mut self, hold: &Hold, context: &mut Context<'_>) -> Poll<u32> {
        let left = self.upload.readable.len - self.at;
        let len = loop {
            match &mut self.step {
                Step::Limit(since, waits) => {
                    let len = ready!(waits.as_mut().poll(context));
                    hold.was_limited(since.elapsed());
                    break len;
                }
                _ => match self.way.gate.message_now(left.into()) {
                    Some(len) => break len,
                    None => {
                        let (gate, requester) = (self.way.gate.clone(), self.upload.requester);
                        hold.is_limited();
                        let waits = async move { gate.message(requester, 1, left.into(), || {}).await };
                        self.step = Step::Limit(Instant::now(), Box::pin(waits));
                    }
                },
            }
        };
        self.step = Step::Room;
        Poll::Ready(u32::try_from(len).unwrap_or(left).clamp(1, left))
    }

    /// Reads a message of so many bytes, as far as it is in memory.
    fn begin(&mut self, len: u32) -> io::Result<Draft> {
        let (readable, offset) = (&self.upload.readable, self.offset());
        let mut draft = self.way.buffers.draft(self.upload.named.take(), len as usize);
        while !draft.missing().is_empty() {
            let at = offset + draft.has() as u64;
            match read_now(&readable.file, readable.in_memory, draft.missing(), at) {
                Ok(read) => draft.filled(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(draft)
    }

    /// Where in the file the next message begins.
    fn offset(&self) -> u64 {
        self.upload.readable.offset + u64::from(self.at)
    }

    /// Reads the rest of a message on a thread that may block.
    fn go_on(&self, mut draft: Draft, hold: &Arc<Hold>) -> JoinHandle<io::Result<Draft>> {
        let (readable, holdings) = (self.upload.readable.clone(), self.way.holdings.clone());
        let from = self.offset() + draft.has() as u64;
        let end = readable.offset + u64::from(readable.len);
        hold.reads();
        // A read that hangs keeps its thread, and not the slot.
        self.way.lanes.uploads.run(move || {
            let behind = end - from - draft.missing().len() as u64;
            let mut read = || read_and_go_on(&readable.file, draft.missing(), from, behind);
            match &readable.path {
                Some(path) => holdings.calls().run(path, read)?,
                None => read()?,
            }
            draft.filled(usize::MAX);
            Ok(draft)
        })
    }

    fn poll_draft(&mut self, hold: &Arc<Hold>, context: &mut Context<'_>) -> Poll<Result<Draft, Status>> {
        let cannot = |error: io::Error| Status::internal(format!("cannot read: {error}"));
        loop {
            if let Step::Disk(reading) = &mut self.step {
                let read = ready!(Pin::new(reading).poll(context)).map_err(ServeError::of_task)?;
                self.step = Step::Room;
                return Poll::Ready(read.map_err(cannot));
            }
            let len = ready!(self.poll_len(hold, context));
            let mut draft = self.begin(len).map_err(cannot)?;
            if draft.missing().is_empty() {
                return Poll::Ready(Ok(draft));
            }
            self.step = Step::Disk(self.go_on(draft, hold));
        }
    }
}

impl Drop for ChunkStream {
    fn drop(&mut self) {
        // Closing a file may wait for its disk.
        let readable = self.upload.readable.clone();
        if !readable.in_memory && Arc::strong_count(&readable.file) == 1 {
            self.way.lanes.uploads.run(move || drop(readable));
        }
    }
}

impl Stream for ChunkStream {
    type Item = Result<Framed, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        let Some(hold) = stream.hold.clone() else { return Poll::Ready(None) };
        // Ended early: OK would pass for a short chunk.
        let draft = if hold.is_given_up() {
            Err(Status::aborted("the receiver took too little for too long"))
        } else if let Err(refused) = stream.upload.permit.still() {
            Err(refused.into())
        } else {
            ready!(stream.poll_draft(&hold, context))
        };
        let draft = match draft {
            Ok(draft) => draft,
            Err(status) => {
                stream.hold = None;
                return Poll::Ready(Some(Err(status)));
            }
        };
        let (message, now) = (draft.seal(&hold), Instant::now());
        stream.at += u32::try_from(message.data).unwrap_or(u32::MAX);
        let is_last = stream.at >= stream.upload.readable.len;
        hold.moved(message.data, is_last, now);
        lock(&stream.way.slots).sent(message.data, now);
        let sent = &stream.way.metrics.sent;
        sent.bytes(stream.upload.is_far, message.data);
        if is_last {
            sent.chunk(stream.upload.is_far);
            stream.upload.choice.iter_mut().for_each(Choice::keep);
            stream.hold = None;
        }
        Poll::Ready(Some(Ok(message)))
    }
}

impl Body for ChunkStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.as_mut().poll_next(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message.bytes)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.has_ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}
