//! A crash loses time, not data: kill -9 of the downloader, of a source, of the tracker.

use drizzle_tests::{
    Cluster, Content, FakePeer, Peer,
    content::{SMALL_CHUNK, alter_secretly, files_below, random},
    until,
};

const CHUNKS: usize = 40;

/// Kills the downloader once `stored` chunks are recorded, and checks that the next attempt fetches the
/// others, each once, and none of those.
async fn killed_downloader_resumes(stored: usize) {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let mut downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    gate.add_permits(stored);
    download.until_stored(stored).await;
    if stored > 0 {
        downloader.until_recorded(stored as u64 * u64::from(SMALL_CHUNK)).await;
    } else {
        until("a first request", async || (!source.requests().is_empty()).then_some(())).await;
    }
    downloader.daemon.kill();
    download.ended().await.expect(5);
    assert_eq!(files_below(&downloader.dir), [""; 0], "nothing unverified is visible");

    // Requests that were waiting at the gate died with their connection; they take no permit.
    source.forget_requests();
    downloader.daemon.restart().await;
    let mut run = downloader.start_cli(["download", "A"]);
    run.until("what an attached caller hears first", |events| !events.is_empty()).await;
    gate.add_permits(10 * CHUNKS);
    let run = run.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
    assert_eq!(run.resumed(), (stored * SMALL_CHUNK as usize) as u64);
    assert_eq!(run.fetched(), ((CHUNKS - stored) * SMALL_CHUNK as usize) as u64);
    let mut requests = source.requests();
    requests.sort_unstable();
    requests.dedup();
    assert_eq!(requests.len(), CHUNKS - stored, "distinct chunks asked for after the crash");
}

#[tokio::test]
async fn a_downloader_killed_before_its_first_chunk_starts_over() {
    killed_downloader_resumes(0).await;
}

#[tokio::test]
async fn a_downloader_killed_after_its_first_chunk_resumes() {
    killed_downloader_resumes(1).await;
}

#[tokio::test]
async fn a_downloader_killed_in_the_middle_resumes() {
    killed_downloader_resumes(CHUNKS / 2).await;
}

#[tokio::test]
async fn a_downloader_killed_before_its_last_chunk_resumes() {
    killed_downloader_resumes(CHUNKS - 1).await;
}

#[tokio::test]
async fn a_downloader_killed_again_and_again_gets_there() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (_source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let mut downloader = cluster.peer("downloader").await;
    for round in 1..=6 {
        let mut download = downloader.start_cli(["download", "A"]);
        download.until("what an attached caller hears first", |events| !events.is_empty()).await;
        gate.add_permits(6);
        // Killed at whatever it does after the first new chunk: no condition holds it still.
        download.until_stored(1).await;
        downloader.daemon.kill();
        download.ended().await;
        downloader.daemon.restart().await;
        assert_eq!(files_below(&downloader.dir), [""; 0], "round {round}");
    }
    gate.add_permits(10 * CHUNKS);
    downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
}

