//! The properties of a limit, under a virtual clock.

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;

fn limit(rate: u64) -> RateLimit {
    RateLimit::new(rate).unwrap()
}

/// Some flows under a limit; each of those in `steady` always has another wish.
struct Bench {
    limiter: Limiter<u8>,
    begun: Instant,
    now: Instant,
    /// Weight and bytes of a wish.
    steady: BTreeMap<u8, (u64, u64)>,
    waiting: BTreeMap<Wish, (u8, u64)>,
    went: Vec<(Duration, u8, u64)>,
}

impl Bench {
    fn new(rate: u64) -> Self {
        let now = Instant::now();
        let (steady, waiting, went) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { limiter: Limiter::new(limit(rate), now), begun: now, now, steady, waiting, went }
    }

    fn ask(&mut self, flow: u8, weight: u64, bytes: u64) -> Wish {
        let wish = self.limiter.ask(flow, weight, bytes);
        self.waiting.insert(wish, (flow, bytes));
        wish
    }

    fn keep_asking(&mut self, flow: u8, weight: u64, bytes: u64) {
        self.steady.insert(flow, (weight, bytes));
        self.ask(flow, weight, bytes);
    }

    fn grant(&mut self) {
        while let Some(wish) = self.limiter.grant(self.now) {
            let (flow, bytes) = self.waiting.remove(&wish).expect("granted once");
            let earlier = self.waiting.iter().any(|(other, (same, _))| *same == flow && *other < wish);
            assert!(!earlier, "in the order of asking");
            self.went.push((self.now - self.begun, flow, bytes));
            if let Some((weight, bytes)) = self.steady.get(&flow).copied() {
                self.ask(flow, weight, bytes);
            }
        }
    }

    /// Lets time pass, as a driver does that is punctual.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.grant();
            let next = self.limiter.next_at();
            assert_eq!(next.is_some(), !self.waiting.is_empty());
            let Some(next) = next.filter(|next| *next <= end) else { break };
            assert!(next > self.now, "there is nothing to grant before");
            let before = self.went.len();
            if next > self.now + Duration::from_nanos(1) {
                self.now = next - Duration::from_nanos(1);
                self.grant();
                assert_eq!(self.went.len(), before, "not before its time");
            }
            self.now = next;
        }
        self.now = end;
        self.grant();
    }

    fn bytes_of(&self, flow: u8) -> u64 {
        self.went.iter().filter(|(_, other, _)| *other == flow).map(|(.., bytes)| bytes).sum()
    }

    fn total(&self) -> u64 {
        self.went.iter().map(|(.., bytes)| bytes).sum()
    }

    /// No stretch of time has more in it than the rate and a burst.
    fn assert_no_more_than(&self, rate: u64) {
        for (nth, (from, ..)) in self.went.iter().enumerate() {
            let mut bytes = 0;
            for (at, _, more) in &self.went[nth..] {
                bytes += more;
                let let_through = (*at - *from).as_secs_f64() * rate as f64 + burst(limit(rate)) as f64;
                assert!(bytes as f64 <= let_through + 1.0, "{bytes} in {:?}", *at - *from);
            }
        }
    }
}

#[test]
fn a_message_fits_into_a_burst_and_a_low_rate_makes_it_small() {
    for (rate, message) in [(16 * KIB, 4 * KIB), (256 * KIB, 6550), (1 << 20, 26_200), (1 << 30, 256 * KIB)] {
        assert_eq!(message_size(limit(rate)) as u64, message, "{rate}");
        assert!(burst(limit(rate)) >= 2 * message);
    }
    assert_eq!(message_size(RateLimit::UNLIMITED), MESSAGE_SIZE);
}

#[test]
fn without_a_limit_everything_goes_at_once() {
    let mut limiter = Limiter::new(RateLimit::UNLIMITED, Instant::now());
    let wishes: Vec<Wish> = (0..9).map(|flow: u8| limiter.ask(flow % 3, 1, u64::MAX)).collect();
    let mut granted: Vec<Wish> = std::iter::from_fn(|| limiter.grant(Instant::now())).collect();
    granted.sort();
    assert_eq!((granted, limiter.next_at()), (wishes, None));
}

#[test]
fn a_limit_that_is_lifted_lets_go_at_once_what_waits_and_one_that_comes_counts_at_once() {
    let mut bench = Bench::new(16 * KIB);
    for _ in 0..4 {
        bench.ask(1, 1, 256 * KIB);
    }
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.went.len(), 0);
    bench.limiter.set(RateLimit::UNLIMITED, bench.now);
    bench.grant();
    assert_eq!(bench.went.len(), 4);
    bench.limiter.set(limit(16 * KIB), bench.now);
    bench.ask(1, 1, 4 * KIB);
    bench.grant();
    assert_eq!(bench.went.len(), 4, "what was let go a moment ago is enough");
    bench.pass(Duration::from_millis(250));
    assert_eq!(bench.went.len(), 5);
}

