//! One chunk from one holder: a gRPC stream in, a verified chunk or a failure out.
//!
//! Invariants: a fetch ends, for every wait has a limit; a failure says whose fault it is; what came is
//! checked before anyone else sees it. Nothing is decided here: which chunk comes from whom is the scheduler's
//! business.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use drizzle_engine::{
    pace::{self, Others, Pace, Verdict},
    schedule::{Fetch, Offence},
};
use drizzle_proto::{ChunkIndex, Manifest, client::ChunkWish};

use super::{
    Choice, FetchFailure, Gauges,
    connections::Connections,
    error::FetchError,
    intake::Intake,
    parts::{Begun, Parts},
    pool::{Lent, Pool, Pooled},
};
use crate::verify::VerifiedChunk;

/// Writing or hashing some bytes takes less than this, or the holder is not to blame for the time.
const AT_ONCE: Duration = Duration::from_millis(5);

/// What one fetch is made with.
pub(super) struct Asked<'a> {
    pub(super) connections: &'a Connections,
    /// The connections of the thread that it runs on.
    pub(super) pool: &'a Pool,
    pub(super) manifest: &'a Manifest,
    pub(super) fetch: &'a Fetch,
    pub(super) is_far: bool,
    /// Connections that there may be to the holder.
    pub(super) most_connections: usize,
    pub(super) parts: &'a Arc<Parts>,
    pub(super) gauges: &'a Gauges,
    pub(super) intake: &'a Intake,
    pub(super) choice: Choice<'a>,
    /// Memory that it may use, in bytes.
    pub(super) memory: u64,
}

impl Asked<'_> {
    /// Fetches what is missing of one chunk and verifies the whole. It may be one of the alternatives, of which `choice`
    /// tells before its first byte counts, unless it came whole. Blocks on disk I/O.
    pub(super) async fn fetch(&self, begun: &mut Begun) -> Result<VerifiedChunk, FetchFailure> {
        let holder = &self.fetch.holder;
        self.gauges.had.store(begun.got(), Ordering::Relaxed);
        if begun.is_full() {
            self.choice.is(self.fetch.chunk).await;
        } else {
            let mut lent = self.connections.lend(self.pool, holder, self.most_connections)?;
            let streamed = self.stream(&mut lent, begun).await;
            if let Err(FetchFailure::Holder(FetchError::Offence(Offence::Stalled, _))) = streamed {
                self.pool.discard(holder.id(), &lent);
            }
            streamed?;
        }
        Ok(begun.finish().map_err(FetchError::mismatch)?)
    }

    /// Streams what is missing of a chunk, until the holder says that this was all.
    async fn stream(&self, lent: &mut Lent, begun: &mut Begun) -> Result<(), FetchFailure> {
        let (holder, chunk, gauges) = (&self.fetch.holder, self.fetch.chunk, self.gauges);
        let (offset, own) = (begun.got(), self.connections.own());
        // The rest of a chunk is no other chunk.
        let alternatives = if offset == 0 { &self.fetch.alternatives[..] } else { &[] };
        let mut receiving = None;
        let mut watch = Watch::new(lent, gauges.clone());
        let asked = Instant::now();
        let begin = lent.0.client.fetch_chunk(ChunkWish {
            file: self.manifest.id(),
            chunk,
            alternatives,
            offset,
            requester: own,
            holder: holder.id(),
            receiving: Some(self.connections.receiving()),
            is_far: self.is_far,
        });
        let answer = watch.over(begin).await?;
        let refused = |status| self.connections.not_asked(FetchError::begun(&status, holder, own));
        let mut stream = answer.map_err(refused)?;
        loop {
            let part = watch.over(stream.next()).await?.map_err(|status| FetchError::in_stream(&status))?;
            let Some(part) = part else { return Ok(()) };
            if part.data.is_empty() {
                return Err(FetchError::Offence(Offence::Refused, "sent an empty message".to_owned()).into());
            }
            if receiving.is_none() {
                gauges.answered.took(asked.elapsed());
                receiving = Some(self.connections.receive());
                let sent = chosen(part.chunk, chunk, alternatives)?;
                if sent != chunk {
                    *begun = self.parts.begin_anew(sent, holder.id());
                }
                let missing = self.manifest.layout().chunk_len(sent).saturating_sub(begun.got());
                // Under a limit its end may be long in coming.
                if part.data.len() as u64 == u64::from(missing) && !self.intake.is_limited() {
                    self.choice.ends_as(sent);
                } else {
                    self.choice.is(sent).await;
                }
                // Another fetch has its place, and will have it sooner.
                if u64::from(begun.memory()) > self.memory {
                    return Err(FetchFailure::Overtaken);
                }
            } else if part.chunk.is_some() {
                let text = "named a chunk in the middle of one".to_owned();
                return Err(FetchError::Offence(Offence::Refused, text).into());
            }
            if part.begins {
                begun.message_begins().map_err(FetchError::mismatch)?;
            }
            let len = part.data.len() as u64;
            gauges.received.fetch_add(len, Ordering::Relaxed);
            let came = Instant::now();
            begun.push(part.data)?;
            begun.settle().await;
            gauges.had.store(begun.got(), Ordering::Relaxed);
            let put = came.elapsed();
            watch.held_up(if put < AT_ONCE { Duration::ZERO } else { put });
            watch.held_up(self.intake.take(len, &gauges.held_up).await);
        }
    }
}

