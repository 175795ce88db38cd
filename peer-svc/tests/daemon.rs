//! The daemon in this process, beside a tracker that a test plays.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use drizzle_proto::{
    Address, ChunkSet, Digest, FileName, Labels, Layout, Manifest, PeerClaim, PeerInfo,
    holder::Holder,
    net::{
        control_at::ControlAt,
        shell::{Drained, LogFormat},
        tls::Meant,
        transport::{CALL_TIMEOUT, Transport},
    },
    wire::{self, peer_client::PeerClient, tracker_server},
};
use peer_svc::{Config, Handle, bind};
use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, transport::Channel};

/// Far longer than anything takes; only a bug waits for it.
const LIMIT: Duration = Duration::from_secs(30);

/// What the tracker has seen, and how it answers.
#[derive(Debug, Default)]
struct Script {
    renewals: AtomicU32,
    announcing: Notify,
    announcements: AtomicU32,
    registrations: AtomicU32,
    registered: std::sync::Mutex<Option<PeerInfo>>,
    /// Announcements are never answered.
    hangs: bool,
    /// Nor is the first renewal.
    first_renewal_hangs: bool,
    /// The names in each announcement.
    announced: std::sync::Mutex<Vec<Vec<String>>>,
    /// Announcements that fail from now on.
    failing: AtomicU32,
    /// What it says of every name; it knows none without.
    locations: std::sync::Mutex<Option<wire::FileLocationsResponse>>,
}

#[derive(Clone)]
struct FakeTracker(Arc<Script>);

type Watch = std::pin::Pin<Box<dyn Stream<Item = Result<wire::WatchFileResponse, Status>> + Send>>;

#[tonic::async_trait]
impl tracker_server::Tracker for FakeTracker {
    async fn register_peer(
        &self,
        request: Request<wire::RegisterPeerRequest>,
    ) -> Result<Response<wire::RegisterPeerResponse>, Status> {
        self.0.registrations.fetch_add(1, Ordering::Relaxed);
        *self.0.registered.lock().unwrap() = Some(PeerClaim::try_from(request.into_inner())?.peer);
        Ok(Response::new(wire::RegisterPeerResponse {
            lease_id: 7,
            lease_millis: 150,
            renew_millis: 50,
            ..Default::default()
        }))
    }

    async fn register_manifest(
        &self,
        _: Request<tonic::Streaming<wire::RegisterManifestRequest>>,
    ) -> Result<Response<wire::RegisterManifestResponse>, Status> {
        Err(Status::unimplemented("its files are short"))
    }

    async fn register_chunk(
        &self,
        request: Request<wire::RegisterChunkRequest>,
    ) -> Result<Response<wire::RegisterChunkResponse>, Status> {
        self.0.announcements.fetch_add(1, Ordering::Relaxed);
        self.0.announcing.notify_one();
        if self.0.hangs {
            std::future::pending::<()>().await;
        }
        let request = request.into_inner();
        let names = request.files.iter().map(|entry| entry.file.as_ref().unwrap().name.clone()).collect();
        self.0.announced.lock().unwrap().push(names);
        if self.0.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(Status::deadline_exceeded("too slow"));
        }
        let status = wire::file_result::Status::Registered.into();
        let results = request.files.into_iter().map(|_| wire::FileResult { status, ..Default::default() });
        Ok(Response::new(wire::RegisterChunkResponse { results: results.collect(), pause_millis: 0 }))
    }

    async fn renew_lease(
        &self,
        _: Request<wire::RenewLeaseRequest>,
    ) -> Result<Response<wire::RenewLeaseResponse>, Status> {
        if self.0.renewals.fetch_add(1, Ordering::Relaxed) == 0 && self.0.first_renewal_hangs {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(wire::RenewLeaseResponse::default()))
    }

    async fn leave(&self, _: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        Ok(Response::new(wire::LeaveResponse {}))
    }

    async fn withdraw_file(
        &self,
        _: Request<wire::WithdrawFileRequest>,
    ) -> Result<Response<wire::WithdrawFileResponse>, Status> {
        Err(Status::not_found("no such file"))
    }

    async fn list_files(
        &self,
        _: Request<wire::ListFilesRequest>,
    ) -> Result<Response<wire::ListFilesResponse>, Status> {
        Ok(Response::new(wire::ListFilesResponse::default()))
    }

    async fn file_locations(
        &self,
        _: Request<wire::FileLocationsRequest>,
    ) -> Result<Response<wire::FileLocationsResponse>, Status> {
        let locations = self.0.locations.lock().unwrap().clone();
        locations.map(Response::new).ok_or_else(|| Status::not_found("no such file"))
    }

    type WatchFileStream = Watch;

    async fn watch_file(&self, _: Request<wire::WatchFileRequest>) -> Result<Response<Watch>, Status> {
        Err(Status::unavailable("it died"))
    }
}

