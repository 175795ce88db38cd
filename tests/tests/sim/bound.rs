//! Against figures that are worked out by hand.

use drizzle_tests::sim::{
    bound::{Supply, fluid, supplied_at},
    scenario::Plan,
};

use crate::options;

/// 64 MiB at 100 Mbit/s.
const FILE_TIME: f64 = 67_108_864.0 / 12_500_000.0;

fn close(one: f64, other: f64) -> bool {
    (one - other).abs() <= other * 1e-6
}

fn bound(line: &str) -> f64 {
    Plan::of(&options(line)).bound
}

#[test]
fn each_term_of_the_bound_can_be_the_one_that_counts() {
    let peers = |count: usize, up: f64| vec![Supply::steady(up); count];
    // The source, one downlink, and all uplinks together.
    assert!(close(fluid(100.0, 1.0, 10.0, 2, &peers(3, 50.0)), 100.0));
    assert!(close(fluid(100.0, 10.0, 2.0, 2, &peers(3, 50.0)), 50.0));
    let supplies = [vec![Supply::steady(10.0)], peers(4, 1.0)].concat();
    assert!(close(fluid(100.0, 10.0, 100.0, 4, &supplies), 400.0 / 14.0));
}

#[test]
fn an_uplink_counts_while_it_is_there() {
    let late = Supply { from: 5.0, ..Supply::steady(1.0) };
    let leaves = Supply { until: 3.0, ..Supply::steady(1.0) };
    let little = Supply { most: 2.0, ..Supply::steady(1.0) };
    assert!(close(supplied_at(10.0, &[late]), 15.0));
    assert!(close(supplied_at(10.0, &[Supply::steady(1.0), leaves]), 7.0));
    assert!(close(supplied_at(10.0, &[Supply::steady(1.0), little]), 8.0));
    assert_eq!(supplied_at(10.0, &[leaves, little]), f64::INFINITY);
}

#[test]
fn scenarios_have_the_bounds_of_their_fleets() {
    for peers in [1, 16, 1000] {
        assert!(close(bound(&format!("--peers {peers}")), FILE_TIME), "equal links: one file over one link");
    }
    assert!(close(bound("--source-up 50"), 2.0 * FILE_TIME));
    // 16 copies over 16 uplinks of 40 and the source's.
    assert!(close(bound("--up 40 --source-up 100"), 16.0 * FILE_TIME * 100.0 / (16.0 * 40.0 + 100.0)));
    assert!(close(bound("--scenario heterogeneous"), 4.0 * FILE_TIME), "the slowest has 25 Mbit/s");
    assert!(close(bound("--scenario churn"), 2.0 * FILE_TIME), "some have half a link");
    assert!(close(bound("--scenario two-files"), 2.0 * FILE_TIME));
    assert!(close(bound("--scenario staggered"), 7.5 + FILE_TIME), "the last of 16 begins after 7.5 s");
    assert!(close(bound("--scenario racks --thin 25"), 4.0 * FILE_TIME));
    // Two of 16 give nothing.
    assert!(close(bound("--scenario liars"), 16.0 * FILE_TIME / 15.0));
    // 14.9 copies come from 16 uplinks.
    assert!(close(bound("--scenario source-leaves"), FILE_TIME));
}
