//! The fetches of one download, on the threads that receive them.
//!
//! Chunks may be small and many: handed over one by one, and reported one by one, each would wake two threads. So what is
//! handed to a thread at once wakes it once, and what it has finished when it comes to tell is told at once.
//!
//! What holds (each line has a test):
//! - each fetch that is started is reported once, unless it is aborted: also one that panics;
//! - what was aborted may still be reported, if it had ended by then;
//! - after [`Hands::stop`] nothing of any fetch is left running.

use std::collections::HashMap;

use drizzle_engine::schedule::FetchId;
use tokio::{
    runtime,
    sync::mpsc,
    task::{AbortHandle, Id, JoinError, JoinSet},
};

use super::{FetchFailure, FetchTask, fetch_and_store};
use crate::store::write::StoredChunk;

/// How a fetch ended.
pub(crate) type Ended = (FetchId, Result<StoredChunk, FetchFailure>);

/// Ends that may wait to be told: with more, the thread that has them waits until some were heard.
const ENDS: usize = 64;

/// What a thread is told to do.
enum Order {
    Start(FetchTask),
    Abort(FetchId),
}

/// The fetches of one download.
pub(crate) struct Hands {
    /// For each thread that was asked so far. No more orders wait there than the scheduler lets run.
    threads: Vec<(runtime::Id, mpsc::UnboundedSender<Order>)>,
    /// On which of them each fetch runs.
    runs: HashMap<FetchId, usize>,
    workers: JoinSet<()>,
    tells: mpsc::Sender<Ended>,
    told: mpsc::Receiver<Ended>,
}

impl Hands {
    /// None yet.
    pub(crate) fn new() -> Self {
        let (tells, told) = mpsc::channel(ENDS);
        Self { threads: Vec::new(), runs: HashMap::new(), workers: JoinSet::new(), tells, told }
    }

    /// Starts a fetch on the thread that it was given.
    pub(crate) fn start(&mut self, task: FetchTask) {
        let (id, thread) = (task.fetch.id, task.running.handle().clone());
        let known = self.threads.iter().position(|(known, _)| *known == thread.id());
        let at = known.unwrap_or_else(|| {
            let (orders, taken) = mpsc::unbounded_channel();
            self.workers.spawn_on(Worker::new(self.tells.clone()).run(taken), &thread);
            self.threads.push((thread.id(), orders));
            self.threads.len() - 1
        });
        self.runs.insert(id, at);
        // A worker ends only after this value.
        let _ = self.threads[at].1.send(Order::Start(task));
    }

    /// Gives a fetch up. It need not be reported.
    pub(crate) fn abort(&mut self, id: FetchId) {
        if let Some(at) = self.runs.remove(&id) {
            let _ = self.threads[at].1.send(Order::Abort(id));
        }
    }

    /// Waits until a fetch has ended, and gives all that have. Nothing is lost if the wait is given up. The error is a
    /// panic of a worker.
    pub(crate) async fn ended(&mut self) -> Result<Vec<Ended>, JoinError> {
        let mut ended = Vec::new();
        tokio::select! {
            // There is always a sender.
            _ = self.told.recv_many(&mut ended, ENDS) => {}
            Some(Err(error)) = self.workers.join_next() => return Err(error),
        }
        for (id, _) in &ended {
            self.runs.remove(id);
        }
        Ok(ended)
    }

    /// Gives every fetch up, and waits until nothing of them is left.
    pub(crate) async fn stop(&mut self) {
        self.threads.clear();
        self.runs.clear();
        // One that tells waits for room otherwise.
        self.told.close();
        while self.workers.join_next().await.is_some() {}
    }
}

/// The fetches of one download on one thread.
struct Worker {
    tells: mpsc::Sender<Ended>,
    tasks: JoinSet<Result<StoredChunk, FetchFailure>>,
    aborts: HashMap<FetchId, AbortHandle>,
    /// Which fetch a task is, unless it was aborted.
    fetches: HashMap<Id, FetchId>,
}

impl Worker {
    fn new(tells: mpsc::Sender<Ended>) -> Self {
        Self { tells, tasks: JoinSet::new(), aborts: HashMap::new(), fetches: HashMap::new() }
    }

    async fn run(mut self, mut taken: mpsc::UnboundedReceiver<Order>) {
        let mut orders = Vec::new();
        loop {
            tokio::select! {
                // What is asked of the holders first brings bytes while the rest is told.
                biased;
                count = taken.recv_many(&mut orders, ENDS) => {
                    if count == 0 {
                        return self.tasks.shutdown().await;
                    }
                    orders.drain(..).for_each(|order| self.follow(order));
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    let mut next = Some(ended);
                    while let Some(ended) = next {
                        if let Some(ended) = self.ended(ended) {
                            // A download that hears nothing has ended.
                            let _ = self.tells.send(ended).await;
                        }
                        next = self.tasks.try_join_next_with_id();
                    }
                }
            }
        }
    }

    fn follow(&mut self, order: Order) {
        match order {
            Order::Start(task) => {
                let id = task.fetch.id;
                let abort = self.tasks.spawn(fetch_and_store(task));
                self.fetches.insert(abort.id(), id);
                self.aborts.insert(id, abort);
            }
            Order::Abort(id) => {
                if let Some(abort) = self.aborts.remove(&id) {
                    self.fetches.remove(&abort.id());
                    abort.abort();
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<StoredChunk, FetchFailure>), JoinError>) -> Option<Ended> {
        let (task, result) = match ended {
            Ok((task, result)) => (task, result),
            Err(error) => (error.id(), Err(FetchFailure::of_task(error))),
        };
        let id = self.fetches.remove(&task)?;
        self.aborts.remove(&id);
        Some((id, result))
    }
}
