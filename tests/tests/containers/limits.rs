//! Little memory, and little disk.

use crate::{
    MIB,
    lab::{Lab, Recipe},
    share::Share,
};

const SIZE: u64 = 1024 * MIB;

#[tokio::test]
async fn with_64_mib_of_memory_a_peer_downloads_a_gibibyte() {
    let lab = Lab::new("memory").await;
    let share = Share::with("foo", SIZE);
    lab.start(Recipe::tracker()).await;
    lab.start(Recipe::seed("seed", share.path())).await;
    let peer = lab.start(Recipe::peer("peer").memory(64 * MIB)).await;
    peer.until_held("foo", 1).await;

    let run = peer.download("foo").ended().await.expect(0);
    assert_eq!(run.fetched(), SIZE);
    assert_eq!(peer.digest("/data/foo").await, share.digest("foo"));
    let state = peer.inspect().await.state.expect("a container has a state");
    assert_eq!((state.oom_killed, state.running), (Some(false), Some(true)));
}

#[tokio::test]
async fn on_a_disk_of_50_mib_a_peer_fails_clearly_and_leaves_nothing_behind() {
    let lab = Lab::new("disk").await;
    let share = Share::with("foo", SIZE);
    lab.start(Recipe::tracker()).await;
    lab.start(Recipe::seed("seed", share.path())).await;
    let peer = lab.start(Recipe::peer("peer").disk(50 * MIB)).await;
    peer.until_held("foo", 1).await;

    let run = peer.download("foo").ended().await.expect(1);
    let reason = run.reason();
    // 1,024 MiB are wanted, 50 are there.
    assert!(reason.contains("disk is full: free 97") && reason.contains(" MiB in /data"), "{reason}");
    let files = peer.answer(&["find", "/data", "-type", "f", "-not", "-path", "/data/.drizzle/*"]).await;
    assert_eq!(files, "", "files in the download folder");
    let used = peer.answer(&["du", "-s", "--block-size=1", "/data"]).await;
    let used: u64 = used.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number of bytes");
    assert!(used < 4 * MIB, "{used} bytes are still taken");

    // The daemon is none the worse: what fits still arrives.
    let small = Share::with("small", 8 * MIB);
    lab.start(Recipe::seed("small", small.path())).await;
    peer.until_held("small", 1).await;
    peer.download("small").ended().await.expect(0);
    assert_eq!(peer.digest("/data/small").await, small.digest("small"));
}
