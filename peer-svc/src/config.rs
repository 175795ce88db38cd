//! Options of the daemon: parsed and checked before any port is bound.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use drizzle_engine::slots::Slots;
use drizzle_proto::{
    Address, Labels, RateLimit,
    net::{
        control_at::{ControlAt, ControlAtError, PORT},
        shell::LogFormat,
        tls::options::{Choice, TlsOptions},
    },
    token::Token,
};

use crate::{
    store::fence::Fence,
    trust::{self, TrustError},
};

/// Shares the files below a folder with other peers, and downloads into it what they share.
///
/// Prints one line to stdout once it serves: "ready peer=ADDR control=ADDR id=PEER_ID", and metrics=ADDR with --metrics.
/// Everything else goes to stderr; RUST_LOG sets how much (default: info). Drive it with peer-cli.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// For serving.
    #[command(flatten)]
    pub serve: Serve,
    /// Instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What serving needs; nothing if a subcommand is asked for, whatever the environment of the daemon says.
#[derive(Debug)]
pub struct Serve(pub Option<Config>);

impl FromArgMatches for Serve {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(if matches.subcommand_name().is_some() { None } else { Some(Config::from_arg_matches(matches)?) }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Serve {
    fn augment_args(command: clap::Command) -> clap::Command {
        Config::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Config::augment_args_for_update(command)
    }
}

/// What else the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running daemon whether it serves; exit code 0 if so, 1 if not
    Healthcheck {
        /// Where its control service is
        /// [default: unix:/run/drizzle/peer.sock if it is there, else 127.0.0.1:7402]
        #[arg(long, value_name = "HOST:PORT|unix:PATH", env = "DRIZZLE_CONTROL", value_parser = asked_at)]
        address: Option<ControlAt<Address>>,
        /// Ask whether it is ready instead: whether it holds a lease with the tracker
        #[arg(long)]
        ready: bool,
        /// For a control service that other machines reach: the authority's certificate in PEM, which a peer that joined
        /// has in its state folder as tls/ca.pem
        #[arg(long, value_name = "FILE", env = "DRIZZLE_TLS_CA")]
        tls_ca: Option<PathBuf>,
    },
}

/// Options for serving.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// The tracker, as HOST:PORT or http://HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "DRIZZLE_TRACKER", value_parser = Address::from_url)]
    pub tracker: Address,

    /// Where other peers fetch chunks; port 0 takes a free one; over IPv6 and IPv4 unless it is one address; 0.0.0.0 is IPv4 alone
    #[arg(long, value_name = "IP:PORT", env = "DRIZZLE_LISTEN", default_value = "[::]:7401", value_parser = ip_port)]
    pub listen: SocketAddr,

    /// Where peer-cli drives this daemon. Whatever reaches it can make the daemon read and write files: keep it local.
    /// Every user of this machine reaches a port; a socket is for the daemon's own user and group alone (mode 0660), and
    /// peer-cli finds /run/drizzle/peer.sock by itself
    #[arg(long, value_name = "IP:PORT|unix:PATH", env = "DRIZZLE_CONTROL", default_value = PORT, value_parser = control_at)]
    pub control: ControlAt,

    /// A folder in which callers may name files, beside DIR: to share them, and to put a download there (peer-cli share,
    /// download -o); may be repeated, or several with colons between them; / is every file that this daemon's user may
    /// read or write. Links that lead out are refused, and so is the state folder [default: DIR alone; with --control at
    /// a loopback port every file]
    #[arg(long, value_name = "DIR", env = "DRIZZLE_ALLOW_PATH", value_delimiter = ':')]
    pub allow_path: Vec<PathBuf>,

    /// The folder whose files are shared, and into which downloads go; made if it does not exist
    #[arg(long, env = "DRIZZLE_DIR")]
    pub dir: PathBuf,

    /// Folder for hashes and unfinished downloads; if it is not in DIR, DIR may be read-only [default: DIR/.drizzle]
    #[arg(long, value_name = "DIR", env = "DRIZZLE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,

