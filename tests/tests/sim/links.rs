//! The rates that come out are max-min fair, within the tolerance, however flows come and go.

use drizzle_tests::sim::{
    clock::SECOND,
    links::{FlowId, LinkId, Links, fair_share},
};
use proptest::prelude::*;

/// Peers, each with an uplink and a downlink.
const PEERS: usize = 12;

#[derive(Debug, Clone)]
enum Change {
    Start(usize, usize, bool),
    End(usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let start = (0..PEERS, 0..PEERS, any::<bool>()).prop_map(|(from, to, far)| Change::Start(from, to, far));
    let end = any::<prop::sample::Index>().prop_map(|index| Change::End(index.index(1000)));
    proptest::collection::vec(prop_oneof![3 => start, 1 => end], 1..120)
}

/// A network after some changes, its links and the flows that run.
fn network(capacities: &[f64], changes: &[Change], tolerance: f64) -> (Links, Vec<LinkId>, Vec<FlowId>) {
    let mut links = Links::new(tolerance, SECOND);
    let ids: Vec<LinkId> = capacities.iter().map(|capacity| links.add(*capacity)).collect();
    let (mut running, mut touched) = (Vec::new(), Vec::new());
    for change in changes {
        match *change {
            Change::Start(from, to, far) => {
                // The last two links are a zone's.
                let near = [ids[2 * from], ids[2 * to + 1]];
                let way = [near[0], ids[2 * PEERS], ids[2 * PEERS + 1], near[1]];
                running.push(links.start(if far { &way } else { &near }, 1e9, 0.0, 0, 0));
            }
            Change::End(nth) if !running.is_empty() => {
                let flow = running.swap_remove(nth % running.len());
                links.end(flow, 0);
            }
            Change::End(_) => {}
        }
        links.settle(0, &mut touched);
    }
    while links.is_unsettled() {
        links.settle(0, &mut touched);
    }
    (links, ids, running)
}

/// What is wrong with the rates, allowing for an error of `slack` times each.
fn unfair(links: &Links, ids: &[LinkId], flows: &[FlowId], slack: f64) -> Option<String> {
    let load = |link: LinkId| links.flows_on(link).map(|flow| links.rate(flow)).sum::<f64>();
    for &link in ids {
        if load(link) > links.capacity(link) * (1.0 + slack) {
            return Some(format!("link {link} carries {} of {}", load(link), links.capacity(link)));
        }
    }
    for &flow in flows {
        let rate = links.rate(flow);
        let limits = |link: &LinkId| {
            let fastest = links.flows_on(*link).map(|other| links.rate(other)).fold(0.0, f64::max);
            load(*link) >= links.capacity(*link) * (1.0 - slack) && rate >= fastest * (1.0 - slack)
        };
        if !links.path(flow).iter().any(limits) {
            return Some(format!("nothing keeps flow {flow} at {rate}"));
        }
    }
    None
}

#[test]
fn a_share_is_what_the_others_leave() {
    assert_eq!(fair_share(12.0, &[]), 12.0);
    assert_eq!(fair_share(12.0, &[f64::INFINITY; 4]), 3.0);
    assert_eq!(fair_share(12.0, &[2.0, f64::INFINITY, f64::INFINITY]), 5.0);
    assert_eq!(fair_share(12.0, &[1.0, 4.0, f64::INFINITY]), 7.0);
    // Nothing limits here: one of them could get what is left.
    assert_eq!(fair_share(12.0, &[1.0, 4.0]), 11.0);
}

#[test]
fn a_flow_ends_when_its_bytes_are_through_and_its_owner_is_told_at_its_stop() {
    let mut links = Links::new(0.01, SECOND);
    let (up, down) = (links.add(100.0), links.add(1000.0));
    let flow = links.start(&[up, down], 200.0, 50.0, 7, 0);
    let mut touched = Vec::new();
    links.settle(0, &mut touched);
    assert_eq!(touched, [up]);
    let stop = links.next_stop(up).expect("it flows");
    assert!((stop as f64 / SECOND as f64 - 1.5).abs() < 1e-6);
    let stopped = links.stopped(up, stop);
    assert_eq!((stopped.len(), stopped[0].flow, stopped[0].tag, stopped[0].ended), (1, flow, 7, false));
    links.run_out(flow);
    let end = links.next_stop(up).expect("it flows on");
    assert!((end as f64 / SECOND as f64 - 2.0).abs() < 1e-6);
    assert!(links.stopped(up, end)[0].ended);
    assert!(links.end(flow, end) < 1.0);
    assert!((links.carried(up) - 200.0).abs() < 1.0 && (links.carried(down) - 200.0).abs() < 1.0);
    assert!((links.used().iter().sum::<f64>() - 200.0).abs() < 1.0);
}

proptest! {
    #[test]
    fn rates_are_max_min_fair(
        capacities in proptest::collection::vec(1.0f64..100.0, 2 * PEERS + 2), changes in changes(),
    ) {
        let (links, ids, flows) = network(&capacities, &changes, 1e-4);
        prop_assert_eq!(unfair(&links, &ids, &flows, 0.002), None);
    }

    /// As it is used: what is left as it is adds up to little.
    #[test]
    fn rates_are_nearly_so_with_the_usual_tolerance(
        capacities in proptest::collection::vec(1.0f64..100.0, 2 * PEERS + 2), changes in changes(),
    ) {
        let (links, ids, flows) = network(&capacities, &changes, 0.02);
        prop_assert_eq!(unfair(&links, &ids, &flows, 0.06), None);
    }
}
