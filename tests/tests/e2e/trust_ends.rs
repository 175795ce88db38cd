//! Rights end: revocation, stops, certificates that run out, a tracker that is away.

use std::fs;

use drizzle_tests::{Cluster, Content, Secured, cluster::Options, process::Output, said, until};

#[tokio::test]
async fn a_revoked_peer_is_served_by_nobody_and_cannot_come_back() {
    let secured = Secured::start(&[]).await;
    let holder = secured.peer("holder", "publisher", &[]).await;
    let mut reader = secured.peer("reader", "reader", &[]).await;
    for (name, seed) in [("A", 1), ("B", 2)] {
        holder.share(&Content::small_chunks(name, seed, 3)).await;
    }
    reader.download("A").await;
    let told = secured.operator(&["revoke", &reader.id().to_string()]).await;
    assert!(told.contains("within some seconds"), "{told}");
    let refused = reader.cli(["download", "B"]).await;
    assert!(refused.code == 8 && said(&refused).contains("revoked"), "{}: {}", refused.code, said(&refused));
    until("no lease", async || (!reader.status().await.tracker_connected).then_some(())).await;
    reader.daemon.restart().await;
    assert_eq!(reader.cli(["download", "B"]).await.code, 8);
    let identities = secured.operator(&["identities"]).await;
    let line = identities.lines().find(|line| line.contains(&reader.id().to_string())).unwrap();
    assert!(line.contains("revoked"), "{line}");
}

#[tokio::test]
async fn a_running_download_ends_when_its_peer_is_revoked() {
    let secured = Secured::start(&[]).await;
    // Slow enough to be there when it happens.
    let holder = secured.peer_with("holder", "publisher", &[], Options::default().args(["--up", "100kB/s"])).await;
    let reader = secured.peer("reader", "reader", &[]).await;
    holder.share(&Content::small_chunks("A", 1, 512)).await;
    let mut download = reader.start_cli(["download", "A", "--timeout", "10m"]);
    download.until_stored(1).await;
    secured.operator(&["revoke", &reader.id().to_string()]).await;
    let run = download.ended().await;
    assert_ne!(run.code, 0, "{}", said(&run));
    assert!(said(&run).contains("may not read"), "{}", said(&run));
}

#[tokio::test]
async fn what_an_operator_stops_nobody_serves_until_it_is_resumed() {
    for secured in [Secured::start(&[]).await, open().await] {
        let token = |_: &str| async { Options::default().args(["--up", "100kB/s"]) };
        let (holder, reader) = if secured.operate(&["token", "list"]).await.code == 0 && is_secured(&secured) {
            let holder = secured.peer_with("holder", "publisher", &[], token("holder").await).await;
            (holder, secured.peer("reader", "reader", &[]).await)
        } else {
            (secured.cluster.peer_with("holder", token("holder").await).await, secured.cluster.peer("reader").await)
        };
        let content = Content::small_chunks("models/big", 1, 256);
        holder.share(&content).await;
        let mut download = reader.start_cli(["download", "models/big", "--timeout", "10m"]);
        download.until_stored(1).await;
        secured.operator(&["stop", "models/"]).await;
        let run = download.ended().await;
        assert_ne!(run.code, 0);
        assert!(said(&run).contains("stopped"), "{}", said(&run));
        let refused = reader.cli(["download", "models/big"]).await;
        assert!(refused.code == 8 && said(&refused).contains("stopped"), "{}: {}", refused.code, said(&refused));
        assert!(secured.operator(&["stops"]).await.contains("models/"));
        assert!(holder.path("models/big").exists(), "nothing is deleted");
        secured.operator(&["resume", "models/"]).await;
        holder.cli(["limit", "--up", "unlimited"]).await.expect(0);
        until("the download", async || (reader.cli(["download", "models/big"]).await.code == 0).then_some(())).await;
        assert_eq!(fs::read(reader.path("models/big")).unwrap(), content.bytes);
    }
}

/// A cluster without TLS, in the same shape.
async fn open() -> Secured {
    Secured { cluster: Cluster::with_tracker(["--lease", "2s"], Output::Kept).await }
}

fn is_secured(secured: &Secured) -> bool {
    secured.cluster.folder().join("tracker/tls/ca.pem").exists()
}

