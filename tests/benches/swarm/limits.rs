//! What the tracker can take at the most: the real tracker, and clients in this process beside it, on the same processors.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use drizzle_proto::{
    ChunkSet, Digest, FileInfo, FileName, Layout, Manifest, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    client::TrackerClient,
    limits::{MAX_BATCH, MAX_HASHES},
    wire::{FileLocationsRequest, ListFilesRequest},
};
use drizzle_tests::{
    Cluster,
    cluster::{Options, Tracker},
    wait::until_within,
};
use prost::Message;
use tokio::task::JoinSet;

use crate::{machine, median};

/// Connections that load the tracker, and calls under way on each.
const CONNECTIONS: u32 = 8;
const CALLS: u32 = 32;
/// Chunks of one file that are told in one call, which is what a fast download gathers in 40 ms.
const TOLD: u32 = 64;
/// A hundred thousand files are hashed and told in less.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of a chunk of the files that are only told of.
const CHUNK: u32 = 1 << 18;

/// Measures the tracker at its limits.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Files that the tracker knows
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    files: u32,
    /// Files of the peer that registers anew after the tracker was restarted
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    shared: u32,
    /// How long the tracker is loaded for each figure, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    seconds: u32,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Limits {
    /// Measures, and gives the table.
    pub(crate) async fn measure(&self) -> String {
        let mut rows = Vec::new();
        let mut row = |what: String, is: String| {
            eprintln!("bench: {what}: {is}");
            rows.push(format!("| {what} | {is} |\n"));
        };
        let load = Duration::from_secs(self.seconds.into());
        let announced = announcements(load).await;
        row(format!("chunks announced a second, {TOLD} in a call"), announced.to_string());
        row("calls a second, of a lease's renewal".to_owned(), renewals(load).await.to_string());
        let (took, bytes) = locations().await;
        row(
            "`FileLocations` of 100,000 chunks and 1,000 holders, one page".to_owned(),
            format!("{:.1} ms, {:.2} MiB", millis(took), mebibytes(bytes)),
        );
        let many = many_files(self.files).await;
        row(format!("{} files registered", self.files), format!("{:.1} s", many.registered.as_secs_f64()));
        row(
            "resident with them, and after a restart".to_owned(),
            format!("{} / {} MiB", many.peak, many.restarted_peak),
        );
        row("restart to serving".to_owned(), format!("{:.0} ms", millis(many.restarted)));
        row("`ListFiles`, a page of 1,000".to_owned(), format!("{:.1} ms", millis(many.page)));
        let anew = registered_anew(self.shared).await;
        row(
            format!("{} files of one peer announced anew after a restart", self.shared),
            format!("{:.2} s; slowest call of another peer meanwhile {:.0} ms", anew.0.as_secs_f64(), millis(anew.1)),
        );
        format!(
            "{}, {}; {}.\nMade by `tests/bench limits --files {} --shared {} --seconds {}`.\n\n| what | is |\n|---|---|\n{}",
            machine::processor(),
            machine::cores(),
            machine::today(),
            self.files,
            self.shared,
            self.seconds,
            rows.concat(),
        )
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss, reason = "figures for a person")]
fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A lease of peer number `n`.
async fn join(client: &mut TrackerClient, n: u32) -> u64 {
    let port = 1024 + n % 60_000;
    let address = format!("10.0.{}.{}:{port}", n >> 8 & 255, n & 255).parse().expect("an address");
    let id = PeerId::from_bytes((u128::from(n) + 1).to_be_bytes());
    let peer = PeerInfo::new(id, address, drizzle_proto::Labels::default());
    client.register_peer(&peer).await.expect("the tracker takes the peer").id
}

/// A file of so many chunks, made up; equal numbers are equal files.
fn file(n: u32, chunks: u32) -> (FileInfo, Manifest) {
    let layout = Layout::new(u64::from(chunks) * u64::from(CHUNK), CHUNK).expect("a layout");
    let hashes = (0..chunks).map(|chunk| Digest::of(&(u64::from(n) << 32 | u64::from(chunk)).to_le_bytes())).collect();
    let manifest = Manifest::new(layout, hashes).expect("a manifest");
    let name = format!("models/{:03}/{n:07}.safetensors", n / 1000);
    (FileInfo { name: FileName::new(&name).expect("a name"), id: manifest.id(), layout }, manifest)
}

/// What a peer says that has these chunks, without hashes.
fn told(file: &FileInfo, held: ChunkSet) -> FileChunks {
    FileChunks {
        file: file.clone(),
        first_hash: 0,
        hashes: Vec::new(),
        held,
        gone: false,
        replace: false,
        signature: None,
    }
}

/// Registers a file that its peer has.
async fn register(client: &mut TrackerClient, lease: u64, file: &FileInfo, manifest: &Manifest) {
    let count = file.layout.chunk_count();
    let mut first = 0;
    for hashes in manifest.hashes().chunks(MAX_HASHES) {
        let entry = FileChunks { first_hash: first, hashes: hashes.to_vec(), ..told(file, ChunkSet::full(count)) };
        first += u32::try_from(hashes.len()).expect("few");
        client.register_chunk(lease, &[entry]).await.expect("the tracker answers");
    }
}

