//! Mutual TLS: what a program shows, what it believes, and how both change while it runs.
//!
//! | module | is |
//! |---|---|
//! | [`certified`] | what a certificate says its bearer is |
//! | [`credentials`] | key, certificate and roots, from PEM |
//! | [`verify`] | whether the other end is the one that was meant |
//! | [`authority`] | what certifies |
//! | [`enrol`] | a key of one's own, and having it certified |
//! | `options` | what the daemons' options come to (feature `daemon`) |
//! | [`reload`] | credentials in files that others write |
//!
//! TLS 1.3 alone. Both ends show a certificate, but for a tracker's callers that come to get one. Only
//! [`transport`](super::transport) uses this.

pub mod authority;
pub mod certified;
pub mod credentials;
pub mod enrol;
#[cfg(feature = "daemon")]
pub mod options;
pub mod reload;
pub mod verify;

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{ServerSessionMemoryCache, WebPkiClientVerifier},
    version::TLS13,
};

pub use rustls::Error;

pub use self::{
    certified::{Certificate, CertificateError, Certified},
    credentials::{Credentials, CredentialsError, Files},
    verify::{Meant, Mistaken},
};
use self::{
    credentials::provider,
    verify::{ServerVerifier, Trust},
};

/// HTTP/2, which is all that is spoken.
const ALPN: &[u8] = b"h2";
/// Sessions that are kept for other ends to go on with.
const SESSIONS: usize = 4096;

/// Which connections are made and accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With TLS, and no others.
    Required,
    /// With TLS where the other end speaks it; while a fleet moves from one to the other.
    Preferred,
}

/// What a program's connections are secured by. It may change while the program runs; what is connected stays so.
#[derive(Debug)]
pub struct Tls {
    mode: Mode,
    configs: RwLock<Arc<Configs>>,
}

/// Made once from credentials.
pub(super) struct Configs {
    pub(super) client: Arc<ClientConfig>,
    /// Demands a certificate. Absent if there is none to show.
    pub(super) server: Option<Arc<ServerConfig>>,
    /// Lets callers in that show none.
    pub(super) open_server: Option<Arc<ServerConfig>>,
    certificate: Option<Certificate>,
}

impl std::fmt::Debug for Configs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configs").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// With these credentials at first.
    pub fn new(credentials: &Credentials, mode: Mode) -> Result<Self, rustls::Error> {
        Ok(Self { mode, configs: RwLock::new(Arc::new(Configs::new(credentials)?)) })
    }

    /// For a client that shows nothing, and believes a server whose chain leads to the certificate with this SHA-256.
    pub fn pinned(fingerprint: [u8; 32]) -> Result<Self, rustls::Error> {
        let client = client(Trust::Pinned(fingerprint), None, &provider())?;
        let configs = Configs { client: Arc::new(client), server: None, open_server: None, certificate: None };
        Ok(Self { mode: Mode::Required, configs: RwLock::new(Arc::new(configs)) })
    }

    /// New connections are made and accepted with these from now on.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), rustls::Error> {
        let new = Arc::new(Configs::new(credentials)?);
        *self.configs.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Which connections are made and accepted.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the own certificate says at present.
    pub fn certificate(&self) -> Option<Certificate> {
        self.configs().certificate
    }

    pub(super) fn configs(&self) -> Arc<Configs> {
        self.configs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Configs {
    fn new(credentials: &Credentials) -> Result<Self, rustls::Error> {
        let provider = provider();
        let client = Arc::new(client(Trust::Roots(credentials.roots.clone()), credentials.own.as_ref(), &provider)?);
        let mut servers = [None, None];
        if let Some(own) = &credentials.own {
            for (server, is_open) in servers.iter_mut().zip([false, true]) {
                let verifier = WebPkiClientVerifier::builder_with_provider(credentials.roots.clone(), provider.clone());
                let verifier = if is_open { verifier.allow_unauthenticated() } else { verifier };
                let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
                let mut config = ServerConfig::builder_with_provider(provider.clone())
                    .with_protocol_versions(&[&TLS13])?
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(own.chain.clone(), own.key.clone_key())?;
                config.alpn_protocols = vec![ALPN.to_vec()];
                config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
                *server = Some(Arc::new(config));
            }
        }
        let [server, open_server] = servers;
        Ok(Self { client, server, open_server, certificate: credentials.certificate() })
    }
}

fn client(
    trust: Trust,
    own: Option<&credentials::Own>,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = Arc::new(ServerVerifier { trust, provider: provider.clone() });
    // Whose rules are these own ones, beside the usual ones: `verify`.
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => config.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod testing {
    //! Certificates for tests.

    use rcgen::{CertificateParams, KeyPair, SanType};

    /// A certificate with those names.
    pub(in crate::net) fn self_signed(names: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }
}
