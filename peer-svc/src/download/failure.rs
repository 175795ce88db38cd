//! Why a download fails, and the one place that says so to a person: what happened, to what, and what to do.

use std::{io, path::PathBuf, time::Duration};

use drizzle_engine::{
    holder_view::Withdrawal,
    schedule::{Offence, Supply},
    waiting::{GivesUp, Reason},
};
use drizzle_proto::{ChunkRanges, ChunkSet, FileName};

use super::events::FailureKind;
use crate::store::{
    assemble::AssembleError,
    journal::JournalError,
    partials::{RecordError, shortage},
    paths::PathError,
    place::PlaceError,
    write::PartialFile,
};

/// Why a download fails.
#[derive(Debug)]
pub(super) enum Failure {
    /// A caller cancelled it.
    Cancelled,
    /// The daemon stops.
    Shutdown,
    /// The name was released, or is something else now.
    Withdrawn(Withdrawal),
    /// No progress for its whole patience.
    GaveUp { why: GivesUp, patience: Duration },
    /// Other content stands at the destination.
    Exists(PathBuf),
    /// There is no room for the whole file; the bytes that must become free, and the folder.
    NoRoom { bytes: u64, folder: PathBuf },
    /// Nothing can be written where the file is to go.
    Unwritable { folder: PathBuf, source: io::Error },
    /// The disk refused to take or to sync a chunk.
    Storage(io::Error),
    /// The state folder cannot be written.
    Journal(JournalError),
    /// A folder of the name cannot be used.
    Path(PathError),
    /// The file could not be put in place.
    Assemble(AssembleError),
    /// A bug; the text of a panic, or of what cannot be.
    Internal(String),
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Sync(error) => Self::Storage(error),
            RecordError::Journal(error) => Self::Journal(error),
        }
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Unwritable { folder, source } => Self::Unwritable { folder, source },
            PlaceError::NoRoom { bytes, folder } => Self::NoRoom { bytes, folder },
            PlaceError::Io { path, source } => Self::Assemble(AssembleError::Io { path, source }),
            PlaceError::Journal(error) => Self::Journal(error),
            PlaceError::Cancelled => Self::Cancelled,
        }
    }
}

impl Failure {
    /// What the disk said about the data of a download that was only to begin.
    pub(super) fn storage(partial: &PartialFile, error: io::Error) -> Self {
        match (error.kind(), partial.path().parent()) {
            (io::ErrorKind::StorageFull, Some(folder)) => {
                Self::NoRoom { bytes: shortage(partial.path(), partial.manifest()), folder: folder.to_owned() }
            }
            _ => Self::Storage(error),
        }
    }

    /// What callers decide by: exit codes hang on it.
    pub(super) fn kind(&self) -> FailureKind {
        match self {
            Self::Cancelled => FailureKind::Cancelled,
            Self::Shutdown => FailureKind::Shutdown,
            Self::Withdrawn(_) => FailureKind::Withdrawn,
            Self::GaveUp { why: GivesUp::Tainted(_), .. } => FailureKind::Integrity,
            Self::GaveUp { why: GivesUp::NoProgress(_), .. } => FailureKind::Timeout,
            Self::Exists(_) => FailureKind::DestinationExists,
            Self::Assemble(AssembleError::Cancelled) => FailureKind::Cancelled,
            Self::NoRoom { .. }
            | Self::Unwritable { .. }
            | Self::Storage(_)
            | Self::Journal(_)
            | Self::Path(_)
            | Self::Assemble(_) => FailureKind::Storage,
            Self::Internal(_) => FailureKind::Internal,
        }
    }

