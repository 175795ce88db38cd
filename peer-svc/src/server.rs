//! Binds, runs and drains the daemon.
//!
//! Everything that can be wrong with the options is found before a port is bound. Every task is counted,
//! so that shutting down can prove that none is left.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use drizzle_proto::{
    PeerId,
    client::TrackerClient,
    net::{
        reflection,
        shell::{self, Daemon, Drained, Failure, Fault},
        transport::Transport,
    },
    wire,
};
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
    holdings::{Holdings, Refusal},
    register::{Advertise, Membership, Notice, Standing},
    serve::{PeerService, Uploads},
    share::{HashProgress, Sharer},
    store::record::{State, StateError},
    transfers::Transfers,
};

/// The peer's state folder, unless told otherwise, below its folder.
pub const STATE_DIR: &str = ".drizzle";
/// Refusals and releases that may wait to be looked at.
const NOTICES: usize = 1024;
/// For what was cut to notice.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// The log hears of long hashing this often.
const HASHING: Duration = Duration::from_secs(5);

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
    #[error(transparent)]
    State(#[from] StateError),
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
    /// The tracker's URL is malformed, or reflection could not be set up.
    #[error("{0}")]
    Setup(String),
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
        // First of all nobody is to be sent here any more.
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
    let setup = |error: &dyn std::fmt::Display| BindError::Setup(error.to_string());
    let transport = Transport::plaintext();
    let tracker = TrackerClient::new(&transport, &config.tracker).map_err(|error| setup(&error))?;
    let (peer_listener, peer) = listen(config.listen, "--listen").await?;
    let (control_listener, control) = listen(config.control, "--control").await?;
    let state = Arc::new(State::open(&state_dir)?);
    let id = state.peer_id()?;

    let holdings = Arc::new(Holdings::default());
    let (membership, stop, cut) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let context = Arc::new(Context {
        transport: transport.clone(),
        tracker: tracker.clone(),
        peer: id,
        state: state.clone(),
        holdings: holdings.clone(),
        dir: dir.clone(),
        budget: Arc::new(Semaphore::new(BUDGET_KIB)),
        downloaded: AtomicU64::new(0),
    });
    let transfers = Arc::new(Transfers::new(context.clone(), tasks.clone(), stop.clone()));
    let sharer = Arc::new(Sharer {
        state,
        holdings: holdings.clone(),
        dir,
        progress: HashProgress::default(),
        stop: stop.clone(),
    });
    let uploads = Arc::new(Uploads::new(holdings.clone(), config.upload_slots.into()));
    let standing = watch::Sender::new(Standing::default());

    // What the record vouches for is offered from the start; the rest waits for hashing.
    transfers.restore()?;
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
        labels: config.label.clone(),
        advertise,
        holdings: holdings.clone(),
        standing: standing.clone(),
        notices,
    };
    tasks.spawn(member.run(membership.clone()));
    tasks.spawn(heed(noticed, sharer.clone(), transfers.clone()));
    tasks.spawn(share_folder(sharer.clone(), stop.clone()));

    let backend = Arc::new(Backend {
        tracker,
        tracker_address: config.tracker.clone(),
        standing,
        holdings,
        sharer,
        transfers,
        context,
        uploads: uploads.clone(),
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
    let (fault, faults) = mpsc::channel(2);
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

/// Shares the folder, saying now and then how far hashing is.
async fn share_folder(sharer: Arc<Sharer>, stop: CancellationToken) {
    let mut hashing = {
        let sharer = sharer.clone();
        tokio::task::spawn_blocking(move || sharer.share_folder())
    };
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + HASHING, HASHING);
    loop {
        tokio::select! {
            done = &mut hashing => {
                match done {
                    Ok(Err(error)) if !stop.is_cancelled() => tracing::error!(%error, "cannot share the folder"),
                    _ => {}
                }
                return;
            }
            _ = ticks.tick() => {
                let at = sharer.progress.read();
                let mib = |bytes: u64| bytes >> 20;
                tracing::info!("hashing: {} of {} files, {} of {} MiB", at.files_done, at.files_total, mib(at.bytes_done), mib(at.bytes_total));
            }
        }
    }
}

/// Acts on what the tracker did not take, or took back.
async fn heed(mut notices: mpsc::Receiver<Notice>, sharer: Arc<Sharer>, transfers: Arc<Transfers>) {
    // Pairs of our content and the registered one that were found to differ: every new lease brings the
    // same refusals, and a large file is not to be hashed again for each.
    let mut differ = HashSet::new();
    while let Some(notice) = notices.recv().await {
        if let Notice::Refused(refusal @ Refusal { ours, registered: Some(registered), .. }) = &notice
            && !differ.insert((ours.id, registered.id))
        {
            sharer.holdings.refuse(refusal);
            continue;
        }
        let (sharer, transfers) = (sharer.clone(), transfers.clone());
        let heeded = tokio::task::spawn_blocking(move || match notice {
            Notice::Refused(refusal) => match sharer.adopt_chunk_size(&refusal) {
                Ok(true) => {
                    tracing::info!(name = %refusal.ours.name, "the same content is registered in other chunks: adopted them");
                }
                outcome => {
                    sharer.holdings.refuse(&refusal);
                    let error = outcome.err().map(|error| error.to_string());
                    tracing::warn!(name = %refusal.ours.name, error, "not shared: {}", refusal.detail);
                }
            },
            Notice::Released(file) => {
                let ours = sharer.holdings.get(&file.name).is_some_and(|view| view.manifest.id() == file.id);
                // A running download hears of it by itself.
                if ours && !transfers.is_running(&file.name) {
                    tracing::info!(name = %file.name, "its owner withdrew it: no longer offered");
                    if let Err(error) = sharer.unshare(&file.name) {
                        tracing::warn!(name = %file.name, %error, "cannot record that");
                    }
                }
            }
        });
        let _ = heeded.await;
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
