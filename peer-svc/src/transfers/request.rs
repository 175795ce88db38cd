//! What a caller asks for, and why it may not begin.

use std::{path::PathBuf, time::Duration};

use drizzle_engine::priority::Priority;
use drizzle_proto::{
    ChunkRanges, ChunkSet, FileName, Manifest, chunk_set::NoSuchChunk, client::ClientError, trust::Distrust,
};
use tokio::task::JoinError;

use crate::store::{fence::Outside, journal::JournalError};

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The file's name in the swarm.
    pub(crate) name: FileName,
    /// Where it goes, if not below the daemon's folder.
    pub(crate) output: Option<PathBuf>,
    /// The only chunks to fetch, and no file is put in place; `None`: the whole file.
    pub(crate) chunks: Option<ChunkRanges>,
    /// Without a stored chunk for this long, give up.
    pub(crate) timeout: Duration,
    /// How urgent it is.
    pub(crate) priority: Priority,
    /// Whether the caller wants to be told every step of every chunk.
    pub(crate) steps: bool,
    /// What the caller calls itself; empty if it does not.
    pub(crate) caller: String,
}

/// Why a transfer does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The tracker does not know the name, or is away.
    #[error("{}", tracker_text(.name, .source))]
    Tracker {
        /// The file's name.
        name: FileName,
        /// What the tracker said.
        source: ClientError,
    },
    /// No trusted key signed it.
    #[error("{name} is not fetched: {why}")]
    Untrusted {
        /// The file's name.
        name: FileName,
        /// What is wrong with its signature.
        why: Distrust,
    },
    /// A wanted chunk does not exist.
    #[error(transparent)]
    NoSuchChunk(#[from] NoSuchChunk),
    /// Other content is there.
    #[error("{} exists with other content; move it away, or give another path with -o", .0.display())]
    DestinationExists(PathBuf),
    /// Something is there that is no file, and that no file can take the place of.
    #[error("{} is {what}; give the path of a new file with -o", path.display())]
    NotAFile {
        /// The destination.
        path: PathBuf,
        /// What stands there, with its article, such as "a folder".
        what: &'static str,
    },
    /// Whoever asked may not name the destination.
    #[error(transparent)]
    Outside(#[from] Outside),
    /// The output path cannot be used.
    #[error("cannot download to {}: {reason}", path.display())]
    Output {
        /// The path as the caller gave it.
        path: PathBuf,
        /// What is wrong with it, in words.
        reason: String,
    },
    /// A transfer of that name runs already and wants something else.
    #[error("{name} is being downloaded {to} already; wait for its end, or end it with `peer-cli cancel {name}`")]
    Conflict {
        /// The file's name.
        name: FileName,
        /// Where the one that runs puts it, in words.
        to: String,
    },
    /// The state folder cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The daemon stops.
    #[error("the daemon is shutting down")]
    Stopping,
    /// A bug; the log has the panic's text.
    #[error("internal error: looking at the destination panicked")]
    Panicked,
}

fn tracker_text(name: &FileName, error: &ClientError) -> String {
    match error.code() {
        tonic::Code::NotFound => format!("no file {name:?} is registered with the tracker", name = name.as_str()),
        _ if error.is_unreachable() => format!("the tracker cannot be reached: {error}"),
        _ => error.to_string(),
    }
}

/// The chunks that a request is about.
pub(super) fn wanted(manifest: &Manifest, request: &Request) -> Result<ChunkSet, NoSuchChunk> {
    let count = manifest.layout().chunk_count();
    request.chunks.as_ref().map_or_else(|| Ok(ChunkSet::full(count)), |ranges| ChunkSet::from_ranges(count, ranges))
}

pub(super) fn of_task(error: JoinError) -> StartError {
    if error.is_panic() { StartError::Panicked } else { StartError::Stopping }
}