#[test]
fn the_gauge_tells_of_the_last_second_or_two() {
    let begun = Instant::now();
    let at = |millis: u64| begun + Duration::from_millis(millis);
    let mut gauge = Gauge::new(begun);
    for tenth in 1..=50 {
        gauge.went(1000, at(tenth * 100));
        assert!(tenth < 20 || (9_000..=11_000).contains(&gauge.rate(at(tenth * 100))), "{tenth}");
    }
    assert_eq!(gauge.rate(at(7_500)), 0);
}

fn rates() -> impl Strategy<Value = u64> {
    prop_oneof![16 * KIB..64 * KIB, 64 * KIB..4096 * KIB, Just(100 << 20)]
}

proptest! {
    #[test]
    fn no_stretch_has_more_than_its_rate_and_a_burst_and_while_one_waits_no_less_goes(
        rate in rates(),
        steps in proptest::collection::vec((0u8..5, 1u64..17, 0u64..400, any::<bool>()), 1..40),
    ) {
        let mut bench = Bench::new(rate);
        let portion = message_size(limit(rate)) as u64;
        let mut idle_until = Duration::ZERO;
        for (flow, weight, millis, withdraws) in steps {
            let wish = bench.ask(flow, weight, 1 + (millis * 7919) % portion);
            if withdraws {
                bench.limiter.withdraw(&flow, wish);
                bench.waiting.remove(&wish);
            }
            let (before, from, full) = (bench.total(), bench.now, bench.limiter.tokens);
            bench.pass(Duration::from_millis(millis));
            if bench.waiting.is_empty() {
                idle_until = bench.now - bench.begun;
                continue;
            }
            // Somebody waited all the time.
            let could = full / NANOS + (bench.now - from).as_nanos() * u128::from(rate) / NANOS;
            let went = u128::from(bench.total() - before);
            prop_assert!(went + u128::from(portion) + 1 >= could, "{went} of {could} since {idle_until:?}");
        }
        bench.assert_no_more_than(rate);
    }

    #[test]
    fn flows_that_wait_share_by_their_weights_and_an_idle_one_neither_catches_up_nor_is_in_the_way(
        rate in rates(),
        weights in proptest::collection::vec(prop_oneof![Just(1u64), Just(4), Just(16)], 2..5),
        larger in any::<bool>(), idles in 0u64..4,
    ) {
        let portion = message_size(limit(rate)) as u64;
        let mut bench = Bench::new(rate);
        let wish = if larger { 3 * portion } else { portion };
        let seconds = Duration::from_secs_f64(200.0 * portion as f64 / rate as f64);
        // The first one comes later than the others, or goes and comes back.
        for (flow, weight) in (0u8..).zip(&weights).skip(1) {
            bench.keep_asking(flow, *weight, wish);
        }
        bench.pass(seconds * u32::try_from(idles).unwrap());
        let before: Vec<u64> = (0u8..).zip(&weights).map(|(flow, _)| bench.bytes_of(flow)).collect();
        bench.keep_asking(0, weights[0], wish);
        bench.pass(seconds);
        let had: Vec<f64> = (0u8..).zip(&weights).zip(&before)
            .map(|((flow, weight), before)| (bench.bytes_of(flow) - before) as f64 / *weight as f64).collect();
        for (a, one) in had.iter().enumerate() {
            for (b, other) in had.iter().enumerate() {
                // Wishes are counted when their last portion goes.
                let slack = 2.0 * wish as f64 / weights[a] as f64 + 2.0 * wish as f64 / weights[b] as f64;
                prop_assert!((one - other).abs() <= slack + 1.0, "{had:?} for {weights:?}");
            }
        }
        prop_assert!(bench.bytes_of(0) > 0, "none starves");
    }

    #[test]
    fn a_changed_rate_counts_from_its_change_and_no_share_is_lost(
        changes in proptest::collection::vec((16 * KIB..2048 * KIB, 1u64..1000), 1..9),
    ) {
        let mut bench = Bench::new(changes[0].0);
        bench.keep_asking(1, 1, 4 * KIB);
        bench.keep_asking(2, 4, 4 * KIB);
        let (mut let_through, mut bursts, mut portions) = (0.0, burst(bench.limiter.limit()), 0);
        for (rate, millis) in changes {
            bench.limiter.set(limit(rate), bench.now);
            let before = bench.total();
            bench.pass(Duration::from_millis(millis));
            let now = bench.total() - before;
            let could = rate as f64 * millis as f64 / 1000.0;
            bursts = bursts.max(burst(limit(rate)));
            portions += 4 * KIB;
            prop_assert!(now as f64 <= could + bursts as f64 + 1.0, "{now} of {could}");
            let_through += could;
        }
        let total = bench.total() as f64;
        prop_assert!(total <= let_through + bursts as f64 + 1.0);
        // What a lower rate cannot hold of a saved burst is lost, and no more than that at each change.
        prop_assert!(total + portions as f64 + 8.0 * KIB as f64 >= let_through, "{total} of {let_through}");
        let (one, four) = (bench.bytes_of(1), bench.bytes_of(2));
        prop_assert!(four + 64 * KIB >= one, "the turn is kept: {one} and {four}");
        prop_assert!(four <= 4 * one + 64 * KIB && 4 * one <= four + 64 * KIB, "{one} and {four}");
    }
}
