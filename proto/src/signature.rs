//! Statements about a file, signed in minisign's format.
//!
//! A signature is over a statement: five lines of text that name the file and its content and say when it was signed.
//!
//! ```text
//! drizzle-manifest-v1
//! name: models/weights.bin
//! file-id: 64 hex digits
//! size: 500000000
//! time: 2026-11-26T21:00:00Z
//! ```
//!
//! What holds (each line has a property test): a statement has exactly one text, and a text that is not exactly that of
//! a statement is refused; so two statements never share a text, whatever the names are. A [`Signature`] is bounded, and
//! well-formed as far as can be told without a key. Whether it is right, and by whom, is [`crate::trust`]'s matter.

use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use ct_codecs::{Base64, Decoder};

use crate::{FileId, FileInfo, FileName, name::MAX_NAME};

/// First line of a statement. Another form of statement gets another one.
const TAG: &str = "drizzle-manifest-v1";
/// Most bytes of a statement.
pub const MAX_STATEMENT: usize = MAX_NAME + 256;
/// Most bytes of a signature in minisign's format.
pub const MAX_MINISIGN: usize = 1024;
/// The first second of the year 10000, whose text would be longer.
const END_OF_TIME: u64 = 253_402_300_800;

/// What is said of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    name: FileName,
    id: FileId,
    size: u64,
    time: u64,
}

/// What is wrong with a signature, as far as can be told without a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Over [`MAX_STATEMENT`] or [`MAX_MINISIGN`].
    #[error("the {0} is too long")]
    TooLong(&'static str),
    /// Not the text of a statement.
    #[error("its statement is not written as statements are")]
    Statement,
    /// Not four lines as minisign writes them.
    #[error("it is no signature in minisign's format")]
    Minisign,
    /// A time that no statement has.
    #[error("the time is not one of the years 1970 to 9999")]
    Time,
}

impl Statement {
    /// About this file, made so many seconds after 1970 began.
    pub fn new(file: &FileInfo, time: u64) -> Result<Self, SignatureError> {
        if time >= END_OF_TIME {
            return Err(SignatureError::Time);
        }
        Ok(Self { name: file.name.clone(), id: file.id, size: file.layout.size(), time })
    }

    /// Reads the text of a statement: that and no other text is signed for it.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        if text.len() > MAX_STATEMENT {
            return Err(SignatureError::TooLong("statement"));
        }
        let lines: Vec<&str> = text.split('\n').collect();
        let [TAG, name, id, size, time, ""] = lines[..] else { return Err(SignatureError::Statement) };
        let read = || {
            let name = FileName::new(name.strip_prefix("name: ")?).ok()?;
            let id = id.strip_prefix("file-id: ")?.parse().ok()?;
            let size = size.strip_prefix("size: ")?.parse().ok()?;
            let time = humantime::parse_rfc3339(time.strip_prefix("time: ")?).ok()?;
            let time = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
            Some(Self { name, id, size, time }).filter(|_| time < END_OF_TIME)
        };
        // "size: 007" means the same as "size: 7", and is not what was signed.
        read().filter(|statement| statement.to_string() == text).ok_or(SignatureError::Statement)
    }

    /// Whether it is about this name, content and size.
    pub fn is_about(&self, file: &FileInfo) -> bool {
        self.name == file.name && self.is_of(file.id) && self.size == file.layout.size()
    }

    /// Whether it is about this content.
    pub fn is_of(&self, id: FileId) -> bool {
        self.id == id
    }

    /// What the file is called.
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// Which content it has.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// How many bytes that is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When it was made, as RFC 3339 writes it.
    pub fn time(&self) -> impl fmt::Display + use<> {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.time))
    }

    /// The same in seconds since 1970.
    pub fn seconds(&self) -> u64 {
        self.time
    }
}

/// The text that is signed.
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, id, size, .. } = self;
        write!(f, "{TAG}\nname: {name}\nfile-id: {id}\nsize: {size}\ntime: {}\n", self.time())
    }
}

impl FromStr for Statement {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        Self::parse(text)
    }
}

/// Which key: the number that minisign shows of it. Only a hint, because anybody may make a key with any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u64);

impl KeyId {
    /// Of a key or a signature, as the second line of its text has it.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let bytes = Base64::decode_to_vec(line, None).ok()?;
        let id = bytes.get(2..10)?.try_into().ok()?;
        Some(Self(u64::from_le_bytes(id)))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// A statement and its signature. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    statement: Arc<Statement>,
    minisign: Arc<str>,
    key: KeyId,
}

impl Signature {
    /// The text of a statement, and the signature as minisign writes it.
    pub fn new(statement: &str, minisign: &str) -> Result<Self, SignatureError> {
        let statement = Statement::parse(statement)?;
        if minisign.len() > MAX_MINISIGN {
            return Err(SignatureError::TooLong("signature"));
        }
        // It is shown and kept: four lines, and nothing in them that means something to a terminal.
        let is_plain = minisign.ends_with('\n') && minisign.lines().count() == 4;
        let is_plain = is_plain && minisign.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'));
        let key = minisign.lines().nth(1).and_then(KeyId::of_line);
        match (key, minisign_verify::Signature::decode(minisign)) {
            (Some(key), Ok(_)) if is_plain => {
                Ok(Self { statement: Arc::new(statement), minisign: minisign.into(), key })
            }
            _ => Err(SignatureError::Minisign),
        }
    }

