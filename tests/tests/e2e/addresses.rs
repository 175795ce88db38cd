//! Where peers are reached: both address families, addresses that change, and addresses that are wrong.

use std::{fs, path::Path};

use drizzle_proto::PeerId;
use drizzle_tests::{
    Cluster, Place, Run,
    cluster::Options,
    content::random,
    host::Host,
    process::{Ended, Process},
};

const NAMES: [&str; 2] = ["::1 tr", "127.0.0.1 tr"];

/// A tracker, a source with its options at their defaults, and a download; the address at which the source was asked.
async fn download_on(host: &Host, tracker: &[&str], source: &[&str]) -> String {
    let place = Place::new();
    let bytes = random(1, 300_000);
    fs::create_dir(place.path("one")).unwrap();
    fs::write(place.path("one/a"), &bytes).unwrap();
    let _tracker = place.tracker(host, tracker).await;
    let apart = ["--tracker", "tr:7400", "--control", "127.0.0.1:0"];
    let _one = place.peer(host, "one", &[&apart[..], source].concat()).await;
    let _two = place.peer(host, "two", &["--tracker", "tr:7400", "--listen", "[::]:0"]).await;
    let registered = drizzle_tests::until("the source has registered its file", async || {
        let locations = place.cli(host, &["locations", "a"]).await;
        (locations.code == 0 && locations.events.iter().any(|document| document.to_string().contains(":7401")))
            .then_some(())
    });
    registered.await;
    let run = place.cli(host, &["download", "a", "--timeout", "10s"]).await.expect(0);
    assert_eq!(fs::read(place.path("two/a")).unwrap(), bytes);
    run.sources().into_keys().next().unwrap()
}

#[tokio::test]
async fn a_tracker_with_addresses_of_both_families_is_fine_with_every_option_at_its_default() {
    let Some(host) = Host::new(&NAMES) else { return };
    let asked = download_on(&host, &[], &[]).await;
    assert!(["[::1]:7401", "127.0.0.1:7401"].contains(&&*asked), "{asked}");
}

#[tokio::test]
async fn a_peer_that_listens_on_ipv4_alone_tells_an_ipv4_address() {
    let Some(host) = Host::new(&NAMES) else { return };
    assert_eq!(download_on(&host, &[], &["--listen", "0.0.0.0:7401"]).await, "127.0.0.1:7401");
}

#[tokio::test]
async fn a_peer_tells_the_address_by_which_the_tracker_is_really_reached() {
    let Some(host) = Host::new(&NAMES) else { return };
    assert_eq!(download_on(&host, &["--listen", "0.0.0.0:7400"], &[]).await, "127.0.0.1:7401");
}

#[tokio::test]
async fn a_machine_without_ipv6_works_with_every_option_at_its_default() {
    let Some(host) = Host::new(&NAMES) else { return };
    host.sysctl("net.ipv6.conf.all.disable_ipv6=1");
    assert_eq!(download_on(&host, &[], &[]).await, "127.0.0.1:7401");
}

#[tokio::test]
async fn a_system_that_binds_ipv6_alone_by_default_still_gets_both_families() {
    let Some(host) = Host::new(&["127.0.0.1 tr"]) else { return };
    host.sysctl("net.ipv6.bindv6only=1");
    assert_eq!(download_on(&host, &[], &[]).await, "127.0.0.1:7401");
}

#[tokio::test]
async fn a_tracker_with_an_ipv6_address_alone_is_reached_and_told_an_ipv6_address() {
    let Some(host) = Host::new(&["::1 tr"]) else { return };
    assert_eq!(download_on(&host, &[], &[]).await, "[::1]:7401");
}

#[tokio::test]
async fn a_peer_that_can_tell_no_address_that_it_listens_on_says_what_to_set() {
    let Some(host) = Host::new(&["::1 tr"]) else { return };
    let place = Place::new();
    let _tracker = place.tracker(&host, &[]).await;
    let peer = place.peer(&host, "one", &["--tracker", "tr:7400", "--listen", "0.0.0.0:7401"]).await;
    drizzle_tests::until("the log says what to do", async || {
        let log = peer.stderr();
        let says = ["over IPv6 only", "--listen [::]:7401", "--advertise"].iter().all(|part| log.contains(part));
        says.then_some(())
    })
    .await;
}

