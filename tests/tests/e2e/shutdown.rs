//! Readiness, SIGTERM, and what is left afterwards.

use drizzle_proto::net::shell::Drained;
use drizzle_proto::{ChunkCount, ChunkSet};
use drizzle_tests::{
    Cluster, Content, FakePeer, Manner, Running, content::SMALL_CHUNK, content::files_below, inside::peer_config, until,
};
use rustix::process::Signal;

#[tokio::test]
async fn a_daemon_says_one_line_and_ends_with_0() {
    let mut cluster = Cluster::start().await;
    let mut peer = cluster.peer("peer").await;
    peer.share(&Content::small_chunks("A", 1, 4)).await;
    assert_eq!(peer.daemon.terminate().await, 0, "{}", peer.daemon.process.stderr());
    assert_eq!(cluster.listed().await, [("A".into(), 0, 0)], "it left: the tracker forgot it at once");
    assert_eq!(cluster.tracker.daemon.terminate().await, 0, "{}", cluster.tracker.daemon.process.stderr());
    for (daemon, keys) in [(&cluster.tracker.daemon, &["tracker"][..]), (&peer.daemon, &["control", "id", "peer"])] {
        let said = daemon.process.stdout();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(daemon.ready.keys().collect::<Vec<_>>(), keys);
    }
}

#[tokio::test]
async fn ctrl_c_ends_a_daemon_as_well() {
    let mut cluster = Cluster::start().await;
    let mut peer = cluster.peer("peer").await;
    peer.daemon.process.signal(Signal::INT);
    assert_eq!(peer.daemon.process.ended().await, 0);
    cluster.tracker.daemon.process.signal(Signal::INT);
    assert_eq!(cluster.tracker.daemon.process.ended().await, 0);
}

#[tokio::test]
async fn a_serving_peer_finishes_its_chunks_before_it_ends() {
    let cluster = Cluster::start().await;
    let (mut one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let download = two.start_cli(["download", "A", "--timeout", "2s"]);
    // Half a chunk's bytes: what the peer has handed to its connections by now is under way, and none has come.
    gate.allow(SMALL_CHUNK as usize / 2);
    let handed_over = async || one.status().await.uploaded_bytes / u64::from(SMALL_CHUNK);
    let under_way = until("uploads under way", async || Some(handed_over().await).filter(|chunks| *chunks > 0)).await;
    one.daemon.process.signal(Signal::TERM);
    until("its leave", async || (!cluster.holders("A").await.contains_key(&one.id())).then_some(())).await;
    gate.open();
    assert_eq!(one.daemon.process.ended().await, 0, "{}", one.daemon.process.stderr());
    let run = download.ended().await.expect(7);
    let stored = run.steps().iter().filter(|step| step.step == "stored").count() as u64;
    assert!(stored >= under_way, "{stored} chunks came of {under_way} that were under way");
    assert!(stored < 32, "what was not under way did not come from a peer that ends");
}

#[tokio::test]
async fn a_downloading_peer_ends_at_once_and_resumes() {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let mut two = cluster.peer("two").await;
    let mut download = two.start_cli(["download", "A"]);
    gate.allow(10 * SMALL_CHUNK as usize);
    download.until_stored(2).await;
    assert_eq!(two.daemon.terminate().await, 0, "{}", two.daemon.process.stderr());
    let run = download.ended().await;
    assert!(run.code != 0 && run.code != 101, "the caller is told: {} {:?}", run.code, run.events.last());
    assert_eq!(files_below(&two.dir), [""; 0]);
    gate.open();
    two.daemon.restart().await;
    let run = two.download("A").await;
    assert!(run.resumed() >= 2 * u64::from(SMALL_CHUNK), "{}", run.resumed());
    a.assert_at(&two.path("A"));
}

#[tokio::test]
async fn a_tracker_with_watchers_ends() {
    let mut cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let mut download = two.start_cli(["download", "A"]);
    // More than what is asked for at once: of fewer bytes every chunk may get a part, and none all of it.
    gate.allow(12 * SMALL_CHUNK as usize);
    download.until_stored(1).await;
    assert_eq!(cluster.tracker.daemon.terminate().await, 0, "{}", cluster.tracker.daemon.process.stderr());
    gate.open();
    download.ended().await.expect(0);
    a.assert_at(&two.path("A"));
}

#[tokio::test]
async fn a_daemon_that_was_shut_down_leaves_no_task_behind() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 8)).await;
    // Half of it is held by nobody, so a transfer of it still runs when the end comes.
    let count = ChunkCount::new(8).unwrap();
    let b = Content::small_chunks("B", 2, 8);
    let half = ChunkSet::from_ranges(count, &"0-3".parse().unwrap()).unwrap();
    let _half = FakePeer::holding(&cluster.tracker.url(), &b, half, Manner::Honest).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let config = peer_config(cluster.tracker.address(), cluster.folder().join("inside"), 1);
    let peer = peer_svc::bind(config).await.unwrap();
    let control = peer.control().to_string();
    let logs = cluster.folder().join("logs");
    Running::start(&control, &["download".into(), "A".into()], &logs).ended().await.expect(0);
    let mut waiting = Running::start(&control, &["download".into(), "B".into()], &logs);
    waiting.until_stored(4).await;
    assert!(tasks() > before, "the daemon runs in here");
    assert_eq!(peer.shutdown().await, Drained::Fully);
    // The connections of clients that are gone end a moment after them.
    until("no task is left", async || (tasks() <= before).then_some(())).await;
    waiting.ended().await.expect(5);
}