/// Ends the daemon in one way while two downloads run and a third was cancelled. The two go on by themselves: no caller
/// and, at first, no tracker.
async fn goes_on_by_itself(end: impl AsyncFnOnce(&mut Peer)) {
    let mut cluster = Cluster::start().await;
    let contents = ["A", "B", "C"].map(|name| Content::small_chunks(name, u64::from(name.as_bytes()[0]), CHUNKS));
    let mut sources = Vec::new();
    for content in &contents {
        sources.push(FakePeer::gated(&cluster.tracker.url(), content).await);
    }
    let mut downloader = cluster.peer("downloader").await;
    let output = cluster.folder().join("elsewhere");
    let mut runs = [
        downloader.start_cli(["download", "A", "-o", output.to_str().unwrap(), "--timeout", "10m"]),
        downloader.start_cli(["download", "B", "--chunks", "0-9,20"]),
        downloader.start_cli(["download", "C"]),
    ];
    for (run, (_, gate)) in runs.iter_mut().zip(&sources) {
        gate.add_permits(4);
        run.until_stored(4).await;
    }
    downloader.cli(["cancel", "C"]).await.expect(0);
    until("A and B recorded", async || {
        let transfers = downloader.status().await.transfers;
        let recorded = |bytes: u64| bytes >= 4 * u64::from(SMALL_CHUNK);
        let all = transfers.iter().all(|t| t.progress.as_ref().is_some_and(|p| recorded(p.bytes_recorded)));
        (transfers.len() == 2 && all).then_some(())
    })
    .await;
    end(&mut downloader).await;
    cluster.tracker.daemon.kill();
    downloader.daemon.restart().await;
    let running = |status: drizzle_proto::wire::StatusResponse| {
        status.transfers.into_iter().map(|transfer| transfer.file.expect("a file").name).collect::<Vec<_>>()
    };
    assert_eq!(running(downloader.status().await), ["A", "B"], "what ran goes on, what was cancelled does not");
    let mut attached = downloader.start_cli(["download", "A", "-o", output.to_str().unwrap()]);
    attached.until("what an attached caller hears first", |events| !events.is_empty()).await;
    cluster.tracker.daemon.restart().await;
    for (_, gate) in &sources {
        gate.add_permits(10 * CHUNKS);
    }
    assert_eq!(attached.ended().await.expect(0).resumed(), 4 * u64::from(SMALL_CHUNK));
    contents[0].assert_at(&output);
    until("the end of B", async || downloader.status().await.transfers.is_empty().then_some(())).await;
    let b = downloader.cli(["download", "B", "--chunks", "0-9,20"]).await.expect(0);
    assert_eq!(b.fetched(), 0, "its chunks are here");
    // What has ended does not begin again.
    downloader.daemon.restart().await;
    assert_eq!(running(downloader.status().await), [""; 0]);
}

#[tokio::test]
async fn downloads_of_a_killed_daemon_go_on_by_themselves() {
    goes_on_by_itself(async |downloader| downloader.daemon.kill()).await;
}

#[tokio::test]
async fn downloads_of_a_stopped_daemon_go_on_by_themselves() {
    goes_on_by_itself(async |downloader| assert_eq!(downloader.daemon.terminate().await, 0)).await;
}

#[tokio::test]
async fn a_downloader_killed_just_after_the_end_has_the_file() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    one.share(&a).await;
    let mut two = cluster.peer("two").await;
    two.download("A").await;
    two.daemon.kill();
    a.assert_at(&two.path("A"));
    two.restart().await;
    cluster.until_held("A", 2).await;
    assert_eq!(two.download("A").await.fetched(), 0);
}

#[tokio::test]
async fn stored_chunks_that_were_altered_during_the_crash_are_not_believed() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (_source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let mut downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    gate.add_permits(CHUNKS / 2);
    download.until_stored(CHUNKS / 2).await;
    downloader.until_recorded(CHUNKS as u64 / 2 * u64::from(SMALL_CHUNK)).await;
    downloader.daemon.kill();
    download.ended().await.expect(5);
    // The partial file is as large as the whole one; its every stored chunk gets a wrong byte.
    let partial = largest_file(&downloader.dir.join(".drizzle"));
    for chunk in 0..CHUNKS as u64 {
        alter_secretly(&partial, chunk * u64::from(SMALL_CHUNK) + 7);
    }
    gate.add_permits(10 * CHUNKS);
    downloader.daemon.restart().await;
    downloader.download("A").await;
    a.assert_at(&downloader.path("A"));
}

fn largest_file(folder: &std::path::Path) -> std::path::PathBuf {
    let files = files_below(folder).into_iter().map(|name| folder.join(name));
    files.max_by_key(|path| path.metadata().map_or(0, |metadata| metadata.len())).expect("a partial file")
}

