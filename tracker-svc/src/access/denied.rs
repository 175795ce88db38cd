//! What is refused because of whoever asks, and what it is told.

use std::time::Duration;

use drizzle_proto::{FileName, PeerId, client::STOPPED_TRAILER, rights::Verb};
use tonic::{Status, metadata::MetadataValue};

/// The trailer in which gRPC says when to come back, in milliseconds: its clients heed it by themselves.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a caller may not do what it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It did not prove who it is.
    #[error(
        "this tracker serves only peers that it knows: join with a token from `tracker-svc token create`, or show a certificate that names a peer"
    )]
    NoIdentity,
    /// It was revoked.
    #[error("the identity {0} was revoked by an operator")]
    Revoked(PeerId),
    /// It is known, and that is all.
    #[error("nothing was granted to {0}; an operator can: tracker-svc grant {0} --role reader --prefix PREFIX/")]
    NothingGranted(PeerId),
    /// Not this.
    #[error("{peer} may not {verb} {:?}; an operator can grant that: tracker-svc grant {peer} --role {} --prefix PREFIX/", .name.as_str(), role(*.verb))]
    NotGranted {
        /// Who.
        peer: PeerId,
        /// What.
        verb: Verb,
        /// With which name.
        name: FileName,
    },
    /// Its certificate is another peer's than it says it is.
    #[error(
        "this peer says it is {claimed}, but its certificate is for {certified}: start it with the state folder or the certificate of that peer"
    )]
    OtherId {
        /// What it says.
        claimed: PeerId,
        /// What it proves.
        certified: PeerId,
    },
    /// The lease is another peer's.
    #[error("the lease is not this peer's")]
    OtherLease,
    /// An operator stopped the name.
    #[error("an operator stopped {:?}: nobody serves it until it is resumed", .0.as_str())]
    Stopped(FileName),
    /// It asks too much.
    #[error("{peer} asks for too much at once; come back in {} ms", .again.as_millis().max(1))]
    TooOften {
        /// Who.
        peer: PeerId,
        /// When to come back.
        again: Duration,
    },
    /// It watches as many names as it may.
    #[error("{0} watches as many names as one peer may; end some first")]
    TooManyWatches(PeerId),
}

impl Denied {
    /// The reasons, as a monitor has them; and that for which no identity was given.
    pub(crate) const REASONS: [&str; 10] = [
        "no_identity",
        "revoked",
        "nothing_granted",
        "not_granted",
        "other_id",
        "other_lease",
        "stopped",
        "too_often",
        "too_many_watches",
        Self::ENROLMENT,
    ];
    /// A token or a key that is not good.
    pub(crate) const ENROLMENT: &str = "enrolment";

    /// One of [`Denied::REASONS`].
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::Revoked(_) => "revoked",
            Self::NothingGranted(_) => "nothing_granted",
            Self::NotGranted { .. } => "not_granted",
            Self::OtherId { .. } => "other_id",
            Self::OtherLease => "other_lease",
            Self::Stopped(_) => "stopped",
            Self::TooOften { .. } => "too_often",
            Self::TooManyWatches(_) => "too_many_watches",
        }
    }
}

fn role(verb: Verb) -> &'static str {
    match verb {
        Verb::Read => "reader",
        Verb::Share | Verb::Withdraw => "publisher",
        Verb::Admin => "admin",
    }
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::NoIdentity => Status::unauthenticated(text),
            Denied::Stopped(_) => {
                let mut status = Status::permission_denied(text);
                status.metadata_mut().insert(STOPPED_TRAILER, MetadataValue::from_static("true"));
                status
            }
            Denied::TooOften { again, .. } => {
                let mut status = Status::resource_exhausted(text);
                let millis = u64::try_from(again.as_millis()).unwrap_or(u64::MAX).max(1);
                status.metadata_mut().insert(PUSHBACK, millis.into());
                status
            }
            Denied::TooManyWatches(_) => Status::resource_exhausted(text),
            _ => Status::permission_denied(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_much_is_told_when_to_come_back_in_words_and_in_a_trailer() {
        let again = Duration::from_micros(1_250_400);
        let status = Status::from(Denied::TooOften { peer: PeerId::from_bytes([1; 16]), again });
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().ends_with("come back in 1250 ms"), "{}", status.message());
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "1250");
    }
}
