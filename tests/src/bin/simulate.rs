//! `simulate`: runs the engine of the peers and the registry of the tracker in a simulated network, and prints how near
//! the swarm came to the bound. The report goes to stdout and depends on the options alone; how long it took goes beside.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is the answer, the time it took goes beside it"
)]

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use drizzle_tests::sim::{Options, plot::plot, simulate};

/// The engine makes and drops small sets all the time; with the system's allocator that is a tenth of a run.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let options = Options::parse();
    let begun = Instant::now();
    let report = match simulate(&options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    print!("{report}");
    eprintln!("wall time             {:.2} s", begun.elapsed().as_secs_f64());
    if let Some(path) = &options.plot
        && let Err(error) = plot(&report, path)
    {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    // A distribution that did not reach every peer has failed.
    if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
