//! What a monitor reads of this peer: what is counted as it happens, and what is looked up at a scrape. The README's table
//! says what each number means; a test keeps the two alike.
//!
//! Counting is an atomic addition for each chunk, each message of one, and each call; nothing is counted for each byte.

use std::{fmt, sync::Arc, time::Duration};

use drizzle_engine::{limiting::Cause, schedule::Offence};
use drizzle_proto::{
    RateLimit,
    metrics::{Counter, Counters, Exposition, Fractions, Histogram, Label, Sheet, exponential_buckets},
    net::{handshakes::Handshakes, wary::Observer},
};

use crate::{
    download::{Context, DownloadEvent, FailureKind, Step},
    hasher,
    holdings::ReadError,
    serve::ServeError,
    status::{Monitor, Snapshot},
};

/// What is this peer's own begins so.
const PREFIX: &str = "drizzle_peer";
/// Where the other end of a transfer is. A peer that says nothing of its zone is taken to be in the same.
const ZONES: [Label; 2] = [[("zone", "same")], [("zone", "other")]];
/// A sync that takes longer than this is a stall.
const STALL: Duration = Duration::from_secs(1);
/// The tracker's methods that a peer calls, as their paths end.
const METHODS: [&str; 8] = [
    "RegisterPeer",
    "RegisterChunk",
    "RegisterManifest",
    "RenewLease",
    "Leave",
    "WithdrawFile",
    "FileLocations",
    "WatchFile",
];

/// Chunks and their bytes, by where they came from or went.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    bytes: Counters,
    chunks: Counters,
}

impl Passed {
    /// So many bytes.
    pub(crate) fn bytes(&self, is_far: bool, bytes: u64) {
        self.bytes.get_or_create(&ZONES[usize::from(is_far)]).inc_by(bytes);
    }

    /// A whole chunk.
    pub(crate) fn chunk(&self, is_far: bool) {
        self.chunks.get_or_create(&ZONES[usize::from(is_far)]).inc();
    }

    /// Bytes from or to all zones.
    pub(crate) fn all_bytes(&self) -> u64 {
        ZONES.iter().map(|zone| self.bytes.get_or_create(zone).get()).sum()
    }
}

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Verified and stored.
    pub(crate) received: Passed,
    /// Handed to the transport.
    pub(crate) sent: Passed,
    refused: Counters,
    offences: Counters,
    damaged: Counter,
    ended: Counters,
    seconds: Histogram,
    ratio: Histogram,
    /// For how long chunks were being written.
    pub(crate) writing: Fractions,
    synced: Histogram,
    stalls: Counter,
    calls: Family,
    failed_calls: Counters,
    /// How often the tracker was found to be away.
    pub(crate) outages: Counter,
}

type Family = drizzle_proto::metrics::Family<Label, Histogram>;

impl Default for Metrics {
    fn default() -> Self {
        let buckets = || Histogram::new(exponential_buckets(0.001, 4.0, 8));
        let new = Self {
            received: Passed::default(),
            sent: Passed::default(),
            refused: Counters::default(),
            offences: Counters::default(),
            damaged: Counter::default(),
            ended: Counters::default(),
            seconds: Histogram::new(exponential_buckets(0.1, 4.0, 10)),
            ratio: Histogram::new([1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0]),
            writing: Fractions::default(),
            synced: buckets(),
            stalls: Counter::default(),
            calls: Family::new_with_constructor(buckets),
            failed_calls: Counters::default(),
            outages: Counter::default(),
        };
        // All that may be counted is there from the start: a rate needs a zero to rise from.
        for zone in &ZONES {
            for passed in [&new.received, &new.sent] {
                drop((passed.bytes.get_or_create(zone), passed.chunks.get_or_create(zone)));
            }
        }
        Offence::ALL.iter().for_each(|offence| drop(new.offences.get_or_create(&[("kind", of_offence(*offence))])));
        ENDS.iter().for_each(|result| drop(new.ended.get_or_create(&[("result", result)])));
        REFUSALS.iter().for_each(|reason| drop(new.refused.get_or_create(&[("reason", reason)])));
        METHODS.iter().for_each(|method| drop(new.failed_calls.get_or_create(&[("method", method)])));
        new
    }
}

const REFUSALS: [&str; 5] = ["busy", "not_held", "not_permitted", "disk", "other"];