    /// For people. `missing` bytes of the file are still to come, into the folder `partial`.
    pub(super) fn text(&self, name: &FileName, missing: u64, partial: &std::path::Path) -> String {
        match self {
            Self::Cancelled | Self::Assemble(AssembleError::Cancelled) => "cancelled; its chunks are kept".to_owned(),
            Self::Shutdown => "the daemon is shutting down; its chunks are kept".to_owned(),
            Self::Withdrawn(Withdrawal::Released) => format!("{name} was withdrawn by its owner"),
            Self::Withdrawn(Withdrawal::Replaced) => format!("{name} was registered anew with other content"),
            Self::Withdrawn(Withdrawal::Stopped) => {
                format!("an operator stopped {name}; its chunks are kept, ask again once it is resumed")
            }
            Self::Withdrawn(Withdrawal::Denied) => {
                format!("this peer may not read {name} any more; its chunks are kept")
            }
            Self::GaveUp { why, patience } => gave_up(why, name, *patience),
            Self::Exists(path) => {
                format!("{} appeared in the meantime with other content; the chunks are kept", path.display())
            }
            Self::NoRoom { bytes, folder } => disk_full(*bytes, folder, ""),
            Self::Unwritable { folder, source } => format!(
                "cannot write into {}: {source}; nothing was fetched: let the daemon write there, or give another place with -o",
                folder.display()
            ),
            Self::Storage(error) if error.kind() == io::ErrorKind::StorageFull => {
                disk_full(missing, partial, "; the verified chunks are kept")
            }
            Self::Journal(error) if error.is_disk_full() => {
                disk_full(missing, partial, "; the verified chunks are kept")
            }
            Self::Assemble(AssembleError::Io { path, source }) if source.kind() == io::ErrorKind::StorageFull => {
                disk_full(missing, path.parent().unwrap_or(path), "; the verified chunks are kept")
            }
            Self::Storage(error) => format!(
                "cannot write below {}: {error}; mend that and run the command again: the verified chunks are kept",
                partial.display()
            ),
            Self::Journal(error) => error.to_string(),
            Self::Path(error @ PathError::InTheWay(_)) => {
                format!("{error}; move it away, or give another place with -o: the chunks are kept")
            }
            Self::Path(error) => format!("{error}; mend that and run the command again: the chunks are kept"),
            Self::Assemble(error) => format!("{error}; mend that and run the command again: the chunks are kept"),
            Self::Internal(text) => format!("internal error: {text}; its chunks are kept. Please report this"),
        }
    }
}

fn disk_full(bytes: u64, folder: &std::path::Path, kept: &str) -> String {
    let needed = match bytes {
        0 => "some space".to_owned(),
        bytes => size_text(bytes),
    };
    format!("the disk is full: free {needed} in {} and run the command again{kept}", folder.display())
}

/// Rounded up: what is told must be enough.
pub(super) fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = (u128::from(bytes) * 10).div_ceil(unit.into());
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

fn gave_up(why: &GivesUp, name: &FileName, patience: Duration) -> String {
    let seconds = patience.as_secs_f32();
    match why {
        GivesUp::Tainted(chunks) => format!(
            "the bytes offered for {} of {name} are not those first registered with the tracker, and no honest holder appeared within {seconds} s",
            named(chunks)
        ),
        GivesUp::NoProgress(reason) => {
            format!("no chunk of {name} came for {seconds} s: {}", reason_text(reason))
        }
    }
}

/// Why a download waits, for a person.
pub(crate) fn reason_text(reason: &Reason) -> String {
    let Supply { unheld, avoided, gone } = match reason {
        Reason::NotLocated => return "the tracker has not said which peers hold it".to_owned(),
        Reason::Busy => return "every holder is busy".to_owned(),
        Reason::NoMemory => return "other downloads of this peer use all memory for chunks".to_owned(),
        Reason::Short(text) => return text.clone(),
        Reason::Silence => return "its holders were asked and sent nothing".to_owned(),
        Reason::NoSupply(supply) => supply,
    };
    let no_peer = (!unheld.is_empty()).then(|| format!("no peer holds {}", named(unheld)));
    let no_longer = gone
        .then(|| "the file is no longer there at a peer that held it: it was deleted, or its disk is away".to_owned());
    let left_alone = (!avoided.is_empty())
        .then(|| format!("every holder of {} has misbehaved and is left alone for a while", named(avoided)));
    let reasons: Vec<String> = [no_peer, no_longer, left_alone].into_iter().flatten().collect();
    reasons.join("; ")
}

/// An offence in words.
fn offence_text(offence: Offence) -> &'static str {
    match offence {
        Offence::WrongBytes => "wrong bytes",
        Offence::Changed => "changed file",
        Offence::Stalled => "stalled",
        Offence::BrokeOff => "broke off",
        Offence::Refused => "refused",
        Offence::NotHeld => "does not hold it",
        Offence::Gone => "its file is no longer there",
        Offence::Unreachable => "unreachable",
        Offence::OtherPeer => "another peer answers there",
        Offence::OwnAddress => "that is this peer's own address",
    }
}

/// Why a chunk did not come, in words.
pub(crate) fn failed_text(offence: Offence, detail: &str) -> String {
    format!("{}: {detail}", offence_text(offence))
}

