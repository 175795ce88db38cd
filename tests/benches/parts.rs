//! Parts of the way of a chunk and of the tracker, each by itself and in this process. `tests/bench parts` runs it.

use std::time::{Duration, Instant};

use divan::{Bencher, counter::BytesCount, counter::ItemsCount};
use drizzle_proto::{
    Address, ChunkCount, ChunkSet, Digest, FileInfo, FileName, Labels, Layout, Manifest, PeerId, PeerInfo,
    announcement::FileChunks,
    limits::MESSAGE_SIZE,
    net::chunk_message::{Messages, front},
    wire,
};
use drizzle_tests::content::random;
use prost::{Message, bytes::Bytes};
use tokio::runtime::{Builder, Runtime};
use tracker_svc::{
    catalogue::memory::MemoryCatalogue,
    registry::{HolderPage, Registry, Wanted},
};

/// Chunks of the largest file.
const MOST: u32 = 262_144;

fn main() {
    divan::main();
}

#[divan::bench(args = [64 << 10, 1 << 20, 16 << 20])]
fn hash_a_chunk(bencher: Bencher<'_, '_>, size: usize) {
    let chunk = random(1, size);
    bencher.counter(BytesCount::new(size)).bench(|| Digest::of(&chunk));
}

/// A set of every second chunk, beginning with the first or the second.
fn half(first: usize) -> ChunkSet {
    let count = ChunkCount::new(MOST).expect("a number of chunks");
    let mut set = ChunkSet::empty(count);
    for chunk in count.indices().skip(first).step_by(2) {
        set.insert(chunk);
    }
    set
}

#[divan::bench_group]
mod sets_of_262144_chunks {
    use super::*;

    #[divan::bench]
    fn difference(bencher: Bencher<'_, '_>) {
        let (one, other) = (half(0), half(1));
        bencher.bench(|| one.difference(&other));
    }

    #[divan::bench]
    fn union(bencher: Bencher<'_, '_>) {
        let other = half(1);
        bencher.with_inputs(|| half(0)).bench_refs(|one| one.union_with(&other));
    }

    #[divan::bench]
    fn walk(bencher: Bencher<'_, '_>) {
        let one = half(0);
        bencher.counter(ItemsCount::new(MOST / 2)).bench(|| one.iter().count());
    }

    #[divan::bench]
    fn to_the_wire_and_back(bencher: Bencher<'_, '_>) {
        let one = half(0);
        bencher.bench(|| {
            let bytes = wire::ChunkSet::from(&one).encode_to_vec();
            let decoded = wire::ChunkSet::decode(&bytes[..]).expect("what was encoded");
            ChunkSet::try_from(decoded).expect("a set")
        });
    }
}

#[divan::bench]
fn front_of_a_message() -> Vec<u8> {
    front(divan::black_box(Some(1000)), divan::black_box(MESSAGE_SIZE))
}

/// In frames of 16 KiB, as another implementation may send them.
#[divan::bench(args = [16 << 10, MESSAGE_SIZE + 64])]
fn take_a_message_apart(bencher: Bencher<'_, '_>, frame: usize) {
    let message = Bytes::from([front(None, MESSAGE_SIZE), random(1, MESSAGE_SIZE)].concat());
    bencher.bench(|| {
        let (mut messages, mut rest, mut parts) = (Messages::default(), message.clone(), 0);
        while !rest.is_empty() {
            let mut frame = rest.split_to(frame.min(rest.len()));
            while messages.take(&mut frame).expect("a good message").is_some() {
                parts += 1;
            }
        }
        parts
    });
}

/// A tracker in memory, with holders of some of a file's chunks.
struct Tracker {
    runtime: Runtime,
    registry: Registry,
    file: FileInfo,
    leases: Vec<u64>,
    now: Instant,
}

impl Tracker {
    fn new(peers: u32, chunks: u32) -> Self {
        let (runtime, now) = (Builder::new_current_thread().build().expect("a runtime"), Instant::now());
        let registry = Registry::new(MemoryCatalogue::default(), Duration::from_secs(3600), 1, now);
        let layout = Layout::new(u64::from(chunks) << 16, 1 << 16).expect("a layout");
        let hashes: Vec<Digest> = (0..chunks).map(|chunk| Digest::of(&chunk.to_le_bytes())).collect();
        let manifest = Manifest::new(layout, hashes.clone()).expect("a manifest");
        let file = manifest.describe(FileName::new("file").expect("a name"));
        let mut this = Self { runtime, registry, file, leases: Vec::new(), now };
        for peer in 0..peers {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&peer.to_le_bytes());
            let address = Address::new(&format!("10.0.0.1:{}", 1024 + peer)).expect("an address");
            let info = PeerInfo::new(PeerId::from_bytes(id), address, Labels::default());
            this.leases.push(this.registry.register_peer(&info, now).expect("a lease"));
            let mut held = ChunkSet::empty(layout.chunk_count());
            for chunk in layout.chunk_count().indices().skip(peer as usize % 2).step_by(2) {
                held.insert(chunk);
            }
            // The first one registers the name, in as many parts as it takes.
            for (part, hashes) in hashes.chunks(8192).enumerate().take(if peer == 0 { usize::MAX } else { 1 }) {
                let hashes = if peer == 0 { hashes.to_vec() } else { Vec::new() };
                this.announce(peer as usize, u32::try_from(8192 * part).expect("a chunk"), hashes, held.clone());
            }
        }
        this
    }

    fn announce(&self, peer: usize, first_hash: u32, hashes: Vec<Digest>, held: ChunkSet) {
        let entry = FileChunks {
            file: self.file.clone(),
            first_hash,
            hashes,
            held,
            gone: false,
            replace: false,
            signature: None,
        };
        let answer = self.runtime.block_on(self.registry.announce(self.leases[peer], vec![entry], self.now));
        divan::black_box(answer.expect("an answer"));
    }
}

#[divan::bench_group(sample_count = 20)]
mod tracker {
    use super::*;

    /// Told by one of 1,000 peers, in a file of 1,024 chunks.
    #[divan::bench(args = [1, 32])]
    fn announce_chunks(bencher: Bencher<'_, '_>, chunks: usize) {
        let tracker = Tracker::new(1000, 1024);
        let count = tracker.file.layout.chunk_count();
        let mut at = 0;
        bencher.counter(ItemsCount::new(chunks)).bench_local(|| {
            let mut held = ChunkSet::empty(count);
            for chunk in count.indices().skip(at % 992).take(chunks) {
                held.insert(chunk);
            }
            at += 1;
            tracker.announce(at % 1000, 0, Vec::new(), held);
        });
    }

    /// The first page of 1,000 holders of 100,000 chunks.
    #[divan::bench]
    fn locate_holders(bencher: Bencher<'_, '_>) {
        let tracker = Tracker::new(1000, 100_000);
        let wanted = Wanted { hashes_from: None, signature: true, holders: HolderPage::First };
        bencher.bench_local(|| {
            let locations = tracker.registry.locate(tracker.file.name.clone(), wanted.clone());
            tracker.runtime.block_on(locations).expect("the file is known").holders.len()
        });
    }
}