/// How downloads end.
const ENDS: [&str; 9] =
    ["done", "integrity", "timeout", "cancelled", "destination_exists", "storage", "withdrawn", "shutdown", "internal"];

fn of_failure(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Integrity => "integrity",
        FailureKind::Timeout => "timeout",
        FailureKind::Cancelled => "cancelled",
        FailureKind::DestinationExists => "destination_exists",
        FailureKind::Storage => "storage",
        FailureKind::Withdrawn => "withdrawn",
        FailureKind::Shutdown => "shutdown",
        FailureKind::Internal => "internal",
    }
}

fn of_offence(offence: Offence) -> &'static str {
    match offence {
        Offence::WrongBytes => "wrong_bytes",
        Offence::Changed => "changed",
        Offence::Stalled => "stalled",
        Offence::BrokeOff => "broke_off",
        Offence::Refused => "refused",
        Offence::NotHeld => "not_held",
        Offence::Gone => "gone",
        Offence::Unreachable => "unreachable",
        Offence::OtherPeer => "other_peer",
        Offence::OwnAddress => "own_address",
    }
}

fn of_cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Tracker => "tracker",
        Cause::NoHolder => "no_holder",
        Cause::Source => "source",
        Cause::Peers => "peers",
        Cause::Downlink => "downlink",
        Cause::Link => "link",
        Cause::Disk => "disk",
        Cause::Memory => "memory",
        Cause::Shortage => "shortage",
        Cause::OwnLimit => "own_limit",
    }
}

impl Metrics {
    /// A request for a chunk was refused.
    pub(crate) fn refused(&self, error: &ServeError) {
        let reason = match error {
            ServeError::Busy(_) => "busy",
            ServeError::Read(ReadError::Io(_)) => "disk",
            ServeError::Read(_) | ServeError::Offset { .. } => "not_held",
            ServeError::Hangs => "disk",
            ServeError::Listeners(_) | ServeError::OtherPeer { .. } | ServeError::Stopping | ServeError::Panicked => {
                "other"
            }
        };
        self.refused_for(reason);
    }

    /// A requester may not have what it asked for.
    pub(crate) fn not_permitted(&self) {
        self.refused_for("not_permitted");
    }

