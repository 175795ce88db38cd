//! The connection to the local daemon. It is made before anything is asked, so that a daemon that does
//! not run is told apart from a question that it cannot answer.

use std::{error::Error, io, time::Duration};

use drizzle_proto::{
    Address,
    net::{control_at::ControlAt, innermost, tls::Meant, transport::Transport},
    wire::control_client::ControlClient,
};
use tonic::{Response, Status, transport::Channel};

use crate::{
    exit::{Exit, Failure},
    rights,
};

/// Longer than the daemon itself waits for its tracker, so that its word on that arrives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the daemon is, and how it is reached.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) at: ControlAt<Address>,
    pub(crate) transport: Transport,
}

/// The daemon.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pub(crate) control: ControlClient<Channel>,
    at: ControlAt<Address>,
}

impl Daemon {
    pub(crate) async fn connect(Place { at: peer, transport }: &Place) -> Result<Self, Failure> {
        let channel = peer.connect(transport, Meant::AnyPeer).await;
        let channel = channel.map_err(|error| unreachable(peer, innermost(&error)))?;
        Ok(Self { control: ControlClient::new(channel), at: peer.clone() })
    }

    /// Waits for the answer to a unary call.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(Failure::new(
                Exit::Unreachable,
                format!("the peer daemon at {} gave no answer within {} s", self.at, ANSWER_TIMEOUT.as_secs()),
            )
            .hint("See its log, and start it again if it hangs.")),
        }
    }

    /// Why a call failed: what the daemon said, or that it went away.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        // A status that the daemon sent has no source; one that the transport made up has.
        match status.source() {
            None => Failure::from_status(status),
            Some(cause) => self.gone(innermost(cause)),
        }
    }

    /// The daemon went away in mid-call.
    pub(crate) fn gone(&self, cause: impl std::fmt::Display) -> Failure {
        Failure::new(Exit::Unreachable, format!("the peer daemon at {} went away: {cause}", self.at))
            .hint("Start `peer-svc` again, then run the same command: verified chunks are kept.")
    }
}

/// No connection is had.
fn unreachable(peer: &ControlAt<Address>, cause: &(dyn Error + 'static)) -> Failure {
    let kind = cause.downcast_ref().map(io::Error::kind);
    if let (ControlAt::Unix(socket), Some(io::ErrorKind::PermissionDenied)) = (peer, kind) {
        let reason = format!("the peer daemon's socket {} may not be opened: {cause}", socket.display());
        return Failure::new(Exit::NotPermitted, reason).hint(rights::hint(socket));
    }
    Failure::new(Exit::Unreachable, format!("no peer daemon answers at {peer}: {cause}"))
        .hint("Start `peer-svc`, or say where it runs with --peer or DRIZZLE_PEER.")
}
