//! Limits of the rates and priorities: a limit holds, blames nobody, and can be changed in the middle; an urgent download
//! goes first. Only lower bounds of times are asserted: no machine is too slow for those.

use std::time::{Duration, Instant};

use drizzle_engine::rate::burst;
use drizzle_proto::{
    RateLimit,
    wire::{LimitsRequest, Priority, Transfer},
};
use drizzle_tests::{
    Cluster, Content, Peer,
    cluster::Options,
    content::{SMALL_CHUNK, random},
    until,
};

const MIB: usize = 1 << 20;

/// A source and a peer with these options.
async fn pair(source: &[&str], peer: &[&str]) -> (Cluster, Peer, Peer) {
    let cluster = Cluster::start().await;
    let source = cluster.peer_with("source", Options::default().args(source)).await;
    let peer = cluster.peer_with("peer", Options::default().args(peer)).await;
    (cluster, source, peer)
}

/// The least time that so many bytes take under a limit.
fn least(bytes: usize, limit: &str) -> Duration {
    let limit: RateLimit = limit.parse().expect("a rate");
    let rate = limit.bytes_per_second().expect("a limit");
    Duration::from_secs_f64((bytes as f64 - burst(limit) as f64) / rate as f64)
}

#[tokio::test]
async fn no_more_is_sent_than_the_limit_says_and_the_source_is_not_blamed_for_it() {
    const LIMIT: &str = "256KiB/s";
    let (_cluster, source, peer) = pair(&["--up", LIMIT], &[]).await;
    let a = Content::new("A", random(1, MIB), 64 << 10);
    source.share(&a).await;
    let begun = Instant::now();
    let run = peer.download("A").await;
    assert!(begun.elapsed() >= least(MIB, LIMIT), "{:?}", begun.elapsed());
    a.assert_at(&peer.path("A"));
    assert_eq!(run.blamed(), []);
    let status = source.cli(["status"]).await.expect(0);
    assert_eq!((&status.events[0]["up_limit"], status.events[0]["down_limit"].as_u64()), (&(256 << 10).into(), None));
}

#[tokio::test]
async fn no_more_is_taken_than_the_limit_says_over_all_downloads_and_no_holder_is_blamed_for_it() {
    const LIMIT: &str = "2mbit";
    let (_cluster, source, peer) = pair(&[], &["--down", LIMIT]).await;
    // Of one file the chunks fit into the buffers of a connection many times.
    let (a, b) = (Content::small_chunks("A", 1, 32), Content::new("B", random(2, MIB / 2), 256 << 10));
    source.share(&a).await;
    source.share(&b).await;
    let begun = Instant::now();
    let [one, other] = ["A", "B"].map(|name| peer.start_cli(["download", name, "--timeout", "3s"]));
    for run in [one, other] {
        assert_eq!(run.ended().await.expect(0).blamed(), []);
    }
    assert!(begun.elapsed() >= least(MIB, LIMIT), "{:?}", begun.elapsed());
    a.assert_at(&peer.path("A"));
    b.assert_at(&peer.path("B"));
}

#[tokio::test]
async fn a_limit_that_is_lifted_in_the_middle_lets_a_download_end_that_would_take_for_ever() {
    for end in ["source", "peer"] {
        let (_cluster, source, peer) = pair(&[], &[]).await;
        let a = Content::small_chunks("A", 1, 8 * MIB / SMALL_CHUNK as usize);
        source.share(&a).await;
        let (limited, way) = if end == "source" { (&source, "--up") } else { (&peer, "--down") };
        let set = limited.cli(["limit", way, "16KiB/s"]).await.expect(0);
        let key = if end == "source" { "up_limit" } else { "down_limit" };
        assert_eq!(set.events[0][key], 16 << 10, "{:?}", set.events);
        let mut download = peer.start_cli(["download", "A"]);
        download.until_stored(1).await;
        let shown = limited.cli(["limit"]).await.expect(0);
        assert_eq!(shown.events[0][key], 16 << 10);
        assert!(download.count("stored") < 512, "it takes over 8 minutes");
        limited.cli(["limit", way, "unlimited"]).await.expect(0);
        assert_eq!(download.ended().await.expect(0).blamed(), []);
        a.assert_at(&peer.path("A"));
    }
}

#[tokio::test]
async fn under_a_low_limit_three_peers_take_turns_at_few_slots_and_blame_nobody() {
    // A chunk takes 2 s at the full rate.
    let (cluster, source, one) = pair(&["--up", "256KiB/s"], &[]).await;
    let peers = [one, cluster.peer("two").await, cluster.peer("three").await];
    let a = Content::new("A", random(1, MIB), 512 << 10);
    source.share(&a).await;
    let runs: Vec<_> = peers.iter().map(|peer| peer.start_cli(["download", "A"])).collect();
    for run in runs {
        assert_eq!(run.ended().await.expect(0).blamed(), []);
    }
    peers.iter().for_each(|peer| a.assert_at(&peer.path("A")));
}

