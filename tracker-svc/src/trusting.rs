//! From what was configured: how connections are secured, and by what rights callers are judged.

use std::{path::Path, sync::Arc};

use drizzle_proto::net::{
    tls::{Certified, Credentials, CredentialsError, Files, Mode, Tls, options::Choice},
    transport::Transport,
};

use crate::{
    access::{
        Access, Rules,
        audit::Audit,
        authority::{OpenError, Ours},
        store::StoreError,
    },
    config::Trust,
};

/// Why callers cannot be told apart.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Rights cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority cannot be read or made.
    #[error(transparent)]
    Authority(#[from] OpenError),
    /// The files are of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The certificate is a peer's.
    #[error(
        "--tls-cert: the certificate says it is {0}; a tracker needs one that says it is spiffe://DOMAIN/drizzle/tracker, or one without such a name for the host at which peers reach it"
    )]
    NotATracker(Certified),
    /// The library refused.
    #[error("cannot use the certificate: {0}")]
    Tls(#[from] drizzle_proto::net::tls::Error),
    /// The audit log cannot be written.
    #[error("--audit-log {}: {source}", path.display())]
    Audit {
        /// Where.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What securing comes to.
pub(crate) struct Trusting {
    pub(crate) transport: Transport,
    pub(crate) access: Access,
    /// With `--tls auto`.
    pub(crate) ours: Option<Arc<Ours>>,
    /// With `--tls files`.
    pub(crate) files: Option<Files>,
}

impl Trusting {
    /// Blocks on the disk.
    pub(crate) fn open(data_dir: &Path, trust: Trust) -> Result<Self, TrustError> {
        let path = trust.audit_log.clone().unwrap_or_default();
        let audit = Audit::open(trust.audit_log).map_err(|source| TrustError::Audit { path, source })?;
        let enforced = matches!(trust.tls, Choice::Auto(Mode::Required) | Choice::Files(_, Mode::Required));
        let access = Access::open(data_dir, Rules { enforced, ticket_life: trust.ticket_life }, audit)?;
        let (mut ours, mut own_files) = (None, None);
        let transport = match trust.tls {
            Choice::Off { exposed } => {
                if exposed {
                    tracing::warn!(
                        "serving without TLS: whoever reaches this tracker can read and register every name"
                    );
                }
                Transport::plaintext()
            }
            Choice::Auto(mode) => {
                let authority = Arc::new(Ours::open(data_dir, trust.names, trust.certificate_life)?);
                let tls = Tls::new(&authority.own()?, mode)?;
                ours = Some(authority);
                Transport::secured(Arc::new(tls))
            }
            Choice::Files(files, mode) => {
                let credentials = Credentials::read(&files)?;
                if let Some(says) = credentials.says().filter(|says| *says != Certified::Tracker) {
                    return Err(TrustError::NotATracker(says));
                }
                own_files = Some(files);
                Transport::secured(Arc::new(Tls::new(&credentials, mode)?))
            }
        };
        if transport.tls().is_some() && !enforced {
            tracing::warn!(
                "--tls prefer: callers without TLS are served as before; say --tls auto or --tls files once every peer has joined"
            );
        }
        Ok(Self { transport, access, ours, files: own_files })
    }
}
