//! What a peer remembers, and what it does with what it finds on disk.

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use drizzle_tests::{
    Cluster, Content,
    cluster::Options,
    content::{alter_secretly, files_below, random},
    until,
};

#[tokio::test]
async fn a_destination_with_the_same_content_is_done_at_once() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 8);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    fs::write(two.path("A"), &a.bytes).unwrap();
    let run = two.download("A").await;
    assert_eq!(run.fetched(), 0);
    a.assert_at(&two.path("A"));
    assert_eq!(two.download("A").await.fetched(), 0, "and again");
}

#[tokio::test]
async fn a_destination_with_other_content_is_left_alone() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 8);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    // As large as A, so that only its content tells it apart.
    let mine = random(2, a.bytes.len());
    let output = cluster.folder().join("mine");
    for path in [two.path("A"), output.clone()] {
        fs::write(&path, &mine).unwrap();
        let run = two.cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), path.as_os_str()]).await.expect(6);
        assert!(run.reason().contains(path.to_str().unwrap()), "the path is named: {}", run.reason());
        assert_eq!(fs::read(&path).unwrap(), mine);
    }
    fs::create_dir_all(cluster.folder().join("folder/A")).unwrap();
    let folder = cluster.folder().join("folder/A/");
    two.cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), folder.as_os_str()]).await.expect(0);
    a.assert_at(&folder.join("A"));
}

#[tokio::test]
async fn a_destination_that_appears_in_mid_download_is_left_alone() {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    one.share(&Content::small_chunks("A", 1, 16)).await;
    let two = cluster.peer("two").await;
    let mut download = two.start_cli(["download", "A"]);
    gate.allow(100_000);
    download.until_stored(1).await;
    fs::write(two.path("A"), b"mine").unwrap();
    gate.open();
    download.ended().await.expect(6);
    assert_eq!(fs::read(two.path("A")).unwrap(), b"mine");
}

#[tokio::test]
async fn a_restart_believes_what_size_and_time_confirm() {
    let cluster = Cluster::start().await;
    let (a, b) = (random(1, 300_000), random(2, 300_000));
    let mut one = cluster.peer_with("one", Options::default().file("A", &a).file("B", &b)).await;
    cluster.until_held("A", 1).await;
    cluster.until_held("B", 1).await;
    let id = one.id();
    one.daemon.kill();
    // Only who hashes again can see this; B's new time calls for hashing it again.
    alter_secretly(&one.path("A"), 1000);
    let later = SystemTime::now() + Duration::from_secs(3600);
    File::options().write(true).open(one.path("B")).unwrap().set_modified(later).unwrap();
    one.restart().await;
    assert_eq!(one.id(), id, "a peer is its id");
    cluster.until_held("A", 1).await;
    cluster.until_held("B", 1).await;
    until("both shared", async || (one.status().await.shared_files == 2).then_some(())).await;
    assert_eq!(one.status().await.refused, [""; 0], "A was not hashed again, and B is the same");
}

#[tokio::test]
async fn a_file_rewritten_while_the_daemon_was_away_is_refused_under_its_old_name() {
    let cluster = Cluster::start().await;
    let mut one = cluster.peer_with("one", Options::default().file("A", &random(1, 300_000))).await;
    cluster.until_held("A", 1).await;
    one.daemon.kill();
    fs::write(one.path("A"), random(2, 300_001)).unwrap();
    one.restart().await;
    until("the refusal", async || (one.status().await.refused == ["A"]).then_some(())).await;
    let two = cluster.peer("two").await;
    assert_ne!(two.cli(["download", "A", "--timeout", "1s"]).await.code, 0);
    assert_eq!(files_below(&two.dir), [""; 0]);
}

#[tokio::test]
async fn an_unshared_file_stays_on_disk_and_stays_unshared() {
    let cluster = Cluster::start().await;
    let a = random(1, 300_000);
    let mut one = cluster.peer_with("one", Options::default().file("A", &a).file("B", b"other")).await;
    cluster.until_held("A", 1).await;
    cluster.until_held("B", 1).await;
    one.cli(["unshare", "A"]).await.expect(0);
    assert_eq!(cluster.listed().await, [("B".into(), 1, 0)]);
    assert_eq!(fs::read(one.path("A")).unwrap(), a);
    one.restart().await;
    until("B alone", async || (one.status().await.shared_files == 1).then_some(())).await;
    until("B's holder", async || (cluster.listed().await == [("B".into(), 1, 0)]).then_some(())).await;

    // The name is free: other content may take it.
    let two = cluster.peer("two").await;
    two.share(&Content::small_chunks("A", 2, 3)).await;
    cluster.until_held("A", 1).await;
}

