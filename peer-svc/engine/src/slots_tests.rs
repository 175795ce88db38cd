//! Requesters of all kinds that come and go.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn peer(n: u8) -> Requester {
    Some(PeerId::from_bytes([n; 16]))
}

fn needs(n: u8, receiving: u32) -> Request {
    Request { receiving: Some(receiving), ..peer(n).into() }
}

fn granted(answer: Answer) -> Grant {
    match answer {
        Answer::Granted(grant) => grant,
        Answer::Busy => panic!("busy"),
    }
}

#[test]
fn a_lone_requester_may_have_every_slot_and_no_more() {
    let (mut slots, now) = (Slots::new(4), Instant::now());
    let grants: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), now))).collect();
    assert_eq!(slots.ask(peer(1), now), Answer::Busy, "the fifth is refused");
    assert_eq!(slots.taken(), 4);
    for grant in grants {
        slots.release(grant);
    }
    assert_eq!(slots.taken(), 0);
    let _last = granted(slots.ask(peer(1), now));
}

#[test]
fn a_lone_requester_has_no_more_than_every_slot_however_little_comes_to_it() {
    let (mut slots, now) = (Slots::new(4), Instant::now());
    let _grants: Vec<_> = (0..4).map(|_| granted(slots.ask(needs(1, 0), now))).collect();
    assert_eq!(slots.ask(needs(1, 0), now), Answer::Busy);
    let _other = granted(slots.ask(needs(2, 0), now));
}

#[test]
fn a_lone_requester_of_large_chunks_may_have_as_many_as_the_uplink_carries_and_others_are_served_beside_it() {
    let (mut slots, mut now) = (Slots::new(4), Instant::now());
    slots.begins(1 << 20);
    slots.sent(1 << 20, now);
    slots.sent(100 << 20, now + Duration::from_millis(500));
    now += Duration::from_secs(1);
    let hog: Vec<_> = (0..32).map(|_| granted(slots.ask(peer(1), now))).collect();
    assert_eq!(slots.ask(peer(1), now), Answer::Busy);
    let other: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(2), now))).collect();
    assert_eq!(slots.ask(peer(2), now), Answer::Busy, "it has its half of eight");
    assert_eq!((hog.len() + other.len(), slots.count()), (36, 8));
    hog.into_iter().for_each(|grant| slots.release(grant));
    // It was refused a moment ago, and waits.
    let more: Vec<_> = (0..5)
        .map_while(|_| match slots.ask(peer(1), now) {
            Answer::Granted(grant) => Some(grant),
            Answer::Busy => None,
        })
        .collect();
    assert_eq!(more.len(), 4, "no longer alone");
}

#[test]
fn no_peer_keeps_every_slot_while_another_one_waits_however_long_its_streams_take() {
    let (mut slots, now) = (Slots::new(4), Instant::now());
    let mut hog: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), now))).collect();
    // None of its streams ends.
    let other: Vec<_> = (0..2).map(|_| granted(slots.ask(peer(2), now))).collect();
    assert_eq!(slots.ask(peer(2), now), Answer::Busy, "it has its half");
    // What it holds beyond its share is not replaced.
    for _ in 0..2 {
        slots.release(hog.pop().unwrap());
        assert_eq!(slots.ask(peer(1), now), Answer::Busy);
    }
    slots.release(hog.pop().unwrap());
    hog.push(granted(slots.ask(peer(1), now)));
    assert_eq!((hog.len(), other.len(), slots.taken()), (2, 2, 4));
}

#[test]
fn a_slot_that_is_released_goes_to_the_peer_that_waits() {
    let (mut slots, now) = (Slots::new(2), Instant::now());
    let mut first = vec![granted(slots.ask(peer(1), now))];
    let _second = granted(slots.ask(peer(2), now));
    assert_eq!(slots.ask(peer(3), now), Answer::Busy, "each of two peers has its share");
    slots.release(first.pop().unwrap());
    assert_eq!(slots.ask(peer(2), now), Answer::Busy, "kept for a peer that has none");
    let _third = granted(slots.ask(peer(3), now));
}

#[test]
fn a_peer_that_was_refused_and_went_away_is_forgotten() {
    let (mut slots, now) = (Slots::new(2), Instant::now());
    let first = granted(slots.ask(peer(1), now));
    let _second = granted(slots.ask(peer(2), now));
    assert_eq!(slots.ask(peer(3), now), Answer::Busy);
    slots.release(first);
    assert_eq!(slots.ask(peer(2), now), Answer::Busy, "a slot is kept for the one that waits");
    let _first = granted(slots.ask(peer(2), now + MEMORY));
}

