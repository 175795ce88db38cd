//! What the Control service works on: the rooms of the daemon that its methods lead to.

use std::sync::Arc;

use drizzle_proto::{
    FileName,
    client::{ClientError, TrackerClient},
};
use tokio::{sync::watch, task::JoinError};
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::{
    lanes::Lanes, limits::Limits, register::Standing, share::Sharer, status::Monitor, store::journal::JournalError,
    transfers::Transfers, vouching::Vouching,
};

/// What the Control service works on.
#[derive(Debug)]
pub(crate) struct Backend {
    /// For files and locations.
    pub(crate) tracker: TrackerClient,
    /// Whether there is a lease.
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) sharer: Arc<Sharer>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) monitor: Monitor,
    /// How fast chunks go and come.
    pub(crate) limits: Limits,
    /// Asks the tracker about files that are not offered.
    pub(crate) vouching: Vouching,
    /// Threads for work that blocks.
    pub(crate) lanes: Arc<Lanes>,
    /// Keeps count of background tasks.
    pub(crate) tasks: TaskTracker,
}

/// Why an unshare fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnshareError {
    /// A download of it runs.
    #[error("{0} is being downloaded; cancel that first")]
    Downloading(FileName),
    /// Neither this peer nor the tracker knows it as this peer's.
    #[error("{0} is neither shared here nor registered by this peer")]
    NotFound(FileName),
    /// The local part is done.
    #[error(
        "{0} is no longer offered here, but the tracker cannot be reached to release its name; unshare it again later"
    )]
    TrackerAway(FileName),
    /// The tracker refused.
    #[error(transparent)]
    Tracker(#[from] ClientError),
    /// Recording failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The daemon stops.
    #[error("the daemon is shutting down")]
    Stopping,
    /// A bug; the log has the panic's text.
    #[error("internal error: unsharing panicked; see the log of peer-svc")]
    Panicked,
}

impl UnshareError {
    fn of_task(error: JoinError) -> Self {
        if error.is_panic() { Self::Panicked } else { Self::Stopping }
    }
}

impl Backend {
    /// Offers a file no longer, and releases its name if it is this peer's; whether it was released.
    pub(super) async fn unshare(&self, name: FileName) -> Result<bool, UnshareError> {
        if self.transfers.is_running(&name) {
            return Err(UnshareError::Downloading(name));
        }
        let (sharer, local) = (self.sharer.clone(), name.clone());
        let held = tokio::task::spawn_blocking(move || sharer.unshare(&local)).await;
        let held = held.map_err(UnshareError::of_task)??;
        let lease = self.standing.borrow().lease;
        let withdrawn = match lease {
            Some(lease) => self.tracker.clone().withdraw_file(lease, &name).await,
            None => Err(Status::unavailable("no lease").into()),
        };
        match withdrawn {
            Ok(released) => Ok(released),
            Err(error) if error.is_unreachable() => {
                // The holding at least ends as soon as the tracker is back.
                held.into_iter().for_each(|file| self.sharer.holdings.tell_gone(file));
                Err(UnshareError::TrackerAway(name))
            }
            // Never registered, or another peer's: the local part is all there was to do.
            Err(error)
                if held.is_some() && matches!(error.code(), tonic::Code::NotFound | tonic::Code::PermissionDenied) =>
            {
                Ok(false)
            }
            Err(error) if error.code() == tonic::Code::NotFound => Err(UnshareError::NotFound(name)),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_an_end_of_the_daemon_are_told_apart() {
        let panicked = tokio::task::spawn_blocking(|| panic!("on purpose")).await;
        assert!(matches!(panicked.map_err(UnshareError::of_task), Err::<(), _>(UnshareError::Panicked)));
        let endless = tokio::spawn(std::future::pending::<()>());
        endless.abort();
        assert!(matches!(endless.await.map_err(UnshareError::of_task), Err(UnshareError::Stopping)));
    }
}
