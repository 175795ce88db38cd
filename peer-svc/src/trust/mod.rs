//! Who this peer is to others, whom it believes, and whom it serves.
//!
//! | module | is |
//! |---|---|
//! | [`enrol`] | having a key certified by the tracker, and keeping the certificate fresh |
//! | [`rights`] | whom this peer serves which file: what the tracker told of that, and tickets |
//! | [`admin`] | who may command this daemon over a network |
//!
//! [`open`] makes the daemon's one [`Transport`]; no other place of this crate knows of certificates.

mod admin;
mod enrol;
mod rights;

use std::{
    io,
    path::{Path, PathBuf},
};

use drizzle_proto::{
    Address, PeerId,
    net::{
        tls::{Certified, Credentials, CredentialsError, Files, options::Choice, reload},
        transport::Transport,
    },
    token::Token,
};
use tokio_util::sync::CancellationToken;

use self::enrol::Enrolled;
pub(crate) use self::{
    admin::AdminsOnly,
    rights::{Permit, Rights},
};

/// In the state folder; for the daemon's user alone.
const FOLDER: &str = "tls";

/// Why connections cannot be secured.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Options that do not go together, or do not suffice.
    #[error("{0}")]
    Options(String),
    /// The files are of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A file in the state folder cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing to show, and no way to get it.
    #[error(
        "this peer has no certificate yet: have `tracker-svc token create` print a token, and start with --join TOKEN"
    )]
    NotJoined,
    /// The tracker refused.
    #[error("cannot join: {0}")]
    Refused(String),
    /// The certificate names no peer.
    #[error(
        "--tls-cert: the certificate names no peer; it needs the URI spiffe://DOMAIN/drizzle/peer/{0}, which is this peer's id"
    )]
    NoPeer(PeerId),
    /// The certificate is another peer's.
    #[error(
        "the certificate is for {says}, but the state folder is that of peer {own}: delete the state folder, or give the certificate of that peer"
    )]
    OtherPeer {
        /// What the certificate says.
        says: Certified,
        /// What the state folder says.
        own: PeerId,
    },
    /// The library refused.
    #[error("cannot use the certificate: {0}")]
    Tls(#[from] drizzle_proto::net::tls::Error),
}

/// The daemon's transport, and what keeps it fresh.
pub(crate) struct Trusting {
    pub(crate) transport: Transport,
    keeps: Keeps,
}

enum Keeps {
    Nothing,
    Files(Files),
    Enrolled(Enrolled),
}

/// Whether a state folder has what an earlier run joined with.
pub(crate) fn has_joined(state_dir: &Path) -> bool {
    enrol::identity_file(state_dir).exists()
}

/// Where what the tracker says of rights is kept.
pub(crate) fn access_file(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER).join("access")
}

/// What was given in files, read once: a peer takes its id from there at its first start.
pub(crate) fn given(choice: &Choice) -> Result<Option<Credentials>, TrustError> {
    match choice {
        Choice::Files(files, _) => Ok(Some(Credentials::read(files)?)),
        _ => Ok(None),
    }
}

/// What joining needs.
pub(crate) struct Joining<'a> {
    pub(crate) state_dir: &'a Path,
    pub(crate) tracker: &'a Address,
    pub(crate) peer: PeerId,
    pub(crate) token: Option<&'a Token>,
    /// Where a token will be.
    pub(crate) token_file: Option<&'a Path>,
}

/// Makes the transport. Waits for the tracker if this peer is to join and it is away.
pub(crate) async fn open(
    choice: Choice,
    given: Option<Credentials>,
    joining: Joining<'_>,
) -> Result<Trusting, TrustError> {
    let (transport, keeps) = match choice {
        Choice::Off { exposed } => {
            if exposed {
                tracing::warn!("serving without TLS: whoever reaches this peer can fetch every file that it shares");
            }
            (Transport::plaintext(), Keeps::Nothing)
        }
        Choice::Files(files, mode) => {
            let credentials = given.map_or_else(|| Credentials::read(&files), Ok)?;
            match credentials.says() {
                Some(Certified::Peer(id)) if id == joining.peer => {}
                Some(says) => return Err(TrustError::OtherPeer { says, own: joining.peer }),
                None => return Err(TrustError::NoPeer(joining.peer)),
            }
            (Transport::with(&credentials, mode)?, Keeps::Files(files))
        }
        Choice::Auto(mode) => {
            let (enrolled, credentials) = Enrolled::open(joining).await?;
            (Transport::with(&credentials, mode)?, Keeps::Enrolled(enrolled))
        }
    };
    Ok(Trusting { transport, keeps })
}

impl Trusting {
    /// Keeps the certificate fresh until `stop`.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        let Some(tls) = self.transport.tls().cloned() else { return };
        match self.keeps {
            Keeps::Nothing => {}
            Keeps::Files(files) => reload::keep(tls, files, reload::LOOKS, stop).await,
            Keeps::Enrolled(enrolled) => enrolled.keep(tls, stop).await,
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
