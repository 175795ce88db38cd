//! The authority of a tracker with `--tls auto`: made at the first start, kept in the data folder; and the tracker's own
//! certificate, which it gives itself anew while it runs.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use drizzle_proto::{
    files,
    net::tls::{
        Certified, Credentials, CredentialsError, Tls,
        authority::{Authority, AuthorityError},
        enrol,
    },
};
use tokio_util::sync::CancellationToken;

/// In the data folder; for the tracker's user alone.
const FOLDER: &str = "tls";
/// The authority's certificate, for grpcurl and other tools.
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or made.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of the two files is missing.
    #[error(
        "{} is there, but not the authority's other file beside it: restore both from a copy; or delete both, and have every peer join again",
        .0.display()
    )]
    Half(PathBuf),
    /// They are damaged.
    #[error("the authority in {}: {source}", path.display())]
    Authority {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        source: AuthorityError,
    },
    /// What it certified is of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// The tracker's authority.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) authority: Authority,
    /// Host names and addresses at which tools that check such reach the tracker.
    names: Vec<String>,
    /// What it certifies is valid for so long.
    pub(crate) life: Duration,
}

/// Whether a data folder has an authority.
pub(crate) fn exists(data_dir: &Path) -> bool {
    certificate(data_dir).exists()
}

/// Where its certificate is.
pub(crate) fn certificate(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join(CERTIFICATE)
}

impl Ours {
    /// Reads it, or makes it at the first start. Blocks on the disk.
    pub(crate) fn open(data_dir: &Path, names: Vec<String>, life: Duration) -> Result<Self, OpenError> {
        let folder = data_dir.join(FOLDER);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(OpenError::File { path: folder, source });
            }
            _ => {}
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::File { path, source }
        };
        let broken = |source| OpenError::Authority { path: folder.clone(), source };
        let [certificate, key] = [CERTIFICATE, KEY].map(|name| folder.join(name));
        match (certificate.exists(), key.exists()) {
            (true, false) => return Err(OpenError::Half(certificate)),
            // A first start that was cut short: nobody has seen the certificate.
            (false, _) => {
                let (new, secret) = Authority::generate(SystemTime::now()).map_err(broken)?;
                files::write(&key, secret.as_bytes(), 0o600).map_err(failed(&key))?;
                files::write(&certificate, new.as_bytes(), 0o644).map_err(failed(&certificate))?;
            }
            (true, true) => {}
        }
        let texts = [&certificate, &key].map(|path| fs::read_to_string(path).map_err(failed(path)));
        let [certificate, key] = texts;
        let authority = Authority::from_pem(&certificate?, &key?).map_err(broken)?;
        Ok(Self { authority, names, life })
    }

    /// A new certificate for the tracker itself, of a new key.
    pub(crate) fn own(&self) -> Result<Credentials, OpenError> {
        let issued = self.authority.issue(Certified::Tracker, &self.names, SystemTime::now(), self.life);
        let (key, chain) = issued.map_err(|source| OpenError::Authority { path: FOLDER.into(), source })?;
        Ok(enrol::credentials(&key, &chain)?)
    }
}

/// Renews the tracker's own certificate until `stop`.
pub(crate) async fn keep(ours: Arc<Ours>, tls: Arc<Tls>, stop: CancellationToken) {
    // As peers do with theirs.
    let every = ours.life * 2 / 3;
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        match ours
            .own()
            .map_err(|error| error.to_string())
            .and_then(|own| tls.replace(&own).map_err(|error| error.to_string()))
        {
            Ok(()) => tracing::info!("renewed the tracker's own certificate"),
            Err(error) => tracing::error!(%error, "cannot renew the tracker's own certificate"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(dir: &Path) -> Result<Ours, OpenError> {
        Ours::open(dir, vec!["localhost".to_owned(), "127.0.0.1".to_owned()], Duration::from_secs(60))
    }

    #[test]
    fn it_is_made_once_and_its_key_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!exists(dir.path()));
        let first = open(dir.path()).unwrap();
        assert!(exists(dir.path()));
        assert_eq!(open(dir.path()).unwrap().authority.fingerprint(), first.authority.fingerprint());
        let mode = |name: &str| dir.path().join(FOLDER).join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(KEY), mode(CERTIFICATE), mode("")), (0o600, 0o644, 0o700));
        assert_eq!(first.own().unwrap().says(), Some(Certified::Tracker));
    }

    #[test]
    fn half_of_it_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let key = dir.path().join(FOLDER).join(KEY);
        let kept = fs::read(&key).unwrap();
        fs::remove_file(&key).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Half(_))), "every peer would have to join again");
        fs::write(&key, b"damaged").unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Authority { .. })));
        fs::write(&key, kept).unwrap();
        open(dir.path()).unwrap();
    }
}
