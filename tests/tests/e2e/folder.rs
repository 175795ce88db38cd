//! The daemon's folder: what is shared of it, when, and what becomes of files that go away.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, SystemTime},
};

use drizzle_tests::{
    Cluster, Content,
    cluster::{Options, Peer},
    content::random,
    until,
};

/// So long that nothing is found by the next look at the whole folder.
const NO_ROUNDS: [&str; 3] = ["--watch", "--look-every", "1h"];

/// A peer that watches its folder.
async fn watching(cluster: &Cluster, options: Options) -> Peer {
    let peer = cluster.peer_with("peer", options.args(NO_ROUNDS)).await;
    until("the watch", async || peer.daemon.process.stderr().contains(" watching the folder").then_some(())).await;
    peer
}

fn listed_names(listed: Vec<(String, u32, u32)>) -> Vec<String> {
    listed.into_iter().map(|(name, ..)| name).collect()
}

#[tokio::test]
async fn a_file_that_is_dropped_into_the_folder_is_shared_at_once() {
    let cluster = Cluster::start().await;
    let peer = watching(&cluster, Options::default().file("models/first", b"first")).await;
    fs::write(peer.path("models/second"), "second").unwrap();
    cluster.until_held("models/second", 1).await;
    fs::create_dir_all(peer.path("new/deep")).unwrap();
    fs::write(peer.path("new/deep/file"), "deep").unwrap();
    cluster.until_held("new/deep/file", 1).await;
    // By a rename, with all that is in it.
    let outside = cluster.folder().join("outside");
    fs::create_dir_all(outside.join("in")).unwrap();
    fs::write(outside.join("in/file"), "moved").unwrap();
    fs::rename(&outside, peer.path("moved")).unwrap();
    cluster.until_held("moved/in/file", 1).await;
    fs::write(peer.path("moved/in/later"), "later").unwrap();
    cluster.until_held("moved/in/later", 1).await;
}

#[tokio::test]
async fn what_is_deleted_or_replaced_in_the_folder_is_found_at_once() {
    let cluster = Cluster::start().await;
    let files = Options::default().file("a", b"a").file("sub/b", b"b").file("sub/in/c", b"c");
    let peer = watching(&cluster, files).await;
    for name in ["a", "sub/b", "sub/in/c"] {
        cluster.until_held(name, 1).await;
    }
    fs::remove_file(peer.path("a")).unwrap();
    cluster.until_held("a", 0).await;
    let outside = cluster.folder().join("outside");
    fs::rename(peer.path("sub"), &outside).unwrap();
    cluster.until_held("sub/b", 0).await;
    cluster.until_held("sub/in/c", 0).await;
    fs::rename(&outside, peer.path("sub")).unwrap();
    cluster.until_held("sub/b", 1).await;
    cluster.until_held("sub/in/c", 1).await;
}

