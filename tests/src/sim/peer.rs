//! One simulated peer: the engine's values, put together as the daemon does it.
//!
//! Every decision is the engine's; here is only the state around it. The daemon's counterparts are `Transfer`
//! (a download), `Uploads` (the slots), `Membership` (the lease) and `Holdings` (what is held).

use std::collections::BTreeMap;

use drizzle_engine::{
    announce::Announcements,
    binding::Sent,
    lease::Lease,
    locality::Locality,
    neighbours::Neighbours,
    schedule::{FetchId, Limits, Scheduler},
    slots::{Grant, Slots},
    streams::Streams,
};
use drizzle_proto::{
    Address, ChunkCount, ChunkIndex, ChunkSet, Digest, FileName, Labels, Layout, Manifest, PeerId, PeerInfo,
};
use rand::{SeedableRng, rngs::StdRng};

use super::{
    clock::Nanos,
    disk::Disk,
    links::{FlowId, LinkId},
    scenario::PeerPlan,
    slab::Handle,
};

/// A file that is distributed.
#[derive(Debug)]
pub struct File {
    /// Its name.
    pub name: FileName,
    /// Its chunks and their hashes.
    pub manifest: Manifest,
}

impl File {
    /// Made up, from a seed.
    pub fn new(nth: usize, chunks: u32, chunk_size: u32, seed: u64) -> Result<Self, String> {
        let layout = Layout::new(u64::from(chunks) * u64::from(chunk_size), chunk_size).map_err(|e| e.to_string())?;
        let hash = |chunk: u32| Digest::of(format!("{seed} {nth} {chunk}").as_bytes());
        let manifest = Manifest::new(layout, (0..chunks).map(hash).collect()).map_err(|e| e.to_string())?;
        let name = FileName::new(&format!("file-{nth}")).map_err(|e| e.to_string())?;
        Ok(Self { name, manifest })
    }

    /// How many chunks it has.
    pub fn count(&self) -> ChunkCount {
        self.manifest.layout().chunk_count()
    }
}

/// What came of a chunk that is not whole yet.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Bytes.
    pub got: u32,
    /// The peer that they came from.
    pub from: u32,
    /// Some came from another one.
    pub mixed: bool,
    /// Some of them are wrong, which the receiver cannot know yet.
    pub wrong: bool,
}

/// One request for a chunk and what follows from it, at both ends.
#[derive(Debug)]
pub struct Transfer {
    /// Which file.
    pub file: usize,
    /// The holder.
    pub from: u32,
    /// The requester.
    pub to: u32,
    /// What the requester's scheduler calls it.
    pub fetch: FetchId,
    /// The chunk that is sent: the one that was asked for, until the holder picks another.
    pub chunk: ChunkIndex,
    /// What the holder may send in its place.
    pub alternatives: Vec<ChunkIndex>,
    /// Chunks that came to the requester when it asked.
    pub receiving: u32,
    /// The holder counts it as sent.
    pub is_counted: bool,
    /// What the requester had of it.
    pub part: Option<Part>,
    /// The slot at the holder.
    pub grant: Option<Grant>,
    /// Its bytes, while they flow.
    pub flow: Option<FlowId>,
    /// The requester gave up, and the holder does not know yet.
    pub cancelled: bool,
}

/// Names a transfer.
pub type TransferId = Handle<Transfer>;

/// A download of one file.
#[derive(Debug)]
pub struct Download {
    /// What the scheduler hears of far peers.
    pub locality: Locality,
    /// What to ask for, and of whom.
    pub scheduler: Scheduler,
    /// How much at once.
    pub streams: Streams,
    /// Decides its random choices.
    pub rng: StdRng,
    /// What was asked for and has not ended, in the order in which it was asked for.
    pub running: Vec<(FetchId, TransferId)>,
    /// Bytes that came with transfers that have ended.
    pub received: f64,
    /// What is kept between two transfers of a chunk.
    pub parts: BTreeMap<ChunkIndex, Part>,
    /// Chunks that are fetched whole from one holder, because a mixture was wrong.
    pub whole_only: Vec<ChunkIndex>,
    /// Holders, as the tracker and the neighbours tell.
    pub neighbours: Neighbours,
    /// When those that it listens to are looked after.
    pub listens_at: Option<Nanos>,
    /// Whether the first picture of the holders is complete.
    pub located: bool,
    /// When it is to be woken.
    pub wake: Option<Nanos>,
    /// When it was done.
    pub ended: Option<Nanos>,
}

