//! Links among peers that come and go, whatever happens in between.

use drizzle_proto::{Address, Labels};
use proptest::prelude::*;
use rand::SeedableRng;

use super::*;

fn peer(n: u16) -> PeerId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&n.to_be_bytes());
    PeerId::from_bytes(id)
}

fn info(n: u16) -> PeerInfo {
    PeerInfo::new(peer(n), Address::new(&format!("host{n}:1")).unwrap(), Labels::default())
}

fn none(seed: u64) -> Introductions {
    Introductions::new([], StdRng::seed_from_u64(seed))
}

fn links(introductions: &Introductions, n: u16) -> &BTreeSet<PeerId> {
    &introductions.members[&peer(n)].links
}

/// What a watcher believes: which peers are its neighbours.
fn hear(introductions: &mut Introductions, serial: u64, known: &mut BTreeSet<PeerId>) {
    while let Some(telling) = introductions.next_telling(serial, 7) {
        if telling.begins {
            known.clear();
        }
        for (peer, link) in telling.peers {
            match link {
                Link::Linked(_) => known.insert(peer),
                Link::Parted => known.remove(&peer),
                Link::Gone => known.remove(&peer),
            };
        }
    }
}

#[test]
fn in_a_small_swarm_everyone_knows_everyone() {
    let mut swarm = Introductions::new([&info(0)], StdRng::seed_from_u64(1));
    for n in 1..=24 {
        swarm.watch(n.into(), info(n), 24, &[]);
    }
    for n in 1..=24 {
        assert_eq!(links(&swarm, n).len(), 24, "peer {n}");
    }
}

#[test]
fn the_only_source_of_a_crowd_is_known_to_some_and_the_crowd_hangs_together() {
    let mut swarm = Introductions::new([&info(0)], StdRng::seed_from_u64(1));
    for n in 1..=2000 {
        swarm.watch(n.into(), info(n), 24, &[]);
    }
    for member in swarm.members.values() {
        assert!((24..=26).contains(&member.links.len()), "{} neighbours", member.links.len());
    }
    let (mut met, mut next) = (BTreeSet::from([peer(0)]), vec![peer(0)]);
    while let Some(peer) = next.pop() {
        next.extend(swarm.members[&peer].links.iter().filter(|link| met.insert(**link)));
    }
    assert_eq!(met.len(), 2001);
}

#[test]
fn most_neighbours_are_near_and_some_far() {
    let mut swarm = none(1);
    let place = |n: u16| -> Labels { format!("zone=z{}", n % 5).parse().unwrap() };
    for n in 1..=500 {
        let watcher = PeerInfo::new(peer(n), Address::new(&format!("host{n}:1")).unwrap(), place(n));
        swarm.watch(n.into(), watcher, 24, &[]);
    }
    let (mut near, mut all) = (0usize, 0usize);
    for (id, member) in &swarm.members {
        assert!((18..=30).contains(&member.links.len()), "{}", member.links.len());
        let far = member.links.len() - swarm.near_links_of(*id);
        assert!(far >= 2, "{far} far ones");
        near += member.links.len() - far;
        all += member.links.len();
    }
    let share = near as f64 / all as f64;
    assert!((0.65..0.8).contains(&share), "{share}");
}

#[test]
fn near_peers_all_know_each_other_while_they_are_few() {
    for seed in 1..20 {
        let mut swarm = none(seed);
        let place = |n: u16| -> Labels { format!("rack=r{}", n % 8).parse().unwrap() };
        for n in 0..96 {
            let watcher = PeerInfo::new(peer(n), Address::new(&format!("host{n}:1")).unwrap(), place(n));
            swarm.watch(n.into(), watcher, 24, &[]);
        }
        for n in 0..96 {
            assert_eq!(swarm.near_links_of(peer(n)), 11, "of the rack of 12 that peer {n} stands in");
        }
    }
}

#[test]
fn a_source_that_comes_late_is_made_known() {
    let mut swarm = none(1);
    for n in 1..=100 {
        swarm.watch(n.into(), info(n), 24, &[]);
    }
    swarm.appeared(&info(0));
    assert_eq!(links(&swarm, 0).len(), 12);
}

#[test]
fn a_peer_that_watches_anew_keeps_the_neighbours_that_it_knows() {
    let mut swarm = none(1);
    for n in 1..=200 {
        swarm.watch(n.into(), info(n), 24, &[]);
    }
    let known: Vec<PeerId> = links(&swarm, 7).iter().copied().collect();
    swarm.unwatch(7);
    assert!(!swarm.members.contains_key(&peer(7)));
    swarm.watch(207, info(7), 24, &known);
    assert!(links(&swarm, 7).is_superset(&known.iter().copied().collect()));
    assert_eq!(links(&swarm, 7).len(), known.len().max(24), "no more than are needed");
}

#[test]
fn a_watcher_is_told_where_another_is_that_holds_nothing_yet() {
    let mut swarm = none(1);
    swarm.watch(1, info(1), 24, &[]);
    swarm.watch(2, info(2), 24, &[]);
    let telling = swarm.next_telling(1, 7).unwrap();
    assert!(telling.begins);
    assert_eq!(telling.peers, [(peer(2), Link::Linked(Some(info(2))))]);
    assert_eq!(swarm.next_telling(1, 7), None);
    swarm.unwatch(2);
    assert_eq!(swarm.take_rung().into_iter().collect::<Vec<_>>(), [1]);
    assert_eq!(swarm.next_telling(1, 7).unwrap().peers, [(peer(2), Link::Gone)]);
}

