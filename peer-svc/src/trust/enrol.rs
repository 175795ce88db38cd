//! Having a key certified by the tracker, and keeping the certificate fresh.
//!
//! What the tracker certified lies in the state folder, key and certificates in one file, so that they always fit each
//! other. It is renewed when two thirds of its life are over, by the same key and without the token; so also a machine that
//! was off for longer than the certificate's life comes back by itself.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use drizzle_engine::retry::{self, Backoff};
use drizzle_proto::{
    Address, PeerId,
    client::{ClientError, enrol},
    files,
    net::{
        tls::{
            Certificate, Certified, Credentials, Mode, Tls,
            enrol::{Chain, Key, credentials},
        },
        transport::Transport,
    },
    token::Token,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{FOLDER, Joining, TrustError, blocking};

const IDENTITY: &str = "identity.pem";
const ROOT: &str = "ca.pem";
/// An attempt to renew that failed is made again after so much of what is left, at least this.
const LEAST: Duration = Duration::from_secs(1);
/// A token that is not there yet is looked for this often.
const LOOKS: Duration = Duration::from_millis(500);

/// The key with its certificates.
pub(super) fn identity_file(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER).join(IDENTITY)
}

/// A peer that the tracker certified.
pub(super) struct Enrolled {
    state_dir: PathBuf,
    tracker: Address,
    peer: PeerId,
    key: Key,
    /// To ask for another certificate: trusts what this peer trusts, and shows nothing, since what it could show may have
    /// run out.
    asks: Transport,
}

impl Enrolled {
    /// What an earlier run joined with; or joins.
    pub(super) async fn open(joining: Joining<'_>) -> Result<(Self, Credentials), TrustError> {
        let Joining { state_dir, tracker, peer, token, token_file } = joining;
        if !identity_file(state_dir).exists() {
            let token = match (token, token_file) {
                (Some(token), _) => token.clone(),
                (None, Some(file)) => put_there(file).await?,
                (None, None) => return Err(TrustError::NotJoined),
            };
            join(state_dir, tracker, peer, &token).await?;
        }
        let dir = state_dir.to_owned();
        let (key, root, credentials) = blocking(move || read(&dir)).await?;
        match credentials.says() {
            Some(Certified::Peer(id)) if id == peer => {}
            Some(says) => return Err(TrustError::OtherPeer { says, own: peer }),
            None => return Err(TrustError::NoPeer(peer)),
        }
        let anonymous = Credentials::anonymous(&root, ROOT)?;
        let asks = Transport::with(&anonymous, Mode::Required)?;
        let enrolled = Self { state_dir: state_dir.to_owned(), tracker: tracker.clone(), peer, key, asks };
        Ok((enrolled, credentials))
    }

    /// Renews the certificate in time until `stop`.
    pub(super) async fn keep(self, tls: Arc<Tls>, stop: CancellationToken) {
        let mut failed = false;
        loop {
            let pause = tls.certificate().map_or(LEAST, |certificate| pause(&certificate, SystemTime::now(), failed));
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            match self.renew(&tls).await {
                Ok(()) => {
                    tracing::info!("the certificate was renewed");
                    failed = false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        tracing::warn!(%error, "cannot renew this peer's certificate; trying again");
                    }
                }
            }
        }
    }

    async fn renew(&self, tls: &Tls) -> Result<(), TrustError> {
        let chain = enrol(&self.asks, &self.tracker, self.peer, &self.key, None).await;
        let chain = chain.map_err(|error| TrustError::Refused(error.to_string()))?;
        let new = credentials(&self.key, &chain)?;
        let (dir, pem) = (self.state_dir.clone(), self.key.to_pem());
        blocking(move || write(&dir, &pem, &chain)).await?;
        Ok(tls.replace(&new)?)
    }
}

/// How long until the next attempt.
fn pause(certificate: &Certificate, now: SystemTime, failed: bool) -> Duration {
    let left = certificate.left(now);
    if failed {
        // Often enough before it runs out, and not all peers at once after an outage.
        return (left / 20).clamp(LEAST, Duration::from_secs(600));
    }
    let due = certificate.renew_at().duration_since(now).unwrap_or_default();
    due.max(if left.is_zero() { Duration::ZERO } else { LEAST })
}

