//! A signature that a person made of a shared file: kept, and told to the tracker.

use drizzle_proto::{FileName, PeerId, Signature, trust::Distrust};

use super::backend::Backend;
use crate::{holdings::Registration, register::Patience, store::journal::JournalError};

/// Why a signature has no effect.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    /// There is nothing here that it is about.
    #[error("{name} is not shared here with the content that was signed; share it first, or again if it changed")]
    NotShared {
        /// What the statement names.
        name: FileName,
    },
    /// This daemon would not offer it.
    #[error("{name}: {why}")]
    Untrusted {
        /// What the statement names.
        name: FileName,
        /// What is wrong with it.
        why: Distrust,
    },
    /// The name stands for something else.
    #[error("{name}: {detail}")]
    Refused {
        /// What the statement names.
        name: FileName,
        /// What the tracker said.
        detail: String,
    },
    /// Another peer registered the name, or the tracker knows no signatures.
    #[error(
        "the tracker does not keep this signature of {name}: only the peer that registered a name first signs it, and that is not {peer}; sign it there, or replace an older tracker"
    )]
    NotOwner {
        /// What the statement names.
        name: FileName,
        /// This peer.
        peer: PeerId,
    },
    /// It cannot be recorded.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The daemon stops.
    #[error("the daemon is shutting down")]
    Stopping,
    /// A bug; the log has the panic's text.
    #[error("internal error: signing panicked; see the log of peer-svc")]
    Panicked,
}

/// Keeps a signature; whether the tracker is yet to be told of it.
pub(super) async fn sign(backend: &Backend, signature: Signature) -> Result<bool, SignError> {
    let name = signature.statement().name().clone();
    let (sharer, transfers, own) = (backend.sharer.clone(), backend.transfers.clone(), signature.clone());
    let mut patience = Patience::new(&backend.sharer.holdings, &backend.standing);
    let signing = move || {
        let name = own.statement().name();
        let not_shared = || SignError::NotShared { name: name.clone() };
        let record = sharer.journal.share(name)?.ok_or_else(not_shared)?;
        let checked = sharer.trust.check(&record.manifest.describe(name.clone()), Some(&own));
        match checked {
            // It is about what was shared here before.
            Err(Distrust::OtherFile(_)) => return Err(not_shared()),
            Err(why) => return Err(SignError::Untrusted { name: name.clone(), why }),
            Ok(()) => {}
        }
        if sharer.sign(&own, &|name| transfers.is_running(name))? { Ok(()) } else { Err(not_shared()) }
    };
    match backend.lanes.hashing.run(signing).await {
        Ok(signed) => signed?,
        Err(error) => return Err(if error.is_panic() { SignError::Panicked } else { SignError::Stopping }),
    }
    match patience.registration(&backend.sharer.holdings, &name).await {
        Registration::Pending => return Ok(true),
        Registration::Refused(detail) => return Err(SignError::Refused { name, detail }),
        Registration::Registered => {}
    }
    // The tracker takes a file of any holder; whether it keeps the signature is to be seen.
    match backend.tracker.clone().signature(&name).await {
        Ok((_, Ok(Some(kept)))) if kept == signature => Ok(false),
        Err(error) if error.is_unreachable() => Ok(true),
        _ => Err(SignError::NotOwner { name, peer: backend.monitor.context.identity.id() }),
    }
}
