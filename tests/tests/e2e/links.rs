//! Slow links, and peers that stand still for a while.

use std::{fs, time::Duration};

use drizzle_tests::{
    Place,
    content::random,
    host::{Host, Shape},
    process::Process,
};
use rustix::process::Signal;

const CHUNK: u32 = 256 << 10;

/// Hosts with a tracker, holders of a file and, last, a downloader behind a slow downlink.
struct SlowLink {
    place: Place,
    bytes: Vec<u8>,
    downloader: Process,
    _others: Vec<Process>,
    hosts: Vec<Host>,
    _switch: Host,
}

impl SlowLink {
    /// For a file of so many bytes. `None` if this machine cannot have it.
    async fn start(rate: &str, holders: usize, size: u32, chunk_size: u32) -> Option<Self> {
        let (switch, hosts) = Host::numbered(holders + 1)?;
        if !switch.shape(&format!("port{holders}"), Shape::slow(rate)) {
            return None;
        }
        let (place, bytes) = (Place::new(), random(1, size as usize));
        // The chunk size of `share` counts, and not the one of a look at the folder.
        let tracker = ["--tracker", "10.9.0.1:7400", "--no-watch"];
        let mut others = vec![place.tracker(&hosts[0], &[]).await];
        for (n, host) in hosts[..holders].iter().enumerate() {
            others.push(place.peer(host, &n.to_string(), &tracker).await);
            let path = place.path(&format!("{n}/a"));
            fs::write(&path, &bytes).unwrap();
            place.cli(host, &["share", &path, "--chunk-size", &chunk_size.to_string()]).await.expect(0);
        }
        let downloader = place.peer(&hosts[holders], "downloader", &tracker).await;
        Some(Self { place, bytes, downloader, _others: others, hosts, _switch: switch })
    }

    fn downlink(&self) -> &Host {
        self.hosts.last().expect("the downloader has a host")
    }

    fn assert_downloaded(&self) {
        assert!(fs::read(self.place.path("downloader/a")).unwrap() == self.bytes);
    }

    /// Downloads the file, and asserts that nine tenths of what comes meanwhile are kept and nobody is blamed. What comes
    /// is counted on the link itself: bytes of given up streams that the daemon never reads count, too.
    async fn assert_little_is_lost(&self) {
        let before = self.downlink().came_in("eth0");
        let run = self.place.cli(self.downlink(), &["download", "a", "--timeout", "20s"]).await.expect(0);
        let came = self.downlink().came_in("eth0") - before;
        self.assert_downloaded();
        let kept = self.bytes.len() as u64;
        assert!(kept * 10 >= came * 9, "{came} bytes came for {kept}: {:?}", run.steps());
        assert_eq!(run.blamed(), []);
    }
}

#[tokio::test]
async fn of_what_comes_over_a_link_of_1_mbit_at_least_nine_tenths_are_kept() {
    let Some(link) = SlowLink::start("1mbit", 2, 12 * CHUNK, CHUNK).await else { return };
    link.assert_little_is_lost().await;
}

#[tokio::test]
async fn of_small_chunks_over_a_link_of_1_mbit_at_least_nine_tenths_are_kept() {
    const SMALL: u32 = CHUNK / 4;
    let Some(link) = SlowLink::start("1mbit", 2, 48 * SMALL, SMALL).await else { return };
    link.assert_little_is_lost().await;
}

#[tokio::test]
async fn of_what_comes_over_a_link_of_64_kib_per_second_at_least_nine_tenths_are_kept() {
    let Some(link) = SlowLink::start("512kibit", 2, 8 * CHUNK, CHUNK).await else { return };
    link.assert_little_is_lost().await;
}

#[tokio::test]
async fn of_chunks_of_16_mib_from_two_holders_over_a_link_of_4_mbit_at_least_nine_tenths_are_kept() {
    const LARGE: u32 = 16 << 20;
    let Some(link) = SlowLink::start("4mbit", 2, LARGE + LARGE / 4, LARGE).await else { return };
    link.assert_little_is_lost().await;
}

#[tokio::test]
async fn of_what_twelve_holders_send_over_a_link_of_2_mbit_at_least_nine_tenths_are_kept() {
    let Some(link) = SlowLink::start("2mbit", 12, 16 * CHUNK, CHUNK).await else { return };
    link.assert_little_is_lost().await;
}

#[tokio::test]
async fn a_downloader_that_was_frozen_for_longer_than_its_timeout_goes_on_and_blames_nobody() {
    let Some(mut link) = SlowLink::start("8mbit", 2, 24 * CHUNK, CHUNK).await else { return };
    let timeout = Duration::from_secs(5);
    let args = ["download", "a", "--timeout", &format!("{}s", timeout.as_secs())];
    let mut run = link.downlink().cli(&args, &link.place.logs());
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