    /// What is not shared by itself, as in .gitignore, beside hidden and temporary files; !PATTERN takes one back; may
    /// be repeated. A file .drizzleignore in the folder does the same
    #[arg(long, value_name = "PATTERN", env = "DRIZZLE_EXCLUDE")]
    pub exclude: Vec<String>,

    /// A file in the folder is shared once it was left unchanged for this long: it may still be copied
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_SETTLE", default_value = "5s", value_parser = time)]
    pub settle: Duration,

    /// Each shared file is looked at this often: whether it is there and unchanged. So is the whole folder, for new files
    /// that the system did not tell of
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_LOOK_EVERY", default_value = "60s", value_parser = time)]
    pub look_every: Duration,

    /// Share new files of the folder as they appear: the default; said here, it counts more than DRIZZLE_NO_WATCH
    // No `overrides_with`: to clap a variable that is set conflicts with that.
    #[arg(long)]
    pub watch: bool,

    /// Share only what is in the folder at the start, and what peer-cli is told to share
    #[arg(long, env = "DRIZZLE_NO_WATCH", value_parser = clap::builder::BoolishValueParser::new())]
    pub no_watch: bool,

    /// Answer Prometheus at http://IP:PORT/metrics: numbers about this peer, without names of files or peers; over plain HTTP,
    /// to whoever reaches that address
    #[arg(long, value_name = "IP:PORT", env = "DRIZZLE_METRICS", value_parser = ip_port)]
    pub metrics: Option<SocketAddr>,

    /// Address told to other peers [default: the local address that routes to the tracker and is listened on, with the
    /// real port]
    #[arg(long, value_name = "HOST:PORT", env = "DRIZZLE_ADVERTISE")]
    pub advertise: Option<Address>,

    /// Where this peer is, such as zone=a,rack=7: told to the tracker and listed with each holder; may be repeated
    #[arg(long, value_name = "KEY=VALUE,...", env = "DRIZZLE_LABEL")]
    pub label: Vec<Labels>,

    /// Chunks sent at once, of 256 KiB and more twice as many; requests beyond are told "busy" and go elsewhere. More are
    /// sent while receivers are slower than this peer's uplink, and to a peer that needs one more than others do
    #[arg(long, value_name = "N", env = "DRIZZLE_UPLOAD_SLOTS", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub upload_slots: u16,

    /// Most bytes of chunks sent to other peers, all of them together, such as 20MB/s, 100mbit or 500KiB/s. Units: B/s,
    /// kB/s, MB/s, GB/s (of 1000 bytes), KiB/s, MiB/s, GiB/s (of 1024), kbit, Mbit, Gbit (of 1000 bits); at least 16KiB/s.
    /// peer-cli limit changes it while the daemon runs
    #[arg(long, value_name = "RATE", env = "DRIZZLE_UP", default_value = "unlimited")]
    pub up: RateLimit,

    /// Most bytes of chunks received from other peers, over all downloads together; as --up
    #[arg(long, value_name = "RATE", env = "DRIZZLE_DOWN", default_value = "unlimited")]
    pub down: RateLimit,

    /// Fetch and offer only what one of these keys signed: files as `peer-cli key new` and minisign write them; may be
    /// repeated, and a file may hold several keys. What is in the folder without such a signature is not offered, unless
    /// the one that the tracker keeps is of it
    #[arg(long, value_name = "PUBKEY_FILE", env = "DRIZZLE_TRUST")]
    pub trust: Vec<PathBuf>,

    /// On shutdown, running uploads may take this long to finish (such as 10s)
    #[arg(long, value_name = "DURATION", env = "DRIZZLE_DRAIN", default_value = "10s", value_parser = time)]
    pub drain: Duration,

    /// How connections are secured.
    #[command(flatten)]
    pub tls: TlsOptions,

    /// Join the tracker with this token, which `tracker-svc token create` prints: this peer makes a key and has it
    /// certified. Once it has joined it needs none; it can stay here
    #[arg(long, value_name = "TOKEN", env = "DRIZZLE_JOIN", hide_env_values = true)]
    pub join: Option<String>,

