//! Measures this code with the real binaries, built for release, over this machine's loopback, and prints one
//! table in Markdown. `tests/bench` runs it.
//!
//! | module | gives |
//! |---|---|
//! | [`swarm`] | one source, one or many downloaders: daemons of their own for each run |
//! | [`shaped`] | a sweep of swarms over slow links, each peer on a host of its own |
//! | [`links`] | one pair over long and lossy links, beside plain TCP |
//! | [`fleet`] | what the tracker needs for a thousand peers |
//! | [`limits`] | what the tracker can take at the most |
//! | [`memory`] | what the daemons need in memory |
//! | [`decisions`] | what a decision of the engine costs |
//! | [`scale`] | what the same machine does without Drizzle: hashing, and a plain copy over TCP |
//! | [`machine`] | what it ran on |
//!
//! Invariants: everything is measured in turn within each run, so that a busy minute hits all alike; what
//! is reported is the median; every result is hashed again, outside of the measured time.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is the answer, progress goes beside it")]

mod decisions;
mod fleet;
mod limits;
mod links;
mod machine;
mod memory;
mod scale;
mod shaped;
mod swarm;

use std::{env, fs, path::Path, time::Duration};

use clap::{Parser, Subcommand};
use drizzle_tests::content::random;

/// Binary megabytes.
const MIB: u64 = 1 << 20;

/// Measures Drizzle on this machine and prints a table in Markdown.
#[derive(Debug, Parser)]
#[command(name = "tests/bench", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Size of the file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size: u64,
    /// Size of the file that many peers download at once, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    fan_size: u64,
    /// How many peers download at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    peers: usize,
    /// Size of the chunks of the pair that is measured beside the one with chunks of the usual size
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    chunk_size: String,
    /// How often everything is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// What cargo says to a benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured in place of the pace over loopback.
#[derive(Debug, Subcommand)]
enum What {
    Swarm(shaped::Sweep),
    Links(links::Links),
    Tracker(fleet::Fleet),
    Limits(limits::Limits),
    Memory(memory::Memory),
    Decisions(decisions::Decisions),
}

/// One measurement.
#[derive(Debug, Clone, Default)]
struct Sample {
    /// From the command to its end.
    elapsed: Duration,
    /// Bytes that arrived, at all receivers together.
    bytes: u64,
    /// Processor time of all daemons together, or of this process.
    cpu: Duration,
    /// Most memory that the source had resident, and the largest receiver, in bytes.
    peak: Option<(u64, u64)>,
    /// Copies of the file that left the source.
    copies: Option<f64>,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    if let Some(what) = options.what {
        let table = match what {
            What::Swarm(sweep) => sweep.measure().await,
            What::Links(links) => links.measure().await,
            What::Tracker(fleet) => Some(fleet.measure().await),
            What::Limits(limits) => Some(limits.measure().await),
            What::Memory(memory) => Some(memory.measure().await),
            What::Decisions(decisions) => Some(decisions.measure()),
        };
        // Why not was said.
        print!("{}", table.unwrap_or_else(|| std::process::exit(1)));
        return;
    }
    // `cargo test --all-targets` starts benchmarks too, to see that they start.
    if !options.bench {
        return;
    }
    let folder = tempfile::Builder::new().prefix("drizzle-bench-").tempdir().expect("a temporary folder");
    let peers = u64::try_from(options.peers).expect("a number of peers");
    let needed = (2 * options.size).max(options.size + (peers + 1) * options.fan_size) + 64;
    let free = machine::free(folder.path()) / MIB;
    if free < needed {
        eprintln!("bench: {needed} MiB are needed in {}, and {free} MiB are free", env::temp_dir().display());
        eprintln!("bench: free some, set TMPDIR to another folder, or give a smaller --size or --fan-size");
        drop(folder);
        std::process::exit(1);
    }

