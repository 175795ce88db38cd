//! `tracker-svc`: parse, bind, wait, drain.

use std::process::ExitCode;

use clap::Parser;
use drizzle_proto::net::{
    health,
    shell::{self, Failure},
    tls::Meant,
};
use tracker_svc::{
    Cli, Command, bind,
    commands::{self, CommandError, rights},
};

/// For work on the disk.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    shell::run("tracker-svc", BLOCKING_THREADS, async {
        let Some(command) = &cli.command else {
            return shell::serve(cli.log_format, bind(cli.config()?)).await;
        };
        let data_dir = cli.data_dir();
        match command {
            Command::Healthcheck { address, ready } => {
                let address = address.clone().unwrap_or_else(|| cli.local_address());
                let transport = commands::health_transport(&cli)?;
                match ready {
                    true => Ok(health::check_ready(&transport, &address, Meant::Tracker).await?),
                    false => Ok(health::check(&transport, &address, Meant::Tracker).await?),
                }
            }
            Command::Files { prefix } => said(commands::files(data_dir?, prefix).await),
            Command::Drop { name, free } => said(commands::drop_name(data_dir?, name, *free).await),
            Command::Reassign { name, peer } => said(commands::reassign(data_dir?, name, *peer).await),
            Command::Token { command } => said(rights::token(data_dir?, command).await),
            Command::Grant { identity, role, prefix, only } => {
                said(rights::grant(data_dir?, *identity, *role, prefix, *only).await)
            }
            Command::Revoke { identity } => said(rights::revoke(data_dir?, *identity).await),
            Command::Forget { identity } => said(rights::forget(data_dir?, *identity).await),
            Command::Identities => said(rights::identities(data_dir?).await),
            Command::Stop { scope } => said(rights::stop(data_dir?, scope).await),
            Command::Resume { scope } => said(rights::resume(data_dir?, scope).await),
            Command::Stops => said(rights::stops(data_dir?).await),
        }
    })
}

fn said(done: Result<(), CommandError>) -> Result<(), Failure> {
    match done {
        Err(error) if !error.is_closed_pipe() => Err(error.into()),
        _ => Ok(()),
    }
}
