//! Where peers are reached: both address families, addresses that change, and addresses that are wrong.

use std::{fs, path::PathBuf};

use drizzle_tests::{Run, content::random, host::Host, process::Process};
use tempfile::TempDir;

/// A folder for a test, with one for logs in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("drizzle-test-").tempdir().unwrap();
        fs::create_dir(folder.path().join("logs")).unwrap();
        Self(folder)
    }

    fn logs(&self) -> PathBuf {
        self.0.path().join("logs")
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A tracker with its options at their defaults, but for these.
    async fn tracker(&self, host: &Host, args: &[&str]) -> Process {
        let data = self.path("tracker");
        host.daemon("tracker-svc", &[&["--data-dir", &data], args].concat(), &self.logs()).await.0
    }

    /// A peer with its options at their defaults, but for these.
    async fn peer(&self, host: &Host, name: &str, args: &[&str]) -> Process {
        let dir = self.path(name);
        host.daemon("peer-svc", &[&["--dir", &dir], args].concat(), &self.logs()).await.0
    }

    async fn cli(&self, host: &Host, args: &[&str]) -> Run {
        host.cli(args, &self.logs()).ended().await
    }
}

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
