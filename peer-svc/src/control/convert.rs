//! Domain to wire for the Control service, and its requests to the domain. The only place of this crate that looks
//! into wire messages, apart from the requests of the Peer service.

use std::{path::PathBuf, time::Duration};

use drizzle_engine::{bound::Bound, limiting::Cause, priority::Priority, schedule::Offence};
use drizzle_proto::{ChunkRanges, FileName, Layout, RateLimit, WireError, rate::RateError, wire};
use wire::download_event::Event as WireEvent;

use crate::{
    download::{Blamed, Contribution, DownloadEvent, FailureKind, Progress, Step, failed_text, reason_text},
    limits::LimitState,
    share::{Reason, Skipped, Wish},
    status::Snapshot,
    store::hash::HashState,
    transfers::{Request, TransferStatus},
};

/// Without a stored chunk for this long, a download gives up unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A local path; names on the wire are UTF-8.
fn path(text: &str) -> Result<PathBuf, WireError> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(WireError::Bounds("a path that is not absolute")) }
}

/// What a caller calls itself, among those of one download.
pub(super) fn caller(name: String) -> Result<String, WireError> {
    const LONGEST: usize = 64;
    if name.len() <= LONGEST { Ok(name) } else { Err(WireError::Bounds("a caller's name of more than 64 bytes")) }
}

impl TryFrom<wire::DownloadRequest> for Request {
    type Error = WireError;

    fn try_from(request: wire::DownloadRequest) -> Result<Self, WireError> {
        let priority = match request.priority() {
            wire::Priority::Low => Priority::Low,
            // An older client knows none.
            wire::Priority::Unspecified | wire::Priority::Normal => Priority::Normal,
            wire::Priority::High => Priority::High,
        };
        Ok(Self {
            priority,
            name: FileName::new(&request.name)?,
            output: if request.output.is_empty() { None } else { Some(path(&request.output)?) },
            chunks: request.chunks.map(ChunkRanges::try_from).transpose()?,
            steps: request.steps,
            caller: caller(request.caller)?,
            timeout: match request.timeout_millis {
                0 => DEFAULT_TIMEOUT,
                // A year is for ever, and does not overflow a clock.
                millis => Duration::from_millis(millis).min(Duration::from_secs(365 * 86_400)),
            },
        })
    }
}

/// The limits that are to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitsOrder {
    /// Of what is sent.
    pub(super) up: Option<RateLimit>,
    /// Of what comes.
    pub(super) down: Option<RateLimit>,
}

impl TryFrom<wire::LimitsRequest> for LimitsOrder {
    type Error = RateError;

    fn try_from(request: wire::LimitsRequest) -> Result<Self, RateError> {
        let limit = |rate| if rate == 0 { Ok(RateLimit::UNLIMITED) } else { RateLimit::new(rate) };
        Ok(Self { up: request.up.map(limit).transpose()?, down: request.down.map(limit).transpose()? })
    }
}

impl From<&LimitState> for wire::LimitsResponse {
    fn from(state: &LimitState) -> Self {
        let LimitState { up, down, up_rate, down_rate } = *state;
        Self { up: up.bytes_per_second(), down: down.bytes_per_second(), up_rate, down_rate }
    }
}

/// What to share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShareOrder {
    /// Absolute paths of files or folders.
    pub(super) paths: Vec<PathBuf>,
    /// For a single file.
    pub(super) name: Option<FileName>,
    /// How.
    pub(super) wish: Wish,
}

impl TryFrom<wire::ShareRequest> for ShareOrder {
    type Error = WireError;

    fn try_from(request: wire::ShareRequest) -> Result<Self, WireError> {
        let paths: Vec<PathBuf> = request.paths.iter().map(|text| path(text)).collect::<Result<_, _>>()?;
        if paths.is_empty() {
            return Err(WireError::Missing("paths"));
        }
        let name = if request.name.is_empty() { None } else { Some(FileName::new(&request.name)?) };
        if name.is_some() && paths.len() > 1 {
            return Err(WireError::Bounds("a name for more than one path"));
        }
        let chunk_size = (request.chunk_size != 0).then_some(request.chunk_size);
        if let Some(chunk_size) = chunk_size {
            Layout::new(0, chunk_size)?;
        }
        Ok(Self { paths, name, wish: Wish { chunk_size, replace: request.replace } })
    }
}

/// What was left out of a folder: one event for each reason.
pub(super) fn skipped_events(skipped: Skipped) -> impl Iterator<Item = wire::ShareEvent> {
    skipped.0.into_iter().map(|(reason, (count, examples))| {
        let examples = examples.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let skipped = wire::ShareSkipped { reason: wire::share_skipped::Reason::from(reason).into(), count, examples };
        wire::ShareEvent { event: Some(wire::share_event::Event::Skipped(skipped)) }
    })
}

