//! The command line and the environment, checked before anything is opened.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};
use drizzle_proto::{
    Address, FileName, PeerId, Scope,
    net::{
        shell::LogFormat,
        tls::options::{Choice, TlsOptions},
    },
    rights::Role,
    token::TokenId,
};

use crate::{
    access::authority,
    kubernetes::{self, Cluster, SecretName},
};

/// The tracker of Drizzle: knows which peers are alive, which files they share, and which peer holds which chunk.
///
/// Prints one line to stdout when it serves, `ready tracker=ADDRESS`, and `metrics=ADDRESS` with --metrics; everything else goes to stderr
/// (RUST_LOG sets how much, `info` by default). SIGINT and SIGTERM drain it.
#[derive(Debug, Parser)]
#[command(name = "tracker-svc", version, subcommand_negates_reqs = true, max_term_width = 100)]
pub struct Cli {
    /// Where to serve gRPC; port 0 takes a free one; over IPv6 and IPv4 unless it is one address; 0.0.0.0 is IPv4 alone
    #[arg(long, value_name = "IP:PORT", env = "DRIZZLE_LISTEN", default_value = "[::]:7400")]
    pub listen: SocketAddr,

    /// Folder for the catalogue of names and manifests; made if it is not there
    #[arg(long, value_name = "DIR", env = "DRIZZLE_DATA_DIR", required = true)]
    pub data_dir: Option<PathBuf>,

    /// A peer that does not renew its lease for this long is gone
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_LEASE", default_value = "15s", value_parser = lease)]
    pub lease: Duration,

    /// A name whose owner and holders are all away for this long is free for any content; "never" keeps it for ever.
    /// Time in which the tracker itself was down does not count
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_RELEASE_AFTER", default_value = "30d", value_parser = release_after)]
    pub release_after: Duration,

    /// How long calls in progress may take to finish when the tracker is stopped
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_DRAIN", default_value = "10s", value_parser = humantime::parse_duration)]
    pub drain: Duration,

    /// How log lines are written
    #[arg(long, value_enum, env = "DRIZZLE_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// How connections are secured.
    #[command(flatten)]
    pub tls: TlsOptions,

    /// Another name or address of this tracker for its own certificate with --tls auto, for tools that check such; this
    /// machine's name, localhost and the address of --listen are in it; may be repeated
    #[arg(long, value_name = "NAME", env = "DRIZZLE_TLS_NAME", value_delimiter = ',')]
    pub tls_name: Vec<String>,

    /// What this tracker certifies is valid for so long; peers renew it at two thirds of that
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_CERTIFICATE_LIFE", default_value = "24h", value_parser = certificate_life)]
    pub certificate_life: Duration,

    /// Peers serve each other for so long without a word of this tracker; a revoked peer is served no longer than that
    /// where the tracker is away
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_TICKET_LIFE", default_value = "1h", value_parser = ticket_life)]
    pub ticket_life: Duration,

    /// With --tls auto: keep a token in this file that any machine may join with as a publisher of every name, such as on a
    /// volume that trusted machines have; made at the first start
    #[arg(long, value_name = "FILE", env = "DRIZZLE_JOIN_FILE")]
    pub join_file: Option<PathBuf>,

    /// With --tls auto, in a pod of Kubernetes: keep such a token in this Secret of the pod's namespace, as its value `token`.
    /// The pod's service account has to be allowed to get, create and patch it
    #[arg(long, value_name = "NAME", env = "DRIZZLE_JOIN_SECRET")]
    pub join_secret: Option<SecretName>,

    /// Where the API of that cluster is, as pods are told
    #[arg(long, value_name = "HOST", env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub cluster_host: Option<String>,

    /// Likewise
    #[arg(long, value_name = "PORT", env = "KUBERNETES_SERVICE_PORT", default_value_t = 443, hide = true)]
    pub cluster_port: u16,

    /// Where the pod's service account is mounted
    #[arg(long, value_name = "DIR", default_value = kubernetes::ACCOUNT, hide = true)]
    pub service_account: PathBuf,

    /// Also write what happens to rights, and what is refused, to this file, as lines of JSON
    #[arg(long, value_name = "FILE", env = "DRIZZLE_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,

    /// Answer Prometheus at http://IP:PORT/metrics: numbers about this tracker, without names of files or peers; over plain
    /// HTTP, to whoever reaches that address
    #[arg(long, value_name = "IP:PORT", env = "DRIZZLE_METRICS")]
    pub metrics: Option<SocketAddr>,

