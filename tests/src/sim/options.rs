//! What is simulated: the options of `simulate`, which tests make too.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use drizzle_engine::neighbours::WANTED;
use drizzle_proto::{RateLimit, rate::RateError};

use super::clock::{MILLI, Nanos};

/// Runs the engine of the peers and the registry of the tracker in a simulated network, and says how near the swarm
/// came to the bound.
#[derive(Debug, Clone, Parser)]
#[command(name = "simulate")]
pub struct Options {
    /// Peers that download
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub peers: u32,
    /// Chunks of the file
    #[arg(long, value_name = "M", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub chunks: u32,
    /// Decides every random choice: the same seed gives the same result
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// What happens
    #[arg(long, value_enum, default_value_t = Scenario::Flash)]
    pub scenario: Scenario,
    /// Size of a chunk, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=16_384))]
    pub chunk_size: u32,
    /// Uplink of each peer, in Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 100.0)]
    pub up: f64,
    /// Downlink of each peer, in Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 100.0)]
    pub down: f64,
    /// Uplink of each source, in Mbit/s; as the peers' if not given
    #[arg(long, value_name = "MBIT")]
    pub source_up: Option<f64>,
    /// What each peer, sources too, lets itself send, in Mbit/s (peer-svc --up); unlimited if not given
    #[arg(long, value_name = "MBIT", value_parser = limit)]
    pub up_limit: Option<RateLimit>,
    /// What each peer lets itself receive, in Mbit/s (peer-svc --down); unlimited if not given
    #[arg(long, value_name = "MBIT", value_parser = limit)]
    pub down_limit: Option<RateLimit>,
    /// Link of each rack to the others, each way, in Mbit/s (racks); as an uplink if not given
    #[arg(long, value_name = "MBIT")]
    pub thin: Option<f64>,
    /// Upload slots of each peer
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: u32,
    /// One way of a message between two machines, in ms
    #[arg(long, value_name = "MS", default_value_t = 0.25)]
    pub latency: f64,
    /// Bytes that stand in front of a message where an uplink is in use, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 0.0)]
    pub backlog: f64,
    /// Share of the messages that are lost, and come 200 ms later
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub loss: f64,
    /// Bytes on the wire for each byte of a chunk
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub overhead: f64,
    /// A slot is free again when no more than this is left of its chunk, in KiB: what the socket has taken, unsent (32) and
    /// under way (10 segments)
    #[arg(long, value_name = "KIB", default_value_t = 48.0)]
    pub unsent: f64,
    /// Rate of each disk, in MB/s; 0 takes no time
    #[arg(long, value_name = "MB", default_value_t = 0.0)]
    pub disk: f64,
    /// A peer gathers its news for the tracker this long, in ms
    #[arg(long, value_name = "MS", default_value_t = 40.0)]
    pub announce: f64,
    /// The tracker gathers changes this long before it pushes them, in ms
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    pub push: f64,
    /// A peer gathers its news for its neighbours this long, in ms; the first is told at once. As the engine says if not
    /// given
    #[arg(long, value_name = "MS")]
    pub news: Option<f64>,
    /// Neighbours that each peer asks for; 0: it is told of every holder and each of its chunks by the tracker
    #[arg(long, value_name = "N", default_value_t = WANTED, value_parser = clap::value_parser!(u32).range(0..=256))]
    pub neighbours: u32,
    /// Copies after which the source leaves (source-leaves)
    #[arg(long, value_name = "COPIES", default_value_t = 1.1)]
    pub leaves_after: f64,
    /// Rates that are wrong by less than this share are left as they are
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    pub tolerance: f64,
    /// Draws the completion curve and the use of the uplinks
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Writes every decision as a line
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// All peers begin at once; one source, equal links
    Flash,
    /// A peer begins every 0.5 s
    Staggered,
    /// Links of 25, 50, 100 and 200 Mbit/s
    Heterogeneous,
    /// 10 % are killed midway, 10 % have links at half the rate
    Churn,
    /// 10 % serve wrong bytes
    Liars,
    /// Eight racks with a thin link each
    Racks,
    /// The source leaves when it has sent a little more than one copy
    SourceLeaves,
    /// Two files of two sources, to every peer
    TwoFiles,
}

fn limit(text: &str) -> Result<RateLimit, String> {
    let rate: f64 = text.parse().map_err(|_| "expected a number of Mbit/s".to_owned())?;
    // A negative rate is none, and a very high one is refused.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = mbit(rate) as u64;
    RateLimit::new(bytes).map_err(|error: RateError| error.to_string())
}

/// A rate in bytes a second.
pub fn mbit(rate: f64) -> f64 {
    rate * 125_000.0
}

/// Milliseconds as the clock counts.
pub fn millis(ms: f64) -> Nanos {
    // Negative times are none.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let nanos = (ms.max(0.0) * MILLI as f64) as Nanos;
    nanos
}

fn under(limit: Option<RateLimit>, link: f64) -> f64 {
    limit.and_then(RateLimit::bytes_per_second).map_or(link, |rate| link.min(rate as f64))
}

impl Options {
    /// Bytes of a file.
    pub fn file_bytes(&self) -> f64 {
        f64::from(self.chunks) * f64::from(self.chunk_bytes())
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_size << 10
    }

    /// Bytes a second that an uplink of so many carries under the limit.
    ///
    /// The engine's limiter decides over messages and tens of milliseconds; in a fluid model all that is left of that is a
    /// link of this capacity, shared alike by what flows. What it decides for longer (how many upload slots there are
    /// under a limit, how many streams a download runs) is the engine's own code: see `World::new` and
    /// `begin_downloads`. One thing differs: the limiter is fair to requesters and downloads, a link to flows.
    pub fn up_of(&self, link: f64) -> f64 {
        under(self.up_limit, link)
    }

    /// Bytes a second that a downlink of so many carries under the limit, likewise.
    pub fn down_of(&self, link: f64) -> f64 {
        under(self.down_limit, link)
    }
}
