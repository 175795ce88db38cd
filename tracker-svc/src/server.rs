//! Brings the tracker up, and down again without leaving anything behind.

use std::net::SocketAddr;

use drizzle_proto::{
    DESCRIPTORS,
    net::transport,
    wire::tracker_server::{SERVICE_NAME, TrackerServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    catalogue::{CatalogueError, RedbCatalogue},
    config::Config,
    grpc::{MAX_REQUEST, Service},
    registry::Registry,
};

/// Why the tracker did not come up, or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The catalogue cannot be used.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The schema that reflection serves is broken; a bug.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server gave up.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The server ended without being asked to; a bug.
    #[error("the server ended by itself")]
    Ended,
    /// A task panicked; a bug.
    #[error("the tracker failed inside: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A tracker that serves.
pub struct Tracker {
    address: SocketAddr,
    config: Config,
    health: HealthReporter,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    /// The reaper and the watches.
    tasks: TaskTracker,
    /// Cancelled to stop taking calls and to end the watches.
    stop: CancellationToken,
    /// Cancelled to close what connections are left.
    cut: CancellationToken,
}

/// Opens the catalogue, binds the address and serves.
pub async fn bind(config: Config) -> Result<Tracker, ServerError> {
    let directory = config.data_dir.clone();
    let catalogue = tokio::task::spawn_blocking(move || RedbCatalogue::open(&directory)).await??;
    let failed = |source| ServerError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;

    let (tasks, stop, cut) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let registry = Registry::new(catalogue, config.lease);
    tasks.spawn(reap(registry.clone(), stop.clone()));
    let service = Service::new(registry, tasks.clone(), stop.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;
    let router = transport::server()
        .add_service(TrackerServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let connections = transport::incoming(listener, cut.clone());
    let server = tokio::spawn(router.serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned()));
    info!(%address, data_dir = %config.data_dir.display(), lease = ?config.lease, "serving");
    Ok(Tracker { address, config, health, server, tasks, stop, cut })
}

impl Tracker {
    /// Where it really serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns only if serving ends by itself, which is a failure.
    pub async fn failed(&mut self) -> ServerError {
        match (&mut self.server).await {
            Ok(Ok(())) => ServerError::Ended,
            Ok(Err(error)) => error.into(),
            Err(error) => error.into(),
        }
    }

    /// Stops taking calls, lets those in progress finish for as long as the configuration allows, then
    /// closes what is left. When this returns, no task, connection or lock of the tracker is left.
    pub async fn shutdown(mut self) {
        info!("draining");
        for service in ["", SERVICE_NAME] {
            // Cleared and not set to NOT_SERVING: that ends health watches, which would hold up the drain.
            self.health.clear_service_status(service).await;
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.config.drain, &mut self.server).await.is_err() {
            warn!(drain = ?self.config.drain, "closing connections that are still open");
            self.cut.cancel();
            // Ends once every connection has, now that reading from them fails.
            let _ = (&mut self.server).await;
        }
        self.tasks.wait().await;
        info!("stopped");
    }
}

/// Ends leases when their time is over.
async fn reap(registry: Registry, stop: CancellationToken) {
    loop {
        let next = registry.expire();
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Every message of the package can be looked up; only the services that are served here are listed.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(SERVICE_NAME)
        .with_service_name("grpc.health.v1.Health")
}
