//! What a byte costs on its way from one peer to another, in counts and not in time: memory that is allocated, and calls
//! that read or write. The limits fail when somebody adds a copy, or as many calls again, and not because a machine is
//! busy.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use drizzle_proto::{
    Address, Labels, RateLimit,
    net::{shell::LogFormat, transport::Transport},
    wire::{DownloadRequest, FileLocationsRequest, control_client::ControlClient, tracker_client::TrackerClient},
};
use drizzle_tests::content::random;
use tokio_stream::StreamExt;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const MIB: u64 = 1 << 20;
/// Large enough for chunks of their usual number, small enough for every allocation to be counted.
const SIZE: u64 = 64 * MIB;

/// Bytes allocated for each byte that is moved; each further copy adds 1. When this was set there were 1.95: 1.15 in the
/// buffers that are received into, the rest for the 16 chunks of each MiB.
const MOST_ALLOCATED: f64 = 2.7;
/// Allocations for each MiB, of which there were 2,400.
const MOST_ALLOCATIONS: f64 = 4000.0;
/// Calls that read or write, for each MiB, of which there were 120: files at either end, what is sent, and wake-ups. A
/// slow machine writes in more pieces.
const MOST_CALLS: f64 = 240.0;

fn peer(folder: &Path, tracker: Address, seed: u64) -> peer_svc::Config {
    let any = "127.0.0.1:0".parse().expect("an address");
    peer_svc::Config {
        tracker,
        listen: any,
        control: any,
        dir: folder.to_owned(),
        state_dir: None,
        advertise: None,
        label: Vec::<Labels>::new(),
        exclude: Vec::new(),
        settle: Duration::ZERO,
        look_every: Duration::from_secs(60),
        watch: false,
        no_watch: true,
        upload_slots: 4,
        up: RateLimit::UNLIMITED,
        down: RateLimit::UNLIMITED,
        drain: Duration::from_secs(1),
        seed: Some(seed),
        log_format: LogFormat::Text,
    }
}

/// Calls of this process that read and wrote so far, but for those that receive.
fn calls() -> u64 {
    let io = fs::read_to_string("/proc/self/io").expect("Linux counts them");
    let counts = io.lines().filter_map(|line| line.strip_prefix("syscr: ").or_else(|| line.strip_prefix("syscw: ")));
    counts.map(|count| count.parse::<u64>().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_costs_no_more_memory_and_no_more_calls_than_it_did() {
    let profiler = dhat::Profiler::builder().testing().build();
    let [data, source, here] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let tracker = tracker_svc::bind(tracker_svc::Config {
        listen: "127.0.0.1:0".parse().expect("an address"),
        data_dir: data.path().to_owned(),
        lease: Duration::from_secs(15),
        release_after: Duration::MAX,
        drain: Duration::from_secs(1),
    });
    let tracker = tracker.await.expect("a tracker");
    let address: Address = tracker.address().into();
    fs::write(source.path().join("a"), random(1, usize::try_from(SIZE).expect("it fits"))).expect("a file");
    let holder = peer_svc::bind(peer(source.path(), address.clone(), 1)).await.expect("a holder");
    let peer = peer_svc::bind(peer(here.path(), address.clone(), 2)).await.expect("a peer");
    let mut locations = TrackerClient::new(Transport::plaintext().connect(&address).await.expect("it listens"));
    let request = FileLocationsRequest { name: "a".into(), omit_hashes: true, ..Default::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !locations.file_locations(request.clone()).await.is_ok_and(|answer| !answer.get_ref().holders.is_empty()) {
        assert!(Instant::now() < deadline, "it is hashed and registered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let control = Transport::plaintext().connect(&peer.control_address().into()).await.expect("it listens");

    let (heap, before) = (dhat::HeapStats::get(), calls());
    let request = DownloadRequest { name: "a".into(), ..Default::default() };
    let events = ControlClient::new(control).download(request).await.expect("it begins").into_inner();
    let last = events.map(|event| event.expect("an event").event).collect::<Vec<_>>().await.pop().flatten();
    let (heap_now, now) = (dhat::HeapStats::get(), calls());
    assert!(matches!(last, Some(drizzle_proto::wire::download_event::Event::Done(_))), "{last:?}");
    assert!(
        fs::read(here.path().join("a")).expect("it is there") == fs::read(source.path().join("a")).expect("a file")
    );

    let per_mib = |count: u64| count as f64 / (SIZE / MIB) as f64;
    let allocated = (heap_now.total_bytes - heap.total_bytes) as f64 / SIZE as f64;
    let (allocations, calls) = (per_mib(heap_now.total_blocks - heap.total_blocks), per_mib(now - before));
    let counts = format!(
        "{allocated:.2} bytes allocated for each, {allocations:.0} allocations and {calls:.0} calls for each MiB"
    );
    assert!(allocated <= MOST_ALLOCATED && allocations <= MOST_ALLOCATIONS && calls <= MOST_CALLS, "{counts}");
    peer.shutdown().await;
    holder.shutdown().await;
    drop(profiler);
}
