//! Several callers of one download: it belongs to the daemon, waits as long as the most patient of them, and ends when
//! the last of them leaves.

use drizzle_tests::{
    Cluster, Content, FakePeer, Gate, Manner, Peer, Running,
    content::{SMALL_CHUNK, files_below},
    until,
};
use rustix::process::Signal;

/// A closed source, and a peer that downloads from it; in the middle of that when this returns.
async fn in_the_middle() -> (Cluster, Content, (Peer, Gate), Peer, Running) {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let mut first = two.start_cli(["download", "A"]);
    gate.allow(8 * SMALL_CHUNK as usize);
    first.until_stored(2).await;
    (cluster, a, (one, gate), two, first)
}

async fn joined<const N: usize>(peer: &Peer, args: [&str; N]) -> Running {
    let mut run = peer.start_cli(args);
    run.until("what an attached caller hears first", |events| !events.is_empty()).await;
    run
}

#[tokio::test]
async fn ctrl_c_of_one_caller_leaves_the_download_to_the_others() {
    let (_cluster, a, (_one, gate), two, mut first) = in_the_middle().await;
    let mut second = joined(&two, ["download", "A"]).await;
    second.signal(Signal::INT);
    let left = second.ended().await.expect(130);
    assert!(left.reason().contains("goes on for its other callers"), "{}", left.reason());
    let third = joined(&two, ["download", "A"]).await;
    first.signal(Signal::INT);
    first.ended().await.expect(130);
    gate.open();
    third.ended().await.expect(0);
    a.assert_at(&two.path("A"));
}

#[tokio::test]
async fn ctrl_c_of_every_caller_ends_the_download() {
    let (_cluster, _, _one, two, mut first) = in_the_middle().await;
    let mut second = joined(&two, ["download", "A"]).await;
    first.signal(Signal::INT);
    second.signal(Signal::INT);
    first.ended().await.expect(130);
    second.ended().await.expect(130);
    until("no download", async || two.status().await.transfers.is_empty().then_some(())).await;
    assert_eq!(files_below(&two.dir), [""; 0]);
}

#[tokio::test]
async fn a_killed_caller_leaves_the_last_word_to_those_that_are_left() {
    let (_cluster, _, _one, two, mut first) = in_the_middle().await;
    first.kill();
    // The daemon hears of it a moment later; until then the first still counts.
    until("the end of the download", async || {
        let mut last = joined(&two, ["download", "A"]).await;
        last.signal(Signal::INT);
        last.ended().await.expect(130);
        two.status().await.transfers.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn cancel_ends_a_download_for_all_its_callers() {
    let (_cluster, _, _one, two, first) = in_the_middle().await;
    let second = joined(&two, ["download", "A"]).await;
    two.cli(["cancel", "A"]).await.expect(0);
    first.ended().await.expect(1);
    second.ended().await.expect(1);
}

#[tokio::test]
async fn the_default_place_written_out_is_no_other_download() {
    let (_cluster, a, (_one, gate), two, first) = in_the_middle().await;
    let path = two.path("A");
    let second = joined(&two, ["download", "A", "-o", path.to_str().unwrap()]).await;
    let elsewhere = two.dir.join("B");
    let conflict = two.cli(["download", "A", "-o", elsewhere.to_str().unwrap()]).await.expect(1);
    assert!(conflict.reason().contains("into the daemon's folder"), "{}", conflict.reason());
    gate.open();
    first.ended().await.expect(0);
    second.ended().await.expect(0);
    a.assert_at(&path);
}

#[tokio::test]
async fn a_caller_attaches_without_the_tracker() {
    let (mut cluster, a, (_one, gate), two, first) = in_the_middle().await;
    cluster.tracker.daemon.kill();
    let second = joined(&two, ["download", "A"]).await;
    gate.open();
    first.ended().await.expect(0);
    second.ended().await.expect(0);
    a.assert_at(&two.path("A"));
}

#[tokio::test]
async fn the_longest_patience_of_the_callers_counts() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 2);
    let none = drizzle_proto::ChunkSet::empty(a.manifest.layout().chunk_count());
    let _holder = FakePeer::holding(&cluster.tracker.url(), &a, none, Manner::Honest).await;
    let two = cluster.peer("two").await;
    let first = joined(&two, ["download", "A", "--timeout", "5s"]).await;
    let second = joined(&two, ["download", "A", "--timeout", "10m"]).await;
    until("more than the first one's patience", async || {
        let status = two.status().await;
        let transfer = status.transfers.first().expect("it still runs");
        (transfer.elapsed_millis > 6_000).then_some(())
    })
    .await;
    let _source = FakePeer::start(&cluster.tracker.url(), &a, Manner::Honest).await;
    first.ended().await.expect(0);
    second.ended().await.expect(0);
}
