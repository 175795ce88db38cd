//! One chunk on its way out: read ahead on a thread that may block, taken by the transport as a body.
//!
//! The slot of the stream hangs on each [`message`](super::message): so it is held until the socket has accepted the
//! chunk's last byte, and not only until HTTP/2 has put it into a queue. Freed at the queue, slots would bind most of a
//! file in buffers before the first receiver has a chunk to pass on.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use drizzle_engine::{
    calls::LATE,
    pace::{Pace, Verdict},
    slots::{Requester, Slots},
};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use tokio_stream::Stream;
use tonic::Status;

use super::{
    ServeError, Slot,
    choice::Choice,
    lock,
    message::{Framed, message},
};
use crate::{
    holdings::Readable,
    limits::Gate,
    store::{calls::Calls, read::append_exact},
};

/// Messages read ahead of the transport.
pub(super) const READ_AHEAD: usize = 3;

/// After the last message was handed over, the transport may keep its slot for this long: a receiver that reads nothing
/// leaves it to others. What it has not taken stays in the transport, which bounds it.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// The end of a stream where its bytes come from, with its slot. Reading may hang, which costs its thread, but is not to
/// cost the slot.
#[derive(Debug)]
pub(super) struct Reader {
    slot: Mutex<Option<Slot>>,
    waits: Mutex<Waits>,
}

/// What the reader waits for.
#[derive(Debug, Clone, Copy)]
enum Waits {
    /// For the receiver.
    Room,
    /// For the disk, since then.
    Disk(Instant),
    /// For the transport, which was given the last message then.
    Taken(Instant),
}

impl Reader {
    pub(super) fn new(slot: Slot) -> Self {
        Self { slot: Mutex::new(Some(slot)), waits: Mutex::new(Waits::Room) }
    }

    fn waits(&self, waits: Waits) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = waits;
    }

    /// Reads the next message, from an offset in the file.
    fn read(
        &self,
        calls: &Calls,
        readable: &Readable,
        (offset, len): (u64, usize),
        named: Option<u32>,
        hold: Arc<Hold>,
    ) -> std::io::Result<Framed> {
        let read = || message(named, len, &hold, |buffer| append_exact(&readable.file, offset, len, buffer));
        self.waits(Waits::Disk(Instant::now()));
        let message = match &readable.path {
            Some(path) => calls.run(path, read),
            None => read(),
        };
        self.waits(Waits::Room);
        message
    }

    /// Whether its slot is to be had by others: what it waits for takes too long.
    pub(super) fn hangs(&self, now: Instant) -> bool {
        match *self.waits.lock().unwrap_or_else(PoisonError::into_inner) {
            Waits::Room => false,
            Waits::Disk(since) => now.saturating_duration_since(since) >= LATE,
            Waits::Taken(since) => now.saturating_duration_since(since) >= TAKEN_WITHIN,
        }
    }

    /// Whether another peer was refused for want of a slot.
    fn is_wanted(&self) -> bool {
        self.slot().as_ref().is_some_and(Slot::is_wanted)
    }

    pub(super) fn slot(&self) -> MutexGuard<'_, Option<Slot>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the messages of a stream have in common: with the last of them the slot is free.
struct Hold(Arc<Reader>);

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.0.slot().take());
    }
}

/// What the bytes of a stream pass on their way out.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) slots: Arc<Mutex<Slots>>,
    pub(super) gate: Arc<Gate<Requester>>,
    /// Requesters share the limit alike, however many streams each has.
    pub(super) requester: Requester,
}

impl Way {
    /// Waits until a message of what is left may go: its length, and how long that took. `None` if the stream is gone
    /// before.
    async fn pass(&self, left: u32, sender: &mpsc::Sender<Message>) -> Option<(u32, Duration)> {
        let mut waits_since = None;
        let must_wait = || waits_since = waits_since.or_else(|| Some(Instant::now()));
        let passed = tokio::select! {
            biased;
            passed = self.gate.message(self.requester, 1, left.into(), must_wait) => passed,
            () = sender.closed() => return None,
        };
        let waited = waits_since.map(|since| since.elapsed()).unwrap_or_default();
        Some((u32::try_from(passed).unwrap_or(left), waited))
    }
}

pub(super) type Message = Result<Framed, Status>;

