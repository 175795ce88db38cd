//! `peer-cli`: drives the local peer daemon.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command line |
//! | [`paths`] | a path as typed -> an absolute one, since the daemon has another working folder |
//! | [`connect`] | the connection to the daemon, and its errors in words |
//! | [`rights`] | who may open the daemon's socket, in words |
//! | [`keys`] | keys to sign with, and those to check with |
//! | [`signals`] | Ctrl-C and SIGTERM |
//! | [`commands`] | one file per command: ask, then render |
//! | [`progress`] | a running download as numbers: bytes, rates, time left |
//! | [`render`] | bars, plain lines, JSON |
//! | [`exit`] | failures and the one table of exit codes |
//! | [`format`](mod@format) | units for a person, text safe for a terminal |
//! | [`output`] | stdout that survives a closed pipe |
//!
//! It never touches file contents, but for `verify`, which reads one, and never talks to the tracker or to other peers: the daemon does.

mod args;
mod commands;
mod connect;
mod exit;
mod figures;
mod format;
mod identity;
mod keys;
mod output;
mod paths;
mod progress;
mod reasons;
mod render;
mod rights;
mod signals;
mod watch;

use std::{io::Write, process::ExitCode};

use clap::Parser;

/// As in the daemons, so that all three binaries allocate alike.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = args::Args::parse();
    let exit = match commands::run(args).await {
        Ok(exit) => exit,
        Err(failure) => {
            // With stderr closed only the exit code is left to tell.
            let _ = write!(std::io::stderr(), "{failure}");
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}
