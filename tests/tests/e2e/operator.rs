//! What an operator does with a running tracker, by the commands of `tracker-svc`.

use std::fs;

use drizzle_tests::{
    Cluster, Content,
    process::{Ended, Process},
    wait::until,
};

/// Runs a command on the cluster's tracker.
async fn operate(cluster: &Cluster, command: &[&str]) -> Ended {
    let data_dir = cluster.folder().join("tracker");
    let args: Vec<&str> =
        ["--data-dir", data_dir.to_str().unwrap()].into_iter().chain(command.iter().copied()).collect();
    Process::ran("tracker-svc", &args, &cluster.folder().join("logs")).await
}

async fn done(cluster: &Cluster, command: &[&str]) -> String {
    let Ended { code, stdout, stderr } = operate(cluster, command).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{command:?}");
    stdout
}

#[tokio::test]
async fn names_are_listed_with_their_owners() {
    let cluster = Cluster::start().await;
    let mut one = cluster.peer("one").await;
    for name in ["a/1", "a/2", "b"] {
        one.share(&Content::small_chunks(name, 1, 2)).await;
    }
    let listed = done(&cluster, &["files"]).await;
    assert_eq!(listed.lines().count(), 4, "a heading and three names: {listed}");
    let (id, address) = (one.id().to_string(), one.address().to_string());
    for line in listed.lines().skip(1) {
        assert!(line.contains(&id) && line.contains(&address), "{line}");
    }
    let some = done(&cluster, &["files", "a/"]).await;
    assert!(some.contains("a/1") && some.contains("a/2") && !some.contains(" b\n"), "{some}");
    one.daemon.terminate().await;
    let listed = done(&cluster, &["files", "b"]).await;
    assert!(listed.contains(&id) && listed.contains("away"), "{listed}");
}

#[tokio::test]
async fn a_dropped_name_is_offered_no_more_and_stays_barred_for_its_content() {
    let cluster = Cluster::start().await;
    let (one, mut two) = (cluster.peer("one").await, cluster.peer("two").await);
    let content = Content::small_chunks("A", 1, 4);
    one.share(&content).await;
    two.download("A").await;
    cluster.until_held("A", 2).await;
    // A holder that was away when the name was dropped is not told, and meets the bar.
    two.daemon.terminate().await;

    let told = done(&cluster, &["drop", "A"]).await;
    assert!(told.contains("dropped A") && told.contains("told 1 holder "), "{told}");
    assert_eq!(cluster.listed().await, []);
    until("the owner offers it no more", async || (one.status().await.shared_files == 0).then_some(())).await;
    content.assert_at(&one.path("A"));
    two.restart().await;
    until("the other holder is refused", async || (!two.status().await.refused.is_empty()).then_some(())).await;
    let again = ["share".into(), "--chunk-size".into(), "16KiB".into(), one.path("A").into_os_string()];
    let again = one.cli(again).await.expect(1);
    let detail: String = again.events.iter().filter_map(|event| event["detail"].as_str()).collect();
    assert!(detail.contains("dropped by an operator"), "{detail}");

    fs::write(one.path("A"), b"other content").unwrap();
    one.cli(["share".into(), one.path("A").into_os_string()]).await.expect(0);
    assert!(done(&cluster, &["drop", "A", "--free"]).await.contains("any content"));
    one.share(&content).await;
    cluster.until_held("A", 1).await;
}

#[tokio::test]
async fn a_name_whose_owner_is_gone_is_given_to_another_peer() {
    let cluster = Cluster::start().await;
    let (mut one, two) = (cluster.peer("one").await, cluster.peer("two").await);
    one.share(&Content::small_chunks("A", 1, 4)).await;
    one.daemon.terminate().await;
    let new = Content::small_chunks("A", 2, 4);
    fs::write(two.path("A"), &new.bytes).unwrap();
    let share = ["share".into(), "--replace".into(), two.path("A").into_os_string()];
    two.cli(share.clone()).await.expect(1);

    let told = done(&cluster, &["reassign", "A", &two.id().to_string()]).await;
    assert!(told.contains(&format!("before, peer {}", one.id())), "{told}");
    two.cli(share).await.expect(0);
    let three = cluster.peer("three").await;
    three.download("A").await;
    new.assert_at(&three.path("A"));
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_one_line() {
    let cluster = Cluster::start().await;
    let elsewhere = cluster.folder().join("elsewhere");
    let (id, elsewhere) = ("0".repeat(32), elsewhere.to_str().unwrap());
    let logs = cluster.folder().join("logs");
    let absent = Process::ran("tracker-svc", &["--data-dir", elsewhere, "files"], &logs).await;
    let refusals = [
        (absent, "no tracker runs with the data folder"),
        (operate(&cluster, &["drop", "nothing"]).await, "there is no file \"nothing\""),
        (operate(&cluster, &["reassign", "nothing", &id]).await, "there is no file \"nothing\""),
    ];
    for (Ended { code, stdout, stderr }, text) in refusals {
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (1, "", 1), "{stderr}");
        assert!(stderr.contains(text), "{stderr}");
    }
}
