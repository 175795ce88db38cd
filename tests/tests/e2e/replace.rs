//! What a name stands for, changed by the peer that registered it, and by no other.

use std::{fs, io::Write};

use drizzle_tests::{Cluster, Content, cli::Run, cluster::Options, wait::until};

/// What a person reads of a share.
fn told(run: &Run) -> String {
    run.events.iter().filter_map(|event| event["detail"].as_str()).collect()
}

#[tokio::test]
async fn the_owner_replaces_what_it_shared_and_everybody_gets_the_new_content() {
    let cluster = Cluster::start().await;
    let (one, two, three) = (cluster.peer("one").await, cluster.peer("two").await, cluster.peer("three").await);
    let (old, new) = (Content::small_chunks("A", 1, 8), Content::small_chunks("A", 2, 9));
    one.share(&old).await;
    two.download("A").await;
    cluster.until_held("A", 2).await;

    fs::write(one.path("A"), &new.bytes).unwrap();
    let share = |more: &[&str]| {
        let path = one.path("A").into_os_string();
        let args = ["share".into(), "--chunk-size".into(), "16KiB".into(), path].into_iter();
        args.chain(more.iter().map(Into::into)).collect::<Vec<_>>()
    };
    let refused = one.cli(share(&[])).await.expect(1);
    assert!(told(&refused).contains("--replace"), "it says what to do: {}", told(&refused));
    one.cli(share(&["--replace"])).await.expect(0);

    three.download("A").await;
    new.assert_at(&three.path("A"));
    // The peer with the old content was told, and offers it no more.
    until("the old content is nowhere offered", async || {
        let offered = two.status().await.shared_files + u32::from(cluster.holders("A").await.len() != 2);
        (offered == 0).then_some(())
    })
    .await;
    old.assert_at(&two.path("A"));
}

#[tokio::test]
async fn nobody_replaces_what_another_peer_shared() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.peer("one").await, cluster.peer("two").await);
    let content = Content::small_chunks("A", 1, 8);
    one.share(&content).await;
    fs::write(two.path("A"), b"other").unwrap();
    let refused = two.cli(["share".into(), "--replace".into(), two.path("A").into_os_string()]).await.expect(1);
    assert!(told(&refused).contains("have its owner replace or withdraw it"), "{}", told(&refused));
    let three = cluster.peer("three").await;
    three.download("A").await;
    content.assert_at(&three.path("A"));
}

/// After a restart of the tracker the first to come with the content is a peer that has a copy.
#[tokio::test]
async fn a_name_stays_its_owners_though_another_holder_registers_first_after_a_restart_of_the_tracker() {
    let mut cluster = Cluster::start().await;
    let (mut one, two) = (cluster.peer("one").await, cluster.peer("two").await);
    one.share(&Content::small_chunks("A", 1, 8)).await;
    two.download("A").await;
    cluster.until_held("A", 2).await;
    one.daemon.kill();
    cluster.tracker.daemon.kill();
    cluster.tracker.daemon.restart().await;
    until("the copy registered, and nothing else", async || {
        cluster.holders("A").await.keys().eq([&two.id()]).then_some(())
    })
    .await;

    let new = Content::small_chunks("A", 2, 8);
    let share = ["share".into(), "--replace".into(), "--chunk-size".into(), "16KiB".into()];
    let by = |path: std::path::PathBuf| share.iter().cloned().chain([path.into_os_string()]).collect::<Vec<_>>();
    let elsewhere = cluster.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("A"), &new.bytes).unwrap();
    let refused = two.cli(by(elsewhere.join("A"))).await.expect(1);
    assert!(told(&refused).contains("have its owner replace or withdraw it"), "{}", told(&refused));

    one.restart().await;
    fs::write(one.path("A"), &new.bytes).unwrap();
    one.cli(by(one.path("A"))).await.expect(0);
    let three = cluster.peer("three").await;
    three.download("A").await;
    new.assert_at(&three.path("A"));
    // Its withdrawal is one, too.
    one.cli(["unshare", "A"]).await.expect(0);
    until("the name is free", async || cluster.listed().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_file_that_was_still_being_written_when_it_was_shared_is_registered_anew_by_itself() {
    let cluster = Cluster::start().await;
    let one = cluster.peer_with("one", Options::default().args(["--look-every", "100ms"])).await;
    let whole = Content::small_chunks("A", 1, 8);
    let mut copy = fs::File::create(one.path("A")).unwrap();
    copy.write_all(&whole.bytes[..50_000]).unwrap();
    one.cli(["share".into(), one.path("A").into_os_string()]).await.expect(0);
    cluster.until_held("A", 1).await;
    copy.write_all(&whole.bytes[50_000..]).unwrap();
    drop(copy);

    until("the whole file is registered", async || {
        let (registered, _) = cluster.tracker.client().holders(&whole.name).await.ok()?;
        (registered.layout.size() == whole.bytes.len() as u64).then_some(())
    })
    .await;
    cluster.until_held("A", 1).await;
    let two = cluster.peer("two").await;
    two.download("A").await;
    whole.assert_at(&two.path("A"));
}

/// The counterpart: what was whole when it was shared is never replaced without being asked for.
#[tokio::test]
async fn a_file_that_is_appended_to_after_it_was_shared_is_caught() {
    let cluster = Cluster::start().await;
    let one = cluster.peer_with("one", Options::default().args(["--look-every", "100ms"])).await;
    let content = Content::small_chunks("A", 1, 8);
    one.share(&content).await;
    fs::OpenOptions::new().append(true).open(one.path("A")).unwrap().write_all(b"more").unwrap();
    until("the change was refused", async || (!one.status().await.refused.is_empty()).then_some(())).await;
    let two = cluster.peer("two").await;
    two.cli(["download", "A", "--timeout", "1s"]).await.expect(7);
    assert_eq!(cluster.tracker.client().manifest(&content.name).await.unwrap().id(), content.manifest.id());
}
