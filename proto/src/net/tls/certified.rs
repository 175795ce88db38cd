//! What a certificate says its bearer is.
//!
//! It stands in a URI among the subject's alternative names, in the form of SPIFFE, so that every tool that makes such
//! certificates can make these. What holds (each line has a test):
//! - `spiffe://DOMAIN/.../drizzle/peer/ID` is the peer of that id, `spiffe://DOMAIN/.../drizzle/tracker` a tracker; the
//!   domain may itself be `drizzle`;
//! - a certificate that says two of these says none, and is refused;
//! - what is no such URI says nothing.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::PeerId;

/// What a certificate's bearer is to Drizzle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Certified {
    /// The peer of this id: a daemon, or a person's tools.
    Peer(PeerId),
    /// A tracker.
    Tracker,
}

impl Certified {
    /// The peer's id, if it is one.
    pub fn peer(self) -> Option<PeerId> {
        match self {
            Self::Peer(id) => Some(id),
            Self::Tracker => None,
        }
    }
}

/// What of a certificate matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// Seconds since 1970 from which on it is valid.
    pub not_before: i64,
    /// Seconds since 1970 until which it is valid.
    pub not_after: i64,
    /// What its bearer is, if it says so.
    pub says: Option<Certified>,
}

/// A certificate that says nothing that can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not DER, or not a certificate.
    #[error("it cannot be read")]
    Malformed,
    /// Two identities.
    #[error("it names two identities of Drizzle; one certificate is for one peer, or for the tracker")]
    Ambiguous,
}

impl Certificate {
    /// Reads a certificate; proves nothing.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let mut says = None;
        for extension in certificate.extensions() {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
            for name in &names.general_names {
                let GeneralName::URI(uri) = name else { continue };
                let Ok(one) = uri.parse::<Certified>() else { continue };
                if says.replace(one).is_some() {
                    return Err(CertificateError::Ambiguous);
                }
            }
        }
        let validity = certificate.validity();
        Ok(Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp(), says })
    }
}

impl Certificate {
    /// Whether its time is over.
    pub fn ran_out(&self, now: SystemTime) -> bool {
        now > at(self.not_after)
    }

    /// When it is to be renewed: when two thirds of its life are over.
    pub fn renew_at(&self) -> SystemTime {
        at(self.not_before + (self.not_after - self.not_before) * 2 / 3)
    }

    /// How much of its life is left.
    pub fn left(&self, now: SystemTime) -> Duration {
        at(self.not_after).duration_since(now).unwrap_or_default()
    }
}

/// Seconds since 1970 as a time; what lies before is as long ago.
fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl TryFrom<&CertificateDer<'_>> for Certificate {
    type Error = CertificateError;

    fn try_from(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        Self::read(der)
    }
}

impl fmt::Display for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(id) => write!(f, "spiffe://drizzle/peer/{id}"),
            Self::Tracker => f.write_str("spiffe://drizzle/tracker"),
        }
    }
}

/// The URI is no identity of Drizzle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identity of Drizzle: expected spiffe://DOMAIN/drizzle/peer/ID or spiffe://DOMAIN/drizzle/tracker")]
pub struct NotCertified;

impl FromStr for Certified {
    type Err = NotCertified;

    fn from_str(uri: &str) -> Result<Self, NotCertified> {
        let path = uri.strip_prefix("spiffe://").ok_or(NotCertified)?;
        let mut from_the_end = path.rsplit('/');
        match (from_the_end.next(), from_the_end.next(), from_the_end.next()) {
            (Some("tracker"), Some("drizzle"), _) => Ok(Self::Tracker),
            (Some(id), Some("peer"), Some("drizzle")) => id.parse().map(Self::Peer).map_err(|_| NotCertified),
            _ => Err(NotCertified),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::testing;

    const ID: PeerId = PeerId::from_bytes([7; 16]);

    #[test]
    fn an_identity_is_a_uri_of_any_domain_and_nothing_else_is_one() {
        let id = ID.to_string();
        for (uri, says) in [
            (format!("spiffe://drizzle/peer/{id}"), Some(Certified::Peer(ID))),
            (format!("spiffe://example.org/fleet/drizzle/peer/{id}"), Some(Certified::Peer(ID))),
            ("spiffe://drizzle/tracker".to_owned(), Some(Certified::Tracker)),
            ("spiffe://example.org/drizzle/tracker".to_owned(), Some(Certified::Tracker)),
            (format!("https://drizzle/peer/{id}"), None),
            (format!("spiffe://drizzle/peer/{}", id.to_uppercase().replace('0', "A")), None),
            (format!("spiffe://drizzle/peer/{id}/"), None),
            ("spiffe://drizzle/peer/".to_owned(), None),
            ("spiffe://tracker".to_owned(), None),
            (format!("spiffe://drizzle/{id}"), None),
        ] {
            assert_eq!(uri.parse().ok(), says, "{uri}");
        }
        for certified in [Certified::Peer(ID), Certified::Tracker] {
            assert_eq!(certified.to_string().parse(), Ok(certified));
        }
    }

    #[test]
    fn a_certificate_has_its_time() {
        let certificate = Certificate { not_before: 1000, not_after: 1300, says: None };
        let seconds = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!certificate.ran_out(seconds(1300)) && certificate.ran_out(seconds(1301)));
        assert_eq!(certificate.renew_at(), seconds(1200));
        assert_eq!((certificate.left(seconds(1290)).as_secs(), certificate.left(seconds(2000)).as_secs()), (10, 0));
        let ancient = Certificate { not_before: -5, not_after: -1, says: None };
        assert!(ancient.ran_out(seconds(1)));
    }

    #[test]
    fn a_certificate_says_one_thing() {
        let uri = |text: &str| rcgen::SanType::URI(text.try_into().unwrap());
        let peer = uri(&Certified::Peer(ID).to_string());
        let (tracker, other) = (uri("spiffe://drizzle/tracker"), uri("spiffe://example.org/web"));
        let read = |names: &[rcgen::SanType]| Certificate::read(&testing::self_signed(names));
        assert_eq!(read(&[other.clone(), peer.clone()]).unwrap().says, Some(Certified::Peer(ID)));
        assert_eq!(read(&[other]).unwrap().says, None);
        assert_eq!(read(&[peer, tracker]), Err(CertificateError::Ambiguous));
        assert_eq!(Certificate::read(b"no certificate"), Err(CertificateError::Malformed));
    }
}
