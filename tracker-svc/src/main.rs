//! `tracker-svc`: parse, bind, wait, drain.

use std::process::ExitCode;

use clap::Parser;
use drizzle_proto::net::{health, shell, transport::Transport};
use tracker_svc::{Cli, Command, bind};

/// For work on the disk.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    shell::run("tracker-svc", BLOCKING_THREADS, async {
        match (&cli.command, cli.config()) {
            (Some(Command::Healthcheck { address, ready }), _) => {
                let address = address.clone().unwrap_or_else(|| cli.local_address());
                match ready {
                    true => Ok(health::check_ready(&Transport::plaintext(), &address).await?),
                    false => Ok(health::check(&Transport::plaintext(), &address).await?),
                }
            }
            (None, Some(config)) => shell::serve(cli.log_format, bind(config)).await,
            (None, None) => Err("--data-dir is missing; see --help".into()),
        }
    })
}
