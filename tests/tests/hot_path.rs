//! What a byte costs on its way from one peer to another, in counts and not in time: memory that is allocated, and calls
//! that read or write. The limits fail when somebody adds a copy, or as many calls again, and not because a machine is
//! busy.

use std::{fs, path::Path};

use drizzle_proto::{
    net::{control_at::ControlAt, transport::Transport},
    wire::{DownloadRequest, control_client::ControlClient, download_event::Event},
};
use drizzle_tests::{Cluster, content::random, inside::peer_config};
use tokio_stream::StreamExt;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const MIB: u64 = 1 << 20;
/// Large enough for chunks of their usual number, small enough for every allocation to be counted.
const SIZE: u64 = 64 * MIB;

/// Bytes allocated for each byte that is moved; each further copy adds 1. When this was set there were 1.86: 1.15 in the
/// buffers that are received into, the rest for the 16 chunks of each MiB.
const MOST_ALLOCATED: f64 = 2.6;
/// Allocations for each MiB, of which there were 2,070.
const MOST_ALLOCATIONS: f64 = 3700.0;
/// Calls that read or write, for each MiB, of which there were 98: files at either end, what is sent, and wake-ups. A
/// slow machine writes in more pieces.
const MOST_CALLS: f64 = 200.0;

/// Calls of this process that read and wrote so far, but for those that receive.
fn calls() -> u64 {
    let io = fs::read_to_string("/proc/self/io").expect("Linux counts them");
    let counts = io.lines().filter_map(|line| line.strip_prefix("syscr: ").or_else(|| line.strip_prefix("syscw: ")));
    counts.map(|count| count.parse::<u64>().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_costs_no_more_memory_and_no_more_calls_than_it_did() {
    let profiler = dhat::Profiler::builder().testing().build();
    let cluster = Cluster::start().await;
    let [source, here] = ["source", "here"].map(|name| cluster.folder().join(name));
    fs::create_dir(&source).expect("a folder");
    fs::write(source.join("a"), random(1, usize::try_from(SIZE).expect("it fits"))).expect("a file");
    let bind = async |folder: &Path, seed| {
        let config = peer_config(cluster.tracker.address(), folder.to_owned(), seed);
        peer_svc::bind(config).await.expect("a peer")
    };
    let (holder, peer) = (bind(&source, 1).await, bind(&here, 2).await);
    cluster.until_held("a", 1).await;
    let control = ControlAt::from(peer.control())
        .connect(&Transport::plaintext(), drizzle_proto::net::tls::Meant::AnyPeer)
        .await
        .expect("it listens");

    let (heap, before) = (dhat::HeapStats::get(), calls());
    let request = DownloadRequest { name: "a".into(), ..Default::default() };
    let events = ControlClient::new(control).download(request).await.expect("it begins").into_inner();
    let last = events.map(|event| event.expect("an event").event).collect::<Vec<_>>().await.pop().flatten();
    let (heap_now, now) = (dhat::HeapStats::get(), calls());
    assert!(matches!(last, Some(Event::Done(_))), "{last:?}");
    assert!(fs::read(here.join("a")).expect("it is there") == fs::read(source.join("a")).expect("a file"));

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
