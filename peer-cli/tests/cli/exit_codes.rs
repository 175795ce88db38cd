//! Every exit code, through the real binary.

use crate::support::*;
use drizzle_proto::wire::{self, download_failed::Kind};
use rustix::process::Signal;
use tonic::{Code, Status};

#[test]
fn statuses_before_the_start() {
    for (code, exit) in [
        (Code::NotFound, 3),
        (Code::AlreadyExists, 6),
        (Code::DataLoss, 4),
        (Code::DeadlineExceeded, 7),
        (Code::Unavailable, 5),
        (Code::InvalidArgument, 2),
        (Code::PermissionDenied, 8),
        (Code::Internal, 1),
    ] {
        let refusal = Status::new(code, "because so");
        let daemon = Daemon::start(Script { download: Answer(Err(refusal)), ..Script::default() });
        let ran = daemon.run(&["download", "a"]);
        assert_eq!(ran.code, Some(exit), "{code:?}: {ran:?}");
        assert!(ran.stderr.contains("because so"), "{ran:?}");
        let ran = daemon.run(&["--json", "download", "a"]);
        assert_eq!(ran.code, Some(exit), "{code:?}: {ran:?}");
        let failed = r#"{"event":"failed","name":"a","reason":"because so","chunks":[],"blamed":[]}"#;
        assert_eq!(ran.stdout.trim_end(), failed);
    }
}

#[test]
fn failures_in_mid_download() {
    for (kind, exit) in [
        (Kind::Integrity, 4),
        (Kind::Timeout, 7),
        (Kind::Cancelled, 1),
        (Kind::DestinationExists, 6),
        (Kind::Storage, 1),
        (Kind::Withdrawn, 1),
        (Kind::Shutdown, 5),
    ] {
        let events = vec![started("a"), progress(1), failed(kind, "because so")];
        let daemon = Daemon::start(Script { download: events.into(), ..Script::default() });
        let ran = daemon.run(&["download", "a"]);
        assert_eq!(ran.code, Some(exit), "{kind:?}: {ran:?}");
        for part in ["because so", "missing: chunks 3-5,7", "10.0.0.2:7401: wrong bytes (chunks 3-5,7)"] {
            assert!(ran.stderr.contains(part), "{part}: {ran:?}");
        }
    }
}

#[test]
fn usage() {
    let nobody = "http://127.0.0.1:1";
    for args in [
        &[][..],
        &["frobnicate"],
        &["download"],
        &["download", "../x"],
        &["download", "/x"],
        &["download", ""],
        &["download", "a", "--chunks", "9-0"],
        &["download", "a", "--chunks", ""],
        &["download", "a", "--chunks", "1", "-o", "b"],
        &["download", "a", "--timeout", "soon"],
        &["download", "a", "--priority", "urgent"],
        &["limit", "--up", "fast"],
        &["limit", "--up", "20mb"],
        &["limit", "--up", "0"],
        &["limit", "--down", "1kB/s"],
        &["limit", "20MB/s"],
        &["share"],
        &["share", "a", "b", "--name", "c"],
        &["share", "a", "--chunk-size", "1MB"],
        &["share", "a", "--chunk-size", "8K"],
        &["verify", "a"],
        &["verify", "../a", "b"],
        &["key"],
        &["--peer", "https://h:1", "status"],
    ] {
        let ran = Ran::from(command(nobody, args).output().unwrap());
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{args:?}: {ran:?}");
    }
}

#[test]
fn no_daemon() {
    // Bound, but never listening: connections are refused, and nobody else gets the port.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let url = format!("127.0.0.1:{port}");
    for args in [&["status"][..], &["files"], &["download", "a"], &["share", "a"], &["cancel", "a"]] {
        let ran = Ran::from(command(&url, args).output().unwrap());
        assert_eq!(ran.code, Some(5), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(&url) && ran.stderr.contains("peer-svc"), "{ran:?}");
    }
    let ran = Ran::from(command(&url, &["--json", "download", "a"]).output().unwrap());
    assert_eq!((ran.code, &ran.json()[0]["event"]), (Some(5), &"failed".into()));
}

#[test]
fn a_daemon_that_dies_in_mid_download() {
    let daemon = Daemon::start(Script { download: vec![started("a")].into(), hang: true, ..Script::default() });
    let running = daemon.spawn(&["download", "a"]);
    drop(daemon);
    let ran = running.finish();
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(ran.stderr.contains("went away"), "{ran:?}");
}

#[test]
fn an_answer_that_just_ends() {
    let daemon = Daemon::start(Script { download: vec![started("a")].into(), ..Script::default() });
    let ran = daemon.run(&["download", "a"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
}

#[test]
fn signals_cancel_and_say_that_the_chunks_are_kept() {
    for (signal, exit) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let events = vec![started("a"), progress(3)];
        let daemon = Daemon::start(Script { download: events.into(), hang: true, ..Script::default() });
        let running = daemon.spawn(&["download", "a"]);
        running.signal(signal);
        let ran = running.finish();
        assert_eq!(ran.code, Some(exit), "{ran:?}");
        assert_eq!(daemon.calls().last(), Some(&Call::Cancel("a".into())));
        assert!(ran.stderr.contains("kept (5.00 MiB of 10.0 MiB)"), "{ran:?}");
        assert!(ran.stderr.contains("same command"), "{ran:?}");
    }
}

#[test]
fn a_signal_ends_json_with_a_failed_event() {
    let daemon = Daemon::start(Script { download: vec![started("a")].into(), hang: true, ..Script::default() });
    let running = daemon.spawn(&["download", "a", "--json"]);
    running.signal(Signal::INT);
    let ran = running.finish();
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let last = ran.json().pop().unwrap();
    assert_eq!((&last["event"], &last["chunks"]), (&"failed".into(), &serde_json::json!([3, 4, 5, 7])));
}

#[test]
fn a_second_signal_leaves_at_once() {
    // The cancel is refused and the stream never ends: the first signal alone would wait.
    let cancel = Answer(Err(Status::internal("stuck")));
    let daemon = Daemon::start(Script { download: vec![started("a")].into(), hang: true, cancel, ..Script::default() });
    let running = daemon.spawn(&["download", "a"]);
    running.signal(Signal::INT);
    while !daemon.calls().contains(&Call::Cancel("a".into())) {
        std::thread::yield_now();
    }
    running.signal(Signal::INT);
    let ran = running.finish();
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.stderr.is_empty(), "the second one waits for nothing: {ran:?}");
}

#[test]
fn shares_that_did_not_work() {
    use wire::share_result::Status::{Failed, Pending, Refused, Registered};
    for (status, exit) in [(Registered, 0), (Pending, 0), (Refused, 1), (Failed, 1)] {
        let result = wire::ShareResult { status: status.into(), file: Some(file("a")), detail: "so".into() };
        let share = vec![wire::share_event::Event::Result(result)].into();
        let daemon = Daemon::start(Script { share, ..Script::default() });
        assert_eq!(daemon.run(&["share", "a"]).code, Some(exit), "{status:?}");
    }
    let share = Answer(Err(Status::not_found("no such path")));
    let ran = Daemon::start(Script { share, ..Script::default() }).run(&["share", "nowhere"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let daemon = Daemon::start(Script::default());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = Ran::from(daemon.command(&["status"]).stdout(full).output().unwrap());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("standard output"), "{ran:?}");
}