/// Serves until the test's runtime ends.
async fn tracker(script: Arc<Script>) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let transport = Transport::plaintext();
    let server = transport.server().add_service(tracker_server::TrackerServer::new(FakeTracker(script)));
    tokio::spawn(server.serve_with_incoming(transport.incoming(
        listener,
        drizzle_proto::net::transport::Strangers::Refused,
        CancellationToken::new(),
    )));
    address.into()
}

fn config(folder: &Path, tracker: Address) -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config {
        tracker,
        listen: any,
        control: any.into(),
        allow_path: Vec::new(),
        metrics: None,
        dir: folder.to_owned(),
        state_dir: None,
        advertise: None,
        label: vec!["zone=a,rack=7".parse().unwrap()],
        exclude: Vec::new(),
        trust: Vec::new(),
        settle: Duration::ZERO,
        look_every: Duration::from_secs(60),
        watch: false,
        no_watch: true,
        upload_slots: 2,
        up: drizzle_proto::RateLimit::UNLIMITED,
        down: drizzle_proto::RateLimit::UNLIMITED,
        drain: Duration::from_millis(200),
        seed: Some(1),
        tls: Default::default(),
        join: None,
        join_file: None,
        log_format: LogFormat::Text,
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Bytes of each chunk of the shared file: more than windows and buffers take, so that a stream that is not read
/// stays in its slot.
const CHUNK: u32 = 16 << 20;

/// A daemon that shares one file of 1,024 chunks, all zeros and never written to the disk; and the file's id.
async fn sharing(folder: &Path) -> (Handle, PeerClient<Channel>, String) {
    let size = u64::from(CHUNK) << 10;
    std::fs::File::create(folder.join("a")).unwrap().set_len(size).unwrap();
    let layout = Layout::with_default_chunk_size(size).unwrap();
    assert_eq!(layout.chunk_size(), CHUNK);
    let zeros = Digest::of(&vec![0; CHUNK as usize]);
    let file_id = Manifest::new(layout, vec![zeros; 1024]).unwrap().id().to_string();

    let nowhere = Address::new("127.0.0.1:1").unwrap();
    let peer = bind(config(folder, nowhere)).await.unwrap();
    let channel = Transport::plaintext().connect(&peer.peer_address().into(), Meant::AnyPeer).await.unwrap();
    let client = PeerClient::new(channel);
    // Hashing the folder goes on in the background; until it is done the file is unknown.
    let last_byte = wire::FetchChunkRequest { offset: CHUNK - 1, ..request(&file_id, 0) };
    let stream = patiently(Code::NotFound, async || client.clone().fetch_chunk(last_byte.clone()).await).await;
    assert_eq!(stream.into_inner().map(|message| message.unwrap().data.len()).collect::<Vec<_>>().await, [1]);
    (peer, client, file_id)
}

/// Calls again as long as the answer is this refusal, which must pass.
async fn patiently<T>(refusal: Code, mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let calling = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(status) => assert_eq!(status.code(), refusal, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, calling).await.unwrap_or_else(|_| panic!("{refusal:?} for ever"))
}

fn request(file_id: &str, chunk: u32) -> wire::FetchChunkRequest {
    wire::FetchChunkRequest {
        file_id: file_id.to_owned(),
        chunk,
        offset: 0,
        requester: "11".repeat(16),
        ..Default::default()
    }
}

/// Takes a slot and keeps it: nothing of the stream is read. Slots that were taken before are free a moment after.
async fn occupy(client: &PeerClient<Channel>, file_id: &str, chunk: u32) -> tonic::Streaming<wire::FetchChunkResponse> {
    let call = async || client.clone().fetch_chunk(request(file_id, chunk)).await;
    patiently(Code::ResourceExhausted, call).await.into_inner()
}

#[tokio::test]
async fn a_peer_registers_with_its_labels() {
    let script = Arc::new(Script::default());
    let folder = tempfile::tempdir().unwrap();
    let peer = bind(config(folder.path(), tracker(script.clone()).await)).await.unwrap();
    until("a registration", || script.registered.lock().unwrap().is_some()).await;
    let registered = script.registered.lock().unwrap().clone().unwrap();
    let expected = PeerInfo::new(peer.id(), peer.peer_address().into(), "rack=7,zone=a".parse::<Labels>().unwrap());
    assert_eq!(registered, expected);
    assert_eq!(peer.shutdown().await, Drained::Fully);
}

#[tokio::test]
async fn a_tracker_that_dies_right_after_it_told_of_a_holder_does_not_keep_its_download_from_it() {
    let (script, [source, here]) = (Arc::new(Script::default()), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let tracker = tracker(script.clone()).await;
    std::fs::write(source.path().join("a"), "all of it").unwrap();
    let holder = bind(config(source.path(), tracker.clone())).await.unwrap();
    until("an announcement", || script.announced.lock().unwrap().iter().any(|names| names == &["a"])).await;
    let layout = Layout::with_default_chunk_size(9).unwrap();
    let hash = Digest::of(b"all of it");
    let manifest = Manifest::new(layout, vec![hash]).unwrap();
    let peer = PeerInfo::new(holder.id(), holder.peer_address().into(), Labels::default());
    let chunks = ChunkSet::full(layout.chunk_count());
    *script.locations.lock().unwrap() = Some(wire::FileLocationsResponse {
        file: Some((&manifest.describe(FileName::new("a").unwrap())).into()),
        chunk_sha256: vec![hash.to_string()],
        holders: vec![(&Holder { peer, chunks }).into()],
        ..Default::default()
    });
    let peer = bind(Config { seed: Some(2), ..config(here.path(), tracker) }).await.unwrap();
    assert_ne!(peer.id(), holder.id());
    let control = ControlAt::from(peer.control()).connect(&Transport::plaintext(), Meant::AnyPeer).await.unwrap();
    let request = wire::DownloadRequest { name: "a".to_owned(), ..Default::default() };
    let events = wire::control_client::ControlClient::new(control).download(request).await.unwrap().into_inner();
    let last = tokio::time::timeout(LIMIT, events.map(|event| event.unwrap().event.unwrap()).collect::<Vec<_>>());
    let last = last.await.expect("it does not wait for the tracker").pop();
    assert!(matches!(last, Some(wire::download_event::Event::Done(_))), "{last:?}");
    assert_eq!(std::fs::read(here.path().join("a")).unwrap(), b"all of it");
    peer.shutdown().await;
    holder.shutdown().await;
}

#[tokio::test]
async fn a_lease_is_renewed_while_an_announcement_hangs() {
    let script = Arc::new(Script { hangs: true, ..Script::default() });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "a").unwrap();
    let peer = bind(config(folder.path(), tracker(script.clone()).await)).await.unwrap();
    tokio::time::timeout(LIMIT, script.announcing.notified()).await.expect("an announcement");
    let before = script.renewals.load(Ordering::Relaxed);
    until("three renewals meanwhile", || script.renewals.load(Ordering::Relaxed) >= before + 3).await;
    assert_eq!(script.announcements.load(Ordering::Relaxed), 1, "one at a time");
    peer.shutdown().await;
}

#[tokio::test]
async fn a_renewal_that_hangs_is_given_up_before_the_deadline_of_other_calls() {
    let script = Arc::new(Script { first_renewal_hangs: true, ..Script::default() });
    let folder = tempfile::tempdir().unwrap();
    let peer = bind(config(folder.path(), tracker(script.clone()).await)).await.unwrap();
    let again = until("another renewal", || script.renewals.load(Ordering::Relaxed) >= 2);
    // Far more than it takes, and half of that deadline.
    tokio::time::timeout(CALL_TIMEOUT / 2, again).await.expect("another renewal in time");
    assert_eq!(script.registrations.load(Ordering::Relaxed), 1, "the lease is good still");
    peer.shutdown().await;
}

#[tokio::test]
async fn a_slow_tracker_is_told_again_what_it_did_not_take_and_nothing_else() {
    let script = Arc::new(Script::default());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("known"), "known").unwrap();
    let peer = bind(config(folder.path(), tracker(script.clone()).await)).await.unwrap();
    let announced = |name: &str| {
        let announced = script.announced.lock().unwrap();
        announced.iter().filter(|names| names.iter().any(|known| known == name)).count()
    };
    until("an announcement", || announced("known") == 1).await;
    script.failing.store(3, Ordering::Relaxed);
    let new = folder.path().join("new");
    std::fs::write(&new, "new").unwrap();
    let control = ControlAt::from(peer.control()).connect(&Transport::plaintext(), Meant::AnyPeer).await.unwrap();
    let request = wire::ShareRequest {
        paths: vec![new.to_str().unwrap().to_owned()],
        name: "new".to_owned(),
        ..Default::default()
    };
    let shared = wire::control_client::ControlClient::new(control).share(request).await.unwrap();
    let events: Vec<_> = shared.into_inner().map(|event| event.unwrap().event.unwrap()).collect().await;
    let Some(wire::share_event::Event::Result(result)) = events.last() else { panic!("{events:?}") };
    assert_eq!(result.status(), wire::share_result::Status::Registered);
    assert_eq!((announced("new"), announced("known")), (4, 1), "{:?}", script.announced.lock().unwrap());
    assert_eq!(script.registrations.load(Ordering::Relaxed), 1);
    peer.shutdown().await;
}

#[tokio::test]
async fn a_request_beyond_the_slots_is_refused_until_a_stream_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (peer, client, file_id) = sharing(folder.path()).await;
    let (one, two) = (occupy(&client, &file_id, 0).await, occupy(&client, &file_id, 1).await);
    let refused = client.clone().fetch_chunk(request(&file_id, 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(one);
    let third = occupy(&client, &file_id, 2).await;
    let refused = client.clone().fetch_chunk(request(&file_id, 3)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "one slot was freed, and not two");
    drop((two, third, client));
    assert_eq!(peer.shutdown().await, Drained::Fully);
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let (peer, client, file_id) = sharing(folder.path()).await;
    let mut unread = occupy(&client, &file_id, 0).await;
    assert_eq!(peer.shutdown().await, Drained::CutOff);
    // What was on its way may still be read; the rest never comes, and that is an error.
    let mut taken = 0;
    let error = loop {
        match unread.message().await {
            Ok(Some(message)) => taken += message.data.len(),
            Ok(None) => panic!("{taken} bytes pass for a whole chunk"),
            Err(status) => break status,
        }
    };
    assert!(taken < CHUNK as usize, "{error}");
}
