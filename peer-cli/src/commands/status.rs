//! `status`: how the daemon is and what it transfers.

use std::{fmt::Write, time::Duration};

use drizzle_proto::wire;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::FileFields;
use crate::{
    connect::Daemon,
    exit::{Exit, Failure},
    figures,
    format::{bytes, clean, count, limit},
    output::Out,
    progress::Progress,
    render, watch,
};

#[derive(Serialize)]
struct Status<'a> {
    peer_id: &'a str,
    advertise: &'a str,
    version: &'a str,
    tracker: &'a str,
    tracker_connected: bool,
    dir: &'a str,
    shared_files: u32,
    partial_files: u32,
    refused: &'a [String],
    missing: &'a [String],
    missing_files: u32,
    settling_files: u32,
    folder_is_away: bool,
    warnings: &'a [String],
    upload_slots: u32,
    uploads_running: u32,
    uploaded_bytes: u64,
    downloaded_bytes: u64,
    up_limit: Option<u64>,
    down_limit: Option<u64>,
    hashing: Option<Hashing>,
    hanging_files: &'a [String],
    trusted_keys: &'a [String],
    untrusted: Vec<Untrusted<'a>>,
    untrusted_files: u32,
    transfers: Vec<Transfer<'a>>,
}

#[derive(Serialize)]
struct Untrusted<'a> {
    name: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct Hashing {
    files_done: u32,
    files_total: u32,
    bytes_done: u64,
    bytes_total: u64,
}

#[derive(Serialize)]
struct Transfer<'a> {
    #[serde(flatten)]
    file: FileFields<'a>,
    bytes: u64,
    total: u64,
    priority: &'static str,
    seconds: f64,
    /// What limits it at present.
    limited_by: Option<&'static str>,
    sources: Vec<Source<'a>>,
}

#[derive(Serialize)]
struct Source<'a> {
    peer: &'a str,
    bytes: u64,
    chunks: u32,
    in_flight: u32,
    /// In another zone or rack; left out if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    far: bool,
}

/// Files of one kind that are named.
const SOME: usize = 10;

/// How often the state is shown again.
const EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(daemon: &Daemon, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    let status = daemon.answer(daemon.control.clone().status(wire::StatusRequest {})).await?;
    if json {
        out.json(&document(&status))?;
    } else {
        out.text(&text(&status))?;
    }
    Ok(Exit::Done)
}

/// Shows it again and again: on a terminal as a picture, elsewhere one after the other. Ends when the daemon does, or the
/// reader.
pub(super) async fn watch(daemon: &Daemon, json: bool, out: &mut Out) -> Result<Exit, Failure> {
    if !json && render::is_terminal() {
        return watch::run(daemon).await;
    }
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_first = true;
    while !out.is_closed() {
        ticks.tick().await;
        let status = daemon.answer(daemon.control.clone().status(wire::StatusRequest {})).await?;
        if json {
            out.json(&document(&status))?;
        } else {
            let gap = if is_first { "" } else { "\n" };
            out.text(&format!("{gap}{}", text(&status)))?;
        }
        is_first = false;
    }
    Ok(Exit::Done)
}

fn document(status: &wire::StatusResponse) -> Status<'_> {
    Status {
        peer_id: &status.peer_id,
        advertise: &status.advertise,
        version: &status.version,
        tracker: &status.tracker,
        tracker_connected: status.tracker_connected,
        dir: &status.dir,
        shared_files: status.shared_files,
        partial_files: status.partial_files,
        refused: &status.refused,
        missing: &status.missing,
        missing_files: status.missing_files,
        settling_files: status.settling_files,
        folder_is_away: status.folder_is_away,
        warnings: &status.warnings,
        upload_slots: status.upload_slots,
        uploads_running: status.uploads_running,
        uploaded_bytes: status.uploaded_bytes,
        downloaded_bytes: status.downloaded_bytes,
        up_limit: status.up_limit,
        down_limit: status.down_limit,
        hashing: status.hashing.map(|now| Hashing {
            files_done: now.files_done,
            files_total: now.files_total,
            bytes_done: now.bytes_done,
            bytes_total: now.bytes_total,
        }),
        hanging_files: &status.hanging_files,
        trusted_keys: &status.trusted_keys,
        untrusted: status.untrusted.iter().map(|it| Untrusted { name: &it.name, reason: &it.reason }).collect(),
        untrusted_files: status.untrusted_files,
        transfers: status.transfers.iter().filter_map(transfer).collect(),
    }
}