/// Runs calls against the tracker for a while, from as many tasks as usual; how many there were a second. Each task
/// gets its number, a client and whether it shall go on, and counts what it did.
async fn load<F>(tracker: &Tracker, lasts: Duration, work: impl Fn(u32, TrackerClient, Arc<Load>) -> F) -> u64
where
    F: Future<Output = ()> + Send + 'static,
{
    let load = Arc::new(Load { done: AtomicU64::new(0), over: AtomicBool::new(false) });
    let mut tasks = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = tracker.client();
        for call in 0..CALLS {
            tasks.spawn(work(connection * CALLS + call, client.clone(), load.clone()));
        }
    }
    // What comes first finds cold caches.
    tokio::time::sleep(lasts / 5).await;
    let (before, begun) = (load.done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(lasts).await;
    let (after, elapsed) = (load.done.load(Ordering::Relaxed), begun.elapsed());
    load.over.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    per_second(after - before, elapsed)
}

/// What is done so far, and whether that is enough.
struct Load {
    done: AtomicU64,
    over: AtomicBool,
}

impl Load {
    fn done(&self, count: u32) {
        self.done.fetch_add(count.into(), Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "figures for a person"
)]
fn per_second(count: u64, elapsed: Duration) -> u64 {
    (count as f64 / elapsed.as_secs_f64()) as u64
}

/// Chunks announced a second: each task is a peer that downloads one of a hundred files after the other.
async fn announcements(lasts: Duration) -> u64 {
    const FILES: u32 = 100;
    const CHUNKS: u32 = 8192;
    let cluster = Cluster::start().await;
    let mut source = cluster.tracker.client();
    let lease = join(&mut source, 0).await;
    let files: Vec<_> = (0..FILES).map(|n| file(n, CHUNKS)).collect();
    for (file, manifest) in &files {
        register(&mut source, lease, file, manifest).await;
    }
    let files: Arc<Vec<FileInfo>> = Arc::new(files.into_iter().map(|(file, _)| file).collect());
    let work = move |n: u32, mut client: TrackerClient, load: Arc<Load>| {
        let files = files.clone();
        async move {
            let lease = join(&mut client, 1 + n).await;
            for at in 0.. {
                let file = &files[((n + at) % FILES) as usize];
                let count = file.layout.chunk_count();
                for first in (0..CHUNKS).step_by(TOLD as usize) {
                    if !load.goes_on() {
                        return;
                    }
                    let mut held = ChunkSet::empty(count);
                    for nth in first..first + TOLD {
                        // In no order, as a download gets them.
                        held.insert(count.index(nth.wrapping_mul(2_654_435_761) % CHUNKS).expect("below the count"));
                    }
                    let entry = told(file, held);
                    let outcomes = client.register_chunk(lease, &[entry]).await.expect("the tracker answers");
                    assert_eq!(outcomes, [FileOutcome::Registered]);
                    load.done(TOLD);
                }
            }
        }
    };
    load(&cluster.tracker, lasts, work).await
}

/// Unary calls a second.
async fn renewals(lasts: Duration) -> u64 {
    let cluster = Cluster::start().await;
    let work = |n: u32, mut client: TrackerClient, load: Arc<Load>| async move {
        let lease = join(&mut client, n).await;
        while load.goes_on() {
            client.renew_lease(lease, Default::default()).await.expect("the tracker answers");
            load.done(1);
        }
    };
    load(&cluster.tracker, lasts, work).await
}

/// One page of the locations of a large file in a large swarm: the median time, and how long it is.
async fn locations() -> (Duration, usize) {
    const CHUNKS: u32 = 100_000;
    const HOLDERS: u32 = 1_000;
    let cluster = Cluster::start().await;
    let mut client = cluster.tracker.client();
    let lease = join(&mut client, 0).await;
    let (file, manifest) = file(0, CHUNKS);
    register(&mut client, lease, &file, &manifest).await;
    let count = file.layout.chunk_count();
    for n in 1..HOLDERS {
        let lease = join(&mut client, n).await;
        let mut held = ChunkSet::empty(count);
        for nth in 0..CHUNKS / 2 {
            held.insert(count.index((n * 97 + nth * 7) % CHUNKS).expect("below the count"));
        }
        let entry = told(&file, held);
        client.register_chunk(lease, &[entry]).await.expect("the tracker answers");
    }
    let mut wire = cluster.tracker.wire();
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..101 {
        let request = FileLocationsRequest { name: file.name.to_string(), ..Default::default() };
        let begun = Instant::now();
        let answer = wire.file_locations(request).await.expect("the tracker answers").into_inner();
        times.push(begun.elapsed().as_secs_f64());
        bytes = answer.encoded_len();
    }
    times.sort_by(f64::total_cmp);
    (Duration::from_secs_f64(median(&times).unwrap_or_default()), bytes)
}

/// What a tracker with many files needs.
struct ManyFiles {
    registered: Duration,
    /// MiB.
    peak: u64,
    restarted: Duration,
    /// MiB.
    restarted_peak: u64,
    page: Duration,
}

async fn many_files(files: u32) -> ManyFiles {
    let mut cluster = Cluster::start().await;
    let begun = Instant::now();
    announce_files(&mut cluster.tracker.client(), files).await;
    let registered = begun.elapsed();
    let peak = cluster.tracker.daemon.process.peak_memory() >> 20;

    cluster.tracker.daemon.terminate().await;
    let begun = Instant::now();
    cluster.tracker.daemon.restart().await;
    let mut client = cluster.tracker.client();
    client.list_files(ListFilesRequest::default()).await.expect("the tracker lists");
    let restarted = begun.elapsed();
    // The peer comes back.
    announce_files(&mut client, files).await;
    let mut times = Vec::new();
    let mut page_token = String::new();
    let mut wire = cluster.tracker.wire();
    loop {
        let request = ListFilesRequest { page_size: 1000, page_token, ..Default::default() };
        let begun = Instant::now();
        let page = wire.list_files(request).await.expect("the tracker lists").into_inner();
        times.push(begun.elapsed().as_secs_f64());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let restarted_peak = cluster.tracker.daemon.process.peak_memory() >> 20;
    let page = Duration::from_secs_f64(median(&times).unwrap_or_default());
    ManyFiles { registered, peak, restarted, restarted_peak, page }
}

/// One peer tells of many files of one chunk each, as fast as the tracker takes them.
async fn announce_files(client: &mut TrackerClient, files: u32) {
    let lease = join(client, 0).await;
    let mut renewed = Instant::now();
    for first in (0..files).step_by(MAX_BATCH) {
        let batch = first..files.min(first + u32::try_from(MAX_BATCH).expect("small"));
        let entries = batch.map(|n| {
            let (file, manifest) = file(n, 1);
            let held = ChunkSet::full(file.layout.chunk_count());
            FileChunks { hashes: manifest.hashes().to_vec(), ..told(&file, held) }
        });
        let entries: Vec<FileChunks> = entries.collect();
        let outcomes = client.register_chunk(lease, &entries).await.expect("the tracker answers");
        assert!(outcomes.iter().all(|outcome| *outcome == FileOutcome::Registered), "{:?}", outcomes.first());
        if renewed.elapsed() > Duration::from_secs(3) {
            client.renew_lease(lease, Default::default()).await.expect("the lease is there");
            renewed = Instant::now();
        }
    }
}

/// A real peer with many small files, and a tracker that is restarted: how long until all are announced again, and the
/// slowest call of another peer until then.
async fn registered_anew(files: u32) -> (Duration, Duration) {
    let mut cluster = Cluster::start().await;
    let dir = cluster.folder().join("many");
    write_files(&dir, files);
    let _peer = cluster.peer_with("many", Options::default().dir(&dir)).await;
    let names: Vec<FileName> = (0..64).map(|n| name(n * (files - 1) / 63)).collect();
    until_held(&cluster, &names, files).await;

    cluster.tracker.daemon.restart().await;
    let begun = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let (mut other, stop) = (cluster.tracker.client(), over.clone());
    let others = tokio::spawn(async move {
        let lease = join(&mut other, 1).await;
        let (file, manifest) = file(0, 64);
        register(&mut other, lease, &file, &manifest).await;
        let mut worst = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let entry = told(&file, ChunkSet::full(file.layout.chunk_count()));
            other.register_chunk(lease, &[entry]).await.expect("the tracker answers");
            other.manifest(&file.name).await.expect("the tracker answers");
            worst = worst.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worst
    });
    until_held(&cluster, &names, files + 1).await;
    let took = begun.elapsed();
    over.store(true, Ordering::Relaxed);
    (took, others.await.expect("the other peer is well"))
}

fn name(n: u32) -> FileName {
    FileName::new(&format!("{:03}/{n:06}", n / 1000)).expect("a name")
}

fn write_files(dir: &Path, files: u32) {
    for n in 0..files {
        let path = dir.join(name(n).as_str());
        if n % 1000 == 0 {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
        }
        std::fs::write(path, n.to_le_bytes()).expect("a file can be written");
    }
}

/// Waits until the names have a holder, then until all files have: to look at all of them costs the tracker something.
async fn until_held(cluster: &Cluster, names: &[FileName], files: u32) {
    for name in names {
        until_within(PATIENCE, &format!("a holder of {name}"), async || {
            (!cluster.holders(name.as_str()).await.is_empty()).then_some(())
        })
        .await;
    }
    until_within(PATIENCE, "a holder of each file", async || {
        let held = cluster.listed().await.iter().filter(|(_, full, _)| *full > 0).count();
        (held == files as usize).then_some(())
    })
    .await;
}