#[test]
fn what_a_peer_holds_is_told_again_if_it_does_not_tell_by_itself_or_has_moved() {
    let mut swarm = none(1);
    swarm.watch(1, info(1), 24, &[]);
    swarm.watch(2, info(2), 24, &[]);
    swarm.appeared(&info(3));
    swarm.next_telling(1, 7);
    swarm.changed(peer(3));
    assert_eq!(swarm.next_telling(1, 7).unwrap().peers, [(peer(3), Link::Linked(None))]);
    swarm.appeared(&info(2));
    swarm.changed(peer(2));
    assert_eq!(swarm.next_telling(1, 7), None, "it tells by itself");
    let moved = PeerInfo::new(peer(2), Address::new("other:1").unwrap(), Labels::default());
    swarm.appeared(&moved);
    let link = Link::Linked(Some(moved));
    assert_eq!(swarm.next_telling(1, 7).unwrap().peers, [(peer(2), link)]);
}

#[derive(Debug, Clone)]
enum Step {
    Watch(u16, usize, Vec<u16>),
    Unwatch(u16),
    Appears(u16),
    Disappears(u16),
    Changed(u16),
    Hear(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 0u16..40;
    let step = prop_oneof![
        3 => (n.clone(), 1usize..12, proptest::collection::vec(n.clone(), 0..4))
            .prop_map(|(n, wanted, known)| Step::Watch(n, wanted, known)),
        2 => n.clone().prop_map(Step::Unwatch),
        3 => n.clone().prop_map(Step::Appears),
        2 => n.clone().prop_map(Step::Disappears),
        1 => n.clone().prop_map(Step::Changed),
        2 => n.prop_map(Step::Hear),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn links_are_mutual_bounded_enough_and_told(steps in steps(), seed in any::<u64>()) {
        let mut swarm = none(seed);
        // Peers are in one of three zones, or have no labels, or moved since they were seen last.
        let mut moves = seed;
        let mut info = |n: u16| {
            moves = moves.rotate_left(7).wrapping_add(u64::from(n));
            let zone = if moves.is_multiple_of(5) { moves % 3 } else { u64::from(n) % 4 };
            let labels = if zone == 3 { Labels::default() } else { format!("zone=z{zone}").parse().unwrap() };
            PeerInfo::new(peer(n), Address::new(&format!("host{n}:1")).unwrap(), labels)
        };
        // The watches by peer, each with what its watcher believes; a serial is used once.
        let mut watches: BTreeMap<u16, (u64, usize, BTreeSet<PeerId>)> = BTreeMap::new();
        let (mut serials, mut brought, mut widest) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Watch(n, wanted, known) => {
                    serials += 1;
                    brought += known.len();
                    widest = widest.max(wanted);
                    let known: Vec<PeerId> = known.into_iter().map(peer).collect();
                    swarm.watch(serials, info(n), wanted, &known);
                    // Fewer only where no other has room.
                    let full = |member: &Member| member.links.len() >= SPREAD * wanted;
                    let taken = swarm.members.values().filter(|member| full(member)).count();
                    let enough = wanted.min(swarm.members.len() - 1);
                    prop_assert!(4 * (links(&swarm, n).len() + taken) >= 3 * enough, "{:?}", links(&swarm, n));
                    watches.insert(n, (serials, wanted, BTreeSet::new()));
                }
                Step::Unwatch(n) => {
                    if let Some((serial, ..)) = watches.remove(&n) {
                        swarm.unwatch(serial);
                    }
                }
                Step::Appears(n) => {
                    swarm.appeared(&info(n));
                    let has_room = |(other, (_, wanted, _)): (&u16, &(u64, usize, _))| {
                        *other != n && links(&swarm, *other).len() < SPREAD * wanted
                    };
                    let room = watches.iter().any(has_room);
                    prop_assert!(!room || !links(&swarm, n).is_empty(), "nobody knows it");
                }
                Step::Disappears(n) => swarm.disappeared(peer(n)),
                Step::Changed(n) => swarm.changed(peer(n)),
                Step::Hear(n) => {
                    if let Some((serial, _, known)) = watches.get_mut(&n) {
                        hear(&mut swarm, *serial, known);
                    }
                }
            }
            for (id, member) in &swarm.members {
                prop_assert!(member.is_holder || member.watch.is_some(), "nothing of a peer that is gone is left");
                prop_assert!(member.links.len() <= SPREAD * widest + brought);
                let near = member.links.iter().filter(|link| swarm.are_near(*id, **link)).count();
                prop_assert_eq!(member.near, near);
                for link in &member.links {
                    prop_assert!(link != id && swarm.members[link].links.contains(id));
                }
            }
            prop_assert_eq!(swarm.drawn.len(), swarm.members.len());
            prop_assert_eq!(swarm.watching.len(), watches.len());
        }
        // Whoever has something to hear was rung for.
        let rung = swarm.take_rung();
        for (n, (serial, _, mut known)) in watches {
            let before = known.clone();
            hear(&mut swarm, serial, &mut known);
            prop_assert_eq!(&known, links(&swarm, n));
            prop_assert!(rung.contains(&serial) || before == known);
        }
    }
}