/// The chunk that a first message begins.
fn chosen(named: Option<u32>, asked: ChunkIndex, alternatives: &[ChunkIndex]) -> Result<ChunkIndex, FetchError> {
    let Some(named) = named else { return Ok(asked) };
    let known = alternatives.iter().chain([&asked]).find(|chunk| chunk.get() == named);
    let stray = || FetchError::Offence(Offence::Refused, format!("sent chunk {named}, which was not asked for"));
    known.copied().ok_or_else(stray)
}

/// Looks at a connection this often: seldom enough to cost nothing.
const LOOK: Duration = Duration::from_millis(250);

/// On a connection that carries other streams too, a message of a stream may take this long to be whole: the bytes of
/// the connection do not tell which stream they are for.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(120);

/// Watches over the bytes that come from a holder.
struct Watch {
    connection: Pooled,
    gauges: Gauges,
    seen: u64,
    pace: Pace,
    /// What the download had got when a byte came last.
    wire_before: u64,
    /// And when this window began.
    wire_in_window: (Instant, u64),
    /// [`MESSAGE_PATIENCE`]; a test has less.
    patience: Duration,
}

impl Watch {
    fn new(lent: &Lent, gauges: Gauges) -> Self {
        let connection = lent.0.clone();
        let seen = connection.client.received();
        let pace = Pace::new(pace::RECEIVING, Instant::now());
        let wire_before = gauges.wire.load(Ordering::Relaxed);
        let wire_in_window = (pace.window_from(), wire_before);
        Self { connection, gauges, seen, pace, wire_before, wire_in_window, patience: MESSAGE_PATIENCE }
    }

    /// Waits for something to come, as long as the connection keeps its pace.
    async fn over<T>(&mut self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        tokio::pin!(work);
        let mut since = Instant::now();
        loop {
            let due = self.pace.next_look().min(Instant::now() + LOOK);
            let done = tokio::time::timeout_at(due.into(), &mut work).await;
            let now = Instant::now();
            self.count(now);
            if let Ok(done) = done {
                return Ok(done);
            }
            if pace::was_asleep(due, now) {
                self.pace.restart(now);
                self.wire_before = self.gauges.wire.load(Ordering::Relaxed);
                since = now;
            }
            if self.connection.streams() > 1 && now >= since + self.patience {
                return Err(FetchError::no_message(self.patience));
            }
            let others = self.others();
            match self.pace.look_beside(others, now) {
                Verdict::Fine => {}
                Verdict::Silent => return Err(FetchError::silent()),
                Verdict::Drips(bytes) => return Err(FetchError::drips(bytes)),
            }
        }
    }

    /// This peer itself did not read for so long: no silence of the holder.
    fn held_up(&mut self, time: Duration) {
        if !time.is_zero() {
            self.pace.held_up(time, Instant::now());
        }
    }

    /// What all streams of the download got beside this one.
    fn others(&mut self) -> Others {
        let wire = self.gauges.wire.load(Ordering::Relaxed);
        if self.wire_in_window.0 != self.pace.window_from() {
            self.wire_in_window = (self.pace.window_from(), wire);
        }
        Others {
            since_moved: wire.saturating_sub(self.wire_before),
            in_window: wire.saturating_sub(self.wire_in_window.1),
        }
    }

