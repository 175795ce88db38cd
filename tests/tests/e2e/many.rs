//! Many of everything: downloaders at one peer, files in a folder.

use std::{collections::BTreeSet, fs, time::Duration};

use drizzle_proto::wire::ListFilesRequest;
use drizzle_tests::{
    Cluster, Content, Running,
    cluster::Options,
    content::{files_below, random},
    until,
};

#[tokio::test]
async fn thirty_two_peers_download_from_one_at_once() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::new("A", random(1, 4 << 20), 64 << 10);
    one.share(&a).await;
    let mut peers = Vec::new();
    for number in 0..32 {
        peers.push(cluster.peer(&format!("peer-{number}")).await);
    }
    let downloads: Vec<Running> = peers.iter().map(|peer| peer.start_cli(["download", "A"])).collect();
    for (download, peer) in downloads.into_iter().zip(&peers) {
        let run = download.ended().await.expect(0);
        assert_eq!(run.fetched(), a.bytes.len() as u64);
        assert_eq!(run.blamed(), [], "nobody misbehaved");
        a.assert_at(&peer.path("A"));
    }
    cluster.until_held("A", 33).await;
}

#[tokio::test]
async fn one_peer_downloads_thirty_two_files_at_once() {
    let cluster = Cluster::start().await;
    let contents: Vec<Content> =
        (0..32).map(|n| Content::new(&format!("file-{n:02}"), random(n, 500_000), 256 << 10)).collect();
    let options = contents.iter().fold(Options::default(), |o, c| o.file(c.name.as_str(), &c.bytes));
    let _one = cluster.peer_with("one", options).await;
    let two = cluster.peer("two").await;
    for content in &contents {
        cluster.until_held(content.name.as_str(), 1).await;
    }
    let downloads: Vec<Running> = contents.iter().map(|c| two.start_cli(["download", c.name.as_str()])).collect();
    for (download, content) in downloads.into_iter().zip(&contents) {
        download.ended().await.expect(0);
        content.assert_at(&two.path(content.name.as_str()));
    }
}

/// Twenty downloads want one chunk of 16 MiB each of a holder that sends a few at once: most of them always wait for this
/// very peer, longer than their patience with other peers.
#[tokio::test]
async fn downloads_that_wait_for_others_of_their_own_peer_do_not_time_out_and_say_why_they_wait() {
    const CHUNK: u32 = 16 << 20;
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let names: Vec<String> = (0..20).map(|number| format!("file-{number:02}")).collect();
    let mut ids = Vec::new();
    for (seed, name) in (1..).zip(&names) {
        let content = Content::new(name, vec![seed; CHUNK as usize], CHUNK);
        one.share(&content).await;
        ids.push(content.manifest.id());
    }
    let two = cluster.peer("two").await;
    let downloads: Vec<Running> =
        names.iter().map(|name| two.start_cli(["download", name, "--timeout", "3s"])).collect();
    // A link of 40 MiB/s.
    let link = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(25));
        loop {
            ticks.tick().await;
            gate.allow(1 << 20);
        }
    };
    let all = async {
        let mut runs = Vec::new();
        for download in downloads {
            runs.push(download.ended().await.expect(0));
        }
        runs
    };
    let runs = tokio::select! {
        () = link => unreachable!("it has no end"),
        runs = all => runs,
    };
    let mut have_waited = 0;
    for run in &runs {
        assert_eq!(run.blamed(), [], "nobody misbehaved");
        let mut waits =
            run.events.iter().filter(|event| event["event"] == "waiting").map(|event| event["reason"].to_string());
        have_waited += usize::from(waits.any(|reason| reason.contains("busy")));
    }
    assert!(have_waited >= 10, "{have_waited} downloads said that they wait");
    for (name, id) in names.iter().zip(ids) {
        assert_eq!(Content::new(name, fs::read(two.path(name)).unwrap(), CHUNK).manifest.id(), id);
    }
}

#[tokio::test]
async fn several_callers_of_one_download_share_one_transfer() {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 32);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let mut runs: Vec<Running> = (0..4).map(|_| two.start_cli(["download", "A"])).collect();
    for run in &mut runs {
        run.until("the start", |events| events.iter().any(|event| event["event"] == "started")).await;
    }
    assert_eq!(two.status().await.transfers.len(), 1);
    gate.open();
    for run in runs {
        run.ended().await.expect(0);
    }
    assert!(gate.passed() < 2 * a.bytes.len() as u64, "{} bytes came over the link", gate.passed());
    a.assert_at(&two.path("A"));
}

#[tokio::test]
async fn ten_thousand_small_files_are_shared_and_listed_in_pages() {
    const FILES: usize = 10_000;
    let cluster = Cluster::start().await;
    let dir = cluster.folder().join("one");
    for number in 0..FILES {
        let name = format!("set/{:02}/{number:05}.bin", number % 100);
        let path = dir.join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, number.to_le_bytes()).unwrap();
    }
    let expected = files_below(&dir);
    assert_eq!(expected.len(), FILES);
    let one = cluster.peer("one").await;
    until("every file shared", async || (one.status().await.shared_files as usize == FILES).then_some(())).await;
    until("every file listed", async || (cluster.listed().await.len() == FILES).then_some(())).await;

    let mut tracker = cluster.tracker.client();
    let (mut names, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = ListFilesRequest { page_size: 1000, page_token: page_token.clone(), prefix: "set/".into() };
        let (files, next) = tracker.list_files(request).await.unwrap();
        assert!(files.len() <= 1000);
        assert!(files.iter().all(|file| file.full_holders == 1));
        names.extend(files.into_iter().map(|file| file.file.name.to_string()));
        pages += 1;
        match next {
            Some(next) => page_token = next,
            None => break,
        }
    }
    assert_eq!(names, expected, "in byte order, each once");
    assert!(pages >= 10);
    let half: BTreeSet<String> = one
        .cli(["files", "set/5"])
        .await
        .expect(0)
        .events
        .iter()
        .map(|line| line["name"].as_str().expect("a name on every line").to_owned())
        .collect();
    assert_eq!(half.len(), 1000);
    // What each file costs the tracker is bounded: 2 KiB plus its hashes, beside the program itself, the cache
    // of its store, and what the largest batches take while they are worked on.
    let memory = cluster.tracker.daemon.process.peak_memory();
    assert!(memory < (128 << 20) + FILES as u64 * 2048, "{memory} bytes");
}
