//! A tracker on a free port of this machine, and peers that talk to it.

#![allow(unreachable_pub, reason = "a test binary has no outside")]

use std::{path::Path, time::Duration};

use drizzle_proto::{
    Address, ChunkSet, Digest, FileInfo, FileName, Labels, Layout, Manifest, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    client::TrackerClient,
    holder::{Holder, HolderChange, HolderChanges},
    net::{tls::Meant, transport::Transport},
    wire,
};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tracker_svc::{Config, Tracker, Trust, bind};

/// Far longer than anything takes; only a bug waits for it.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Leases that do not end while a test runs.
pub const LONG: Duration = Duration::from_secs(600);

pub fn config(directory: &Path, lease: Duration) -> Config {
    let listen = "127.0.0.1:0".parse().unwrap();
    Config {
        listen,
        data_dir: directory.to_owned(),
        lease,
        release_after: Duration::MAX,
        drain: Duration::from_secs(5),
        trust: Trust::everybody(),
        metrics: None,
    }
}

pub async fn start(directory: &Path) -> Tracker {
    bind(config(directory, LONG)).await.unwrap()
}

pub fn client(tracker: &Tracker) -> TrackerClient {
    TrackerClient::new(&Transport::plaintext(), &tracker.address().into()).unwrap()
}

/// Speaks in wire messages, for what no domain type can say.
pub fn raw(tracker: &Tracker) -> wire::tracker_client::TrackerClient<Channel> {
    let channel = Transport::plaintext().connect_lazy(&tracker.address().into(), Meant::Tracker).unwrap();
    wire::tracker_client::TrackerClient::new(channel)
}

pub fn peer_id(n: u8) -> PeerId {
    PeerId::from_bytes([n; 16])
}

pub fn address(n: u8) -> Address {
    Address::new(&format!("host{n}:7401")).unwrap()
}

pub fn info(n: u8) -> PeerInfo {
    PeerInfo::new(peer_id(n), address(n), Labels::default())
}

pub fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

/// Content of so many chunks of 16 KiB, told apart from other content by `tag`.
pub fn manifest(tag: u8, chunks: u32) -> Manifest {
    let layout = Layout::new(u64::from(chunks) << 14, 1 << 14).unwrap();
    let hash = |n: u32| {
        let mut bytes = [tag; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        Digest::from_bytes(bytes)
    };
    Manifest::new(layout, (0..chunks).map(hash).collect()).unwrap()
}

/// An announcement with all hashes.
pub fn entry(file: &str, manifest: &Manifest, held: ChunkSet) -> FileChunks {
    let hashes = manifest.hashes().to_vec();
    FileChunks {
        file: manifest.describe(name(file)),
        first_hash: 0,
        hashes,
        held,
        gone: false,
        replace: false,
        signature: None,
    }
}

pub fn all(file: &str, manifest: &Manifest) -> FileChunks {
    entry(file, manifest, ChunkSet::full(manifest.layout().chunk_count()))
}

pub fn some(file: &str, manifest: &Manifest, chunks: &[u32]) -> FileChunks {
    entry(file, manifest, set(manifest, chunks))
}

pub fn set(manifest: &Manifest, chunks: &[u32]) -> ChunkSet {
    let count = manifest.layout().chunk_count();
    let mut set = ChunkSet::empty(count);
    for chunk in chunks {
        set.insert(count.index(*chunk).unwrap());
    }
    set
}

/// A peer with a lease.
pub struct Peer {
    pub id: PeerId,
    pub lease: u64,
    pub tracker: TrackerClient,
}

impl Peer {
    pub async fn new(tracker: &Tracker, n: u8) -> Self {
        let mut client = client(tracker);
        let lease = client.register_peer(&info(n)).await.unwrap();
        Self { id: peer_id(n), lease: lease.id, tracker: client }
    }

    pub async fn announce(&mut self, entry: FileChunks) -> FileOutcome {
        self.tracker.register_chunk(self.lease, &[entry]).await.unwrap().remove(0)
    }

    pub async fn share(&mut self, file: &str, manifest: &Manifest) {
        assert_eq!(self.announce(all(file, manifest)).await, FileOutcome::Registered);
    }

    /// Renews the lease until the task is aborted; ends by itself only if the lease is lost.
    pub fn keep_alive(&self) -> tokio::task::JoinHandle<()> {
        let (mut client, lease) = (self.tracker.clone(), self.lease);
        tokio::spawn(async move {
            loop {
                client.renew_lease(lease, Default::default()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    pub async fn holders(&mut self, file: &str) -> Vec<Holder> {
        self.tracker.holders(&name(file)).await.unwrap().1
    }

    /// Which peers hold some of a file, by number.
    pub async fn holder_ids(&mut self, file: &str) -> Vec<u8> {
        self.holders(file).await.iter().map(|holder| holder.peer.id().as_bytes()[0]).collect()
    }
}

/// Waits until no task is left. A connection's task is counted for a moment after it let go of everything.
pub fn wait_until_no_task_is_left(runtime: &tokio::runtime::Runtime) {
    let deadline = std::time::Instant::now() + LIMIT;
    while runtime.metrics().num_alive_tasks() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} tasks are left", runtime.metrics().num_alive_tasks());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn refused(outcome: &FileOutcome) -> Option<&FileInfo> {
    match outcome {
        FileOutcome::Refused { registered, .. } => Some(registered),
        _ => None,
    }
}

/// What a watcher knows after the messages so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Belief {
    pub holders: std::collections::BTreeMap<PeerId, Holder>,
    pub synced: bool,
    pub messages: usize,
}

impl Belief {
    pub fn apply(&mut self, message: HolderChanges) {
        self.messages += 1;
        if message.reset {
            self.holders.clear();
            self.synced = false;
        }
        for change in message.changes {
            match change {
                HolderChange::Is(holder) => drop(self.holders.insert(holder.peer.id(), holder)),
                HolderChange::Added(peer, chunks) => {
                    self.holders.get_mut(&peer).expect("a known holder").chunks.union_with(&chunks);
                }
                HolderChange::Gone(peer) | HolderChange::Parted(peer) => drop(self.holders.remove(&peer)),
            }
        }
        self.synced |= message.synced;
    }

    /// Reads until the condition holds.
    pub async fn until<E: std::fmt::Debug>(
        &mut self,
        stream: &mut (impl Stream<Item = Result<HolderChanges, E>> + Unpin),
        condition: impl Fn(&Self) -> bool,
    ) {
        while !condition(self) {
            let message = tokio::time::timeout(LIMIT, stream.next()).await.expect("a message in time");
            self.apply(message.expect("the stream goes on").expect("a message"));
        }
    }
}