impl From<Reason> for wire::share_skipped::Reason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Hidden => Self::Hidden,
            Reason::Temporary => Self::Temporary,
            Reason::Excluded => Self::Excluded,
            Reason::LeadsOut => Self::LinkOut,
            Reason::LeadsNowhere => Self::LinkNowhere,
            Reason::LeadsBack => Self::LinkBack,
            Reason::SecondLink => Self::SecondLink,
            Reason::NotRegular => Self::NotRegular,
            Reason::BadName => Self::BadName,
        }
    }
}

impl From<&Contribution> for wire::SourceProgress {
    fn from(source: &Contribution) -> Self {
        Self {
            peer: source.peer.to_string(),
            bytes: source.bytes,
            chunks: source.chunks,
            in_flight: source.in_flight,
            far: source.is_far,
        }
    }
}

impl From<&Progress> for wire::DownloadProgress {
    fn from(progress: &Progress) -> Self {
        Self {
            bytes_stored: progress.stored,
            bytes_recorded: progress.recorded,
            bytes_unchecked: (progress.unchecked > 0).then_some(progress.unchecked),
            sources: progress.sources.iter().map(Into::into).collect(),
            limited_by: limited_by(progress.limited_by),
        }
    }
}

pub(super) fn limited_by(cause: Option<Cause>) -> i32 {
    use wire::LimitedBy as Wire;
    let wire = match cause {
        None => Wire::Unspecified,
        Some(Cause::Tracker) => Wire::Tracker,
        Some(Cause::NoHolder) => Wire::NoHolder,
        Some(Cause::Source) => Wire::Source,
        Some(Cause::Peers) => Wire::Peers,
        Some(Cause::Downlink) => Wire::Downlink,
        Some(Cause::Link) => Wire::Link,
        Some(Cause::Disk) => Wire::Disk,
        Some(Cause::Memory) => Wire::Memory,
        Some(Cause::Shortage) => Wire::Shortage,
        Some(Cause::OwnLimit) => Wire::OwnLimit,
    };
    wire.into()
}

fn bound(bound: Bound) -> wire::DownloadBound {
    wire::DownloadBound {
        downlink_millis: bound.downlink.map(millis),
        source_millis: bound.source.map(millis),
        swarm_millis: bound.swarm.map(millis),
    }
}

impl From<&Blamed> for wire::Blame {
    fn from(blamed: &Blamed) -> Self {
        Self {
            peer: blamed.peer.to_string(),
            offence: offence(blamed.offence).into(),
            chunks: Some((&blamed.chunks).into()),
        }
    }
}

fn offence(offence: Offence) -> wire::Offence {
    use wire::Offence as Wire;
    match offence {
        Offence::WrongBytes => Wire::WrongBytes,
        Offence::Changed => Wire::Changed,
        Offence::Stalled => Wire::Stalled,
        Offence::BrokeOff => Wire::BrokeOff,
        Offence::Refused => Wire::Refused,
        Offence::NotHeld => Wire::NotHeld,
        Offence::Gone => Wire::Gone,
        Offence::Unreachable => Wire::Unreachable,
        Offence::OtherPeer => Wire::OtherPeer,
        Offence::OwnAddress => Wire::OwnAddress,
    }
}

impl From<FailureKind> for wire::download_failed::Kind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Integrity => Self::Integrity,
            FailureKind::Timeout => Self::Timeout,
            FailureKind::Cancelled => Self::Cancelled,
            FailureKind::DestinationExists => Self::DestinationExists,
            FailureKind::Storage => Self::Storage,
            FailureKind::Withdrawn => Self::Withdrawn,
            FailureKind::Shutdown => Self::Shutdown,
            FailureKind::Internal => Self::Internal,
        }
    }
}

