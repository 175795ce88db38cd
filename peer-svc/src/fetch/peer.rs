//! One chunk from one holder: a gRPC stream in, a verified chunk or a failure out.
//!
//! Invariants: a fetch ends, for every wait has a limit; a failure says whose fault it is; what came is
//! checked before anyone else sees it. No file is touched here, and nothing is decided: which chunk comes
//! from whom is the scheduler's business.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use drizzle_engine::{
    pace::{self, Others, Pace, Verdict},
    schedule::{Fetch, Offence},
};
use drizzle_proto::{ChunkIndex, Manifest, client::ChunkWish, limits::MESSAGE_SIZE};

use super::{
    Choice, Gauges,
    error::FetchError,
    intake::Intake,
    parts::{Begun, Parts},
    pool::{Connections, Lent, Pooled},
};
use crate::verify::VerifiedChunk;

impl Connections {
    /// Fetches what is missing of one chunk and verifies the whole. It may be one of the alternatives: `choice` tells
    /// of it before its first byte counts.
    pub(super) async fn fetch(
        &self,
        manifest: &Manifest,
        (fetch, is_far): (&Fetch, bool),
        parts: &Arc<Parts>,
        (gauges, intake): (&Gauges, &Intake),
        choice: &Choice<'_>,
    ) -> Result<VerifiedChunk, FetchError> {
        let peer = &fetch.holder;
        let mut begun = parts.begin(manifest, fetch.chunk, peer.id());
        let got = begun.verifier().got();
        gauges.had.store(got, Ordering::Relaxed);
        if begun.verifier().is_full() {
            choice.is(fetch.chunk).await;
        } else {
            let mut lent = self.lend(peer)?;
            let own = (gauges, intake);
            let streamed = self.stream(manifest, (fetch, is_far), &mut lent, (parts, &mut begun), own, choice).await;
            if let Err(FetchError::Offence(Offence::Stalled, _)) = streamed {
                self.discard(peer.id(), &lent);
            }
            streamed?;
        }
        if !begun.verifier().is_full() {
            // What came is kept.
            let short = begun.verifier().clone().finish();
            return short.map_err(FetchError::mismatch);
        }
        let verified = begun.take().finish();
        verified.map_err(|mismatch| {
            begun.spoiled();
            FetchError::mismatch(mismatch)
        })
    }

    /// Streams what is missing of a chunk, until the holder says that this was all.
    async fn stream(
        &self,
        manifest: &Manifest,
        (fetch, is_far): (&Fetch, bool),
        lent: &mut Lent,
        (parts, begun): (&Arc<Parts>, &mut Begun),
        (gauges, intake): (&Gauges, &Intake),
        choice: &Choice<'_>,
    ) -> Result<(), FetchError> {
        let (peer, chunk) = (&fetch.holder, fetch.chunk);
        let offset = begun.verifier().got();
        // The rest of a chunk is no other chunk.
        let alternatives = if offset == 0 { &fetch.alternatives[..] } else { &[] };
        let mut receiving = None;
        let own = self.own();
        let mut watch = Watch::new(lent, gauges.clone());
        let begin = lent.0.client.fetch_chunk(ChunkWish {
            file: manifest.id(),
            chunk,
            alternatives,
            offset,
            requester: own,
            holder: peer.id(),
            receiving: Some(self.receiving()),
            is_far,
        });
        let answer = watch.over(begin).await?;
        let mut stream = answer.map_err(|status| self.not_asked(FetchError::begun(&status, peer, own)))?;
        loop {
            let message = watch.over(stream.message()).await?.map_err(|status| FetchError::in_stream(&status))?;
            let Some(message) = message else { return Ok(()) };
            let len = message.data.len();
            if len == 0 || len > MESSAGE_SIZE {
                return Err(FetchError::Offence(Offence::Refused, format!("sent a message of {len} bytes")));
            }
            if receiving.is_none() {
                receiving = Some(self.receive());
                let sent = chosen(message.chunk, chunk, alternatives)?;
                if sent != chunk {
                    *begun = parts.begin_anew(manifest, sent, peer.id());
                }
                choice.is(sent).await;
            } else if message.chunk.is_some() {
                return Err(FetchError::Offence(Offence::Refused, "named a chunk in the middle of one".to_owned()));
            }
            gauges.received.fetch_add(len as u64, Ordering::Relaxed);
            let pushed = begun.verifier().push(message.data);
            if let Err(mismatch) = pushed {
                begun.spoiled();
                return Err(FetchError::mismatch(mismatch));
            }
            gauges.had.store(begun.verifier().got(), Ordering::Relaxed);
            watch.held_up(intake.take(len as u64, &gauges.held_up).await);
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
        tokio::spawn(server.serve_with_incoming(transport.incoming(listener, CancellationToken::new())));
        let mut client = PeerClient::new(&transport, &address.into()).unwrap();
        let chunk = Layout::new(1, 1 << 14).unwrap().chunk_count().index(0).unwrap();
        let (file, peer) = (FileId::from_digest(Digest::of(b"")), PeerId::from_bytes([1; 16]));
        let (requester, holder) = (peer, peer);
        let wish =
            ChunkWish { file, chunk, alternatives: &[], offset: 0, requester, holder, receiving: None, is_far: false };
        let mut stream = client.fetch_chunk(wish).await.unwrap();
        tokio::spawn(async move {
            while let Ok(Some(_)) = stream.message().await {
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
