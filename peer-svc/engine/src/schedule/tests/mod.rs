//! Cases with a name; random events are in `properties`, whole downloads among bad holders in `world`,
//! a swarm of schedulers in `swarm`.

mod properties;
mod swarm;
mod world;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use drizzle_proto::{Address, ChunkCount, ChunkIndex, ChunkSet, Labels, PeerId, PeerInfo};
use rand::{SeedableRng, rngs::StdRng};

use super::*;

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 16])
}

fn info(n: u8) -> PeerInfo {
    PeerInfo::new(peer(n), Address::new(&format!("host{n}:1")).unwrap(), Labels::default())
}

fn count(n: u32) -> ChunkCount {
    ChunkCount::new(n).unwrap()
}

fn full(n: u32) -> ChunkSet {
    ChunkSet::full(count(n))
}

fn some(n: u32, chunks: impl IntoIterator<Item = u32>) -> ChunkSet {
    let mut set = ChunkSet::empty(count(n));
    for chunk in chunks {
        set.insert(count(n).index(chunk).unwrap());
    }
    set
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn limits(in_flight: usize, per_holder: usize) -> Limits {
    Limits { in_flight, per_holder }
}

const MS: Duration = Duration::from_millis(1);

/// A scheduler with its clock and random source at hand.
struct Bench {
    scheduler: Scheduler,
    now: Instant,
    rng: StdRng,
}

impl Bench {
    fn new(chunks: u32, limits: Limits, holders: &[(u8, ChunkSet)]) -> Self {
        let mut scheduler = Scheduler::new(&full(chunks), limits);
        for (holder, chunks) in holders {
            scheduler.holder_is(info(*holder), chunks.clone());
        }
        Self { scheduler, now: Instant::now(), rng: rng(7) }
    }

    fn next(&mut self) -> Option<Fetch> {
        self.scheduler.next(self.now, &mut self.rng)
    }

    fn all(&mut self) -> Vec<Fetch> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn end(&mut self, fetch: &Fetch, outcome: Outcome) -> Vec<FetchId> {
        self.scheduler.finished(fetch.id, outcome, self.now, &mut self.rng)
    }
}

#[test]
fn with_one_full_and_one_half_holder_the_scarce_half_goes_first() {
    let (n, half) = (64, some(64, 32..64));
    let mut bench = Bench::new(n, limits(8, 4), &[(1, full(n)), (2, half.clone())]);
    let (mut scarce_left, mut from_half) = (32, 0);
    let mut running = bench.all();
    assert!(running.iter().any(|fetch| fetch.holder.id() == peer(2)), "the half holder must not idle meanwhile");
    while !running.is_empty() {
        let fetch = running.remove(0);
        if fetch.holder.id() == peer(2) {
            from_half += 1;
        } else if half.contains(fetch.chunk) {
            assert_eq!(scarce_left, 0, "chunk {} of both asked of the full holder too early", fetch.chunk);
        } else {
            scarce_left -= 1;
        }
        bench.now += 10 * MS;
        bench.end(&fetch, Outcome::Stored);
        running.extend(bench.all());
    }
    assert!(bench.scheduler.is_complete());
    assert!(from_half > 16, "{from_half} from the half holder");
}

#[test]
fn ties_among_chunks_are_spread_evenly() {
    let mut firsts = [0u32; 64];
    for seed in 0..6400 {
        let mut scheduler = Scheduler::new(&full(64), limits(8, 4));
        scheduler.holder_is(info(1), full(64));
        firsts[scheduler.next(Instant::now(), &mut rng(seed)).unwrap().chunk.as_usize()] += 1;
    }
    // 100 expected each, standard deviation 10.
    assert!(firsts.iter().all(|picked| (50..150).contains(picked)), "{firsts:?}");
}

#[test]
fn ties_among_holders_are_spread_evenly_also_when_few_have_the_chunk() {
    let able = [3u8, 17, 29];
    let mut picked = [0u32; 40];
    for seed in 0..3000 {
        let mut scheduler = Scheduler::new(&some(8, [0]), limits(8, 4));
        for holder in 0..40u8 {
            scheduler.holder_is(info(holder), some(8, [u32::from(!able.contains(&holder))]));
        }
        let fetch = scheduler.next(Instant::now(), &mut rng(seed)).unwrap();
        picked[usize::from(fetch.holder.id().as_bytes()[0])] += 1;
    }
    assert!(able.iter().all(|&holder| (850..1150).contains(&picked[usize::from(holder)])), "{picked:?}");
}

/// More holders stand on a shelf than are tried blindly, and few of them have the chunk.
#[test]
fn ties_are_spread_evenly_on_a_long_shelf() {
    let (holders, runs) = (40u8, 8000);
    let mut picked = [0u32; 40];
    for seed in 0..runs {
        let mut scheduler = Scheduler::new(&full(20), limits(8, 4));
        for holder in 0..holders {
            // Each chunk has two holders, so that all are equally rare and every holder is a candidate.
            scheduler.holder_is(info(holder), some(20, [u32::from(holder / 2)]));
        }
        let fetch = scheduler.next(Instant::now(), &mut rng(seed)).unwrap();
        let holder = fetch.holder.id().as_bytes()[0];
        assert_eq!(u32::from(holder / 2), fetch.chunk.get(), "it has the chunk");
        picked[usize::from(holder)] += 1;
    }
    // 200 expected each, standard deviation 14.
    assert!(picked.iter().all(|times| (130..270).contains(times)), "{picked:?}");
}

#[test]
fn two_peers_take_different_ways() {
    let order = |seed| {
        let (mut scheduler, mut rng, now) = (Scheduler::new(&full(100), limits(1, 1)), rng(seed), Instant::now());
        scheduler.holder_is(info(1), full(100));
        std::iter::from_fn(|| {
            let fetch = scheduler.next(now, &mut rng)?;
            scheduler.finished(fetch.id, Outcome::Stored, now, &mut rng);
            Some(fetch.chunk)
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1), "the same seed must replay");
    let same = order(1).iter().zip(order(2)).filter(|(a, b)| **a == *b).count();
    assert!(same < 10, "{same} of 100 chunks at the same place");
}

#[test]
fn the_load_is_spread_over_the_holders() {
    let mut bench = Bench::new(100, limits(8, 4), &[1, 2, 3, 4].map(|holder| (holder, full(100))));
    let running = bench.all();
    for holder in 1..=4 {
        assert_eq!(running.iter().filter(|fetch| fetch.holder.id() == peer(holder)).count(), 2);
    }
}

#[test]
fn the_only_source_is_spared_while_another_holder_has_room() {
    let asked_of_source = |in_flight| {
        let most = some(100, 0..99);
        let mut bench = Bench::new(100, limits(in_flight, 4), &[(1, full(100)), (2, most.clone()), (3, most)]);
        bench.all().iter().filter(|fetch| fetch.holder.id() == peer(1)).count()
    };
    assert_eq!(asked_of_source(8), 1, "for what nobody else has");
    assert_eq!(asked_of_source(16), 4, "for what the others have no room for, too");
}

#[test]
fn a_busy_holder_is_not_polled() {
    let mut bench = Bench::new(100, limits(8, 4), &[(1, full(100))]);
    let running = bench.all();
    assert_eq!(running.len(), 4);
    // One slot is all it has: three are told busy, and nothing is asked until the one is done.
    for fetch in &running[..3] {
        bench.end(fetch, Outcome::Busy);
        assert_eq!(bench.next(), None);
    }
    assert_eq!(bench.scheduler.wake_at(bench.now), None, "only an event can help");
    bench.end(&running[3], Outcome::Stored);
    assert_eq!(bench.all().len(), 2, "the freed slot, and one more to see");
}

#[test]
fn a_wholly_busy_holder_is_asked_again_by_the_clock() {
    let mut bench = Bench::new(10, limits(8, 1), &[(1, full(10))]);
    let fetch = bench.next().unwrap();
    bench.end(&fetch, Outcome::Busy);
    assert_eq!(bench.next(), None);
    let wake = bench.scheduler.wake_at(bench.now).unwrap();
    assert!((20 * MS..=500 * MS).contains(&(wake - bench.now)));
    bench.now = wake - MS;
    assert_eq!(bench.next(), None);
    bench.now = wake;
    assert!(bench.next().is_some());
}

#[test]
fn wrong_bytes_are_never_asked_for_again_from_the_same_holder() {
    let mut bench = Bench::new(1, limits(8, 4), &[(1, full(1))]);
    let fetch = bench.next().unwrap();
    bench.end(&fetch, Outcome::Failed(Offence::WrongBytes));
    bench.scheduler.holder_gone(peer(1));
    bench.scheduler.holder_is(info(1), full(1));
    bench.scheduler.holder_added(peer(1), &full(1));
    bench.now += 86_400_000 * MS;
    assert_eq!(bench.next(), None);
    let nothing = ChunkSet::empty(count(1));
    assert_eq!(bench.scheduler.supply(bench.now), Supply { unheld: full(1), avoided: nothing, gone: false });
    assert_eq!(bench.scheduler.tainted(), full(1));
    let blame = Blame { holder: peer(1), offence: Offence::WrongBytes, chunks: full(1) };
    assert_eq!(bench.scheduler.blame(), [blame]);
    bench.scheduler.holder_is(info(2), full(1));
    let fetch = bench.next().unwrap();
    assert_eq!(fetch.holder.id(), peer(2));
    bench.end(&fetch, Outcome::Stored);
    assert_eq!(bench.scheduler.tainted().len(), 0, "the chunk is here now");
}

#[test]
fn an_offender_that_leaves_and_returns_is_still_avoided() {
    let mut bench = Bench::new(4, limits(8, 1), &[(1, full(4))]);
    let fetch = bench.next().unwrap();
    bench.end(&fetch, Outcome::Failed(Offence::Stalled));
    bench.scheduler.holder_gone(peer(1));
    assert_eq!(bench.scheduler.supply(bench.now).unheld, full(4));
    bench.scheduler.holder_is(info(1), full(4));
    assert_eq!(bench.scheduler.supply(bench.now).avoided, full(4));
    assert_eq!(bench.next(), None);
    bench.now = bench.scheduler.wake_at(bench.now).unwrap();
    assert_eq!(bench.all().len(), 1);
}

#[test]
fn what_a_holder_has_not_is_asked_elsewhere_and_may_be_announced_again() {
    let mut bench = Bench::new(2, limits(1, 1), &[(1, full(2))]);
    let fetch = bench.next().unwrap();
    bench.end(&fetch, Outcome::Failed(Offence::NotHeld));
    assert_eq!(bench.scheduler.supply(bench.now).unheld, some(2, [fetch.chunk.get()]));
    bench.now = bench.scheduler.wake_at(bench.now).unwrap();
    let other = bench.next().unwrap();
    assert_ne!(other.chunk, fetch.chunk);
    bench.end(&other, Outcome::Stored);
    assert_eq!(bench.next(), None);
    bench.scheduler.holder_added(peer(1), &full(2));
    assert_eq!(bench.next().unwrap().chunk, fetch.chunk);
}

#[test]
fn a_holder_whose_file_is_gone_is_told_apart_until_it_gives_a_chunk() {
    let mut bench = Bench::new(2, limits(1, 1), &[(1, full(2))]);
    assert!(!bench.scheduler.supply(bench.now).gone);
    let fetch = bench.next().unwrap();
    bench.end(&fetch, Outcome::Failed(Offence::Gone));
    bench.scheduler.holder_gone(peer(1));
    let supply = bench.scheduler.supply(bench.now);
    assert_eq!((supply.unheld, supply.gone), (full(2), true), "also once it was withdrawn");
    assert_eq!(bench.scheduler.tainted().len(), 0, "nothing was wrong with it");
    bench.scheduler.holder_is(info(1), full(2));
    bench.now = bench.scheduler.wake_at(bench.now).unwrap();
    let again = bench.next().unwrap();
    bench.end(&again, Outcome::Stored);
    assert!(!bench.scheduler.supply(bench.now).gone, "it is back");
}

#[test]
fn a_chunk_of_which_a_part_is_kept_goes_on_before_rarer_ones_begin() {
    let broken = [Outcome::Failed(Offence::BrokeOff), Outcome::Failed(Offence::Stalled), Outcome::Busy];
    for outcome in broken.into_iter().chain([Outcome::Cancelled]) {
        let mut bench = Bench::new(50, limits(2, 1), &[(1, full(50)), (2, full(50)), (3, full(50))]);
        let fetch = bench.next().unwrap();
        begins(&mut bench, &fetch);
        // From now on it is the most common one.
        bench.scheduler.holder_is(info(4), some(50, [fetch.chunk.get()]));
        bench.end(&fetch, outcome);
        assert_eq!(bench.next().unwrap().chunk, fetch.chunk, "{outcome:?}");
    }
}

#[test]
fn a_chunk_whose_part_is_wrong_or_of_which_nothing_came_waits_its_turn() {
    for (outcome, has_begun) in
        [(Outcome::Failed(Offence::WrongBytes), true), (Outcome::Failed(Offence::Stalled), false)]
    {
        let mut bench = Bench::new(50, limits(2, 1), &[(1, full(50)), (2, full(50)), (3, full(50))]);
        let fetch = bench.next().unwrap();
        if has_begun {
            begins(&mut bench, &fetch);
        }
        // From now on it is the most common one.
        bench.scheduler.holder_is(info(4), some(50, [fetch.chunk.get()]));
        bench.end(&fetch, outcome);
        assert_ne!(bench.next().unwrap().chunk, fetch.chunk, "{outcome:?}");
    }
}

/// Half of the fetch's chunk comes.
fn begins(bench: &mut Bench, fetch: &Fetch) {
    bench.scheduler.moved(fetch.id, 0, 1 << 20, bench.now);
    bench.scheduler.moved(fetch.id, 1 << 19, 1 << 20, bench.now);
}

#[test]
fn a_slow_tail_gets_one_second_copy_and_the_loser_is_cancelled() {
    let mut bench = Bench::new(2, limits(8, 1), &[(1, full(2)), (2, full(2)), (3, full(2))]);
    let [slow, quick] = &bench.all()[..] else { panic!("two chunks, two fetches") };
    bench.now += 200 * MS;
    bench.end(quick, Outcome::Stored);
    assert_eq!(bench.next(), None, "not slow yet");
    let wake = bench.scheduler.wake_at(bench.now).unwrap();
    assert_eq!(wake - bench.now, 200 * MS, "twice the typical duration after the start");
    bench.now = wake;
    let [copy] = &bench.all()[..] else { panic!("one second copy, no third") };
    assert_eq!(copy.chunk, slow.chunk);
    assert_ne!(copy.holder, slow.holder);
    assert_eq!(bench.end(copy, Outcome::Stored), [slow.id]);
    assert!(bench.scheduler.is_complete());
    assert_eq!(bench.end(slow, Outcome::Cancelled), []);
    assert_eq!(bench.scheduler.in_flight(), 0);
}

#[test]
fn a_copy_that_outlives_the_first_is_rescued_in_turn() {
    let mut bench = Bench::new(1, limits(8, 1), &[(1, full(1)), (2, full(1)), (3, full(1))]);
    let first = bench.next().unwrap();
    bench.now += 5000 * MS;
    let second = bench.next().unwrap();
    bench.end(&first, Outcome::Failed(Offence::Stalled));
    bench.now = bench.scheduler.wake_at(bench.now).unwrap() + 5000 * MS;
    let third = bench.next().unwrap();
    assert_ne!(third.holder, second.holder);
    assert_eq!(bench.next(), None);
}

#[test]
fn a_lost_chunk_is_asked_for_again() {
    let mut bench = Bench::new(2, limits(8, 4), &[(1, full(2))]);
    for fetch in bench.all() {
        bench.end(&fetch, Outcome::Stored);
    }
    assert!(bench.scheduler.is_complete());
    bench.scheduler.lost(count(2).index(1).unwrap());
    assert_eq!(bench.scheduler.missing(), &some(2, [1]));
    let [again] = &bench.all()[..] else { panic!("one fetch") };
    assert_eq!(again.chunk.get(), 1);
}

/// The second copy that lost still runs when the chunk turns out to be missing: it is the first copy now.
#[test]
fn a_lost_chunk_that_is_still_in_flight_is_not_asked_of_the_same_holder() {
    let mut bench = Bench::new(1, limits(8, 4), &[(1, full(1)), (2, full(1))]);
    let first = bench.next().unwrap();
    bench.now += 5000 * MS;
    let second = bench.next().unwrap();
    assert_eq!(bench.end(&first, Outcome::Stored), [second.id]);
    bench.scheduler.holder_gone(first.holder.id());
    bench.scheduler.lost(first.chunk);
    bench.now += 50_000 * MS;
    assert_eq!(bench.next(), None, "its holder is slow already");
    bench.scheduler.holder_is(first.holder.clone(), full(1));
    assert_eq!(bench.next().unwrap().holder, first.holder);
}

#[test]
fn what_the_only_full_holder_chose_is_what_comes_and_what_was_asked_for_waits_again() {
    let mut bench = Bench::new(4, limits(2, 2), &[(1, full(4)), (2, some(4, [0]))]);
    let first = bench.next().unwrap();
    assert_eq!((first.holder.id(), first.alternatives.len()), (peer(1), 2), "chunk 0 is less rare");
    let chosen = first.alternatives[0];
    assert_eq!(bench.scheduler.bound(first.id, chosen), Bound::GoesOn);
    assert_eq!(bench.scheduler.chunk(first.id), Some(chosen));
    bench.end(&first, Outcome::Stored);
    assert!(!bench.scheduler.missing().contains(chosen) && bench.scheduler.missing().contains(first.chunk));
    assert!(bench.all().iter().any(|fetch| fetch.chunk == first.chunk || fetch.alternatives.contains(&first.chunk)));
}

#[test]
fn two_fetches_change_places_when_the_holder_chose_so() {
    let mut bench = Bench::new(2, limits(2, 2), &[(1, full(2))]);
    let [first, second] = &bench.all()[..] else { panic!("two chunks, two fetches") };
    assert_eq!(second.alternatives, [first.chunk]);
    assert_eq!(bench.scheduler.bound(second.id, first.chunk), Bound::GoesOn);
    assert_eq!(bench.scheduler.chunk(first.id), Some(second.chunk));
    assert_eq!(bench.scheduler.bound(first.id, first.chunk), Bound::NotWanted, "it comes with the other one");
}

#[test]
fn of_a_large_class_a_random_part_is_named_and_of_many_holders_none_may_choose() {
    let n = 5000;
    let mut bench = Bench::new(n, limits(8, 4), &[(1, full(n))]);
    let fetch = bench.next().unwrap();
    let distinct: BTreeSet<_> = fetch.alternatives.iter().chain([&fetch.chunk]).collect();
    assert_eq!(distinct.len(), 65);
    bench.scheduler.holder_is(info(2), full(n));
    assert_eq!(bench.next().unwrap().alternatives, []);
}

#[test]
fn an_empty_download_is_complete() {
    let mut bench = Bench::new(0, limits(8, 4), &[(1, full(0))]);
    assert!(bench.scheduler.is_complete());
    assert_eq!(bench.next(), None);
    assert_eq!(bench.scheduler.wake_at(bench.now), None);
}

#[test]
fn the_largest_file_from_a_seed_and_partial_holders() {
    let n = drizzle_proto::layout::MAX_CHUNKS;
    let mut bench = Bench::new(n, limits(8, 4), &[(1, full(n)), (2, some(n, n / 2..n))]);
    for holder in 3..10 {
        bench.scheduler.holder_is(info(holder), some(n, (0..n).filter(|chunk| chunk % u32::from(holder) == 0)));
    }
    let mut running = std::collections::VecDeque::from(bench.all());
    let mut stored = BTreeSet::new();
    while let Some(fetch) = running.pop_front() {
        bench.now += MS;
        bench.end(&fetch, Outcome::Stored);
        assert!(stored.insert(fetch.chunk));
        running.extend(bench.all());
    }
    assert_eq!(stored.len(), n as usize);
}