impl From<&DownloadEvent> for wire::DownloadEvent {
    fn from(event: &DownloadEvent) -> Self {
        use wire::chunk_event::Step as WireStep;
        let event = match event {
            DownloadEvent::Started { file, wanted, resumed } => WireEvent::Started(wire::DownloadStarted {
                file: Some(file.into()),
                bytes_wanted: *wanted,
                bytes_resumed: *resumed,
            }),
            DownloadEvent::Progress(progress) => WireEvent::Progress(progress.into()),
            DownloadEvent::Chunk { step, chunk, peer } => {
                let (step, reason) = match step {
                    Step::Requested => (WireStep::Requested, String::new()),
                    Step::Stored => (WireStep::Stored, String::new()),
                    Step::Failed { offence, detail } => (WireStep::Failed, failed_text(*offence, detail)),
                };
                WireEvent::Chunk(wire::ChunkEvent {
                    step: step.into(),
                    chunk: chunk.get(),
                    peer: peer.to_string(),
                    reason,
                })
            }
            DownloadEvent::Waiting(reason) => WireEvent::Waiting(wire::DownloadWaiting { reason: reason_text(reason) }),
            DownloadEvent::Working(text) => WireEvent::Waiting(wire::DownloadWaiting { reason: text.clone() }),
            DownloadEvent::Done { path, bytes, elapsed, sources, blamed, figures } => {
                WireEvent::Done(wire::DownloadDone {
                    path: path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
                    bytes: *bytes,
                    elapsed_millis: millis(*elapsed),
                    sources: sources.iter().map(Into::into).collect(),
                    blamed: blamed.iter().map(Into::into).collect(),
                    bound: figures.map(|figures| bound(figures.bound)),
                    limited_by: limited_by(figures.map(|figures| figures.limited.by)),
                    limited_percent: figures.map_or(0, |figures| figures.limited.percent.into()),
                })
            }
            DownloadEvent::Failed { kind, reason, chunks, blamed } => WireEvent::Failed(wire::DownloadFailed {
                kind: wire::download_failed::Kind::from(*kind).into(),
                reason: reason.clone(),
                chunks: Some(chunks.into()),
                blamed: blamed.iter().map(Into::into).collect(),
            }),
        };
        Self { event: Some(event) }
    }
}

impl From<&TransferStatus> for wire::Transfer {
    fn from(running: &TransferStatus) -> Self {
        Self {
            file: Some((&running.file).into()),
            bytes_wanted: running.wanted,
            progress: Some((&running.progress).into()),
            elapsed_millis: millis(running.elapsed),
            priority: priority(running.priority).into(),
        }
    }
}

fn priority(priority: Priority) -> wire::Priority {
    match priority {
        Priority::Low => wire::Priority::Low,
        Priority::Normal => wire::Priority::Normal,
        Priority::High => wire::Priority::High,
    }
}

impl From<HashState> for wire::HashProgress {
    fn from(state: HashState) -> Self {
        let count = |files: u64| u32::try_from(files).unwrap_or(u32::MAX);
        Self {
            files_done: count(state.files_done),
            files_total: count(state.files_total),
            bytes_done: state.bytes_done,
            bytes_total: state.bytes_total,
        }
    }
}

impl From<Snapshot> for wire::StatusResponse {
    fn from(snapshot: Snapshot) -> Self {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let Snapshot { hashing, holdings, uploads, standing, shelf, .. } = snapshot;
        Self {
            peer_id: snapshot.peer.to_string(),
            hanging_files: snapshot.hanging.iter().take(100).map(|path| path.to_string_lossy().into_owned()).collect(),
            labels: snapshot.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            warnings: standing.concerns.texts().cloned().collect(),
            advertise: standing.advertised.map(|address| address.to_string()).unwrap_or_default(),
            tracker: snapshot.tracker.to_string(),
            tracker_connected: standing.lease.is_some(),
            dir: snapshot.dir.to_string_lossy().into_owned(),
            shared_files: count(holdings.shared),
            partial_files: count(holdings.partial),
            // A listing for people; the log has them all.
            refused: holdings.refused.iter().take(100).map(FileName::to_string).collect(),
            missing: shelf.missing.iter().take(100).map(FileName::to_string).collect(),
            missing_files: count(shelf.missing.len()),
            settling_files: count(shelf.settling),
            folder_is_away: shelf.folder_is_away,
            upload_slots: count(uploads.slots),
            uploads_running: count(uploads.taken),
            uploaded_bytes: uploads.sent,
            downloaded_bytes: snapshot.downloaded,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            transfers: snapshot.transfers.iter().map(Into::into).collect(),
            trusted_keys: snapshot.trusted_keys.iter().map(ToString::to_string).collect(),
            untrusted_files: count(snapshot.untrusted.0),
            untrusted: snapshot.untrusted.1.into_iter().map(untrusted).collect(),
            up_limit: snapshot.limits.up.bytes_per_second(),
            down_limit: snapshot.limits.down.bytes_per_second(),
            hashing: (hashing.files_done < hashing.files_total).then(|| hashing.into()),
        }
    }
}

fn untrusted((name, reason): (FileName, String)) -> wire::Untrusted {
    wire::Untrusted { name: name.to_string(), reason }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
