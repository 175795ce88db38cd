//! Whole fetches, from a holder in this process to a file.

use std::{
    io,
    pin::Pin,
    sync::mpsc::{self as std_mpsc, Sender},
    time::{Duration, Instant},
};

use drizzle_engine::{
    priority::Priority,
    schedule::{Limits, Scheduler},
};
use drizzle_proto::{
    ChunkSet, Labels, Manifest, PeerId, PeerInfo, RateLimit,
    net::transport::Transport,
    wire::{FetchChunkRequest, FetchChunkResponse, WatchChunksRequest, WatchChunksResponse, peer_server},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{memory::ChunkMemory, *};
use crate::{
    identity::Identity,
    limits::Gate,
    ranks::Ranks,
    store::{
        disk::{Disk, Step, Witness},
        journal::Journal,
        testing::content,
    },
};

const MANY: u64 = 1 << 30;

/// Sends chunks of this content as they are.
struct Honest(Vec<u8>);

type Messages = Pin<Box<dyn Stream<Item = Result<FetchChunkResponse, Status>> + Send>>;

#[tonic::async_trait]
impl peer_server::Peer for Honest {
    type FetchChunkStream = Messages;
    type WatchChunksStream = tokio_stream::Empty<Result<WatchChunksResponse, Status>>;

    async fn fetch_chunk(&self, request: Request<FetchChunkRequest>) -> Result<Response<Messages>, Status> {
        let FetchChunkRequest { chunk, offset, .. } = request.into_inner();
        let bytes = self.0.chunks(1 << 14).nth(chunk as usize).expect("asked for what there is");
        let parts = bytes[offset as usize..]
            .chunks(5000)
            .map(|part| FetchChunkResponse { data: part.to_vec().into(), chunk: None });
        let parts: Vec<_> = parts.map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn watch_chunks(&self, _: Request<WatchChunksRequest>) -> Result<Response<Self::WatchChunksStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// A disk on which each write waits for this test.
struct Hangs(std::sync::Mutex<std_mpsc::Receiver<()>>, AtomicU32);

impl Hangs {
    fn disk() -> (Disk, Arc<Self>, Sender<()>) {
        let (go_on, waits) = std_mpsc::channel();
        let hangs = Arc::new(Self(std::sync::Mutex::new(waits), AtomicU32::new(0)));
        (Disk::watched(hangs.clone()), hangs, go_on)
    }
}

impl Witness for Hangs {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        if let Step::Write { .. } = step {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // Once the sender is gone nothing hangs any more.
            let _ = self.0.lock().unwrap().recv();
        }
        Ok(())
    }
}

/// A peer that fetches from one holder.
struct Fetching {
    holder: PeerInfo,
    manifest: Manifest,
    connections: Arc<Connections>,
    folder: tempfile::TempDir,
}

impl Fetching {
    async fn start() -> Self {
        let ((data, manifest), transport) = (content(1), Transport::plaintext());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        let server = transport.server().add_service(peer_server::PeerServer::new(Honest(data)));
        tokio::spawn(server.serve_with_incoming(transport.incoming(listener, CancellationToken::new())));
        let folder = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(&folder.path().join("state"), Disk::default()).unwrap());
        let standing = tokio::sync::watch::channel(Default::default()).1;
        let connections = Connections::new(transport, Identity::load(journal).unwrap(), standing);
        let holder = PeerInfo::new(PeerId::from_bytes([1; 16]), address, Labels::default());
        Self { holder, manifest, connections: Arc::new(connections), folder }
    }

    /// Begins to fetch each chunk into a new file, with the threads of a disk.
    fn fetch_all(&self, name: &str, on: Disk, number: u64) -> (Arc<PartialFile>, tokio::task::JoinSet<StoredChunk>) {
        let partial = Arc::new(PartialFile::at(&self.folder.path().join(name), self.manifest.clone(), on));
        partial.make().unwrap();
        let all = ChunkSet::full(self.manifest.layout().chunk_count());
        let mut scheduler = Scheduler::new(&all, Limits::for_chunks_of(1 << 14));
        scheduler.holder_is(self.holder.clone(), all);
        let rank = Arc::new(Ranks::default()).enter(Priority::Normal);
        let (news, _) = mpsc::channel(1);
        let parts = Parts::new(partial.clone(), Arc::new(Semaphore::new(0)));
        let receivers = self.connections.receivers(number).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(fetch) = scheduler.next(Instant::now(), &mut StdRng::seed_from_u64(1)) {
            let task = FetchTask {
                is_far: false,
                partial: partial.clone(),
                connections: self.connections.clone(),
                running: receivers.pick(fetch.holder.id()),
                memory: ChunkMemory::new(MANY).account(rank.clone()),
                news: news.clone(),
                parts: parts.clone(),
                gauges: Gauges::default(),
                intake: Intake { gate: Gate::new(RateLimit::UNLIMITED), rank: rank.clone() },
                fetch,
            };
            let thread = task.running.handle().clone();
            tasks.spawn_on(async move { fetch_and_store(task).await.unwrap() }, &thread);
        }
        (partial, tasks)
    }

    fn assert_whole(&self, partial: &PartialFile) {
        let all = ChunkSet::full(self.manifest.layout().chunk_count());
        assert!(partial.prove(&all, &CancellationToken::new()).is_full());
    }
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_only_what_is_written_to_it() {
    let it = Fetching::start().await;
    let (disk, hangs, go_on) = Hangs::disk();
    let (slow, mut waiting) = it.fetch_all("slow", disk, 1);
    let all_hang = async {
        while hangs.1.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_hang).await.expect("it is written");
    // Another download, to another disk, from the same holder: this runtime has one thread, and it goes on.
    let (fast, fetched) = it.fetch_all("fast", Disk::default(), 2);
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(30), fetched.join_all()).await.expect("it is not held up").len(),
        3
    );
    it.assert_whole(&fast);
    assert!(waiting.try_join_next().is_none());
    assert!(slow.time_writing() > Duration::ZERO, "what it waits for is known");
    drop(go_on);
    assert_eq!(waiting.join_all().await.len(), 3);
    it.assert_whole(&slow);
}

#[tokio::test]
async fn threads_of_a_disk_are_shared_and_the_least_busy_one_is_next() {
    let it = Fetching::start().await;
    let receivers = it.connections.receivers(1).unwrap();
    assert!(Arc::ptr_eq(&receivers, &it.connections.receivers(1).unwrap()));
    assert!(!Arc::ptr_eq(&receivers, &it.connections.receivers(2).unwrap()));
    let holder = it.holder.id();
    let mut one_each: Vec<_> = (0..receivers.count()).map(|_| receivers.pick(holder)).collect();
    let threads: std::collections::BTreeSet<_> =
        one_each.iter().map(|running| running.handle().id().to_string()).collect();
    assert_eq!(threads.len(), receivers.count());
    let freed = one_each.remove(1 % receivers.count());
    let least = freed.handle().id();
    drop(freed);
    assert_eq!(receivers.pick(holder).handle().id(), least);
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_an_end_is_not() {
    let panics = tokio::spawn(async { panic!("a bug") }).await.map_err(FetchFailure::of_task);
    let Err(FetchFailure::Internal(text)) = panics else { panic!("{panics:?}") };
    assert!(text.contains("a bug"), "{text}");
    let endless = tokio::spawn(std::future::pending::<()>());
    endless.abort();
    assert!(matches!(endless.await.map_err(FetchFailure::of_task), Err(FetchFailure::Stopping)));
}
