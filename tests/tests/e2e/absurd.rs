//! Absurd values in every field of every message: refused with a proper status, at no cost.

use drizzle_proto::{
    net::{tls::Meant, transport::Transport},
    wire::{
        CancelTransferRequest, ChunkRange, ChunkRanges, ChunkSet, DownloadRequest, FetchChunkRequest, FileChunks,
        FileInfo, FileLocationsRequest, FileSignature, LeaveRequest, ListFilesRequest, RegisterChunkRequest,
        RegisterPeerRequest, RenewLeaseRequest, ShareRequest, SignFileRequest, UnshareRequest, WatchFileRequest,
        WithdrawFileRequest, file_result, peer_client::PeerClient,
    },
};
use drizzle_tests::{Cluster, Content, Peer};
use tonic::{Code, Status, transport::Channel};

/// No message may make a daemon take this much.
const MEMORY: u64 = 150 << 20;

#[track_caller]
fn assert_code<T: std::fmt::Debug>(answer: Result<T, Status>, codes: &[Code], what: &str) {
    let status = answer.expect_err(what);
    assert!(codes.contains(&status.code()), "{what}: {status:?}");
}

fn absurd_text() -> Vec<String> {
    vec![String::new(), "x".into(), "\0".repeat(32), "é".repeat(64), "F".repeat(64), "0".repeat(1 << 20)]
}

async fn lease(cluster: &Cluster) -> u64 {
    let peer = RegisterPeerRequest { peer_id: "a".repeat(32), address: "127.0.0.1:9".into(), ..Default::default() };
    cluster.tracker.wire().register_peer(peer).await.unwrap().into_inner().lease_id
}

#[tokio::test]
async fn peers_and_leases_at_the_tracker() {
    let cluster = Cluster::start().await;
    let mut tracker = cluster.tracker.wire();
    let address = "127.0.0.1:9".to_owned();
    for peer_id in absurd_text() {
        let request = RegisterPeerRequest { peer_id, address: address.clone(), ..Default::default() };
        assert_code(tracker.register_peer(request).await, &[Code::InvalidArgument], "peer id");
    }
    let addresses =
        ["host", ":1", "host:0", "host:65536", "host:-1", "host:1/x", "ho st:1", "[::1:1", "u@h:1", "a\n:1"];
    for address in addresses.map(str::to_owned).into_iter().chain(absurd_text()) {
        let request = RegisterPeerRequest { peer_id: "a".repeat(32), address: address.clone(), ..Default::default() };
        assert_code(tracker.register_peer(request).await, &[Code::InvalidArgument], &address);
    }
    for lease_id in [0, 1, u64::MAX] {
        let lost = &[Code::FailedPrecondition];
        assert_code(tracker.renew_lease(RenewLeaseRequest { lease_id, ..Default::default() }).await, lost, "renewal");
        let register = RegisterChunkRequest { lease_id, files: vec![] };
        assert_code(tracker.register_chunk(register).await, lost, "announcement");
        let withdraw = WithdrawFileRequest { lease_id, name: "A".into() };
        assert_code(tracker.withdraw_file(withdraw).await, &[Code::FailedPrecondition, Code::NotFound], "withdrawal");
        tracker.leave(LeaveRequest { lease_id }).await.expect("unknown leases are fine");
    }
    assert!(cluster.tracker.daemon.process.peak_memory() < MEMORY);
}

