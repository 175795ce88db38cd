//! `limit`: how fast the daemon sends and receives chunks, and how fast it may.

use drizzle_proto::{RateLimit, wire};
use serde::Serialize;

use crate::{
    args,
    connect::Daemon,
    exit::{Exit, Failure},
    format::{limit, rate},
    output::Out,
};

#[derive(Serialize)]
struct Limits {
    /// Bytes a second; `null` without a limit.
    up_limit: Option<u64>,
    down_limit: Option<u64>,
    /// Bytes a second.
    up_rate: u64,
    down_rate: u64,
}

pub(super) async fn run(daemon: &Daemon, limits: args::Limit, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    // On the wire 0 is no limit.
    let number = |limit: RateLimit| limit.bytes_per_second().unwrap_or(0);
    let request = wire::LimitsRequest { up: limits.up.map(number), down: limits.down.map(number) };
    let now = daemon.answer(daemon.control.clone().limits(request)).await?;
    if json {
        let wire::LimitsResponse { up, down, up_rate, down_rate } = now;
        out.json(&Limits { up_limit: up, down_limit: down, up_rate, down_rate })?;
    } else {
        let line = |way, most, used: u64| format!("{way:<5} {:<12} {} in use", limit(most), rate(Some(used as f64)));
        out.line(&line("up", now.up, now.up_rate))?;
        out.line(&line("down", now.down, now.down_rate))?;
    }
    Ok(Exit::Done)
}
