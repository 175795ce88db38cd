//! What people do with Drizzle, from sharing to a verified file elsewhere.

use std::{collections::BTreeSet, fs};

use drizzle_tests::{
    Cluster, Content,
    cluster::Options,
    content::{SMALL_CHUNK, alter_secretly, files_below, random},
};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn each_peer_gets_what_it_lacks() {
    let cluster = Cluster::start().await;
    let [a, b, c] = [("A", 1, 3 * MIB), ("B", 2, MIB + 17), ("C", 3, 5000)]
        .map(|(name, seed, size)| Content::new(name, random(seed, size), 256 << 10));
    let one = cluster.peer_with("one", Options::default().file("A", &a.bytes).file("B", &b.bytes)).await;
    cluster.until_held("A", 1).await;
    cluster.until_held("B", 1).await;
    assert_eq!(cluster.listed().await, [("A".into(), 1, 0), ("B".into(), 1, 0)]);

    let two = cluster.peer_with("two", Options::default().file("C", &c.bytes)).await;
    cluster.until_held("C", 1).await;
    assert_eq!(cluster.listed().await, [("A".into(), 1, 0), ("B".into(), 1, 0), ("C".into(), 1, 0)]);

    for (peer, content) in [(&one, &c), (&two, &a), (&two, &b)] {
        let run = peer.download(content.name.as_str()).await;
        assert_eq!(run.fetched(), content.bytes.len() as u64, "{}", content.name);
        content.assert_at(&peer.path(content.name.as_str()));
    }
    for name in ["A", "B", "C"] {
        cluster.until_held(name, 2).await;
    }
    assert_eq!(cluster.listed().await, [("A".into(), 2, 0), ("B".into(), 2, 0), ("C".into(), 2, 0)]);
    assert_eq!(files_below(&one.dir), ["A", "B", "C"]);
    assert_eq!(files_below(&two.dir), ["A", "B", "C"]);
}

#[tokio::test]
async fn a_share_that_was_rewritten_is_refused() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let a = Content::small_chunks("A", 1, 16);
    one.share(&a).await;
    fs::write(one.path("A"), random(2, a.bytes.len() + 1)).unwrap();

    let run = two.cli(["download", "A", "--timeout", "2s"]).await.expect(4);
    let blamed = run.blamed();
    assert!(!blamed.is_empty(), "somebody is named");
    for (peer, offence, chunks) in blamed {
        assert_eq!((peer, offence.as_str()), (one.address().to_string(), "changed file"));
        assert!(!chunks.is_empty(), "the chunks are named");
    }
    assert_eq!(run.lacking(), (0..16).collect::<Vec<_>>());
    assert_eq!(files_below(&two.dir), [""; 0]);
}

#[tokio::test]
async fn a_share_that_was_altered_in_secret_is_refused() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let a = Content::small_chunks("A", 1, 16);
    one.share(&a).await;
    alter_secretly(&one.path("A"), 5 * u64::from(SMALL_CHUNK) + 99);

    let run = two.cli(["download", "A", "--timeout", "2s"]).await.expect(4);
    assert_eq!(run.blamed(), [(one.address().to_string(), "wrong bytes".to_owned(), vec![5])]);
    // Its only holder is avoided from then on, so that chunks which were not asked for yet may be lacking too.
    assert!(run.lacking().contains(&5), "{:?}", run.lacking());
    assert_eq!(files_below(&two.dir), [""; 0]);
}

#[tokio::test]
async fn a_share_that_was_altered_everywhere_is_refused() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let a = Content::small_chunks("A", 1, 16);
    one.share(&a).await;
    for chunk in 0..16 {
        alter_secretly(&one.path("A"), chunk * u64::from(SMALL_CHUNK));
    }

    let run = two.cli(["download", "A", "--timeout", "2s"]).await.expect(4);
    assert_eq!(run.lacking(), (0..16).collect::<Vec<_>>());
    for (peer, offence, chunks) in run.blamed() {
        assert_eq!((peer, offence.as_str()), (one.address().to_string(), "wrong bytes"));
        assert!(!chunks.is_empty());
    }
    assert_eq!(two.status().await.downloaded_bytes, 0, "nothing of it counts as downloaded");
    assert_eq!(files_below(&two.dir), [""; 0]);
}

