//! A tracker that passes everything on to a real one, but for the signatures of files: of each name it tells what the test
//! wants.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use drizzle_proto::{
    Address,
    net::{
        tls::Meant,
        transport::{Strangers, Transport},
    },
    wire::{self, tracker_client::TrackerClient, tracker_server},
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

type Lie = Box<dyn Fn(&mut wire::FileLocationsResponse) + Send>;

/// The liar; it ends with the test's runtime.
pub struct LyingTracker {
    address: SocketAddr,
    lie: Arc<Mutex<Lie>>,
}

impl LyingTracker {
    /// Starts it before a real tracker; it tells the truth until [`LyingTracker::lies`].
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn start(tracker: &Address) -> Self {
        let lie: Arc<Mutex<Lie>> = Arc::new(Mutex::new(Box::new(|_| {})));
        let transport = Transport::plaintext();
        let real = TrackerClient::new(transport.connect_lazy(tracker, Meant::Tracker).expect("an address"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port has an address");
        let server =
            transport.server().add_service(tracker_server::TrackerServer::new(Liar { real, lie: lie.clone() }));
        tokio::spawn(server.serve_with_incoming(transport.incoming(
            listener,
            Strangers::Refused,
            CancellationToken::new(),
        )));
        Self { address, lie }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What becomes of each answer to `FileLocations` from now on.
    ///
    /// # Panics
    /// If an earlier lie panicked.
    pub fn lies(&self, lie: impl Fn(&mut wire::FileLocationsResponse) + Send + 'static) {
        *self.lie.lock().expect("no lie panics") = Box::new(lie);
    }
}

struct Liar {
    real: TrackerClient<Channel>,
    lie: Arc<Mutex<Lie>>,
}

macro_rules! passed_on {
    ($($method:ident: $request:ident => $response:ident;)*) => {
        #[tonic::async_trait]
        impl tracker_server::Tracker for Liar {
            $(async fn $method(&self, request: Request<wire::$request>) -> Result<Response<wire::$response>, Status> {
                self.real.clone().$method(request.into_inner()).await
            })*

            async fn register_manifest(
                &self,
                request: Request<Streaming<wire::RegisterManifestRequest>>,
            ) -> Result<Response<wire::RegisterManifestResponse>, Status> {
                self.real.clone().register_manifest(request.into_inner().filter_map(Result::ok)).await
            }

            async fn file_locations(
                &self,
                request: Request<wire::FileLocationsRequest>,
            ) -> Result<Response<wire::FileLocationsResponse>, Status> {
                let mut answer = self.real.clone().file_locations(request.into_inner()).await?;
                self.lie.lock().expect("no lie panics")(answer.get_mut());
                Ok(answer)
            }

            type WatchFileStream = Pin<Box<dyn Stream<Item = Result<wire::WatchFileResponse, Status>> + Send>>;

            async fn watch_file(
                &self,
                request: Request<wire::WatchFileRequest>,
            ) -> Result<Response<Self::WatchFileStream>, Status> {
                let watched = self.real.clone().watch_file(request.into_inner()).await?;
                Ok(Response::new(Box::pin(watched.into_inner())))
            }
        }
    };
}

passed_on! {
    register_peer: RegisterPeerRequest => RegisterPeerResponse;
    register_chunk: RegisterChunkRequest => RegisterChunkResponse;
    renew_lease: RenewLeaseRequest => RenewLeaseResponse;
    leave: LeaveRequest => LeaveResponse;
    withdraw_file: WithdrawFileRequest => WithdrawFileResponse;
    list_files: ListFilesRequest => ListFilesResponse;
}
