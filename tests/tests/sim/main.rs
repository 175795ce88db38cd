//! The simulator: what it computes is right, and a fleet in it does what it should.
//!
//! | module | shows |
//! |---|---|
//! | [`bound`] | the arithmetic of the fluid bound |
//! | [`clock`] | time goes forward, in one order |
//! | [`links`] | links are shared max-min fair |
//! | [`runs`] | the same seed gives the same run; wrong bytes are caught; parameters have the effect that they name |
//! | [`scenarios`] | each scenario, small, stays below a stated ratio |

mod bound;
mod clock;
mod links;
mod runs;
mod scenarios;

use clap::Parser;
use drizzle_tests::sim::{Options, Report, simulate};

/// Options as they are typed.
fn options(line: &str) -> Options {
    Options::try_parse_from(std::iter::once("simulate").chain(line.split_whitespace())).expect("the options are right")
}

/// Runs a simulation to its end.
fn run(line: &str) -> Report {
    simulate(&options(line)).expect("it runs")
}
