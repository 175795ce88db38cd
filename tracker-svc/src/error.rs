//! What the tracker refuses, and the one table from that to a gRPC status.

use drizzle_proto::{Address, FileName, PeerId, WireError};
use tokio::task::JoinError;
use tonic::Status;

use crate::{
    access::denied::Denied,
    catalogue::CatalogueError,
    limits::{MAX_PEERS, MAX_WATCHERS},
};

/// Why a call failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lease ended, or this tracker was restarted since.
    #[error("the lease is not known; register the peer again and announce everything again")]
    UnknownLease,
    /// Another process has this peer's id, and it is not clear yet whether it is alive.
    #[error(
        "the peer id {peer} is held by a process at {}; if that was this peer before a restart, its lease ends soon",
        told(.holder)
    )]
    IdInUse {
        /// The id.
        peer: PeerId,
        /// Where the other process is.
        holder: Option<Address>,
        /// Whether the claimant asks for the first time.
        first: bool,
    },
    /// Another process has this peer's id, and is alive.
    #[error(
        "the peer id {peer} belongs to a live peer at {}: this peer works on a copy of its state folder, and needs an id of its own",
        told(.holder)
    )]
    CopiedState {
        /// The id.
        peer: PeerId,
        /// Where the other process is, if it is not away at the moment.
        holder: Option<Address>,
    },
    /// The name stands for nothing.
    #[error("there is no file {:?}", .0.as_str())]
    NoSuchFile(FileName),
    /// Only an owner or a holder may withdraw.
    #[error("this peer neither holds {:?} nor registered it first", .0.as_str())]
    NotYours(FileName),
    /// No lease is free.
    #[error("the limit of {MAX_PEERS} peers is reached; try again later")]
    TooManyPeers,
    /// No watch is free.
    #[error("the limit of {MAX_WATCHERS} watches is reached; try again later")]
    TooManyWatchers,
    /// The caller may not do that.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A field is malformed.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// The durable half failed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The tracker is going away.
    #[error("the tracker is stopping")]
    Stopping,
    /// A bug; the log has the panic's text.
    #[error("internal error of the tracker; see its log")]
    Panicked,
}

impl Error {
    /// A task that gave no answer: it panicked, or the runtime ends and began no more of them.
    pub(crate) fn of_task(error: JoinError) -> Self {
        if error.is_panic() { Self::Panicked } else { Self::Stopping }
    }
}

fn told(holder: &Option<Address>) -> &str {
    holder.as_ref().map_or("an address of its own", Address::as_str)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::IdInUse { .. } => Status::aborted(text),
            Error::CopiedState { .. } => Status::already_exists(text),
            Error::UnknownLease => Status::failed_precondition(text),
            Error::NoSuchFile(_) => Status::not_found(text),
            Error::NotYours(_) => Status::permission_denied(text),
            Error::Denied(denied) => denied.into(),
            Error::TooManyPeers | Error::TooManyWatchers => Status::resource_exhausted(text),
            Error::Malformed(_) => Status::invalid_argument(text),
            // A disk may recover or be replaced: the caller may try again.
            Error::Catalogue(_) | Error::Stopping => Status::unavailable(text),
            Error::Panicked => Status::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_the_trackers_fault_and_an_end_is_not() {
        let code = |error: JoinError| Status::from(Error::of_task(error)).code();
        let panicked = tokio::task::spawn_blocking(|| panic!("on purpose")).await;
        assert_eq!(panicked.map_err(code), Err::<(), _>(Code::Internal));
        let endless = tokio::spawn(std::future::pending::<()>());
        endless.abort();
        assert_eq!(endless.await.map_err(code), Err(Code::Unavailable), "to be tried again");
    }
}
