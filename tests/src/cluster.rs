//! A tracker and peers on this machine: the real binaries, each in a folder of its own.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use drizzle_proto::{
    Address, FileName, PeerId,
    client::TrackerClient,
    holder::Holder,
    net::{tls::Meant, transport::Transport},
    wire::{
        ListFilesRequest, StatusRequest, StatusResponse, control_client::ControlClient,
        tracker_client::TrackerClient as WireTrackerClient,
    },
};
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{
    Content, Gate, Run, Running,
    process::{Output, Process},
    until,
};

/// A tracker, and where the peers' folders are. Peers are values of their own; they come and go.
#[derive(Debug)]
pub struct Cluster {
    /// The tracker.
    pub tracker: Tracker,
    // Last: the folder goes when nobody writes to it any more.
    folder: TempDir,
}

/// How a peer differs from the ordinary.
#[derive(Debug, Default)]
pub struct Options {
    args: Vec<OsString>,
    dir: Option<PathBuf>,
    files: Vec<(String, Vec<u8>)>,
    log: Output,
    control: Option<String>,
    tracker: Option<String>,
}

impl Options {
    /// Further arguments of `peer-svc`.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A folder other than its own new one.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Controlled elsewhere than at a free port, such as at a socket.
    #[must_use]
    pub fn control(mut self, at: impl Into<String>) -> Self {
        self.control = Some(at.into());
        self
    }

    /// With another tracker than the cluster's.
    #[must_use]
    pub fn tracker(mut self, url: impl Into<String>) -> Self {
        self.tracker = Some(url.into());
        self
    }

    /// A log that goes elsewhere.
    #[must_use]
    pub fn log(mut self, log: Output) -> Self {
        self.log = log;
        self
    }

    /// A file that lies in the folder from the start.
    #[must_use]
    pub fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        self.files.push((name.to_owned(), bytes.to_owned()));
        self
    }
}

impl Cluster {
    /// Starts a tracker.
    pub async fn start() -> Self {
        Self::with_tracker_args::<&str>([]).await
    }

    /// Starts a tracker with further arguments.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn with_tracker_args<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::with_tracker(args, Output::Kept).await
    }

    /// Starts a tracker with further arguments, whose log goes elsewhere.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn with_tracker<A: Into<OsString>>(args: impl IntoIterator<Item = A>, log: Output) -> Self {
        let folder = tempfile::Builder::new().prefix("drizzle-test-").tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("logs")).expect("a folder for logs");
        let mut all: Vec<OsString> = vec!["--data-dir".into(), folder.path().join("tracker").into()];
        all.extend(args.into_iter().map(Into::into));
        let daemon = Daemon::start("tracker", "tracker-svc", all, &["--listen"], folder.path(), log).await;
        Self { tracker: Tracker { daemon }, folder }
    }

    /// The folder that holds everything of this cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a peer.
    pub async fn peer(&self, name: &str) -> Peer {
        self.peer_with(name, Options::default()).await
    }

    /// Starts a peer that is not ordinary.
    ///
    /// # Panics
    /// If it does not start, or its files cannot be written.
    pub async fn peer_with(&self, name: &str, options: Options) -> Peer {
        let dir = options.dir.unwrap_or_else(|| self.folder().join(name));
        for (file, bytes) in &options.files {
            write(&dir.join(file), bytes);
        }
        let is_empty = fs::read_dir(&dir).is_ok_and(|mut files| files.next().is_none()) || !dir.exists();
        let log = options.log;
        let mut args: Vec<OsString> =
            vec!["--tracker".into(), options.tracker.unwrap_or_else(|| self.tracker.url()).into()];
        args.extend(["--dir".into(), dir.clone().into()]);
        args.extend(options.args);
        let mut listens = vec!["--listen"];
        match options.control {
            Some(at) => args.extend(["--control".into(), at.into()]),
            None => listens.push("--control"),
        }
        let daemon = Daemon::start(name, "peer-svc", args, &listens, self.folder(), log).await;
        if is_empty && log == Output::Kept {
            // What a test puts there from now on is shared as the test says, and not by the first look at the folder.
            until("the first look at the folder", async || {
                daemon.process.stderr().contains(" sharing dir=").then_some(())
            })
            .await;
        }
        Peer { daemon, dir }
    }

    /// Starts a peer that others reach through a closed gate.
    pub async fn gated_peer(&self, name: &str) -> (Peer, Gate) {
        let gate = Gate::closed().await;
        let peer = self.peer_with(name, Options::default().args(["--advertise", &gate.address().to_string()])).await;
        gate.lead_to(peer.address());
        (peer, gate)
    }

    /// Names that the tracker lists, with the numbers of full and partial holders.
    ///
    /// # Panics
    /// If the tracker does not answer.
    pub async fn listed(&self) -> Vec<(String, u32, u32)> {
        let mut tracker = self.tracker.client();
        let mut listed = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListFilesRequest { page_token, ..Default::default() };
            let (files, next) = tracker.list_files(request).await.expect("the tracker lists");
            listed.extend(files.into_iter().map(|f| (f.file.name.to_string(), f.full_holders, f.partial_holders)));
            match next {
                Some(next) => page_token = next,
                None => return listed,
            }
        }
    }

    /// Who holds what of a file, by peer id; empty if the tracker does not know it or does not answer.
    pub async fn holders(&self, name: &str) -> BTreeMap<PeerId, Holder> {
        let name = FileName::new(name).unwrap_or_else(|error| panic!("{error}"));
        let holders = self.tracker.client().holders(&name).await;
        holders.map(|(_, holders)| holders.into_iter().map(|h| (h.peer.id(), h)).collect()).unwrap_or_default()
    }

    /// Waits until this many peers hold all of a file.
    pub async fn until_held(&self, name: &str, full_holders: usize) {
        until(&format!("{full_holders} full holders of {name}"), async || {
            let full = self.holders(name).await.values().filter(|holder| holder.chunks.is_full()).count();
            (full == full_holders).then_some(())
        })
        .await;
    }
}

