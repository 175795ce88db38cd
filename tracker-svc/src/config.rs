//! The command line and the environment, checked before anything is opened.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use drizzle_proto::{Address, FileName, PeerId, net::shell::LogFormat};

/// The tracker of Drizzle: knows which peers are alive, which files they share, and which peer holds which chunk.
///
/// Prints one line to stdout when it serves, `ready tracker=ADDRESS`; everything else goes to stderr
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
    /// Let another peer own a name, for instance after its owner was installed anew
    Reassign {
        /// What the file is called in the swarm
        name: FileName,
        /// Id of the peer, 32 hex digits: `peer-cli status` on that machine shows it
        peer: PeerId,
    },
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
}

impl Cli {
    /// What to serve, unless a subcommand is to be run.
    pub fn config(&self) -> Option<Config> {
        let data_dir = self.data_dir.clone()?;
        let (lease, release_after, drain) = (self.lease, self.release_after, self.drain);
        Some(Config { listen: self.listen, data_dir, lease, release_after, drain })
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
        assert_eq!(parse(&["--data-dir", "d"]).unwrap().config().unwrap().data_dir, PathBuf::from("d"));
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
