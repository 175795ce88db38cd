//! A peer that lives in the test: it registers with the real tracker, keeps its lease, counts what is
//! asked of it, and behaves in whatever manner the test wants.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use drizzle_proto::{
    Address, ChunkSet, Labels, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    client::{Lease, TrackerClient},
    limits::MAX_HASHES,
    net::transport::{Strangers, Transport},
    wire::{FetchChunkRequest, FetchChunkResponse, WatchChunksRequest, WatchChunksResponse, peer_server},
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{Semaphore, mpsc},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::Content;

/// What a fake peer does when asked for a chunk.
#[derive(Debug, Clone)]
pub enum Manner {
    /// Serves the true bytes.
    Honest,
    /// Serves the true bytes of one chunk for each permit that the test adds.
    Gated(Arc<Semaphore>),
    /// Serves as many bytes as it should, none of them right.
    WrongBytes,
    /// Serves wrong bytes for this chunk, the true ones for others.
    WrongChunk(u32),
    /// Serves the last of the alternatives, where there are any, and names it.
    Chooses,
    /// The same, but sends the bytes of the chunk that was asked for first.
    ChoosesAndLies,
    /// Serves the true bytes of a chunk that was not asked for, and names it.
    NamesAnother,
    /// Serves this many wrong bytes of a chunk, then an error, and none of the rest; asked for the whole again, as many as
    /// it should, none of them right.
    WrongPart(usize),
    /// Takes every request and never answers it.
    Silent,
    /// Sends this many true bytes and then nothing, forever.
    Stalls(usize),
    /// Sends this many true bytes, then an error.
    BreaksOff(usize),
    /// Sends this many true bytes, then says that this was all.
    EndsEarly(usize),
    /// Sends the true bytes, then goes on without end.
    SendsTooMuch,
    /// Sends a message of this many bytes.
    HugeMessage(usize),
    /// Sends messages without a byte, without end.
    EmptyMessages,
    /// Answers with this status.
    Says(Code),
}

/// The fake. Dropped, it is gone at once, as by `kill -9`: its connections break, its lease runs out.
#[derive(Debug)]
pub struct FakePeer {
    /// Where it is asked.
    pub address: SocketAddr,
    /// Who it says it is.
    pub id: PeerId,
    requests: Arc<Mutex<Vec<FetchChunkRequest>>>,
    // Its own, so that the server's every task can be ended at once.
    runtime: Option<Runtime>,
}

impl FakePeer {
    /// A peer that says it holds all of `content`.
    pub async fn start(tracker: &str, content: &Content, manner: Manner) -> Self {
        let all = ChunkSet::full(content.manifest.layout().chunk_count());
        Self::holding(tracker, content, all, manner).await
    }

