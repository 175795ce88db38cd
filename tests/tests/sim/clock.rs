//! Time goes forward, and events of one time come in the order in which they were planned.

use drizzle_tests::sim::clock::{Clock, MILLI, Nanos};
use proptest::prelude::*;

#[test]
fn events_that_were_planned_together_count_each() {
    let mut clock: Clock<&str> = Clock::default();
    clock.plan(MILLI, "before");
    clock.plan_together(MILLI, 5, "together");
    clock.plan(MILLI, "after");
    assert_eq!(clock.planned(), 7);
    assert_eq!([(); 4].map(|()| clock.advance()), [Some("before"), Some("together"), Some("after"), None]);
}

proptest! {
    #[test]
    fn events_come_in_the_order_of_their_times_and_then_of_their_planning(
        // Some at once, some in this slice of time, some far beyond the ring.
        pauses in proptest::collection::vec(prop_oneof![Just(0), 0..20_000u64, 0..100 * MILLI, 0..5000 * MILLI], 1..300),
        at_first in 1usize..50,
    ) {
        let mut clock: Clock<usize> = Clock::default();
        let mut due: Vec<(Nanos, usize)> = Vec::new();
        let mut pauses = pauses.into_iter().enumerate();
        let mut plan = |clock: &mut Clock<usize>, due: &mut Vec<(Nanos, usize)>| {
            if let Some((nth, pause)) = pauses.next() {
                due.push((clock.now() + pause, nth));
                clock.plan(clock.now() + pause, nth);
            }
        };
        for _ in 0..at_first {
            plan(&mut clock, &mut due);
        }
        while let Some(nth) = clock.advance() {
            due.sort_unstable();
            prop_assert_eq!(due.remove(0), (clock.now(), nth));
            plan(&mut clock, &mut due);
            plan(&mut clock, &mut due);
        }
        prop_assert!(due.is_empty());
    }
}
