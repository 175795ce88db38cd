//! `peer-svc`: parse, bind, wait, drain.

use std::process::ExitCode;

use clap::Parser;
use drizzle_proto::net::{control_at::ControlAt, health, shell, tls::Meant, transport::Transport};
use peer_svc::{Cli, Command, bind};

// Large network buffers come and go all the time; glibc maps and unmaps each of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads for short work that blocks and for looking up names; what is long has threads of its own.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    let cli = Cli::parse();
    shell::run("peer-svc", BLOCKING_THREADS, async {
        match (cli.command, cli.serve.0) {
            (Some(Command::Healthcheck { address, ready, tls_ca }), _) => {
                let at = address.unwrap_or_else(ControlAt::found).asked_locally();
                let transport = match tls_ca.filter(|_| !matches!(at, ControlAt::Unix(_))) {
                    Some(ca) => Transport::that_only_asks(&ca)?,
                    None => Transport::plaintext(),
                };
                Ok(if ready {
                    health::check_ready(&transport, at, Meant::AnyPeer).await
                } else {
                    health::check(&transport, at, Meant::AnyPeer).await
                }?)
            }
            (None, Some(config)) => shell::serve(config.log_format, bind(config)).await,
            (None, None) => Err("--tracker and --dir are missing; see --help".into()),
        }
    })
}