    /// A peer that says it holds all of `content`, and serves one chunk for each permit.
    pub async fn gated(tracker: &str, content: &Content) -> (Self, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(0));
        (Self::start(tracker, content, Manner::Gated(gate.clone())).await, gate)
    }

    /// A peer that says it holds some chunks of `content`. It is registered when this returns.
    ///
    /// # Panics
    /// If the tracker does not take it.
    pub async fn holding(tracker: &str, content: &Content, held: ChunkSet, manner: Manner) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let id = PeerId::from_bytes(rand::random());
        let tracker = Address::from_url(tracker).expect("a tracker's URL");
        let service = Service { content: Arc::new(content.clone()), manner, requests: requests.clone() };
        let mut membership = Membership {
            tracker: TrackerClient::new(&Transport::plaintext(), &tracker).expect("an address"),
            content: service.content.clone(),
            held,
            id,
        };
        let starting = runtime.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("a bound port has an address");
            let transport = Transport::plaintext();
            let server = transport.server().add_service(peer_server::PeerServer::new(service));
            tokio::spawn(server.serve_with_incoming(transport.incoming(
                listener,
                Strangers::Refused,
                CancellationToken::new(),
            )));
            let lease = membership.join(address).await.expect("the tracker takes the fake");
            tokio::spawn(async move { membership.keep(lease, address).await });
            address
        });
        let address = starting.await.expect("the fake starts");
        Self { address, id, requests, runtime: Some(runtime) }
    }

    /// The chunks that it was asked for, in order, repeats included.
    ///
    /// # Panics
    /// If a request panicked.
    pub fn requests(&self) -> Vec<u32> {
        self.requests.lock().expect("nobody panics with it").iter().map(|request| request.chunk).collect()
    }

    /// The offsets from which a chunk was asked for, in order.
    ///
    /// # Panics
    /// If a request panicked.
    pub fn offsets(&self, chunk: u32) -> Vec<u32> {
        let requests = self.requests.lock().expect("nobody panics with it");
        requests.iter().filter(|request| request.chunk == chunk).map(|request| request.offset).collect()
    }

    /// How many chunks came to each requester when it asked, as it said, in order.
    ///
    /// # Panics
    /// If a request panicked, or did not say.
    pub fn receiving(&self) -> Vec<u32> {
        let requests = self.requests.lock().expect("nobody panics with it");
        requests.iter().map(|request| request.receiving.expect("a peer says so")).collect()
    }

    /// Forgets the requests so far.
    ///
    /// # Panics
    /// If a request panicked.
    pub fn forget_requests(&self) {
        self.requests.lock().expect("nobody panics with it").clear();
    }

    /// Gone, without a word.
    pub fn vanish(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakePeer {
    fn drop(&mut self) {
        self.vanish();
    }
}

struct Membership {
    tracker: TrackerClient,
    content: Arc<Content>,
    held: ChunkSet,
    id: PeerId,
}

impl Membership {
    async fn join(&mut self, address: SocketAddr) -> Result<Lease, String> {
        let peer = PeerInfo::new(self.id, address.into(), Labels::default());
        let lease = self.tracker.register_peer(&peer).await.map_err(|error| error.to_string())?;
        let mut first_hash = 0;
        loop {
            let hashes = self.content.manifest.hashes()[first_hash as usize..].iter().take(MAX_HASHES);
            let entry = FileChunks {
                file: self.content.info(),
                first_hash,
                hashes: hashes.copied().collect(),
                held: self.held.clone(),
                gone: false,
                replace: false,
                signature: None,
            };
            let outcomes = self.tracker.register_chunk(lease.id, &[entry]).await.map_err(|error| error.to_string())?;
            match &outcomes[..] {
                [FileOutcome::Registered] => return Ok(lease),
                [FileOutcome::NeedHashes(next)] if *next > first_hash => first_hash = *next,
                other => return Err(format!("{other:?}")),
            }
        }
    }

    /// Renews, and joins again after a restart of the tracker.
    async fn keep(&mut self, mut lease: Lease, address: SocketAddr) {
        loop {
            tokio::time::sleep(lease.renew_every).await;
            let lost = self
                .tracker
                .renew_lease(lease.id, Default::default())
                .await
                .is_err_and(|e| e.code() == Code::FailedPrecondition);
            if lost && let Ok(new) = self.join(address).await {
                lease = new;
            }
        }
    }
}

struct Service {
    content: Arc<Content>,
    manner: Manner,
    requests: Arc<Mutex<Vec<FetchChunkRequest>>>,
}

type Sender = mpsc::Sender<Result<FetchChunkResponse, Status>>;

#[tonic::async_trait]
impl peer_server::Peer for Service {
    type WatchChunksStream = tokio_stream::Empty<Result<WatchChunksResponse, Status>>;

    async fn watch_chunks(&self, _: Request<WatchChunksRequest>) -> Result<Response<Self::WatchChunksStream>, Status> {
        Err(Status::unimplemented("a peer of an earlier version knows no such call"))
    }

    type FetchChunkStream = Pin<Box<dyn Stream<Item = Result<FetchChunkResponse, Status>> + Send>>;

    async fn fetch_chunk(
        &self,
        request: Request<FetchChunkRequest>,
    ) -> Result<Response<Self::FetchChunkStream>, Status> {
        let request = request.into_inner();
        let is_first = {
            let mut requests = self.requests.lock().expect("nobody panics with it");
            requests.push(request.clone());
            requests.iter().filter(|other| other.chunk == request.chunk).count() == 1
        };
        if let Manner::Says(code) = self.manner {
            return Err(Status::new(code, "so says the fake"));
        }
        if matches!(self.manner, Manner::Silent) {
            // It ends when the downloader goes away.
            return std::future::pending().await;
        }
        let chosen = request.alternatives.last().copied().unwrap_or(request.chunk);
        let asked = |chunk: &u32| *chunk == request.chunk || request.alternatives.contains(chunk);
        let (chunk, named) = match self.manner {
            Manner::Chooses => (chosen, Some(chosen)),
            Manner::ChoosesAndLies => (request.chunk, Some(chosen)),
            Manner::NamesAnother => {
                let other = (0..self.content.manifest.layout().chunk_count().get()).find(|chunk| !asked(chunk));
                (other.unwrap_or(request.chunk), Some(other.unwrap_or(u32::MAX)))
            }
            _ => (request.chunk, None),
        };
        let bytes = self.content.chunk(chunk)[request.offset as usize..].to_vec();
        let manner = match self.manner {
            Manner::WrongChunk(chunk) if chunk == request.chunk => Manner::WrongBytes,
            Manner::WrongChunk(_) | Manner::Chooses | Manner::ChoosesAndLies | Manner::NamesAnother => Manner::Honest,
            Manner::WrongPart(_) if request.offset > 0 => Manner::BreaksOff(0),
            Manner::WrongPart(_) if !is_first => Manner::WrongBytes,
            ref manner => manner.clone(),
        };
        let (sender, receiver) = mpsc::channel(4);
        // It ends when the downloader goes away: sending fails then.
        tokio::spawn(behave(manner, bytes, named, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn behave(manner: Manner, mut bytes: Vec<u8>, named: Option<u32>, to: Sender) {
    match manner {
        Manner::Honest => _ = send_named(&to, &bytes, named).await,
        Manner::Gated(gate) => {
            // A request whose downloader is gone must not use up a permit.
            let permit = tokio::select! {
                biased;
                () = to.closed() => None,
                permit = gate.acquire() => permit.ok(),
            };
            if let Some(permit) = permit {
                permit.forget();
                send(&to, &bytes).await;
            }
        }
        Manner::WrongBytes => {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            send(&to, &bytes).await;
        }
        Manner::WrongPart(len) => {
            bytes.truncate(len);
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            send(&to, &bytes).await;
            let _ = to.send(Err(Status::internal("the fake breaks off"))).await;
        }
        Manner::Stalls(after) => {
            send(&to, &bytes[..after.min(bytes.len())]).await;
            to.closed().await;
        }
        Manner::BreaksOff(after) => {
            send(&to, &bytes[..after.min(bytes.len())]).await;
            let _ = to.send(Err(Status::internal("the fake breaks off"))).await;
        }
        Manner::EndsEarly(after) => _ = send(&to, &bytes[..after.min(bytes.len())]).await,
        Manner::SendsTooMuch => {
            send(&to, &bytes).await;
            while send(&to, &[0; 1000]).await {}
        }
        Manner::HugeMessage(size) => {
            let _ = to.send(Ok(FetchChunkResponse { data: vec![0; size].into(), chunk: None })).await;
            to.closed().await;
        }
        Manner::EmptyMessages => while to.send(Ok(FetchChunkResponse::default())).await.is_ok() {},
        Manner::Says(_)
        | Manner::Silent
        | Manner::WrongChunk(_)
        | Manner::Chooses
        | Manner::ChoosesAndLies
        | Manner::NamesAnother => unreachable!("resolved before the stream begins"),
    }
}

/// In messages as the contract wants them; whether the receiver still listens.
async fn send(to: &Sender, bytes: &[u8]) -> bool {
    send_named(to, bytes, None).await
}

/// The first message names the chunk.
async fn send_named(to: &Sender, bytes: &[u8], mut named: Option<u32>) -> bool {
    for part in bytes.chunks(drizzle_proto::limits::MESSAGE_SIZE) {
        if to.send(Ok(FetchChunkResponse { data: part.to_vec().into(), chunk: named.take() })).await.is_err() {
            return false;
        }
    }
    true
}
