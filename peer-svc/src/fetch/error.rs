//! Why a fetch fails, and whose fault that is.

use std::time::Duration;

use drizzle_engine::{pace, schedule::Offence};
use drizzle_proto::{
    PeerId, PeerInfo,
    client::{GONE_TRAILER, PEER_ID_TRAILER, status_text},
};
use tonic::{Code, Status};

use crate::{shortage::Shortage, verify::Mismatch};

/// Why a chunk did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    /// Every upload slot of the holder is taken: no offence.
    #[error("busy")]
    Busy,
    /// Bytes of several holders together made no chunk: it is thrown away, and none of them is blamed for it.
    #[error("what several holders gave differs from what was registered")]
    Unclear,
    /// The holder could not be asked, for want of this on this machine: no offence.
    #[error("{0}")]
    Short(Shortage),
    /// The holder is to blame.
    #[error("{}", .1)]
    Offence(Offence, String),
}

impl FetchError {
    /// The holder tells the address of this peer.
    pub(super) fn own_address(holder: &PeerInfo) -> Self {
        let text = format!(
            "peer {} tells {}, which is my own address: set --advertise on both peers",
            holder.id(),
            holder.address()
        );
        Self::Offence(Offence::OwnAddress, text)
    }

    /// A status in answer to a request to `holder` by this peer, `own`.
    pub(super) fn begun(status: &Status, holder: &PeerInfo, own: PeerId) -> Self {
        let answers = status.metadata().get(PEER_ID_TRAILER).and_then(|id| id.to_str().ok()?.parse::<PeerId>().ok());
        match answers.filter(|_| status.code() == Code::Aborted) {
            Some(id) if id == own => Self::own_address(holder),
            Some(id) => {
                let (meant, address) = (holder.id(), holder.address());
                let text =
                    format!("peer {id} answers at {address}, and not peer {meant}: set --advertise on both peers");
                Self::Offence(Offence::OtherPeer, text)
            }
            None => Self::status(status),
        }
    }

    pub(super) fn status(status: &Status) -> Self {
        if let Some(shortage) = Shortage::of(status) {
            return Self::Short(shortage);
        }
        let offence = match status.code() {
            Code::ResourceExhausted => return Self::Busy,
            Code::DataLoss => Offence::Changed,
            Code::NotFound if status.metadata().contains_key(GONE_TRAILER) => Offence::Gone,
            Code::NotFound | Code::FailedPrecondition | Code::OutOfRange => Offence::NotHeld,
            // The transport's own errors: no connection, connection lost.
            Code::Unavailable => Offence::Unreachable,
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => Offence::BrokeOff,
            _ => Offence::Refused,
        };
        // A remote text is cut: it goes to logs and reports.
        Self::Offence(offence, status_text(status).chars().filter(|c| !c.is_control()).take(200).collect())
    }

    /// A status that ends a stream which had begun: the holder was reached and had the chunk.
    pub(super) fn in_stream(status: &Status) -> Self {
        // The slot went to a peer that waits: what came is kept, and the rest is asked for again.
        if status.code() == Code::Aborted {
            return Self::Busy;
        }
        match Self::status(status) {
            Self::Offence(Offence::Unreachable, text) => Self::Offence(Offence::BrokeOff, text),
            Self::Offence(Offence::NotHeld | Offence::Gone, text) => Self::Offence(Offence::Refused, text),
            Self::Busy => Self::Offence(Offence::Refused, "said busy in the middle of a chunk".to_owned()),
            other => other,
        }
    }

    /// What came is not the chunk.
    pub(super) fn mismatch(mismatch: Mismatch) -> Self {
        let offence = match mismatch {
            Mismatch::TooShort { .. } => Offence::BrokeOff,
            Mismatch::TooLong(_) | Mismatch::Hash => Offence::WrongBytes,
            Mismatch::Fragmented => Offence::Refused,
            Mismatch::MixedHash => return Self::Unclear,
        };
        Self::Offence(offence, mismatch.to_string())
    }

    /// Nothing came for too long.
    pub(super) fn silent() -> Self {
        Self::Offence(Offence::Stalled, format!("no byte for {} s", pace::RECEIVING.silence.as_secs()))
    }

    /// Bytes came for other streams of the connection, and no whole message for this one in so long.
    pub(super) fn no_message(waited: Duration) -> Self {
        Self::Offence(Offence::Stalled, format!("no message for {} s", waited.as_secs()))
    }

    /// So few bytes came within a window.
    pub(super) fn drips(bytes: u64) -> Self {
        Self::Offence(Offence::Stalled, format!("{bytes} bytes in {} s", pace::RECEIVING.window.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Address, Labels};

    use super::*;

    #[test]
    fn what_a_refusal_means_is_told_by_its_trailer_and_by_when_it_comes() {
        let [own, meant, answers] = [1, 2, 3].map(|n| PeerId::from_bytes([n; 16]));
        let holder = PeerInfo::new(meant, Address::new("h:1").unwrap(), Labels::default());
        let mut status = Status::aborted("x");
        status.metadata_mut().insert(PEER_ID_TRAILER, answers.to_string().parse().unwrap());
        assert!(matches!(FetchError::begun(&status, &holder, own), FetchError::Offence(Offence::OtherPeer, _)));
        assert!(matches!(FetchError::begun(&status, &holder, answers), FetchError::Offence(Offence::OwnAddress, _)));
        assert_eq!(FetchError::in_stream(&Status::aborted("x")), FetchError::Busy);
        let mut gone = Status::not_found("x");
        assert!(matches!(FetchError::begun(&gone, &holder, own), FetchError::Offence(Offence::NotHeld, _)));
        gone.metadata_mut().insert(GONE_TRAILER, "true".parse().unwrap());
        assert!(matches!(FetchError::begun(&gone, &holder, own), FetchError::Offence(Offence::Gone, _)));
        let refused = FetchError::begun(&Status::aborted("x"), &holder, own);
        assert!(matches!(refused, FetchError::Offence(Offence::Refused, _)), "{refused:?}");
    }
}
