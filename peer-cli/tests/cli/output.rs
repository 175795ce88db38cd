//! What the commands ask and print, through the real binary.

use crate::support::*;
use drizzle_proto::wire::{self, chunk_event::Step, download_event::Event};
use serde_json::json;

fn chunk(step: Step, chunk: u32, reason: &str) -> Event {
    let step = step.into();
    Event::Chunk(wire::ChunkEvent { step, chunk, peer: "10.0.0.2:7401".into(), reason: reason.into() })
}

#[test]
fn json_events_of_a_download() {
    let waiting = Event::Waiting(wire::DownloadWaiting { reason: "no peer holds chunk 4".into() });
    let events = vec![
        started("m/a"),
        chunk(Step::Requested, 4, ""),
        chunk(Step::Failed, 4, "stalled"),
        waiting,
        chunk(Step::Stored, 4, ""),
        progress(1),
        done("/x/a"),
    ];
    let daemon = Daemon::start(Script { download: events.into(), ..Script::default() });
    let ran = daemon.run(&["--json", "download", "m/a"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let id = "ab".repeat(32);
    let expected = [
        format!(r#"{{"event":"started","name":"m/a","file_id":"{id}","bytes":10485760,"resumed":2097152}}"#),
        r#"{"event":"chunk","step":"requested","chunk":4,"peer":"10.0.0.2:7401"}"#.into(),
        r#"{"event":"chunk","step":"failed","chunk":4,"peer":"10.0.0.2:7401","reason":"stalled"}"#.into(),
        r#"{"event":"waiting","reason":"no peer holds chunk 4"}"#.into(),
        r#"{"event":"chunk","step":"stored","chunk":4,"peer":"10.0.0.2:7401"}"#.into(),
        r#"{"event":"progress","bytes":3145728,"total":10485760,"sources":[{"peer":"10.0.0.2:7401","bytes":1048576,"chunks":1,"in_flight":1}]}"#.into(),
        r#"{"event":"done","name":"m/a","path":"/x/a","bytes":8388608,"seconds":2.5,"sources":[{"peer":"10.0.0.2:7401","bytes":8388608,"chunks":8}]}"#.into(),
    ];
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn json_ends_of_a_download() {
    let blamed = wire::DownloadDone { blamed: vec![blame()], ..wire::DownloadDone::default() };
    let daemon = Daemon::start(Script { download: vec![Event::Done(blamed)].into(), ..Script::default() });
    let blame = json!([{"peer": "10.0.0.2:7401", "offence": "wrong bytes", "chunks": [3, 4, 5, 7]}]);
    assert_eq!(
        daemon.run(&["download", "a", "--json"]).json(),
        [
            json!({"event": "done", "name": "a", "path": null, "bytes": 0, "seconds": 0.0, "sources": [], "blamed": blame})
        ]
    );
    let end = failed(wire::download_failed::Kind::Integrity, "no honest holder");
    let daemon = Daemon::start(Script { download: vec![end].into(), ..Script::default() });
    assert_eq!(
        daemon.run(&["download", "a", "--json"]).json(),
        [
            json!({"event": "failed", "name": "a", "reason": "no honest holder", "chunks": [3, 4, 5, 7], "blamed": blame})
        ]
    );
}

#[test]
fn plain_lines_of_a_download() {
    // A thousand failures of one kind are one line; escape sequences do not reach a terminal.
    let mut events = vec![started("a")];
    events.extend((0..1000).map(|_| chunk(Step::Failed, 4, "broke\u{1b}[2J off")));
    events.extend([progress(3), progress(4), done("/x/a")]);
    let daemon = Daemon::start(Script { download: events.into(), ..Script::default() });
    let ran = daemon.run(&["download", "a"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "a: fetching 10.0 MiB, 2.00 MiB of them here already; the file has 10 chunks");
    assert_eq!(lines[1], "a: 10.0.0.2:7401: broke\u{fffd}[2J off (chunk 4)");
    assert_eq!(lines[2], "a: 50 %, 5.00 MiB of 10.0 MiB, 1 source active");
    assert_eq!(lines[3], "a: 60 %, 6.00 MiB of 10.0 MiB, 1 source active");
    assert_eq!(lines[4], "done: a: 8.00 MiB fetched in 2.5 s (3.20 MiB/s): /x/a");
    assert_eq!(lines[5], "  from 10.0.0.2:7401: 8.00 MiB, 8 chunks");
    assert_eq!(lines.len(), 6);
}

#[test]
fn the_last_line_before_the_end_tells_all_of_it() {
    let stored = |bytes_stored, bytes_unchecked| {
        Event::Progress(wire::DownloadProgress { bytes_stored, bytes_unchecked, ..Default::default() })
    };
    let all = stored(10 * MIB, None);
    for (events, lines) in [
        (vec![stored(10 * MIB - 1, None), all.clone()], 2),
        (vec![stored(10 * MIB, Some(MIB)), all.clone()], 2),
        (vec![all.clone(), all], 1),
    ] {
        let events = [vec![started("a")], events, vec![done("/x/a")]].concat();
        let daemon = Daemon::start(Script { download: events.into(), ..Script::default() });
        let ran = daemon.run(&["download", "a"]);
        let lines_before: Vec<_> = ran.stdout.lines().skip(1).take_while(|line| !line.starts_with("done")).collect();
        assert_eq!(lines_before.last(), Some(&"a: 100 %, 10.0 MiB of 10.0 MiB"), "{ran:?}");
        assert_eq!(lines_before.len(), lines, "{ran:?}");
    }
}

#[test]
fn what_is_all_here_already_is_said_to_be_and_not_to_be_fetched() {
    let all = Event::Started(wire::DownloadStarted {
        file: Some(file("a")),
        bytes_wanted: 10 * MIB,
        bytes_resumed: 10 * MIB,
    });
    let events = vec![all, Event::Done(wire::DownloadDone { path: "/x/a".into(), ..Default::default() })];
    let daemon = Daemon::start(Script { download: events.into(), ..Script::default() });
    let ran = daemon.run(&["download", "a"]);
    let expected = ["a: all 10.0 MiB are here already; the file has 10 chunks", "done: a: 0 B fetched in 0.0 s: /x/a"];
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_request_has_absolute_paths_and_all_options() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().canonicalize().unwrap();
    std::fs::create_dir(here.join("sub")).unwrap();
    let daemon = Daemon::start(Script { download: vec![done("/x")].into(), ..Script::default() });
    let run = |args: &[&str]| daemon.command(args).current_dir(&here).output().unwrap();
    run(&["download", "m/a", "-o", "sub", "--timeout", "1m"]);
    run(&["download", "m/a", "-o", "new/"]);
    run(&["download", "m/a", "-o", "sub/../b", "--timeout", "0s"]);
    run(&["download", "m/a", "--chunks", "0-9,15", "--priority", "low"]);
    run(&["share", "./f", "--name", "x/y", "--chunk-size", "256K"]);
    run(&["share", "f", "../g"]);
    let path = |tail: &str| here.join(tail).into_os_string().into_string().unwrap();
    let ask = |output: String, timeout_millis| {
        let (name, priority) = ("m/a".into(), wire::Priority::Normal.into());
        Call::Download(wire::DownloadRequest { name, output, timeout_millis, priority, ..Default::default() })
    };
    let up = here.parent().unwrap().join("g").into_os_string().into_string().unwrap();
    assert_eq!(
        daemon.calls(),
        [
            ask(path("sub/a"), 60_000),
            ask(path("new/a"), 0),
            ask(path("b"), 1),
            Call::Download(wire::DownloadRequest {
                name: "m/a".into(),
                chunks: ranges(&[(0, 9), (15, 15)]),
                priority: wire::Priority::Low.into(),
                ..wire::DownloadRequest::default()
            }),
            Call::Share(wire::ShareRequest {
                paths: vec![path("f")],
                name: "x/y".into(),
                chunk_size: 256 << 10,
                replace: false
            }),
            Call::Share(wire::ShareRequest { paths: vec![path("f"), up], ..wire::ShareRequest::default() }),
        ]
    );
}

fn pages() -> Vec<wire::ListFilesResponse> {
    let summary = |name: &str| wire::FileSummary { file: Some(file(name)), full_holders: 2, partial_holders: 1 };
    vec![
        wire::ListFilesResponse { files: vec![summary("a"), summary("b")], next_page_token: "1".into() },
        wire::ListFilesResponse { files: vec![summary("c/long")], next_page_token: String::new() },
    ]
}

#[test]
fn files_of_all_pages() {
    let daemon = Daemon::start(Script { files: pages().into(), ..Script::default() });
    let ran = daemon.run(&["files"]);
    let lines: Vec<Vec<&str>> = ran.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "SIZE", "CHUNKS", "FULL", "PARTIAL"]);
    assert_eq!(lines[3], ["c/long", "10.0", "MiB", "10", "2", "1"]);
    assert_eq!(lines.len(), 4);
    let json = daemon.run(&["--json", "files", "pre"]).json();
    assert_eq!(json.len(), 3);
    assert_eq!(
        json[2],
        json!({"name": "c/long", "file_id": "ab".repeat(32), "size": 10 * MIB, "chunk_size": MIB, "chunk_count": 10,
            "full_holders": 2, "partial_holders": 1})
    );
    let Some(Call::Files(last)) = daemon.calls().pop() else { panic!("no call") };
    assert_eq!((last.prefix.as_str(), last.page_token.as_str()), ("pre", "1"));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    // More than a pipe holds, and then a page that does not go on: only noticing the closed pipe ends this well.
    let file = pages().remove(0).files.remove(0);
    let named = |name: String| {
        let mut file = file.clone();
        file.file.as_mut().unwrap().name = name;
        file
    };
    let page = |number: usize| wire::ListFilesResponse {
        files: (0..1000).map(|n| named(format!("{:02}-{n:03}", number % 16))).collect(),
        next_page_token: (number + 1).to_string(),
    };
    let listing: Vec<_> = (0..=16).map(page).collect();
    let daemon = Daemon::start(Script { files: listing.into(), ..Script::default() });
    let mut running = daemon.spawn(&["files"]);
    running.hang_up();
    let ran = running.finish();
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
}

#[test]
fn a_download_outlives_the_reader_of_its_lines() {
    let events = vec![started("a"), failed(wire::download_failed::Kind::Integrity, "no honest holder")];
    let daemon = Daemon::start(Script { download: events.into(), ..Script::default() });
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = Ran::from(daemon.command(&["download", "a"]).stdout(writer).output().unwrap());
    assert_eq!(ran.code, Some(4), "its true exit code: {ran:?}");
}

#[test]
fn locations() {
    let holder = |at: u8, runs: &[u32]| wire::Holder {
        peer_id: format!("{at:02}").repeat(16),
        address: format!("10.0.0.{at}:7401"),
        chunks: Some(wire::ChunkSet { length: 10, runs: runs.to_vec(), bits: Default::default() }),
        labels: if at == 2 { [("zone".to_owned(), "a".to_owned())].into() } else { Default::default() },
    };
    let page = |holder, token: &str| wire::FileLocationsResponse {
        file: Some(file("a")),
        holders: vec![holder],
        next_holders_token: token.into(),
        ..Default::default()
    };
    let pages = vec![page(holder(1, &[0, 10]), "1"), page(holder(2, &[0, 3, 7, 1]), "")];
    let daemon = Daemon::start(Script { locations: pages.into(), ..Script::default() });
    let ran = daemon.run(&["locations", "a"]);
    assert_eq!(
        ran.stdout,
        format!(
            "name     a\nfile id  {}\nsize     10.0 MiB (10485760 bytes)\nchunks   10 of 1.00 MiB\n\n\
             PEER           LABELS   HELD  CHUNKS\n10.0.0.1:7401          10/10  all\n10.0.0.2:7401  zone=a   4/10  0-2,7\n",
            "ab".repeat(32)
        )
    );
    let json = daemon.run(&["--json", "locations", "a"]).json();
    assert_eq!(
        json[0]["holders"][1],
        json!({"peer": "10.0.0.2:7401", "peer_id": "02".repeat(16), "labels": {"zone": "a"}, "held": 4, "full": false, "ranges": [[0, 2], [7, 7]]})
    );
}

#[test]
fn status() {
    let status = wire::StatusResponse {
        peer_id: "01".repeat(16),
        tracker: "http://t:7400".into(),
        up_limit: Some(12_500_000),
        refused: vec!["b".into()],
        hanging_files: vec!["/mnt/c".into()],
        transfers: vec![wire::Transfer {
            file: Some(file("a")),
            bytes_wanted: 10 * MIB,
            progress: Some(wire::DownloadProgress {
                bytes_stored: 5 * MIB,
                sources: vec![source(5)],
                ..Default::default()
            }),
            elapsed_millis: 1500,
            priority: wire::Priority::High.into(),
        }],
        ..Default::default()
    };
    let daemon = Daemon::start(Script { status, ..Script::default() });
    let ran = daemon.run(&["status"]);
    for part in [
        "away",
        "refused   b:",
        "hanging   /mnt/c: its disk",
        "a: 50 %, 5.00 MiB of 10.0 MiB, 1 source, high priority",
        "limits    up 12.5 MB/s, down unlimited\n",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
    let json = daemon.run(&["--json", "status"]).json().remove(0);
    assert_eq!((&json["tracker_connected"], &json["hashing"]), (&false.into(), &json!(null)));
    assert_eq!((&json["up_limit"], &json["down_limit"]), (&json!(12_500_000), &json!(null)));
    let transfer = &json["transfers"][0];
    assert_eq!(transfer["priority"], "high");
    assert_eq!(
        (&transfer["name"], &transfer["bytes"], &transfer["seconds"]),
        (&"a".into(), &json!(5 * MIB), &1.5.into())
    );
}

#[test]
fn limits_are_shown_and_changed() {
    let limits = wire::LimitsResponse { up: Some(256 << 10), down: None, up_rate: 250 << 10, down_rate: 0 };
    let daemon = Daemon::start(Script { limits, ..Script::default() });
    let ran = daemon.run(&["limit"]);
    assert_eq!(ran.stdout, "up    256 KiB/s    250 KiB/s in use\ndown  unlimited    0 B/s in use\n", "{ran:?}");
    let json = daemon.run(&["--json", "limit", "--up", "100mbit", "--down", "unlimited"]).json();
    assert_eq!(json, [json!({"up_limit": 262_144, "down_limit": null, "up_rate": 256_000, "down_rate": 0})]);
    let asked = |up, down| Call::Limits(wire::LimitsRequest { up, down });
    assert_eq!(daemon.calls(), [asked(None, None), asked(Some(12_500_000), Some(0))]);
    let ran = daemon.run(&["limit", "--up", "1kB/s"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("the least rate is 16KiB/s"), "{ran:?}");
    let ran = daemon.run(&["limit", "--help"]);
    for part in ["20MB/s", "kbit, Mbit, Gbit", "its own options are"] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
}

#[test]
fn many_shares_are_summed_up() {
    use wire::share_result::Status::{Pending, Refused, Registered};
    let result = |status: wire::share_result::Status, at: u32| {
        let result = wire::ShareResult {
            status: status.into(),
            file: Some(file(&format!("f{at}"))),
            detail: "other content".into(),
        };
        wire::share_event::Event::Result(result)
    };
    let mut results: Vec<_> = (0..30).map(|at| result(Registered, at)).collect();
    results.push(result(Refused, 30));
    results.push(result(Pending, 31));
    let daemon = Daemon::start(Script { share: results.into(), ..Script::default() });
    let ran = daemon.run(&["share", "."]);
    assert_eq!(ran.stdout.lines().filter(|line| line.starts_with("shared f")).count(), 20);
    assert!(ran.stdout.contains("refused f30: other content\n"), "{ran:?}");
    let sum = "... 11 files more; in all 30 shared, 1 waiting for the tracker, 1 refused\n";
    assert!(ran.stdout.contains(sum), "{ran:?}");
    let json = daemon.run(&["--json", "share", "."]).json();
    assert_eq!(json.len(), 32);
    assert_eq!((&json[30]["status"], &json[30]["detail"]), (&"refused".into(), &"other content".into()));
}

#[test]
fn what_a_folder_leaves_out_is_told_with_its_reason() {
    use wire::{share_event::Event, share_skipped::Reason};
    let skipped = |reason: Reason, count, examples: &[&str]| {
        let examples = examples.iter().map(|&path| path.to_owned()).collect();
        Event::Skipped(wire::ShareSkipped { reason: reason.into(), count, examples })
    };
    let result = wire::ShareResult {
        status: wire::share_result::Status::Registered.into(),
        file: Some(file("f")),
        detail: String::new(),
    };
    let many = skipped(Reason::Hidden, 5, &["/d/.a", "/d/.b\u{1b}", "/d/.c"]);
    let events = vec![many.clone(), skipped(Reason::NotRegular, 1, &["/d/pipe"]), Event::Result(result)];
    let daemon = Daemon::start(Script { share: events.into(), ..Script::default() });
    let ran = daemon.run(&["share", "."]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("skipped 5 (hidden): /d/.a, /d/.b\u{fffd}, /d/.c and 2 more\n"), "{ran:?}");
    assert!(ran.stdout.contains("skipped 1 (not a regular file): /d/pipe\n"), "{ran:?}");
    assert!(ran.stdout.contains("is shared if it is named itself"), "{ran:?}");
    let json = daemon.run(&["--json", "share", "."]).json();
    let expected = json!({"status": "skipped", "reason": "not a regular file", "count": 1, "examples": ["/d/pipe"]});
    assert_eq!((json.len(), &json[1]), (3, &expected));
    let daemon = Daemon::start(Script { share: vec![many].into(), ..Script::default() });
    let ran = daemon.run(&["share", "."]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stdout.starts_with("skipped 5 (hidden)") && ran.stderr.contains("name such a file itself"), "{ran:?}");
    assert!(!ran.stdout.contains("named itself"), "said once: {ran:?}");
}

#[test]
fn unshare_and_cancel() {
    let daemon = Daemon::start(Script { unshare: true.into(), ..Script::default() });
    assert_eq!(daemon.run(&["--json", "unshare", "a"]).json(), [json!({"name": "a", "name_released": true})]);
    let ran = daemon.run(&["cancel", "a"]);
    assert!(ran.stdout.contains("kept"), "{ran:?}");
    assert_eq!(daemon.calls(), [Call::Cancel("a".into())]);
}

#[test]
fn help_and_completions() {
    let daemon = Daemon::start(Script::default());
    for args in [&["--help"][..], &["download", "--help"]] {
        let ran = daemon.run(args);
        assert_eq!(ran.code, Some(0));
        assert!(ran.stdout.contains("Exit codes:") && ran.stdout.contains("130"), "{ran:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let ran = daemon.run(&["completions", shell]);
        assert!(ran.stdout.contains("peer-cli") && ran.stdout.contains("locations"), "{shell}");
    }
}

#[test]
fn what_came_from_near_and_from_afar_is_told() {
    let sources = vec![source(8), wire::SourceProgress { peer: "10.1.0.2:7401".into(), far: true, ..source(2) }];
    let done = Event::Done(wire::DownloadDone { bytes: 10 * MIB, elapsed_millis: 40, sources, ..Default::default() });
    let script = || Script { download: vec![done.clone()].into(), ..Script::default() };
    let ran = Daemon::start(script()).run(&["download", "a"]);
    for line in ["  from 10.0.0.2:7401: 8.00 MiB, 8 chunks\n", "  from 10.1.0.2:7401: 2.00 MiB, 2 chunks, far\n"] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
    assert!(ran.stdout.contains("  near 8.00 MiB, far 2.00 MiB\n"), "{}", ran.stdout);
    let events = Daemon::start(script()).run(&["download", "a", "--json"]).json();
    assert_eq!(events[0]["sources"][1]["far"], true);
    assert_eq!(events[0]["sources"][0].get("far"), None);
}
