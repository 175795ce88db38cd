//! The options of both daemons about TLS, and what they come to.
//!
//! What holds (each line has a test):
//! - without TLS a daemon listens on loopback alone, unless `--insecure` says otherwise;
//! - what is missing, or contradicts itself, is an error before a port is bound.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};

use super::{Files, Mode};

/// How connections are secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// Not at all: whoever reaches a port may use it
    Off,
    /// With certificates from the tracker's own authority
    Auto,
    /// With the certificates of --tls-cert, --tls-key and --tls-ca
    Files,
    /// With TLS where the other end speaks it, else without: while a fleet moves from off to auto or files
    Prefer,
}

/// What is typed.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsOptions {
    /// How connections are secured [default: files if --tls-cert is given; auto if this daemon has joined, or joins, an
    /// authority; else off, which needs --insecure unless it listens on this machine alone]
    #[arg(long, value_name = "MODE", env = "DRIZZLE_TLS")]
    pub tls: Option<TlsMode>,

    /// Own certificate in PEM, with those that lead to the authority's; it names this peer or tracker in a URI:
    /// spiffe://DOMAIN/drizzle/peer/ID or spiffe://DOMAIN/drizzle/tracker. Files that change are read again
    #[arg(long, value_name = "FILE", env = "DRIZZLE_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", env = "DRIZZLE_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// Certificates in PEM of the authorities that are trusted
    #[arg(long, value_name = "FILE", env = "DRIZZLE_TLS_CA")]
    pub tls_ca: Option<PathBuf>,

    /// Serve without TLS on addresses that other machines reach: whoever reaches them may read and register everything
    #[arg(long, env = "DRIZZLE_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    pub insecure: bool,
}

/// What they come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Without TLS; `exposed` if other machines reach it.
    Off {
        /// To be warned of.
        exposed: bool,
    },
    /// With the tracker's authority.
    Auto(Mode),
    /// With files.
    Files(Files, Mode),
}

/// Options that do not go together, or do not suffice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Others reach it, and nothing secures it.
    #[error(
        "{0} is reached from other machines, and nothing would secure it: {1}; or give --tls-cert, --tls-key and --tls-ca, listen on 127.0.0.1, or say --insecure to let whoever reaches it read and register everything"
    )]
    Exposed(SocketAddr, &'static str),
    /// Some of the files.
    #[error("--tls-cert, --tls-key and --tls-ca are needed together")]
    Incomplete,
    /// Files that would not be used.
    #[error("--tls-cert, --tls-key and --tls-ca are not used with --tls {0}")]
    Unused(&'static str),
}

impl TlsOptions {
    /// What is done for a daemon that listens there. `joined`: it has, or is about to have, an authority's certificate.
    /// `advice` says how that is had.
    pub fn choose(&self, listens: &[SocketAddr], joined: bool, advice: &'static str) -> Result<Choice, OptionsError> {
        let files = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (None, None, None) => None,
            (Some(cert), Some(key), Some(ca)) => Some(Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() }),
            _ => return Err(OptionsError::Incomplete),
        };
        let exposed = listens.iter().find(|address| !address.ip().is_loopback());
        Ok(match (self.tls, files) {
            (Some(TlsMode::Off), Some(_)) => return Err(OptionsError::Unused("off")),
            (Some(TlsMode::Auto), Some(_)) => return Err(OptionsError::Unused("auto")),
            (Some(TlsMode::Files), None) => return Err(OptionsError::Incomplete),
            (None | Some(TlsMode::Files), Some(files)) => Choice::Files(files, Mode::Required),
            (Some(TlsMode::Prefer), Some(files)) => Choice::Files(files, Mode::Preferred),
            (Some(TlsMode::Prefer), None) => Choice::Auto(Mode::Preferred),
            (Some(TlsMode::Auto), None) => Choice::Auto(Mode::Required),
            (None, None) if joined => Choice::Auto(Mode::Required),
            (None | Some(TlsMode::Off), None) => match exposed {
                Some(address) if !self.insecure => return Err(OptionsError::Exposed(*address, advice)),
                exposed => Choice::Off { exposed: exposed.is_some() },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1:7400";
    const ALL: &str = "[::]:7400";

    fn choose(options: &TlsOptions, listens: &[&str], joined: bool) -> Result<Choice, OptionsError> {
        let listens: Vec<SocketAddr> = listens.iter().map(|text| text.parse().unwrap()).collect();
        options.choose(&listens, joined, "join")
    }

    #[test]
    fn without_tls_a_daemon_is_for_its_own_machine() {
        let none = TlsOptions::default();
        assert_eq!(choose(&none, &[LOCAL, "[::1]:1"], false), Ok(Choice::Off { exposed: false }));
        assert!(matches!(choose(&none, &[LOCAL, ALL], false), Err(OptionsError::Exposed(..))));
        let off = TlsOptions { tls: Some(TlsMode::Off), ..TlsOptions::default() };
        assert!(matches!(choose(&off, &[ALL], true), Err(OptionsError::Exposed(..))), "also where it is asked for");
        let insecure = TlsOptions { insecure: true, ..TlsOptions::default() };
        assert_eq!(choose(&insecure, &[ALL], false), Ok(Choice::Off { exposed: true }));
        assert_eq!(choose(&insecure, &[LOCAL], false), Ok(Choice::Off { exposed: false }));
        assert_eq!(choose(&none, &[ALL], true), Ok(Choice::Auto(Mode::Required)));
    }

    #[test]
    fn files_are_whole_and_used() {
        let path = |name: &str| Some(PathBuf::from(name));
        let files = TlsOptions { tls_cert: path("c"), tls_key: path("k"), tls_ca: path("a"), ..TlsOptions::default() };
        let with = |tls| TlsOptions { tls, ..files.clone() };
        let all = Files { cert: "c".into(), key: "k".into(), ca: "a".into() };
        assert_eq!(choose(&files, &[ALL], false), Ok(Choice::Files(all.clone(), Mode::Required)));
        assert_eq!(choose(&with(Some(TlsMode::Prefer)), &[ALL], false), Ok(Choice::Files(all, Mode::Preferred)));
        for unused in [TlsMode::Off, TlsMode::Auto] {
            assert!(matches!(choose(&with(Some(unused)), &[LOCAL], false), Err(OptionsError::Unused(_))));
        }
        let half = TlsOptions { tls_key: None, ..files.clone() };
        assert_eq!(choose(&half, &[LOCAL], false), Err(OptionsError::Incomplete));
        let none = TlsOptions { tls: Some(TlsMode::Files), ..TlsOptions::default() };
        assert_eq!(choose(&none, &[LOCAL], false), Err(OptionsError::Incomplete));
    }
}
