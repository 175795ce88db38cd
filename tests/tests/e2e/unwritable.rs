//! Logs and ready lines that cannot be written: a full disk behind a redirection, a pipe whose reader is gone or
//! sleeps.
//! Logging is best effort, so the daemons work as if it were there.

use std::{ffi::OsString, fs};

use drizzle_proto::{
    Address,
    net::{health, tls::Meant, transport::Transport},
};
use drizzle_tests::{
    Cluster, Content,
    cluster::Options,
    process::{Output, Process},
    until,
};

/// A peer whose file comes to the tracker and from there to a second one, all of them with that log.
async fn works_with_log(log: Output) {
    let mut cluster = Cluster::with_tracker::<&str>([], log).await;
    let a = Content::small_chunks("A", 1, 8);
    let options = Options::default().file("A", &a.bytes).log(log);
    let mut one = cluster.peer_with("one", options).await;
    cluster.until_held("A", 1).await;
    let mut two = cluster.peer_with("two", Options::default().log(log)).await;
    two.download("A").await;
    a.assert_at(&two.path("A"));
    assert_eq!(two.daemon.terminate().await, 0);
    // Tasks that live long live still: the tracker is missed, and found again.
    cluster.tracker.daemon.restart().await;
    cluster.until_held("A", 1).await;
    assert_eq!(one.daemon.terminate().await, 0);
    assert_eq!(cluster.tracker.daemon.terminate().await, 0);
}

#[tokio::test]
async fn daemons_work_with_a_log_on_a_full_disk() {
    works_with_log(Output::FullDisk).await;
}

#[tokio::test]
async fn daemons_work_with_a_log_whose_reader_left() {
    works_with_log(Output::NoReader).await;
}

#[tokio::test]
async fn daemons_work_with_a_log_whose_reader_sleeps() {
    works_with_log(Output::SleepingReader).await;
}

async fn serves_without_ready_line(stdout: Output) {
    let cluster = Cluster::start().await;
    let dir = cluster.folder().join("quiet");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("A"), b"a").unwrap();
    let args: [OsString; 8] = [
        "--tracker".into(),
        cluster.tracker.url().into(),
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--control".into(),
        "127.0.0.1:0".into(),
        "--dir".into(),
        dir.into(),
    ];
    let logs = cluster.folder().join("logs");
    let peer = Process::start_with("quiet", "peer-svc", &args, &logs, [stdout, Output::Kept]);
    cluster.until_held("A", 1).await;
    // What it shares may be registered before it is ready.
    let line = "cannot print the ready line to stdout; serving all the same: peer=127.0.0.1:";
    until("the line in its log", async || peer.stderr().contains(line).then_some(())).await;
}

#[tokio::test]
async fn a_peer_whose_ready_line_cannot_be_written_serves_all_the_same() {
    serves_without_ready_line(Output::FullDisk).await;
    serves_without_ready_line(Output::NoReader).await;
}

#[tokio::test]
async fn a_tracker_whose_ready_line_cannot_be_written_serves_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let args: [OsString; 4] = ["--listen".into(), "127.0.0.1:0".into(), "--data-dir".into(), data.join("data").into()];
    let tracker = Process::start_with("quiet", "tracker-svc", &args, data, [Output::FullDisk, Output::Kept]);
    let address = until("the address in its log", async || {
        let log = tracker.stderr();
        let rest = log.split_once("serving all the same: tracker=")?.1;
        rest.split_whitespace().next().and_then(|text| text.parse::<Address>().ok())
    })
    .await;
    health::check(&Transport::plaintext(), &address, Meant::Tracker).await.unwrap();
}

#[tokio::test]
async fn a_cli_whose_reader_or_terminal_left_ends_quietly() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    peer.share(&Content::small_chunks("A", 1, 4)).await;
    let logs = cluster.folder().join("logs");
    for args in
        [&["files"][..], &["status"], &["locations", "A"], &["completions", "bash"], &["--help"], &["download", "A"]]
    {
        let mut all: Vec<OsString> = vec!["--peer".into(), peer.control().into()];
        all.extend(args.iter().map(Into::into));
        let mut run = Process::start_with("cli", "peer-cli", &all, &logs, [Output::NoReader, Output::Kept]);
        assert_eq!(run.ended().await, 0, "{args:?}: {}", run.stderr());
        assert_eq!(run.stderr(), "", "{args:?}");
    }
    // What goes wrong is still told by the exit code.
    let mut run =
        Process::start_with("cli", "peer-cli", &["no-such-command".into()], &logs, [Output::Kept, Output::FullDisk]);
    assert_eq!(run.ended().await, 2);
    let args: Vec<OsString> = vec!["--peer".into(), peer.control().into(), "locations".into(), "nothing".into()];
    let mut run = Process::start_with("cli", "peer-cli", &args, &logs, [Output::Kept, Output::NoReader]);
    assert_eq!(run.ended().await, 3);
}
