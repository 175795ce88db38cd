//! A tracker that lies to its peers. It may keep them from what they want, and no more: nothing wrong is put in place,
//! memory stays bounded, every command ends, and nobody else is sent anything but the beginning of a call.

use std::sync::{Arc, Mutex};

use drizzle_proto::{
    Address, ChunkCount, ChunkSet, Labels, PeerInfo,
    client::TrackerClient,
    convert::packed,
    holder::{Holder, HolderChange, HolderChanges},
    net::transport::Transport,
    wire,
};
use drizzle_tests::{
    Cluster, Content, FakePeer, FalseTracker, Manner, Peer,
    cluster::Options,
    content::files_below,
    false_tracker::{Lies, stranger},
    hostile::PREFACE,
    until,
};
use tokio::{io::AsyncReadExt, net::TcpListener};

/// No lie may make a peer take this much.
const MEMORY: u64 = 256 << 20;

async fn peer_of(cluster: &Cluster, tracker: &FalseTracker) -> Peer {
    let url = format!("http://{}", tracker.address);
    cluster.peer_with("believer", Options::default().tracker(url)).await
}

fn assert_bounded(peer: &Peer) {
    let peak = peer.daemon.process.peak_memory();
    assert!(peak < MEMORY, "the peer took {} MiB", peak >> 20);
}

/// The truth about a file, but for its holders.
fn locations(content: &Content, holders: Vec<Holder>) -> wire::FileLocationsResponse {
    wire::FileLocationsResponse {
        file: Some((&content.info()).into()),
        packed_sha256: packed(content.manifest.hashes()).into(),
        holders: holders.iter().map(Into::into).collect(),
        ..Default::default()
    }
}

fn holder(nth: u32, address: &str, count: ChunkCount) -> Holder {
    let peer = PeerInfo::new(stranger(nth), Address::new(address).expect("an address"), Labels::default());
    Holder { peer, chunks: ChunkSet::full(count) }
}

#[tokio::test]
async fn pages_without_end_are_an_end() {
    let content = Content::small_chunks("A", 1, 4);
    let count = content.manifest.layout().chunk_count();
    let page = locations(&content, (0..500).map(|nth| holder(nth, "127.0.0.1:9", count)).collect());
    let file = wire::FileSummary { file: page.file.clone(), ..Default::default() };
    let again = Mutex::new(0);
    let next = move || {
        let mut nth = again.lock().expect("nobody panics with it");
        *nth += 1;
        stranger(*nth).to_string()
    };
    let next = Arc::new(next);
    let (token, list_token) = (next.clone(), next);
    let tracker = FalseTracker::start(Lies {
        locations: Box::new(move |_| Ok(wire::FileLocationsResponse { next_holders_token: token(), ..page.clone() })),
        files: Box::new(move |_| {
            Ok(wire::ListFilesResponse { files: vec![file.clone()], next_page_token: list_token() })
        }),
        watch: Arc::new(|_| None),
    })
    .await;
    let mut client = TrackerClient::new(&Transport::plaintext(), &tracker.address.into()).expect("an address");
    let error = client.holders(&content.name).await.expect_err("no swarm is so large");
    assert!(error.to_string().contains("holders is out of bounds"), "{error}");

    let cluster = Cluster::start().await;
    let peer = peer_of(&cluster, &tracker).await;
    let files = peer.cli(["files"]).await.expect(1);
    assert!(files.stderr.contains("does not go on"), "{}", files.stderr);
    let locations = peer.cli(["locations", "A"]).await.expect(1);
    assert!(locations.stderr.contains("without end"), "{}", locations.stderr);
    assert_bounded(&peer);
}

