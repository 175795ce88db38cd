//! Ends that do not move: holders that take requests and never answer, and a receiver that hardly reads. Neither holds
//! up the rest.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use drizzle_tests::{
    Cluster, Content, FakePeer, Manner, Place,
    content::random,
    host::{Host, Shape},
    until,
};

const CHUNKS: u32 = 32;

/// How many holders never answer.
const SILENT: usize = 6;

/// Far more than it takes to notice that a holder is silent, and less than it takes with one such holder after the
/// other.
const SOON: Duration = Duration::from_secs(30);

async fn silent_holders(cluster: &Cluster, content: &Content) -> Vec<FakePeer> {
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(FakePeer::start(&cluster.tracker.url(), content, Manner::Silent).await);
    }
    silent
}

#[tokio::test]
async fn what_silent_holders_were_asked_for_is_asked_of_the_good_one_as_well() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS as usize);
    let (good, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let silent = silent_holders(&cluster, &a).await;
    let downloader = cluster.peer("downloader").await;
    let download = downloader.start_cli(["download", "A"]);
    // The good one would deliver everything before the others are asked at all.
    until("a request to every holder", async || {
        let asked = |peer: &FakePeer| !peer.requests().is_empty();
        (silent.iter().all(asked) && asked(&good)).then_some(())
    })
    .await;
    let opened = Instant::now();
    gate.add_permits(2 * CHUNKS as usize);
    let run = download.ended().await.expect(0);
    assert!(opened.elapsed() < SOON, "{:?}", opened.elapsed());
    a.assert_at(&downloader.path("A"));
    assert_eq!(good.requests().into_iter().collect::<BTreeSet<_>>(), (0..CHUNKS).collect());
    assert_eq!(run.sources()[&good.address.to_string()].chunks, u64::from(CHUNKS));
    for peer in &silent {
        assert!(peer.requests().len() < 5, "a silent holder is not asked on and on: {:?}", peer.requests());
    }
    assert!(run.blamed().iter().all(|(peer, ..)| *peer != good.address.to_string()), "{:?}", run.blamed());
}

#[tokio::test]
async fn a_good_holder_that_comes_after_six_silent_ones_ends_it_and_they_are_named() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, CHUNKS as usize);
    let silent = silent_holders(&cluster, &a).await;
    let addresses: BTreeSet<String> = silent.iter().map(|peer| peer.address.to_string()).collect();
    let downloader = cluster.peer("downloader").await;
    let mut download = downloader.start_cli(["download", "A", "--timeout", "1000s"]);
    download
        .until("a charge of each silent holder", |events| {
            let failed = events.iter().filter(|event| event["step"] == "failed");
            let charged: BTreeSet<&str> = failed.filter_map(|event| event["peer"].as_str()).collect();
            addresses.iter().all(|address| charged.contains(address.as_str()))
        })
        .await;
    let good = FakePeer::start(&cluster.tracker.url(), &a, Manner::Honest).await;
    let came = Instant::now();
    let run = download.ended().await.expect(0);
    assert!(came.elapsed() < SOON, "{:?}", came.elapsed());
    a.assert_at(&downloader.path("A"));
    assert_eq!(run.sources()[&good.address.to_string()].chunks, u64::from(CHUNKS));
    let blamed = run.blamed();
    assert!(blamed.iter().all(|(_, offence, _)| offence == "stalled"), "{blamed:?}");
    assert_eq!(blamed.into_iter().map(|(peer, ..)| peer).collect::<BTreeSet<_>>(), addresses);
}

#[tokio::test]
async fn a_receiver_that_hardly_reads_does_not_hold_up_another_one_of_the_same_source() {
    // More than the connection takes in before the receiver reads it: only then a slot is held.
    const CHUNK: usize = 8 << 20;
    const SLOTS: u64 = 2;
    let addresses = ["10.11.0.1/24", "10.11.0.2/24", "10.11.0.3/24"];
    let Some((switch, hosts)) = Host::network(&addresses, &["127.0.0.1 localhost"]) else { return };
    let [source, slow, fast] = &hosts[..] else { unreachable!("one host for each address") };
    // A chunk takes it a minute.
    if !switch.shape("port1", Shape::slow("1mbit")) {
        return;
    }
    let place = Place::new();
    let tracker = ["--tracker", "10.11.0.1:7400"];
    let _tracker = place.tracker(source, &[]).await;
    let slots = SLOTS.to_string();
    let _source = place.peer(source, "source", &[&tracker[..], &["--upload-slots", &slots]].concat()).await;
    let (path, bytes) = (place.path("source/a"), random(1, 8 * CHUNK));
    fs::write(&path, &bytes).unwrap();
    place.cli(source, &["share", &path, "--chunk-size", &CHUNK.to_string()]).await.expect(0);
    let (_slow, _fast) = (place.peer(slow, "slow", &tracker).await, place.peer(fast, "fast", &tracker).await);

    let mut slow_run = slow.cli(&["download", "a", "--timeout", "1000s"], &place.logs());
    slow_run.until("a start", |events| !events.is_empty()).await;
    until("the slow one has every slot", async || {
        let status = place.cli(source, &["status"]).await.expect(0);
        (status.events[0]["uploads_running"] == SLOTS).then_some(())
    })
    .await;
    let run = place.cli(fast, &["download", "a", "--timeout", "20s"]).await.expect(0);
    assert!(fs::read(place.path("fast/a")).unwrap() == bytes);
    assert_eq!(run.sources().into_keys().collect::<Vec<_>>(), ["10.11.0.1:7401"]);
    assert_eq!(run.blamed(), []);
    assert_eq!(slow_run.count("stored"), 0, "the slow one is still at its first chunks");
}
