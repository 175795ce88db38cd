//! A certificate authority: what a tracker certifies its peers by.
//!
//! What holds (each line has a test):
//! - a certificate says what the authority knows, whatever the request asks for;
//! - a request that its key did not sign is refused;
//! - nobody whom it certifies can certify others.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest as _, Sha256};

use super::{
    certified::Certified,
    enrol::{Chain, Key, ders, pem},
    verify::fingerprint,
};

/// Bytes of a request at most.
pub const MAX_REQUEST: usize = 4096;
/// Life of the authority's own certificate.
const LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Clocks differ: certificates are valid from so long ago.
const BACKDATED: Duration = Duration::from_secs(300);

/// An authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

/// Why nothing was certified, or there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Not a request, or not signed by its key.
    #[error("not a certification request that its own key signed")]
    Request,
    /// What was kept is no key with its certificate.
    #[error("the authority's key or certificate cannot be read: {0}")]
    Kept(rcgen::Error),
    /// The cryptographic library refused.
    #[error("cannot certify: {0}")]
    Library(rcgen::Error),
}

impl Authority {
    /// A new one; its certificate and its key in PEM.
    pub fn generate(now: SystemTime) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Library)?;
        let mut params = dated(now, LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "Drizzle tracker's authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(AuthorityError::Library)?;
        Ok((pem(certificate.der()), key.serialize_pem()))
    }

    /// From what was made.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(AuthorityError::Kept)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(AuthorityError::Kept)?;
        let der = ders(certificate.as_bytes()).into_iter().next();
        Ok(Self { issuer, der: der.ok_or(AuthorityError::Kept(rcgen::Error::CouldNotParseCertificate))? })
    }

    /// SHA-256 of its certificate: what it is pinned by.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&CertificateDer::from(self.der.as_slice()))
    }

    /// Certifies the key of a request for so long. `names` are host names and addresses of a server.
    pub fn certify(
        &self,
        request: &Request,
        bearer: Certified,
        names: &[String],
        now: SystemTime,
        life: Duration,
    ) -> Result<Chain, AuthorityError> {
        let mut params = dated(now, life);
        let named = CertificateParams::new(names).map_err(AuthorityError::Library)?;
        params.subject_alt_names = named.subject_alt_names;
        let uri = bearer.to_string().try_into().map_err(AuthorityError::Library)?;
        params.subject_alt_names.push(SanType::URI(uri));
        let common = match bearer {
            Certified::Peer(id) => format!("Drizzle peer {id}"),
            Certified::Tracker => "Drizzle tracker".to_owned(),
        };
        params.distinguished_name.push(DnType::CommonName, common);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.0.public_key, &self.issuer).map_err(AuthorityError::Library)?;
        Ok(Chain(vec![certificate.der().to_vec(), self.der.clone()]))
    }

    /// A key of its own with its certificate, for a server or a test.
    pub fn issue(
        &self,
        bearer: Certified,
        names: &[String],
        now: SystemTime,
        life: Duration,
    ) -> Result<(Key, Chain), AuthorityError> {
        let library = |error: super::enrol::KeyError| AuthorityError::Library(error.0);
        let key = Key::generate().map_err(library)?;
        let request = Request::read(&key.request().map_err(library)?)?;
        let chain = self.certify(&request, bearer, names, now, life)?;
        Ok((key, chain))
    }
}

/// Valid from a little ago, for so long.
fn dated(now: SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), (now + life).into());
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

/// A request that its key signed.
#[derive(Debug)]
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads one, in DER.
    pub fn read(der: &[u8]) -> Result<Self, AuthorityError> {
        if der.len() > MAX_REQUEST {
            return Err(AuthorityError::Request);
        }
        let read = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        read.map(Self).map_err(|_| AuthorityError::Request)
    }

    /// SHA-256 of the public key.
    pub fn key(&self) -> [u8; 32] {
        Sha256::digest(self.0.public_key.subject_public_key_info()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PeerId, net::tls::Certificate};

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        let (certificate, key) = Authority::generate(SystemTime::now()).unwrap();
        Authority::from_pem(&certificate, &key).unwrap()
    }

    #[test]
    fn a_certificate_says_what_the_authority_knows() {
        let (authority, now) = (authority(), SystemTime::now());
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::default();
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        asked.subject_alt_names = vec![SanType::URI("spiffe://drizzle/tracker".try_into().unwrap())];
        let request = Request::read(asked.serialize_request(&key).unwrap().der()).unwrap();
        let peer = Certified::Peer(PeerId::from_bytes([5; 16]));
        let chain = authority.certify(&request, peer, &[], now, HOUR).unwrap();
        let certificate = Certificate::read(&chain.0[0]).unwrap();
        assert_eq!(certificate.says, Some(peer));
        let seconds =
            |time: SystemTime| i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap();
        assert_eq!(certificate.not_after, seconds(now + HOUR));
        assert_eq!(fingerprint(&CertificateDer::from(chain.0[1].as_slice())), authority.fingerprint());
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let mut request = Key::generate().unwrap().request().unwrap();
        assert!(Request::read(&request).is_ok());
        *request.last_mut().unwrap() ^= 1;
        assert!(matches!(Request::read(&request), Err(AuthorityError::Request)));
        assert!(Request::read(&vec![0; MAX_REQUEST + 1]).is_err());
    }
}