#[test]
fn slots_follow_the_uplink_while_slow_receivers_leave_room_in_it() {
    let (mut slots, mut now) = (Slots::new(2), Instant::now());
    let _slow = [granted(slots.ask(peer(1), now)), granted(slots.ask(peer(2), now))];
    let mut fast = None;
    for _ in 0..20 {
        now += MEMORY / 10;
        slots.sent(1000, now);
        if let Answer::Granted(grant) = slots.ask(peer(3), now) {
            fast.get_or_insert(grant);
        }
    }
    assert!(fast.is_some(), "a third stream is tried after a window, though each peer has but one");
    let refused = (0..Slots::most(2) + 1).filter(|_| matches!(slots.ask(peer(4), now), Answer::Busy)).count();
    assert!(refused > 0, "there is a bound");
}

#[test]
fn a_flood_of_requesters_takes_little_memory() {
    let (mut slots, mut now) = (Slots::new(1), Instant::now());
    let _only = granted(slots.ask(peer(1), now));
    let stranger = |n: u32| {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        Some(PeerId::from_bytes(id))
    };
    for n in 0..5_000 {
        now += Duration::from_nanos(1);
        assert_eq!(slots.ask(stranger(n), now), Answer::Busy);
        assert!(slots.refused.len() <= REMEMBERED);
    }
    assert!(slots.refused.contains_key(&stranger(4_999)) && !slots.refused.contains_key(&stranger(0)));
}

#[test]
fn a_peer_to_which_little_comes_is_served_beyond_the_slots_and_one_to_which_much_comes_waits_for_others() {
    let (mut slots, now) = (Slots::new(4), Instant::now());
    let grants: Vec<_> = (0..4).map(|n| granted(slots.ask(needs(n, 8), now))).collect();
    assert_eq!(slots.ask(needs(8, 8), now), Answer::Busy, "as much as usual");
    let needy = granted(slots.ask(needs(9, 0), now));
    assert_eq!(slots.taken(), 5);
    grants.into_iter().skip(1).chain([needy]).for_each(|grant| slots.release(grant));
    assert_eq!(slots.ask(needs(10, 64), now), Answer::Busy, "the free slots are for the one that waits");
    let _next = granted(slots.ask(needs(8, 8), now));
}

#[test]
fn far_peers_have_a_quarter_of_the_slots_while_near_ones_ask_and_all_otherwise() {
    let (mut slots, now) = (Slots::new(4), Instant::now());
    let far = |n| Request { is_far: true, ..peer(n).into() };
    let grants: Vec<_> = (0..4).map(|n| granted(slots.ask(far(n), now))).collect();
    grants.into_iter().for_each(|grant| slots.release(grant));
    let _near = granted(slots.ask(peer(9), now));
    let one = granted(slots.ask(far(1), now));
    assert_eq!(slots.ask(far(2), now), Answer::Busy, "though two slots are free");
    let _near = granted(slots.ask(peer(8), now));
    slots.release(one);
    let _two = granted(slots.ask(far(2), now));
    assert_eq!(slots.ask(far(3), now), Answer::Busy);
    let _three = granted(slots.ask(far(3), now + MEMORY));
}

#[test]
fn several_downloads_of_one_peer_are_one_requester() {
    let (mut slots, now) = (Slots::new(4), Instant::now());
    // Whichever files they are of: a request has no more than its peer's name.
    let mut many: Vec<_> = (0..4).map(|_| granted(slots.ask(peer(1), now))).collect();
    let other: Vec<_> = (0..2).map(|_| granted(slots.ask(peer(2), now))).collect();
    assert_eq!(slots.ask(peer(2), now), Answer::Busy);
    (0..3).for_each(|_| slots.release(many.pop().unwrap()));
    many.push(granted(slots.ask(peer(1), now)));
    assert_eq!(slots.ask(peer(1), now), Answer::Busy, "half of them, for two peers");
    assert_eq!((many.len(), other.len()), (2, 2));
}

