//! Exit codes are a contract with scripts.

use std::fs;

use drizzle_proto::wire::ListTransfersRequest;
use drizzle_tests::{Cluster, Content, FakePeer, Manner, content::SMALL_CHUNK, content::files_below, until};
use rustix::process::Signal;

#[tokio::test]
async fn usage_errors_are_2() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    for args in [
        &["no-such-command"][..],
        &["download"],
        &["download", "A", "--no-such-flag"],
        &["download", "A", "--chunks", "x"],
        &["download", "A", "--chunks", "9-0"],
        &["download", "A", "--timeout", "soon"],
        &["share"],
        &["share", "a", "--chunk-size", "17"],
        &["share", "a", "b", "--name", "c"],
        &["completions", "no-such-shell"],
    ] {
        assert_eq!(peer.cli(args).await.code, 2, "{args:?}");
    }
}

#[tokio::test]
async fn a_file_that_nobody_registered_is_3() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    peer.cli(["download", "nothing"]).await.expect(3).last("failed");
    peer.cli(["locations", "nothing"]).await.expect(3);
    peer.cli(["unshare", "nothing"]).await.expect(3);
    peer.cli(["cancel", "nothing"]).await.expect(3);
    peer.cli(["share".as_ref(), peer.path("nothing").as_os_str()]).await.expect(3);
    assert_eq!(files_below(&peer.dir), [""; 0]);
}

#[tokio::test]
async fn a_destination_that_is_no_file_is_2_and_is_called_what_it_is() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 2)).await;
    let two = cluster.peer("two").await;
    let at = |name: &str| cluster.folder().join(name);
    fs::create_dir_all(at("folder/A")).unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for (path, what) in [
        ("/dev/null".into(), "a device"),
        (at("folder/"), "a folder"),
        (at("link"), "a symbolic link"),
        (at("fifo"), "a named pipe"),
        (at("socket"), "a socket"),
    ] {
        let run = two.cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), path.as_os_str()]).await.expect(2);
        let reason = run.reason();
        assert!(reason.contains(&format!(" is {what}")) && reason.contains("-o"), "{reason}");
        assert!(!format!("{reason}{}", run.stderr).to_lowercase().contains("move it away"), "{reason}");
    }
}

#[tokio::test]
async fn no_honest_holder_is_4() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 2);
    let _liar = FakePeer::start(&cluster.tracker.url(), &a, Manner::WrongBytes).await;
    let peer = cluster.peer("peer").await;
    peer.cli(["download", "A", "--timeout", "1s"]).await.expect(4).last("failed");
}

#[tokio::test]
async fn an_unreachable_daemon_or_tracker_is_5() {
    let mut cluster = Cluster::start().await;
    let mut peer = cluster.peer("peer").await;
    cluster.tracker.daemon.kill();
    for args in [&["download", "A", "--timeout", "1s"][..], &["files"], &["locations", "A"]] {
        assert_eq!(peer.cli(args).await.code, 5, "without the tracker: {args:?}");
    }
    peer.daemon.kill();
    for args in [&["download", "A"][..], &["files"], &["locations", "A"], &["status"], &["unshare", "A"]] {
        let run = peer.cli(args).await;
        assert_eq!(run.code, 5, "without the daemon: {args:?}");
        let said = format!("{} {:?}", run.stderr, run.events);
        assert!(said.contains(peer.control()), "says where it looked: {said}");
    }
}

#[tokio::test]
async fn other_content_at_the_destination_is_6() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 2)).await;
    let two = cluster.peer("two").await;
    fs::write(two.path("A"), b"mine").unwrap();
    two.cli(["download", "A"]).await.expect(6).last("failed");
    assert_eq!(fs::read(two.path("A")).unwrap(), b"mine");
}

#[tokio::test]
async fn nobody_to_serve_is_7() {
    let cluster = Cluster::start().await;
    let mut one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 2)).await;
    assert_eq!(one.daemon.terminate().await, 0);
    let two = cluster.peer("two").await;
    let run = two.cli(["download", "A", "--timeout", "1s"]).await.expect(7);
    assert_eq!(run.lacking(), [0, 1]);
    assert!(run.events.iter().any(|event| event["event"] == "waiting"), "it said that it waits");
}

#[tokio::test]
async fn ctrl_c_is_130_and_keeps_the_chunks() {
    interrupted_is(Signal::INT, 130).await;
}

#[tokio::test]
async fn a_terminated_cli_is_143_and_keeps_the_chunks() {
    interrupted_is(Signal::TERM, 143).await;
}

async fn interrupted_is(signal: Signal, code: i32) {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(6));
    let _source = FakePeer::start(&cluster.tracker.url(), &a, Manner::Gated(gate.clone())).await;
    let peer = cluster.peer("peer").await;
    let mut download = peer.start_cli(["download", "A"]);
    download.until_stored(6).await;
    download.signal(signal);
    download.ended().await.expect(code);
    let transfers = peer.wire().list_transfers(ListTransfersRequest {}).await.unwrap().into_inner().transfers;
    assert_eq!(transfers, [], "the transfer ended");
    assert_eq!(files_below(&peer.dir), [""; 0]);

    gate.add_permits(1000);
    let run = peer.download("A").await;
    assert_eq!(run.resumed(), 6 * u64::from(SMALL_CHUNK));
    assert_eq!(run.fetched(), 26 * u64::from(SMALL_CHUNK));
    a.assert_at(&peer.path("A"));
}

#[tokio::test]
async fn a_killed_cli_leaves_the_transfer_to_the_daemon() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(6));
    let _source = FakePeer::start(&cluster.tracker.url(), &a, Manner::Gated(gate.clone())).await;
    let peer = cluster.peer("peer").await;
    let mut download = peer.start_cli(["download", "A"]);
    download.until_stored(6).await;
    download.kill();
    assert_eq!(peer.status().await.transfers.len(), 1);
    gate.add_permits(1000);
    until("the whole file", async || peer.path("A").exists().then_some(())).await;
    a.assert_at(&peer.path("A"));
}

#[tokio::test]
async fn a_cancelled_transfer_ends_for_its_caller() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(6));
    let _source = FakePeer::start(&cluster.tracker.url(), &a, Manner::Gated(gate)).await;
    let peer = cluster.peer("peer").await;
    let mut download = peer.start_cli(["download", "A"]);
    download.until_stored(6).await;
    peer.cli(["cancel", "A"]).await.expect(0);
    let run = download.ended().await;
    assert_eq!(run.last("failed")["event"], "failed");
    assert_ne!(run.code, 0);
    assert_eq!(peer.status().await.transfers, []);
}