#[tokio::test]
async fn a_wrong_manifest_puts_nothing_in_place() {
    let cluster = Cluster::start().await;
    let (content, other) = (Content::small_chunks("A", 1, 8), Content::small_chunks("A", 2, 8));
    let honest = FakePeer::start(&cluster.tracker.url(), &content, Manner::Honest).await;
    let count = content.manifest.layout().chunk_count();
    let at = honest.address.to_string();
    // The id of one content and the hashes of another; and a manifest of another content, which no holder has.
    let mixed = wire::FileLocationsResponse {
        packed_sha256: packed(other.manifest.hashes()).into(),
        ..locations(&content, vec![holder(1, &at, count)])
    };
    let wrong = locations(&other, vec![holder(1, &at, count)]);
    let few = wire::FileLocationsResponse { packed_sha256: Default::default(), ..locations(&content, Vec::new()) };
    for lie in [mixed, wrong, few] {
        let tracker = FalseTracker::start(Lies { locations: Box::new(move |_| Ok(lie.clone())), ..Lies::none() }).await;
        let peer = peer_of(&cluster, &tracker).await;
        let run = peer.cli(["download", "A", "--timeout", "1s"]).await;
        assert_ne!(run.code, 0, "{:?}", run.events.last());
        assert_eq!(files_below(&peer.dir), [""; 0]);
        assert_bounded(&peer);
    }
}

/// At a port that speaks something else, and must not be made to.
#[tokio::test]
async fn a_holder_at_somebody_elses_port_is_sent_the_beginning_of_a_call_and_no_more() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at = elsewhere.local_addr().expect("it is bound").to_string();
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let hears = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = elsewhere.accept().await {
            let hears = hears.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes).await;
                hears.lock().expect("nobody panics with it").push(bytes);
            });
        }
    });
    let content = Content::small_chunks("A", 1, 8);
    let (lie, count) = (locations(&content, Vec::new()), content.manifest.layout().chunk_count());
    let changes = vec![HolderChange::Is(holder(1, &at, count))];
    let told = HolderChanges { reset: true, changes, synced: true, introduces: true };
    let tracker = FalseTracker::start(Lies {
        locations: Box::new(move |_| Ok(lie.clone())),
        watch: Arc::new(move |nth| (nth == 0).then(|| (&told).into())),
        ..Lies::none()
    })
    .await;
    let cluster = Cluster::start().await;
    let peer = peer_of(&cluster, &tracker).await;
    let run = peer.cli(["download", "A", "--timeout", "2s"]).await;
    assert_eq!(run.code, 7, "{:?} {}", run.events.last(), run.stderr);
    assert_eq!(files_below(&peer.dir), [""; 0]);
    drop(peer);
    until("the ends of its connections", async || {
        (!heard.lock().expect("nobody panics with it").is_empty()).then_some(())
    })
    .await;
    for bytes in heard.lock().expect("nobody panics with it").iter() {
        assert!(bytes.starts_with(&PREFACE[..bytes.len().min(PREFACE.len())]), "it is HTTP/2: {bytes:?}");
        assert!(bytes.len() < 16 << 10, "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn holders_without_end_take_no_memory_without_end() {
    let content = Content::small_chunks("A", 1, 8);
    let lie = locations(&content, Vec::new());
    let tracker = FalseTracker::start(Lies {
        locations: Box::new(move |_| Ok(lie.clone())),
        // Ten million, each with a port at which nobody listens.
        watch: Arc::new(|nth| {
            let count = ChunkCount::new(8).expect("few chunks");
            let change = |at: u32| HolderChange::Is(holder(nth * 1000 + at, "127.0.0.1:1", count));
            let changes = (0..1000).map(change).collect();
            let told = HolderChanges { reset: nth == 0, changes, synced: true, introduces: true };
            (nth < 10_000).then(|| (&told).into())
        }),
        ..Lies::none()
    })
    .await;
    let cluster = Cluster::start().await;
    let peer = peer_of(&cluster, &tracker).await;
    let run = peer.cli(["download", "A", "--timeout", "3s"]).await;
    assert_ne!(run.code, 0, "nobody has it");
    assert!(tracker.asked().contains(&"watch_file".to_owned()));
    assert_bounded(&peer);
}