#[tokio::test]
async fn a_downloaded_file_is_shared_again_after_a_restart() {
    let cluster = Cluster::start().await;
    let mut one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 20);
    one.share(&a).await;
    let mut two = cluster.peer("two").await;
    two.download("A").await;
    assert_eq!(one.daemon.terminate().await, 0);
    assert_eq!(two.daemon.terminate().await, 0);
    two.restart().await;
    cluster.until_held("A", 1).await;
    let three = cluster.peer("three").await;
    let run = three.download("A").await;
    assert_eq!(run.sources().keys().cloned().collect::<Vec<_>>(), [two.address().to_string()]);
    a.assert_at(&three.path("A"));
}

#[tokio::test]
async fn the_state_folder_can_lie_elsewhere() {
    let cluster = Cluster::start().await;
    let state = cluster.folder().join("state");
    let options = || Options::default().args(["--state-dir".as_ref(), state.as_os_str()]);
    let mut one = cluster.peer_with("one", options().file("A", &random(1, 1000))).await;
    cluster.until_held("A", 1).await;
    let id = one.id();
    assert!(!one.path(".drizzle").exists() && !files_below(&state).is_empty());
    one.restart().await;
    assert_eq!(one.id(), id);
}

/// Damages every file of the state folder in one way. The daemon then either says clearly that it cannot
/// go on, or starts and offers nothing that it cannot prove; it never panics, and never touches the data.
async fn is_told_or_healed(damage: fn(&mut Vec<u8>)) {
    let cluster = Cluster::start().await;
    let a = Content::new("A", random(1, 500_000), 256 << 10);
    let mut one = cluster.peer_with("one", Options::default().file("A", &a.bytes)).await;
    cluster.until_held("A", 1).await;
    assert_eq!(one.daemon.terminate().await, 0);
    let state = one.path(".drizzle");
    let files: Vec<String> = files_below(&state);
    assert!(!files.is_empty(), "there is state to damage");
    for file in files.iter().filter(|file| !file.ends_with("lock")) {
        let path = state.join(file);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();

        let log = cluster.folder().join("logs");
        let mut args: Vec<std::ffi::OsString> = vec!["--tracker".into(), cluster.tracker.url().into(), "--dir".into()];
        args.push(one.dir.clone().into());
        args.extend(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"].map(Into::into));
        let mut daemon = drizzle_tests::process::Process::start("damaged", "peer-svc", &args, &log);
        let code = until("an end or a ready line", async || {
            if daemon.stdout().contains('\n') { Some(None) } else { daemon.exit_code().map(Some) }
        })
        .await;
        let said = daemon.stderr();
        assert!(!said.contains("panicked"), "{file}: {said}");
        if let Some(code) = code {
            assert_eq!(code, 1, "{file}: {said}");
            assert!(said.contains(".drizzle"), "{file}: the error says where: {said}");
        } else {
            cluster.until_held("A", 1).await;
            let two = cluster.peer(&format!("two-{}", file.replace('/', "-"))).await;
            two.download("A").await;
            a.assert_at(&two.path("A"));
        }
        a.assert_at(&one.path("A"));
    }
}

#[tokio::test]
async fn cut_state_is_told_or_healed() {
    is_told_or_healed(|bytes| bytes.truncate(bytes.len() / 2)).await;
}

#[tokio::test]
async fn empty_state_is_told_or_healed() {
    is_told_or_healed(Vec::clear).await;
}

#[tokio::test]
async fn garbled_state_is_told_or_healed() {
    is_told_or_healed(|bytes| bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(7))).await;
}

#[tokio::test]
async fn two_daemons_do_not_share_one_folder() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let (tracker, dir) = (cluster.tracker.url(), one.dir.to_str().unwrap());
    let ports = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    let args = [&["--tracker", &tracker, "--dir", dir][..], &ports].concat();
    let second = drizzle_tests::process::Process::ran("peer-svc", &args, &one.daemon.logs).await;
    assert_eq!((second.code, second.stdout.as_str()), (1, ""), "it was never ready: {}", second.stderr);
    assert_eq!(one.status().await.shared_files, 0, "the first one goes on");
}

