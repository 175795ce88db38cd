//! A download that runs, and the callers that follow it.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use drizzle_engine::callers::{CallerId, Callers};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::request::Request;
use crate::{
    download::{Broadcast, Destination, Job, Reasons, Subscription, named},
    ranks::Rank,
};

/// A download that runs.
#[derive(Debug)]
pub(super) struct Underway {
    pub(super) job: Job,
    pub(super) started: Instant,
    pub(super) events: Broadcast,
    /// Why it takes as long as it does.
    pub(super) reasons: Reasons,
    pub(super) callers: Mutex<Callers>,
    /// As long as its callers want it to wait.
    pub(super) patience: watch::Sender<Duration>,
    /// As urgent as the most pressing of its callers wanted it.
    pub(super) rank: Arc<Rank>,
    pub(super) cancel: CancellationToken,
    pub(super) ended: CancellationToken,
}

impl Underway {
    /// Changes who follows it. Once it was cancelled nothing changes any more.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Callers) -> T) -> T {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut callers);
        let patience = callers.patience();
        self.patience.send_if_modified(|known| std::mem::replace(known, patience) != patience);
        changed
    }

    /// A caller follows it until it drops the events.
    pub(super) fn follow(self: &Arc<Self>, request: &Request) -> Subscription {
        let id = self.change(|callers| callers.come(request.caller.clone(), request.timeout));
        let following = Following { transfer: Arc::downgrade(self), id };
        Box::pin(self.events.subscribe(request.steps).map(move |event| {
            let _following = &following;
            event
        }))
    }

    /// Where it puts the file, in words.
    pub(super) fn to(&self) -> String {
        match &self.job.destination {
            None => format!("in part ({})", named(&self.job.wanted)),
            Some(Destination::Named) => "into the daemon's folder".to_owned(),
            Some(Destination::Path(path)) => format!("to {}", path.display()),
        }
    }
}

/// A caller that follows a download, as long as this exists. It keeps nothing alive: the events end with the download.
#[derive(Debug)]
struct Following {
    transfer: Weak<Underway>,
    id: CallerId,
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(transfer) = self.transfer.upgrade() {
            transfer.change(|callers| callers.gone(self.id));
        }
    }
}