#[tokio::test]
async fn a_killed_source_is_replaced_by_the_one_that_is_left() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (mut one, gate_one) = cluster.gated_peer("one").await;
    let (two, gate_two) = cluster.gated_peer("two").await;
    one.share(&a).await;
    two.share(&a).await;
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    gate_one.allow(8 * SMALL_CHUNK as usize);
    download.until_stored(1).await;
    one.daemon.kill();
    gate_one.cut();
    gate_two.open();
    let run = download.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
    let sources = run.sources();
    assert!(sources[&gate_one.address().to_string()].chunks >= 1, "{sources:?}");
    assert!(sources[&gate_two.address().to_string()].chunks >= 1, "{sources:?}");
    assert!(run.blamed().iter().any(|(peer, ..)| *peer == gate_one.address().to_string()), "{:?}", run.blamed());
}

#[tokio::test]
async fn a_tracker_restart_in_mid_download_goes_unnoticed() {
    let mut cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (one, gate) = cluster.gated_peer("one").await;
    one.share(&a).await;
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    gate.allow(10 * SMALL_CHUNK as usize);
    download.until_stored(1).await;
    cluster.tracker.daemon.kill();
    cluster.tracker.daemon.restart().await;
    gate.open();
    download.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
    // Both peers come back by themselves.
    cluster.until_held("A", 2).await;
}

#[tokio::test]
async fn a_download_goes_on_without_the_tracker() {
    let mut cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS);
    let (one, gate) = cluster.gated_peer("one").await;
    one.share(&a).await;
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A"]);
    gate.allow(10 * SMALL_CHUNK as usize);
    download.until_stored(1).await;
    cluster.tracker.daemon.kill();
    gate.open();
    download.ended().await.expect(0);
    a.assert_at(&downloader.path("A"));
}

#[tokio::test]
async fn a_killed_tracker_still_refuses_other_content() {
    let mut cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 4);
    one.share(&a).await;
    drop(one);
    cluster.tracker.daemon.kill();
    cluster.tracker.daemon.restart().await;

    let two = cluster.peer("two").await;
    std::fs::write(two.path("A"), random(2, 50_000)).unwrap();
    let run = two.cli(["share".as_ref(), two.path("A").as_os_str()]).await.expect(1);
    let said = run.events.iter().map(ToString::to_string).collect::<String>() + &run.stderr;
    assert!(said.contains(&a.info().id.to_string()), "the registered id is named: {said}");

    // The same content is welcome from anybody.
    let three = cluster.peer("three").await;
    three.share(&a).await;
    cluster.until_held("A", 1).await;
}

#[tokio::test]
async fn a_peer_whose_lease_ran_out_is_forgotten() {
    let cluster = Cluster::with_tracker_args(["--lease", "1s"]).await;
    let mut one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 4)).await;
    assert_eq!(cluster.listed().await, [("A".into(), 1, 0)]);
    one.daemon.kill();
    until("no holder", async || (cluster.listed().await == [("A".into(), 0, 0)]).then_some(())).await;
    one.daemon.restart().await;
    cluster.until_held("A", 1).await;
}

/// The owner's machine is gone for good, and nobody else has the file.
#[tokio::test]
async fn a_name_without_owner_and_holder_is_free_after_a_while() {
    let cluster = Cluster::with_tracker_args(["--lease", "1s", "--release-after", "2s"]).await;
    let mut one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 4)).await;
    one.daemon.kill();
    let two = cluster.peer("two").await;
    until("the name's release", async || cluster.listed().await.is_empty().then_some(())).await;
    two.share(&Content::small_chunks("A", 2, 4)).await;
    cluster.until_held("A", 1).await;
}

#[tokio::test]
async fn a_peer_starts_before_its_tracker() {
    let mut cluster = Cluster::start().await;
    cluster.tracker.daemon.kill();
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 4);
    one.share(&a).await;
    assert!(!one.status().await.tracker_connected);
    cluster.tracker.daemon.restart().await;
    cluster.until_held("A", 1).await;
}
