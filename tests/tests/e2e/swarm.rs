//! A flash crowd over links that are the limit: what the source sends decides when the last peer is done.

use std::fs;

use drizzle_tests::{
    Place,
    content::random,
    host::{Host, Shape},
};

const PEERS: usize = 4;
const SIZE: usize = 8 << 20;

/// One copy is 1.05 times the file on the wire; what a source sends twice, all wait for.
#[tokio::test]
async fn a_source_sends_little_more_than_one_copy_to_peers_that_begin_together() {
    let Some((switch, hosts)) = Host::numbered(PEERS + 2) else { return };
    // All but the tracker's.
    for (n, host) in hosts.iter().enumerate().skip(1) {
        let link = Shape::fast("20mbit");
        if !host.shape("eth0", link) || !switch.shape(&format!("port{n}"), link) {
            return;
        }
    }
    let (place, bytes) = (Place::new(), random(1, SIZE));
    let _tracker = place.tracker(&hosts[0], &[]).await;
    let mut peers = Vec::new();
    for (n, host) in hosts.iter().enumerate().skip(1) {
        peers.push(place.peer(host, &n.to_string(), &["--tracker", "10.9.0.1:7400", "--no-watch"]).await);
    }
    let (source, path) = (&hosts[1], place.path("1/a"));
    fs::write(&path, &bytes).unwrap();
    place.cli(source, &["share", &path, "--chunk-size", "65536"]).await.expect(0);

    let before = source.sent("eth0");
    let downloads: Vec<_> = hosts[2..].iter().map(|host| host.cli(&["download", "a"], &place.logs())).collect();
    for download in downloads {
        download.ended().await.expect(0);
    }
    let sent = source.sent("eth0") - before;
    for n in 2..PEERS + 2 {
        assert!(fs::read(place.path(&format!("{n}/a"))).unwrap() == bytes);
    }
    assert!(sent * 2 < SIZE as u64 * 3, "{sent} bytes left the source for a file of {SIZE}");
}