#[tokio::test]
async fn files_at_the_tracker() {
    let cluster = Cluster::start().await;
    let mut tracker = cluster.tracker.wire();
    let lease_id = lease(&cluster).await;
    let content = Content::small_chunks("A", 1, 3);
    let entry = |content: &Content| FileChunks {
        file: Some((&content.info()).into()),
        chunk_sha256: content.manifest.hashes().iter().map(ToString::to_string).collect(),
        held: Some(ChunkSet { length: 3, runs: vec![0, 3], bits: Default::default() }),
        ..FileChunks::default()
    };
    let good = entry(&content);
    // Of other content: a manifest that the tracker knows already needs no hashes, so wrong ones pass.
    let other = entry(&Content::small_chunks("other", 2, 3));
    let file = |change: fn(&mut FileInfo)| {
        let mut entry = good.clone();
        change(entry.file.as_mut().unwrap());
        entry
    };
    let held = |length: u32, runs: &[u32], bits: Vec<u8>| FileChunks {
        held: Some(ChunkSet { length, runs: runs.to_vec(), bits: bits.into() }),
        ..good.clone()
    };
    let statement = drizzle_proto::signature::Statement::new(&content.info(), 1).unwrap().to_string();
    let signature = |statement: &str, minisign: &str| {
        let signature = FileSignature { statement: statement.to_owned(), minisign: minisign.to_owned() };
        FileChunks { signature: Some(signature), ..good.clone() }
    };
    let cases = [
        ("no file", FileChunks { file: None, ..good.clone() }),
        ("size 2^64-1", file(|f| f.size = u64::MAX)),
        ("size 0", file(|f| f.size = 0)),
        ("chunk size 0", file(|f| f.chunk_size = 0)),
        ("chunk size 2^32-1", file(|f| f.chunk_size = u32::MAX)),
        ("chunk size 2^31", file(|f| f.chunk_size = 1 << 31)),
        ("chunk size 3", file(|f| f.chunk_size = 3)),
        ("chunk count 0", file(|f| f.chunk_count = 0)),
        ("chunk count 2^32-1", file(|f| f.chunk_count = u32::MAX)),
        ("file id empty", file(|f| f.file_id = String::new())),
        ("file id of something else", file(|f| f.file_id = "0".repeat(64))),
        ("file id long", file(|f| f.file_id = "0".repeat(1 << 20))),
        ("too many hashes", FileChunks { chunk_sha256: vec!["0".repeat(64); 8193], ..good.clone() }),
        ("a malformed hash", FileChunks { chunk_sha256: vec!["z".repeat(64); 3], ..good.clone() }),
        ("other hashes", FileChunks { chunk_sha256: vec!["0".repeat(64); 3], ..good.clone() }),
        ("first hash 2^32-1", FileChunks { first_hash: u32::MAX, ..good.clone() }),
        ("a signature of nothing", signature("", "")),
        ("a megabyte of a statement", signature(&"x".repeat(1 << 20), "")),
        ("a megabyte of a signature", signature(&statement, &"x".repeat(1 << 20))),
        ("a signature of no key", signature(&statement, "untrusted comment: x\nx\ntrusted comment: x\nx\n")),
        ("set length 2^32-1", held(u32::MAX, &[0, u32::MAX], vec![])),
        ("set length of another file", held(2, &[0, 2], vec![])),
        ("a run beyond the end", held(3, &[2, u32::MAX], vec![])),
        ("half a run", held(3, &[0], vec![])),
        ("an empty run", held(3, &[0, 0], vec![])),
        ("both forms", held(3, &[0, 1], vec![1])),
        ("spare bits", held(3, &[], vec![0xff])),
        ("a megabyte of bits", held(3, &[], vec![0; 1 << 20])),
    ];
    for (what, entry) in cases {
        // Its neighbour is registered all the same.
        let request = RegisterChunkRequest { lease_id, files: vec![entry, other.clone()] };
        let results = tracker.register_chunk(request).await.expect(what).into_inner().results;
        assert_eq!(results[0].status(), file_result::Status::Invalid, "{what}: {}", results[0].detail);
        assert!(!results[0].detail.is_empty(), "{what}: says what is wrong");
        assert_eq!(results[1].status(), file_result::Status::Registered, "beside {what}");
    }
    assert_eq!(cluster.listed().await, [("other".into(), 1, 0)]);

    // The greatest file there may be needs hashes before it costs anything.
    let mut greatest = file(|f| (f.size, f.chunk_size, f.chunk_count) = (1 << 44, 64 << 20, 1 << 18));
    greatest.held = Some(ChunkSet { length: 1 << 18, runs: vec![0, 1 << 18], bits: Default::default() });
    greatest.file.as_mut().unwrap().name = "greatest".into();
    let request = RegisterChunkRequest { lease_id, files: vec![greatest; 100] };
    for result in tracker.register_chunk(request).await.unwrap().into_inner().results {
        assert_ne!(result.status(), file_result::Status::Registered);
    }
    let too_many = RegisterChunkRequest { lease_id, files: vec![FileChunks::default(); 4097] };
    assert_code(tracker.register_chunk(too_many).await, &[Code::InvalidArgument], "4097 entries");
    let too_large = RegisterChunkRequest {
        lease_id,
        files: vec![FileChunks { chunk_sha256: vec!["0".repeat(1 << 20); 5], ..good.clone() }],
    };
    assert_code(tracker.register_chunk(too_large).await, &[Code::OutOfRange, Code::ResourceExhausted], "5 MiB");
    assert!(cluster.tracker.daemon.process.peak_memory() < MEMORY);
}

