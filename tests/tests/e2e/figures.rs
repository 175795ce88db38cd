//! What a download says of itself: how near it came to its bound, and what limited it.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use drizzle_proto::{
    ChunkSet,
    wire::{LimitedBy, StatusResponse},
};
use drizzle_tests::{Cluster, Content, FakePeer, Manner, Peer, binaries, content::random, until};
use tokio::task::JoinHandle;
use tonic::Code;

/// What the JSON names.
const CAUSES: [&str; 10] =
    ["tracker", "no holder", "source", "peers", "downlink", "link", "disk", "memory", "shortage", "own limit"];

fn limited_by(status: &StatusResponse) -> Option<LimitedBy> {
    let progress = status.transfers.first()?.progress.as_ref()?;
    Some(progress.limited_by())
}

async fn until_limited_by(peer: &Peer, cause: LimitedBy) {
    let what = format!("a download limited by {cause:?}");
    until(&what, async || (limited_by(&peer.status().await) == Some(cause)).then_some(())).await;
}

/// A `peer-cli` that prints for people.
fn for_people(peer: &Peer, args: &[&str]) -> JoinHandle<Output> {
    let (cli, control): (PathBuf, String) = (binaries::path("peer-cli"), format!("http://{}", peer.control()));
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    tokio::task::spawn_blocking(move || {
        let mut command = Command::new(cli);
        command.args(args).env("DRIZZLE_PEER", control);
        command.output().expect("peer-cli runs")
    })
}

/// The only source sends nothing for a while: there is no other cause.
#[tokio::test]
async fn a_download_tells_what_limits_it_and_in_the_end_how_near_it_came_to_its_bound() {
    let cluster = Cluster::start().await;
    let (one, gate) = cluster.gated_peer("one").await;
    let a = Content::new("A", random(1, 4 << 20), 64 << 10);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    let mut json = two.start_cli(["download", "A"]);
    json.until("the start", |events| !events.is_empty()).await;
    let lines = for_people(&two, &["download", "A"]);
    until_limited_by(&two, LimitedBy::Source).await;
    let status = two.cli(["status"]).await.expect(0);
    assert_eq!(status.events[0]["transfers"][0]["limited_by"], "source");
    json.until("word of it", |events| events.iter().any(|event| event["limited_by"] == "source")).await;
    let status = for_people(&two, &["status"]).await.unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("          limited by the source's uplink\n"), "{status}");
    gate.open();

    let run = json.ended().await.expect(0);
    let done = run.last("done");
    let (bound, ratio) = (done["bound"].as_f64().expect("a bound"), done["ratio"].as_f64().expect("a ratio"));
    assert!(ratio >= 1.0 && bound > 0.0 && bound <= done["seconds"].as_f64().unwrap(), "{done}");
    for term in ["downlink", "source", "swarm"] {
        assert!(done["bounds"][term].as_f64().is_some_and(|term| term <= bound), "{term}: {done}");
    }
    assert!(CAUSES.contains(&done["limited_by"].as_str().unwrap()), "{done}");
    assert!((1..=100).contains(&done["limited_percent"].as_u64().unwrap()), "{done}");

    let lines = lines.await.unwrap();
    let lines = String::from_utf8(lines.stdout).unwrap();
    let took = lines.lines().find(|line| line.starts_with("  took ")).unwrap_or_else(|| panic!("{lines}"));
    assert!(took.contains(" times the bound of ") && took.contains("; limited by "), "{took}");
    let ratio = took.split_once(", ").and_then(|(_, rest)| rest.split_once(' ')).map(|(ratio, _)| ratio);
    assert!(ratio.is_some_and(|ratio| ratio.parse::<f64>().unwrap() >= 1.0), "{took}");
}

#[tokio::test]
async fn a_source_whose_slots_are_taken_is_what_limits_a_download() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let _busy = FakePeer::start(&cluster.tracker.url(), &a, Manner::Says(Code::ResourceExhausted)).await;
    let two = cluster.peer("two").await;
    let _download = two.start_cli(["download", "A", "--timeout", "1000s"]);
    until_limited_by(&two, LimitedBy::Source).await;
}

#[tokio::test]
async fn chunks_that_no_peer_holds_are_what_limits_a_download() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 32);
    let count = a.manifest.layout().chunk_count();
    let half = ChunkSet::from_ranges(count, &"0-15".parse().unwrap()).unwrap();
    let _half = FakePeer::holding(&cluster.tracker.url(), &a, half, Manner::Honest).await;
    let two = cluster.peer("two").await;
    let _download = two.start_cli(["download", "A", "--timeout", "1000s"]);
    until_limited_by(&two, LimitedBy::NoHolder).await;
}

#[tokio::test]
async fn what_was_here_already_has_no_bound() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let a = Content::small_chunks("A", 1, 4);
    one.share(&a).await;
    let two = cluster.peer("two").await;
    two.download("A").await.expect(0);
    let again = two.download("A").await.expect(0);
    let done = again.last("done");
    assert!(["bound", "ratio", "limited_by"].iter().all(|field| done.get(field).is_none()), "{done}");
    let lines = for_people(&two, &["download", "A"]).await.unwrap();
    let lines = String::from_utf8(lines.stdout).unwrap();
    assert!(lines.contains("0 B fetched") && !lines.contains("took"), "{lines}");
}