#[tokio::test]
async fn the_rarest_chunks_are_requested_first() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    // No more rare chunks than a downloader asks of one holder at once, or it would ask the other one
    // for the common ones meanwhile, rather than let it idle.
    let a = Content::small_chunks("A", 1, 8);
    one.share(&a).await;
    let half = two.cli(["download", "A", "--chunks", "0-3"]).await.expect(0);
    assert_eq!(half.fetched(), 4 * u64::from(SMALL_CHUNK));
    assert!(half.last("done")["path"].is_null(), "half a file is put nowhere");
    assert_eq!(files_below(&two.dir), [""; 0]);
    drizzle_tests::until("the half at the tracker", async || {
        cluster.holders("A").await.get(&two.id()).filter(|holder| holder.chunks.len() == 4).map(|_| ())
    })
    .await;
    assert_eq!(cluster.listed().await, [("A".into(), 1, 1)]);

    let three = cluster.peer("three").await;
    let run = three.download("A").await;
    let requested: Vec<u64> = run.steps().iter().filter(|s| s.step == "requested").map(|s| s.chunk).collect();
    let first: BTreeSet<u64> = requested[..4].iter().copied().collect();
    assert_eq!(first, BTreeSet::from([4, 5, 6, 7]), "in order: {requested:?}");
    let sources = run.sources();
    assert!(sources[&one.address().to_string()].chunks >= 4, "{sources:?}");
    assert!(sources[&two.address().to_string()].chunks >= 1, "{sources:?}");
    a.assert_at(&three.path("A"));
}

#[tokio::test]
async fn a_holder_is_asked_for_its_rarest_chunks_first() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let two = cluster.peer("two").await;
    let a = Content::small_chunks("A", 1, 64);
    one.share(&a).await;
    two.cli(["download", "A", "--chunks", "32-63"]).await.expect(0);
    drizzle_tests::until("the half at the tracker", async || {
        cluster.holders("A").await.get(&two.id()).filter(|holder| holder.chunks.len() == 32).map(|_| ())
    })
    .await;

    let three = cluster.peer("three").await;
    let run = three.download("A").await;
    let of_one: Vec<u64> = run
        .steps()
        .iter()
        .filter(|step| step.step == "requested" && step.peer == one.address().to_string())
        .map(|step| step.chunk)
        .collect();
    let common = of_one.iter().position(|&chunk| chunk >= 32).unwrap_or(of_one.len());
    // Some are asked for again: the holder was busy, or chose another one of them.
    let first: BTreeSet<u64> = of_one[..common].iter().copied().collect();
    assert_eq!(first, (0..32).collect(), "chunks asked of the only holder of 0-31: {of_one:?}");
    a.assert_at(&three.path("A"));
}

#[tokio::test]
async fn a_download_serves_others_before_it_is_complete() {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let mut first = two.start_cli(["download", "A"]);
    gate.allow(16 * SMALL_CHUNK as usize);
    first.until_stored(4).await;
    drizzle_tests::until("part of A offered by two", async || {
        cluster.holders("A").await.get(&two.id()).filter(|holder| holder.chunks.len() >= 4).map(|_| ())
    })
    .await;

    let three = cluster.peer("three").await;
    let mut second = three.start_cli(["download", "A"]);
    let from_two = two.address().to_string();
    second
        .until("a chunk from the unfinished peer", |events| {
            events.iter().any(|event| event["step"] == "stored" && event["peer"] == from_two.as_str())
        })
        .await;
    assert!(!two.path("A").exists(), "it is still downloading itself");
    gate.open();
    first.ended().await.expect(0);
    second.ended().await.expect(0);
    a.assert_at(&two.path("A"));
    a.assert_at(&three.path("A"));
}

#[tokio::test]
async fn other_content_under_a_taken_name_is_refused_for_that_file_alone() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    one.share(&Content::small_chunks("A", 1, 4)).await;
    let two = cluster.peer("two").await;
    let (mine, free) = (random(2, 50_000), random(3, 50_000));
    fs::write(two.path("A"), &mine).unwrap();
    fs::write(two.path("B"), &free).unwrap();

    let run = two.cli([two.path("A"), two.path("B")].iter().fold(vec!["share".into()], |mut args, path| {
        args.push(path.clone().into_os_string());
        args
    }));
    let run = run.await.expect(1);
    let said: Vec<String> = run.events.iter().map(ToString::to_string).collect();
    let of = |name: &str| said.iter().find(|line| line.contains(&format!("\"{name}\""))).unwrap();
    let id = Content::small_chunks("A", 1, 4).info().id.to_string();
    assert!(of("A").to_lowercase().contains("refused") && of("A").contains(&id), "both ids are named: {}", of("A"));
    assert!(of("B").to_lowercase().contains("registered"), "{}", of("B"));
    assert_eq!(fs::read(two.path("A")).unwrap(), mine, "the file itself is left alone");
    cluster.until_held("B", 1).await;
    assert_eq!(two.status().await.refused, ["A"]);
}

#[tokio::test]
async fn an_owners_withdrawal_ends_the_downloads_that_run() {
    let cluster = Cluster::start().await;
    let (owner, gate) = cluster.gated_peer("owner").await;
    let a = Content::small_chunks("A", 1, 32);
    owner.share(&a).await;
    let two = cluster.peer("two").await;
    let mut download = two.start_cli(["download", "A", "--timeout", "10m"]);
    gate.allow(6 * SMALL_CHUNK as usize);
    download.until_stored(1).await;
    owner.cli(["unshare", "A"]).await.expect(0);
    let run = download.ended().await.expect(1);
    assert!(run.reason().contains("withdrawn"), "{}", run.reason());
    assert!(!two.path("A").exists());
}