    /// Instead of serving: ask or command the tracker that runs with this --data-dir
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running tracker whether it serves: exit code 0 if so, else 1 and one line on stderr
    Healthcheck {
        /// HOST:PORT of the tracker; by default this machine and the port of --listen
        #[arg(long, value_name = "HOST:PORT", value_parser = Address::from_url)]
        address: Option<Address>,
        /// Ask whether it is ready instead: whether its catalogue answers
        #[arg(long)]
        ready: bool,
    },
    /// List the registered names with their owners and numbers of holders
    Files {
        /// Only names that start with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Take a name back for its owner: its holders are told to offer it no more, and the same content cannot be registered
    /// under it again
    Drop {
        /// What the file is called in the swarm
        name: FileName,
        /// Let the same content be registered again, also if it was dropped or withdrawn before
        #[arg(long)]
        free: bool,
    },
    /// Create, list or delete the tokens that new peers join with
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Let an identity do more
    Grant {
        /// Id of the peer, 32 hex digits; or any: every peer that shows a good certificate
        identity: Subject,
        /// reader, publisher (read, share and withdraw) or admin (and command daemons over the network)
        #[arg(long)]
        role: Role,
        /// With which names only: a name, or a prefix that ends in a slash; may be repeated [default: all]
        #[arg(long, value_name = "PREFIX/")]
        prefix: Vec<Scope>,
        /// Take back what it was granted before
        #[arg(long)]
        only: bool,
    },
    /// Let an identity do nothing any more: no peer serves it, and it cannot join again
    Revoke {
        /// Id of the peer, 32 hex digits; or any: what was granted to any peer
        identity: Subject,
    },
    /// Forget an identity, so that a machine that lost its key may have the id again, with a token
    Forget {
        /// Id of the peer, 32 hex digits
        identity: PeerId,
    },
    /// List identities and what they may do
    Identities,
    /// In an emergency: nobody serves or downloads a file any more. Nothing is deleted
    Stop {
        /// A name, a prefix that ends in a slash, or * for all names
        scope: Scope,
    },
    /// Undo stop
    Resume {
        /// As it was stopped
        scope: Scope,
    },
    /// List what is stopped
    Stops,
    /// Let another peer own a name, for instance after its owner was installed anew
    Reassign {
        /// What the file is called in the swarm
        name: FileName,
        /// Id of the peer, 32 hex digits: `peer-cli status` on that machine shows it
        peer: PeerId,
    },
}

/// What is done with tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Print a new token: whoever has it may join
    Create {
        /// How long it can be used
        #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = token_life)]
        ttl: Duration,
        /// How many machines may join with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// What those may do: reader, publisher (read, share and withdraw) or admin (and command daemons over the network)
        #[arg(long, default_value = "reader")]
        role: Role,
        /// With which names only: a name, or a prefix that ends in a slash; may be repeated [default: all]
        #[arg(long, value_name = "PREFIX/")]
        prefix: Vec<Scope>,
    },
    /// List tokens that were created
    List,
    /// Delete a token, so that nobody joins with it any more
    Delete {
        /// What `token list` calls it
        id: TokenId,
    },
}

/// Whose rights a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// One identity.
    Peer(PeerId),
    /// Every identity that shows a good certificate.
    Any,
}

impl std::str::FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "any" => Ok(Self::Any),
            id => id.parse().map(Self::Peer).map_err(|_| "expected 32 lower-case hex digits, or any".to_owned()),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Peer(id) => std::fmt::Display::fmt(id, f),
        }
    }
}

/// How a tracker knows its callers.
#[derive(Debug, Clone)]
pub struct Trust {
    /// How connections are secured.
    pub tls: Choice,
    /// Names for the own certificate.
    pub names: Vec<String>,
    /// How long what it certifies is valid.
    pub certificate_life: Duration,
    /// How long tickets are good.
    pub ticket_life: Duration,
    /// Where a token for everybody is kept.
    pub join_file: Option<PathBuf>,
    /// And in which Secret of the cluster that this tracker runs in.
    pub join_secret: Option<(SecretName, Cluster)>,
    /// Where what happens to rights is noted.
    pub audit_log: Option<PathBuf>,
}

impl Trust {
    /// Everybody is trusted.
    pub fn everybody() -> Self {
        let (tls, names, audit_log) = (Choice::Off { exposed: false }, Vec::new(), None);
        let (certificate_life, ticket_life) = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
        Self { tls, names, certificate_life, ticket_life, join_file: None, join_secret: None, audit_log }
    }
}

/// What a tracker needs to know to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to serve; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the catalogue is.
    pub data_dir: PathBuf,
    /// How long a lease lasts.
    pub lease: Duration,
    /// After how long without owner and holder a name is released; [`Duration::MAX`] is never.
    pub release_after: Duration,
    /// How long a shutdown waits for calls in progress.
    pub drain: Duration,
    /// How it knows its callers.
    pub trust: Trust,
    /// Where scrapes are answered.
    pub metrics: Option<SocketAddr>,
}

impl Cli {
    /// The data folder, which everything but a health check needs.
    pub fn data_dir(&self) -> Result<&Path, String> {
        let missing = "--data-dir is missing, and has to stand before the command; see --help";
        self.data_dir.as_deref().ok_or_else(|| missing.to_owned())
    }

