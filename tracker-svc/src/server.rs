//! Brings the tracker up, and down again without leaving anything behind.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use drizzle_proto::{
    net::{
        caller::Caller,
        health::READY,
        listen::{Listening, listen},
        reflection::{self, MAX_QUESTION},
        shell::{self, Daemon, Drained, Failure, Fault},
        tls::{Certified, reload},
        transport::Strangers,
    },
    wire::{
        enrolment_server::{self, EnrolmentServer},
        operator_server::OperatorServer,
        rights_server::RightsServer,
        tracker_server::{SERVICE_NAME, TrackerServer},
    },
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::interceptor::InterceptedService;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    access::{audit::By, authority, gate::Gate},
    catalogue::{CatalogueError, RedbCatalogue},
    census::Census,
    config::Config,
    enrolment,
    gather::{Counted, Gathering},
    grpc::Service,
    join_token::{self, JoinTokenError},
    limits::MAX_REQUEST,
    live::leases::PULSE,
    metrics::{self, Metrics, Sources, Timed},
    operator, readiness,
    registry::Registry,
    rights,
    trusting::{TrustError, Trusting},
};

/// A certification request and a token, and not much else.
const MAX_ENROLMENT: usize = 16 << 10;

/// Why the tracker did not come up, or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The catalogue cannot be used.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The address is taken, or not one of this machine.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Likewise, for scrapes.
    #[error("cannot listen on {address} (--metrics): {source}")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The token for everybody cannot be kept.
    #[error(transparent)]
    JoinToken(#[from] JoinTokenError),
    /// Callers cannot be told apart.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The schema that reflection serves is broken; a bug.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The thread that opened the catalogue panicked; a bug.
    #[error("internal error: opening the catalogue panicked: {0}")]
    Open(#[from] tokio::task::JoinError),
}

/// A tracker that serves.
pub struct Tracker {
    address: SocketAddr,
    /// Where scrapes are answered.
    metrics: Option<SocketAddr>,
    config: Config,
    registry: Registry,
    health: HealthReporter,
    faults: mpsc::Receiver<Fault>,
    /// The server, the reaper and the watches.
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
    let (directory, trust) = (config.data_dir.clone(), config.trust.clone());
    let trusting = tokio::task::spawn_blocking(move || Trusting::open(&directory, trust)).await??;
    let Trusting { transport, access, ours, files } = trusting;
    let failed = |source| ServerError::Listen { address: config.listen, source };
    let Listening { listener, address, families } = listen(config.listen).map_err(failed)?;

    let scraped =
        config.metrics.map(|address| listen(address).map_err(|source| ServerError::Metrics { address, source }));
    let scraped = scraped.transpose()?;
    let metrics_address = scraped.as_ref().map(|scraped| scraped.address);
    let (metrics, writes) = (Metrics::default(), catalogue.writes());
    let (tasks, stop, cut) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    // Not an option: a tracker that was given the same seed at each start would give new peers the very leases that
    // others still hold from before. Nothing but those ids is drawn from it, so there is no decision to replay.
    let registry = Registry::new(catalogue, config.lease, rand::random(), Instant::now());
    let audited = access.clone();
    registry.on_registered(move |peer, name, replaced| {
        let by = By { caller: Caller::Certified(Certified::Peer(peer)), from: None };
        audited.audit().done(if replaced { "replace" } else { "register" }, by, name.as_str());
    });
    let (fault, faults) = mpsc::channel(1);
    let service = Service::new(registry.clone(), access.clone(), tasks.clone(), stop.clone(), metrics.clone());
    if let Some(Listening { listener, .. }) = scraped {
        let sources = Sources { registry: registry.clone(), access: access.clone(), metrics: metrics.clone(), writes };
        let exposition = metrics::exposition(sources, transport.handshakes().clone());
        let serving = drizzle_proto::metrics::serve(listener, exposition, stop.clone());
        tasks.spawn(shell::guard("task that answers scrapes", serving, fault.clone()));
    }
    if let (Some(file), Some(ours)) = (&config.trust.join_file, &ours) {
        join_token::keep_file(file, &access, ours.authority.fingerprint()).await?;
    }
    if let (Some((name, cluster)), Some(ours)) = (&config.trust.join_secret, &ours) {
        let (name, cluster, authority) = (name.clone(), cluster.clone(), ours.authority.fingerprint());
        let keeping = join_token::keep_secret(name, cluster, access.clone(), authority, stop.clone());
        tasks.spawn(shell::guard("task that keeps a token in a Secret", keeping, fault.clone()));
    }
    if let Some(tls) = transport.tls() {
        if let Some(files) = files {
            let keeping = reload::keep(tls.clone(), files, reload::LOOKS, stop.clone());
            tasks.spawn(shell::guard("task that reads certificates again", keeping, fault.clone()));
        }
        if let Some(ours) = ours.clone() {
            let keeping = authority::keep(ours, tls.clone(), stop.clone());
            tasks.spawn(shell::guard("task that renews the certificate", keeping, fault.clone()));
        }
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in [SERVICE_NAME, READY] {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
    let (readiness, until) = (health.clone(), stop.clone());
    let tell = async move |ready| {
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        readiness.set_service_status(READY, status).await;
    };
    let looking = readiness::watch(registry.clone(), readiness::LOOKS, tell, until);
    tasks.spawn(shell::guard("task that looks whether it is ready", looking, fault.clone()));
    let (reflection, reflection_alpha) = reflection::servers(&[SERVICE_NAME, enrolment_server::SERVICE_NAME])?;
    tasks.spawn(shell::guard("task that ends leases", reap(registry.clone(), stop.clone()), fault.clone()));
    if config.release_after < Duration::MAX {
        let releasing = release(registry.clone(), config.release_after, stop.clone());
        tasks.spawn(shell::guard("task that releases names", releasing, fault.clone()));
    }
    match operator::Place::bind(&config.data_dir) {
        Ok(socket) => {
            let mut incoming = transport.incoming_local(socket, cut.clone());
            tasks.spawn(shell::watch_listener("operator service", incoming.broken(), fault.clone()));
            let server = transport
                .server()
                .add_service(OperatorServer::new(operator::Service::new(registry.clone(), access.clone())))
                .add_service(RightsServer::new(rights::Service::new(access.clone(), ours.clone())));
            let server = server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
            tasks.spawn(shell::watch_over("operator service", server, stop.clone(), fault.clone()));
        }
        // Some network file systems have no sockets; the tracker does its work all the same.
        Err(error) => {
            warn!(%error, "the commands of operators cannot be served: no socket can be made in the data folder");
        }
    }
    let mut incoming = transport.incoming(listener, Strangers::Heard, cut.clone());
    tasks.spawn(shell::watch_listener("tracker service", incoming.broken(), fault.clone()));
    let tracker_service = TrackerServer::new(service).max_decoding_message_size(MAX_REQUEST);
    let counted = Counted::new(tracker_service, Gathering::default());
    let server = transport
        .server()
        .add_service(Timed::new(InterceptedService::new(counted, Gate::new(access.clone())), metrics))
        .add_service(
            EnrolmentServer::new(enrolment::Service::new(access, ours)).max_decoding_message_size(MAX_ENROLMENT),
        )
        .add_service(health_service.max_decoding_message_size(MAX_QUESTION))
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    tasks.spawn(shell::watch_over("tracker service", server, stop.clone(), fault));
    info!(%address, %families, data_dir = %config.data_dir.display(), lease = ?config.lease, "serving");
    Ok(Tracker { address, metrics: metrics_address, config, registry, health, faults, tasks, stop, cut })
}

impl Tracker {
    /// Where it really serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops taking calls, lets those in progress finish for as long as the configuration allows, then
    /// closes what is left. When this returns, no task, connection or lock of the tracker is left.
    pub async fn shutdown(mut self) -> Drained {
        let Census { live, counts, uptime, .. } = self.registry.census(Instant::now());
        let (uptime, peers, files) = (uptime.as_secs(), live.peers, live.swarms);
        let (registered, refused) = (counts.registered, counts.refused);
        info!(uptime, peers, files, registered, refused, "draining");
        for service in ["", SERVICE_NAME, READY] {
            // Cleared and not set to NOT_SERVING: that ends health watches, which would hold up the drain.
            self.health.clear_service_status(service).await;
        }
        self.stop.cancel();
        self.tasks.close();
        let drained = match tokio::time::timeout(self.config.drain, self.tasks.wait()).await {
            Ok(()) => Drained::Fully,
            Err(_) => Drained::CutOff,
        };
        self.cut.cancel();
        // Ends once every connection has, now that reading from them fails.
        self.tasks.wait().await;
        info!("stopped");
        drained
    }
}

impl Daemon for Tracker {
    fn ready(&self) -> String {
        let metrics = self.metrics.map(|address| format!(" metrics={address}")).unwrap_or_default();
        format!("tracker={}{metrics}", self.address)
    }

    async fn failed(&mut self) -> Failure {
        match self.faults.recv().await {
            Some(fault) => fault.into(),
            // The sender is gone only after a shutdown, which takes the tracker.
            None => std::future::pending().await,
        }
    }

    async fn shutdown(self) -> Drained {
        Tracker::shutdown(self).await
    }
}

/// Frees names that no peer attends to. Looks often enough that one is released at most an eighth of its time late,
/// and seldom enough to cost nothing.
async fn release(registry: Registry, after: Duration, stop: CancellationToken) {
    let every = (after / 8).clamp(Duration::from_millis(100), Duration::from_secs(3600));
    let mut base = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return,
        }
        // What the catalogue fails at is in the log; the next look may find it well.
        if base.is_none() {
            base = registry.attendance().await.ok();
        }
        if let Some(base) = base {
            let _ = registry.release_unattended(base, after, Instant::now()).await;
        }
    }
}

/// Ends leases when their time is over.
async fn reap(registry: Registry, stop: CancellationToken) {
    loop {
        let now = Instant::now();
        registry.pulse(now);
        let next = registry.expire(now).min(now + PULSE);
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = stop.cancelled() => return,
        }
    }
}
