//! Threads for work that blocks, kept apart by what it is, so that nothing long is in the way of something short:
//! hashing for hours must not keep a chunk from being sent, nor a name from being looked up (which the runtime does on
//! threads of its own).

use std::{io, sync::Arc, time::Duration};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// Files that are shared, proved or put in place at once; more wait.
const HASHING: usize = 32;
/// Records that are synced at once: they wait for one disk.
const DISK: usize = 16;
/// Threads of the uploads that calls may hang on, beside those that send.
const HANGING: usize = 16;
/// Threads stay: where a machine has no more of them later, there is still one.
const KEPT: Duration = Duration::from_secs(365 * 86_400);

/// One kind of work. Its threads are started when they are first needed, but for one.
#[derive(Debug)]
pub(crate) struct Lane(Option<Runtime>, Handle);

impl Lane {
    fn new(name: &str, threads: usize) -> io::Result<Self> {
        // Only its threads for blocking work are used.
        let mut builder = Builder::new_current_thread();
        let runtime = builder.thread_name(name).max_blocking_threads(threads).thread_keep_alive(KEPT).build()?;
        let handle = runtime.handle().clone();
        handle.spawn_blocking(|| ());
        Ok(Self(Some(runtime), handle))
    }

    /// Runs it on a thread of this lane, once one is free.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.1.spawn_blocking(work)
    }

    /// For a set of tasks.
    pub(crate) fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Without waiting: a thread may hang in the kernel.
            runtime.shutdown_background();
        }
    }
}

/// All lanes of a daemon.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Reading, hashing and copying whole files.
    pub(crate) hashing: Lane,
    /// The record of what is stored.
    pub(crate) disk: Lane,
    /// Reading chunks for others.
    pub(crate) uploads: Lane,
}

impl Lanes {
    /// With so many uploads at once at the very most.
    pub(crate) fn new(uploads: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            hashing: Lane::new("hashing", HASHING)?,
            disk: Lane::new("disk", DISK)?,
            uploads: Lane::new("uploads", uploads + HANGING)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn hashing_on_every_thread_keeps_no_upload_no_write_and_no_name_waiting() {
        let lanes = Lanes::new(4).unwrap();
        let mut hashing = Vec::new();
        let ends: Vec<mpsc::Sender<()>> = (0..2 * HASHING)
            .map(|_| {
                let (end, ended) = mpsc::channel();
                hashing.push(lanes.hashing.run(move || ended.recv()));
                end
            })
            .collect();
        assert_eq!(lanes.uploads.run(|| 1).await.unwrap(), 1);
        assert_eq!(lanes.disk.run(|| 2).await.unwrap(), 2);
        assert!(tokio::net::lookup_host("localhost:1").await.unwrap().next().is_some());
        drop(ends);
        for job in hashing {
            assert!(job.await.unwrap().is_err());
        }
    }
}