#[tokio::test]
async fn health_checks_at_their_defaults_find_daemons_that_listen_on_every_address() {
    for without_ipv6 in [false, true] {
        let Some(host) = Host::new(&NAMES) else { return };
        if without_ipv6 {
            host.sysctl("net.ipv6.conf.all.disable_ipv6=1");
        }
        let place = Place::new();
        let _tracker = place.tracker(&host, &[]).await;
        let _peer = place.peer(&host, "one", &["--tracker", "tr:7400", "--control", "[::]:7402"]).await;
        for (program, args) in [
            ("tracker-svc", &["healthcheck"][..]),
            ("peer-svc", &["healthcheck"]),
            ("peer-svc", &["healthcheck", "--address", "[::]:7402"]),
        ] {
            let mut check = host.start(program, args, &place.logs());
            assert_eq!(check.ended().await, 0, "{}", check.stderr());
        }
    }
}

#[tokio::test]
async fn a_peer_whose_address_changes_is_found_at_the_new_one_within_a_renewal() {
    let addresses = ["10.77.0.1/24", "10.77.0.2/24", "10.77.0.3/24"];
    let Some((_switch, hosts)) = Host::network(&addresses, &[]) else { return };
    let place = Place::new();
    let bytes = random(1, 300_000);
    fs::create_dir(place.path("one")).unwrap();
    fs::write(place.path("one/a"), &bytes).unwrap();
    let _tracker = place.tracker(&hosts[0], &[]).await;
    let one = place.peer(&hosts[1], "one", &["--tracker", "10.77.0.1:7400"]).await;
    let _two = place.peer(&hosts[2], "two", &["--tracker", "10.77.0.1:7400"]).await;
    let held_at = async |address: &str| {
        drizzle_tests::until(&format!("the file is held at {address} alone"), async || {
            let holders = place.cli(&hosts[2], &["locations", "a"]).await;
            let told: String = holders.events.iter().map(ToString::to_string).collect();
            (told.contains(address) && told.matches(":7401").count() == 1).then_some(())
        })
        .await;
    };
    held_at("10.77.0.2:7401").await;
    hosts[1].ip("addr del 10.77.0.2/24 dev eth0");
    hosts[1].ip("addr add 10.77.0.9/24 dev eth0");
    held_at("10.77.0.9:7401").await;
    let run = place.cli(&hosts[2], &["download", "a", "--timeout", "10s"]).await.expect(0);
    assert_eq!(run.sources().into_keys().collect::<Vec<_>>(), ["10.77.0.9:7401"]);
    assert_eq!(fs::read(place.path("two/a")).unwrap(), bytes);
    assert_eq!(one.stderr().matches("address changed").count(), 1, "one clear line: {}", one.stderr());
    let status = place.cli(&hosts[1], &["status"]).await.expect(0);
    assert_eq!(status.events[0]["advertise"], "10.77.0.9:7401");
}