#[tokio::test]
async fn a_restart_brings_back_the_limits_of_the_options() {
    let (_cluster, _source, mut peer) = pair(&[], &["--down", "64KiB/s"]).await;
    peer.cli(["limit", "--up", "1MB/s", "--down", "2MB/s"]).await.expect(0);
    let status = peer.status().await;
    assert_eq!((status.up_limit, status.down_limit), (Some(1_000_000), Some(2_000_000)));
    peer.restart().await;
    let status = peer.status().await;
    assert_eq!((status.up_limit, status.down_limit), (None, Some(64 << 10)));
}

#[tokio::test]
async fn a_rate_that_is_none_is_refused_with_a_text_that_helps() {
    let (_cluster, _source, peer) = pair(&[], &[]).await;
    for (rate, help) in [
        ("20mb", "write Mbit for bits, or MB/s for bytes"),
        ("0", "use unlimited for no limit"),
        ("1kB/s", "the least rate is 16KiB/s"),
        ("fast", "expected one such as 20MB/s"),
    ] {
        let run = peer.cli(["limit", "--up", rate]).await.expect(2);
        assert!(run.stderr.contains(help), "{}", run.stderr);
    }
    let request = LimitsRequest { up: Some(1 << 20), down: Some(1) };
    let refused = peer.wire().limits(request).await.expect_err("a client that does not check");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert_eq!(peer.status().await.up_limit, None, "nothing is changed");
}

/// The priority of a download that runs.
async fn priority(peer: &Peer, name: &str) -> Option<Priority> {
    let status = peer.status().await;
    let named = status.transfers.iter().find(|transfer| transfer.file.as_ref().is_some_and(|file| file.name == name));
    named.map(Transfer::priority)
}

/// A low download is in the middle of its file when a high one of as many bytes begins: the high one ends first.
async fn the_high_one_ends_first(source: &[&str], peer: &[&str]) {
    let (_cluster, source, peer) = pair(source, peer).await;
    let (low, high) = (Content::small_chunks("low", 1, 128), Content::small_chunks("high", 2, 128));
    source.share(&low).await;
    source.share(&high).await;
    let mut slow = peer.start_cli(["download", "low", "--priority", "low"]);
    slow.until_stored(4).await;
    let quick = peer.start_cli(["download", "high", "--priority", "high"]);
    until("both downloads", async || (peer.status().await.transfers.len() == 2).then_some(())).await;
    assert_eq!(priority(&peer, "low").await, Some(Priority::Low));
    quick.ended().await.expect(0);
    assert_eq!(priority(&peer, "low").await, Some(Priority::Low), "the low one is not done");
    source.cli(["limit", "--up", "unlimited"]).await.expect(0);
    peer.cli(["limit", "--down", "unlimited"]).await.expect(0);
    assert_eq!(slow.ended().await.expect(0).blamed(), []);
    low.assert_at(&peer.path("low"));
    high.assert_at(&peer.path("high"));
}

#[tokio::test]
async fn under_a_limit_the_bytes_of_an_urgent_download_go_first() {
    the_high_one_ends_first(&[], &["--down", "1MiB/s"]).await;
}

#[tokio::test]
async fn without_a_limit_a_low_download_makes_room_for_an_urgent_one() {
    // Only the source knows that it is slow.
    the_high_one_ends_first(&["--up", "1MiB/s"], &[]).await;
}

#[tokio::test]
async fn a_second_caller_raises_the_priority_and_none_lowers_it() {
    let (_cluster, source, peer) = pair(&[], &["--down", "16KiB/s"]).await;
    let a = Content::small_chunks("A", 1, 8 * MIB / SMALL_CHUNK as usize);
    source.share(&a).await;
    let mut callers = Vec::new();
    let steps = [("low", Priority::Low), ("high", Priority::High), ("normal", Priority::High)];
    for (asked, expected) in steps {
        let mut caller = peer.start_cli(["download", "A", "--priority", asked]);
        caller.until("what a caller hears first", |events| !events.is_empty()).await;
        assert_eq!(priority(&peer, "A").await, Some(expected), "{asked}");
        callers.push(caller);
    }
    let status = peer.cli(["status"]).await.expect(0);
    assert_eq!(status.events[0]["transfers"][0]["priority"], "high");
    peer.cli(["limit", "--down", "unlimited"]).await.expect(0);
    for caller in callers {
        caller.ended().await.expect(0);
    }
}

#[tokio::test]
async fn a_download_that_goes_on_after_a_restart_is_as_urgent_as_it_was() {
    let (_cluster, source, mut peer) = pair(&[], &["--down", "16KiB/s"]).await;
    let files = [("A", "low", Priority::Low), ("B", "high", Priority::High), ("C", "normal", Priority::High)];
    let mut callers = Vec::new();
    for (n, (name, asked, _)) in (1..).zip(files) {
        source.share(&Content::small_chunks(name, n, 8 * MIB / SMALL_CHUNK as usize)).await;
        let mut caller = peer.start_cli(["download", name, "--priority", asked]);
        caller.until("the begin", |events| !events.is_empty()).await;
        callers.push(caller);
    }
    // It is raised while it runs.
    let mut other = peer.start_cli(["download", "C", "--priority", "high"]);
    other.until("the begin", |events| !events.is_empty()).await;
    assert_eq!(peer.daemon.terminate().await, 0);
    peer.restart().await;
    for (name, _, expected) in files {
        assert_eq!(until("it goes on", async || priority(&peer, name).await).await, expected, "{name}");
    }
}
