//! The command line. Whatever can be refused without the daemon is refused here, with exit code 2.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use drizzle_proto::{
    Address, ChunkRanges, FileName, Layout, RateLimit,
    net::control_at::{ControlAt, ControlAtError},
    wire,
};

use crate::{exit, identity::TlsFiles};

/// Shares files with other machines and fetches theirs, through the peer daemon on this machine.
#[derive(Debug, Parser)]
#[command(name = "peer-cli", version, after_help = exit::HELP)]
pub(crate) struct Args {
    /// Where the peer daemon is controlled [default: unix:/run/drizzle/peer.sock if it is there, else 127.0.0.1:7402]
    #[arg(long, global = true, display_order = 100, env = "DRIZZLE_PEER", value_name = "HOST:PORT|unix:PATH", value_parser = peer)]
    pub(crate) peer: Option<ControlAt<Address>>,

    /// Print JSON: one object, or one per line for lists and for the events of a download
    #[arg(long, global = true, display_order = 101)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) tls: TlsFiles,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Offer files, or all files in folders, to other peers
    Share(Share),
    /// Stop offering a file; it stays on disk
    Unshare {
        /// What the file is called in the swarm
        name: FileName,
    },
    /// Fetch a file from every peer that has some of it
    Download(Download),
    /// Check a local file against what is registered under a name, and by whom that was signed
    Verify(Verify),
    /// Make a key to sign files with
    Key {
        #[command(subcommand)]
        command: Key,
    },
    /// List the files that the tracker knows
    Files {
        /// Only names that start with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Show which peer holds which chunks of a file
    Locations {
        /// What the file is called in the swarm
        name: FileName,
    },
    /// Show the state of the daemon and its transfers
    Status {
        /// Show it again every second: on a terminal with rates, downloads and their reasons (q ends it), elsewhere as lines
        #[arg(long)]
        watch: bool,
    },
    /// Say why downloads take, or took, as long as they do: what limits them, how their holders stand, what can be done
    Explain {
        /// What the file is called in the swarm [default: all downloads that run, and the last 32 that ended]
        name: Option<FileName>,
    },
    /// Get a certificate for commands to daemons on other machines, and for tools such as grpcurl
    Join(Join),
    /// Show or change how fast the daemon sends and receives chunks
    Limit(Limit),
    /// End a running download; its chunks are kept
    Cancel {
        /// What the file is called in the swarm
        name: FileName,
    },
    /// Print a script that completes what is typed in a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Share {
    /// Files, or folders: of a folder all files but hidden, temporary and excluded ones, which are listed
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// What to call the file in the swarm (with one PATH only)
    #[arg(long)]
    pub(crate) name: Option<FileName>,
    /// Bytes of a chunk, such as 1MiB, 256K or 65536: a power of two from 16 KiB to 64 MiB [default: about
    /// 1000 chunks]
    #[arg(long, value_name = "SIZE", value_parser = chunk_size)]
    pub(crate) chunk_size: Option<u32>,
    /// Let names that this peer registered before stand for what the files are now; peers that have the old content
    /// drop it
    #[arg(long)]
    pub(crate) replace: bool,
    /// Sign each file with this secret key, as `peer-cli key new` and minisign make them: peers that trust its public key
    /// (`peer-svc --trust`) fetch nothing else. A file that is shared already is signed as well
    #[arg(long, value_name = "KEY")]
    pub(crate) sign: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = exit::HELP)]
pub(crate) struct Verify {
    /// What the file is called in the swarm
    pub(crate) name: FileName,
    /// The local file; it is read by this command, not by the daemon
    pub(crate) file: PathBuf,
    /// Ask for a signature by one of these public keys; may be repeated
    #[arg(long, value_name = "PUBKEY_FILE")]
    pub(crate) trust: Vec<PathBuf>,
    /// Write what was signed to PATH and its signature to PATH.minisig, for `minisign -Vm PATH -p PUBKEY_FILE`
    #[arg(long, value_name = "PATH")]
    pub(crate) export_signature: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a secret key, and its public key beside it
    New {
        /// Where the secret key goes; the public one goes to PATH.pub. Nothing is overwritten
        #[arg(value_name = "PATH", default_value = "drizzle.key")]
        path: PathBuf,
        /// Do not protect it by a password: whoever can read it can sign
        #[arg(short = 'W', long)]
        no_password: bool,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = exit::HELP)]
