//! `peer-svc`: parse, bind, wait, drain.

use std::process::ExitCode;

use clap::Parser;
use drizzle_proto::net::{health, shell, tls::Meant, transport::Transport};
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
            (Some(Command::Healthcheck { address, ready: false }), _) => {
                Ok(health::check(&Transport::plaintext(), &address.asked_locally(), Meant::AnyPeer).await?)
            }
            (Some(Command::Healthcheck { address, ready: true }), _) => {
                Ok(health::check_ready(&Transport::plaintext(), &address.asked_locally(), Meant::AnyPeer).await?)
            }
            (None, Some(config)) => shell::serve(config.log_format, bind(config)).await,
            (None, None) => Err("--tracker and --dir are missing; see --help".into()),
        }
    })
}