/// Reads the rest of a chunk into the channel until it ends or the receiver gives it no more room.
#[expect(clippy::too_many_arguments, reason = "what one stream consists of")]
pub(super) fn read_ahead(
    runtime: &Handle,
    calls: &Calls,
    readable: &Readable,
    mut named: Option<u32>,
    offset: u32,
    sender: &mpsc::Sender<Message>,
    reader: &Arc<Reader>,
    mut pace: Pace,
    way: &Way,
) {
    let mut at = offset;
    let hold = Arc::new(Hold(reader.clone()));
    while at < readable.len {
        let permit = runtime.block_on(room(sender, 1, &mut pace, reader)).and_then(|mut room| room.next());
        // How long a message is follows from the limit at the moment in which it may go.
        let passed = permit.and_then(|permit| Some((permit, runtime.block_on(way.pass(readable.len - at, sender))?)));
        let Some((permit, (len, waited))) = passed else {
            // Whatever is still on its way.
            return drop(reader.slot().take());
        };
        // A receiver is not slow while nothing is sent to it.
        pace.held_up(waited, Instant::now());
        let message = reader
            .read(calls, readable, (readable.offset + u64::from(at), len as usize), named.take(), hold.clone())
            .map_err(|error| Status::internal(format!("cannot read: {error}")));
        let failed = message.is_err();
        permit.send(message);
        if failed {
            return;
        }
        let now = Instant::now();
        pace.moved(len.into(), now);
        lock(&way.slots).sent(len.into(), now);
        at += len;
    }
    drop(hold);
    // All is read, not all is taken.
    match runtime.block_on(room(sender, READ_AHEAD, &mut pace, reader)) {
        Some(_) => reader.waits(Waits::Taken(Instant::now())),
        None => drop(reader.slot().take()),
    }
}

/// Waits for room in the channel; `None` if the stream is gone, or its receiver is too slow to keep the slot.
async fn room<'a>(
    sender: &'a mpsc::Sender<Message>,
    messages: usize,
    pace: &mut Pace,
    reader: &Reader,
) -> Option<mpsc::PermitIterator<'a, Message>> {
    let reserve = sender.reserve_many(messages);
    tokio::pin!(reserve);
    loop {
        match tokio::time::timeout_at(pace.next_look().into(), &mut reserve).await {
            Ok(room) => return room.ok(),
            Err(_) => match pace.look(Instant::now()) {
                Verdict::Fine => {}
                Verdict::Drips(_) if !reader.is_wanted() => {}
                verdict @ (Verdict::Silent | Verdict::Drips(_)) => {
                    tracing::trace!(target: "drizzle::decisions", ?verdict, "upload given up");
                    return None;
                }
            },
        }
    }
}

/// The messages of a chunk; an error if the reader gave up before the last of them.
#[derive(Debug)]
pub(crate) struct ChunkStream {
    pub(super) messages: mpsc::Receiver<Message>,
    /// Reads the chunk from the disk into the channel.
    pub(super) reader: JoinHandle<()>,
    /// What is sent, if it was chosen here.
    pub(super) choice: Option<Choice>,
    /// Bytes of the chunk that are not handed over yet.
    pub(super) left: u64,
    pub(super) sent: Arc<AtomicU64>,
    /// The last frame, which says how it ended, was given.
    pub(super) ended: bool,
}

impl Stream for ChunkStream {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let message = std::task::ready!(self.messages.poll_recv(context));
        Poll::Ready(match message {
            Some(Ok(message)) => {
                self.left = self.left.saturating_sub(message.data);
                if self.left == 0 {
                    self.choice.iter_mut().for_each(Choice::keep);
                }
                self.sent.fetch_add(message.data, Ordering::Relaxed);
                Some(Ok(message))
            }
            Some(Err(status)) => Some(Err(status)),
            // Ended early: OK would pass for a short chunk.
            None if self.left > 0 => {
                let ended = std::task::ready!(Pin::new(&mut self.reader).poll(context));
                self.left = 0;
                Some(Err(match ended {
                    Ok(()) => Status::aborted("the receiver took too little for too long"),
                    Err(error) => ServeError::of_task(error).into(),
                }))
            }
            None => None,
        })
    }
}

impl Body for ChunkStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match std::task::ready!(self.as_mut().poll_next(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message.bytes)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