#[tokio::test]
async fn certificates_are_renewed_before_they_run_out_and_after_a_long_sleep() {
    let secured = Secured::start(&["--certificate-life", "6s"]).await;
    let holder = secured.peer("holder", "publisher", &[]).await;
    let mut reader = secured.peer("reader", "reader", &[]).await;
    holder.share(&Content::small_chunks("A", 1, 3)).await;
    let renewals = |log: &str| log.matches("certificate was renewed").count();
    until("two renewals", async || (renewals(&holder.daemon.process.stderr()) >= 2).then_some(())).await;
    reader.download("A").await;
    // Asleep for longer than its certificate lives.
    reader.daemon.kill();
    let before = renewals(&holder.daemon.process.stderr());
    until("the sleep", async || (renewals(&holder.daemon.process.stderr()) >= before + 3).then_some(())).await;
    holder.share(&Content::small_chunks("B", 2, 3)).await;
    reader.restart().await;
    reader.download("B").await;
}

#[tokio::test]
async fn peers_serve_each_other_by_tickets_while_the_tracker_is_away() {
    let mut secured = Secured::start(&[]).await;
    let mut holder = secured.peer_with("holder", "publisher", &[], Options::default().args(["--up", "1MB/s"])).await;
    let reader = secured.peer("reader", "reader", &[]).await;
    let content = Content::small_chunks("A", 1, 256);
    holder.share(&content).await;
    let mut download = reader.start_cli(["download", "A", "--timeout", "10m"]);
    download.until_stored(1).await;
    secured.cluster.tracker.daemon.kill();
    // It comes back without a tracker, and knows still whom it may serve.
    holder.daemon.restart().await;
    download.ended().await.expect(0);
    assert_eq!(fs::read(reader.path("A")).unwrap(), content.bytes);
}

#[tokio::test]
async fn a_fleet_moves_to_tls_without_a_pause() {
    let mut cluster = Cluster::with_tracker(["--lease", "2s"], Output::Kept).await;
    let mut old = cluster.peer("old").await;
    let content = Content::small_chunks("A", 1, 3);
    old.share(&content).await;
    // The tracker first: it serves both.
    cluster.tracker.daemon.restart_with(["--tls", "prefer"]).await;
    let secured = Secured { cluster };
    let new = secured.peer_with("new", "publisher", &[], Options::default().args(["--tls", "prefer"])).await;
    secured.cluster.until_held("A", 1).await;
    new.download("A").await;
    let back = Content::small_chunks("B", 2, 3);
    new.share(&back).await;
    old.download("B").await;
    let token = secured.token("publisher", &[]).await;
    old.daemon.restart_with(["--tls", "prefer", "--join", &token]).await;
    until("its lease", async || old.status().await.tracker_connected.then_some(())).await;
    let last = Content::small_chunks("C", 3, 3);
    old.share(&last).await;
    new.download("C").await;
}

#[tokio::test]
async fn who_did_what_is_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let secured = Secured::start(&["--audit-log", log.to_str().unwrap()]).await;
    let publisher = secured.peer("publisher", "publisher", &[]).await;
    let reader = secured.peer("reader", "reader", &["models/"]).await;
    publisher.share(&Content::small_chunks("A", 1, 3)).await;
    reader.cli(["download", "A"]).await.expect(8);
    publisher.cli(["unshare", "A"]).await.expect(0);
    secured.operator(&["stop", "x/"]).await;
    secured.operator(&["revoke", &reader.id().to_string()]).await;
    let entries: Vec<serde_json::Value> =
        fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |event: &str, who: &str, what: &str| {
        entries.iter().any(|entry| {
            entry["event"] == event && entry["who"] == who && entry["what"].as_str().unwrap().contains(what)
        })
    };
    let [publisher, reader] = [&publisher, &reader].map(|peer| peer.id().to_string());
    for (event, who, what) in [
        ("token create", "operator", "reader of models/"),
        ("enrol", "unknown", &reader),
        ("register", &publisher, "A"),
        ("refused", &reader, "read A"),
        ("withdraw", &publisher, "A"),
        ("stop", "operator", "x/"),
        ("revoke", "operator", &reader),
    ] {
        assert!(has(event, who, what), "{event} by {who} of {what} in {entries:#?}");
    }
}
