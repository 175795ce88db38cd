//! `peer-cli explain`: each fault is called by its name while the download runs, and what can be done is said.

use drizzle_proto::ChunkSet;
use drizzle_tests::{
    Cluster, Content, Peer,
    cli::Running,
    cluster::Options,
    content::random,
    fake_peer::{FakePeer, Manner},
    until,
};
use serde_json::Value;
use tonic::Code;

/// What is told of a download now.
async fn explained(peer: &Peer, name: &str) -> Option<Value> {
    let run = peer.cli(["explain", name]).await;
    run.events.into_iter().next()
}

/// Waits until a download is told to be limited so; what is told then.
async fn until_limited(peer: &Peer, cause: &str) -> Value {
    until(&format!("limited by {cause}"), async || {
        explained(peer, "A").await.filter(|told| told["limited_by"] == cause)
    })
    .await
}

/// Waits until something is told of it that is so.
async fn until_told(peer: &Peer, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(what, async || explained(peer, "A").await.filter(&is)).await
}

fn holder<'a>(told: &'a Value, peer: &str) -> &'a Value {
    let holders = told["holders"].as_array().unwrap();
    holders.iter().find(|holder| holder["peer"] == peer).unwrap_or_else(|| panic!("{peer} is not in {told}"))
}

/// The shares are the whole time, and nothing else.
fn adds_up(told: &Value) {
    let shares = told["shares"].as_array().unwrap();
    let sum: f64 = shares.iter().map(|share| share["seconds"].as_f64().unwrap()).sum();
    let seconds = told["seconds"].as_f64().unwrap();
    // Each is told in whole milliseconds.
    assert!((sum - seconds).abs() <= 0.002 * (shares.len() + 1) as f64, "{sum} of {seconds}: {told}");
}

fn begin(peer: &Peer) -> Running {
    peer.start_cli(["download", "A", "--timeout", "1000s"])
}

#[tokio::test]
async fn a_busy_holder() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let busy = FakePeer::start(&cluster.tracker.url(), &a, Manner::Says(Code::ResourceExhausted)).await;
    let two = cluster.peer("two").await;
    let _download = begin(&two);
    let told = until_limited(&two, "source").await;
    adds_up(&told);
    assert_eq!((&told["state"], &told["bytes"]), (&"running".into(), &0.into()));
    let told = until_told(&two, "busy", |told| told["holders"][0]["state"] == "busy").await;
    assert_eq!(holder(&told, &busy.address.to_string())["full"], true);
    assert!(told["advice"].as_str().unwrap().contains("--upload-slots"), "{told}");
    let text = told["text"].as_str().unwrap();
    assert!(text.contains("limited now by: the source's uplink") && text.contains("busy: others have"), "{text}");
}

#[tokio::test]
async fn a_chunk_that_nobody_has() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let half = ChunkSet::from_ranges(a.manifest.layout().chunk_count(), &"0-15".parse().unwrap()).unwrap();
    let _half = FakePeer::holding(&cluster.tracker.url(), &a, half, Manner::Honest).await;
    let two = cluster.peer("two").await;
    let _download = begin(&two);
    let told = until_limited(&two, "no holder").await;
    assert_eq!(told["unheld"], "chunks 16-31", "{told}");
    assert!(told["advice"].as_str().unwrap().starts_with("start a peer"), "{told}");
    adds_up(&told);
}

#[tokio::test]
async fn a_liar() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 8);
    let liar = FakePeer::start(&cluster.tracker.url(), &a, Manner::WrongBytes).await;
    let two = cluster.peer("two").await;
    let _download = begin(&two);
    let told = until_limited(&two, "no holder").await;
    let liar = liar.address.to_string();
    assert_eq!(
        (&told["blamed"][0]["peer"], &told["blamed"][0]["offence"]),
        (&liar.clone().into(), &"wrong bytes".into())
    );
    let seen = holder(&told, &liar);
    assert!(seen["state"] == "avoided" && seen["avoided_seconds"].as_f64().unwrap() > 0.0, "{told}");
}

#[tokio::test]
async fn a_staller() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 8);
    let staller = FakePeer::start(&cluster.tracker.url(), &a, Manner::Stalls(100)).await;
    let two = cluster.peer("two").await;
    let _download = begin(&two);
    let told = until_told(&two, "stalled", |told| told["blamed"][0]["offence"] == "stalled").await;
    assert_eq!(told["blamed"][0]["peer"], staller.address.to_string());
    adds_up(&told);
}

#[tokio::test]
async fn a_wrong_advertised_address() {
    let cluster = Cluster::start().await;
    let source = cluster.peer_with("source", Options::default().args(["--advertise", "127.0.0.1:9"])).await;
    source.share(&Content::small_chunks("A", 1, 8)).await;
    let two = cluster.peer("two").await;
    let _download = begin(&two);
    let told = until_told(&two, "unreachable", |told| told["blamed"][0]["offence"] == "unreachable").await;
    assert_eq!(told["blamed"][0]["peer"], "127.0.0.1:9");
    until_limited(&two, "no holder").await;
}

#[tokio::test]
async fn a_source_that_left() {
    let cluster = Cluster::with_tracker_args(["--lease", "1s"]).await;
    let a = Content::small_chunks("A", 1, 32);
    let (source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let two = cluster.peer("two").await;
    let mut download = begin(&two);
    gate.add_permits(3);
    download.until_stored(3).await;
    drop(source);
    let told = until_limited(&two, "no holder").await;
    assert!(told["total"].as_u64() > told["bytes"].as_u64() && told["bytes"].as_u64() > Some(0), "{told}");
}

#[tokio::test]
async fn a_limit_of_ones_own() {
    let cluster = Cluster::start().await;
    let a = Content::new("A", random(1, 8 << 20), 64 << 10);
    let source = cluster.peer("source").await;
    source.share(&a).await;
    let two = cluster.peer_with("two", Options::default().args(["--down", "64KiB/s"])).await;
    let _download = begin(&two);
    let told = until_limited(&two, "own limit").await;
    assert!(told["advice"].as_str().unwrap().contains("limit --down unlimited"), "{told}");
}

#[tokio::test]
async fn a_report_tells_it_afterwards_to_people_and_programs() {
    let cluster = Cluster::start().await;
    let source = cluster.peer("source").await;
    source.share(&Content::small_chunks("A", 1, 9)).await;
    let two = cluster.peer("two").await;
    let path = |name: &str| cluster.folder().join(name).to_str().unwrap().to_owned();
    let (json, page) = (path("report.json"), path("report.html"));
    two.cli(["download", "A", "--report", &json]).await.expect(0);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&report["state"], &report["bytes"]), (&"done".into(), &report["total"]));
    assert_eq!(report["holders"][0]["peer"], source.address().to_string());
    adds_up(&report);
    // It is still known, and of another daemon's life it is not.
    assert_eq!(explained(&two, "A").await.unwrap()["state"], "done");
    assert_eq!(two.cli(["explain"]).await.expect(0).events.len(), 1);
    source.cli(["explain", "A"]).await.expect(3);
    assert_eq!(source.cli(["explain"]).await.expect(0).events.len(), 0);
    // One that fails has a report, too, and one that never began.
    two.cli(["download", "B", "--report", &page]).await.expect(3);
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("no file &quot;B&quot; is registered"), "{page}");
    let nowhere = path("no/such/folder/report.json");
    let run = two.cli(["download", "A", "--report", &nowhere]).await.expect(1);
    assert!(run.stderr.contains("cannot write the report"), "{}", run.stderr);
}
