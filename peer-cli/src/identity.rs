//! The certificate that this person's commands show to daemons elsewhere.
//!
//! `peer-cli join` puts it into a folder, by default one of the person's own, from where it is used by itself, and renewed
//! when two thirds of its life are over. grpcurl and other tools take the same files.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use drizzle_proto::{
    Address, PeerId,
    client::enrol,
    files,
    net::{
        control_at::ControlAt,
        tls::{
            Certified, Credentials, Files, Mode,
            enrol::{Chain, Key},
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

/// The files of an identity.
fn at_home(folder: &Path) -> Files {
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
        let found = default_folder().filter(|folder| at_home(folder).cert.exists());
        let files = match (given, found) {
            (Some(files), _) => files,
            // Whoever is in between could have it done without TLS, so that is never fallen back to.
            (None, Some(folder)) if !address.is_loopback() => {
                renew_in_time(&folder).await?;
                at_home(&folder)
            }
            _ => return Ok(Transport::plaintext()),
        };
        let credentials = Credentials::read(&files).map_err(other)?;
        Transport::with(&credentials, Mode::Required).map_err(other)
    }
}

/// Has a new key certified, and puts all into a folder; which identity it is.
pub(crate) async fn join(tracker: &Address, token: &Token, folder: &Path) -> Result<PeerId, Failure> {
    if at_home(folder).cert.exists() {
        let there = format!("{} has an identity already", folder.display());
        return Err(Failure::new(Exit::Usage, there).hint("Delete it first, or give another folder with --to."));
    }
    let key = Key::generate().map_err(other)?;
    let peer = drizzle_proto::net::tls::enrol::new_identity().map_err(other)?;
    let pinned = Transport::pinned(token.authority).map_err(other)?;
    let chain = enrol(&pinned, tracker, peer, &key, Some(token)).await;
    let chain = chain.map_err(|error| Failure::new(error.code().into(), format!("cannot join: {error}")))?;
    write(folder, tracker, &key, &chain)?;
    Ok(peer)
}

/// Renews the certificate if it is time; that this fails matters once it has run out.
async fn renew_in_time(folder: &Path) -> Result<(), Failure> {
    let here = at_home(folder);
    let credentials = Credentials::read(&here).map_err(other)?;
    let (Some(certificate), now) = (credentials.certificate(), SystemTime::now()) else { return Ok(()) };
    let Some(Certified::Peer(peer)) = certificate.says.filter(|_| now >= certificate.renew_at()) else { return Ok(()) };
    let renewed = async {
        let text = |path: &Path| {
            let read = files::read(path).map_err(|error| other(format!("cannot read {}: {error}", path.display())));
            read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let tracker = Address::new(text(&folder.join(TRACKER))?.trim()).map_err(other)?;
        let key = Key::from_pem(&text(&here.key)?).map_err(other)?;
        let anonymous = Credentials::anonymous(text(&here.ca)?.as_bytes(), CA).map_err(other)?;
        let asks = Transport::with(&anonymous, Mode::Required).map_err(other)?;
        let chain = enrol(&asks, &tracker, peer, &key, None).await;
        let chain = chain.map_err(|error| {
            Failure::new(error.code().into(), format!("cannot renew the certificate in {}: {error}", folder.display()))
        })?;
        write(folder, &tracker, &key, &chain)
    };
    match renewed.await {
        Err(failure) if certificate.ran_out(now) => Err(failure),
        _ => Ok(()),
    }
}

/// The certificate last: what is there then is whole.
fn write(folder: &Path, tracker: &Address, key: &Key, chain: &Chain) -> Result<(), Failure> {
    let failed = |path: &Path, error: io::Error| other(format!("cannot write {}: {error}", path.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| failed(folder, error))?;
    let (shown, root) = chain.to_pem().map_err(other)?;
    for (name, content) in [(CA, root), (TRACKER, format!("{tracker}\n")), (KEY, key.to_pem()), (CERT, shown)] {
        let path = folder.join(name);
        files::write(&path, content.as_bytes(), 0o600).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}
