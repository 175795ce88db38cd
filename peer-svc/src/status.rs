//! Everything that a person or a monitor may ask of this peer, taken at one moment. The wire, and whatever else shows
//! it, only renders a [`Snapshot`].

use std::path::PathBuf;

use drizzle_proto::{Address, FileName, Labels, PeerId, signature::KeyId};
use tokio::sync::watch;

use crate::{
    download::Context,
    holdings::Counts,
    limits::LimitState,
    register::Standing,
    serve::{UploadCounts, Uploads},
    share::ShelfState,
    store::hash::HashState,
    transfers::{TransferStatus, Transfers},
};

/// Untrusted files that are named; a listing for people.
const UNTRUSTED: usize = 100;

/// The state of one peer.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) peer: PeerId,
    pub(crate) labels: Labels,
    pub(crate) tracker: Address,
    /// Whether a lease is held and the tracker answers; the address told to it last.
    pub(crate) standing: Standing,
    /// The daemon's folder, absolute.
    pub(crate) dir: PathBuf,
    pub(crate) holdings: Counts,
    pub(crate) uploads: UploadCounts,
    pub(crate) limits: LimitState,
    /// Verified bytes since the start.
    pub(crate) downloaded: u64,
    pub(crate) transfers: Vec<TransferStatus>,
    /// How far hashing the folder is.
    pub(crate) hashing: HashState,
    /// What is missing, or waited for.
    pub(crate) shelf: ShelfState,
    /// Whose signatures count; none: no signature is asked for.
    pub(crate) trusted_keys: Vec<KeyId>,
    /// How many files are not offered for want of one, and the first of them with the reasons.
    pub(crate) untrusted: (usize, Vec<(FileName, String)>),
    /// Files whose disk or network mount does not answer.
    pub(crate) hanging: Vec<PathBuf>,
}

/// What a snapshot is taken of.
#[derive(Debug, Clone)]
pub(crate) struct Monitor {
    pub(crate) labels: Labels,
    pub(crate) tracker: Address,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) context: std::sync::Arc<Context>,
    pub(crate) uploads: std::sync::Arc<Uploads>,
    pub(crate) transfers: std::sync::Arc<Transfers>,
}

impl Monitor {
    /// The state now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let sharer = &self.context.sharer;
        Snapshot {
            peer: self.context.identity.id(),
            labels: self.labels.clone(),
            tracker: self.tracker.clone(),
            standing: self.standing.borrow().clone(),
            dir: sharer.dir.clone(),
            holdings: sharer.holdings.counts(),
            uploads: self.uploads.counts(),
            limits: self.context.limits.state(),
            downloaded: self.context.metrics.received.all_bytes(),
            transfers: self.transfers.list(),
            hashing: sharer.progress.read(),
            shelf: sharer.shelf.state(&sharer.dir),
            trusted_keys: sharer.trust.ids().collect(),
            untrusted: sharer.untrusted.some(UNTRUSTED),
            hanging: sharer.holdings.calls().hanging(),
        }
    }
}
