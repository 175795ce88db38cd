//! A source loses its network in mid-download, and gets it back.

use bollard::models::{EndpointSettings, NetworkConnectRequest, NetworkDisconnectRequest};
use drizzle_tests::until;

use crate::{
    MIB,
    lab::{self, Lab, Recipe},
    share::Share,
};

#[tokio::test]
async fn a_download_survives_the_loss_of_a_source_that_later_comes_back_by_itself() {
    const SIZE: u64 = 64 * MIB;
    let lab = Lab::new("cut-off").await;
    let share = Share::with("foo", SIZE);
    lab.start(Recipe::tracker().args(&["--lease", "3s"])).await;
    let stays = lab.start(Recipe::seed("stays", share.path())).await;
    let cut = lab.start(Recipe::seed("cut", share.path())).await;
    let peer = lab.start(Recipe::peer("peer")).await;
    peer.until_held("foo", 2).await;
    let cut_id = cut.peer_id().await;

    peer.slow_down(40).await;
    let download = peer.download("foo");
    download.until_stored(SIZE / 8).await;
    let docker = lab::engine().await;
    let from = NetworkDisconnectRequest { container: cut.id().to_owned(), force: None };
    docker.disconnect_network(lab.network(), from).await.expect("it can be cut off");
    until("the tracker forgets who is cut off", async || (!stays.sees("foo", &cut_id).await).then_some(())).await;
    assert!(download.runs(), "the cut came in mid-download");
    peer.open_up().await;
    assert_eq!(download.ended().await.expect(0).fetched(), SIZE);
    assert_eq!(peer.digest("/data/foo").await, share.digest("foo"));

    let endpoint = EndpointSettings { aliases: Some(vec!["cut".into()]), ..Default::default() };
    let back = NetworkConnectRequest { container: cut.id().to_owned(), endpoint_config: Some(endpoint) };
    docker.connect_network(lab.network(), back).await.expect("it can be connected");
    until("who was cut off is back", async || stays.sees("foo", &cut_id).await.then_some(())).await;
    // Seen is not served: with all others gone, every byte has to come from there.
    assert_eq!(stays.stop(30).await, 0);
    assert_eq!(peer.stop(30).await, 0);
    let last = lab.start(Recipe::peer("last")).await;
    last.until_held("foo", 1).await;
    let run = last.download("foo").ended().await.expect(0);
    assert_eq!(run.sources().len(), 1);
    assert_eq!(run.fetched(), SIZE);
}
