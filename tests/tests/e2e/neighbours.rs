//! Neighbours tell each other which chunks they have, whether the tracker is there or not.

use std::collections::BTreeMap;

use drizzle_proto::{ChunkSet, client::PeerClient, holder::ChunkNews, net::transport::Transport};
use drizzle_tests::{Cluster, Content, FakePeer, Peer, cli::Given, cluster::Options};
use tokio_stream::{Stream, StreamExt};

const CHUNKS: usize = 8;

/// Listens to a peer that downloads or holds a file.
async fn listen(
    peer: &Peer,
    content: &Content,
) -> impl Stream<Item = Result<ChunkNews, drizzle_proto::client::ClientError>> + Unpin + use<> {
    let mut client = PeerClient::new(&Transport::plaintext(), &peer.address().into(), peer.id()).unwrap();
    client.watch_chunks(content.manifest.id(), peer.id()).await.unwrap()
}

#[tokio::test]
async fn a_downloader_tells_what_it_has_and_gets_also_while_the_tracker_is_away() {
    let mut cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (_source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let one = cluster.peer("one").await;
    let mut download = one.start_cli(["download", "A"]);
    gate.add_permits(2);
    download.until_stored(2).await;
    let mut news = listen(&one, &a).await;
    let Some(Ok(ChunkNews::All(mut held))) = news.next().await else { panic!("all comes first") };
    assert_eq!(held.len(), 2);
    cluster.tracker.daemon.kill();
    for stored in 3..=CHUNKS {
        gate.add_permits(1);
        let Some(Ok(ChunkNews::More(more))) = news.next().await else { panic!("then what comes") };
        assert!(!more.intersects(&held));
        held.union_with(&more);
        assert_eq!(held.len() as usize, stored);
    }
    assert!(news.next().await.is_none(), "there is nothing more to tell");
    download.ended().await.expect(0);
    // Who asks later hears it at once.
    let mut news = listen(&one, &a).await;
    assert!(matches!(news.next().await, Some(Ok(ChunkNews::All(all))) if all == ChunkSet::full(held.count())));
    assert!(news.next().await.is_none());
}

/// The source is asked by one, and is away for the other, which learns of each chunk from the one.
#[tokio::test]
async fn chunks_spread_from_neighbour_to_neighbour_though_the_tracker_died_before_they_were_there() {
    let mut cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let one = cluster.peer("one").await;
    let mut first = one.start_cli(["download", "A"]);
    gate.add_permits(1);
    first.until_stored(1).await;
    let two = cluster.peer("two").await;
    let mut second = two.start_cli(["download", "A"]);
    // Of the only one that has a chunk: the source waits at its gate.
    second.until_stored(1).await;
    cluster.tracker.daemon.kill();
    gate.add_permits(2 * CHUNKS);
    let (first, second) = (first.ended().await.expect(0), second.ended().await.expect(0));
    a.assert_at(&one.path("A"));
    a.assert_at(&two.path("A"));
    let (first, second) = (first.sources(), second.sources());
    let from_source =
        |run: &BTreeMap<String, Given>| run.get(&source.address.to_string()).map_or(0, |given| given.chunks);
    let all = from_source(&first) + from_source(&second);
    assert!(all < 2 * CHUNKS as u64, "something came from the other one: {first:?}, {second:?}");
}

/// Two in one zone, and the only source in another: each brings a part from afar, and gets the rest from the other.
#[tokio::test]
async fn what_comes_from_another_zone_is_shared_out_among_the_near_peers_and_told() {
    const MANY: usize = 64;
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, MANY);
    let source = cluster.peer_with("source", Options::default().args(["--label", "zone=a"])).await;
    source.share(&a).await;
    cluster.until_held("A", 1).await;
    let one = cluster.peer_with("one", Options::default().args(["--label", "zone=b"])).await;
    let two = cluster.peer_with("two", Options::default().args(["--label", "zone=b,rack=2"])).await;
    let (first, second) = (one.start_cli(["download", "A"]), two.start_cli(["download", "A"]));
    let mut far = 0;
    for run in [first, second] {
        let run = run.ended().await.expect(0);
        for given in run.last("done")["sources"].as_array().unwrap() {
            let is_far = given["peer"] == source.address().to_string();
            assert_eq!(given["far"] == true, is_far, "{given}");
            far += if is_far { given["chunks"].as_u64().unwrap() } else { 0 };
        }
    }
    assert!(far >= MANY as u64, "each chunk came over at least once");
    assert!(far < 2 * MANY as u64, "{far} chunks came from afar: what was near was fetched there");
    a.assert_at(&one.path("A"));
    a.assert_at(&two.path("A"));
}
