//! `tracker-svc`: parse, bind, wait, drain.

use std::process::ExitCode;

use clap::Parser;
use drizzle_proto::net::{
    health,
    shell::{self, Failure},
    transport::Transport,
};
use tracker_svc::{
    Cli, Command, bind,
    commands::{self, CommandError},
};

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
            (Some(Command::Files { prefix }), Some(config)) => said(commands::files(&config.data_dir, prefix).await),
            (Some(Command::Drop { name, free }), Some(config)) => {
                said(commands::drop_name(&config.data_dir, name, *free).await)
            }
            (Some(Command::Reassign { name, peer }), Some(config)) => {
                said(commands::reassign(&config.data_dir, name, *peer).await)
            }
            (None, Some(config)) => shell::serve(cli.log_format, bind(config)).await,
            (_, None) => Err("--data-dir is missing, and has to stand before the command; see --help".into()),
        }
    })
}

fn said(done: Result<(), CommandError>) -> Result<(), Failure> {
    match done {
        Err(error) if !error.is_closed_pipe() => Err(error.into()),
        _ => Ok(()),
    }
}
