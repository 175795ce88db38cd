//! `tracker-svc`: parse, bind, wait, drain.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracker_svc::{
    bind,
    config::{Cli, Command, LogFormat, health_url},
};

/// For work on the disk: few enough for a container's limit on processes, where a thread that cannot start
/// would be a panic.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, with or without RUST_BACKTRACE; a closed stderr is no reason to panic.
            let _ = writeln!(io::stderr(), "tracker-svc: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let result = runtime.block_on(serve(cli));
    // A write that hangs on a dead disk must not keep the program.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(cli: Cli) -> anyhow::Result<()> {
    if let Some(Command::Healthcheck { address }) = &cli.command {
        return Ok(drizzle_proto::net::health::check(&health_url(address.as_deref(), cli.listen)).await?);
    }
    start_logging(cli.log_format);
    let config = cli.config().context("--data-dir is missing")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tracker = bind(config).await?;
    writeln!(io::stdout(), "ready tracker={}", tracker.address())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        error = tracker.failed() => return Err(error.into()),
    }
    tracing::info!("shutting down; a second signal ends it at once");
    tokio::select! {
        () = tracker.shutdown() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn start_logging(format: LogFormat) {
    let filter =
        tracing_subscriber::EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
