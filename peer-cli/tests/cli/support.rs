//! A daemon that plays a script, and the real binary run against it.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use drizzle_proto::{
    net::transport::Transport,
    wire::{
        self, ChunkRange, ChunkRanges, FileInfo,
        control_server::{Control, ControlServer},
        download_event::Event,
    },
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// What the daemon answers.
#[derive(Clone, Default)]
pub(crate) struct Script {
    pub(crate) download: Answer<Vec<Event>>,
    /// After its events a download stays open: until it is cancelled, if ever.
    pub(crate) hang: bool,
    pub(crate) share: Answer<Vec<wire::share_event::Event>>,
    pub(crate) files: Answer<Vec<wire::ListFilesResponse>>,
    pub(crate) locations: Answer<Vec<wire::FileLocationsResponse>>,
    pub(crate) status: wire::StatusResponse,
    pub(crate) limits: wire::LimitsResponse,
    pub(crate) unshare: Answer<bool>,
    pub(crate) cancel: Answer<()>,
    /// A transfer that a caller leaves goes on for others.
    pub(crate) goes_on: bool,
}

/// An answer, or a refusal.
#[derive(Clone)]
pub(crate) struct Answer<T>(pub(crate) Result<T, Status>);

impl<T: Default> Default for Answer<T> {
    fn default() -> Self {
        Self(Ok(T::default()))
    }
}

impl<T> From<T> for Answer<T> {
    fn from(value: T) -> Self {
        Self(Ok(value))
    }
}

/// Calls that arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Download(wire::DownloadRequest),
    Share(wire::ShareRequest),
    Files(wire::ListFilesRequest),
    Limits(wire::LimitsRequest),
    Cancel(String),
}

type Sender<T> = mpsc::Sender<Result<T, Status>>;

struct Fake {
    script: Script,
    calls: Arc<Mutex<Vec<Call>>>,
    running: Mutex<Option<Sender<wire::DownloadEvent>>>,
}