#[tokio::test]
async fn queries_at_the_tracker() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    peer.share(&Content::small_chunks("A", 1, 3)).await;
    let mut tracker = cluster.tracker.wire();
    for page_size in [1, 1000, u32::MAX] {
        let list = tracker.list_files(ListFilesRequest { page_size, ..Default::default() }).await.unwrap().into_inner();
        assert_eq!(list.files.len(), 1);
    }
    for token in absurd_text().into_iter().filter(|token| !token.is_empty()) {
        let what = token.chars().take(9).collect::<String>();
        let list = ListFilesRequest { page_token: token.clone(), ..Default::default() };
        assert_code(tracker.list_files(list).await, &[Code::InvalidArgument], &what);
        let locations = FileLocationsRequest { name: "A".into(), holders_token: token, ..Default::default() };
        assert_code(tracker.file_locations(locations).await, &[Code::InvalidArgument], &what);
    }
    let long = ListFilesRequest { prefix: "x".repeat(1 << 20), ..Default::default() };
    match tracker.list_files(long).await {
        Ok(list) => assert_eq!(list.into_inner().files, []),
        Err(status) => assert_eq!(status.code(), Code::InvalidArgument),
    }
    for first_hash in [3, 4, u32::MAX] {
        let locations = FileLocationsRequest { name: "A".into(), first_hash, ..Default::default() };
        match tracker.file_locations(locations).await {
            Ok(answer) => assert_eq!(answer.into_inner().chunk_sha256, [""; 0], "from {first_hash}"),
            Err(status) => assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange)),
        }
    }
    assert_code(
        tracker.watch_file(WatchFileRequest { name: "none".into(), ..Default::default() }).await,
        &[Code::NotFound],
        "no such name",
    );
    assert!(cluster.tracker.daemon.process.peak_memory() < MEMORY);
}

async fn peer_client(peer: &Peer) -> PeerClient<Channel> {
    PeerClient::new(Transport::plaintext().connect(&peer.address().into(), Meant::AnyPeer).await.unwrap())
}

#[tokio::test]
async fn chunks_at_a_peer() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    let content = Content::small_chunks("A", 1, 3);
    peer.share(&content).await;
    let file_id = content.info().id.to_string();
    let mut client = peer_client(&peer).await;
    for text in absurd_text() {
        let request = FetchChunkRequest { file_id: text, chunk: 0, offset: 0, ..Default::default() };
        // One of a megabyte is not even read.
        assert_code(client.fetch_chunk(request).await, &[Code::InvalidArgument, Code::OutOfRange], "file id");
    }
    let request = FetchChunkRequest { file_id: "0".repeat(64), requester: "nobody".into(), ..Default::default() };
    assert_code(client.fetch_chunk(request).await, &[Code::InvalidArgument], "a requester that is no peer id");
    let other = FetchChunkRequest { file_id: "0".repeat(64), chunk: 0, offset: 0, ..Default::default() };
    assert_code(client.fetch_chunk(other).await, &[Code::NotFound], "unknown file");
    for (chunk, offset) in [(3, 0), (u32::MAX, 0), (0, 16 << 10), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        let request = FetchChunkRequest { file_id: file_id.clone(), chunk, offset, ..Default::default() };
        assert_code(client.fetch_chunk(request).await, &[Code::OutOfRange], &format!("chunk {chunk} from {offset}"));
    }
    let last = FetchChunkRequest { file_id, chunk: 2, offset: (16 << 10) - 1, ..Default::default() };
    let mut stream = client.fetch_chunk(last).await.unwrap().into_inner();
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!(message.data, content.bytes[content.bytes.len() - 1..]);
    assert!(stream.message().await.unwrap().is_none());
    assert!(peer.daemon.process.peak_memory() < MEMORY);
}

