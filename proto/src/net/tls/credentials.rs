//! What a program shows and what it trusts: its key, its certificate, and the roots it believes.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use super::certified::{Certificate, CertificateError, Certified};
use crate::files;

/// A key with its certificate, and the roots that others' certificates have to lead to.
#[derive(Clone)]
pub struct Credentials {
    /// Absent for a program that shows nothing.
    pub(super) own: Option<Own>,
    pub(super) roots: Arc<RootCertStore>,
}

/// What is shown.
#[derive(Clone)]
pub(super) struct Own {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Arc<PrivateKeyDer<'static>>,
    pub(super) certificate: Certificate,
}

/// Where credentials are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, with what leads from it to the root.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The roots.
    pub ca: PathBuf,
}

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not PEM, or without what is wanted.
    #[error("{what}: no {wanted} in PEM form found")]
    Pem {
        /// Of which file.
        what: String,
        /// What is missing.
        wanted: &'static str,
    },
    /// The certificate says nothing that can be relied on.
    #[error("{what}: the certificate is of no use: {source}")]
    Certificate {
        /// Of which file.
        what: String,
        /// Why.
        source: CertificateError,
    },
    /// The key is of another certificate, or of a kind that is not known.
    #[error("{what}: the key does not fit the certificate: {source}")]
    Key {
        /// Of which file.
        what: String,
        /// Why.
        source: rustls::Error,
    },
}

impl Credentials {
    /// From the text of three PEM files, which `names` calls what the user knows them as.
    pub fn from_pem(cert: &[u8], key: &[u8], ca: &[u8], names: [&str; 3]) -> Result<Self, CredentialsError> {
        let [cert_name, key_name, ca_name] = names.map(str::to_owned);
        let chain = certificates(cert, &cert_name)?;
        let no_key = || CredentialsError::Pem { what: key_name.clone(), wanted: "private key" };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| no_key())?;
        let certificate = Certificate::try_from(&chain[0]);
        let certificate = certificate.map_err(|source| CredentialsError::Certificate { what: cert_name, source })?;
        let fits = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider());
        fits.map_err(|source| CredentialsError::Key { what: key_name, source })?;
        let own = Own { chain, key: Arc::new(key), certificate };
        Ok(Self { own: Some(own), roots: roots(&certificates(ca, &ca_name)?, &ca_name)? })
    }

    /// Trusts those roots, and shows nothing.
    pub fn anonymous(ca: &[u8], name: &str) -> Result<Self, CredentialsError> {
        Ok(Self { own: None, roots: roots(&certificates(ca, name)?, name)? })
    }

    /// Reads them. Blocks on the disk.
    pub fn read(files: &Files) -> Result<Self, CredentialsError> {
        let [cert, key, ca] = [&files.cert, &files.key, &files.ca];
        let names = [cert, key, ca].map(|path| path.display().to_string());
        Self::from_pem(&file(cert)?, &file(key)?, &file(ca)?, names.each_ref().map(String::as_str))
    }

    /// What the own certificate says.
    pub fn certificate(&self) -> Option<Certificate> {
        Some(self.own.as_ref()?.certificate)
    }

    /// What the own certificate says that its bearer is.
    pub fn says(&self) -> Option<Certified> {
        self.certificate()?.says
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("Credentials").field("certificate", &self.certificate()).finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let none = || CredentialsError::Pem { what: what.to_owned(), wanted: "certificate" };
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| none())?;
    if all.is_empty() { Err(none()) } else { Ok(all) }
}

fn roots(all: &[CertificateDer<'static>], what: &str) -> Result<Arc<RootCertStore>, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for root in all {
        let malformed =
            |_| CredentialsError::Certificate { what: what.to_owned(), source: CertificateError::Malformed };
        roots.add(root.clone()).map_err(malformed)?;
    }
    Ok(Arc::new(roots))
}

fn file(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    files::read(path).map_err(|source| CredentialsError::File { path: path.to_owned(), source })
}

/// The algorithms that are used: those of aws-lc-rs, AES-128 first, which has half the rounds to go of what is safe
/// enough for decades.
pub(super) fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{self, cipher_suite::*};
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_256_GCM_SHA384],
        ..aws_lc_rs::default_provider()
    })
}
