//! Whole fetches, from a holder in this process to a file.

use std::{
    io,
    pin::Pin,
    sync::mpsc::{self as std_mpsc, Sender},
    time::{Duration, Instant},
};

use drizzle_engine::{
    priority::Priority,
    reach::CONNECTIONS,
    schedule::{Limits, Scheduler},
};
use drizzle_proto::{
    ChunkSet, Digest, Labels, Layout, Manifest, PeerId, PeerInfo, RateLimit,
    net::transport::Transport,
    wire::{FetchChunkRequest, FetchChunkResponse, WatchChunksRequest, WatchChunksResponse, peer_server},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{hands::Hands, memory::ChunkMemory, *};
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

/// Sends chunks of this content as they are; where it may choose, the last alternative.
struct Honest {
    data: Vec<u8>,
    chunk_size: usize,
}

type Messages = Pin<Box<dyn Stream<Item = Result<FetchChunkResponse, Status>> + Send>>;

#[tonic::async_trait]
impl peer_server::Peer for Honest {
    type FetchChunkStream = Messages;
    type WatchChunksStream = tokio_stream::Empty<Result<WatchChunksResponse, Status>>;

    async fn fetch_chunk(&self, request: Request<FetchChunkRequest>) -> Result<Response<Messages>, Status> {
        let FetchChunkRequest { chunk, offset, alternatives, .. } = request.into_inner();
        let chosen = alternatives.last().copied();
        let bytes = self.data.chunks(self.chunk_size).nth(chosen.unwrap_or(chunk) as usize).expect("what there is");
        let named = |at| chosen.filter(|_| at == 0);
        let parts = bytes[offset as usize..].chunks(50_000).enumerate();
        let parts = parts.map(|(at, part)| FetchChunkResponse { data: part.to_vec().into(), chunk: named(at) });
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
        Self::of(content(1)).await
    }

    async fn of((data, manifest): (Vec<u8>, Manifest)) -> Self {
        let (transport, chunk_size) = (Transport::plaintext(), manifest.layout().chunk_size() as usize);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        let server = transport.server().add_service(peer_server::PeerServer::new(Honest { data, chunk_size }));
        tokio::spawn(server.serve_with_incoming(transport.incoming(
            listener,
            drizzle_proto::net::transport::Strangers::Refused,
            CancellationToken::new(),
        )));
        let folder = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(&folder.path().join("state"), Disk::default()).unwrap());
        let standing = tokio::sync::watch::channel(Default::default()).1;
        let connections = Connections::new(transport, Identity::load(journal, None, false).unwrap(), standing);
        let holder = PeerInfo::new(PeerId::from_bytes([1; 16]), address, Labels::default());
        Self { holder, manifest, connections: Arc::new(connections), folder }
    }

    fn partial(&self, name: &str, on: Disk) -> Arc<PartialFile> {
        let partial = Arc::new(PartialFile::at(&self.folder.path().join(name), self.manifest.clone(), on));
        partial.make().unwrap();
        partial
    }

    /// A scheduler that wants every chunk, of the holder.
    fn scheduler(&self) -> Scheduler {
        let all = ChunkSet::full(self.manifest.layout().chunk_count());
        let mut scheduler = Scheduler::new(&all, Limits::for_chunks_of(self.manifest.layout().chunk_size()));
        scheduler.holder_is(self.holder.clone(), all);
        scheduler
    }

    fn task(
        &self,
        fetch: Fetch,
        partial: &Arc<PartialFile>,
        disk: u64,
        news: &mpsc::Sender<(FetchId, News)>,
    ) -> FetchTask {
        let rank = Arc::new(Ranks::default()).enter(Priority::Normal);
        FetchTask {
            is_far: false,
            most_connections: CONNECTIONS,
            partial: partial.clone(),
            connections: self.connections.clone(),
            running: self.connections.receivers(disk).unwrap().pick(fetch.holder.id()),
            memory: ChunkMemory::new(MANY).account(rank.clone()),
            news: news.clone(),
            parts: Parts::new(partial.clone(), Arc::new(Semaphore::new(0))),
            gauges: Gauges::default(),
            intake: Intake { gate: Gate::new(RateLimit::UNLIMITED), rank },
            fetch,
        }
    }

    /// Begins to fetch each chunk into a new file, with the threads of a disk.
    fn fetch_all(&self, name: &str, on: Disk, disk: u64) -> (Arc<PartialFile>, tokio::task::JoinSet<StoredChunk>) {
        let (partial, mut scheduler, (news, _)) = (self.partial(name, on), self.scheduler(), mpsc::channel(1));
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(mut fetch) = scheduler.next(Instant::now(), &mut StdRng::seed_from_u64(1)) {
            fetch.alternatives.clear();
            let task = self.task(fetch, &partial, disk, &news);
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

/// Chunks that are larger than what a stream may have on its way, so that none can be gathered in passing.
fn large_chunks() -> (Vec<u8>, Manifest) {
    let (size, chunk_size) = (8usize << 20, 4 << 20);
    let data: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[2]).collect();
    let layout = Layout::new(size as u64, chunk_size).unwrap();
    let hashes = data.chunks(chunk_size as usize).map(Digest::of).collect();
    (data, Manifest::new(layout, hashes).unwrap())
}

#[tokio::test]
async fn a_holder_may_choose_a_chunk_that_was_stored_or_begun_meanwhile() {
    let it = Fetching::of(large_chunks()).await;
    let count = it.manifest.layout().chunk_count();
    let [asked, chosen] = [0, 1].map(|chunk| count.index(chunk).unwrap());
    let fetch = || {
        let fetch = it.scheduler().next(Instant::now(), &mut StdRng::seed_from_u64(1)).unwrap();
        Fetch { chunk: asked, alternatives: vec![chosen], ..fetch }
    };
    for (name, is_stored) in [("stored", true), ("begun", false)] {
        let (partial, (news, mut heard)) = (it.partial(name, Disk::default()), mpsc::channel(1));
        let claim = partial.claim(chosen);
        if is_stored {
            drop(claim);
            let mut all = ChunkSet::empty(count);
            all.insert(chosen);
            partial.vouch_for(&all);
        }
        let task = it.task(fetch(), &partial, 1, &news);
        let thread = task.running.handle().clone();
        let fetched = thread.spawn(fetch_and_store(task)).await.unwrap();
        assert!(matches!(heard.try_recv(), Ok((_, News::Bound(bound))) if bound == chosen), "it is told which one");
        match fetched {
            Ok(stored) => assert!(is_stored && stored.chunk() == chosen),
            Err(failure) => assert!(!is_stored && matches!(failure, FetchFailure::Overtaken), "{failure:?}"),
        }
    }
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

/// A disk on which each write panics.
struct Panics;

impl Witness for Panics {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        assert!(!matches!(step, Step::Write { .. }), "on purpose");
        Ok(())
    }
}

#[tokio::test]
async fn each_fetch_is_reported_once_with_its_chunk_or_its_panic() {
    let it = Fetching::start().await;
    for (name, disk, is_sound) in [("sound", Disk::default(), true), ("panics", Disk::watched(Arc::new(Panics)), false)]
    {
        let (partial, mut scheduler, (news, _heard)) = (it.partial(name, disk), it.scheduler(), mpsc::channel(16));
        let (mut hands, mut running) = (Hands::new(), std::collections::BTreeSet::new());
        while let Some(mut fetch) = scheduler.next(Instant::now(), &mut StdRng::seed_from_u64(1)) {
            fetch.alternatives.clear();
            running.insert(fetch.id);
            hands.start(it.task(fetch, &partial, 1, &news));
        }
        while !running.is_empty() {
            for (id, result) in hands.ended().await.unwrap() {
                assert!(running.remove(&id));
                match result {
                    Ok(_) => assert!(is_sound),
                    Err(FetchFailure::Internal(text)) => assert!(!is_sound && text.contains("on purpose"), "{text}"),
                    Err(failure) => panic!("{failure:?}"),
                }
            }
        }
        hands.stop().await;
        if is_sound {
            it.assert_whole(&partial);
        }
    }
}

#[tokio::test]
async fn which_chunk_a_holder_chose_is_told_by_its_end_if_it_came_whole_and_before_a_failure() {
    let (sound, manifest) = content(1);
    for (data, is_sound) in [(sound, true), (content(2).0, false)] {
        let it = Fetching::of((data, manifest.clone())).await;
        let (partial, (news, mut heard)) = (it.partial("a", Disk::default()), mpsc::channel(1));
        let [asked, chosen] = [0, 1].map(|chunk| manifest.layout().chunk_count().index(chunk).unwrap());
        let fetch = it.scheduler().next(Instant::now(), &mut StdRng::seed_from_u64(1)).unwrap();
        let task = it.task(Fetch { chunk: asked, alternatives: vec![chosen], ..fetch }, &partial, 1, &news);
        let thread = task.running.handle().clone();
        let fetched = thread.spawn(fetch_and_store(task)).await.unwrap();
        let told = heard.try_recv().ok().map(|(_, news)| news);
        match fetched {
            Ok(stored) => assert_eq!((stored.chunk(), told, is_sound), (chosen, None, true)),
            Err(failure) => {
                assert!(matches!(failure, FetchFailure::Holder(_)) && !is_sound, "{failure:?}");
                assert_eq!(told, Some(News::Bound(chosen)));
            }
        }
    }
}

#[tokio::test]
async fn a_fetch_that_is_given_up_is_not_reported_and_none_is_left_in_the_end() {
    let mut it = Fetching::start().await;
    // It accepts, and answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    it.holder = PeerInfo::new(it.holder.id(), silent.local_addr().unwrap().into(), Labels::default());
    let (partial, mut scheduler, (news, _heard)) =
        (it.partial("a", Disk::default()), it.scheduler(), mpsc::channel(16));
    let mut hands = Hands::new();
    let mut start = || {
        let fetch = scheduler.next(Instant::now(), &mut StdRng::seed_from_u64(1)).unwrap();
        let id = fetch.id;
        hands.start(it.task(fetch, &partial, 1, &news));
        id
    };
    let (first, _second) = (start(), start());
    hands.abort(first);
    let reported = tokio::time::timeout(Duration::from_millis(200), hands.ended()).await;
    assert!(reported.is_err(), "nothing is reported");
    tokio::time::timeout(Duration::from_secs(30), hands.stop()).await.expect("nothing is left");
    let is_free = |chunk| partial.claim(chunk).is_some();
    assert!(it.manifest.layout().chunk_count().indices().all(is_free), "every place is free again");
}
