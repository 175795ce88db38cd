//! Who reads and hashes next, when several files want to: a small file is through soon although a large one is read.
//!
//! Each job (a request to share, a proof of a download) takes turns, one for a chunk, and so many turns are out at
//! once. The next turn goes to the job that was served least, in bytes; a job that comes, or comes back, begins where
//! the least served of the others stands, so that it neither waits for what they had before nor catches up on it
//! (start-time fair queueing, P. Goyal et al., 1996).
//!
//! What holds (the property test checks each line):
//! - no more turns are out than there are;
//! - a turn goes to a waiting job that was served least, the oldest of several;
//! - while several jobs wait all the time, what they were served since differs by no more than their largest turns.

use std::collections::BTreeMap;

/// Names one job; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job(u64);

#[derive(Debug, Default)]
struct State {
    served: u64,
    waiting: usize,
    out: usize,
}

/// All jobs and their turns.
#[derive(Debug)]
pub struct Turns {
    free: usize,
    next: u64,
    jobs: BTreeMap<Job, State>,
}

impl Turns {
    /// So many turns at once, at least one.
    pub fn new(turns: usize) -> Self {
        Self { free: turns.max(1), next: 0, jobs: BTreeMap::new() }
    }

    /// A new job, until it [leaves](Turns::leave).
    pub fn enter(&mut self) -> Job {
        let job = Job(self.next);
        self.next += 1;
        self.jobs.insert(job, State::default());
        job
    }

    /// How many jobs there are.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// The job wants a turn; every wish is followed by one [`Turns::take`] that succeeds.
    pub fn wait(&mut self, job: Job) {
        let busy = |state: &&State| state.waiting + state.out > 0;
        let least = self.jobs.values().filter(busy).map(|state| state.served).min();
        if let Some(state) = self.jobs.get_mut(&job) {
            if state.waiting + state.out == 0 {
                state.served = state.served.max(least.unwrap_or(0));
            }
            state.waiting += 1;
        }
    }

    /// Takes a turn that costs so many bytes, if one is free and it is this job's.
    pub fn take(&mut self, job: Job, cost: u64) -> bool {
        let waiting = self.jobs.iter().filter(|(_, state)| state.waiting > 0);
        let first = waiting.min_by_key(|(job, state)| (state.served, **job)).map(|(first, _)| *first);
        if self.free == 0 || first != Some(job) {
            return false;
        }
        if let Some(state) = self.jobs.get_mut(&job) {
            self.free -= 1;
            state.waiting -= 1;
            state.out += 1;
            state.served = state.served.saturating_add(cost);
        }
        true
    }

    /// A turn is over.
    pub fn give_back(&mut self, job: Job) {
        if let Some(state) = self.jobs.get_mut(&job) {
            state.out -= 1;
            self.free += 1;
        }
    }

    /// The job is done; it has no turn and wants none.
    pub fn leave(&mut self, job: Job) {
        self.jobs.remove(&job);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_small_job_is_through_while_a_large_one_goes_on() {
        let mut turns = Turns::new(2);
        let large = turns.enter();
        for _ in 0..1000 {
            turns.wait(large);
        }
        for _ in 0..500 {
            assert!(turns.take(large, 2 * MIB));
            turns.give_back(large);
        }
        let small = turns.enter();
        for _ in 0..16 {
            turns.wait(small);
        }
        let mut between = 0;
        for _ in 0..16 {
            while !turns.take(small, 2 * MIB) {
                assert!(turns.take(large, 2 * MIB));
                turns.give_back(large);
                between += 1;
            }
            turns.give_back(small);
        }
        assert!((14..=17).contains(&between), "every second turn, not {between} of them before it is through");
        turns.leave(small);
        assert!(turns.take(large, 2 * MIB), "and then all of them again");
    }

    proptest! {
        #[test]
        fn jobs_that_wait_are_served_alike(
            count in 1usize..5, costs in proptest::collection::vec(1u64..64, 2..6),
            over in proptest::collection::vec(any::<prop::sample::Index>(), 1..300),
        ) {
            let mut turns = Turns::new(count);
            let jobs: Vec<Job> = costs.iter().map(|_| turns.enter()).collect();
            jobs.iter().for_each(|job| turns.wait(*job));
            let mut served = vec![0; jobs.len()];
            let mut out: Vec<usize> = Vec::new();
            for over in over {
                for at in 0..jobs.len() {
                    // Every one of them always has another wish.
                    while turns.take(jobs[at], costs[at]) {
                        let least = served.iter().min().copied();
                        prop_assert_eq!(Some(served[at]), least, "not the least served");
                        turns.wait(jobs[at]);
                        served[at] += costs[at];
                        out.push(at);
                    }
                    prop_assert!(out.len() <= count);
                }
                let most = served.iter().max().unwrap() - served.iter().min().unwrap();
                prop_assert!(most <= *costs.iter().max().unwrap(), "{served:?}");
                if !out.is_empty() {
                    let at = out.swap_remove(over.index(out.len()));
                    turns.give_back(jobs[at]);
                }
            }
        }
    }
}
