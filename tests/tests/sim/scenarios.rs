//! Each scenario, small, against its own bound. The limits are the worst of eight seeds and a little more: a policy that
//! gets worse fails here, within seconds. Small fleets and files are further from the bound than large ones.

use crate::run;

const FLEET: &str = "--peers 12 --chunks 256";

/// The last peer over the bound at most; the worst peer over its own bound at most.
fn stays_below(line: &str, ratio: f64, own: f64) {
    let report = run(&format!("{FLEET} {line}"));
    assert!(report.is_complete(), "{report}");
    assert!(report.ratio() >= 0.99, "faster than the bound: {report}");
    assert!(report.ratio() <= ratio, "more than {ratio} times the bound: {report}");
    let worst = report.own_ratios().last().copied().unwrap_or(f64::INFINITY);
    assert!(worst <= own, "more than {own} times its own bound: {report}");
}

#[test]
fn flash() {
    stays_below("--scenario flash", 1.22, 1.22);
}

#[test]
fn flash_with_neighbours() {
    stays_below("--scenario flash --neighbours 6", 1.31, 1.31);
}

/// The last one finds the whole swarm there, so the bound of all is no test.
#[test]
fn staggered() {
    stays_below("--scenario staggered", 1.03, 1.30);
}

#[test]
fn heterogeneous() {
    stays_below("--scenario heterogeneous", 1.05, 1.43);
}

#[test]
fn churn() {
    stays_below("--scenario churn", 1.07, 1.27);
}

#[test]
fn liars() {
    stays_below("--scenario liars", 1.36, 1.36);
}

/// At most so many copies into each rack, and so much over the bound, for these peers.
fn racks_stay_below(line: &str, copies: f64, ratio: f64) {
    let report = run(&format!("--scenario racks --chunks 256 {line}"));
    assert!(report.is_complete(), "{report}");
    assert!(report.across.iter().all(|across| *across <= copies), "more than {copies} copies: {report}");
    assert!(report.ratio() <= ratio, "more than {ratio} times the bound: {report}");
}

/// What crosses the thin links counts, and not the time alone: those beside the source wait for it, and with two copies
/// into each rack this fleet would be done after 2.1 times the bound.
#[test]
fn a_small_fleet_in_racks_brings_each_chunk_over_once() {
    racks_stay_below("--peers 12", 1.1, 2.75);
}

/// Without near and far it would be 6 copies, and 6 times the bound.
#[test]
fn a_larger_fleet_in_racks_brings_few_copies_over() {
    racks_stay_below("--peers 64", 1.8, 3.6);
}

#[test]
fn source_leaves() {
    stays_below("--scenario source-leaves --leaves-after 1.3", 1.22, 1.22);
}

/// Limits are links to the bound: a peer that keeps to them comes as near to it as over such links. (Under a low one there are
/// few slots and streams: a chunk of 256 KiB takes 2 s.)
#[test]
fn limits() {
    stays_below("--scenario flash --up-limit 20 --down-limit 50", 1.09, 1.09);
    stays_below("--scenario flash --up-limit 1 --down-limit 2 --chunk-size 256", 1.08, 1.08);
}

#[test]
fn two_files() {
    stays_below("--scenario two-files", 1.14, 1.14);
}
