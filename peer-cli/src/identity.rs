//! The certificate that this person's commands show to daemons elsewhere.
//!
//! `peer-cli join` puts it into a folder, by default one of the person's own, from where it is used by itself, and renewed
//! when two thirds of its life are over. grpcurl and other tools take the same files.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use drizzle_proto::{
    Address, PeerId,
    client::enrol,
    net::{
        control_at::ControlAt,
        tls::{
            Certificate, Certified, Credentials, Files, Mode, Tls,
            enrol::{Chain, Key, RENEWED_AFTER},
        },
        transport::Transport,
    },
    token::Token,
};

use crate::exit::{Exit, Failure};

/// Certificate and key of a person's commands, as they are typed.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TlsFiles {
    /// For a daemon on another machine: certificate in PEM of an identity with the role admin [default: what `peer-cli
    /// join` wrote]
    #[arg(long, global = true, display_order = 102, env = "DRIZZLE_TLS_CERT", value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, global = true, display_order = 103, env = "DRIZZLE_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Certificates in PEM of the authorities that are trusted
    #[arg(long, global = true, display_order = 104, env = "DRIZZLE_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
}

const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
const CA: &str = "ca.pem";
/// The tracker that certified.
const TRACKER: &str = "tracker";

/// Where an identity is unless it is said.
pub(crate) fn default_folder() -> Option<PathBuf> {
    let of = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = of("XDG_CONFIG_HOME").or_else(|| Some(of("HOME")?.join(".config")))?;
    Some(config.join("drizzle"))
}

fn files(folder: &Path) -> Files {
    Files { cert: folder.join(CERT), key: folder.join(KEY), ca: folder.join(CA) }
}

fn other(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Other, error.to_string())
}

impl TlsFiles {
    /// How a daemon there is reached: without TLS on this machine, with it elsewhere where there is a certificate to show.
    pub(crate) async fn transport(&self, at: &ControlAt<Address>) -> Result<Transport, Failure> {
        let ControlAt::Tcp(address) = at else { return Ok(Transport::plaintext()) };
        let given = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(cert), Some(key), Some(ca)) => Some(Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() }),
            _ => None,
        };
        let found = default_folder().filter(|folder| files(folder).cert.exists());
        let (files, mode) = match (given, found) {
            (Some(files), _) => (files, Mode::Required),
            // Whether a daemon elsewhere has TLS is not known.
            (None, Some(folder)) if !address.is_loopback() => {
                renew_in_time(&folder).await?;
                (files(&folder), Mode::Preferred)
            }
            _ => return Ok(Transport::plaintext()),
        };
        let credentials = Credentials::read(&files).map_err(other)?;
        Ok(Transport::secured(Arc::new(Tls::new(&credentials, mode).map_err(other)?)))
    }
}

/// Has a new key certified, and puts all into a folder; which identity it is.
pub(crate) async fn join(tracker: &Address, token: &Token, folder: &Path) -> Result<PeerId, Failure> {
    if files(folder).cert.exists() {
        let there = format!("{} has an identity already", folder.display());
        return Err(Failure::new(Exit::Usage, there).hint("Delete it first, or give another folder with --to."));
    }
    let key = Key::generate().map_err(other)?;
    let peer = drizzle_proto::net::tls::enrol::new_identity().map_err(other)?;
    let pinned = Transport::secured(Arc::new(Tls::pinned(token.authority).map_err(other)?));
    let chain = enrol(&pinned, tracker, peer, &key, Some(token)).await;
    let chain = chain.map_err(|error| Failure::new(error.code().into(), format!("cannot join: {error}")))?;
    write(folder, tracker, &key, &chain)?;
    Ok(peer)
}

/// Renews the certificate if it is time; that this fails matters once it has run out.
async fn renew_in_time(folder: &Path) -> Result<(), Failure> {
    let here = files(folder);
    let credentials = Credentials::read(&here).map_err(other)?;
    let Some(Certificate { not_before, not_after, says }) = credentials.certificate() else { return Ok(()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let (part, whole) = RENEWED_AFTER;
    let (Some(Certified::Peer(peer)), true) = (says, now >= not_before + (not_after - not_before) * part / whole)
    else {
        return Ok(());
    };
    let renewed = async {
        let tracker = fs::read_to_string(folder.join(TRACKER)).map_err(other)?;
        let tracker = Address::new(tracker.trim()).map_err(other)?;
        let key = Key::from_pem(&fs::read_to_string(&here.key).map_err(other)?).map_err(other)?;
        let anonymous = Credentials::anonymous(&fs::read(&here.ca).map_err(other)?, CA).map_err(other)?;
        let asks = Transport::secured(Arc::new(Tls::new(&anonymous, Mode::Required).map_err(other)?));
        let chain = enrol(&asks, &tracker, peer, &key, None).await;
        let chain = chain.map_err(|error| {
            Failure::new(error.code().into(), format!("cannot renew the certificate in {}: {error}", folder.display()))
        })?;
        write(folder, &tracker, &key, &chain)
    };
    match renewed.await {
        Err(failure) if now >= not_after => Err(failure),
        _ => Ok(()),
    }
}

/// The certificate last: what is there then is whole.
fn write(folder: &Path, tracker: &Address, key: &Key, chain: &Chain) -> Result<(), Failure> {
    let failed = |path: &Path, error: io::Error| other(format!("cannot write {}: {error}", path.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| failed(folder, error))?;
    let (shown, root) = chain.to_pem().map_err(other)?;
    for (name, content) in [(CA, root), (TRACKER, format!("{tracker}\n")), (KEY, key.to_pem()), (CERT, shown)] {
        let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
        let written = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new).and_then(
            |mut file| {
                file.write_all(content.as_bytes())?;
                file.sync_all()?;
                fs::rename(&new, &path)
            },
        );
        written.map_err(|error| failed(&path, error))?;
    }
    Ok(())
}
