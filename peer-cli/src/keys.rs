//! Keys in minisign's format: made, read, used. A secret key never leaves this process.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use console::Term;
use ct_codecs::{Base64, Decoder};
use drizzle_proto::{
    FileInfo, Signature,
    signature::{KeyId, Statement},
    trust::TrustedKeys,
};
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

use crate::exit::{Exit, Failure};

/// A file of keys is small; a wrong path may be anything.
const MOST_BYTES: u64 = 1 << 20;

/// A secret key, ready to sign.
pub(crate) struct SigningKey {
    secret: SecretKey,
    public: PublicKey,
}

/// Where a new key and its public half are.
pub(crate) struct Made {
    pub(crate) secret: PathBuf,
    pub(crate) public: PathBuf,
    /// The line that others may be told.
    pub(crate) line: String,
    pub(crate) id: KeyId,
}

/// Makes a key, with a password unless that is not wanted. Nothing that exists is overwritten.
pub(crate) fn make(secret: &Path, has_password: bool) -> Result<Made, Failure> {
    let mut public = secret.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [secret, &public] {
        if path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
    }
    let pair = match has_password {
        true => KeyPair::generate_encrypted_keypair(Some(new_password()?)),
        false => KeyPair::generate_unencrypted_keypair(),
    };
    let pair = pair.map_err(|error| Failure::new(Exit::Other, format!("cannot make a key: {error}")))?;
    let comment = if has_password { "drizzle encrypted secret key" } else { "drizzle secret key, without a password" };
    let boxed = |error: minisign::PError| Failure::new(Exit::Other, format!("cannot write a key: {error}"));
    let (text, line) = (pair.sk.to_box(Some(comment)).map_err(boxed)?.into_string(), pair.pk.to_base64());
    let public_text = pair.pk.to_box().map_err(boxed)?.into_string();
    write_new(secret, 0o600, &text)?;
    write_new(&public, 0o644, &public_text)?;
    let mut keys = TrustedKeys::default();
    let id = keys.add(&public_text).ok().and_then(|()| keys.ids().next());
    let id = id.ok_or_else(|| Failure::new(Exit::Other, "the new key cannot be read again"))?;
    Ok(Made { secret: secret.to_owned(), public, line, id })
}

/// Writes a file that is not there, and sees to it that it stays.
pub(crate) fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure::new(Exit::Other, format!("cannot write {}: {error}", path.display())),
    })
}

fn exists(path: &Path) -> Failure {
    Failure::new(Exit::DestinationExists, format!("{} exists, and nothing is overwritten", path.display()))
        .hint("Move it away, or give another path.")
}

impl SigningKey {
    /// Reads a secret key, and asks for its password if it has one.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let usage = |text: String| {
            Failure::new(Exit::Usage, format!("{}: {text}", path.display()))
                .hint("--sign takes a secret key as `peer-cli key new` and `minisign -G` make it.")
        };
        let text = read_text(path)?;
        // Only one of them is told apart by its type: a box without a password says so when it is opened.
        let secret = match SecretKeyBox::from(text.clone()).into_unencrypted_secret_key() {
            Ok(secret) => secret,
            Err(error) if error.to_string().contains("encrypted") => {
                let password = password(&format!("Password of {}: ", path.display()))?;
                let secret = SecretKeyBox::from(text).into_secret_key(Some(password));
                secret.map_err(|error| usage(error.to_string()))?
            }
            Err(error) => {
                without_checksum(&text).ok_or_else(|| usage(format!("no secret key in minisign's format ({error})")))?
            }
        };
        let public = PublicKey::from_secret_key(&secret).map_err(|error| usage(error.to_string()))?;
        Ok(Self { secret, public })
    }

    /// Signs what a file is, now.
    pub(crate) fn sign(&self, file: &FileInfo) -> Result<Signature, Failure> {
        let failed = |text: String| Failure::new(Exit::Other, format!("cannot sign {}: {text}", file.name));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let statement = Statement::new(file, now).map_err(|error| failed(error.to_string()))?.to_string();
        let (trusted, untrusted) = (format!("timestamp:{now}"), "signature of a drizzle manifest");
        let signed =
            minisign::sign(Some(&self.public), &self.secret, statement.as_bytes(), Some(&trusted), Some(untrusted));
        let minisign = signed.map_err(|error| failed(error.to_string()))?.into_string();
        Signature::new(&statement, &minisign).map_err(|error| failed(error.to_string()))
    }
}

/// A key as `minisign -G -W` writes it: without a password, and with zeros in place of a checksum. One that is damaged
/// signs nothing, because each signature is checked against its public half.
fn without_checksum(text: &str) -> Option<SecretKey> {
    let bytes = Base64::decode_to_vec(text.lines().nth(1)?, None).ok()?;
    let (_, checksum) = bytes.split_last_chunk::<32>()?;
    let key = SecretKey::from_bytes(&bytes).ok()?;
    (*checksum == [0; 32] && !key.is_encrypted()).then_some(key)
}

/// The public keys in these files.
pub(crate) fn trusted(paths: &[PathBuf]) -> Result<TrustedKeys, Failure> {
    let mut keys = TrustedKeys::default();
    for path in paths {
        let added = keys.add(&read_text(path)?);
        added.map_err(|error| Failure::new(Exit::Usage, format!("--trust {}: {error}", path.display())))?;
    }
    Ok(keys)
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NoSuchFile } else { Exit::Other };
            Err(Failure::new(exit, format!("cannot read {}: {error}", path.display())))
        }
    }
}

fn new_password() -> Result<String, Failure> {
    let first = password("Password for the new key: ")?;
    if first.is_empty() {
        return Err(Failure::new(Exit::Usage, "an empty password protects nothing")
            .hint("--no-password makes a key without one; keep it where nobody else can read it."));
    }
    if Term::stderr().is_term() && password("The same again: ")? != first {
        return Err(Failure::new(Exit::Usage, "these are two different passwords"));
    }
    Ok(first)
}

/// Asks on the terminal, without showing what is typed; without one, takes a line of stdin.
fn password(prompt: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Usage, format!("cannot read a password: {error}"));
    let term = Term::stderr();
    if term.is_term() && io::IsTerminal::is_terminal(&io::stdin()) {
        term.write_str(prompt).map_err(failed)?;
        return term.read_secure_line().map_err(failed);
    }
    let mut line = String::new();
    if io::stdin().read_line(&mut line).map_err(failed)? == 0 {
        return Err(Failure::new(Exit::Usage, "the key needs a password, and there is no terminal to ask for it")
            .hint("Give it as a line on stdin, or use a key without one (`peer-cli key new --no-password`)."));
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
