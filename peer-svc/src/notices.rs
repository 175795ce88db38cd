//! What the tracker refused, or took back: acted on apart from the membership, because looking into a refusal may
//! mean to hash a large file again.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use drizzle_proto::FileId;
use tokio::sync::mpsc;

use crate::{holdings::Refusal, lanes::Lanes, register::Notice, share::Sharer, transfers::Transfers};

/// Pairs of contents that are remembered to differ.
const DIFFER: usize = 4096;

/// Pairs of our content and the registered one that were found to differ: every new lease brings the same
/// refusals, and a large file is not to be hashed again for each. Bounded; the oldest are forgotten.
#[derive(Debug, Default)]
struct Differ {
    known: HashSet<(FileId, FileId)>,
    order: VecDeque<(FileId, FileId)>,
}

impl Differ {
    /// The pair was found to differ.
    fn note(&mut self, pair: (FileId, FileId)) {
        if self.known.insert(pair) {
            if self.order.len() == DIFFER
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back(pair);
        }
    }
}

/// Runs until the membership is gone.
pub(crate) async fn heed(
    mut notices: mpsc::Receiver<Notice>,
    sharer: Arc<Sharer>,
    transfers: Arc<Transfers>,
    lanes: Arc<Lanes>,
) {
    let mut differ = Differ::default();
    while let Some(notice) = notices.recv().await {
        let pair = match &notice {
            Notice::Refused(Refusal { ours, registered: Some(registered), .. }) => Some((ours.id, registered.id)),
            Notice::Refused(_) | Notice::Released(_) => None,
        };
        if let Notice::Refused(refusal) = &notice
            && pair.is_some_and(|pair| differ.known.contains(&pair))
        {
            sharer.holdings.refuse(refusal);
            continue;
        }
        let (sharer, transfers) = (sharer.clone(), transfers.clone());
        let heeded = lanes.hashing.run(move || match notice {
            Notice::Refused(refusal) => refused(&sharer, &transfers, &refusal),
            Notice::Released(file) => {
                released(&sharer, &transfers, &file);
                false
            }
        });
        match heeded.await {
            Ok(true) => pair.into_iter().for_each(|pair| differ.note(pair)),
            // A file that could not be read is looked into again.
            Ok(false) => {}
            // The panic itself is in the log already. The next answer of the tracker may be looked into all the same.
            Err(error) if error.is_panic() => {
                tracing::error!(
                    "internal error: looking into an answer of the tracker panicked; it has no effect here"
                );
            }
            Err(_) => {}
        }
    }
}

/// Whether it was found that the contents differ.
fn refused(sharer: &Sharer, transfers: &Transfers, refusal: &Refusal) -> bool {
    match sharer.adopt_chunk_size(refusal, &|name| transfers.is_running(name)) {
        Ok(true) => {
            tracing::info!(name = %refusal.ours.name, "the same content is registered in other chunks: adopted them");
            false
        }
        outcome => {
            sharer.holdings.refuse(refusal);
            let differs = outcome.is_ok();
            let error = outcome.err().map(|error| error.to_string());
            tracing::warn!(name = %refusal.ours.name, error, "not shared: {}", refusal.detail);
            differs
        }
    }
}

fn released(sharer: &Sharer, transfers: &Transfers, file: &drizzle_proto::FileInfo) {
    let is_ours = sharer.holdings.get(&file.name).is_some_and(|held| held.manifest.id() == file.id);
    // A running download hears of it by itself.
    if is_ours && !transfers.is_running(&file.name) {
        tracing::info!(name = %file.name, "its owner withdrew it: no longer offered");
        if let Err(error) = sharer.unshare(&file.name) {
            tracing::warn!(name = %file.name, %error, "cannot record that");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{
        download::testing::context,
        share::Wish,
        store::{disk::Disk, hash::HashProgress},
    };

    /// The file is away when the refusal is looked into: that says nothing of its content.
    #[tokio::test]
    async fn a_refused_file_that_could_not_be_read_is_looked_into_again_when_the_refusal_comes_again() {
        let folder = tempfile::tempdir().unwrap();
        let context = Arc::new(context(folder.path(), Disk::default()));
        let (sharer, lanes) = (context.sharer.clone(), context.lanes.clone());
        let transfers = Arc::new(Transfers::new(context, TaskTracker::new(), CancellationToken::new(), 1));
        let path = folder.path().join("a");
        fs::write(&path, vec![7; 100_000]).unwrap();
        let share = |chunk_size| {
            let found = sharer.find(std::slice::from_ref(&path), None).unwrap().found;
            let wish = Wish { chunk_size: Some(chunk_size), replace: false };
            sharer.share_found(found, wish, &HashProgress::default(), &|_| false).unwrap().remove(0).1.unwrap()
        };
        let (registered, ours) = (share(1 << 15), share(1 << 14));
        let refusal = Refusal { ours: ours.clone(), registered: Some(registered.clone()), detail: "taken".into() };
        let (notices, noticed) = mpsc::channel(1);
        let heeding = tokio::spawn(heed(noticed, sharer.clone(), transfers, lanes));
        let away = folder.path().join("away");
        fs::rename(&path, &away).unwrap();
        let mut registrations = sharer.holdings.registrations();
        notices.send(Notice::Refused(refusal.clone())).await.unwrap();
        registrations.changed().await.unwrap();
        fs::rename(&away, &path).unwrap();
        notices.send(Notice::Refused(refusal)).await.unwrap();
        drop(notices);
        heeding.await.unwrap();
        assert_eq!(sharer.holdings.get(&ours.name).unwrap().manifest.id(), registered.id, "adopted");
    }
}
