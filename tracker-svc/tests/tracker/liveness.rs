//! Who is alive: leases, watches, shutdown.

use std::time::Duration;

use crate::common::*;
use drizzle_proto::{PeerInfo, announcement::FileOutcome};
use tokio_stream::StreamExt;
use tonic::Code;
use tracker_svc::bind;

#[tokio::test]
async fn a_peer_that_stops_renewing_is_gone_and_one_that_renews_stays() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = bind(config(dir.path(), Duration::from_secs(2))).await.unwrap();
    let mut stays = Peer::new(&tracker, 1).await;
    let renewing = stays.keep_alive();
    let mut goes = Peer::new(&tracker, 2).await;
    stays.share("a", &manifest(1, 2)).await;
    let mut watch = stays.tracker.watch_file(&name("a"), None).await.unwrap();
    let mut belief = Belief::default();
    goes.share("a", &manifest(1, 2)).await;
    belief.until(&mut watch, |belief| belief.holders.len() == 2).await;
    belief.until(&mut watch, |belief| belief.holders.len() == 1).await;
    assert!(belief.holders.contains_key(&stays.id));
    assert_eq!(stays.holder_ids("a").await, [1]);
    let error = goes.tracker.renew_lease(goes.lease, Default::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let error = goes.tracker.register_chunk(goes.lease, &[all("a", &manifest(1, 2))]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(!renewing.is_finished());
    renewing.abort();
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_leaves_is_gone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    peer.share("a", &manifest(1, 2)).await;
    peer.tracker.leave(peer.lease).await.unwrap();
    assert_eq!(peer.holder_ids("a").await, [0u8; 0]);
    peer.tracker.leave(peer.lease).await.expect("leaving twice is fine");
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_registers_again_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    peer.share("a", &manifest(1, 2)).await;
    let again =
        peer.tracker.register_peer(&PeerInfo::new(peer.id, address(9), "zone=b".parse().unwrap())).await.unwrap();
    assert_ne!(again.id, peer.lease);
    assert_eq!(peer.holder_ids("a").await, [0u8; 0]);
    assert_eq!(
        peer.tracker.renew_lease(peer.lease, Default::default()).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    peer.lease = again.id;
    peer.share("a", &manifest(1, 2)).await;
    let holder = &peer.holders("a").await[0];
    assert_eq!((holder.peer.address(), holder.peer.labels().get("zone")), (&address(9), Some("b")));
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_watch_tells_a_snapshot_and_then_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut one = Peer::new(&tracker, 1).await;
    let mut two = Peer::new(&tracker, 2).await;
    let content = manifest(1, 10);
    assert_eq!(one.tracker.watch_file(&name("a"), None).await.err().map(|error| error.code()), Some(Code::NotFound));
    one.share("a", &content).await;
    one.tracker.register_peer(&info(1)).await.unwrap();

    let mut watch = two.tracker.watch_file(&name("a"), None).await.unwrap();
    let mut belief = Belief::default();
    belief.until(&mut watch, |belief| belief.synced).await;
    assert_eq!((belief.holders.len(), belief.messages), (0, 1), "a file without holders: an empty snapshot at once");

    for chunks in [&[0][..], &[1, 2], &[5]] {
        assert_eq!(two.announce(some("a", &content, chunks)).await, FileOutcome::Registered);
    }
    belief.until(&mut watch, |belief| belief.holders.values().any(|holder| holder.chunks.len() == 4)).await;
    assert_eq!(belief.holders.values().cloned().collect::<Vec<_>>(), two.holders("a").await);

    let mut three = Peer::new(&tracker, 3).await;
    three.share("a", &content).await;
    belief.until(&mut watch, |belief| belief.holders.len() == 2).await;
    assert!(belief.holders[&three.id].chunks.is_full());
    three.tracker.leave(three.lease).await.unwrap();
    belief.until(&mut watch, |belief| belief.holders.len() == 1).await;

    let mut late = two.tracker.watch_file(&name("a"), None).await.unwrap();
    let mut late_belief = Belief::default();
    late_belief.until(&mut late, |belief| belief.synced).await;
    assert_eq!(late_belief.holders, belief.holders);
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_watch_ends_when_its_name_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    peer.share("a", &manifest(1, 2)).await;
    let mut watch = peer.tracker.watch_file(&name("a"), None).await.unwrap();
    Belief::default().until(&mut watch, |belief| belief.synced).await;
    assert!(peer.tracker.withdraw_file(peer.lease, &name("a")).await.unwrap());
    let end = tokio::time::timeout(LIMIT, watch.next()).await.unwrap();
    assert_eq!(end.unwrap().unwrap_err().code(), Code::NotFound);
    tracker.shutdown().await;
}

/// More changes than the log keeps, told to a watcher that does not read: what it learns in the end is right.
#[tokio::test]
async fn a_slow_watcher_learns_the_truth_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let content = manifest(1, 8000);
    peer.share("a", &content).await;
    let mut slow = Peer::new(&tracker, 2).await;
    let mut watch = slow.tracker.watch_file(&name("a"), None).await.unwrap();
    let mut other = Peer::new(&tracker, 3).await;
    for first in (0..8000u32).step_by(1000) {
        // One entry for each chunk: a thousand changes a call.
        let batch: Vec<_> = (first..first + 1000)
            .map(|chunk| {
                let mut entry = some("a", &content, &[chunk]);
                entry.hashes.clear();
                entry
            })
            .collect();
        other.tracker.register_chunk(other.lease, &batch).await.unwrap();
    }
    let mut belief = Belief::default();
    let both_full =
        |belief: &Belief| belief.holders.len() == 2 && belief.holders.values().all(|holder| holder.chunks.is_full());
    belief.until(&mut watch, both_full).await;
    tracker.shutdown().await;
}

/// Clients with open streams do not hold up a shutdown, they are told; and nothing is left of the tracker.
#[test]
fn a_shutdown_ends_watches_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tracker = server.block_on(start(dir.path()));
    client.block_on(async {
        let mut peer = Peer::new(&tracker, 1).await;
        peer.share("a", &manifest(1, 2)).await;
        let mut watches = Vec::new();
        for _ in 0..5 {
            let mut watch = peer.tracker.watch_file(&name("a"), None).await.unwrap();
            Belief::default().until(&mut watch, |belief| belief.synced).await;
            watches.push(watch);
        }
        let stopping = server.spawn(tracker.shutdown());
        for watch in &mut watches {
            let end = tokio::time::timeout(LIMIT, watch.next()).await.unwrap();
            assert_eq!(end.unwrap().unwrap_err().code(), Code::Unavailable);
        }
        stopping.await.unwrap();
    });
    wait_until_no_task_is_left(&server);
    // The catalogue's lock is free again as well.
    let again = server.block_on(start(dir.path()));
    server.block_on(again.shutdown());
}

/// A client that never hangs up: its connection is closed when the time to drain is over.
#[test]
fn a_client_that_does_not_answer_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = config(dir.path(), LONG);
    config.drain = Duration::from_millis(100);
    let tracker = server.block_on(bind(config)).unwrap();
    let _frozen = client.block_on(async {
        let mut peer = Peer::new(&tracker, 1).await;
        peer.share("a", &manifest(1, 2)).await;
        let watch = peer.tracker.watch_file(&name("a"), None).await.unwrap();
        (peer, watch)
    });
    // Nobody drives the client from here on: it answers nothing, and its connection stays open.
    server.block_on(async { tokio::time::timeout(LIMIT, tracker.shutdown()).await.unwrap() });
    wait_until_no_task_is_left(&server);
}
