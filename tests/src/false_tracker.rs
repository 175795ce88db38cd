//! A tracker that lies to its peers: it takes every peer, and answers what the test wants.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use drizzle_proto::{
    PeerId,
    announcement::FileOutcome,
    net::transport::{Strangers, Transport},
    wire::{self, tracker_server},
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// What it answers. Each is a function, so that a lie may depend on what was asked.
pub struct Lies {
    /// To `FileLocations`.
    pub locations: Answer<wire::FileLocationsRequest, wire::FileLocationsResponse>,
    /// To `ListFiles`.
    pub files: Answer<wire::ListFilesRequest, wire::ListFilesResponse>,
    /// To `WatchFile`: messages, for as long as there are some. The watch stays open behind the last.
    pub watch: Told,
}

/// The nth message of a watch.
pub type Told = Arc<dyn Fn(u32) -> Option<wire::WatchFileResponse> + Send + Sync>;

/// One lie.
pub type Answer<Q, A> = Box<dyn Fn(Q) -> Result<A, Status> + Send + Sync>;

impl Lies {
    /// About nothing: there is no file.
    pub fn none() -> Self {
        Self {
            locations: Box::new(|_| Err(Status::not_found("there is no such file"))),
            files: Box::new(|_| Ok(Default::default())),
            watch: Arc::new(|_| None),
        }
    }
}

/// The tracker. Dropped, it is gone.
#[derive(Debug)]
pub struct FalseTracker {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    runtime: Option<Runtime>,
}

impl FalseTracker {
    /// Starts one.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn start(lies: Lies) -> Self {
        let (runtime, asked) = (Runtime::new().expect("a runtime"), Arc::<Mutex<Vec<String>>>::default());
        let service = Service { lies, asked: asked.clone() };
        let starting = runtime.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("a bound port has an address");
            let transport = Transport::plaintext();
            let server = transport.server().add_service(tracker_server::TrackerServer::new(service));
            let incoming = transport.incoming(listener, Strangers::Refused, CancellationToken::new());
            tokio::spawn(server.serve_with_incoming(incoming));
            address
        });
        let address = starting.await.expect("it starts");
        Self { address, asked, runtime: Some(runtime) }
    }

    /// Which methods were called, in order.
    ///
    /// # Panics
    /// If a call panicked.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for FalseTracker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service {
    lies: Lies,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    fn note(&self, method: &str) {
        self.asked.lock().expect("nobody panics with it").push(method.to_owned());
    }
}

#[tonic::async_trait]
impl tracker_server::Tracker for Service {
    async fn register_peer(
        &self,
        _: Request<wire::RegisterPeerRequest>,
    ) -> Result<Response<wire::RegisterPeerResponse>, Status> {
        self.note("register_peer");
        let lease =
            wire::RegisterPeerResponse { lease_id: 7, lease_millis: 15_000, renew_millis: 5000, ..Default::default() };
        Ok(Response::new(lease))
    }

    async fn register_chunk(
        &self,
        request: Request<wire::RegisterChunkRequest>,
    ) -> Result<Response<wire::RegisterChunkResponse>, Status> {
        self.note("register_chunk");
        let results = request.into_inner().files.iter().map(|_| FileOutcome::Registered.into()).collect();
        Ok(Response::new(wire::RegisterChunkResponse { results, pause_millis: 0 }))
    }

    async fn register_manifest(
        &self,
        _: Request<Streaming<wire::RegisterManifestRequest>>,
    ) -> Result<Response<wire::RegisterManifestResponse>, Status> {
        self.note("register_manifest");
        Ok(Response::new(wire::RegisterManifestResponse { result: Some(FileOutcome::Registered.into()) }))
    }

    async fn renew_lease(
        &self,
        _: Request<wire::RenewLeaseRequest>,
    ) -> Result<Response<wire::RenewLeaseResponse>, Status> {
        self.note("renew_lease");
        Ok(Response::new(Default::default()))
    }

    async fn leave(&self, _: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn withdraw_file(
        &self,
        _: Request<wire::WithdrawFileRequest>,
    ) -> Result<Response<wire::WithdrawFileResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn list_files(
        &self,
        request: Request<wire::ListFilesRequest>,
    ) -> Result<Response<wire::ListFilesResponse>, Status> {
        self.note("list_files");
        (self.lies.files)(request.into_inner()).map(Response::new)
    }

    async fn file_locations(
        &self,
        request: Request<wire::FileLocationsRequest>,
    ) -> Result<Response<wire::FileLocationsResponse>, Status> {
        self.note("file_locations");
        (self.lies.locations)(request.into_inner()).map(Response::new)
    }

    type WatchFileStream = Pin<Box<dyn Stream<Item = Result<wire::WatchFileResponse, Status>> + Send>>;

    async fn watch_file(&self, _: Request<wire::WatchFileRequest>) -> Result<Response<Self::WatchFileStream>, Status> {
        self.note("watch_file");
        let (sender, receiver) = mpsc::channel(1);
        let watch = self.lies.watch.clone();
        // It ends when the peer goes away.
        tokio::spawn(async move {
            for message in (0..).map_while(|nth| watch(nth)) {
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            sender.closed().await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The nth of many peers that nobody knows.
pub fn stranger(nth: u32) -> PeerId {
    let mut id = [0xab; 16];
    id[..4].copy_from_slice(&nth.to_be_bytes());
    PeerId::from_bytes(id)
}
