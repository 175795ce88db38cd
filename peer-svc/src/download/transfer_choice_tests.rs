//! Fetches whose holder chooses the chunk.

use super::{tests::*, *};
use crate::fetch::News;

/// Marked by what was asked for, the file would be done with a chunk that never came.
#[test]
fn what_the_holder_chose_is_what_is_stored_and_offered_and_what_was_asked_for_is_asked_for_again() {
    let mut bench = Bench::located(20, &[1]);
    let fetch = bench.fetches[0].clone();
    let asked: BTreeSet<_> = bench.fetches.iter().map(|fetch| fetch.chunk).collect();
    let chosen = *fetch.alternatives.iter().find(|chunk| !asked.contains(chunk)).expect("one that waits");
    bench.apply(Input::News(fetch.id, News::Bound(chosen)));
    let effects = bench.stored(&Fetch { chunk: chosen, ..fetch.clone() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Offer { stored, .. } if stored.chunk() == chosen)));
    assert!(bench.transfer.stored().contains(chosen) && !bench.transfer.stored().contains(fetch.chunk));
    assert!(bench.transfer.missing().contains(fetch.chunk));
    let other = bench.fetches[0].clone();
    bench.apply(Input::News(other.id, News::Bound(fetch.chunk)));
    let effects = bench.stored(&other);
    let Failure::Internal(text) = failure(&effects) else { panic!("{effects:?}") };
    assert!(text.contains("was written where"), "{text}");
}

#[test]
fn a_chunk_that_comes_with_another_fetch_is_not_taken_twice() {
    let mut bench = Bench::located(8, &[1]);
    let [first, second] = &bench.fetches.clone()[..2] else { panic!("two fetches") };
    assert!(bench.apply(Input::News(first.id, News::Bound(first.chunk))).is_empty());
    let effects = bench.apply(Input::News(second.id, News::Bound(first.chunk)));
    assert!(matches!(effects[0], Effect::Abort(id) if id == second.id), "{effects:?}");
    assert!(bench.transfer.missing().contains(second.chunk) && bench.transfer.blamed().is_empty());
}