    /// What to serve.
    pub fn config(&self) -> Result<Config, String> {
        let data_dir = self.data_dir()?.to_owned();
        let (lease, release_after, drain) = (self.lease, self.release_after, self.drain);
        let advice = "give --tls auto, and have peers join with tokens";
        let tls = self.tls.choose(&[self.listen], authority::exists(&data_dir), advice);
        let mut names = self.tls_name.clone();
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        names.extend(rustix::system::uname().nodename().to_str().ok().map(str::to_owned));
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.sort();
        names.dedup();
        let in_cluster = |name: &SecretName| {
            let no_pod = "--join-secret: this tracker does not run in a pod of Kubernetes; use --join-file";
            let host = self.cluster_host.as_deref().ok_or(no_pod)?;
            Ok::<_, String>((name.clone(), Cluster::new(host, self.cluster_port, self.service_account.clone())))
        };
        let trust = Trust {
            join_secret: self.join_secret.as_ref().map(in_cluster).transpose()?,
            tls: tls.map_err(|error| error.to_string())?,
            names,
            certificate_life: self.certificate_life,
            ticket_life: self.ticket_life,
            join_file: self.join_file.clone(),
            audit_log: self.audit_log.clone(),
        };
        let metrics = self.metrics;
        Ok(Config { listen: self.listen, data_dir, lease, release_after, drain, trust, metrics })
    }

    /// Where a tracker on this machine answers.
    pub fn local_address(&self) -> Address {
        Address::from(self.listen).asked_locally()
    }
}

/// Shorter leases would be lost to a busy machine's hiccups, longer ones keep the dead for too long.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    if allowed.contains(&lease) { Ok(lease) } else { Err("a lease lasts from 100ms to 1h".to_owned()) }
}

/// What is certified must outlast a few lost calls, and is not to be had for ever.
fn certificate_life(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(3), Duration::from_secs(366 * 24 * 3600), "a certificate lasts from 3s to 366d")
}

fn ticket_life(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600), "a ticket lasts from 1s to 7d")
}

fn token_life(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_secs(1), Duration::from_secs(366 * 24 * 3600), "a token lasts from 1s to 366d")
}

fn within(text: &str, least: Duration, most: Duration, expected: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (least..=most).contains(&time) { Ok(time) } else { Err(expected.to_owned()) }
}

/// "never", or a time that a restart of a machine does not fill by accident.
fn release_after(text: &str) -> Result<Duration, String> {
    if text == "never" {
        return Ok(Duration::MAX);
    }
    let after = humantime::parse_duration(text).map_err(|error| format!("{error}, such as 30d or never"))?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(100 * 366 * 24 * 3600);
    if allowed.contains(&after) {
        Ok(after)
    } else {
        Err("names are released after 1s to 100 years, or never".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serving_needs_a_data_dir_and_a_health_check_does_not() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["tracker-svc"], args].concat());
        assert_eq!(parse(&["--data-dir", "d", "--insecure"]).unwrap().config().unwrap().data_dir, PathBuf::from("d"));
        let released = |text: &str| parse(&["--data-dir", "d", "--release-after", text]).unwrap().release_after;
        assert_eq!((released("2h"), released("never")), (Duration::from_secs(7200), Duration::MAX));
        assert!(parse(&["healthcheck"]).unwrap().command.is_some());
        assert!(parse(&["--listen", "127.0.0.1:1", "healthcheck", "--address", "h:1"]).is_ok());
        for bad in [
            &["--data-dir", "d", "--listen", "nowhere"][..],
            &["--data-dir", "d", "--lease", "1ms"],
            &["--data-dir", "d", "--lease", "2h"],
            &["--data-dir", "d", "--release-after", "0s"],
            &["--data-dir", "d", "--release-after", "200years"],
            &["--data-dir", "d", "--release-after", "soon"],
            &["--data-dir", "d", "--log-format", "xml"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_health_check_asks_this_machine_by_default() {
        let asked = |listen: &str| Cli::parse_from(["tracker-svc", "--listen", listen, "healthcheck"]).local_address();
        assert_eq!(asked("0.0.0.0:7400").as_str(), "127.0.0.1:7400");
        assert_eq!(asked("[::]:1").as_str(), "127.0.0.1:1", "which answers on a machine without IPv6, too");
        assert_eq!(asked("10.0.0.1:1").as_str(), "10.0.0.1:1");
        for text in ["h:1", "http://h:1"] {
            let cli = Cli::parse_from(["tracker-svc", "healthcheck", "--address", text]);
            let Some(Command::Healthcheck { address, .. }) = cli.command else { panic!("{:?}", cli.command) };
            assert_eq!(address.unwrap().as_str(), "h:1");
        }
    }
}
