//! What the tracker needs for a large fleet: the real tracker, and clients in this process that behave as peers do.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use drizzle_proto::{
    Address, ChunkSet, Digest, FileInfo, FileName, Layout, Manifest, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    client::{TrackerClient, Wish},
    limits::MAX_HASHES,
    net::transport::Transport,
};
use drizzle_tests::Cluster;
use tokio::{sync::Barrier, task::JoinSet};
use tokio_stream::StreamExt;

use crate::{machine, median};

/// Neighbours that a peer asks for.
const NEIGHBOURS: u32 = 24;
/// A peer gathers its news for the tracker this long, unless the tracker asks for more.
const BATCH: Duration = Duration::from_millis(40);

/// Measures the tracker with many peers that download one file.
#[derive(Debug, Args)]
pub(crate) struct Fleet {
    /// Peers that download
    #[arg(long, value_name = "N", default_value_t = 1000)]
    peers: u32,
    /// Chunks of the file
    #[arg(long, value_name = "M", default_value_t = 1024)]
    chunks: u32,
    /// How long each peer takes for the file, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u32,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What all peers know.
struct World {
    manifest: Manifest,
    file: FileInfo,
    tracker: Address,
    takes: Duration,
    /// All are registered.
    ready: Barrier,
    announcements: AtomicU64,
    messages: AtomicU64,
}

impl Fleet {
    /// Measures, and gives the table.
    pub(crate) async fn measure(&self) -> String {
        let cluster = Cluster::start().await;
        let layout = Layout::new(u64::from(self.chunks) << 18, 1 << 18).expect("a layout");
        let hashes = (0..self.chunks).map(|chunk| Digest::of(&chunk.to_le_bytes())).collect();
        let manifest = Manifest::new(layout, hashes).expect("a manifest");
        let file = FileInfo { name: FileName::new("file").expect("a name"), id: manifest.id(), layout };
        let world = Arc::new(World {
            manifest,
            file,
            tracker: cluster.tracker.address(),
            takes: Duration::from_secs(self.seconds.into()),
            ready: Barrier::new(self.peers as usize + 1),
            announcements: AtomicU64::new(0),
            messages: AtomicU64::new(0),
        });
        let mut source = Member::join(world.clone(), 0).await;
        source.share().await;

        let mut peers = JoinSet::new();
        for n in 1..=self.peers {
            let world = world.clone();
            peers.spawn(async move { Member::join(world, n).await.download().await });
        }
        let process = &cluster.tracker.daemon.process;
        world.ready.wait().await;
        let (before, begun) = (process.cpu_time(), Instant::now());
        let mut lags: Vec<f64> = peers.join_all().await.iter().map(Duration::as_secs_f64).collect();
        let (cpu, elapsed) = (process.cpu_time() - before, begun.elapsed().as_secs_f64());
        lags.sort_by(f64::total_cmp);
        format!(
            "{}, {}; {}.\nMade by `tests/bench tracker --peers {} --chunks {} --seconds {}`.\n\n\
             | peers | cores in use | announcements a second | messages to watchers a second | slowest answer of a peer, median / worst | memory |\n\
             |---|---|---|---|---|---|\n\
             | {} | {:.2} | {:.0} | {:.0} | {:.1} / {:.0} ms | {} MiB |\n",
            machine::processor(),
            machine::cores(),
            machine::today(),
            self.peers,
            self.chunks,
            self.seconds,
            self.peers,
            cpu.as_secs_f64() / elapsed,
            per_second(&world.announcements, elapsed),
            per_second(&world.messages, elapsed),
            1000.0 * median(&lags).unwrap_or_default(),
            1000.0 * lags.last().copied().unwrap_or_default(),
            process.peak_memory() >> 20,
        )
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for a person")]
fn per_second(count: &AtomicU64, elapsed: f64) -> f64 {
    count.load(Ordering::Relaxed) as f64 / elapsed
}

/// A peer with a lease.
struct Member {
    world: Arc<World>,
    client: TrackerClient,
    lease: u64,
    renew_every: Duration,
    id: PeerId,
}

impl Member {
    async fn join(world: Arc<World>, n: u32) -> Self {
        let mut client = TrackerClient::new(&Transport::plaintext(), &world.tracker).expect("an address");
        let id = PeerId::from_bytes((u128::from(n) + 1).to_be_bytes());
        // Nobody asks there.
        let address = SocketAddr::from((Ipv4Addr::from(0x7f01_0000 + n), 7401));
        let peer = PeerInfo::new(id, address.into(), drizzle_proto::Labels::default());
        let lease = client.register_peer(&peer).await.expect("the tracker takes the peer");
        Self { world, client, lease: lease.id, renew_every: lease.renew_every, id }
    }

    /// Announces the whole file.
    async fn share(&mut self) {
        let all = ChunkSet::full(self.world.file.layout.chunk_count());
        let hashes = self.world.manifest.hashes().to_vec();
        assert!(hashes.len() <= MAX_HASHES, "give at most {MAX_HASHES} chunks");
        self.announce(all, hashes).await;
    }

    /// Announces chunks as they would come; the time that the slowest answer took.
    async fn download(mut self) -> Duration {
        let world = self.world.clone();
        let wish = Wish { lease: self.lease, neighbours: NEIGHBOURS, known: Vec::new() };
        let mut changes = self.client.watch_file(&world.file.name, Some(wish)).await.expect("the tracker tells");
        let told = world.clone();
        let watching = tokio::spawn(async move {
            while let Some(Ok(_)) = changes.next().await {
                told.messages.fetch_add(1, Ordering::Relaxed);
            }
        });
        world.ready.wait().await;

        let (begun, mut renewed, count) = (Instant::now(), Instant::now(), world.file.layout.chunk_count());
        // Each has the chunks in an order of its own.
        let first = u32::from_le_bytes(Digest::of(self.id.as_bytes()).as_bytes()[..4].try_into().expect("4 bytes"));
        let (mut had, mut worst, mut pause) = (0, Duration::ZERO, BATCH);
        while had < count.get() {
            tokio::time::sleep(pause).await;
            let share = begun.elapsed().as_secs_f64() / world.takes.as_secs_f64();
            // At most the number of chunks.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let has = (f64::from(count.get()) * share.min(1.0)) as u32;
            let mut held = ChunkSet::empty(count);
            for nth in had..has {
                held.insert(count.index((first.wrapping_add(nth)) % count.get()).expect("below the count"));
            }
            if held.is_empty() {
                continue;
            }
            had = has;
            let asked = Instant::now();
            pause = self.announce(held, Vec::new()).await.max(BATCH);
            worst = worst.max(asked.elapsed());
            if renewed.elapsed() >= self.renew_every {
                self.client.renew_lease(self.lease, Default::default()).await.expect("the lease is there");
                renewed = Instant::now();
            }
        }
        watching.abort();
        worst
    }

    /// What the tracker asks to wait before the next one.
    async fn announce(&mut self, held: ChunkSet, hashes: Vec<Digest>) -> Duration {
        let file = self.world.file.clone();
        let entry = FileChunks { file, first_hash: 0, hashes, held, gone: false, replace: false, signature: None };
        let (outcomes, pause) = self.client.announce(self.lease, &[entry]).await.expect("the tracker answers");
        assert_eq!(outcomes, [FileOutcome::Registered]);
        self.world.announcements.fetch_add(1, Ordering::Relaxed);
        pause
    }
}
