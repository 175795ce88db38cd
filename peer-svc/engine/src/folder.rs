//! What becomes of a file that is looked at: whether it is offered, hashed, waited for, or left alone; and which files
//! are looked at when.
//!
//! What holds (each line has a test):
//! - a file is hashed only once it was left alone for the quiet time: by its own time, or, if that lies in the future, by
//!   what was seen of it;
//! - what its owner withdrew is left alone, whatever becomes of it;
//! - a file that is gone is not offered, and one that is back as it was is offered again without being read;
//! - every file is looked at once in a round, a bounded number at a time, and at a steady pace from the start on.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What is recorded of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Nothing: it is new.
    None,
    /// Its owner withdrew it.
    Withdrawn,
    /// It is to be shared, and is offered at present, or not.
    Shared {
        /// Whether it is offered at present.
        offered: bool,
    },
}

/// What is seen of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Nothing: it was deleted, or its disk is away.
    Gone,
    /// It has the size and the time that are recorded.
    AsRecorded {
        /// Whether another file took its place since it was last seen, of the same size and time.
        replaced: bool,
    },
    /// It is new, or its size or its time is another than the recorded one.
    Other {
        /// Whether it was left alone for the quiet time.
        quiet: bool,
    },
}

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it stays what it is.
    Leave,
    /// Offer it as it is recorded.
    Offer,
    /// Stop offering it, and remember that it is missed.
    Miss,
    /// Stop offering it, and look again later.
    Wait,
    /// Stop offering it until its hash was taken.
    Hash,
}

/// Judges one file.
pub fn judge(record: Record, sight: Sight) -> Step {
    match (record, sight) {
        (Record::Withdrawn, _) | (Record::None, Sight::Gone) => Step::Leave,
        (Record::Shared { .. }, Sight::Gone) => Step::Miss,
        (Record::Shared { offered: true }, Sight::AsRecorded { .. }) => Step::Leave,
        (Record::Shared { offered: false }, Sight::AsRecorded { replaced: false }) => Step::Offer,
        (_, Sight::AsRecorded { .. } | Sight::Other { quiet: true }) => Step::Hash,
        (_, Sight::Other { quiet: false }) => Step::Wait,
    }
}

/// Files that are still written to.
#[derive(Debug)]
pub struct Settling<K, S> {
    quiet_time: Duration,
    files: BTreeMap<K, Unsettled<S>>,
}

#[derive(Debug)]
struct Unsettled<S> {
    stamp: S,
    since: Instant,
    due: Instant,
}

impl<K: Ord + Clone, S: PartialEq> Settling<K, S> {
    /// None yet.
    pub fn new(quiet_time: Duration) -> Self {
        Self { quiet_time, files: BTreeMap::new() }
    }

    /// Whether a file that is seen now was left alone for the quiet time. `age` is how long ago it was changed by its
    /// own time; none if that lies in the future. Remembered until it is quiet or forgotten.
    pub fn is_quiet(&mut self, file: &K, stamp: S, age: Option<Duration>, now: Instant) -> bool {
        let since = match self.files.get(file) {
            Some(seen) if seen.stamp == stamp => seen.since,
            _ => now,
        };
        let by_sight = since + self.quiet_time;
        let due = age.map_or(by_sight, |age| by_sight.min(now + self.quiet_time.saturating_sub(age)));
        if due <= now {
            self.files.remove(file);
            return true;
        }
        self.files.insert(file.clone(), Unsettled { stamp, since, due });
        false
    }

    /// The file is gone, or is nothing to wait for any more.
    pub fn forget(&mut self, file: &K) {
        self.files.remove(file);
    }

    /// How many are waited for.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether none is waited for.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// When the next one may be quiet.
    pub fn next_due(&self) -> Option<Instant> {
        self.files.values().map(|file| file.due).min()
    }

    /// Those that may be quiet now.
    pub fn due(&self, now: Instant) -> Vec<K> {
        self.files.iter().filter(|(_, file)| file.due <= now).map(|(key, _)| key.clone()).collect()
    }
}

/// Files looked at in one go: few enough to be over in no time.
pub const BATCH: usize = 256;
/// The pace of a round is never faster than one batch in this time.
const FASTEST: Duration = Duration::from_millis(50);

/// Walks round and round over all files, at a steady pace.
#[derive(Debug)]
pub struct Rounds<K> {
    every: Duration,
    after: Option<K>,
    next: Instant,
}

impl<K: Ord + Clone> Rounds<K> {
    /// A round takes about this long. So many files there are now, and none of them needs to be looked at at once.
    pub fn new(every: Duration, files: usize, now: Instant) -> Self {
        Self { every, after: None, next: now + pace(every, files) }
    }

    /// When the next batch is due.
    pub fn next_due(&self) -> Instant {
        self.next
    }

