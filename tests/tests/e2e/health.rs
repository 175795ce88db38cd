//! What probes are told: whether a daemon serves, and whether it is ready.

use std::path::Path;

use drizzle_proto::{
    Address,
    net::{tls::Meant, transport::Transport},
};
use drizzle_tests::{
    Cluster,
    cluster::Options,
    dead_disk::DeadDisk,
    process::{Ended, Process},
    until,
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Runs a health check as a container engine would: its exit code and its one line.
async fn healthcheck(program: &str, address: &str, ready: bool, logs: &Path) -> (i32, String) {
    let args = [&["healthcheck", "--address", address][..], if ready { &["--ready"] } else { &[] }].concat();
    let Ended { code, stderr, .. } = Process::ran(program, &args, logs).await;
    (code, stderr)
}

#[tokio::test]
async fn a_peer_is_ready_while_it_holds_a_lease_and_serves_all_the_time() {
    let mut cluster = Cluster::with_tracker_args(["--lease", "1s"]).await;
    let logs = cluster.folder().join("logs");
    let mut peer = cluster.peer("peer").await;
    let (control, other) = (peer.control().to_owned(), peer.address().to_string());
    // Both of its listeners tell: the control service for people, the other one for probes from elsewhere.
    for address in [&control, &other] {
        until("a lease", async || (healthcheck("peer-svc", address, true, &logs).await.0 == 0).then_some(())).await;
    }
    cluster.tracker.daemon.kill();
    for address in [&control, &other] {
        let said = until("no lease", async || {
            let (code, said) = healthcheck("peer-svc", address, true, &logs).await;
            (code != 0).then_some(said)
        });
        assert_eq!(said.await, format!("peer-svc: {address}: serves, but is not ready; its log says why\n"));
        assert_eq!(
            healthcheck("peer-svc", address, false, &logs).await,
            (0, String::new()),
            "to start it again is no help"
        );
    }
    cluster.tracker.daemon.restart().await;
    until("a lease again", async || (healthcheck("peer-svc", &control, true, &logs).await.0 == 0).then_some(())).await;
    assert_eq!(peer.daemon.terminate().await, 0);
}

#[tokio::test]
async fn a_tracker_tells_that_it_is_ready() {
    let cluster = Cluster::start().await;
    let logs = cluster.folder().join("logs");
    let address = cluster.tracker.address().to_string();
    for ready in [false, true] {
        assert_eq!(healthcheck("tracker-svc", &address, ready, &logs).await, (0, String::new()));
    }
}

#[tokio::test]
async fn a_check_of_a_daemon_that_is_not_there_says_why_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["peer-svc", "tracker-svc"] {
        for ready in [false, true] {
            let (code, said) = healthcheck(program, "127.0.0.1:1", ready, folder.path()).await;
            assert_eq!(code, 1);
            assert_eq!(said, format!("{program}: 127.0.0.1:1: not reached: Connection refused (os error 111)\n"));
        }
    }
}

/// What the health service at this address says of a service.
async fn status(address: &str, service: &str) -> ServingStatus {
    let address = Address::new(address).unwrap();
    let mut health = HealthClient::new(Transport::plaintext().connect(&address, Meant::AnyPeer).await.unwrap());
    health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn the_peer_service_is_unhealthy_while_a_disk_of_shared_files_hangs_and_the_daemon_stays_alive_and_ready() {
    let cluster = Cluster::start().await;
    let logs = cluster.folder().join("logs");
    let options = Options::default().file("good", b"another disk").file("dead/a", b"on it");
    let (one, two) = (cluster.peer_with("one", options).await, cluster.peer("two").await);
    cluster.until_held("dead/a", 1).await;
    let (control, other) = (one.control().to_owned(), one.address().to_string());
    // Both of its listeners tell.
    let both = async |service: &str| [status(&control, service).await, status(&other, service).await];
    const PEER: &str = "drizzle.v1.Peer";
    assert_eq!(both(PEER).await, [ServingStatus::Serving; 2]);

    let Some(disk) = DeadDisk::mount(&one.dir.join("dead")) else { return };
    let download = two.start_cli(["download", "dead/a", "--timeout", "1000s"]);
    until("the disk is missed", async || (both(PEER).await == [ServingStatus::NotServing; 2]).then_some(())).await;
    for ready in [false, true] {
        let passes = (0, String::new());
        assert_eq!(healthcheck("peer-svc", &control, ready, &logs).await, passes, "to start it again is no help");
    }
    assert_eq!(both("drizzle.v1.Control").await, [ServingStatus::Serving; 2]);
    two.download("good").await;

    disk.end();
    until("the disk is back", async || (both(PEER).await == [ServingStatus::Serving; 2]).then_some(())).await;
    download.ended().await.expect(0);
    let log = one.daemon.process.stderr();
    assert_eq!(log.matches("of shared files does not answer").count(), 1, "said once: {log}");
}
