//! What a peer holds its own download to: a limit of the rate, and a priority.

use drizzle_engine::meter::Intake;
use proptest::prelude::*;

use super::{tests::*, *};
use crate::fetch::{FetchFailure, error::FetchError};

/// Nothing came, and the peer holds the download to this.
fn held_to(own: Bounds) -> Input {
    Input::Counted(Counts { own, ..Counts::default() })
}

/// All fetches that run were held up for so long so far, and nothing came.
fn held_up(bench: &Bench, total: Duration) -> Input {
    let held_up = bench.fetches.iter().map(|fetch| (fetch.id, total)).collect();
    held_to(Bounds { held_up, ..Bounds::default() })
}

fn allowed(streams: Option<usize>) -> Input {
    held_to(Bounds { streams, ..Bounds::default() })
}

#[test]
fn a_download_runs_no_more_streams_than_its_priority_lets_it_and_all_of_them_later() {
    let mut bench = Bench::new(64, "", "");
    bench.holds(1);
    bench.apply(allowed(Some(1)));
    bench.apply(Input::Located(Located::Synced));
    assert_eq!(bench.fetches.len(), 1);
    let first = bench.fetches[0].clone();
    bench.stored(&first);
    assert_eq!(bench.fetches.len(), 1, "one after the other");
    bench.apply(allowed(None));
    assert!(bench.fetches.len() > 1);
}

/// Whether a download gives up whose only holder is busy for ten times its patience, while so many chunks come for this
/// peer's other downloads. Some bytes always come: those that say so.
fn gives_up_on_a_busy_holder(receiving: u32) -> bool {
    let mut bench = Bench::located(1, &[1]);
    let until = bench.now + 10 * PATIENCE;
    while bench.now < until && !bench.log.iter().any(|said| said.starts_with("End")) {
        while let Some(fetch) = bench.fetches.first().cloned() {
            bench.failed(&fetch, FetchFailure::Holder(FetchError::Busy));
        }
        bench.now += 100 * MS;
        let intake = Intake { rate: 1000.0, best: 1000.0 };
        bench.apply(Input::Counted(Counts { intake, receiving, ..Counts::default() }));
    }
    bench.log.iter().any(|said| said.starts_with("End"))
}

#[test]
fn a_download_whose_holder_is_busy_with_others_of_this_peer_loses_no_patience() {
    assert!(!gives_up_on_a_busy_holder(1));
    assert!(gives_up_on_a_busy_holder(0));
}

proptest! {
    /// However long the limit holds its fetches up, no holder is taken for slow, and it does not give up; when it does
    /// not, it does.
    #[test]
    fn a_download_that_waits_for_its_own_limit_loses_no_patience_and_asks_for_no_second_copy(
        waits in proptest::collection::vec(1u64..600_000, 1..20), chunks in 1u64..4,
    ) {
        // Each chunk is asked for, and another holder has all of them as well.
        let mut bench = Bench::located(chunks, &[1, 2]);
        let (asked, mut total) = (bench.fetches.len(), Duration::ZERO);
        for wait in waits {
            let wait = MS * u32::try_from(wait).unwrap();
            bench.now += wait;
            total += wait;
            let told = held_up(&bench, total);
            bench.apply(told);
            prop_assert_eq!(bench.fetches.len(), asked, "no second copy");
            prop_assert!(!bench.log.iter().any(|effect| effect.starts_with("End")), "{:?}", bench.log);
            prop_assert!(bench.transfer.blamed().is_empty());
        }
        bench.now += PATIENCE;
        let told = held_up(&bench, total);
        let effects = bench.apply(told);
        let gave_up = matches!(failure(&effects), Failure::GaveUp { .. });
        prop_assert!(gave_up);
    }
}