    let file = written(folder.path(), "pair", options.size);
    let fan_file = written(folder.path(), "fan", options.fan_size);
    let fan = format!("`fan`: one source to {} peers at once, {} MiB", options.peers, options.fan_size);
    let mut rows = [
        (format!("`pair`: one source to one peer, {} MiB", options.size), Vec::new()),
        ("`tls`: that pair with mutual TLS".to_owned(), Vec::new()),
        (format!("`small`: that pair with chunks of {}", options.chunk_size), Vec::new()),
        (fan, Vec::new()),
        ("`sha256`: that file hashed on one core".to_owned(), Vec::new()),
        ("`copy`: that file over one TCP connection into another, unchecked".to_owned(), Vec::new()),
    ];
    for run in 1..=options.runs {
        eprintln!("bench: run {run} of {}", options.runs);
        rows[0].1.push(swarm::measure(&file, None, 1, false).await);
        rows[1].1.push(swarm::measure(&file, None, 1, true).await);
        rows[2].1.push(swarm::measure(&file, Some(&options.chunk_size), 1, false).await);
        rows[3].1.push(swarm::measure(&fan_file, None, options.peers, false).await);
        rows[4].1.push(scale::sha256(&file));
        rows[5].1.push(scale::copy(&file));
    }
    print!("{}", table(&rows, &options));
}

/// A random file of `size` MiB.
fn written(folder: &Path, name: &str, size: u64) -> std::path::PathBuf {
    let path = folder.join(name);
    let bytes = usize::try_from(size * MIB).expect("a size that fits into memory");
    fs::write(&path, random(size, bytes)).expect("the file can be written");
    path
}

fn table(rows: &[(String, Vec<Sample>)], options: &Options) -> String {
    let Options { size, fan_size, peers, chunk_size, runs, .. } = options;
    let mut text = format!(
        "{}, {}; {}; medians of {runs} runs (lowest to highest).\n\
         Made by `tests/bench --size {size} --fan-size {fan_size} --peers {peers} --chunk-size {chunk_size} --runs {runs}`, files in {}.\n\n\
         | what | MB/s | CPU seconds per GiB | peak memory, source / receiver | copies that the source sent |\n\
         |---|---|---|---|---|\n",
        machine::processor(),
        machine::cores(),
        machine::today(),
        env::temp_dir().display(),
    );
    for (what, samples) in rows {
        let rates = sorted(samples, |sample| megabytes(sample.bytes) / sample.elapsed.as_secs_f64());
        let cpu =
            sorted(samples, |sample| sample.cpu.as_secs_f64() / (megabytes(sample.bytes) / megabytes(1024 * MIB)));
        let sources = sorted_some(samples, |sample| sample.peak.map(|(source, _)| megabytes(source) / megabytes(MIB)));
        let receivers =
            sorted_some(samples, |sample| sample.peak.map(|(_, receiver)| megabytes(receiver) / megabytes(MIB)));
        let copies = sorted_some(samples, |sample| sample.copies);
        text += &format!(
            "| {what} | {:.0} ({:.0} to {:.0}) | {:.2} | {} | {} |\n",
            median(&rates).unwrap_or_default(),
            rates.first().copied().unwrap_or_default(),
            rates.last().copied().unwrap_or_default(),
            median(&cpu).unwrap_or_default(),
            match (median(&sources), median(&receivers)) {
                (Some(source), Some(receiver)) => format!("{source:.0} / {receiver:.0} MiB"),
                _ => "–".to_owned(),
            },
            median(&copies).map_or_else(|| "–".to_owned(), |copies| format!("{copies:.2}")),
        );
    }
    text
}

/// Decimal megabytes.
#[allow(clippy::cast_precision_loss, reason = "figures for a person")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn sorted<T>(samples: &[T], of: impl Fn(&T) -> f64) -> Vec<f64> {
    sorted_some(samples, |sample| Some(of(sample)))
}

fn sorted_some<T>(samples: &[T], of: impl Fn(&T) -> Option<f64>) -> Vec<f64> {
    let mut values: Vec<f64> = samples.iter().filter_map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle of sorted values; the lower of the two middle ones.
fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}
