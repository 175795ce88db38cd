//! Binds, runs and drains the daemon.
//!
//! Everything that can be wrong with the options is found before a port is bound. Every task is counted,
//! so that shutting down can prove that none is left.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use drizzle_engine::pace;
use drizzle_proto::{
    Labels, PeerId,
    client::TrackerClient,
    labels::LabelError,
    net::{
        control_at::ControlAt,
        innermost,
        listen::{self, Listening},
        reflection::{self, MAX_QUESTION},
        shell::{self, Daemon, Drained, Failure, Fault},
        tls::{Certified, Credentials, options::Choice},
        transport::{Strangers, Transport},
    },
    wire,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::server::NamedService;
use tonic_health::server::HealthReporter;
use wire::{control_server::ControlServer, peer_server::PeerServer};

use crate::{
    advertise::{Advertise, Given, Routed, Unusable},
    config::Config,
    control::{self, Backend, ControlService, Socket, SocketError},
    download::{Context, FAR_MEMORY, MEMORY, PARTS_KIB},
    fetch::{connections::Connections, memory::ChunkMemory},
    holdings::Holdings,
    identity::Identity,
    lanes::Lanes,
    limits::Limits,
    metrics::{self, Metrics},
    notices::heed,
    outage::Outage,
    readiness,
    register::{Membership, Standing},
    serve::{NewsDesk, Peer, PeerService, Uploads},
    share::{
        Exclusions, Sharer, Shelf, Untrusted,
        watch::{Care, keep},
    },
    status::Monitor,
    store::{
        disk::Disk,
        hash::HashProgress,
        journal::{Journal, JournalError},
        partials::Partials,
    },
    transfers::Transfers,
    trust::{self, AdminsOnly, Joining, Rights, TrustError},
    vouching::{self, Vouching},
};

/// The peer's state folder, unless told otherwise, below its folder.
const STATE_DIR: &str = ".drizzle";
/// Refusals and releases that may wait to be looked at.
const NOTICES: usize = 1024;
/// For what was cut to notice.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// Hanging disks are looked for this often.
const DISKS: Duration = Duration::from_secs(1);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The shared folder is unusable.
    #[error("cannot use the folder {}: {source}", path.display())]
    Dir {
        /// The folder as it was given with --dir.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state folder is unusable.
    #[error("{0}")]
    State(String),
    /// A port is taken or not ours.
    #[error("cannot listen on {address} ({option}): {source}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// The option that gave it.
        option: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Connections cannot be secured as asked for.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The control service's place is taken or not ours.
    #[error("cannot listen on {at} (--control): {source}")]
    Control {
        /// Where it was to listen.
        at: ControlAt,
        /// What is wrong there.
        source: SocketError,
    },
    /// A folder of --allow-path is not there.
    #[error("--allow-path {}: {source}; it must be a folder that is there", path.display())]
    AllowPath {
        /// The folder as it was given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A label is given twice, or there are too many.
    #[error("--label: {0}")]
    Labels(#[from] LabelError),
    /// Other peers cannot reach the advertised address.
    #[error("{0}")]
    Advertise(String),
    /// The tracker's address makes no connection, or reflection could not be set up.
    #[error("{0}")]
    Setup(String),
    /// Threads for work that blocks could not be started.
    #[error("cannot start threads: {source}; raise the limit of processes (ulimit -u, TasksMax) and start again")]
    Threads {
        /// What the system said.
        source: io::Error,
    },
}

impl From<Unusable> for BindError {
    fn from(error: Unusable) -> Self {
        Self::Advertise(error.to_string())
    }
}

impl BindError {
    fn state(error: JournalError) -> Self {
        Self::State(error.to_string())
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Handle {
    peer: SocketAddr,
    /// Where scrapes are answered.
    metrics: Option<SocketAddr>,
    control: ControlAt,
    /// Removed as soon as the daemon stops, when it still listens there.
    socket: Option<Socket>,
    identity: Identity,
    drain: Duration,
    faults: mpsc::Receiver<Fault>,
    tasks: TaskTracker,
    membership: CancellationToken,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Handle {
    /// Where other peers fetch.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer
    }

    /// Where a person drives it.
    pub fn control(&self) -> &ControlAt {
        &self.control
    }

    /// Which peer it is.
    pub fn id(&self) -> PeerId {
        self.identity.id()
    }

    /// Leaves the tracker, ends downloads (their chunks stay), lets running uploads finish, and cuts those
    /// that have not when the drain deadline comes. No task and no connection is left then.
    pub async fn shutdown(mut self) -> Drained {
        drop(self.socket.take());
        // First of all no peer is to be sent here any more.
        self.membership.cancel();
        self.stop.cancel();
        self.tasks.close();
        let drained = match tokio::time::timeout(self.drain, self.tasks.wait()).await {
            Ok(()) => Drained::Fully,
            Err(_) => Drained::CutOff,
        };
        self.cut.cancel();
        // What is left then hangs in the kernel; it must not keep the program.
        let _ = tokio::time::timeout(LAST_WAIT, self.tasks.wait()).await;
        drained
    }
}

impl Daemon for Handle {
    fn ready(&self) -> String {
        let metrics = self.metrics.map(|address| format!(" metrics={address}")).unwrap_or_default();
        format!("peer={} control={} id={}{metrics}", self.peer, self.control, self.id())
    }

    async fn failed(&mut self) -> Failure {
        match self.faults.recv().await {
            Some(fault) => fault.into(),
            // The senders are gone only after a shutdown, which takes the handle.
            None => std::future::pending().await,
        }
    }

    async fn shutdown(self) -> Drained {
        Handle::shutdown(self).await
    }
}

/// Starts the daemon; it serves when this returns.
pub async fn bind(config: Config) -> Result<Handle, BindError> {
    let dir = usable_dir(&config.dir)?;
    let state_dir = match &config.state_dir {
        Some(state_dir) => state_dir.clone(),
        None => dir.join(STATE_DIR),
    };
    let (choice, token) = (config.securing(&state_dir)?, config.token()?);
    let labels = Labels::merged(&config.label)?;
    let exclusions =
        Exclusions::new(&config.exclude).map_err(|error| BindError::Setup(format!("--exclude: {error}")))?;
    let trust = vouching::read_keys(&config.trust).map_err(|error| BindError::Setup(error.to_string()))?;
    let setup = |error: &(dyn std::error::Error + 'static)| BindError::Setup(innermost(error).to_string());
    let given = match config.advertise.clone() {
        Some(address) => Some(Given::check(address).await?),
        None => None,
    };
    let Listening { listener: peer_listener, address: peer, families } = listen(config.listen, "--listen")?;
    let (control_listener, control, socket) =
        control::listen(&config.control).map_err(|source| BindError::Control { at: config.control.clone(), source })?;
    let scraped = config.metrics.map(|address| listen(address, "--metrics")).transpose()?;
    let metrics_address = scraped.as_ref().map(|scraped| scraped.address);
    let advertise = match given {
        Some(given) => Advertise::Fixed(given.told(families, &config.tracker)),
        None if !peer.ip().is_unspecified() => Advertise::listened(peer.into(), &config.tracker),
        None => Advertise::Routed(Routed { tracker: config.tracker.clone(), listens: peer, families }),
    };
    // The one source of randomness: everything random below is decided by seeds that it gives out.
    let mut seeds = match config.seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => StdRng::from_rng(&mut rand::rng()),
    };
    let fence = config.fence(&dir, &state_dir).map_err(|(path, source)| BindError::AllowPath { path, source })?;
    let disk = Disk::fenced(fence.clone());
    let journal = Arc::new(Journal::open(&state_dir, disk.clone()).map_err(BindError::state)?);
    let partials = Partials::open(journal.folder(), disk)
        .map_err(|source| BindError::state(JournalError::Folder { path: state_dir.clone(), source }))?;
    // Not from the seed: two peers that were given the same one are still two peers.
    let given = trust::given(&choice)?;
    let suggested = given.as_ref().and_then(Credentials::says).and_then(Certified::peer);
    let certified = !matches!(choice, Choice::Off { .. });
    let identity = Identity::load(journal.clone(), suggested, certified).map_err(BindError::state)?;
    let joining = Joining {
        state_dir: &state_dir,
        tracker: &config.tracker,
        peer: identity.id(),
        token: token.as_ref(),
        token_file: config.join_file.as_deref(),
    };
    let trusting = trust::open(choice, given, joining).await?;
    let transport = trusting.transport.clone();
    let metrics = Arc::<Metrics>::default();
    let tracker = TrackerClient::observed(&transport, &config.tracker, Some(metrics.observer()));
    let tracker = tracker.map_err(|error| setup(&error))?;

    let (membership, stop, cut) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let holdings = Arc::new(Holdings::fenced(fence));
    let kept = certified.then(|| trust::access_file(&state_dir));
    let rights = Rights::open(kept, transport.is_secured(), transport.pass().clone(), holdings.clone());
    let rights = Arc::new(rights);
    let sharer = Arc::new(Sharer {
        journal,
        partials: Arc::new(partials),
        holdings: holdings.clone(),
        dir,
        shelf: Shelf::new(exclusions, config.settle),
        trust,
        untrusted: Untrusted::default(),
        progress: HashProgress::default(),
        stop: stop.clone(),
    });
    let standing = watch::Sender::new(Standing::default());
    let lanes = Lanes::new(config.most_uploads()).map_err(|source| BindError::Threads { source })?;
    let limits = Limits::new(config.up, config.down);
    let context = Arc::new(Context {
        lanes: lanes.clone(),
        connections: Arc::new(Connections::new(transport.clone(), identity.clone(), standing.subscribe())),
        tracker: tracker.clone(),
        identity: identity.clone(),
        standing: standing.subscribe(),
        access: rights.access(),
        labels: labels.clone(),
        sharer: sharer.clone(),
        memory: ChunkMemory::new(MEMORY),
        far_memory: ChunkMemory::new(FAR_MEMORY),
        parts: Arc::new(Semaphore::new(PARTS_KIB)),
        limits: limits.clone(),
        ranks: Arc::default(),
        metrics: metrics.clone(),
        downlink: Default::default(),
    });
    let transfers = Arc::new(Transfers::new(context.clone(), tasks.clone(), stop.clone(), seeds.random()));
    let slots = config.upload_slots.into();
    let uploads =
        Uploads::new(holdings.clone(), lanes.clone(), slots, pace::SENDING, limits.up.clone(), metrics.clone());
    let uploads = Arc::new(uploads);
    let news = NewsDesk::new(holdings.clone(), uploads.idle(), stop.clone());

    // What the journal vouches for is offered from the start; the rest waits for hashing.
    transfers.restore().map_err(BindError::state)?;
    transfers.resume().map_err(BindError::state)?;
    let (notices, noticed) = mpsc::channel(NOTICES);
    let member = Membership {
        tracker: tracker.clone(),
        tracker_address: config.tracker.clone(),
        state_dir: state_dir.clone(),
        rights: rights.clone(),
        identity: identity.clone(),
        labels: labels.clone(),
        advertise,
        holdings: holdings.clone(),
        standing: standing.clone(),
        notices,
        seed: seeds.random(),
        outage: Outage::counted(metrics.outages.clone()),
        looking: false,
        last_lease: None,
    };
    let (fault, faults) = mpsc::channel(3);
    let membership_ended = membership.clone();
    let member = async move {
        member.run(membership_ended).await;
        Ok(())
    };
    tasks.spawn(shell::watch_over("membership", member, membership.clone(), fault.clone()));
    tasks.spawn(shell::guard("task that renews the certificate", trusting.keep(stop.clone()), fault.clone()));
    let notices = heed(noticed, sharer.clone(), transfers.clone(), lanes.clone());
    tasks.spawn(shell::guard("task for the tracker's answers", notices, fault.clone()));
    let care = Care { look_every: config.look_every, watch: config.watches() };
    let sharing = keep(sharer.clone(), transfers.clone(), lanes.clone(), care, stop.clone());
    tasks.spawn(shell::guard("sharing of the folder", sharing, fault.clone()));

    let (tracker_asked, sharer_asked) = (tracker.clone(), sharer.clone());
    let vouching =
        Vouching { tracker: tracker_asked, sharer: sharer_asked, transfers: transfers.clone(), lanes: lanes.clone() };
    let (vouching_now, told) = (vouching.clone(), standing.subscribe());
    let (vouch_until, look_every) = (stop.clone(), config.look_every);
    let vouched = async move { _ = vouch_until.run_until_cancelled(vouching_now.keep(told, look_every)).await };
    tasks.spawn(shell::guard("task that asks for signatures", vouched, fault.clone()));

    let (standing_told, ready_until) = (standing.subscribe(), stop.clone());
    let monitor = Monitor {
        labels,
        tracker: config.tracker.clone(),
        standing: standing.subscribe(),
        context,
        uploads: uploads.clone(),
        transfers: transfers.clone(),
    };
    if let Some(Listening { listener, .. }) = scraped {
        let exposition = metrics::exposition(monitor.clone(), transport.handshakes().clone());
        let serving = drizzle_proto::metrics::serve(listener, exposition, stop.clone());
        tasks.spawn(shell::guard("task that answers scrapes", serving, fault.clone()));
    }
    let backend = Arc::new(Backend {
        tracker,
        monitor,
        standing,
        limits,
        lanes,
        sharer,
        transfers,
        vouching,
        tasks: tasks.clone(),
    });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PeerServer<PeerService>>().await;
    health.set_serving::<ControlServer<ControlService>>().await;
    let disks = watch_disks(health.clone(), holdings, stop.clone());
    tasks.spawn(shell::guard("task that looks after the disks", disks, fault.clone()));
    let names = [PeerServer::<PeerService>::NAME, ControlServer::<ControlService>::NAME];
    let ready = async move { readiness::tell(standing_told, health, &names, ready_until).await };
    tasks.spawn(shell::guard("task that tells whether it is ready", ready, fault.clone()));
    let (reflection, reflection_alpha) = reflection::servers(&names).map_err(|error| setup(&error))?;
    let mut peer_incoming = transport.incoming(peer_listener, Strangers::Refused, cut.clone());
    // Programs of this machine need no certificate to reach a socket or loopback.
    let control_transport = if control.is_local() { Transport::plaintext() } else { transport.clone() };
    let admins = match control_transport.tls() {
        Some(_) => AdminsOnly::by(rights.access()),
        None => AdminsOnly::nobody_else_comes(),
    };
    tasks.spawn(shell::watch_listener("peer service", peer_incoming.broken(), fault.clone()));
    let peer_server = transport
        .server()
        .add_service(Peer::new(PeerService { uploads, news, identity: identity.clone(), rights }))
        .add_service(health_service.clone().max_decoding_message_size(MAX_QUESTION))
        .serve_with_incoming_shutdown(peer_incoming, stop.clone().cancelled_owned());
    let control_router = transport
        .server()
        .add_service(ControlServer::with_interceptor(ControlService(backend), admins))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_alpha);
    let (control_server, broken) =
        control_listener.serve(&control_transport, control_router, stop.clone(), cut.clone());
    tasks.spawn(shell::watch_listener("control service", broken, fault.clone()));
    tasks.spawn(shell::watch_over("peer service", peer_server, stop.clone(), fault.clone()));
    tasks.spawn(shell::watch_over("control service", control_server, stop.clone(), fault));
    Ok(Handle {
        peer,
        metrics: metrics_address,
        control,
        socket,
        identity,
        drain: config.drain,
        faults,
        tasks,
        membership,
        stop,
        cut,
    })
}

/// Makes the folder if there is none, and resolves links once, so that names can be compared.
fn usable_dir(path: &Path) -> Result<PathBuf, BindError> {
    let fail = |source| BindError::Dir { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(fail)?;
    path.canonicalize().map_err(fail)
}

fn listen(address: SocketAddr, option: &'static str) -> Result<Listening, BindError> {
    listen::listen(address).map_err(|source| BindError::Listen { address, option, source })
}

/// While calls on shared files hang, this peer does not serve all that it said it would: its health says so.
async fn watch_disks(health: HealthReporter, holdings: Arc<Holdings>, stop: CancellationToken) {
    let mut hung = false;
    let mut ticks = tokio::time::interval(DISKS);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let hanging = holdings.calls().hanging();
        if hung == hanging.is_empty() {
            hung = !hung;
            if let Some(path) = hanging.first() {
                tracing::error!(path = %path.display(), files = hanging.len(), "the disk or network mount of shared files does not answer; other files are served");
                health.set_not_serving::<PeerServer<PeerService>>().await;
            } else {
                tracing::info!("every disk answers again");
                health.set_serving::<PeerServer<PeerService>>().await;
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A handle that is dropped without draining leaves nothing running either.
        self.membership.cancel();
        self.stop.cancel();
        self.cut.cancel();
    }
}
