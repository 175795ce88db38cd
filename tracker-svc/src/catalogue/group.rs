//! Writes of concurrent callers done as one: a commit waits for the disk twice, however much it writes.
//!
//! Invariants: jobs are done in the order in which they came; each is done once, and its caller gets its own result; a
//! job that comes while others are done waits for them and goes with the next ones. Nothing is done by a thread of its
//! own: of the callers that wait, one does the work of all.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where a job's caller finds its result.
type Answer<R> = Arc<Mutex<Option<R>>>;

/// The jobs that wait.
#[derive(Debug)]
pub(super) struct Group<J, R> {
    state: Mutex<State<J, R>>,
    /// Some jobs are done.
    done: Condvar,
}

#[derive(Debug)]
struct State<J, R> {
    waiting: Vec<(J, Answer<R>)>,
    /// A caller works.
    is_busy: bool,
}

/// A caller that works, until dropped: also if it panics.
struct Working<'a, J, R>(&'a Group<J, R>);

impl<J, R> Drop for Working<'_, J, R> {
    fn drop(&mut self) {
        lock(&self.0.state).is_busy = false;
        self.0.done.notify_all();
    }
}

impl<J, R> Default for Group<J, R> {
    fn default() -> Self {
        Self { state: Mutex::new(State { waiting: Vec::new(), is_busy: false }), done: Condvar::new() }
    }
}

impl<J, R> Group<J, R> {
    /// Has a job done, by this caller or by another one. `together` does some jobs, this one perhaps among them, and
    /// gives a result for each, in order. `None` if the caller that did this job panicked.
    pub(super) fn run(&self, job: J, together: impl FnOnce(&[J]) -> Vec<R>) -> Option<R> {
        let answer = Answer::default();
        let mut state = lock(&self.state);
        state.waiting.push((job, answer.clone()));
        while state.is_busy {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            // Whoever has its result waits for nobody else's.
            if let Some(done) = lock(&answer).take() {
                return Some(done);
            }
        }
        state.is_busy = true;
        let (jobs, answers): (Vec<J>, Vec<Answer<R>>) = std::mem::take(&mut state.waiting).into_iter().unzip();
        drop(state);
        let _working = Working(self);
        if !jobs.is_empty() {
            for (answer, result) in answers.iter().zip(together(&jobs)) {
                *lock(answer) = Some(result);
            }
        }
        lock(&answer).take()
    }
}

/// What is guarded here is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Barrier, mpsc},
        thread,
    };

    use super::*;

    #[test]
    fn what_comes_while_others_are_done_goes_together_and_each_gets_its_own_result() {
        const LATE: usize = 8;
        let (group, groups) = (Group::default(), Mutex::new(Vec::new()));
        let together = |jobs: &[usize]| {
            lock(&groups).push(jobs.len());
            jobs.iter().map(|job| job * 10).collect::<Vec<_>>()
        };
        thread::scope(|scope| {
            let (began, begun) = mpsc::channel();
            let (go_on, goes_on) = mpsc::channel::<()>();
            let (group, together) = (&group, &together);
            let first = scope.spawn(move || {
                group.run(100, |jobs: &[usize]| {
                    began.send(()).unwrap();
                    goes_on.recv().unwrap();
                    together(jobs)
                })
            });
            begun.recv().unwrap();
            let late: Vec<_> = (0..LATE).map(|job| scope.spawn(move || group.run(job, together))).collect();
            while lock(&group.state).waiting.len() < LATE {
                thread::yield_now();
            }
            go_on.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Some(1000));
            let results: Vec<_> = late.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(results, (0..LATE).map(|job| Some(job * 10)).collect::<Vec<_>>());
        });
        assert_eq!(*lock(&groups), [1, LATE]);
    }

    #[test]
    fn a_job_whose_worker_panicked_is_not_waited_for() {
        let group: Group<u8, u8> = Group::default();
        let started = Barrier::new(2);
        thread::scope(|scope| {
            let (group, started) = (&group, &started);
            let panics = scope.spawn(move || {
                catch_unwind(AssertUnwindSafe(|| {
                    group.run(1, |_| {
                        started.wait();
                        while lock(&group.state).waiting.is_empty() {
                            thread::yield_now();
                        }
                        panic!("on purpose")
                    })
                }))
            });
            started.wait();
            // Came later: its own to do.
            assert_eq!(group.run(2, |jobs| jobs.to_vec()), Some(2));
            assert!(panics.join().unwrap().is_err());
        });
        let lost = catch_unwind(AssertUnwindSafe(|| group.run(3, |_| Vec::new())));
        assert_eq!(lost.unwrap(), None, "no result is no answer");
    }
}