/// A copy of a stopped peer's whole folder, state and all, as a machine image has it.
fn copy_folder(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn a_peer_started_from_a_copied_state_folder_takes_a_new_id_and_leaves_the_original_alone() {
    let cluster = Cluster::with_tracker_args(["--lease", "3s"]).await;
    let mut original = cluster.peer_with("original", Options::default().file("a", b"content")).await;
    cluster.until_held("a", 1).await;
    let id = original.id();
    assert_eq!(original.daemon.terminate().await, 0);
    let copied = cluster.folder().join("copy");
    copy_folder(&original.dir, &copied);
    fs::write(original.path("b"), "of the original alone").unwrap();
    original.daemon.restart().await;
    cluster.until_held("b", 1).await;

    let mut copy = cluster.peer_with("copy", Options::default().dir(copied)).await;
    assert_eq!(copy.id(), id, "it cannot know better at first");
    // Begun while it takes the original for itself, the download finds the original once it has an id of its own.
    let run = copy.download("b").await;
    assert_eq!(run.sources().into_keys().collect::<Vec<_>>(), [original.address().to_string()]);
    cluster.until_held("a", 2).await;
    let status = copy.status().await;
    let new: PeerId = status.peer_id.parse().unwrap();
    assert_ne!(new, id);
    assert!(status.tracker_connected);
    let warning = status.warnings.join("\n");
    assert!(warning.contains("copy of the state folder") && warning.contains(&id.to_string()), "{warning}");
    let shown = copy.cli(["status"]).await.expect(0);
    assert!(shown.events[0]["warnings"].to_string().contains("copy of the state folder"), "{}", shown.events[0]);
    let log = copy.daemon.process.stderr();
    assert!(log.contains("ERROR") && log.contains("takes a new id"), "{log}");

    let log = original.daemon.process.stderr();
    assert!(!log.contains("lease has ended") && !log.contains("WARN"), "the original is left alone: {log}");
    assert_eq!(original.status().await.warnings, [""; 0]);

    copy.daemon.restart().await;
    assert_eq!(copy.id(), new, "it keeps the new id");
    cluster.until_held("a", 2).await;
    copy.cli(["unshare", "a"]).await.expect(0);
    assert_eq!(
        cluster.holders("a").await.into_keys().collect::<Vec<_>>(),
        [id],
        "the name is not the copy's to withdraw"
    );
}

#[tokio::test]
async fn a_peer_that_is_killed_and_started_at_another_address_keeps_its_id() {
    let cluster = Cluster::with_tracker_args(["--lease", "2s"]).await;
    let mut peer = cluster.peer_with("one", Options::default().file("a", b"content")).await;
    cluster.until_held("a", 1).await;
    let (id, before) = (peer.id(), peer.address());
    peer.daemon.kill();
    let peer = cluster.peer_with("again", Options::default().dir(&peer.dir)).await;
    assert_ne!(peer.address(), before);
    let found = drizzle_tests::until("it holds its file at the new address", async || {
        cluster.holders("a").await.remove(&id).filter(|holder| *holder.peer.address() == peer.address().into())
    });
    found.await;
    let status = peer.status().await;
    assert_eq!((status.peer_id.parse(), status.warnings), (Ok(id), vec![]));
}

#[tokio::test]
async fn an_address_that_no_peer_can_reach_is_refused_at_start() {
    let place = Place::new();
    let dir = place.path("one");
    for address in ["0.0.0.0:7401", "[::]:7401", "no-such-host.invalid:7401", "10.0.0.1:0", "10.0.0.1"] {
        let ports = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
        let args = [&["--tracker", "127.0.0.1:1", "--dir", &dir, "--advertise", address][..], &ports].concat();
        let Ended { code, stdout, stderr: error } = Process::ran("peer-svc", &args, &place.logs()).await;
        assert_ne!(code, 0);
        assert_eq!(stdout, "", "it is never ready");
        assert!(error.contains("--advertise") && error.contains(address) && error.contains("HOST:PORT"), "{error}");
    }
}

/// The texts of the chunk events of a run that failed.
fn reasons(run: &Run) -> Vec<&str> {
    let failed = run.events.iter().filter(|event| event["event"] == "chunk" && event["step"] == "failed");
    failed.map(|event| event["reason"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_holder_that_tells_the_downloaders_own_address_is_told_apart_and_both_are_warned() {
    let cluster = Cluster::with_tracker_args(["--lease", "3s"]).await;
    let downloader = cluster.peer("downloader").await;
    let address = downloader.address().to_string();
    let options = Options::default().file("a", b"content").args(["--advertise", &address]);
    let source = cluster.peer_with("source", options).await;
    cluster.until_held("a", 1).await;

    let run = downloader.cli(["download", "a", "--timeout", "2s"]).await.expect(7);
    let reasons = reasons(&run);
    assert!(!reasons.is_empty());
    for reason in reasons {
        assert!(reason.contains("my own address: set --advertise"), "{reason}");
        assert!(reason.contains(&source.id().to_string()), "{reason}");
    }
    let blamed = run.blamed();
    assert_eq!((blamed.len(), &blamed[0].0), (1, &address));
    assert!(blamed[0].1.contains("own address; set --advertise"), "{}", blamed[0].1);

    for (peer, other) in [(&downloader, &source), (&source, &downloader)] {
        drizzle_tests::until("the status warns of the other peer", async || {
            let warnings = peer.status().await.warnings.join("\n");
            (warnings.contains(&other.id().to_string()) && warnings.contains("--advertise")).then_some(())
        })
        .await;
        assert_eq!(peer.daemon.process.stderr().matches("the tracker warns").count(), 1, "once");
    }
    assert!(cluster.tracker.daemon.process.stderr().contains("tells the same address"));

    drop(source);
    drizzle_tests::until("the warning ends with its reason", async || {
        downloader.status().await.warnings.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_holder_at_whose_address_another_peer_answers_is_told_apart_from_one_that_lacks_the_chunk() {
    let cluster = Cluster::start().await;
    let other = cluster.peer("other").await;
    let address = other.address().to_string();
    let options = Options::default().file("a", b"content").args(["--advertise", &address]);
    let source = cluster.peer_with("source", options).await;
    cluster.until_held("a", 1).await;
    let downloader = cluster.peer("downloader").await;
    let run = downloader.cli(["download", "a", "--timeout", "2s"]).await.expect(7);
    let reasons = reasons(&run);
    assert!(!reasons.is_empty());
    let expected = format!("peer {} answers at {address}, and not peer {}", other.id(), source.id());
    assert!(reasons.iter().all(|reason| reason.contains(&expected)), "{reasons:?}");
    assert!(run.blamed()[0].1.contains("another peer answers"), "{:?}", run.blamed());

    // The one that answers has the content as well: it is asked under its own name.
    let copy = other.path("a");
    fs::write(&copy, "content").unwrap();
    other.cli(["share", copy.to_str().unwrap()]).await.expect(0);
    downloader.download("a").await;
}
