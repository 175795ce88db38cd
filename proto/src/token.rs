//! Join tokens: the secret that a new identity is had with, and the authority that it is to be had from.
//!
//! What holds (each line has a test):
//! - a token that was cut short or mistyped is told from one that is not known;
//! - what is kept of it does not let anybody make it; a guess is compared in constant time.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use sha2::{Digest, Sha256};

/// What every token begins with, so that it is known when it is found where it should not be.
const MARK: &str = "drizzle-join-";
/// Of the hash of the rest, against slips.
const CHECK: usize = 4;

/// A join token. Its text is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Which token it is: not secret.
    pub id: TokenId,
    secret: [u8; 32],
    /// SHA-256 of the authority's certificate in DER.
    pub authority: [u8; 32],
}

/// Names a token without giving it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 8]);

/// The text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token, or not a whole one; it begins with {MARK} and is printed by `tracker-svc token create`")]
pub struct TokenError;

/// Random bytes cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandom;

/// What is kept of a token's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(pub [u8; 32]);

impl Token {
    /// A new one for this authority.
    pub fn generate(authority: [u8; 32]) -> Result<Self, NoRandom> {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        rand::fill(&mut id).and_then(|()| rand::fill(&mut secret)).map_err(|_| NoRandom)?;
        Ok(Self { id: TokenId(id), secret, authority })
    }

    /// What is kept of it: a hash, which for so many random bytes needs to be no slow one.
    pub fn kept(&self) -> Kept {
        Kept(Sha256::digest(self.secret).into())
    }

    fn body(&self) -> Vec<u8> {
        [&self.id.0[..], &self.secret, &self.authority].concat()
    }
}

impl Kept {
    /// Whether this is of that token.
    pub fn is_of(&self, token: &Token) -> bool {
        verify_slices_are_equal(&self.0, &token.kept().0).is_ok()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = text.trim().strip_prefix(MARK).and_then(|rest| hex::decode(rest).ok()).ok_or(TokenError)?;
        let (body, check) = bytes.split_at_checked(72).ok_or(TokenError)?;
        if check != &Sha256::digest(body)[..CHECK] {
            return Err(TokenError);
        }
        let part = |range: std::ops::Range<usize>| body.get(range).ok_or(TokenError);
        Ok(Self {
            id: TokenId(part(0..8)?.try_into().map_err(|_| TokenError)?),
            secret: part(8..40)?.try_into().map_err(|_| TokenError)?,
            authority: part(40..72)?.try_into().map_err(|_| TokenError)?,
        })
    }
}

/// The text of the token: whoever reads it may join.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{MARK}{}{}", hex::encode(&body), hex::encode(&Sha256::digest(&body)[..CHECK]))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl FromStr for TokenId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut id = [0; 8];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written_and_no_other_way() {
        let token = Token::generate([3; 32]).unwrap();
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()), "from a file");
        for length in 0..text.len() {
            assert_eq!(text[..length].parse::<Token>(), Err(TokenError));
        }
        for at in MARK.len()..text.len() {
            let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
            let mut slip = text.clone();
            slip.replace_range(at..=at, other);
            assert_eq!(slip.parse::<Token>(), Err(TokenError), "at {at}");
        }
        assert!(!format!("{token:?}").contains(&hex::encode(token.secret)), "logs do not have it");
    }

    #[test]
    fn what_is_kept_is_of_one_token() {
        let [one, other] = [(); 2].map(|()| Token::generate([3; 32]).unwrap());
        assert!(one.kept().is_of(&one) && !one.kept().is_of(&other));
        assert_ne!(one.kept().0, one.secret);
    }
}