/// Requesters that ask again every `every`, and at once when their chunk has come: how many chunks each got.
fn served(limit: RateLimit, count: usize, requesters: u8, every: Duration, chunks: usize) -> Vec<usize> {
    let (mut slots, mut now) = (Slots::new(count), Instant::now());
    slots.limit(limit);
    slots.begins(256 << 10);
    let (mut got, mut out) = (vec![0; requesters.into()], Vec::new());
    for chunk in 0.. {
        // The time of a chunk, in which all others ask again and again.
        for _ in 0..8 {
            now += every;
            for n in 0..requesters {
                if let Answer::Granted(grant) = slots.ask(peer(n), now) {
                    out.push((n, grant));
                }
            }
        }
        if chunk == chunks {
            break;
        }
        let (n, grant) = out.remove(0);
        slots.release(grant);
        got[usize::from(n)] += 1;
        // Nobody is as quick as the one whose chunk has just come.
        if let Answer::Granted(grant) = slots.ask(peer(n), now) {
            out.push((n, grant));
        }
    }
    got
}

#[test]
fn under_a_low_limit_more_requesters_than_slots_are_served_in_turn() {
    for (rate, requesters) in [(16 << 10, 3), (16 << 10, 7), (128 << 10, 3), (192 << 10, 8)] {
        let got = served(RateLimit::new(rate).unwrap(), 4, requesters, MEMORY / 2, 60);
        let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
        assert!(most - least <= 1, "{got:?}");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Ask(u8, Option<u32>, bool),
    Release(prop::sample::Index),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        // A quarter of the peers is far.
        4 => (0u8..12, prop::option::of(0u32..20)).prop_map(|(n, receiving)| Event::Ask(n, receiving, n % 4 == 3)),
        2 => any::<prop::sample::Index>().prop_map(Event::Release),
        1 => (0u64..1500).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn the_properties_hold(count in 1usize..9, bytes in 0u64..1000, events in proptest::collection::vec(events(), 1..200)) {
        let (mut slots, mut now) = (Slots::new(count), Instant::now());
        let (mut grants, mut near_asked): (Vec<Grant>, Option<Instant>) = (Vec::new(), None);
        let mut refused: BTreeMap<Requester, Instant> = BTreeMap::new();
        for event in events {
            match event {
                Event::Pass(ms) => now += Duration::from_millis(ms),
                Event::Release(at) if !grants.is_empty() => slots.release(grants.swap_remove(at.index(grants.len()))),
                Event::Release(_) => {}
                Event::Ask(n, receiving, is_far) => {
                    let requester = peer(n);
                    // A window that is over is judged before.
                    slots.sent(bytes, now);
                    let far = grants.iter().filter(|grant| grant.is_far).count();
                    let after_near = is_far && near_asked.is_some_and(|at| now < at + MEMORY);
                    if after_near && far >= (slots.count() / FAR).max(1) {
                        prop_assert_eq!(slots.ask(Request { requester, receiving, is_far }, now), Answer::Busy);
                        continue;
                    }
                    if !is_far {
                        near_asked = Some(now);
                    }
                    let held = grants.iter().filter(|grant| grant.requester == requester).count();
                    refused.retain(|_, at| now < *at + MEMORY);
                    let holders = grants.iter().map(|grant| grant.requester);
                    let competing: BTreeSet<_> =
                        holders.chain(refused.keys().copied()).chain([requester]).collect();
                    let wanted = refused.keys().any(|other| *other != requester);
                    let answer = slots.ask(Request { requester, receiving, is_far }, now);
                    let share = slots.count().div_ceil(competing.len());
                    let others = |other: &Requester| grants.iter().filter(|g| g.requester == *other).count();
                    let within: usize = competing.iter().map(|other| others(other).min(share)).sum();
                    match answer {
                        Answer::Granted(grant) => {
                            let most = slots.count() * if receiving.is_some() { 2 } else { 1 };
                            prop_assert!(within < most, "a slot that was taken was granted");
                            prop_assert!(!wanted || held < share, "more than a fair share");
                            refused.remove(&requester);
                            grants.push(grant);
                        }
                        Answer::Busy => {
                            let free = within < slots.count() && grants.len() < Slots::most(count);
                            let needs = receiving.is_none() || !wanted;
                            prop_assert!(!free || !needs || held >= share, "refused though there was a slot of its share");
                            prop_assert!(wanted || grants.len() >= slots.count(), "refused for no reason");
                            refused.insert(requester, now);
                        }
                    }
                }
            }
            prop_assert_eq!(slots.taken(), grants.len());
            prop_assert!(slots.taken() <= Slots::most(count));
        }
    }
}
