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
    /// Whether the pair is new; it is remembered.
    fn note(&mut self, ours: FileId, registered: FileId) -> bool {
        let new = self.known.insert((ours, registered));
        if new {
            if self.order.len() == DIFFER
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back((ours, registered));
        }
        new
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
        if let Notice::Refused(refusal @ Refusal { ours, registered: Some(registered), .. }) = &notice
            && !differ.note(ours.id, registered.id)
        {
            sharer.holdings.refuse(refusal);
            continue;
        }
        let (sharer, transfers) = (sharer.clone(), transfers.clone());
        let heeded = lanes.hashing.run(move || match notice {
            Notice::Refused(refusal) => refused(&sharer, &transfers, &refusal),
            Notice::Released(file) => released(&sharer, &transfers, &file),
        });
        if heeded.await.is_err_and(|error| error.is_panic()) {
            // The panic itself is in the log already. The next answer of the tracker may be looked into all the same.
            tracing::error!("internal error: looking into an answer of the tracker panicked; it has no effect here");
        }
    }
}

fn refused(sharer: &Sharer, transfers: &Transfers, refusal: &Refusal) {
    match sharer.adopt_chunk_size(refusal, &|name| transfers.is_running(name)) {
        Ok(true) => {
            tracing::info!(name = %refusal.ours.name, "the same content is registered in other chunks: adopted them");
        }
        outcome => {
            sharer.holdings.refuse(refusal);
            let error = outcome.err().map(|error| error.to_string());
            tracing::warn!(name = %refusal.ours.name, error, "not shared: {}", refusal.detail);
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