    fn refused_for(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Callers of a download are told this.
    pub(crate) fn told(&self, event: &DownloadEvent) {
        if let DownloadEvent::Chunk { step: Step::Failed { offence, .. }, .. } = event {
            self.offences.get_or_create(&[("kind", of_offence(*offence))]).inc();
        }
    }

    /// So many chunks of an earlier run are not what was recorded.
    pub(crate) fn damaged(&self, chunks: u64) {
        self.damaged.inc_by(chunks);
    }

    /// What was written of a download is durable; it took so long.
    pub(crate) fn synced(&self, took: Duration) {
        self.synced.observe(took.as_secs_f64());
        if took > STALL {
            self.stalls.inc();
        }
    }

    /// A download is over.
    pub(crate) fn ended(&self, last: &DownloadEvent) {
        let result = match last {
            DownloadEvent::Done { elapsed, figures, .. } => {
                self.seconds.observe(elapsed.as_secs_f64());
                if let Some(bound) =
                    figures.and_then(|figures| figures.bound.tightest()).filter(|bound| !bound.is_zero())
                {
                    self.ratio.observe(elapsed.as_secs_f64() / bound.as_secs_f64());
                }
                "done"
            }
            DownloadEvent::Failed { kind, .. } => of_failure(*kind),
            _ => return,
        };
        self.ended.get_or_create(&[("result", result)]).inc();
    }

    /// What hears of each call to the tracker.
    pub(crate) fn observer(self: &Arc<Self>) -> Observer {
        let metrics = self.clone();
        Observer::new(move |path, took, went_well| {
            let Some(method) = METHODS.iter().find(|method| path.ends_with(**method)) else { return };
            metrics.calls.get_or_create(&[("method", method)]).observe(took.as_secs_f64());
            if !went_well {
                metrics.failed_calls.get_or_create(&[("method", method)]).inc();
            }
        })
    }

    fn register(&self, exposition: &mut Exposition) {
        let registry = exposition.counted();
        let Self { received, sent, .. } = self;
        registry.register("received_bytes", "Bytes of chunks that came and were verified", received.bytes.clone());
        registry.register("received_chunks", "Chunks that came and were verified", received.chunks.clone());
        registry.register("sent_bytes", "Bytes of chunks that were sent", sent.bytes.clone());
        registry.register("sent_chunks", "Chunks that were sent to their end", sent.chunks.clone());
        registry.register("uploads_refused", "Requests for chunks that were refused", self.refused.clone());
        registry.register("offences", "What holders did wrong with a chunk", self.offences.clone());
        let help = "Chunks of an earlier run that were not what was recorded";
        registry.register("damaged_chunks", help, self.damaged.clone());
        registry.register("downloads_ended", "Downloads that are over, by how they ended", self.ended.clone());
        registry.register("download_seconds", "How long downloads took that were completed", self.seconds.clone());
        let help = "Time of a completed download over its own bound";
        registry.register("download_bound_ratio", help, self.ratio.clone());
        let help = "Time that threads wrote chunks, of all of them together";
        registry.register("disk_write_seconds", help, self.writing.clone());
        registry.register("disk_sync_seconds", "How long it took to make chunks durable", self.synced.clone());
        registry.register("disk_stalls", "Times that this took more than a second", self.stalls.clone());
        let help = "How long the tracker took to answer, or until it was given up";
        registry.register("tracker_call_seconds", help, self.calls.clone());
        registry.register("tracker_calls_failed", "Calls to the tracker that failed", self.failed_calls.clone());
        registry.register("tracker_outages", "How often the tracker was found to be away", self.outages.clone());
    }
}

/// All numbers of a daemon.
pub(crate) fn exposition(monitor: Monitor, handshakes: Handshakes) -> Exposition {
    let mut exposition = Exposition::new(PREFIX);
    monitor.context.metrics.register(&mut exposition);
    exposition.looked_up(move |sheet| look(sheet, &monitor.snapshot(), &monitor.context));
    exposition.handshakes(handshakes);
    exposition
}

fn look(sheet: &mut Sheet<'_>, now: &Snapshot, context: &Context) -> fmt::Result {
    let connected = u64::from(now.standing.lease.is_some());
    sheet.gauge("tracker_connected", "1 while a lease is held and the tracker answers", connected)?;
    let files = [
        ("shared", now.holdings.shared),
        ("partial", now.holdings.partial),
        ("refused", now.holdings.refused.len()),
        ("missing", now.shelf.missing.len()),
        ("settling", now.shelf.settling),
        ("untrusted", now.untrusted.0),
        ("hanging", now.hanging.len()),
    ];
    let help = "Files by what they are to this peer: shared, partial (downloads that are not complete), refused by the tracker, missing, settling, untrusted, hanging";
    sheet.gauges("files", help, "state", files.map(|(state, files)| (state, files as u64)))?;
    sheet.gauge("held_bytes", "Bytes of chunks that are held and offered", now.holdings.bytes)?;
    sheet.gauge("upload_slots", "Upload slots that there are now", now.uploads.slots as u64)?;
    sheet.gauge("uploads", "Upload slots that are taken", now.uploads.taken as u64)?;
    let running = Cause::ALL.map(|cause| {
        let limited = now.transfers.iter().filter(|transfer| transfer.progress.limited_by == Some(cause));
        (of_cause(cause), limited.count() as u64)
    });
    let begin = now.transfers.iter().filter(|transfer| transfer.progress.limited_by.is_none()).count() as u64;
    let help = "Downloads that run, by what limits them at present; none: they have just begun";
    sheet.gauges("downloads", help, "limited_by", running.into_iter().chain([("none", begin)]))?;
    let memory = [("usual", context.memory.taken()), ("far", context.far_memory.taken())];
    sheet.gauges("chunk_memory_bytes", "Memory of chunks that are on their way", "kind", memory)?;
    sheet.gauge("hash_bytes_waiting", "Bytes of shared files that are still to be hashed", {
        now.hashing.bytes_total.saturating_sub(now.hashing.bytes_done)
    })?;
    sheet.counter(
        "hash_seconds",
        "Time that threads hashed, of all of them together",
        hasher::spent().as_secs_f64(),
    )?;
    let limit = |limit: RateLimit| limit.bytes_per_second().map_or(f64::INFINITY, |bytes| bytes as f64);
    let limits = [("up", limit(now.limits.up)), ("down", limit(now.limits.down))];
    sheet.gauges("rate_limit_bytes", "Limits of what passes in a second; +Inf: none is set", "direction", limits)
}
