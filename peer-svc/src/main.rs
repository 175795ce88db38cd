//! The peer daemon's program: parses, binds, waits, drains.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use peer_svc::config::{Cli, Command, Config, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

// Large network buffers come and go all the time; glibc maps and unmaps each of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads for blocking work other than uploads.
const OTHER_BLOCKING_THREADS: usize = 32;

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    // A thread for each upload that reads, and some for writing and hashing: few enough for a container's
    // limit on processes, where a thread that cannot start would be a panic.
    let slots = cli.serve.as_ref().map_or(0, |config| usize::from(config.upload_slots));
    let threads = slots + OTHER_BLOCKING_THREADS;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(threads).build()?;
    let code = match (cli.command, cli.serve) {
        (Some(Command::Healthcheck { address }), _) => runtime
            .block_on(drizzle_proto::net::health::check(&address.to_url()))
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        (None, Some(config)) => {
            log(config.log_format);
            runtime.block_on(serve(config)).map(|()| ExitCode::SUCCESS)
        }
        (None, None) => anyhow::bail!("give --tracker and --dir; see --help"),
    };
    // A read that hangs on a dead disk must not keep the program.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let peer = peer_svc::bind(config).await?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready peer={} control={} id={}", peer.peer_address(), peer.control_address(), peer.id())
        .and_then(|()| stdout.flush())
        .context("cannot print the ready line")?;
    drop(stdout);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("shutting down; a second signal ends it at once");
    tokio::select! {
        drained = peer.shutdown() => if !drained {
            tracing::warn!("some uploads did not finish in time and were cut off");
        },
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
