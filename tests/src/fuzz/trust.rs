//! What proves who somebody is and what they may do.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use drizzle_proto::{
    PeerId,
    net::tls::{
        Certificate, Certified, Credentials,
        authority::{MAX_REQUEST, Request},
        enrol::{Chain, ders, pem as to_pem},
    },
    rights::MAX_GRANTS,
    ticket::{self, Ticket, TicketError},
    wire,
};
use prost::Message;

/// Signs what is tried, as nobody who attacks could: else no input came past the signature.
static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes are a seed"));

/// Whose tickets are tried.
pub const BEARER: PeerId = PeerId::from_bytes([3; 16]);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A ticket of these claims that the trusted key signed.
fn signed(claims: &[u8]) -> Vec<u8> {
    let signature = KEY.sign(&[b"drizzle ticket 1", claims].concat());
    wire::Ticket { claims: claims.to_vec().into(), signature: signature.as_ref().to_vec().into() }.encode_to_vec()
}

/// Tickets: as they are shown, where no trusted key signed them, and as claims that one did sign.
pub fn ticket(bytes: &[u8]) {
    let key: [u8; 32] = KEY.public_key().as_ref().try_into().expect("32 bytes by RFC 8032");
    let shown = Ticket::check(bytes, BEARER, &[key, [0; 32]], now());
    // Those in the corpus that are good were signed by this key.
    if let Ok(ticket) = &shown {
        assert_eq!(ticket.peer, BEARER);
    }
    if let Ok(ticket) = wire::Ticket::decode(bytes) {
        let _ = ticket::lifetime(&ticket, now());
    }
    let signed = signed(bytes);
    match Ticket::check(&signed, BEARER, &[key], now()) {
        Ok(ticket) => {
            assert_eq!(ticket.peer, BEARER, "it is good for the identity that it names");
            assert!(ticket.scopes.len() <= MAX_GRANTS && signed.len() <= ticket::MAX_LEN);
            assert!(!ticket.ran_out(now()));
            let other = PeerId::from_bytes([4; 16]);
            assert_eq!(Ticket::check(&signed, other, &[key], now()), Err(TicketError::NotYours));
            assert_eq!(Ticket::check(&signed, BEARER, &[[0; 32]], now()), Err(TicketError::Forged));
        }
        Err(error) => assert!(error != TicketError::Forged || signed.len() > ticket::MAX_LEN, "it is signed"),
    }
}

/// Certificates, and the URIs in them.
pub fn certificate(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::read(bytes)
        && let Some(says) = certificate.says
    {
        assert_eq!(says.to_string().parse(), Ok(says));
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(has("spiffe://"), "nothing is said that does not stand there");
        if let Certified::Peer(id) = says {
            assert!(has(&id.to_string()), "and no other id");
        }
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(says) = text.parse::<Certified>()
    {
        assert!(text.starts_with("spiffe://"));
        assert_eq!(says.to_string().parse(), Ok(says));
    }
}

/// Requests to certify a key.
pub fn certification(bytes: &[u8]) {
    if let Ok(request) = Request::read(bytes) {
        assert!(bytes.len() <= MAX_REQUEST);
        let _ = request.key();
    }
}

/// PEM files: certificate, key and roots, with a byte of 0xff between them; and what a tracker answers in DER.
pub fn pem(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0xff);
    let [cert, key, ca] = [(); 3].map(|()| parts.next().unwrap_or_default());
    if let Ok(credentials) = Credentials::from_pem(cert, key, ca, ["cert", "key", "ca"]) {
        assert!(credentials.certificate().is_some());
    }
    let _ = Credentials::anonymous(ca, "ca");
    let read = ders(bytes);
    let written: String = read.iter().map(|der| to_pem(der)).collect();
    assert_eq!(ders(written.as_bytes()), read, "what is written is read");
    if let Ok((shown, root)) = Chain(read.clone()).to_pem() {
        assert_eq!((ders(shown.as_bytes()).len(), ders(root.as_bytes()).len()), (read.len(), 1));
    }
}
