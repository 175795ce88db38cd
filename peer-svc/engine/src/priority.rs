//! Which of the downloads of one peer goes first.
//!
//! A priority is a weight: it counts under a limit of the rate ([`crate::rate`]) and for memory ([`crate::memory`]), where
//! shares are known. Where neither is short the network is, and nobody knows its rate: there a download makes room for
//! one of a higher priority by running fewer streams while that one makes progress.
//!
//! What holds (the property test checks each line):
//! - no download is starved: each may run one stream at least, at any time;
//! - none is held back by one of its own or a lower priority, nor by one that made no progress for [`RECENT`];
//! - one that is held back runs the share of its streams that its weight is of the highest of those, rounded down;
//! - a priority is only ever raised.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A download that got bytes this recently makes progress: several ticks of a download, and the time of a slow chunk.
pub const RECENT: Duration = Duration::from_secs(3);

/// How urgent a download is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// It may wait for the others.
    Low,
    /// As usual.
    #[default]
    Normal,
    /// It goes before the others.
    High,
}

impl Priority {
    /// The lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// What it is worth: each four times the one below.
    pub fn weight(self) -> u64 {
        match self {
            Self::Low => 1,
            Self::Normal => 4,
            Self::High => 16,
        }
    }
}

/// Names one download for as long as it runs.
pub type Owner = u64;

#[derive(Debug)]
struct Download {
    priority: Priority,
    /// Bytes that came so far.
    bytes: u64,
    /// When that was more than before.
    moved_at: Option<Instant>,
}

/// The downloads that run.
#[derive(Debug, Default)]
pub struct Priorities {
    next: Owner,
    downloads: BTreeMap<Owner, Download>,
}

impl Priorities {
    /// A download begins.
    pub fn enter(&mut self, priority: Priority) -> Owner {
        let owner = self.next;
        self.next += 1;
        self.downloads.insert(owner, Download { priority, bytes: 0, moved_at: None });
        owner
    }

    /// Somebody wants the download this urgently: it has the highest priority that anybody asked for.
    pub fn raise(&mut self, owner: Owner, priority: Priority) {
        if let Some(download) = self.downloads.get_mut(&owner) {
            download.priority = download.priority.max(priority);
        }
    }

    /// How urgent it is.
    pub fn priority(&self, owner: Owner) -> Priority {
        self.downloads.get(&owner).map(|download| download.priority).unwrap_or_default()
    }

    /// So many bytes came for it so far.
    pub fn counted(&mut self, owner: Owner, bytes: u64, now: Instant) {
        if let Some(download) = self.downloads.get_mut(&owner)
            && bytes > download.bytes
        {
            (download.bytes, download.moved_at) = (bytes, Some(now));
        }
    }

    /// How many streams it may run now, of `most`.
    pub fn streams(&self, owner: Owner, most: usize, now: Instant) -> usize {
        let weight = self.priority(owner).weight();
        let moves =
            |download: &&Download| download.moved_at.is_some_and(|at| now.saturating_duration_since(at) < RECENT);
        let moving = self.downloads.values().filter(moves).map(|download| download.priority.weight());
        let highest = moving.max().unwrap_or(0).max(weight);
        let share = most as u64 * weight / highest;
        usize::try_from(share).unwrap_or(most).max(1)
    }

    /// The download has ended.
    pub fn leave(&mut self, owner: Owner) {
        self.downloads.remove(&owner);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_low_one_runs_one_stream_while_a_high_one_gets_on_and_all_of_them_after_that() {
        let (mut all, now) = (Priorities::default(), Instant::now());
        let (low, normal, high) = (all.enter(Priority::Low), all.enter(Priority::Normal), all.enter(Priority::High));
        assert_eq!([low, normal, high].map(|owner| all.streams(owner, 8, now)), [8, 8, 8], "none has begun");
        all.counted(high, 1, now);
        assert_eq!([low, normal, high].map(|owner| all.streams(owner, 8, now)), [1, 2, 8]);
        all.counted(normal, 1, now + RECENT / 2);
        let later = now + RECENT;
        assert_eq!(
            [low, normal, high].map(|owner| all.streams(owner, 8, later)),
            [2, 8, 8],
            "the high one stands still"
        );
        all.raise(low, Priority::High);
        all.raise(low, Priority::Normal);
        assert_eq!((all.priority(low), all.streams(low, 8, later)), (Priority::High, 8));
        all.leave(normal);
        all.leave(high);
        assert_eq!(all.streams(low, 8, later), 8);
    }

    proptest! {
        #[test]
        fn none_starves_and_none_is_held_back_but_by_one_that_is_higher_and_gets_on(
            priorities in proptest::collection::vec(0usize..3, 1..6), most in 1usize..17,
            steps in proptest::collection::vec((0usize..6, 0u64..2, 0u64..4000, 0usize..3), 1..60),
        ) {
            let (mut all, mut now) = (Priorities::default(), Instant::now());
            let owners: Vec<Owner> = priorities.iter().map(|nth| all.enter(Priority::ALL[*nth])).collect();
            let mut known: Vec<Priority> = priorities.iter().map(|nth| Priority::ALL[*nth]).collect();
            let mut moved: Vec<(u64, Option<Instant>)> = vec![(0, None); owners.len()];
            for (nth, bytes, millis, raised) in steps {
                now += Duration::from_millis(millis);
                let nth = nth % owners.len();
                moved[nth].0 += bytes;
                if bytes > 0 {
                    moved[nth].1 = Some(now);
                }
                all.counted(owners[nth], moved[nth].0, now);
                if millis % 5 == 0 {
                    all.raise(owners[nth], Priority::ALL[raised]);
                    known[nth] = known[nth].max(Priority::ALL[raised]);
                }
                for (nth, owner) in owners.iter().enumerate() {
                    let streams = all.streams(*owner, most, now);
                    prop_assert_eq!(all.priority(*owner), known[nth]);
                    prop_assert!((1..=most).contains(&streams));
                    let gets_on = |at: Option<Instant>| at.is_some_and(|at| now < at + RECENT);
                    let higher = (0..owners.len()).filter(|other| known[*other] > known[nth] && gets_on(moved[*other].1));
                    match higher.map(|other| known[other].weight()).max() {
                        None => prop_assert_eq!(streams, most),
                        Some(weight) => {
                            let share = most as u64 * known[nth].weight() / weight;
                            prop_assert_eq!(streams as u64, share.max(1));
                        }
                    }
                }
            }
        }
    }
}