    fn count(&mut self, now: Instant) {
        let received = self.connection.client.received();
        let came = received - std::mem::replace(&mut self.seen, received);
        // Other streams of this connection, perhaps of other downloads, count the same bytes: each its part.
        let new = came.div_ceil(self.connection.streams().max(1) as u64);
        if new > 0 {
            self.gauges.wire.fetch_add(new, Ordering::Relaxed);
            // A message that is not whole yet; once it is, the exact number takes this one's place.
            self.gauges.had.fetch_add(u32::try_from(new).unwrap_or(0), Ordering::Relaxed);
            self.pace.moved(new, now);
            self.wire_before = self.gauges.wire.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::Pin};

    use drizzle_proto::{
        Digest, FileId, Layout, PeerId,
        client::PeerClient,
        net::transport::Transport,
        wire::{FetchChunkRequest, FetchChunkResponse, WatchChunksRequest, WatchChunksResponse, peer_server},
    };
    use tokio_stream::Stream;
    use tokio_util::sync::CancellationToken;
    use tonic::{Request, Response, Status};

    use super::*;

    /// Sends one message after the other, as fast as they are read.
    struct Chatty;

    #[tonic::async_trait]
    impl peer_server::Peer for Chatty {
        type FetchChunkStream = Pin<Box<dyn Stream<Item = Result<FetchChunkResponse, Status>> + Send>>;

        async fn fetch_chunk(&self, _: Request<FetchChunkRequest>) -> Result<Response<Self::FetchChunkStream>, Status> {
            let message = FetchChunkResponse { data: vec![0; 16 << 10].into(), chunk: None };
            Ok(Response::new(Box::pin(tokio_stream::iter(std::iter::repeat_with(move || Ok(message.clone()))))))
        }

        type WatchChunksStream = tokio_stream::Empty<Result<WatchChunksResponse, Status>>;

        async fn watch_chunks(
            &self,
            _: Request<WatchChunksRequest>,
        ) -> Result<Response<Self::WatchChunksStream>, Status> {
            Err(Status::unimplemented("a peer of an earlier version"))
        }
    }

    /// A connection to it over which bytes come all the time, for a stream that a task reads.
    async fn busy_connection() -> Pooled {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, transport) = (listener.local_addr().unwrap(), Transport::plaintext());
        let server = transport.server().add_service(peer_server::PeerServer::new(Chatty));
        tokio::spawn(server.serve_with_incoming(transport.incoming(
            listener,
            drizzle_proto::net::transport::Strangers::Refused,
            CancellationToken::new(),
        )));
        let mut client = PeerClient::new(&transport, &address.into(), PeerId::from_bytes([0; 16])).unwrap();
        let chunk = Layout::new(1, 1 << 14).unwrap().chunk_count().index(0).unwrap();
        let (file, peer) = (FileId::from_digest(Digest::of(b"")), PeerId::from_bytes([1; 16]));
        let (requester, holder) = (peer, peer);
        let wish =
            ChunkWish { file, chunk, alternatives: &[], offset: 0, requester, holder, receiving: None, is_far: false };
        let mut stream = client.fetch_chunk(wish).await.unwrap();
        tokio::spawn(async move {
            while let Ok(Some(_)) = stream.next().await {
                // Slower than it could: it is only to bring bytes all the time.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Pooled { client, streams: Arc::default() }
    }

    #[tokio::test]
    async fn a_stream_without_a_message_is_given_up_in_the_end_though_others_bring_bytes_over_its_connection() {
        let connection = busy_connection().await;
        let lend = || {
            connection.streams.fetch_add(1, Ordering::Relaxed);
            Lent(connection.clone())
        };
        let patience = Duration::from_millis(600);
        let lent = lend();
        let mut watch = Watch { patience, ..Watch::new(&lent, Gauges::default()) };
        // Alone on its connection, the bytes are its own: a message may take as long as it likes.
        let slow = watch.over(tokio::time::sleep(3 * patience)).await;
        assert_eq!(slow, Ok(()));
        let _other = lend();
        let begun = Instant::now();
        let silent = tokio::time::timeout(20 * patience, watch.over(pending::<()>())).await;
        assert_eq!(silent.expect("it is given up"), Err(FetchError::no_message(patience)));
        assert!(begun.elapsed() >= patience);
        // Each message begins the wait anew.
        assert_eq!(watch.over(tokio::time::sleep(patience / 2)).await, Ok(()));
        assert_eq!(watch.over(tokio::time::sleep(patience / 2)).await, Ok(()));
        assert_eq!(watch.over(tokio::time::sleep(patience / 2)).await, Ok(()));
    }
}
