//! Whether the tracker is ready: whether its catalogue answers.
//!
//! Apart from whether it serves: without its catalogue it still keeps leases and swarms, from memory, and to start it
//! again would lose those. The log hears of a change once. A look that hangs is waited for, so that a dead disk takes
//! one thread and not one for each look.

use std::{pin::pin, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::registry::Registry;

/// How it is looked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looks {
    /// Between looks.
    pub(crate) every: Duration,
    /// A look that takes longer finds it not ready.
    pub(crate) patience: Duration,
}

/// Often enough for a probe every few seconds; a disk that is only busy answers in this time.
pub(crate) const LOOKS: Looks = Looks { every: Duration::from_secs(5), patience: Duration::from_secs(5) };

/// Tells whether it is ready whenever that changes, until `stop`; at first it is.
pub(crate) async fn watch(
    registry: Registry,
    looks: Looks,
    mut tell: impl AsyncFnMut(bool) + Send,
    stop: CancellationToken,
) {
    let looking = async {
        let mut ready = true;
        loop {
            tokio::time::sleep(looks.every).await;
            let mut look = pin!(registry.check());
            let found = tokio::time::timeout(looks.patience, &mut look).await;
            let now = matches!(found, Ok(Ok(())));
            if now != std::mem::replace(&mut ready, now) {
                match &found {
                    Ok(Ok(())) => info!("ready again: the catalogue answers"),
                    Ok(Err(error)) => error!(%error, "not ready: the catalogue failed; looking again"),
                    Err(_) => error!("not ready: the catalogue gives no answer; see whether its disk hangs"),
                }
                tell(now).await;
            }
            if found.is_err() {
                // What it says in the end is old; the next look tells.
                let _ = look.await;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc, Condvar, Mutex,
            atomic::{AtomicBool, AtomicU32, Ordering},
        },
        time::Instant,
    };

    use drizzle_proto::{Digest, FileId, FileInfo, FileName, PeerId, Signature};
    use tokio::sync::mpsc;

    use super::*;
    use crate::catalogue::{Catalogue, CatalogueError, Claim, Known, Record, Verdict};

    const LIMIT: Duration = Duration::from_secs(30);

    /// A catalogue that fails, or hangs, when the test says so.
    #[derive(Clone, Default)]
    struct Ailing(Arc<Ailment>);

    #[derive(Default)]
    struct Ailment {
        fails: AtomicBool,
        looks: AtomicU32,
        hangs: Mutex<bool>,
        changed: Condvar,
    }

    impl Catalogue for Ailing {
        fn check(&self) -> Result<(), CatalogueError> {
            self.0.looks.fetch_add(1, Ordering::Relaxed);
            drop(self.0.changed.wait_while(self.0.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
            match self.0.fails.load(Ordering::Relaxed) {
                true => Err(CatalogueError::Storage("the disk is gone".into())),
                false => Ok(()),
            }
        }

        fn lookup(&self, _: &[FileInfo]) -> Result<Vec<Known>, CatalogueError> {
            unreachable!()
        }

        fn register(&self, _: PeerId, _: &[Claim]) -> Result<Vec<Verdict>, CatalogueError> {
            unreachable!()
        }

        fn release(&self, _: &FileName, _: PeerId) -> Result<bool, CatalogueError> {
            unreachable!()
        }

        fn drop_name(&self, _: &FileName, _: bool) -> Result<Option<Record>, CatalogueError> {
            unreachable!()
        }

        fn reassign(&self, _: &FileName, _: PeerId) -> Result<Option<Record>, CatalogueError> {
            unreachable!()
        }

        fn get(&self, _: &FileName) -> Result<Option<Record>, CatalogueError> {
            unreachable!()
        }

        fn list(&self, _: &str, _: Option<&FileName>, _: usize) -> Result<Vec<Record>, CatalogueError> {
            unreachable!()
        }

        fn clock(&self) -> Result<u64, CatalogueError> {
            unreachable!()
        }

        fn attend(&self, _: &[(FileName, bool)], _: u64, _: u64) -> Result<Vec<FileName>, CatalogueError> {
            unreachable!()
        }

        fn expire(&self, _: &FileName, _: u64, _: u64) -> Result<Option<Record>, CatalogueError> {
            unreachable!()
        }

        fn signature(&self, _: &FileName) -> Result<Option<Signature>, CatalogueError> {
            unreachable!()
        }

        fn hashes(&self, _: FileId, _: u32, _: usize) -> Result<Vec<Digest>, CatalogueError> {
            unreachable!()
        }
    }

    /// Watches with little patience; what is told.
    fn watched(catalogue: &Ailing) -> (mpsc::Receiver<bool>, CancellationToken) {
        let registry = Registry::new(catalogue.clone(), Duration::from_secs(15), 1, Instant::now());
        let looks = Looks { every: Duration::from_millis(1), patience: Duration::from_millis(50) };
        let (told, telling) = mpsc::channel(1);
        let tell = async move |ready| told.send(ready).await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(watch(registry, looks, tell, stop.clone()));
        (telling, stop)
    }

    async fn next(telling: &mut mpsc::Receiver<bool>) -> Option<bool> {
        tokio::time::timeout(LIMIT, telling.recv()).await.expect("a change is told")
    }

    #[tokio::test]
    async fn a_catalogue_that_fails_is_not_ready_until_it_answers_again() {
        let catalogue = Ailing::default();
        let (mut telling, stop) = watched(&catalogue);
        for _ in 0..2 {
            catalogue.0.fails.store(true, Ordering::Relaxed);
            assert_eq!(next(&mut telling).await, Some(false));
            catalogue.0.fails.store(false, Ordering::Relaxed);
            assert_eq!(next(&mut telling).await, Some(true));
        }
        stop.cancel();
        assert_eq!(next(&mut telling).await, None, "it ends, and told nothing else");
    }

    #[tokio::test]
    async fn a_catalogue_that_hangs_is_not_ready_and_takes_one_thread() {
        let catalogue = Ailing::default();
        *catalogue.0.hangs.lock().unwrap() = true;
        let (mut telling, stop) = watched(&catalogue);
        assert_eq!(next(&mut telling).await, Some(false));
        assert_eq!(catalogue.0.looks.load(Ordering::Relaxed), 1);
        *catalogue.0.hangs.lock().unwrap() = false;
        catalogue.0.changed.notify_all();
        assert_eq!(next(&mut telling).await, Some(true));
        stop.cancel();
        assert_eq!(next(&mut telling).await, None);
    }
}
