//! Whose signatures count: keys, and the one judgement on a file and what is said of it.
//!
//! Without keys everything is trusted, signed or not: who names none has not asked for signatures. With keys a file is
//! trusted exactly if one of them signed a statement about its name, its content and its size. Nothing here makes a key or
//! a signature, and nothing reads a file.

use minisign_verify::{Error, PublicKey};

use crate::{
    FileInfo,
    signature::{KeyId, Signature, SignatureError, Statement},
};

/// Why a file is not trusted. The texts follow on its name, and say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Nobody signed it.
    #[error(
        "it is not signed; have the peer that registered it sign it with a trusted key: peer-cli share FILE --sign KEY"
    )]
    Unsigned,
    /// What is told as its signature is none.
    #[error("its signature is malformed ({0}); have it signed anew: peer-cli share FILE --sign KEY")]
    Malformed(#[from] SignatureError),
    /// The statement is about something else.
    #[error(
        "its signature is of another file, {:?} with id {} and {} bytes: the tracker may be lying; have it signed anew: peer-cli share FILE --sign KEY",
        .0.name().as_str(), .0.id(), .0.size()
    )]
    OtherFile(Statement),
    /// By a key that is not among the trusted ones.
    #[error("it is signed by the key {0}, which this peer does not trust; if you do, name its public key with --trust")]
    UnknownKey(KeyId),
    /// It has the number of a trusted key and is not by it.
    #[error(
        "its signature is wrong: it claims the trusted key {0}, which did not make it; have it signed anew: peer-cli share FILE --sign KEY"
    )]
    Wrong(KeyId),
}

/// What is wrong with a text that should have public keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no public key in minisign's format: a line \"untrusted comment: ...\", then one with the key")]
pub struct KeyError;

/// The keys whose signatures count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<(KeyId, PublicKey)>);

impl TrustedKeys {
    /// Adds the keys of a text in the format of minisign's public keys; one or several, one behind the other.
    pub fn add(&mut self, text: &str) -> Result<(), KeyError> {
        let mut keys = Vec::new();
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        while let Some(comment) = lines.next() {
            let line = lines.next().filter(|_| comment.starts_with("untrusted comment:")).ok_or(KeyError)?.trim();
            let key = PublicKey::from_base64(line).map_err(|_| KeyError)?;
            keys.push((KeyId::of_line(line).ok_or(KeyError)?, key));
        }
        if keys.is_empty() {
            return Err(KeyError);
        }
        self.0.extend(keys);
        Ok(())
    }

    /// Whether there are none: then everything is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|(id, _)| *id)
    }

    /// Passes if a file is trusted.
    pub fn check(&self, file: &FileInfo, signature: Option<&Signature>) -> Result<(), Distrust> {
        if self.is_empty() {
            return Ok(());
        }
        let signature = signature.ok_or(Distrust::Unsigned)?;
        if !signature.statement().is_about(file) {
            return Err(Distrust::OtherFile(signature.statement().clone()));
        }
        let (statement, minisign) = (signature.statement().to_string(), signature.minisign());
        let minisign = minisign_verify::Signature::decode(minisign).map_err(|_| SignatureError::Minisign)?;
        let mut why = Distrust::UnknownKey(signature.key());
        for (_, key) in &self.0 {
            // Not by the older algorithm, which signs the text itself: minisign takes it only when told to.
            match key.verify(statement.as_bytes(), &minisign, false) {
                Ok(()) => return Ok(()),
                Err(Error::UnexpectedKeyId) => {}
                Err(_) => why = Distrust::Wrong(signature.key()),
            }
        }
        Err(why)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        FileName, Layout,
        signature::tests::{MINISIGN, OTHER_PUBLIC, PUBLIC, STATEMENT, file, signature},
    };

    fn keys(texts: &[&str]) -> TrustedKeys {
        let mut keys = TrustedKeys::default();
        texts.iter().for_each(|text| keys.add(text).unwrap());
        keys
    }

    #[test]
    fn a_trusted_key_is_enough_and_no_key_asks_for_nothing() {
        let signature = signature();
        for trusted in [keys(&[PUBLIC]), keys(&[OTHER_PUBLIC, PUBLIC]), keys(&[&format!("{OTHER_PUBLIC}\n{PUBLIC}")])] {
            assert_eq!(trusted.check(&file(), Some(&signature)), Ok(()));
            assert_eq!(trusted.check(&file(), None), Err(Distrust::Unsigned));
        }
        assert_eq!(TrustedKeys::default().check(&file(), None), Ok(()));
        assert_eq!(keys(&[OTHER_PUBLIC]).check(&file(), Some(&signature)), Err(Distrust::UnknownKey(signature.key())));
        assert!(PUBLIC.contains(&signature.key().to_string()), "as minisign shows it: {}", signature.key());
        assert_eq!(keys(&[PUBLIC]).ids().collect::<Vec<_>>(), [signature.key()]);
    }

    #[test]
    fn a_signature_counts_for_its_name_content_and_size_alone() {
        let (trusted, signature) = (keys(&[PUBLIC]), signature());
        let other_name = FileInfo { name: FileName::new("b").unwrap(), ..file() };
        let other_size = FileInfo { layout: Layout::new(40_001, 1 << 14).unwrap(), ..file() };
        let id = crate::FileId::from_digest(crate::Digest::of(b"b"));
        for other in [other_name, other_size, FileInfo { id, ..file() }] {
            let why = trusted.check(&other, Some(&signature));
            assert_eq!(why, Err(Distrust::OtherFile(signature.statement().clone())));
            // The statement made to fit is not what was signed.
            let fitting = Statement::new(&other, signature.statement().seconds()).unwrap().to_string();
            let fitting = Signature::new(&fitting, MINISIGN).unwrap();
            assert_eq!(trusted.check(&other, Some(&fitting)), Err(Distrust::Wrong(signature.key())));
        }
        let later = STATEMENT.replace("time: 20", "time: 21");
        let later = Signature::new(&later, MINISIGN).unwrap();
        assert_eq!(trusted.check(&file(), Some(&later)), Err(Distrust::Wrong(signature.key())), "the time counts");
    }

    proptest! {
        /// But for its first line, which is not signed.
        #[test]
        fn no_altered_signature_is_trusted(at in any::<prop::sample::Index>(), put in "[A-Za-z0-9+/=\t ]") {
            let first = MINISIGN.find('\n').unwrap();
            let at = first + at.index(MINISIGN.len() - first);
            let mut altered = MINISIGN.to_owned();
            altered.replace_range(at..=at, &put);
            if let (true, Ok(altered)) = (altered != MINISIGN, Signature::new(STATEMENT, &altered)) {
                prop_assert!(keys(&[PUBLIC]).check(&file(), Some(&altered)).is_err());
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused_as_a_whole() {
        let mut keys = TrustedKeys::default();
        let secret = "untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAA\n";
        for text in ["", "\n", PUBLIC.lines().nth(1).unwrap(), MINISIGN, secret, &format!("{PUBLIC}more\n")] {
            assert_eq!(keys.add(text), Err(KeyError), "{text:?}");
            assert!(keys.is_empty());
        }
    }
}