fn transfer(transfer: &wire::Transfer) -> Option<Transfer<'_>> {
    let sources = transfer.progress.as_ref().map_or(&[][..], |progress| &progress.sources);
    Some(Transfer {
        file: transfer.file.as_ref()?.into(),
        bytes: transfer.progress.as_ref().map_or(0, |progress| progress.bytes_stored),
        total: transfer.bytes_wanted,
        priority: priority(transfer),
        seconds: figures::seconds(transfer.elapsed_millis),
        limited_by: transfer.progress.as_ref().and_then(|progress| figures::cause(progress.limited_by())),
        sources: sources
            .iter()
            .map(|from| Source {
                peer: &from.peer,
                bytes: from.bytes,
                chunks: from.chunks,
                in_flight: from.in_flight,
                far: from.far,
            })
            .collect(),
    })
}

fn priority(transfer: &wire::Transfer) -> &'static str {
    match transfer.priority() {
        wire::Priority::Low => "low",
        // An older daemon knows none.
        wire::Priority::Unspecified | wire::Priority::Normal => "normal",
        wire::Priority::High => "high",
    }
}

fn text(status: &wire::StatusResponse) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<9} {}", clean(&value));
    };
    let tracker = if status.tracker_connected { "connected" } else { "away: the daemon keeps trying" };
    line("peer", format!("{} (version {})", status.peer_id, status.version));
    line("address", status.advertise.clone());
    line("tracker", format!("{} ({tracker})", status.tracker));
    line("folder", status.dir.clone());
    line("files", format!("{} shared, {} partial", status.shared_files, status.partial_files));
    line("uploads", format!("{} of {} slots taken", status.uploads_running, status.upload_slots));
    line("sent", bytes(status.uploaded_bytes));
    line("received", bytes(status.downloaded_bytes));
    if status.up_limit.is_some() || status.down_limit.is_some() {
        line("limits", format!("up {}, down {}", limit(status.up_limit), limit(status.down_limit)));
    }
    if let Some(now) = status.hashing {
        let (done, total) = (bytes(now.bytes_done), bytes(now.bytes_total));
        line("hashing", format!("{} of {}, {done} of {total}", now.files_done, count(now.files_total, "file")));
    }
    if status.settling_files > 0 {
        line("waiting", format!("{} that may still be copied", count(status.settling_files, "file")));
    }
    if status.folder_is_away {
        line("missing", "none of the files shared from the folder is there: is its disk mounted?".to_owned());
    }
    if status.missing_files > 0 {
        let some = status.missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        line("missing", format!("{} no longer there: {some}", count(status.missing_files, "file")));
    }
    for warning in &status.warnings {
        line("warning", warning.clone());
    }
    for path in &status.hanging_files {
        line("hanging", format!("{path}: its disk or network mount does not answer"));
    }
    if !status.trusted_keys.is_empty() {
        line("trusts", format!("only what is signed by {}", status.trusted_keys.join(" or ")));
    }
    for untrusted in status.untrusted.iter().take(SOME) {
        line("unsigned", format!("{} is not offered: {}", untrusted.name, untrusted.reason));
    }
    let more = (status.untrusted_files as usize).saturating_sub(SOME.min(status.untrusted.len()));
    if more > 0 {
        line("unsigned", format!("{} more", count(more as u64, "file")));
    }
    for name in &status.refused {
        line("refused", format!("{name}: the name belongs to other content"));
    }
    for transfer in &status.transfers {
        line("download", transfer_line(transfer));
        if let Some(cause) = transfer.progress.as_ref().and_then(|now| figures::limited_by(now.limited_by())) {
            line("", format!("limited by {cause}"));
        }
    }
    text
}

fn transfer_line(transfer: &wire::Transfer) -> String {
    let stored = transfer.progress.as_ref().map_or(0, |progress| progress.bytes_stored);
    let sources = transfer.progress.as_ref().map_or(0, |progress| progress.sources.len());
    let mut progress = Progress::new(String::new());
    (progress.total, progress.stored) = (transfer.bytes_wanted, stored);
    let priority = match priority(transfer) {
        "normal" => String::new(),
        other => format!(", {other} priority"),
    };
    format!(
        "{}: {} %, {} of {}, {}{priority}",
        transfer.file.as_ref().map_or("", |file| &file.name),
        progress.percent(),
        bytes(stored),
        bytes(transfer.bytes_wanted),
        count(sources as u64, "source"),
    )
}