#[tokio::test]
async fn a_chunk_that_is_not_held_has_its_own_status() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let content = Content::small_chunks("A", 1, 4);
    one.share(&content).await;
    let two = cluster.peer("two").await;
    two.cli(["download", "A", "--chunks", "1"]).await.expect(0);
    let file_id = content.info().id.to_string();
    let mut client = peer_client(&two).await;
    let lacking = FetchChunkRequest { file_id: file_id.clone(), chunk: 0, offset: 0, ..Default::default() };
    assert_code(client.fetch_chunk(lacking).await, &[Code::FailedPrecondition], "not held");
    let none = FetchChunkRequest { file_id: file_id.clone(), chunk: 4, offset: 0, ..Default::default() };
    assert_code(client.fetch_chunk(none).await, &[Code::OutOfRange], "no such chunk");
    client.fetch_chunk(FetchChunkRequest { file_id, chunk: 1, offset: 0, ..Default::default() }).await.expect("held");
}

#[tokio::test]
async fn requests_at_the_control_service() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    let mut source = cluster.peer("source").await;
    source.share(&Content::small_chunks("A", 1, 3)).await;
    let mut control = peer.wire();
    let invalid = &[Code::InvalidArgument];
    for ranges in [
        vec![(0, u32::MAX)],
        vec![(u32::MAX, u32::MAX)],
        vec![(3, 3)],
        vec![(2, 1)],
        vec![(0, 2); 100_000].into_iter().chain([(9, 9)]).collect(),
    ] {
        let ranges: Vec<ChunkRange> = ranges.into_iter().map(|(first, last)| ChunkRange { first, last }).collect();
        let what = format!("{:?}", ranges.last());
        let chunks = Some(ChunkRanges { ranges });
        let request = DownloadRequest { name: "A".into(), chunks, ..Default::default() };
        assert_code(control.download(request).await, invalid, &what);
    }
    for output in ["relative", "../up", "/", "/dev/null", "/proc/none/x", "/no\0where"] {
        let request = DownloadRequest { name: "A".into(), output: output.into(), ..Default::default() };
        // Some are refused before it starts, some by the file system: none is done.
        if let Ok(events) = control.download(request).await {
            let mut events = events.into_inner();
            let mut last = None;
            while let Ok(Some(event)) = events.message().await {
                last = event.event;
            }
            let done = matches!(last, Some(drizzle_proto::wire::download_event::Event::Done(_)));
            assert!(!done, "downloaded to {output:?}");
        }
    }
    let path = cluster.folder().join("file");
    std::fs::write(&path, b"content").unwrap();
    let path = path.to_str().unwrap().to_owned();
    for chunk_size in [1, 17, 1 << 13, 1 << 27, u32::MAX] {
        let request = ShareRequest { paths: vec![path.clone()], name: String::new(), chunk_size, ..Default::default() };
        assert_code(control.share(request).await, invalid, &format!("chunk size {chunk_size}"));
    }
    for paths in [vec![], vec![String::new()], vec!["relative".into()], vec!["x".repeat(1 << 20)]] {
        let what = format!("{} paths", paths.len());
        let request = ShareRequest { paths, ..Default::default() };
        assert_code(control.share(request).await, &[Code::InvalidArgument, Code::NotFound], &what);
    }
    let none = &[Code::NotFound];
    for signature in [None, Some(FileSignature::default())] {
        assert_code(control.sign_file(SignFileRequest { signature }).await, &[Code::InvalidArgument], "sign");
    }
    assert_code(control.unshare(UnshareRequest { name: "none".into() }).await, none, "unshare");
    assert_code(
        control.cancel_transfer(CancelTransferRequest { name: "none".into(), ..Default::default() }).await,
        none,
        "cancel",
    );
    let longest = DownloadRequest { name: "none".into(), timeout_millis: u64::MAX, ..Default::default() };
    assert_code(control.download(longest).await, none, "a timeout of half a billion years");
    let longest = DownloadRequest { name: "A".into(), timeout_millis: u64::MAX, ..Default::default() };
    let mut events = control.download(longest).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    assert!(peer.path("A").exists());
    assert!(peer.daemon.process.peak_memory() < MEMORY);
    assert_eq!(source.daemon.terminate().await, 0);
}

#[tokio::test]
async fn bytes_that_are_not_grpc() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    let content = Content::small_chunks("A", 1, 3);
    peer.share(&content).await;
    let tracker = cluster.tracker.address().to_string();
    for address in [tracker, peer.address().to_string(), peer.control().to_owned()] {
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            &[0; 65536],
        ] {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            // Either of these may fail: the other end may have closed already.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
    let two = cluster.peer("two").await;
    two.download("A").await;
    assert!(peer.daemon.process.peak_memory() < MEMORY);
}
