//! Memory for chunks in flight, over all downloads of this daemon. Who gets it is decided by
//! [`drizzle_engine::memory`]; here are the tasks that wait for it.
//!
//! Invariants: what was granted is released when its [`Room`] is dropped, or when the task that waited for it is
//! gone; the mutex is never held over an `.await`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drizzle_engine::memory::{Memory, Wish};
use tokio::sync::oneshot;

use crate::ranks::Rank;

/// The memory of a daemon.
#[derive(Debug)]
pub(crate) struct ChunkMemory(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    memory: Memory,
    /// Those that wait.
    waiting: HashMap<Wish, oneshot::Sender<u64>>,
    /// Granted, and not yet noticed by the task that waited.
    granted: HashMap<Wish, u64>,
}

impl Inner {
    /// Wakes every task that has its memory now.
    fn grant(&mut self) {
        while let Some((wish, bytes)) = self.memory.grant() {
            self.granted.insert(wish, bytes);
            if let Some(waiting) = self.waiting.remove(&wish) {
                // A task that is gone gives it back when its wish is dropped.
                let _ = waiting.send(bytes);
            }
        }
    }
}

/// One download's part of it, until dropped.
#[derive(Debug)]
pub(crate) struct Account {
    memory: Arc<ChunkMemory>,
    rank: Arc<Rank>,
}

/// A wish that is withdrawn when dropped, or given back if it was granted.
struct Waits {
    account: Arc<Account>,
    wish: Wish,
}

/// Room for one chunk; free again when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    account: Arc<Account>,
    bytes: u64,
}

impl ChunkMemory {
    /// So many bytes.
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        let (memory, waiting, granted) = (Memory::new(bytes), HashMap::new(), HashMap::new());
        Arc::new(Self(Mutex::new(Inner { total: bytes, memory, waiting, granted })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No change of it can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> u64 {
        let inner = self.lock();
        inner.total - inner.memory.free()
    }

    /// For a download that begins.
    pub(crate) fn account(self: &Arc<Self>, rank: Arc<Rank>) -> Arc<Account> {
        Arc::new(Account { memory: self.clone(), rank })
    }
}

impl Account {
    /// Room for so many bytes, once it is this download's turn. `must_wait` is called first if it is not yet.
    pub(crate) async fn room(self: &Arc<Self>, bytes: u64, must_wait: impl AsyncFnOnce()) -> Room {
        let (sender, mut granted) = oneshot::channel();
        let weight = self.rank.weight();
        let waits = {
            let mut inner = self.memory.lock();
            let wish = inner.memory.ask(self.rank.owner(), weight, bytes);
            inner.waiting.insert(wish, sender);
            inner.grant();
            Waits { account: self.clone(), wish }
        };
        if granted.try_recv().is_err() {
            must_wait().await;
            // The sender goes only with an answer.
            let _ = granted.await;
        }
        waits.room()
    }
}

impl Waits {
    fn room(self) -> Room {
        let bytes = self.account.memory.lock().granted.remove(&self.wish).unwrap_or(0);
        Room { account: self.account.clone(), bytes }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut inner = self.account.memory.lock();
        if inner.waiting.remove(&self.wish).is_some() {
            inner.memory.withdraw(self.account.rank.owner(), self.wish);
        }
        if let Some(bytes) = inner.granted.remove(&self.wish) {
            inner.memory.release(self.account.rank.owner(), bytes);
        }
        inner.grant();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut inner = self.account.memory.lock();
        inner.memory.release(self.account.rank.owner(), self.bytes);
        inner.grant();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Rooms and wishes keep their account, so nothing is out.
        self.memory.lock().memory.leave(self.rank.owner());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use drizzle_engine::priority::Priority;

    use super::*;
    use crate::ranks::Ranks;

    /// A room that is there, or nothing yet.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => Some(room),
            Poll::Pending => None,
        }
    }

    #[test]
    fn room_is_free_again_when_it_is_dropped_and_when_its_task_is_gone() {
        let memory = ChunkMemory::new(2);
        let ranks = Arc::new(Ranks::default());
        let [one, two] = [(); 2].map(|()| memory.account(ranks.enter(Priority::Normal)));
        let all = poll(pin!(one.room(2, async || panic!("it is free")))).expect("all of it");
        let mut waits = Box::pin(two.room(2, async || {}));
        assert!(poll(waits.as_mut()).is_none());
        drop(all);
        let room = poll(waits.as_mut()).expect("it was released");
        let mut given_up = Box::pin(one.room(1, async || {}));
        assert!(poll(given_up.as_mut()).is_none());
        drop(room);
        // Granted, and never noticed.
        drop(given_up);
        drop(waits);
        drop(poll(pin!(one.room(2, async || panic!("it is free")))).expect("all of it"));
        let mut withdrawn = Box::pin(two.room(2, async || {}));
        let some = poll(pin!(one.room(1, async || {}))).expect("half");
        assert!(poll(withdrawn.as_mut()).is_none());
        drop(withdrawn);
        poll(pin!(one.room(1, async || panic!("nobody waits")))).expect("the other half");
        drop((some, one, two));
        assert_eq!(memory.lock().memory.free(), 2);
    }
}