/// The real tracker.
#[derive(Debug)]
pub struct Tracker {
    /// Its process.
    pub daemon: Daemon,
}

impl Tracker {
    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.daemon.ready["tracker"])
    }

    /// Its address.
    ///
    /// # Panics
    /// If its ready line had none.
    pub fn address(&self) -> Address {
        Address::new(&self.daemon.ready["tracker"]).expect("an address in the ready line")
    }

    /// A client that speaks domain types.
    ///
    /// # Panics
    /// If its ready line had no address.
    pub fn client(&self) -> TrackerClient {
        TrackerClient::new(&Transport::plaintext(), &self.address()).expect("an address")
    }

    /// A client that sends whatever it is told to.
    ///
    /// # Panics
    /// If its ready line had no address.
    pub fn wire(&self) -> WireTrackerClient<Channel> {
        WireTrackerClient::new(
            Transport::plaintext().connect_lazy(&self.address(), Meant::Tracker).expect("an address"),
        )
    }
}

/// The real peer daemon, with its folder.
#[derive(Debug)]
pub struct Peer {
    /// Its process.
    pub daemon: Daemon,
    /// Its folder.
    pub dir: PathBuf,
}

impl Peer {
    /// Where it listens for other peers. What it tells them is another matter if it is gated.
    ///
    /// # Panics
    /// If its ready line had no address.
    pub fn address(&self) -> SocketAddr {
        self.daemon.ready["peer"].parse().expect("an address in the ready line")
    }

    /// `HOST:PORT` of its Control service, or `unix:PATH`.
    pub fn control(&self) -> &str {
        &self.daemon.ready["control"]
    }

    /// Who it says it is.
    ///
    /// # Panics
    /// If its ready line had no id.
    pub fn id(&self) -> PeerId {
        self.daemon.ready["id"].parse().expect("an id in the ready line")
    }

    /// A client of its Control service that sends whatever it is told to.
    ///
    /// # Panics
    /// If the ready line had no address.
    pub fn wire(&self) -> ControlClient<Channel> {
        let control = Address::new(self.control()).expect("an address in the ready line");
        ControlClient::new(Transport::plaintext().connect_lazy(&control, Meant::AnyPeer).expect("an address"))
    }

    /// Its status.
    ///
    /// # Panics
    /// If it does not answer.
    pub async fn status(&self) -> StatusResponse {
        self.wire().status(StatusRequest {}).await.expect("the daemon tells its status").into_inner()
    }

    /// Waits until so many bytes of its download are recorded: what is recorded, no crash takes.
    pub async fn until_recorded(&self, bytes: u64) {
        until(&format!("{bytes} recorded bytes"), async || {
            let status = self.status().await;
            let recorded = status.transfers.first().and_then(|transfer| transfer.progress.as_ref())?.bytes_recorded;
            (recorded >= bytes).then_some(())
        })
        .await;
    }