impl Fake {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

/// Sends all of a list; a reader that left is not waited for.
fn stream<T: Send + 'static>(items: Vec<T>) -> (Sender<T>, ReceiverStream<Result<T, Status>>) {
    let (sender, receiver) = mpsc::channel(items.len() + 1);
    for item in items {
        sender.try_send(Ok(item)).unwrap();
    }
    (sender, ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl Control for Fake {
    type ShareStream = ReceiverStream<Result<wire::ShareEvent, Status>>;
    type DownloadStream = ReceiverStream<Result<wire::DownloadEvent, Status>>;

    async fn share(&self, request: Request<wire::ShareRequest>) -> Result<Response<Self::ShareStream>, Status> {
        self.note(Call::Share(request.into_inner()));
        let events = self.script.share.0.clone()?;
        Ok(Response::new(stream(events.into_iter().map(|event| wire::ShareEvent { event: Some(event) }).collect()).1))
    }

    async fn sign_file(&self, _: Request<wire::SignFileRequest>) -> Result<Response<wire::SignFileResponse>, Status> {
        Err(Status::permission_denied("that key is not trusted"))
    }

    async fn unshare(&self, _: Request<wire::UnshareRequest>) -> Result<Response<wire::UnshareResponse>, Status> {
        Ok(Response::new(wire::UnshareResponse { name_released: self.script.unshare.0.clone()? }))
    }

    async fn download(
        &self,
        request: Request<wire::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let mut request = request.into_inner();
        assert!(!std::mem::take(&mut request.caller).is_empty(), "a caller says which it is");
        self.note(Call::Download(request));
        let events = self.script.download.0.clone()?;
        let events = events.into_iter().map(|event| wire::DownloadEvent { event: Some(event) }).collect();
        let (sender, receiver) = stream(events);
        if self.script.hang {
            *self.running.lock().unwrap() = Some(sender);
        }
        Ok(Response::new(receiver))
    }

    async fn explain(&self, _: Request<wire::ExplainRequest>) -> Result<Response<wire::ExplainResponse>, Status> {
        Err(Status::not_found("no download of it runs, or ended lately"))
    }

    async fn list_transfers(
        &self,
        _: Request<wire::ListTransfersRequest>,
    ) -> Result<Response<wire::ListTransfersResponse>, Status> {
        Ok(Response::new(wire::ListTransfersResponse::default()))
    }

    async fn cancel_transfer(
        &self,
        request: Request<wire::CancelTransferRequest>,
    ) -> Result<Response<wire::CancelTransferResponse>, Status> {
        self.note(Call::Cancel(request.into_inner().name));
        self.script.cancel.0.clone()?;
        let running = self.running.lock().unwrap().take_if(|_| !self.script.goes_on);
        if let Some(running) = running {
            let end = failed(wire::download_failed::Kind::Cancelled, "cancelled");
            let _ = running.send(Ok(wire::DownloadEvent { event: Some(end) })).await;
        }
        Ok(Response::new(wire::CancelTransferResponse { goes_on: self.script.goes_on }))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        Ok(Response::new(self.script.status.clone()))
    }

    async fn limits(&self, request: Request<wire::LimitsRequest>) -> Result<Response<wire::LimitsResponse>, Status> {
        self.note(Call::Limits(request.into_inner()));
        Ok(Response::new(self.script.limits))
    }

    async fn list_files(
        &self,
        request: Request<wire::ListFilesRequest>,
    ) -> Result<Response<wire::ListFilesResponse>, Status> {
        let request = request.into_inner();
        let page: usize = request.page_token.parse().unwrap_or(0);
        self.note(Call::Files(request));
        Ok(Response::new(self.script.files.0.clone()?[page].clone()))
    }

    async fn file_locations(
        &self,
        request: Request<wire::FileLocationsRequest>,
    ) -> Result<Response<wire::FileLocationsResponse>, Status> {
        let page: usize = request.into_inner().holders_token.parse().unwrap_or(0);
        Ok(Response::new(self.script.locations.0.clone()?[page].clone()))
    }
}

/// The fake, running. Dropped, it is gone together with its connections, like a killed daemon.
pub(crate) struct Daemon {
    pub(crate) url: String,
    calls: Arc<Mutex<Vec<Call>>>,
    runtime: Option<Runtime>,
}

impl Daemon {
    pub(crate) fn start(script: Script) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::default();
        let fake = Fake { script, calls: Arc::clone(&calls), running: Mutex::default() };
        runtime.spawn(async move {
            let server = Transport::plaintext().server().add_service(ControlServer::new(fake));
            server
                .serve_with_incoming(Transport::plaintext().incoming(
                    listener,
                    drizzle_proto::net::transport::Strangers::Refused,
                    CancellationToken::new(),
                ))
                .await
                .unwrap();
        });
        Self { url, calls, runtime: Some(runtime) }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The binary, told where this daemon is.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(&self.url, args)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Starts the binary, and waits until its first line of output.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        Running { child, stdout: Some(stdout), first }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

pub(crate) fn command(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peer-cli"));
    command.args(args).env("DRIZZLE_PEER", url).stdin(Stdio::null());
    command
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

/// A run that goes on.
pub(crate) struct Running {
    child: Child,
    stdout: Option<BufReader<std::process::ChildStdout>>,
    first: String,
}

impl Running {
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Closes the pipe that the binary writes to, as `head` does when it has enough.
    pub(crate) fn hang_up(&mut self) {
        self.stdout = None;
    }

    pub(crate) fn finish(mut self) -> Ran {
        let (mut stdout, mut stderr) = (self.first, String::new());
        if let Some(mut rest) = self.stdout.take() {
            rest.read_to_string(&mut stdout).unwrap();
        }
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ran { code: self.child.wait().unwrap().code(), stdout, stderr }
    }
}

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn file(name: &str) -> FileInfo {
    FileInfo { name: name.into(), file_id: "ab".repeat(32), size: 10 * MIB, chunk_size: 1 << 20, chunk_count: 10 }
}

pub(crate) fn ranges(ranges: &[(u32, u32)]) -> Option<ChunkRanges> {
    Some(ChunkRanges { ranges: ranges.iter().map(|&(first, last)| ChunkRange { first, last }).collect() })
}

pub(crate) fn blame() -> wire::Blame {
    wire::Blame {
        peer: "10.0.0.2:7401".into(),
        offence: wire::Offence::WrongBytes.into(),
        chunks: ranges(&[(3, 5), (7, 7)]),
    }
}

pub(crate) fn started(name: &str) -> Event {
    Event::Started(wire::DownloadStarted { file: Some(file(name)), bytes_wanted: 10 * MIB, bytes_resumed: 2 * MIB })
}

pub(crate) fn source(chunks: u32) -> wire::SourceProgress {
    wire::SourceProgress {
        peer: "10.0.0.2:7401".into(),
        bytes: u64::from(chunks) * MIB,
        chunks,
        in_flight: 1,
        far: false,
    }
}

pub(crate) fn progress(chunks: u32) -> Event {
    let bytes_stored = 2 * MIB + u64::from(chunks) * MIB;
    Event::Progress(wire::DownloadProgress { bytes_stored, sources: vec![source(chunks)], ..Default::default() })
}

pub(crate) fn done(path: &str) -> Event {
    Event::Done(wire::DownloadDone {
        path: path.into(),
        bytes: 8 * MIB,
        elapsed_millis: 2500,
        sources: vec![source(8)],
        ..Default::default()
    })
}

pub(crate) fn failed(kind: wire::download_failed::Kind, reason: &str) -> Event {
    Event::Failed(wire::DownloadFailed {
        kind: kind.into(),
        reason: reason.into(),
        chunks: ranges(&[(3, 5), (7, 7)]),
        blamed: vec![blame()],
    })
}