    /// The next batch of so many files in all; `following` gives the first files after one, in order.
    pub fn batch<I: IntoIterator<Item = K>>(
        &mut self,
        files: usize,
        now: Instant,
        following: impl FnOnce(Option<&K>) -> I,
    ) -> Vec<K> {
        let batch: Vec<K> = following(self.after.as_ref()).into_iter().take(BATCH).collect();
        // Fewer than there could be: the round is over, and begins anew the next time.
        self.after = if batch.len() < BATCH { None } else { batch.last().cloned() };
        self.next = now + pace(self.every, files);
        batch
    }
}

/// The time from one batch to the next.
fn pace(every: Duration, files: usize) -> Duration {
    // The last one may be empty: only then the round is known to be over.
    let batches = u32::try_from(files / BATCH + 1).unwrap_or(u32::MAX);
    (every / batches).max(FASTEST.min(every))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, ops::Bound};

    use proptest::prelude::*;

    use super::*;

    const QUIET: Duration = Duration::from_secs(5);

    #[test]
    fn files_are_judged_as_the_table_says() {
        use Sight::{AsRecorded, Gone, Other};
        let (new, out) = (Record::None, Record::Withdrawn);
        let (offered, not) = (Record::Shared { offered: true }, Record::Shared { offered: false });
        let (same, replaced) = (AsRecorded { replaced: false }, AsRecorded { replaced: true });
        let (quiet, busy) = (Other { quiet: true }, Other { quiet: false });
        for (record, sight, step) in [
            (new, Gone, Step::Leave),
            (new, quiet, Step::Hash),
            (new, busy, Step::Wait),
            (out, Gone, Step::Leave),
            (out, same, Step::Leave),
            (out, quiet, Step::Leave),
            (out, busy, Step::Leave),
            (offered, Gone, Step::Miss),
            (offered, same, Step::Leave),
            (offered, quiet, Step::Hash),
            (offered, busy, Step::Wait),
            (not, Gone, Step::Miss),
            (not, same, Step::Offer),
            (not, replaced, Step::Hash),
            (not, quiet, Step::Hash),
            (not, busy, Step::Wait),
        ] {
            assert_eq!(judge(record, sight), step, "{record:?} {sight:?}");
        }
    }

    #[test]
    fn a_file_of_the_future_is_quiet_once_it_was_seen_unchanged_for_long_enough() {
        let (mut settling, start) = (Settling::new(QUIET), Instant::now());
        assert!(!settling.is_quiet(&"a", 1, None, start));
        assert_eq!(settling.next_due(), Some(start + QUIET));
        assert!(!settling.is_quiet(&"a", 2, None, start + QUIET), "it grew");
        assert!(!settling.is_quiet(&"a", 2, None, start + QUIET + QUIET / 2));
        assert_eq!(settling.due(start + QUIET * 2), ["a"]);
        assert!(settling.is_quiet(&"a", 2, None, start + QUIET * 2));
        assert!(settling.is_empty());
    }

    proptest! {
        #[test]
        fn a_file_is_quiet_exactly_when_its_last_change_is_long_enough_ago(
            changes in proptest::collection::vec((0u64..10_000, any::<bool>()), 1..40),
        ) {
            let (mut settling, mut now) = (Settling::new(QUIET), Instant::now());
            let (mut stamp, mut changed) = (0, now);
            for (ms, changes) in changes {
                now += Duration::from_millis(ms);
                if changes {
                    (stamp, changed) = (stamp + 1, now);
                }
                let age = now - changed;
                let quiet = settling.is_quiet(&"a", stamp, Some(age), now);
                prop_assert_eq!(quiet, age >= QUIET);
                prop_assert_eq!(settling.next_due(), (!quiet).then(|| changed + QUIET));
            }
        }

        #[test]
        fn a_round_meets_every_file_once_in_bounded_batches(files in 0usize..2000, every in 0u64..100_000) {
            let all: BTreeSet<usize> = (0..files).collect();
            let (every, start) = (Duration::from_millis(every), Instant::now());
            let batches = u32::try_from(files / BATCH + 1).unwrap();
            let mut rounds = Rounds::new(every, files, start);
            let (mut met, mut now) = (Vec::new(), start);
            for _ in 0..=files / BATCH {
                prop_assert!(rounds.next_due() >= now + every / batches, "no batch comes early");
                now = now.max(rounds.next_due());
                let batch = rounds.batch(files, now, |after| {
                    let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(*after));
                    all.range((from, Bound::Unbounded)).copied().collect::<Vec<_>>()
                });
                prop_assert!(batch.len() <= BATCH);
                met.extend(batch);
            }
            prop_assert_eq!(met, all.into_iter().collect::<Vec<_>>());
            prop_assert!(now - start <= every + FASTEST * batches, "a round takes its time and no longer");
        }
    }
}
