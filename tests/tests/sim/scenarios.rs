//! Each scenario, small, against its own bound. The limits are what the engine reaches now and a little more: a policy
//! that gets worse fails here, within seconds.

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
    stays_below("--scenario flash", 9.0, 9.0);
}

#[test]
fn flash_with_neighbours() {
    stays_below("--scenario flash --neighbours 6", 9.0, 9.0);
}

#[test]
fn staggered() {
    stays_below("--scenario staggered", 9.0, 9.0);
}

#[test]
fn heterogeneous() {
    stays_below("--scenario heterogeneous", 9.0, 9.0);
}

#[test]
fn churn() {
    stays_below("--scenario churn", 9.0, 9.0);
}

#[test]
fn liars() {
    stays_below("--scenario liars", 9.0, 9.0);
}

#[test]
fn racks() {
    stays_below("--scenario racks", 9.0, 9.0);
}

#[test]
fn source_leaves() {
    stays_below("--scenario source-leaves --leaves-after 1.3", 9.0, 9.0);
}

#[test]
fn two_files() {
    stays_below("--scenario two-files", 9.0, 9.0);
}