/// The token that somebody will put into a file, such as a tracker on a volume that both have.
async fn put_there(file: &Path) -> Result<Token, TrustError> {
    tracing::info!(file = %file.display(), "waiting for a join token in this file");
    loop {
        tokio::time::sleep(LOOKS).await;
        match fs::read_to_string(file) {
            // Of a tool that does not write it in one step.
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                return text.parse().map_err(|error| TrustError::Options(format!("--join-file: {error}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(file)(error)),
        }
    }
}

/// Joins; waits for a tracker that is away.
async fn join(state_dir: &Path, tracker: &Address, peer: PeerId, token: &Token) -> Result<(), TrustError> {
    let unusable = |error: drizzle_proto::net::tls::enrol::KeyError| TrustError::Refused(error.to_string());
    let key = Key::generate().map_err(unusable)?;
    let pinned = Transport::pinned(token.authority)?;
    let (mut backoff, mut rng) = (Backoff::new(retry::TRACKER), StdRng::from_rng(&mut rand::rng()));
    let chain = loop {
        match enrol(&pinned, tracker, peer, &key, Some(token)).await {
            Ok(chain) => break chain,
            Err(error) if waits(&error) => {
                if backoff.is_fresh() {
                    tracing::warn!(%tracker, %error, "cannot join yet; retrying");
                }
                tokio::time::sleep(backoff.failed(&mut rng)).await;
            }
            Err(error) => return Err(TrustError::Refused(error.to_string())),
        }
    };
    let (dir, pem) = (state_dir.to_owned(), key.to_pem());
    blocking(move || write(&dir, &pem, &chain)).await?;
    tracing::info!(%tracker, %peer, "joined: this peer has a certificate now, and needs its token no more");
    Ok(())
}

/// Whether to ask again. A tracker with another authority than the token's is no accident.
fn waits(error: &ClientError) -> bool {
    let text = error.to_string();
    error.is_unreachable() && !text.contains("certificate") && !text.contains("does not speak TLS")
        || error.code() == Code::ResourceExhausted
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::File { path, source }
}

/// The key, the root, and both as credentials.
fn read(state_dir: &Path) -> Result<(Key, Vec<u8>, Credentials), TrustError> {
    let identity = identity_file(state_dir);
    let root = identity.with_file_name(ROOT);
    let own = files::read(&identity).map_err(failed(&identity))?;
    let ca = files::read(&root).map_err(failed(&root))?;
    let damaged = |_| {
        failed(&identity)(io::Error::new(
            io::ErrorKind::InvalidData,
            "there is no key in it; delete it and join with a new token",
        ))
    };
    let key = Key::from_pem(&String::from_utf8_lossy(&own)).map_err(damaged)?;
    let name = identity.display().to_string();
    let credentials = Credentials::from_pem(&own, &own, &ca, [&name, &name, &root.display().to_string()])?;
    Ok((key, ca, credentials))
}

/// Records what was certified: the root first, then what makes it count.
fn write(state_dir: &Path, key: &str, chain: &Chain) -> Result<(), TrustError> {
    let identity = identity_file(state_dir);
    let folder = state_dir.join(FOLDER);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&folder)(error)),
        _ => {}
    }
    let (shown, root) = chain.to_pem().map_err(|error| TrustError::Refused(error.to_string()))?;
    // The key first: it is the first block that says so that is read.
    for (path, content) in [(identity.with_file_name(ROOT), root), (identity, format!("{key}{shown}"))] {
        files::write(&path, content.as_bytes(), 0o600).map_err(failed(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::UNIX_EPOCH};

    use drizzle_proto::net::tls::authority::Authority;

    use super::*;

    #[test]
    fn it_is_renewed_when_two_thirds_of_its_life_are_over() {
        let [from, to] = [1_000_000, 1_000_000 + 86_400];
        let certificate = Certificate { not_before: from, not_after: to, says: None };
        let pause =
            |now: i64, failed| pause(&certificate, UNIX_EPOCH + Duration::from_secs(now.unsigned_abs()), failed);
        assert_eq!(pause(from, false), Duration::from_secs(57_600));
        assert_eq!(pause(from + 60_000, false), LEAST, "overdue");
        assert_eq!(pause(to + 5, false), Duration::ZERO, "it has run out: at once");
        assert_eq!(pause(from + 57_600, true), Duration::from_secs(600));
        assert_eq!(pause(to - 100, true), Duration::from_secs(5));
        assert_eq!(pause(to + 5, true), LEAST);
    }

    #[test]
    fn what_was_certified_is_read_again_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, secret) = Authority::generate(SystemTime::now()).unwrap();
        let authority = Authority::from_pem(&certificate, &secret).unwrap();
        let peer = Certified::Peer(PeerId::from_bytes([1; 16]));
        let (key, chain) = authority.issue(peer, &[], SystemTime::now(), Duration::from_secs(60)).unwrap();
        assert!(!identity_file(dir.path()).exists());
        write(dir.path(), &key.to_pem(), &chain).unwrap();
        let (again, _, credentials) = read(dir.path()).unwrap();
        assert_eq!((again.public(), credentials.says()), (key.public(), Some(peer)));
        let mode = identity_file(dir.path()).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(identity_file(dir.path()), "damaged").unwrap();
        let error = read(dir.path()).err().unwrap().to_string();
        assert!(error.contains("delete it and join"), "{error}");
    }
}
