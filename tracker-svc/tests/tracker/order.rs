//! What is told under one lease takes effect in the order in which it was told.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Mutex, mpsc},
    task::Poll,
    time::Instant,
};

use crate::common::*;
use drizzle_proto::{
    Digest, FileId, FileInfo, FileName, PeerId, Signature,
    announcement::{FileChunks, FileOutcome},
};
use tracker_svc::{
    catalogue::{Catalogue, CatalogueError, Claim, Known, Record, RedbCatalogue, Verdict},
    registry::{HolderPage, Registry, Wanted},
};

/// A catalogue whose disk is slow: a registration says when it begins, and ends when it is let.
struct Slow {
    catalogue: RedbCatalogue,
    begun: tokio::sync::mpsc::UnboundedSender<()>,
    let_go: Mutex<mpsc::Receiver<()>>,
}

impl Catalogue for Slow {
    fn check(&self) -> Result<(), CatalogueError> {
        self.catalogue.check()
    }

    fn lookup(&self, files: &[FileInfo]) -> Result<Vec<Known>, CatalogueError> {
        self.catalogue.lookup(files)
    }

    fn register(&self, owner: PeerId, files: &[Claim]) -> Result<Vec<Verdict>, CatalogueError> {
        self.begun.send(()).unwrap();
        self.let_go.lock().unwrap().recv().unwrap();
        self.catalogue.register(owner, files)
    }

    fn release(&self, name: &FileName, by: PeerId) -> Result<bool, CatalogueError> {
        self.catalogue.release(name, by)
    }

    fn drop_name(&self, name: &FileName, bar: bool) -> Result<Option<Record>, CatalogueError> {
        self.catalogue.drop_name(name, bar)
    }

    fn reassign(&self, name: &FileName, owner: PeerId) -> Result<Option<Record>, CatalogueError> {
        self.catalogue.reassign(name, owner)
    }

    fn get(&self, name: &FileName) -> Result<Option<Record>, CatalogueError> {
        self.catalogue.get(name)
    }

    fn list(&self, prefix: &str, after: Option<&FileName>, limit: usize) -> Result<Vec<Record>, CatalogueError> {
        self.catalogue.list(prefix, after, limit)
    }

    fn clock(&self) -> Result<u64, CatalogueError> {
        self.catalogue.clock()
    }

    fn attend(&self, names: &[(FileName, bool)], clock: u64, limit: u64) -> Result<Vec<FileName>, CatalogueError> {
        self.catalogue.attend(names, clock, limit)
    }

    fn expire(&self, name: &FileName, clock: u64, limit: u64) -> Result<Option<Record>, CatalogueError> {
        self.catalogue.expire(name, clock, limit)
    }

    fn signature(&self, name: &FileName) -> Result<Option<Signature>, CatalogueError> {
        self.catalogue.signature(name)
    }

    fn hashes(&self, id: FileId, first: u32, count: usize) -> Result<Vec<Digest>, CatalogueError> {
        self.catalogue.hashes(id, first, count)
    }
}

fn gone(file: &str) -> FileChunks {
    FileChunks { gone: true, ..all(file, &manifest(1, 2)) }
}

async fn holders(registry: &Registry, file: &str) -> usize {
    let wanted = Wanted { hashes_from: None, signature: true, holders: HolderPage::First };
    registry.locate(name(file), wanted).await.unwrap().holders.len()
}

#[tokio::test]
async fn a_later_call_waits_for_an_earlier_one_even_if_that_was_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (let_go, gate) = mpsc::channel();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let now = Instant::now();
    let registry = Registry::new(Slow { catalogue, begun, let_go: Mutex::new(gate) }, LONG, 1, now);
    let lease = registry.register_peer(&info(1), now).unwrap();
    let other = registry.register_peer(&info(2), now).unwrap();

    let first = tokio::spawn({
        let registry = registry.clone();
        async move { registry.announce(lease, vec![all("a", &manifest(1, 2))], now).await }
    });
    begins.recv().await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());

    let mut second = pin!(registry.announce(lease, vec![gone("a")], now));
    let waits = poll_fn(|context| Poll::Ready(second.as_mut().poll(context).is_pending())).await;
    assert!(waits, "its turn comes when the disk is done with the first");
    assert_eq!(
        registry.announce(other, vec![gone("a")], now).await.unwrap(),
        [FileOutcome::Registered],
        "no other waits"
    );
    let_go.send(()).unwrap();
    assert_eq!(second.await.unwrap(), [FileOutcome::Registered]);
    assert_eq!(holders(&registry, "a").await, 0);
}

#[tokio::test]
async fn entries_of_one_new_name_take_effect_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let held = |file: &str| all(file, &manifest(1, 2));
    let batch = [held("a"), gone("b"), held("b"), gone("a"), held("c"), gone("c"), held("c")];
    let outcomes = peer.tracker.register_chunk(peer.lease, &batch).await.unwrap();
    assert_eq!(outcomes, [const { FileOutcome::Registered }; 7]);
    assert_eq!(peer.holder_ids("a").await, [0u8; 0], "held, then gone");
    assert_eq!(peer.holder_ids("b").await, [1], "gone, then held");
    assert_eq!(peer.holder_ids("c").await, [1], "held, gone, held");
    tracker.shutdown().await;
}