    /// Starts it again, and waits until it has a lease of its own. What the tracker lists from then on was announced
    /// by the new process: before, the killed one's lease may still stand.
    pub async fn restart(&mut self) {
        self.daemon.restart().await;
        until("the restarted peer's lease", async || self.status().await.tracker_connected.then_some(())).await;
    }

    /// Starts `peer-cli` against it.
    pub fn start_cli<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Running::start(self.control(), &args, &self.daemon.logs)
    }

    /// Runs `peer-cli` against it to the end.
    pub async fn cli<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.start_cli(args).ended().await
    }

    /// Downloads a file into its folder; the run must end well.
    pub async fn download(&self, name: &str) -> Run {
        self.cli(["download", name]).await.expect(0)
    }

    /// Where a name lies in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts the content into its folder and shares it with the content's own chunk size.
    ///
    /// # Panics
    /// If that fails.
    pub async fn share(&self, content: &Content) {
        let path = self.path(content.name.as_str());
        write(&path, &content.bytes);
        let chunk_size = content.manifest.layout().chunk_size().to_string();
        self.cli([OsStr::new("share"), path.as_os_str(), OsStr::new("--chunk-size"), OsStr::new(&chunk_size)])
            .await
            .expect(0);
    }
}

/// A daemon: its process, the arguments it is started again with, and what its ready line said.
#[derive(Debug)]
pub struct Daemon {
    /// Its present process.
    pub process: Process,
    /// What its ready line said: `tracker`, or `peer`, `control` and `id`.
    pub ready: BTreeMap<String, String>,
    /// Where its output goes.
    pub logs: PathBuf,
    name: String,
    program: String,
    args: Vec<OsString>,
    listens: Vec<String>,
    log: Output,
}

impl Daemon {
    /// Starts a daemon on free ports of the loopback interface and waits until it serves.
    async fn start(
        name: &str,
        program: &str,
        args: Vec<OsString>,
        listens: &[&str],
        folder: &Path,
        log: Output,
    ) -> Self {
        let logs = folder.join("logs");
        let mut all = args.clone();
        for listen in listens {
            all.extend([OsString::from(listen), "127.0.0.1:0".into()]);
        }
        let mut process = Process::start_with(name, program, &all, &logs, [Output::Kept, log]);
        let ready = ready(&mut process, name).await;
        let listens = listens.iter().map(|listen| (*listen).to_owned()).collect();
        Self { process, ready, logs, name: name.to_owned(), program: program.to_owned(), args, listens, log }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; its exit code once it has ended.
    pub async fn terminate(&mut self) -> i32 {
        self.process.signal(Signal::TERM);
        self.process.ended().await
    }

    /// Starts it again with the same arguments on the same ports, whether it was killed or still runs.
    pub async fn restart(&mut self) {
        self.restart_with::<&str>([]).await;
    }

    /// Starts it again on the same ports with further arguments.
    pub async fn restart_with<A: Into<OsString>>(&mut self, args: impl IntoIterator<Item = A>) {
        self.process.kill();
        let mut all = self.args.clone();
        all.extend(args.into_iter().map(Into::into));
        for listen in &self.listens {
            let key = match listen.as_str() {
                "--control" => "control",
                _ if self.program == "tracker-svc" => "tracker",
                _ => "peer",
            };
            all.extend([OsString::from(listen), self.ready[key].clone().into()]);
        }
        self.process = Process::start_with(&self.name, &self.program, &all, &self.logs, [Output::Kept, self.log]);
        self.ready = ready(&mut self.process, &self.name).await;
    }
}

async fn ready(process: &mut Process, name: &str) -> BTreeMap<String, String> {
    let line = ready_line(process, name).await;
    let pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// What a daemon says after the word "ready", once it does.
pub(crate) async fn ready_line(process: &mut Process, name: &str) -> String {
    let line = until(&format!("the ready line of {name}"), async || {
        let code = process.exit_code();
        let line = process.stdout().split_once('\n').map(|(line, _)| line.to_owned());
        assert!(
            line.is_some() || code.is_none(),
            "{name} ended with {code:?} instead of serving: {}",
            process.stderr()
        );
        line
    })
    .await;
    let rest = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{name} said {line:?} instead of being ready"));
    rest.to_owned()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder can be made");
    fs::write(path, bytes).expect("a file can be written");
}
