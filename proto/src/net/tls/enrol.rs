//! A key of one's own, and having it certified by a tracker's authority.
//!
//! The key never leaves the machine that made it: what is sent is a request that it signed, which proves that the sender
//! has it. For the same reason a certificate is renewed by the same key, and by nothing else.

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{Credentials, CredentialsError};
use crate::{PeerId, token::NoRandom};

/// A private key, on elliptic curve P-256.
#[derive(Debug)]
pub struct Key(KeyPair);

/// The cryptographic library refused, which it does to nobody in good health.
#[derive(Debug, thiserror::Error)]
#[error("cannot make or use a key: {0}")]
pub struct KeyError(#[from] pub(super) rcgen::Error);

impl Key {
    /// A new one, at random.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// From PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        Ok(Self(KeyPair::from_pem(pem)?))
    }

    /// As PEM: a secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A request that it be certified, in DER. What is to stand in the certificate the authority knows.
    pub fn request(&self) -> Result<Vec<u8>, KeyError> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.der().to_vec())
    }

    /// Its public half, in DER.
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

/// An identity for whoever has none: random.
pub fn new_identity() -> Result<PeerId, NoRandom> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| NoRandom)?;
    Ok(PeerId::from_bytes(id))
}

/// What an authority answered: certificates in DER, the own one first, the root last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(pub Vec<Vec<u8>>);

/// An authority's answer that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("the tracker answered without a certificate and the authority's own")]
pub struct NoChain;

impl Chain {
    /// As PEM: what is shown, and the root that is believed. The root is shown as well, for callers that know no more of it
    /// than its hash.
    pub fn to_pem(&self) -> Result<(String, String), NoChain> {
        let root = self.0.last().filter(|_| self.0.len() > 1).ok_or(NoChain)?;
        Ok((self.0.iter().map(|der| pem(der)).collect(), pem(root)))
    }
}

/// One certificate as PEM.
pub fn pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

/// The certificates of a PEM file, in DER.
pub fn ders(pem: &[u8]) -> Vec<Vec<u8>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).map(|der| der.to_vec()).collect()
}

/// Credentials of a key and what was certified of it.
pub fn credentials(key: &Key, chain: &Chain) -> Result<Credentials, CredentialsError> {
    let names = ["the tracker's answer"; 3];
    let missing = |_| CredentialsError::Pem { what: names[0].to_owned(), wanted: "certificate" };
    let (shown, root) = chain.to_pem().map_err(missing)?;
    Credentials::from_pem(shown.as_bytes(), key.to_pem().as_bytes(), root.as_bytes(), names)
}
