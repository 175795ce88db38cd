//! Binds, runs and drains the daemon.
//!
//! Everything that can be wrong with the options is found before a port is bound. Every task is counted,
//! so that shutting down can prove that none is left.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use drizzle_engine::pace;
use drizzle_proto::{
    Labels, PeerId,
    client::TrackerClient,
    labels::LabelError,
    net::{
        reflection,
        shell::{self, Daemon, Drained, Failure, Fault},
        transport::Transport,
    },
    wire,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::server::NamedService;
use wire::{control_server::ControlServer, peer_server::PeerServer};

use crate::{
    config::Config,
    control::{Backend, ControlService},
    download::{BUDGET_KIB, Context},
    holdings::Holdings,
    notices::heed,
    register::{Advertise, Membership, Outage, Standing},
    serve::{PeerService, Uploads},
    share::{
        Exclusions, Sharer, Shelf,
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
};

/// The peer's state folder, unless told otherwise, below its folder.
const STATE_DIR: &str = ".drizzle";
/// Refusals and releases that may wait to be looked at.
const NOTICES: usize = 1024;
/// For what was cut to notice.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The shared folder is unusable.
    #[error("cannot use the folder {}: {source}", path.display())]
    Dir {
        /// The folder.
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
        /// The address.
        address: SocketAddr,
        /// The option that gave it.
        option: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A label is given twice, or there are too many.
    #[error("--label: {0}")]
    Labels(#[from] LabelError),
    /// The tracker's address makes no connection, or reflection could not be set up.
    #[error("{0}")]
    Setup(String),
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
    control: SocketAddr,
    id: PeerId,
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
    pub fn control_address(&self) -> SocketAddr {
        self.control
    }

    /// Who it is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Leaves the tracker, ends downloads (their chunks stay), lets running uploads finish, and cuts those
    /// that have not when the drain deadline comes. No task and no connection is left then.
    pub async fn shutdown(self) -> Drained {
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
        format!("peer={} control={} id={}", self.peer, self.control, self.id)
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
    let labels = Labels::merged(&config.label)?;
    let exclusions =
        Exclusions::new(&config.exclude).map_err(|error| BindError::Setup(format!("--exclude: {error}")))?;
    let setup = |error: &dyn std::fmt::Display| BindError::Setup(error.to_string());
    let transport = Transport::plaintext();
    let tracker = TrackerClient::new(&transport, &config.tracker).map_err(|error| setup(&error))?;
    let (peer_listener, peer) = listen(config.listen, "--listen").await?;
    let (control_listener, control) = listen(config.control, "--control").await?;
    // The one source of randomness: everything random below is decided by seeds that it gives out.
    let mut seeds = match config.seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => StdRng::from_rng(&mut rand::rng()),
    };
    let disk = Disk::default();
    let journal = Arc::new(Journal::open(&state_dir, disk.clone()).map_err(BindError::state)?);
    let partials = Partials::open(journal.folder(), disk)
        .map_err(|source| BindError::state(JournalError::Folder { path: state_dir.clone(), source }))?;
    // Not from the seed: two peers that were given the same one are still two peers.
    let id = journal.peer_id(rand::random()).map_err(BindError::state)?;

    let (membership, stop, cut) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let holdings = Arc::new(Holdings::default());
    let sharer = Arc::new(Sharer {
        journal,
        partials: Arc::new(partials),
        holdings: holdings.clone(),
        dir,
        shelf: Shelf::new(exclusions, config.settle),
        progress: HashProgress::default(),
        stop: stop.clone(),
    });
    let context = Arc::new(Context {
        transport: transport.clone(),
        tracker: tracker.clone(),
        peer: id,
        sharer: sharer.clone(),
        budget: Arc::new(Semaphore::new(BUDGET_KIB)),
        downloaded: AtomicU64::new(0),
    });
    let transfers = Arc::new(Transfers::new(context.clone(), tasks.clone(), stop.clone(), seeds.random()));
    let uploads = Arc::new(Uploads::new(holdings.clone(), config.upload_slots.into(), pace::SENDING));
    let standing = watch::Sender::new(Standing::default());

    // What the journal vouches for is offered from the start; the rest waits for hashing.
    transfers.restore().map_err(BindError::state)?;
    let (notices, noticed) = mpsc::channel(NOTICES);
    let advertise = match config.advertise.clone() {
        Some(address) => Advertise::Fixed(address),
        None if !peer.ip().is_unspecified() => Advertise::Fixed(peer.into()),
        None => Advertise::Routed { tracker: config.tracker.clone(), port: peer.port() },
    };
    let member = Membership {
        tracker: tracker.clone(),
        tracker_address: config.tracker.clone(),
        peer: id,
        labels: labels.clone(),
        advertise,
        holdings: holdings.clone(),
        standing: standing.clone(),
        notices,
        seed: seeds.random(),
        outage: Outage::default(),
    };
    let (fault, faults) = mpsc::channel(3);
    let membership_ended = membership.clone();
    let member = async move {
        member.run(membership_ended).await;
        Ok(())
    };
    tasks.spawn(shell::watch_over("membership", member, membership.clone(), fault.clone()));
    tasks.spawn(heed(noticed, sharer.clone(), transfers.clone()));
    let care = Care { look_every: config.look_every, watch: config.watches() };
    tasks.spawn(keep(sharer.clone(), transfers.clone(), care, stop.clone()));

    let backend = Arc::new(Backend {
        tracker,
        monitor: Monitor {
            labels,
            tracker: config.tracker.clone(),
            standing: standing.subscribe(),
            context,
            uploads: uploads.clone(),
            transfers: transfers.clone(),
        },
        standing,
        sharer,
        transfers,
        tasks: tasks.clone(),
    });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PeerServer<PeerService>>().await;
    health.set_serving::<ControlServer<ControlService>>().await;
    let names = [PeerServer::<PeerService>::NAME, ControlServer::<ControlService>::NAME];
    let (reflection, reflection_alpha) = reflection::servers(&names).map_err(|error| setup(&error))?;
    let peer_server = transport
        .server()
        .add_service(PeerServer::new(PeerService(uploads)))
        .add_service(health_service.clone())
        .serve_with_incoming_shutdown(transport.incoming(peer_listener, cut.clone()), stop.clone().cancelled_owned());
    let control_server = transport
        .server()
        .add_service(ControlServer::new(ControlService(backend)))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(
            transport.incoming(control_listener, cut.clone()),
            stop.clone().cancelled_owned(),
        );
    tasks.spawn(shell::watch_over("peer service", peer_server, stop.clone(), fault.clone()));
    tasks.spawn(shell::watch_over("control service", control_server, stop.clone(), fault));
    Ok(Handle { peer, control, id, drain: config.drain, faults, tasks, membership, stop, cut })
}

/// Makes the folder if there is none, and resolves links once, so that names can be compared.
fn usable_dir(path: &Path) -> Result<PathBuf, BindError> {
    let fail = |source| BindError::Dir { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(fail)?;
    path.canonicalize().map_err(fail)
}

async fn listen(address: SocketAddr, option: &'static str) -> Result<(TcpListener, SocketAddr), BindError> {
    let fail = |source| BindError::Listen { address, option, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A handle that is dropped without draining leaves nothing running either.
        self.membership.cancel();
        self.stop.cancel();
        self.cut.cancel();
    }
}