    /// What is said.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The signature as minisign writes it.
    pub fn minisign(&self) -> &str {
        &self.minisign
    }

    /// The key that it claims to be by.
    pub fn key(&self) -> KeyId {
        self.key
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Digest, Layout};

    /// A key of `minisign -G -W`, what it signed, and by another key.
    pub(crate) const PUBLIC: &str = include_str!("signature/test.pub");
    pub(crate) const OTHER_PUBLIC: &str = include_str!("signature/other.pub");
    pub(crate) const STATEMENT: &str = include_str!("signature/statement");
    pub(crate) const MINISIGN: &str = include_str!("signature/statement.minisig");

    pub(crate) fn signature() -> Signature {
        Signature::new(STATEMENT, MINISIGN).unwrap()
    }

    /// The file that [`STATEMENT`] is about.
    pub(crate) fn file() -> FileInfo {
        let layout = Layout::new(40_000, 1 << 14).unwrap();
        FileInfo { name: FileName::new("models/a b: c").unwrap(), id: FileId::from_digest(Digest::of(b"a")), layout }
    }

    /// Names with whatever the rules of names leave.
    fn names() -> impl Strategy<Value = FileName> {
        let names = prop_oneof!["[a-z:]{1,9}(\nname: [a-z]{1,3})?", "\\PC{1,40}", "[ \u{2028}\u{85}é:/]{1,12}"];
        names.prop_filter_map("no name", |name| FileName::new(&name).ok())
    }

    fn statements() -> impl Strategy<Value = Statement> {
        (names(), any::<[u8; 32]>(), any::<u64>(), 0..END_OF_TIME).prop_map(|(name, id, size, time)| {
            let id = FileId::from_digest(Digest::from_bytes(id));
            Statement { name, id, size, time }
        })
    }

    proptest! {
        #[test]
        fn a_statement_is_read_as_it_was_written_and_two_have_two_texts(one in statements(), two in statements()) {
            prop_assert_eq!(Statement::parse(&one.to_string()), Ok(one.clone()));
            prop_assert_eq!(one == two, one.to_string() == two.to_string());
            prop_assert!(one.to_string().len() <= MAX_STATEMENT);
        }

        #[test]
        fn what_is_not_exactly_a_statement_is_refused(
            statement in statements(),
            at in any::<prop::sample::Index>(),
            cut in 0..3_usize,
            put in prop_oneof!["", "[0-9 \n\r\tZz:.+-]{1,2}", "\\PC"],
        ) {
            let mut text: Vec<char> = statement.to_string().chars().collect();
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, put.chars());
            let text: String = text.into_iter().collect();
            if let Ok(other) = Statement::parse(&text) {
                prop_assert_eq!(other.to_string(), text, "it is the one text of another statement");
            }
        }

        #[test]
        fn no_text_makes_a_signature_panic(minisign in "\\PC{0,20}\n\\PC{0,120}\n\\PC{0,20}\n\\PC{0,100}\n?") {
            let _ = Signature::new(STATEMENT, &minisign);
        }
    }

    #[test]
    fn spellings_that_mean_the_same_are_not_the_same() {
        let good = Statement::new(&file(), 1_700_000_000).unwrap().to_string();
        assert_eq!(Statement::parse(&good).unwrap().to_string(), good);
        for (from, to) in [
            ("size: 40000", "size: 040000"),
            ("size: 40000", "size: +40000"),
            ("size: 40000\n", "size: 40000 \n"),
            ("Z\n", ".000Z\n"),
            ("Z\n", "+00:00\n"),
            ("T22", " 22"),
            ("Z\n", "Z"),
            ("Z\n", "Z\n\n"),
            ("\n", "\r\n"),
            ("-v1", "-v2"),
            ("file-id: ", "file-id:"),
        ] {
            assert!(good.contains(from), "{from:?} in {good}");
            let other = good.replace(from, to);
            assert_eq!(Statement::parse(&other), Err(SignatureError::Statement), "{other}");
        }
        assert_eq!(Statement::new(&file(), END_OF_TIME), Err(SignatureError::Time));
    }

    #[test]
    fn a_signature_is_four_plain_lines() {
        let signature = signature();
        assert_eq!((signature.statement().to_string(), signature.minisign()), (STATEMENT.to_owned(), MINISIGN));
        assert!(signature.statement().is_about(&file()));
        for (minisign, why) in [
            (String::new(), SignatureError::Minisign),
            (MINISIGN.trim_end().to_owned(), SignatureError::Minisign),
            (format!("{MINISIGN}more\n"), SignatureError::Minisign),
            (MINISIGN.replacen("untrusted", "\u{1b}[2Juntrusted", 1), SignatureError::Minisign),
            (MINISIGN.replace('\n', "\r\n"), SignatureError::Minisign),
            (MINISIGN.replace("trusted comment: ", &"x".repeat(MAX_MINISIGN)), SignatureError::TooLong("signature")),
        ] {
            assert_eq!(Signature::new(STATEMENT, &minisign), Err(why), "{minisign:?}");
        }
        let long = STATEMENT.replace("models", &"x".repeat(MAX_STATEMENT));
        assert_eq!(Signature::new(&long, MINISIGN), Err(SignatureError::TooLong("statement")));
    }
}