    /// Likewise with the token in this file; waits until it is there. Once this peer has joined it need not be
    #[arg(long, value_name = "FILE", env = "DRIZZLE_JOIN_FILE", conflicts_with = "join")]
    pub join_file: Option<PathBuf>,

    /// Decides every random choice of this peer (which chunk, which holder, which pause), so that a decision log
    /// (RUST_LOG=drizzle::decisions=trace) can be replayed [default: from the operating system]
    #[arg(long, value_name = "N", env = "DRIZZLE_SEED", hide_short_help = true)]
    pub seed: Option<u64>,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", env = "DRIZZLE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

impl Config {
    /// How connections are secured.
    pub fn securing(&self, state_dir: &Path) -> Result<Choice, TrustError> {
        let joins = self.join.is_some() || self.join_file.is_some() || trust::has_joined(state_dir);
        let advice = "join with a token from `tracker-svc token create` (--join TOKEN)";
        let control = match self.control {
            ControlAt::Tcp(address) => Some(address),
            ControlAt::Unix(_) => None,
        };
        let listens: Vec<SocketAddr> = control.into_iter().chain([self.listen]).collect();
        let chosen = self.tls.choose(&listens, joins, advice);
        chosen.map_err(|error| TrustError::Options(error.to_string()))
    }

    /// The token to join with, if one is given.
    pub fn token(&self) -> Result<Option<Token>, TrustError> {
        let text = match (&self.join, &self.join_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => text,
                // It has served its purpose, or will be there.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(TrustError::Options(format!("--join-file {}: {error}", path.display()))),
            },
            (None, None) => return Ok(None),
        };
        let option = if self.join.is_some() { "--join" } else { "--join-file" };
        text.parse().map(Some).map_err(|error| TrustError::Options(format!("{option}: {error}")))
    }

    /// Where callers may name files. Who reaches a loopback port is on this machine, and who set it up so trusts all that
    /// are; a socket has a group so that others than the daemon's user may use it, and from elsewhere anybody may come.
    pub(crate) fn fence(&self, dir: &Path, state_dir: &Path) -> Result<Fence, (PathBuf, io::Error)> {
        match &self.control {
            ControlAt::Tcp(address) if address.ip().is_loopback() && self.allow_path.is_empty() => Ok(Fence::default()),
            _ => Fence::around(dir, &self.allow_path, state_dir),
        }
    }

    /// Whether new files of the folder are shared as they appear.
    pub fn watches(&self) -> bool {
        self.watch || !self.no_watch
    }

    /// Chunks that are sent at once at the very most, each by a thread.
    pub fn most_uploads(&self) -> usize {
        Slots::most(self.upload_slots.into())
    }
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a time such as 10s or 5m".to_owned())
}

fn ip_port(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected IP:PORT, such as 127.0.0.1:7402 or [::]:7401".to_owned())
}

fn control_at(text: &str) -> Result<ControlAt, ControlAtError> {
    ControlAt::read(text, |text| ip_port(text).map_err(|error| format!("{error}, or unix:PATH")))
}

