//! Watchers that are introduced to neighbours.

use std::collections::BTreeSet;

use crate::common::*;
use drizzle_proto::{PeerId, client::Wish, wire};
use tokio_stream::StreamExt;
use tonic::Code;

const WANTED: u32 = 4;

fn wish(lease: u64) -> Option<Wish> {
    Some(Wish { lease, neighbours: WANTED, known: Vec::new() })
}

#[tokio::test]
async fn of_a_large_swarm_a_watcher_is_told_of_a_few_and_of_none_of_their_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let content = manifest(1, 3);
    let mut peers = Vec::new();
    for n in 1..=20 {
        let mut peer = Peer::new(&tracker, n).await;
        peer.announce(some("a", &content, &[0])).await;
        peers.push(peer);
    }
    let mut watcher = Peer::new(&tracker, 21).await;
    let mut watch = watcher.tracker.watch_file(&name("a"), wish(watcher.lease)).await.unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert!(first.reset && first.synced && first.introduces, "{first:?}");
    let mut belief = Belief::default();
    belief.apply(first);
    assert_eq!(belief.holders.len(), WANTED as usize);
    assert!(belief.holders.values().all(|holder| holder.chunks == set(&content, &[0])));
    // Chunk by chunk is for those to tell that watch; of one that only holds it is told that it holds other chunks.
    let neighbours: BTreeSet<PeerId> = belief.holders.keys().copied().collect();
    let stranger = peers.iter_mut().find(|peer| !neighbours.contains(&peer.id)).unwrap();
    stranger.announce(some("a", &content, &[1])).await;
    let gone = peers.iter_mut().find(|peer| neighbours.contains(&peer.id)).unwrap();
    gone.tracker.leave(gone.lease).await.unwrap();
    let gone = gone.id;
    belief.until(&mut watch, |belief| !belief.holders.contains_key(&gone)).await;
    assert!(belief.holders.keys().all(|peer| neighbours.contains(peer)), "of a stranger nothing is told");
    assert!(4 * belief.holders.len() >= 3 * WANTED as usize);
    tracker.shutdown().await;
}

#[tokio::test]
async fn two_that_download_are_told_of_each_other_before_either_has_a_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let content = manifest(1, 3);
    let mut source = Peer::new(&tracker, 1).await;
    source.share("a", &content).await;
    let (mut one, mut two) = (Peer::new(&tracker, 2).await, Peer::new(&tracker, 3).await);
    let mut first = one.tracker.watch_file(&name("a"), wish(one.lease)).await.unwrap();
    let mut belief = Belief::default();
    belief.until(&mut first, |belief| belief.synced).await;
    assert_eq!(belief.holders.keys().copied().collect::<Vec<_>>(), [source.id]);
    let second = two.tracker.watch_file(&name("a"), wish(two.lease)).await.unwrap();
    belief.until(&mut first, |belief| belief.holders.contains_key(&two.id)).await;
    assert!(belief.holders[&two.id].chunks.is_empty());
    // It never had anything, and watches no longer.
    drop(second);
    belief.until(&mut first, |belief| !belief.holders.contains_key(&two.id)).await;
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_watcher_whose_lease_is_not_known_is_told_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let content = manifest(1, 3);
    for n in 1..=10 {
        Peer::new(&tracker, n).await.share("a", &content).await;
    }
    let mut watcher = Peer::new(&tracker, 11).await;
    let mut watch = watcher.tracker.watch_file(&name("a"), wish(watcher.lease + 1)).await.unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert!(!first.introduces && first.changes.len() == 10, "{first:?}");
    let too_many = vec![peer_id(1).to_string(); 257];
    let request = |known| wire::WatchFileRequest { name: "a".into(), lease_id: watcher.lease, neighbours: 4, known };
    let refused = raw(&tracker).watch_file(request(too_many)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let refused = raw(&tracker).watch_file(request(vec!["none".into()])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    tracker.shutdown().await;
}