/// `chunk 3` or `chunks 0-2,5`, cut when long.
pub(crate) fn named(chunks: &ChunkSet) -> String {
    const RANGES: usize = 12;
    let ranges = chunks.ranges();
    let shown = ChunkRanges::new(ranges.iter().take(RANGES)).unwrap_or_default();
    let noun = if chunks.len() == 1 { "chunk" } else { "chunks" };
    match ranges.iter().skip(RANGES).len() {
        0 => format!("{noun} {shown}"),
        1 => format!("{noun} {shown} and 1 more range"),
        more => format!("{noun} {shown} and {more} more ranges"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use drizzle_proto::ChunkCount;

    use super::*;

    fn text(failure: &Failure) -> String {
        failure.text(&FileName::new("a").unwrap(), 7, Path::new("/state"))
    }

    #[test]
    fn a_full_disk_says_how_much_is_needed_where_and_what_to_do() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let kept = "; the verified chunks are kept";
        for (failure, expected) in [
            (Failure::NoRoom { bytes: 9, folder: "/d".into() }, "free 9 bytes in /d".to_owned()),
            (Failure::NoRoom { bytes: (3 << 30) + 1, folder: "/d".into() }, "free 3.1 GiB in /d".to_owned()),
            (Failure::NoRoom { bytes: 5 << 20, folder: "/d".into() }, "free 5.0 MiB in /d".to_owned()),
            (Failure::Storage(full()), format!("free 7 bytes in /state and run the command again{kept}")),
            (
                Failure::Journal(JournalError::Io { path: "/j".into(), source: full().into() }),
                format!("free 7 bytes in /state and run the command again{kept}"),
            ),
            (
                Failure::Assemble(AssembleError::Io { path: "/out/a".into(), source: full() }),
                format!("free 7 bytes in /out and run the command again{kept}"),
            ),
        ] {
            let text = text(&failure);
            assert!(text.starts_with("the disk is full: ") && text.contains(&expected), "{text}");
            assert_eq!(failure.kind(), FailureKind::Storage);
        }
    }

    #[test]
    fn a_panic_is_an_internal_error_and_no_fault_of_the_disk() {
        let failure = Failure::Internal("task 7 panicked".to_owned());
        assert_eq!(failure.kind(), FailureKind::Internal);
        assert!(text(&failure).starts_with("internal error: task 7 panicked"));
    }

    #[test]
    fn reasons_name_the_chunks() {
        let count = ChunkCount::new(9).unwrap();
        let set = |ranges: &str| ChunkSet::from_ranges(count, &ranges.parse().unwrap()).unwrap();
        let none = ChunkSet::empty(count);
        let reason = |unheld: &ChunkSet, avoided: &ChunkSet| {
            reason_text(&Reason::NoSupply(Supply { unheld: unheld.clone(), avoided: avoided.clone(), gone: false }))
        };
        assert_eq!(reason(&set("0-2,5"), &none), "no peer holds chunks 0-2,5");
        assert_eq!(reason(&set("3"), &none), "no peer holds chunk 3");
        assert!(reason(&none, &set("7")).starts_with("every holder of chunk 7 has misbehaved"));
        assert!(reason(&none, &set("7-8")).starts_with("every holder of chunks 7-8 has misbehaved"));
        assert!(reason(&set("1"), &set("2")).contains("; every holder of chunk 2 has"));
        let gone = |unheld: &ChunkSet, avoided: &ChunkSet| {
            reason_text(&Reason::NoSupply(Supply { unheld: unheld.clone(), avoided: avoided.clone(), gone: true }))
        };
        assert!(gone(&set("0-2"), &none).starts_with("no peer holds chunks 0-2; the file is no longer there at"));
        assert!(gone(&none, &set("0")).starts_with("the file is no longer there at"));
        let tainted = gave_up(&GivesUp::Tainted(set("4")), &FileName::new("a").unwrap(), Duration::from_secs(1));
        assert!(tainted.starts_with("the bytes offered for chunk 4 of a are not"), "{tainted}");
    }

    #[test]
    fn long_lists_of_chunks_are_cut_and_the_rest_is_counted() {
        let count = ChunkCount::new(100).unwrap();
        let every_third = |ranges: u32| {
            let ranges = ChunkRanges::new((0..ranges).map(|n| (3 * n, 3 * n + 1))).unwrap();
            named(&ChunkSet::from_ranges(count, &ranges).unwrap())
        };
        assert!(every_third(12).ends_with(",33-34"), "{}", every_third(12));
        assert!(every_third(13).ends_with(",33-34 and 1 more range"), "{}", every_third(13));
        assert!(every_third(14).ends_with(",33-34 and 2 more ranges"), "{}", every_third(14));
    }
}
