//! Slow links, and peers that stand still for a while.

use std::{fs, time::Duration};

use drizzle_tests::{Place, content::random, host::Host, process::Process};
use rustix::process::Signal;

const CHUNK: u32 = 256 << 10;

/// Hosts with a tracker, two holders of a file and a downloader behind a slow downlink.
struct SlowLink {
    place: Place,
    bytes: Vec<u8>,
    downloader: Process,
    _others: Vec<Process>,
    hosts: Vec<Host>,
    _switch: Host,
}

impl SlowLink {
    /// `None` if this machine cannot have it.
    async fn start(rate: &str, chunks: u32) -> Option<Self> {
        let addresses = ["10.9.0.1/24", "10.9.0.2/24", "10.9.0.3/24"];
        let (switch, hosts) = Host::network(&addresses, &["127.0.0.1 localhost"])?;
        if !switch.slow_down("port2", rate) {
            return None;
        }
        let (place, bytes) = (Place::new(), random(1, (chunks * CHUNK) as usize));
        let tracker = ["--tracker", "10.9.0.1:7400"];
        let mut others = vec![place.tracker(&hosts[0], &[]).await];
        for (host, name) in hosts.iter().zip(["one", "two"]) {
            others.push(place.peer(host, name, &tracker).await);
            let path = place.path(&format!("{name}/a"));
            fs::write(&path, &bytes).unwrap();
            place.cli(host, &["share", &path, "--chunk-size", &CHUNK.to_string()]).await.expect(0);
        }
        let downloader = place.peer(&hosts[2], "three", &tracker).await;
        Some(Self { place, bytes, downloader, _others: others, hosts, _switch: switch })
    }

    fn assert_downloaded(&self) {
        assert!(fs::read(self.place.path("three/a")).unwrap() == self.bytes);
    }
}

#[tokio::test]
async fn of_what_comes_over_a_link_of_1_mbit_at_least_nine_tenths_are_kept() {
    let Some(link) = SlowLink::start("1mbit", 8).await else { return };
    let downlink = &link.hosts[2];
    let before = downlink.came_in("eth0");
    let run = link.place.cli(downlink, &["download", "a", "--timeout", "20s"]).await.expect(0);
    let came = downlink.came_in("eth0") - before;
    link.assert_downloaded();
    let kept = link.bytes.len() as u64;
    assert!(kept * 10 >= came * 9, "{came} bytes came for {kept}");
    assert_eq!(run.blamed(), []);
}

#[tokio::test]
async fn a_downloader_that_was_frozen_for_longer_than_its_timeout_goes_on_and_blames_nobody() {
    let Some(mut link) = SlowLink::start("8mbit", 24).await else { return };
    let timeout = Duration::from_secs(5);
    let args = ["download", "a", "--timeout", &format!("{}s", timeout.as_secs())];
    let mut run = link.hosts[2].cli(&args, &link.place.logs());
    run.until_stored(2).await;
    link.downloader.signal(Signal::STOP);
    // What is tested is that time passes.
    tokio::time::sleep(2 * timeout).await;
    assert!(run.count("stored") < 24, "it was frozen in the middle");
    link.downloader.signal(Signal::CONT);
    let run = run.ended().await.expect(0);
    link.assert_downloaded();
    assert_eq!(run.blamed(), []);
}