pub(crate) struct Download {
    /// What the file is called in the swarm
    pub(crate) name: FileName,
    /// Where to put it; into PATH if that is a folder or ends with '/' [default: the daemon's folder]
    #[arg(short, long, value_name = "PATH", conflicts_with = "chunks")]
    pub(crate) output: Option<PathBuf>,
    /// Fetch only these chunks, such as 0-9,15, and hold them for others; no file appears
    #[arg(long, value_name = "LIST")]
    pub(crate) chunks: Option<ChunkRanges>,
    /// Give up after this long without progress, such as 90s or 10m [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
    /// At the end, well or not, write what `peer-cli explain` tells to this file: as JSON, or for people if it ends in .html
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Which of the daemon's downloads go first: their shares of a limit and of memory are 1, 4 and 16, and without a
    /// limit a lower one runs fewer streams while a higher one gets on. One that runs already is raised, never lowered;
    /// after a restart of the daemon it is normal
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "low|normal|high")]
    pub(crate) priority: Priority,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    /// What `tracker-svc token create` printed
    #[arg(env = "DRIZZLE_JOIN", hide_env_values = true)]
    pub(crate) token: String,
    /// The tracker
    #[arg(long, value_name = "HOST:PORT", env = "DRIZZLE_TRACKER", value_parser = Address::from_url)]
    pub(crate) tracker: Address,
    /// Folder for the files cert.pem, key.pem and ca.pem [default: ~/.config/drizzle, from where they are used by themselves]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) to: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = LIMIT_HELP)]
pub(crate) struct Limit {
    /// Most bytes sent to other peers, all of them together, such as 20MB/s, 100mbit, 500KiB/s or unlimited
    #[arg(long, value_name = "RATE")]
    pub(crate) up: Option<RateLimit>,
    /// Most bytes received from other peers, over all downloads together
    #[arg(long, value_name = "RATE")]
    pub(crate) down: Option<RateLimit>,
}

const LIMIT_HELP: &str = "\
Without options it shows the limits, and the rates in use over the last second or two. A change counts at once, and \
until the daemon is started again: its own options are --up and --down of peer-svc (DRIZZLE_UP, DRIZZLE_DOWN).

Units: B/s, kB/s, MB/s, GB/s (of 1000 bytes), KiB/s, MiB/s, GiB/s (of 1024 bytes), kbit, Mbit, Gbit (of 1000 bits). The \
least rate is 16KiB/s. Only bytes of chunks count.";

/// How urgent a download is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Priority {
    /// It may wait for the others
    Low,
    /// As usual
    #[default]
    Normal,
    /// It goes before the others
    High,
}

impl From<Priority> for wire::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }
}

fn peer(text: &str) -> Result<ControlAt<Address>, ControlAtError> {
    let expected = || "expected HOST:PORT, such as 127.0.0.1:7402, or unix:PATH".to_owned();
    ControlAt::read(text, |text| Address::from_url(text).map_err(|_| expected()))
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        unit => return Err(format!("unknown unit {unit:?}: use K, KiB, M or MiB (units of 1024)")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size such as 1MiB, 256K or 65536".to_owned())?;
    let bytes = number.saturating_mul(1 << shift);
    let size = u32::try_from(bytes).unwrap_or(u32::MAX);
    Layout::new(0, size)
        .map(|_| size)
        .map_err(|_| format!("{bytes} bytes are not a power of two from 16 KiB to 64 MiB"))
}

fn timeout(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|_| "expected a time such as 90s or 10m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn chunk_sizes() {
        for (text, size) in
            [("65536", 65536), ("16K", 16 << 10), ("256KiB", 256 << 10), ("1 MiB", 1 << 20), ("64m", 64 << 20)]
        {
            assert_eq!(chunk_size(text), Ok(size), "{text}");
        }
        for text in
            ["", "K", "8K", "128M", "1MB", "3M", "-1", "1.5M", "99999999999999999999", "18014398509481984K", "é"]
        {
            assert!(chunk_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_is_seconds_or_has_its_unit_and_what_is_neither_is_told_what_one_looks_like() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("1m 30s", 90), ("0s", 0)] {
            assert_eq!(timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "soon", "5x", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(timeout(text).unwrap_err(), "expected a time such as 90s or 10m", "{text}");
        }
    }

    #[test]
    fn peers_with_and_without_scheme() {
        for text in ["http://localhost:7402", "localhost:7402", "http://localhost:7402/"] {
            assert_eq!(peer(text).unwrap().to_string(), "localhost:7402");
        }
        for text in ["", "localhost", "https://localhost:1", "http://a:1/x", "unix:", "/x"] {
            assert!(peer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_is_named_by_its_path_and_found_by_itself_only_if_it_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert_eq!(peer(&format!("unix:{}", path.display())).unwrap(), ControlAt::Unix(path.clone()));
        let port = peer("127.0.0.1:7402").unwrap();
        assert_eq!(ControlAt::found_at(&path), port);
        std::fs::write(&path, "").unwrap();
        assert_eq!(ControlAt::found_at(&path), port);
        std::fs::remove_file(&path).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(ControlAt::found_at(&path), ControlAt::Unix(path));
    }
}
