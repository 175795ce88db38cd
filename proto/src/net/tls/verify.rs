//! Whether the other end of a connection is the one that was meant.
//!
//! rustls hands a verifier the name that was dialled, so the name says which identity is meant: a peer is dialled as
//! `ID.peer.drizzle`, and everything else is a tracker, dialled by the name of its host. Sessions are kept by that name,
//! too, so that one that was resumed is one of the same identity.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use sha2::{Digest as _, Sha256};

use super::certified::{Certificate, Certified};
use crate::{Address, PeerId};

const PEERS: &str = ".peer.drizzle";
const ANY: &str = "any.peer.drizzle";

/// Which identity an address is dialled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meant {
    /// A tracker: one whose certificate says so; or, of a certificate that names no identity of Drizzle, one that is for
    /// the name of its host.
    Tracker,
    /// The peer of this id.
    Peer(PeerId),
    /// Whichever peer answers.
    AnyPeer,
}

/// Another identity answered than the one that was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its certificate says it is {}, not {}", told(*.says), .meant)]
pub struct Mistaken {
    /// Which was meant.
    pub meant: Meant,
    /// What the certificate says.
    pub says: Option<Certified>,
}

fn told(says: Option<Certified>) -> String {
    says.map_or_else(|| "neither a peer nor a tracker".to_owned(), |says| says.to_string())
}

impl std::fmt::Display for Meant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tracker => f.write_str("a tracker"),
            Self::Peer(id) => write!(f, "the peer {id}"),
            Self::AnyPeer => f.write_str("a peer"),
        }
    }
}

impl Meant {
    /// The name to dial for it.
    pub(in crate::net) fn name(self, address: &Address) -> ServerName<'static> {
        let name = match self {
            Self::Peer(id) => format!("{id}{PEERS}"),
            Self::AnyPeer => ANY.to_owned(),
            Self::Tracker => {
                let host = address.as_str().rsplit_once(':').map_or("", |(host, _)| host);
                // No host is called as a peer is.
                if host.ends_with(PEERS) { String::new() } else { host.trim_matches(['[', ']']).to_owned() }
            }
        };
        // A host name with a letter that TLS has no room for has no certificate for that name either.
        ServerName::try_from(name).unwrap_or_else(|_| ServerName::try_from("tracker.drizzle").expect("a name"))
    }

    fn of(name: &ServerName<'_>) -> Self {
        let ServerName::DnsName(name) = name else { return Self::Tracker };
        match name.as_ref().strip_suffix(PEERS) {
            Some("any") => Self::AnyPeer,
            Some(id) => id.parse().map_or(Self::Tracker, Self::Peer),
            None => Self::Tracker,
        }
    }
}

/// Which certificates a client's connections are believed by.
#[derive(Debug)]
pub(super) enum Trust {
    /// Those that lead to one of these roots.
    Roots(Arc<RootCertStore>),
    /// Those that lead to the one whose SHA-256 is this, and which the other end sends along.
    Pinned([u8; 32]),
}

/// Verifies what a server shows.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: Trust,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    /// The roots that a chain has to lead to.
    fn roots(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, rustls::Error> {
        let pin = match &self.trust {
            Trust::Roots(roots) => return Ok(roots.clone()),
            Trust::Pinned(pin) => pin,
        };
        let pinned = chain.iter().find(|certificate| fingerprint(certificate) == *pin);
        let pinned = pinned.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

/// What a root is pinned by.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let roots = self.roots(intermediates)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        let says = Certificate::try_from(end_entity).map_err(other)?.says;
        let meant = Meant::of(server_name);
        match (meant, says) {
            (Meant::Tracker, Some(Certified::Tracker)) | (Meant::AnyPeer, Some(Certified::Peer(_))) => {}
            (Meant::Tracker, None) => verify_server_name(&parsed, server_name)?,
            (Meant::Peer(meant), Some(Certified::Peer(is))) if meant == is => {}
            _ => return Err(other(Mistaken { meant, says })),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
