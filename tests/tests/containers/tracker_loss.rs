//! The tracker dies in mid-download, and comes back with its volume or without.

use drizzle_tests::until;

use crate::{
    MIB,
    lab::{Lab, Recipe},
    node::{Download, Node},
    share::Share,
};

const SIZE: u64 = 64 * MIB;

/// A download that is slow until it is opened up.
async fn begin(lab: &Lab, share: &Share) -> (Node, Download) {
    lab.start(Recipe::seed("seed", share.path())).await;
    let peer = lab.start(Recipe::peer("peer")).await;
    peer.until_held("foo", 1).await;
    peer.slow_down(40).await;
    let download = peer.download("foo");
    download.until_stored(SIZE / 8).await;
    (peer, download)
}

async fn finish(share: &Share, peer: &Node, download: Download) {
    assert!(download.runs(), "the tracker was lost in mid-download");
    peer.open_up().await;
    assert_eq!(download.ended().await.expect(0).fetched(), SIZE);
    assert_eq!(peer.digest("/data/foo").await, share.digest("foo"));
    // Both come back to the tracker by themselves.
    peer.until_held("foo", 2).await;
}

/// A peer with other content under a name that is taken is told so, and is no holder of it.
async fn assert_still_taken(lab: &Lab) {
    let other = Share::with("foo", MIB);
    let late = lab.start(Recipe::seed("late", other.path())).await;
    until("the other content is refused", async || {
        let status = late.status().await;
        (status["refused"] == serde_json::json!(["foo"])).then_some(())
    })
    .await;
    assert!(!late.sees("foo", &late.peer_id().await).await, "it is listed as a holder");
}

#[tokio::test]
async fn with_its_volume_the_tracker_keeps_names_and_first_hashes() {
    let lab = Lab::new("tracker-kept").await;
    let share = Share::with("foo", SIZE);
    let catalogue = format!("{}:/data", lab.volume("catalogue").await);
    let tracker = lab.start(Recipe::tracker().bind(&catalogue)).await;
    let (peer, download) = begin(&lab, &share).await;

    tracker.kill().await;
    tracker.remove().await;
    let tracker = lab.start(Recipe::tracker().bind(&catalogue)).await;
    finish(&share, &peer, download).await;
    assert_still_taken(&lab).await;

    // The container itself, restarted in place, keeps them as well.
    tracker.kill().await;
    tracker.start().await;
    peer.until_held("foo", 2).await;
    assert_eq!(tracker.stop(30).await, 0);
}

#[tokio::test]
async fn without_its_volume_the_tracker_is_told_everything_anew() {
    let lab = Lab::new("tracker-lost").await;
    let share = Share::with("foo", SIZE);
    let tracker = lab.start(Recipe::tracker()).await;
    let (peer, download) = begin(&lab, &share).await;

    tracker.kill().await;
    tracker.remove().await;
    lab.start(Recipe::tracker()).await;
    finish(&share, &peer, download).await;
    assert_still_taken(&lab).await;
}
