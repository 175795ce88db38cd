//! Threads on which chunks come in: a few for each disk, each with connections of its own.
//!
//! A chunk is received, hashed and written on one thread: its bytes are handed to nobody and stay in the cache of one
//! core. What is written may wait for the disk, and then holds up only those that write to the same one: their senders wait as
//! for a slow link, while other downloads and the rest of the daemon go on.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use drizzle_proto::PeerId;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::pool::Pool;

/// Threads for one disk at most, on a machine with as many processors.
const MOST: usize = 4;

/// Threads for look-ups of names, which block.
const LOOK_UPS: usize = 4;

/// The threads for one disk. They end when it is dropped.
#[derive(Debug)]
pub(crate) struct Receivers(Vec<Arc<Receiver>>);

/// One thread.
#[derive(Debug)]
pub(crate) struct Receiver {
    handle: Handle,
    pool: Pool,
    fetches: AtomicUsize,
    _ends: DropGuard,
}

/// A thread that one fetch runs on, until dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Receiver>);

impl Receivers {
    /// Starts them. An error if the machine has no more threads or files.
    pub(super) fn start() -> io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST);
        (0..threads).map(|_| Receiver::start(threads).map(Arc::new)).collect::<io::Result<_>>().map(Self)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// A thread for a fetch from a holder: the one with the fewest, and among those one that is connected to it.
    pub(crate) fn pick(&self, holder: PeerId) -> Running {
        let busy =
            |receiver: &Arc<Receiver>| (receiver.fetches.load(Ordering::Relaxed), !receiver.pool.has_idle(holder));
        // There is at least one.
        let least = self.0.iter().min_by_key(|receiver| busy(receiver)).unwrap_or(&self.0[0]);
        least.fetches.fetch_add(1, Ordering::Relaxed);
        Running(least.clone())
    }

    /// Their connections.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter().map(|receiver| &receiver.pool)
    }
}

impl Receiver {
    fn start(of: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(LOOK_UPS).build()?;
        let (handle, ended) = (runtime.handle().clone(), CancellationToken::new());
        let ends = ended.clone().drop_guard();
        thread::Builder::new().name("receive".to_owned()).spawn(move || {
            runtime.block_on(ended.cancelled());
            // Without waiting: a look-up may hang.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, pool: Pool::of(of), fetches: AtomicUsize::new(0), _ends: ends })
    }
}

impl Running {
    /// Where its task is to run.
    pub(crate) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// The connections of this thread.
    pub(super) fn pool(&self) -> &Pool {
        &self.0.pool
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetches.fetch_sub(1, Ordering::Relaxed);
    }
}
