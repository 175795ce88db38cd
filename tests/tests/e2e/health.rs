//! What probes are told: whether a daemon serves, and whether it is ready.

use std::{ffi::OsString, path::Path};

use drizzle_tests::{
    Cluster,
    process::{Output, Process},
    until,
};

/// Runs a health check as a container engine would: its exit code and its one line.
async fn healthcheck(program: &str, address: &str, ready: bool, logs: &Path) -> (i32, String) {
    let mut args: Vec<OsString> = vec!["healthcheck".into(), "--address".into(), address.into()];
    args.extend(ready.then(|| "--ready".into()));
    let mut run = Process::start_with("healthcheck", program, &args, logs, [Output::Kept; 2]);
    let code = run.ended().await;
    (code, run.stderr())
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