fn asked_at(text: &str) -> Result<ControlAt<Address>, ControlAtError> {
    ControlAt::read(text, |text| Address::new(text).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_tracker_is_written_as_an_address_or_as_a_url() {
        let tracker = |text: &str| {
            let cli = Cli::try_parse_from(["peer-svc", "--dir", "d", "--tracker", text]);
            cli.map(|cli| cli.serve.0.expect("options for serving").tracker.to_string())
        };
        for text in ["http://t:7400/", "http://t:7400", "t:7400"] {
            assert_eq!(tracker(text).unwrap(), "t:7400");
        }
        for bad in ["", "t", "https://t:1", "http://t:1/x", "http://u@t:1"] {
            assert!(tracker(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_written_together_or_one_at_a_time() {
        let labels = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["peer-svc", "--dir", "d", "--tracker", "t:1"], args].concat());
            cli.map(|cli| Labels::merged(&cli.serve.0.expect("options for serving").label))
        };
        for args in [&["--label", "zone=a,rack=7"][..], &["--label", "rack=7", "--label", "zone=a"]] {
            assert_eq!(labels(args).unwrap().unwrap().to_string(), "rack=7,zone=a");
        }
        assert!(labels(&[]).unwrap().unwrap().is_empty());
        assert!(labels(&["--label", "zone"]).is_err());
        assert!(labels(&["--label", "zone=a", "--label", "zone=b"]).unwrap().is_err());
    }

    #[test]
    fn a_value_that_is_none_is_told_what_one_looks_like() {
        for (option, value, expected) in [
            ("--listen", "7401", "such as 127.0.0.1:7402 or [::]:7401"),
            ("--control", "localhost:7402", "such as 127.0.0.1:7402 or [::]:7401, or unix:PATH"),
            ("--control", "unix:", "such as unix:/run/drizzle/peer.sock"),
            ("--settle", "soon", "such as 10s or 5m"),
            ("--look-every", "5", "such as 10s or 5m"),
            ("--drain", "5x", "such as 10s or 5m"),
            ("--up", "fast", "such as 20MB/s, 500KiB/s, 100mbit or unlimited"),
            ("--up", "20mb", "write Mbit for bits, or MB/s for bytes"),
            ("--down", "0", "use unlimited for no limit"),
            ("--down", "1kB/s", "the least rate is 16KiB/s"),
        ] {
            let error = Cli::try_parse_from(["peer-svc", "--tracker", "t:1", "--dir", "d", option, value]);
            let text = error.unwrap_err().to_string();
            assert!(text.contains(option) && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn callers_name_every_file_only_at_a_loopback_port_unless_said_otherwise() {
        let (dir, more) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [dir, more] = [dir.path(), more.path()].map(|folder| folder.canonicalize().unwrap());
        // Whether the daemon's folder, the other one and everything may be named.
        let allowed = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["peer-svc", "--dir", "d", "--tracker", "t:1"], args].concat());
            let config = cli.unwrap().serve.0.expect("options for serving");
            let fence = config.fence(&dir, &dir.join("state")).unwrap();
            [dir.as_path(), &more, Path::new("/")].map(|folder| fence.check(&folder.join("file")).is_ok())
        };
        let folders = format!("{}:{}", more.display(), dir.display());
        for everything in [&[][..], &["--control", "127.0.0.1:1"], &["--control", "[::1]:1"]] {
            assert_eq!(allowed(everything), [true; 3], "{everything:?}");
        }
        for alone in [&["--control", "unix:/s"][..], &["--control", "0.0.0.0:1"], &["--control", "10.0.0.1:1"]] {
            assert_eq!(allowed(alone), [true, false, false], "{alone:?}");
        }
        for control in [&[][..], &["--control", "unix:/s"]] {
            assert_eq!(allowed(&[control, &["--allow-path", &folders]].concat()), [true, true, false], "{control:?}");
            assert_eq!(allowed(&[control, &["--allow-path", "/"]].concat()), [true; 3], "{control:?}");
        }
    }

    #[test]
    fn rates_are_unlimited_unless_said_otherwise() {
        let limits = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["peer-svc", "--dir", "d", "--tracker", "t:1"], args].concat());
            let config = cli.unwrap().serve.0.expect("options for serving");
            [config.up, config.down].map(RateLimit::bytes_per_second)
        };
        assert_eq!(limits(&[]), [None, None]);
        assert_eq!(limits(&["--up", "100mbit", "--down", "64 KiB/s"]), [Some(12_500_000), Some(64 << 10)]);
    }

    #[test]
    fn serving_needs_a_tracker_and_a_folder_and_a_health_check_does_not() {
        assert!(Cli::try_parse_from(["peer-svc", "--dir", "d"]).is_err());
        assert!(Cli::try_parse_from(["peer-svc", "--tracker", "t:1"]).is_err());
        let cli = Cli::try_parse_from(["peer-svc", "healthcheck"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Healthcheck { .. })));
        let cli = Cli::try_parse_from(["peer-svc", "--tracker", "t:1", "--dir", "d"]).unwrap();
        assert_eq!(cli.serve.0.unwrap().upload_slots, 4);
        assert!(Cli::try_parse_from(["peer-svc", "--tracker", "t:1", "--dir", "d", "--upload-slots", "0"]).is_err());
    }
}
