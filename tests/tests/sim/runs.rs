//! A run as a whole.

use std::fs;

use drizzle_tests::sim::{Report, Scenario, plot::plot, simulate};

use crate::{options, run};

const SMALL: &str = "--peers 8 --chunks 64";

/// The report as text, and the log.
fn told(line: &str) -> (String, Vec<u8>) {
    let folder = tempfile::tempdir().expect("there is room");
    let mut options = options(line);
    options.log = Some(folder.path().join("log"));
    let report = simulate(&options).expect("it runs");
    (report.to_string(), fs::read(folder.path().join("log")).expect("it was written"))
}

#[test]
fn the_same_seed_gives_the_same_report_and_log_and_another_seed_another() {
    for neighbours in [0, 4] {
        for scenario in ["flash", "churn", "liars"] {
            let line = format!("{SMALL} --neighbours {neighbours} --scenario {scenario} --loss 0.01");
            let (report, log) = told(&line);
            assert!(!log.is_empty());
            assert_eq!((report, log.clone()), told(&line), "{line}");
            assert_ne!(log, told(&format!("{line} --seed 2")).1, "{line}");
        }
    }
}

#[test]
fn every_peer_gets_every_chunk_once() {
    for neighbours in [0, 4] {
        let report = run(&format!("{SMALL} --neighbours {neighbours}"));
        assert!(report.is_complete());
        assert_eq!(report.peers.len(), 8);
        assert!(report.copies[0] >= 1.0, "{report}");
        assert!(report.ratio() >= 1.0, "no swarm is faster than the bound: {report}");
    }
}

/// Liars serve other bytes under the right name: the hash finds each, and nothing wrong is stored or passed on.
#[test]
fn wrong_bytes_are_caught_and_never_believed() {
    let report = run("--peers 16 --chunks 64 --scenario liars");
    assert!(report.is_complete(), "{report}");
    assert!(report.tally.caught > 0, "{report}");
    assert_eq!(report.tally.believed, 0, "{report}");
    let honest = run("--peers 16 --chunks 64");
    assert_eq!(honest.tally.caught, 0);
}

#[test]
fn what_slows_a_swarm_down_slows_it_down() {
    let time = |line: &str| -> f64 {
        let report: Report = run(&format!("{SMALL} {line}"));
        report.ends().last().copied().expect("it ended")
    };
    let plain = time("");
    for slower in [
        "--latency 20",
        "--disk 10",
        "--up 50",
        "--down 40",
        "--overhead 1.2",
        "--loss 0.2",
        "--news 1000",
        "--neighbours 0 --push 2000",
        "--up-limit 50",
        "--down-limit 40",
    ] {
        assert!(time(slower) > plain * 1.02, "{slower}");
    }
}

#[test]
fn without_its_source_a_swarm_that_lacks_chunks_comes_to_an_end() {
    let report = run(&format!("{SMALL} --scenario source-leaves --leaves-after 0.5"));
    assert!(!report.is_complete());
    assert_eq!(report.ratio(), f64::INFINITY);
    let text = report.to_string();
    assert!(text.contains("8 of 8 peers did not end") && !text.contains("NaN"), "{text}");
}

#[test]
fn a_plot_is_drawn() {
    let folder = tempfile::tempdir().expect("there is room");
    let to = folder.path().join("plot.svg");
    plot(&run(SMALL), &to).expect("it can be drawn");
    let drawn = fs::read_to_string(to).expect("it is there");
    assert!(drawn.contains("<svg") && drawn.contains("times the bound"));
}

#[test]
fn every_scenario_is_named_on_the_command_line() {
    assert_eq!(options("--scenario source-leaves").scenario, Scenario::SourceLeaves);
    assert_eq!(options("--scenario two-files").scenario, Scenario::TwoFiles);
}
