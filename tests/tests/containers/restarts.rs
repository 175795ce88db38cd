//! Peers that are killed, stopped and restarted while bytes flow.

use crate::{
    MIB,
    lab::{Lab, Recipe},
    share::Share,
};

const SIZE: u64 = 128 * MIB;

/// What a killed download may fetch twice: what was stored but not yet synced, and what was in flight.
const REPEATED: u64 = 16 * MIB;

/// `docker stop` kills what has not ended after this; longer than the daemons' default drain.
const GRACE_SECONDS: i32 = 20;

#[tokio::test]
async fn a_killed_download_goes_on_where_it_was() {
    let lab = Lab::new("killed").await;
    let share = Share::with("foo", SIZE);
    lab.start(Recipe::tracker()).await;
    let sources =
        [lab.start(Recipe::seed("one", share.path())).await, lab.start(Recipe::seed("two", share.path())).await];
    let peer = lab.start(Recipe::peer("peer")).await;
    peer.until_held("foo", 2).await;

    peer.slow_down(80).await;
    let download = peer.download("foo");
    download.until_stored(SIZE / 2).await;
    let stored = download.stored();
    peer.kill().await;
    download.ended().await;
    peer.start().await;

    let run = peer.download("foo").ended().await.expect(0);
    assert_eq!(peer.digest("/data/foo").await, share.digest("foo"));
    let resumed = run.resumed();
    assert!(resumed + REPEATED > stored, "of {stored} stored bytes only {resumed} were kept");
    assert_eq!(run.fetched(), SIZE - resumed);
    let mut sent = 0;
    for source in &sources {
        sent += source.uploaded().await;
    }
    assert!(sent < SIZE + REPEATED, "{sent} bytes were sent for a file of {SIZE}");
}

#[tokio::test]
async fn a_stopped_source_drains_and_is_forgotten_at_once() {
    let lab = Lab::new("stopped").await;
    let share = Share::with("foo", SIZE);
    // With so long a lease, only a goodbye can explain that the tracker forgets.
    lab.start(Recipe::tracker().args(&["--lease", "600s"])).await;
    let stopped = lab.start(Recipe::seed("stopped", share.path())).await;
    let stays = lab.start(Recipe::seed("stays", share.path())).await;
    let peer = lab.start(Recipe::peer("peer")).await;
    peer.until_held("foo", 2).await;
    let stopped_id = stopped.peer_id().await;
    assert!(stays.sees("foo", &stopped_id).await);

    peer.slow_down(80).await;
    let download = peer.download("foo");
    download.until_stored(SIZE / 8).await;
    assert_eq!(stopped.stop(GRACE_SECONDS).await, 0, "exit code; 137 means it was killed");
    assert!(!stays.sees("foo", &stopped_id).await, "the tracker still lists it");
    assert!(download.runs(), "the stop came in mid-download");
    peer.open_up().await;
    download.ended().await.expect(0);
    assert_eq!(peer.digest("/data/foo").await, share.digest("foo"));
}

#[tokio::test]
async fn a_download_survives_the_restart_of_every_peer_in_turn() {
    let lab = Lab::new("rolling").await;
    let share = Share::with("foo", SIZE);
    lab.start(Recipe::tracker()).await;
    let mut sources = Vec::new();
    for alias in ["one", "two", "three"] {
        sources.push(lab.start(Recipe::seed(alias, share.path())).await);
    }
    let peer = lab.start(Recipe::peer("peer")).await;
    peer.until_held("foo", 3).await;

    peer.slow_down(16).await;
    let download = peer.download("foo");
    download.until_stored(MIB).await;
    for source in &sources {
        assert_eq!(source.stop(GRACE_SECONDS).await, 0);
        source.start().await;
        peer.until_held("foo", 3).await;
    }
    assert!(download.runs(), "all sources were restarted in mid-download");
    // A moment in which every byte comes from a source that was restarted.
    let stored = download.stored();
    download.until_stored(stored + 2 * MIB).await;

    // The downloading peer itself: its CLI is told, and asked again it goes on.
    assert_eq!(peer.stop(GRACE_SECONDS).await, 0);
    let told = download.ended().await;
    assert_ne!(told.code, 0);
    peer.start().await;
    let run = peer.download("foo").ended().await.expect(0);
    assert!(run.resumed() > 0, "nothing was kept over the restart");
    assert_eq!(peer.digest("/data/foo").await, share.digest("foo"));
}
