//! Tickets: what an identity may read, signed by its tracker, so that holders need not ask.
//!
//! What holds (each line has a test):
//! - a ticket is good for the identity that it names, until it runs out, if a key that is trusted signed it;
//! - nothing can be changed in it, and no other thing that the key signed passes for one.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use prost::{Message, bytes::Bytes};

use crate::{FileName, PeerId, Scope, rights::MAX_GRANTS, wire};

/// The request header that bears one.
pub const HEADER: &str = "drizzle-ticket-bin";
/// Bytes of one at most.
pub const MAX_LEN: usize = 2048;
/// Clocks of machines differ by so much.
const SKEW: Duration = Duration::from_secs(60);
const CONTEXT: &[u8] = b"drizzle ticket 1";

/// Signs tickets.
pub struct TicketKey(Ed25519KeyPair);

/// The key is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key that signs tickets cannot be made or read")]
pub struct KeyError;

impl TicketKey {
    /// A new one at random, as it is kept: a secret.
    pub fn generate() -> Result<Vec<u8>, KeyError> {
        let key = Ed25519KeyPair::generate().map_err(|_| KeyError)?;
        Ok(key.to_pkcs8().map_err(|_| KeyError)?.as_ref().to_vec())
    }

    /// From what was kept.
    pub fn from_kept(kept: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_pkcs8(kept).map(Self).map_err(|_| KeyError)
    }

    /// What its tickets are checked by.
    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("32 bytes by RFC 8032")
    }

    /// A ticket.
    pub fn sign(&self, ticket: &Ticket) -> wire::Ticket {
        let expires = ticket.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let scopes = ticket.scopes.iter().map(ToString::to_string).collect();
        let peer_id = Bytes::copy_from_slice(ticket.peer.as_bytes());
        let claims = wire::TicketClaims { peer_id, expires, scopes }.encode_to_vec();
        let signature = self.0.sign(&signed(&claims)).as_ref().to_vec();
        wire::Ticket { claims: claims.into(), signature: signature.into() }
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

fn signed(claims: &[u8]) -> Vec<u8> {
    [CONTEXT, claims].concat()
}

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// For whom it is.
    pub peer: PeerId,
    /// Until when.
    pub expires: SystemTime,
    /// What may be read.
    pub scopes: Vec<Scope>,
}

/// Why a ticket is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not a ticket.
    #[error("the ticket is malformed")]
    Malformed,
    /// No trusted key signed it.
    #[error("the ticket was not signed by this swarm's tracker")]
    Forged,
    /// For another identity.
    #[error("the ticket is another peer's")]
    NotYours,
    /// Its time is over.
    #[error("the ticket has run out")]
    RanOut,
}

impl Ticket {
    /// Checks what was shown by `bearer`.
    pub fn check(shown: &[u8], bearer: PeerId, keys: &[[u8; 32]], now: SystemTime) -> Result<Self, TicketError> {
        if shown.len() > MAX_LEN {
            return Err(TicketError::Malformed);
        }
        let ticket = wire::Ticket::decode(shown).map_err(|_| TicketError::Malformed)?;
        let signed = signed(&ticket.claims);
        let is_good = |key: &[u8; 32]| UnparsedPublicKey::new(&ED25519, key).verify(&signed, &ticket.signature).is_ok();
        if !keys.iter().any(is_good) {
            return Err(TicketError::Forged);
        }
        let claims = wire::TicketClaims::decode(ticket.claims).map_err(|_| TicketError::Malformed)?;
        let peer = <[u8; 16]>::try_from(&claims.peer_id[..]).map_err(|_| TicketError::Malformed)?;
        if PeerId::from_bytes(peer) != bearer {
            return Err(TicketError::NotYours);
        }
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(claims.expires)).ok_or(TicketError::Malformed)?;
        if claims.scopes.len() > MAX_GRANTS {
            return Err(TicketError::Malformed);
        }
        let scopes = claims.scopes.iter().map(|scope| scope.parse());
        let scopes = scopes.collect::<Result<_, _>>().map_err(|_| TicketError::Malformed)?;
        let ticket = Self { peer: bearer, expires, scopes };
        if ticket.ran_out(now) { Err(TicketError::RanOut) } else { Ok(ticket) }
    }

    /// Whether its time is over.
    pub fn ran_out(&self, now: SystemTime) -> bool {
        now.duration_since(self.expires).is_ok_and(|over| over > SKEW)
    }

    /// Whether a name may be read with it.
    pub fn covers(&self, name: &FileName) -> bool {
        self.scopes.iter().any(|scope| scope.covers(name))
    }
}

/// How long a ticket of one's own is good from now on. It is not checked: only holders have to be convinced.
pub fn lifetime(ticket: &wire::Ticket, now: SystemTime) -> Option<Duration> {
    let claims = wire::TicketClaims::decode(ticket.claims.clone()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(claims.expires))?.duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId::from_bytes([1; 16]);

    fn key() -> TicketKey {
        TicketKey::from_kept(&TicketKey::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_ticket_is_good_for_its_bearer_and_its_time() {
        let (key, now) = (key(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let expires = now + Duration::from_secs(100);
        let ticket = Ticket { peer: PEER, expires, scopes: vec!["models/".parse().unwrap()] };
        let shown = key.sign(&ticket).encode_to_vec();
        let check = |bearer, keys: &[_], now| Ticket::check(&shown, bearer, keys, now);
        assert_eq!(check(PEER, &[[0; 32], key.public()], now), Ok(ticket.clone()));
        assert_eq!(check(PEER, &[[0; 32]], now), Err(TicketError::Forged));
        assert_eq!(check(PEER, &[], now), Err(TicketError::Forged));
        assert_eq!(check(PeerId::from_bytes([2; 16]), &[key.public()], now), Err(TicketError::NotYours));
        assert_eq!(check(PEER, &[key.public()], expires + SKEW), Ok(ticket.clone()), "clocks differ");
        let over = expires + SKEW + Duration::from_secs(1);
        assert_eq!(check(PEER, &[key.public()], over), Err(TicketError::RanOut));
        assert!(ticket.covers(&FileName::new("models/a").unwrap()));
        assert!(!ticket.covers(&FileName::new("other").unwrap()));
    }

    #[test]
    fn nothing_in_it_can_be_changed() {
        let (key, now) = (key(), UNIX_EPOCH);
        let ticket = Ticket { peer: PEER, expires: now + SKEW, scopes: vec![Scope::All] };
        let shown = key.sign(&ticket).encode_to_vec();
        for at in 0..shown.len() {
            for bit in 0..8 {
                let mut changed = shown.clone();
                changed[at] ^= 1 << bit;
                assert_ne!(Ticket::check(&changed, PEER, &[key.public()], now), Ok(ticket.clone()), "byte {at}");
            }
        }
        let claims = key.sign(&ticket).claims;
        let bare = key.0.sign(&claims).as_ref().to_vec();
        let other = wire::Ticket { claims, signature: bare.into() }.encode_to_vec();
        assert_eq!(Ticket::check(&other, PEER, &[key.public()], now), Err(TicketError::Forged), "another context");
    }
}