#[tokio::test]
async fn a_file_that_is_still_written_is_shared_only_once_it_was_left_alone() {
    let cluster = Cluster::start().await;
    let peer = watching(&cluster, Options::default().args(["--settle", "1h"])).await;
    let content = Content::new("model.bin", random(1, 300_000), 256 << 10);
    fs::write(peer.path("model.bin"), &content.bytes[..100_000]).unwrap();
    until("the file that is waited for", async || (peer.status().await.settling_files == 1).then_some(())).await;
    assert_eq!(listed_names(cluster.listed().await), [""; 0]);
    fs::write(peer.path("model.bin"), &content.bytes).unwrap();
    // As a copy does that keeps the time of its source.
    let file = File::options().write(true).open(peer.path("model.bin")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    cluster.until_held("model.bin", 1).await;
    let two = cluster.peer("two").await;
    two.download("model.bin").await;
    content.assert_at(&two.path("model.bin"));
    assert_eq!(peer.status().await.settling_files, 0);
}

#[tokio::test]
async fn with_no_watch_new_files_wait_for_a_person_or_the_next_start() {
    let cluster = Cluster::start().await;
    let mut peer = cluster.peer_with("peer", Options::default().args(["--no-watch", "--look-every", "50ms"])).await;
    fs::write(peer.path("a"), "a").unwrap();
    fs::write(peer.path("b"), "b").unwrap();
    // Longer than several looks take.
    peer.cli(["share".as_ref(), peer.path("b").as_os_str()]).await.expect(0);
    cluster.until_held("b", 1).await;
    fs::remove_file(peer.path("b")).unwrap();
    cluster.until_held("b", 0).await;
    assert!(!peer.daemon.process.stderr().contains(" watching the folder"));
    assert!(!listed_names(cluster.listed().await).contains(&"a".to_owned()));
    peer.restart().await;
    cluster.until_held("a", 1).await;
}

#[tokio::test]
async fn a_start_with_an_empty_folder_forgets_nothing() {
    let cluster = Cluster::start().await;
    let (dir, away, state) =
        (cluster.folder().join("peer"), cluster.folder().join("away"), cluster.folder().join("state"));
    let options = Options::default().args(["--state-dir".as_ref(), state.as_os_str()]);
    let mut peer = cluster.peer_with("peer", options.file("kept", b"kept").file("withdrawn", b"withdrawn")).await;
    for name in ["kept", "withdrawn"] {
        cluster.until_held(name, 1).await;
    }
    peer.cli(["unshare", "withdrawn"]).await.expect(0);
    peer.daemon.terminate().await;
    // The disk is not mounted.
    fs::rename(&dir, &away).unwrap();
    fs::create_dir(&dir).unwrap();
    peer.restart().await;
    let status = until("the word that the folder is away", async || {
        let status = peer.status().await;
        status.folder_is_away.then_some(status)
    })
    .await;
    assert_eq!((status.missing, status.shared_files), (vec!["kept".to_owned()], 0));
    peer.daemon.terminate().await;
    fs::remove_dir(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    peer.restart().await;
    cluster.until_held("kept", 1).await;
    let log = until("the first look", async || {
        let log = peer.daemon.process.stderr();
        log.contains(" sharing dir=").then_some(log)
    })
    .await;
    assert!(log.contains("files=1 hashed=0 missing=0"), "{log}");
    assert_eq!(listed_names(cluster.listed().await), ["kept"], "what was withdrawn stays withdrawn");
}

#[tokio::test]
async fn links_within_the_folder_are_followed_and_named_by_the_link() {
    let cluster = Cluster::start().await;
    let peer = watching(&cluster, Options::default().file("blobs/1", b"model")).await;
    fs::create_dir_all(peer.path("snapshots/main")).unwrap();
    symlink("../../blobs/1", peer.path("snapshots/main/model.bin")).unwrap();
    symlink("snapshots/main", peer.path("latest")).unwrap();
    let names = ["blobs/1", "latest/model.bin", "snapshots/main/model.bin"];
    for name in names {
        cluster.until_held(name, 1).await;
    }
    // One change, and two paths that lead to it.
    fs::write(peer.path("snapshots/main/readme"), "readme").unwrap();
    for name in ["latest/readme", "snapshots/main/readme"] {
        cluster.until_held(name, 1).await;
    }
    let two = cluster.peer("two").await;
    two.download("latest/model.bin").await;
    assert_eq!(fs::read(two.path("latest/model.bin")).unwrap(), b"model");
    assert!(!two.path("latest").is_symlink());
}

async fn share(peer: &Peer, path: &Path) -> drizzle_tests::Run {
    peer.cli(["share".as_ref(), path.as_os_str()]).await
}

#[tokio::test]
async fn a_folder_without_a_file_to_share_fails_with_a_hint() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    let empty = cluster.folder().join("empty");
    fs::create_dir(&empty).unwrap();
    let run = share(&peer, &empty).await.expect(3);
    assert!(run.stderr.contains("name such a file itself"), "{}", run.stderr);
    let links = cluster.folder().join("links");
    fs::create_dir(&links).unwrap();
    symlink("/dev/null", links.join("out")).unwrap();
    symlink("none", links.join("nowhere")).unwrap();
    let run = share(&peer, &links).await.expect(3);
    assert!(run.stderr.contains("name such a file itself"), "{}", run.stderr);
    assert_eq!(cluster.listed().await, []);
}

#[tokio::test]
async fn a_file_that_is_gone_at_its_only_holder_is_told_and_fetched_once_it_is_back() {
    let cluster = Cluster::start().await;
    // It looks at its files by itself only much later, and is told of no change, so the tracker lists it still.
    let one = cluster.peer_with("one", Options::default().args(["--no-watch", "--look-every", "1h"])).await;
    let content = Content::small_chunks("A", 1, 8);
    one.share(&content).await;
    cluster.until_held("A", 1).await;
    let away = cluster.folder().join("away");
    fs::rename(one.path("A"), &away).unwrap();
    let two = cluster.peer("two").await;
    let run = two.cli(["download", "A", "--timeout", "2s"]).await.expect(7);
    assert!(run.reason().contains("no longer there"), "{}", run.reason());
    fs::rename(&away, one.path("A")).unwrap();
    // Looked at by a restart here, by the next round else.
    let mut one = one;
    one.restart().await;
    cluster.until_held("A", 1).await;
    two.download("A").await;
    content.assert_at(&two.path("A"));
}

/// What a run of `share` says that it left out, by reason.
fn skipped(run: &drizzle_tests::Run) -> Vec<(String, u64)> {
    let skipped = run.events.iter().filter(|event| event["status"] == "skipped");
    let line = |event: &serde_json::Value| {
        assert!(event["examples"].as_array().is_some_and(|named| (1..=3).contains(&named.len())), "{event}");
        (event["reason"].as_str().unwrap().to_owned(), event["count"].as_u64().unwrap())
    };
    skipped.map(line).collect()
}

#[tokio::test]
async fn what_is_left_out_of_a_folder_is_told_with_its_reason_and_shared_if_it_is_named() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer_with("peer", Options::default().args(["--exclude", "*.log"])).await;
    let folder = cluster.folder().join("set");
    fs::create_dir(&folder).unwrap();
    for name in ["good", ".a", ".b", ".c", ".d", "half.part", "a.log", "secret", "back\\slash"] {
        fs::write(folder.join(name), name).unwrap();
    }
    fs::write(folder.join(".drizzleignore"), "/secret\n").unwrap();
    symlink("/etc/hostname", folder.join("out")).unwrap();
    let run = share(&peer, &folder).await.expect(0);
    let expected = [
        ("hidden", 4),
        ("temporary by its name", 1),
        ("excluded by --exclude or .drizzleignore", 2),
        ("link out of the folder", 1),
        ("its name cannot be shared: not UTF-8, with a control character or a backslash, or too long", 1),
    ];
    assert_eq!(skipped(&run), expected.map(|(reason, count)| (reason.to_owned(), count)));
    assert_eq!(listed_names(cluster.listed().await), ["set/good"]);
    // Whoever names a file wants that file.
    for name in [".a", "half.part", "secret"] {
        let run = share(&peer, &folder.join(name)).await.expect(0);
        assert_eq!(skipped(&run), []);
        cluster.until_held(name, 1).await;
    }
    fs::remove_file(folder.join("good")).unwrap();
    let run = share(&peer, &folder).await.expect(3);
    assert_eq!(skipped(&run).len(), expected.len(), "what is there, and why it is not shared");
}