#[tokio::test]
async fn an_unshared_file_that_changed_stays_unshared() {
    let cluster = Cluster::start().await;
    let mut one = cluster.peer_with("one", Options::default().file("A", b"mine").file("B", b"other")).await;
    cluster.until_held("A", 1).await;
    cluster.until_held("B", 1).await;
    one.cli(["unshare", "A"]).await.expect(0);
    fs::write(one.path("A"), b"mine, edited since").unwrap();
    one.restart().await;
    cluster.until_held("B", 1).await;
    // Until B is told, everything else would have been as well: files are offered together.
    assert_eq!(cluster.listed().await, [("B".into(), 1, 0)]);
}

#[tokio::test]
async fn a_state_folder_within_the_shared_one_is_not_shared() {
    let cluster = Cluster::start().await;
    let dir = cluster.folder().join("one");
    fs::create_dir_all(&dir).unwrap();
    let state = dir.join("state");
    let options = Options::default().dir(&dir).file("A", b"mine").args(["--state-dir".as_ref(), state.as_os_str()]);
    let mut one = cluster.peer_with("one", options).await;
    cluster.until_held("A", 1).await;
    one.restart().await;
    cluster.until_held("A", 1).await;
    assert_eq!(cluster.listed().await, [("A".into(), 1, 0)]);
}

#[tokio::test]
async fn a_partial_file_that_vanished_is_fetched_anew() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 8);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    two.cli(["download", "A", "--chunks", "0-7"]).await.expect(0);
    let partial = two.path(".drizzle/partial");
    for file in files_below(&partial) {
        fs::remove_file(partial.join(file)).unwrap();
    }
    assert_eq!(two.download("A").await.fetched(), a.bytes.len() as u64);
    a.assert_at(&two.path("A"));
}

#[tokio::test]
async fn sharing_a_name_leaves_a_running_download_of_it_alone() {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 16);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let output = cluster.folder().join("elsewhere");
    let mut download = two.start_cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), output.as_os_str()]);
    gate.allow(100_000);
    download.until_stored(1).await;
    fs::write(two.path("A"), &a.bytes).unwrap();
    let path = two.path("A");
    two.cli(["share".as_ref(), path.as_os_str()]).await.expect(0);
    gate.open();
    download.ended().await.expect(0);
    a.assert_at(&output);
    a.assert_at(&path);
}

/// Downloads A, takes the copy away, and downloads it again, to another place or the same.
async fn is_had_again(again: Option<&str>, take_away: fn(&std::path::Path)) {
    let cluster = Cluster::start().await;
    let (mut one, gate) = cluster.gated_peer("one").await;
    let a = Content::small_chunks("A", 1, 16);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    gate.allow(17 * a.bytes.len() / 16);
    let first = cluster.folder().join("first");
    two.cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), first.as_os_str()]).await.expect(0);
    cluster.until_held("A", 2).await;
    take_away(&first);
    let output = again.map_or_else(|| two.path("A"), |name| cluster.folder().join(name));
    let mut run = two.start_cli(["download".as_ref(), "A".as_ref(), "-o".as_ref(), output.as_os_str()]);
    run.until("its start", |events| !events.is_empty()).await;
    cluster.until_held("A", 1).await;
    gate.open();
    assert_eq!(run.ended().await.expect(0).fetched(), a.bytes.len() as u64);
    a.assert_at(&output);
    cluster.until_held("A", 2).await;
    assert_eq!(one.daemon.terminate().await, 0);
    cluster.until_held("A", 1).await;
    // It is intact, and it is all that there is.
    let three = cluster.peer("three").await;
    assert_eq!(three.download("A").await.blamed(), []);
    a.assert_at(&three.path("A"));
}

#[tokio::test]
async fn a_downloaded_file_that_was_deleted_and_downloaded_again_is_offered_again() {
    is_had_again(Some("first"), |path| fs::remove_file(path).unwrap()).await;
}

#[tokio::test]
async fn a_downloaded_file_that_was_deleted_and_downloaded_to_another_place_is_offered_from_there() {
    is_had_again(None, |path| fs::remove_file(path).unwrap()).await;
}

#[tokio::test]
async fn a_downloaded_file_that_was_altered_and_downloaded_to_another_place_is_offered_from_there() {
    is_had_again(Some("second"), |path| fs::write(path, "mine").unwrap()).await;
}
