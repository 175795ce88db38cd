//! How near a download came to its bound and what limited it, as it is printed.

use crate::{support::*, terminal::Terminal};
use drizzle_proto::wire::{self, LimitedBy, download_event::Event};
use serde_json::json;

/// Ten MiB in 2.5 s, of which 2.0 s were needed.
fn limited(by: LimitedBy) -> Event {
    let bound = wire::DownloadBound { downlink_millis: Some(900), source_millis: Some(2000), swarm_millis: None };
    Event::Done(wire::DownloadDone {
        path: "/x/a".into(),
        bytes: 8 * MIB,
        elapsed_millis: 2500,
        bound: Some(bound),
        limited_by: by.into(),
        limited_percent: 83,
        ..Default::default()
    })
}

fn moving(by: LimitedBy) -> wire::DownloadProgress {
    let limited_by = by.into();
    wire::DownloadProgress { bytes_stored: 5 * MIB, sources: vec![source(3)], limited_by, ..Default::default() }
}

fn script(by: LimitedBy) -> Script {
    Script { download: vec![started("a"), Event::Progress(moving(by)), limited(by)].into(), ..Script::default() }
}

#[test]
fn lines_of_a_log() {
    let daemon = Daemon::start(script(LimitedBy::Source));
    let ran = daemon.run(&["download", "a"]);
    assert_eq!(
        ran.stdout.lines().skip(1).collect::<Vec<_>>(),
        [
            "a: 50 %, 5.00 MiB of 10.0 MiB, 1 source active; limited by the source's uplink",
            "done: a: 8.00 MiB fetched in 2.5 s (3.20 MiB/s): /x/a",
            "  took 2.50 s, 1.25 times the bound of 2.00 s; limited by the source's uplink (83 % of the time)",
        ],
    );
}

#[test]
fn json_has_the_terms_of_the_bound_and_a_name_for_the_cause() {
    let daemon = Daemon::start(script(LimitedBy::Peers));
    let events = daemon.run(&["--json", "download", "a"]).json();
    assert_eq!(events[1]["limited_by"], "peers");
    assert_eq!(
        events[2],
        json!({"event": "done", "name": "a", "path": "/x/a", "bytes": 8 * MIB, "seconds": 2.5, "bound": 2.0,
            "bounds": {"downlink": 0.9, "source": 2.0}, "ratio": 1.25, "limited_by": "peers", "limited_percent": 83,
            "sources": []})
    );
}

#[test]
fn a_very_short_download_tells_its_time_only() {
    let short = wire::DownloadDone { path: "/x/a".into(), bytes: 10, elapsed_millis: 31, ..Default::default() };
    let daemon = Daemon::start(Script { download: vec![Event::Done(short)].into(), ..Script::default() });
    let ran = daemon.run(&["download", "a"]);
    assert_eq!(ran.stdout.lines().last(), Some("  took 31 ms"), "{ran:?}");
    let done = &daemon.run(&["--json", "download", "a"]).json()[0];
    assert!(
        ["bound", "ratio", "limited_by", "limited_percent"].iter().all(|field| done.get(field).is_none()),
        "{done}"
    );
}

#[test]
fn a_narrow_terminal_gets_two_lines_and_none_wraps() {
    let daemon = Daemon::start(script(LimitedBy::Source));
    for (columns, told) in [
        (
            100,
            &["  took 2.50 s, 1.25 times the bound of 2.00 s; limited by the source's uplink (83 % of the time)"][..],
        ),
        (
            60,
            &["  took 2.50 s, 1.25 times the bound of 2.00 s", "  limited by the source's uplink (83 % of the time)"][..],
        ),
        (48, &["  took 2.50 s, 1.25 times the bound of 2.00 s", "  limited by the source's uplink (83 %)"][..]),
    ] {
        let (code, lines) = Terminal::run(&daemon.command(&["download", "a"]), columns).ended();
        assert_eq!(code, Some(0), "{lines:?}");
        assert!(lines.ends_with(&told.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()), "{lines:?}");
    }
}

#[test]
fn the_bars_name_it_while_it_runs() {
    let events = vec![started("a"), Event::Progress(moving(LimitedBy::Downlink))];
    let daemon = Daemon::start(Script { download: events.into(), hang: true, ..Script::default() });
    let mut terminal = Terminal::run(&daemon.command(&["download", "a"]), 60);
    terminal.until(&["50%", "limited by this machine's downlink"]);
}

fn watched() -> Script {
    let transfer = wire::Transfer {
        file: Some(file("models/weights.bin")),
        bytes_wanted: 10 * MIB,
        progress: Some(moving(LimitedBy::Disk)),
        elapsed_millis: 1500,
        ..Default::default()
    };
    let status = wire::StatusResponse { peer_id: "01".repeat(16), transfers: vec![transfer], ..Default::default() };
    Script { status, ..Script::default() }
}

#[test]
fn status_names_it_for_each_transfer() {
    let daemon = Daemon::start(watched());
    let ran = daemon.run(&["status"]);
    assert!(
        ran.stdout.ends_with(
            "download  models/weights.bin: 50 %, 5.00 MiB of 10.0 MiB, 1 source\n          limited by this machine's disk\n"
        ),
        "{ran:?}"
    );
    assert_eq!(daemon.run(&["--json", "status"]).json()[0]["transfers"][0]["limited_by"], "disk");
}

#[test]
fn status_is_watched_on_a_narrow_terminal_in_one_place() {
    let daemon = Daemon::start(watched());
    let mut terminal = Terminal::run(&daemon.command(&["status", "--watch"]), 41);
    terminal.until(&["tracker", "downloads", "models/", " 50 % limited by", "q ends"]);
    assert_eq!(terminal.screen().matches("downloads").count(), 1, "{}", terminal.screen());
    terminal.type_in(b"\x03");
    let (code, screen) = terminal.ended();
    assert_eq!(code, Some(130));
    assert!(screen.iter().all(|line| !line.contains("downloads")), "it is given back as it was: {screen:#?}");
    let mut terminal = Terminal::run(&daemon.command(&["status", "--watch"]), 80);
    terminal.until(&["q ends"]);
    terminal.type_in(b"q");
    assert_eq!(terminal.ended().0, Some(0));
}

#[test]
fn status_is_watched_through_a_pipe_until_its_reader_leaves() {
    let daemon = Daemon::start(watched());
    for args in [&["status", "--watch"][..], &["--json", "status", "--watch"]] {
        let mut running = daemon.spawn(args);
        running.hang_up();
        let ran = running.finish();
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    }
}