impl Download {
    /// One that begins now and knows no holder.
    pub fn new(file: &File, own: &PeerInfo, seed: u64, now: std::time::Instant) -> Self {
        let layout = file.manifest.layout();
        let limits = Limits::for_chunks_of(layout.chunk_size());
        Self {
            locality: Locality::new(own.id(), own.labels().clone(), file.count()),
            scheduler: Scheduler::new(&ChunkSet::full(file.count()), limits),
            streams: Streams::new(layout.chunk_size(), limits.in_flight, now),
            rng: StdRng::seed_from_u64(seed),
            running: Vec::new(),
            received: 0.0,
            parts: BTreeMap::new(),
            whole_only: Vec::new(),
            neighbours: Neighbours::new(own.id()),
            listens_at: None,
            located: false,
            wake: None,
            ended: None,
        }
    }

    /// A fetch has ended: the transfer that it was.
    pub fn ran(&mut self, fetch: FetchId) -> Option<TransferId> {
        let place = self.running.iter().position(|(running, _)| *running == fetch)?;
        Some(self.running.remove(place).1)
    }
}

/// One peer's part of one file.
#[derive(Debug)]
pub struct Share {
    /// Chunks that it holds.
    pub held: ChunkSet,
    /// Its download, once it began.
    pub download: Option<Box<Download>>,
    /// Peers that it tells which chunks it gets.
    pub listeners: Vec<u32>,
    /// Chunks that these have not heard of.
    pub unsaid: ChunkSet,
    /// Whether a scarce one is among them.
    pub is_scarce: bool,
    /// When they are told.
    pub tells_at: Option<Nanos>,
    /// When they were told last.
    pub told_at: Option<Nanos>,
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// As others know it.
    pub info: PeerInfo,
    /// What the scenario says of it.
    pub plan: PeerPlan,
    /// Whether it runs.
    pub alive: bool,
    /// Its link to the others.
    pub up: LinkId,
    /// Its link from the others.
    pub down: LinkId,
    /// Which request gets a slot.
    pub slots: Slots,
    /// How often it sent each chunk of the files that it has whole.
    pub choices: Sent,
    /// Decides between equally good ones.
    pub rng: StdRng,
    /// Bytes sent of which the slots were told.
    pub sent: f64,
    /// When its sending flows are looked at.
    pub timer: Option<Nanos>,
    /// Its disk.
    pub disk: Disk,
    /// When to call the tracker.
    pub lease: Lease,
    /// What the tracker has yet to hear.
    pub announcements: Announcements,
    /// When the lease is looked at.
    pub lease_at: Option<Nanos>,
    /// By file.
    pub shares: Vec<Share>,
}

/// The id of the peer with this index: random, so that no order of ids means anything, and with the index in it.
pub fn peer_info(index: u32, zone: usize, random: u64) -> Result<PeerInfo, String> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random.to_be_bytes());
    id[12..].copy_from_slice(&index.to_be_bytes());
    let address = Address::new(&format!("peer-{index}:7402")).map_err(|error| error.to_string())?;
    let labels = Labels::new([("rack", format!("r{zone}"))]).map_err(|error| error.to_string())?;
    Ok(PeerInfo::new(PeerId::from_bytes(id), address, labels))
}

/// The index of a peer.
pub fn index_of(peer: PeerId) -> u32 {
    let mut index = [0; 4];
    index.copy_from_slice(&peer.as_bytes()[12..]);
    u32::from_be_bytes(index)
}

/// A seed for one purpose of one peer, from the seed of the run (SplitMix64).
pub fn seed_for(seed: u64, peer: u32, purpose: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(peer) << 8 | purpose);
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
