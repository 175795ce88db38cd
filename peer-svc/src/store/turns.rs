//! Turns at reading and hashing, and the threads that take them. Which job is next is decided by
//! [`drizzle_engine::turns`].
//!
//! Processors and disks are the machine's, so there is one queue for the whole process. A thread holds at most one
//! turn, and takes none while it holds one. Calls block.

use std::{
    sync::{
        Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use drizzle_engine::turns::{self, Turns};

struct Queue {
    turns: Mutex<Turns>,
    changed: Condvar,
    processors: usize,
}

static QUEUE: LazyLock<Queue> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Queue { turns: Mutex::new(Turns::new(processors)), changed: Condvar::new(), processors }
});

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Turns> {
        // No change of it can panic half-way.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that reads and hashes in turns: one request, however many files it names.
#[derive(Debug)]
pub(crate) struct Job(turns::Job);

/// One turn, until dropped.
struct Turn(turns::Job);

impl Job {
    /// A job that begins now.
    pub(crate) fn begin() -> Self {
        Self(QUEUE.lock().enter())
    }

    fn turn(&self, cost: u64) -> Turn {
        let mut turns = QUEUE.lock();
        turns.wait(self.0);
        while !turns.take(self.0, cost) {
            turns = QUEUE.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        // Another turn may be free, for the job that is first now.
        QUEUE.changed.notify_all();
        Turn(self.0)
    }

    /// Does `work` for each number below `count`, each in a turn that costs so many bytes. The results come in order;
    /// after a failure the rest is left out.
    pub(crate) fn each<T: Send, E: Send>(
        &self,
        count: usize,
        cost: u64,
        work: impl Fn(usize) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        side_by_side(count, |at| {
            let _turn = self.turn(cost);
            work(at)
        })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        QUEUE.lock().leave(self.0);
        QUEUE.changed.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        QUEUE.lock().give_back(self.0);
        QUEUE.changed.notify_all();
    }
}

/// Does `work` for each number below `count` on as many threads as this job may keep busy; where threads cannot be
/// had, on fewer, and on this one alone if need be. The results come in order; after a failure the rest is left out.
pub(crate) fn side_by_side<T: Send, E: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    let failed = Mutex::new(None);
    let run = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            match work(at) {
                Ok(result) => results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result)),
                Err(error) => {
                    next.store(count, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    let share = QUEUE.processors.div_ceil(QUEUE.lock().jobs().max(1));
    thread::scope(|scope| {
        for _ in 1..share.min(count) {
            let helper = thread::Builder::new().name("hash".to_owned()).spawn_scoped(scope, run);
            if helper.is_err() {
                break;
            }
        }
        run();
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn results_come_in_order_and_a_failure_ends_it() {
        let job = Job::begin();
        assert_eq!(job.each(100, 1, |at| Ok::<_, ()>(at * 2)).unwrap(), (0..100).map(|at| at * 2).collect::<Vec<_>>());
        assert_eq!(job.each(100, 1, |at| if at == 7 { Err(at) } else { Ok(()) }), Err(7));
        assert_eq!(job.each(0, 1, |_| Ok::<(), ()>(())), Ok(vec![]));
    }

    #[test]
    fn a_small_job_does_not_wait_for_the_end_of_a_large_one() {
        let (begun, has_begun) = mpsc::sync_channel(0);
        let (small_is_done, done) = mpsc::channel();
        let done = Mutex::new(done);
        thread::scope(|scope| {
            scope.spawn(|| {
                let large = Job::begin();
                // It could not end before the small one does, and all its turns would be before those of that one.
                large.each(1 << 20, 1 << 20, |at| {
                    if at == 0 {
                        begun.send(()).unwrap();
                    }
                    done.lock().unwrap().try_recv().map_or(Ok(()), Err)
                })
            });
            has_begun.recv().unwrap();
            Job::begin().each(8, 1 << 20, |_| Ok::<_, ()>(())).unwrap();
            small_is_done.send(()).unwrap();
        });
    }
}
