//! Before the first fetch: the partial file, and every chunk that is here already.
//!
//! Chunks come from two places without asking anybody: the data of an earlier run, and other files here with
//! the same content. Both are proved by their hashes; the record of an earlier run is enough to offer a chunk,
//! whose receiver checks it, but not to put a file in place. Blocks.

use std::{fs::File, io, path::Path, sync::Arc};

use drizzle_proto::{ChunkSet, Manifest};
use tokio_util::sync::CancellationToken;

use super::{Context, Job};
use crate::{
    holdings::Source,
    store::{
        prove::prove,
        read::{open_unchanged, read_verified},
        record::StateError,
        write::PartialFile,
    },
};

/// Ready to fetch.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) partial: Arc<PartialFile>,
    /// All stored chunks, wanted or not.
    pub(super) stored: ChunkSet,
    /// Whether the partial is what this peer offers under the name.
    pub(super) offered: bool,
}

/// Why a download cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the disk is full: {name} needs {bytes} bytes; make room and download again")]
    DiskFull { name: String, bytes: u64 },
    #[error("cannot write below {}: {source}", path.display())]
    Io { path: std::path::PathBuf, source: io::Error },
}

pub(super) fn prepare(context: &Context, job: &Job, cancel: &CancellationToken) -> Result<Prepared, PrepareError> {
    let (state, name, manifest) = (&context.state, &job.name, &job.manifest);
    let path = state.partial_path(name);
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull => {
            PrepareError::DiskFull { name: name.to_string(), bytes: manifest.layout().size() }
        }
        _ => PrepareError::Io { path: path.clone(), source },
    };
    let known = state.partial(name)?.is_some_and(|manifest_id| manifest_id == manifest.id()) && path.exists();
    if !known {
        // Nothing yet, or the leavings of other content under this name: begin anew.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        state.begin_partial(name, manifest)?;
    }
    let partial = match PartialFile::open(&path, manifest.clone(), job.destination.is_some()) {
        Ok(partial) => Arc::new(partial),
        Err(error) => {
            // Nothing was stored, so nothing is to be left.
            if !known {
                let _ = std::fs::remove_file(&path);
                state.forget_partial(name)?;
            }
            return Err(fail(error));
        }
    };
    let all = ChunkSet::full(manifest.layout().chunk_count());
    // Whatever a record says: what ends up under the file's name was proved by its hash in this run.
    let mut stored = if known { partial.prove(&all, cancel) } else { ChunkSet::empty(all.count()) };
    copy_local(context, job, &partial, &mut stored, cancel).map_err(fail)?;
    let held = context.holdings.get(name);
    let offered = held.is_none_or(|view| matches!(view.source, Source::Partial(_)));
    if offered {
        context.holdings.insert_partial(name.clone(), partial.clone(), stored.clone());
    }
    Ok(Prepared { partial, stored, offered })
}

/// Takes wanted chunks from other files here that have the same content, as verified as any.
fn copy_local(
    context: &Context,
    job: &Job,
    partial: &PartialFile,
    stored: &mut ChunkSet,
    cancel: &CancellationToken,
) -> io::Result<()> {
    for view in context.holdings.with_content(job.manifest.id()) {
        let file: Arc<File> = match view.source {
            Source::Shared { path, stamp } => match open_unchanged(&path, stamp) {
                Ok(Some(file)) => Arc::new(file),
                Ok(None) | Err(_) => continue,
            },
            Source::Partial(other) if other.path() == partial.path() => continue,
            Source::Partial(other) => other.file(),
        };
        let missing = job.wanted.difference(stored);
        for chunk in missing.iter().filter(|&chunk| view.chunks.contains(chunk)) {
            if cancel.is_cancelled() {
                return Ok(());
            }
            if let Ok(Some(verified)) = read_verified(&file, &job.manifest, chunk) {
                partial.write(&verified)?;
                stored.insert(chunk);
            }
        }
    }
    Ok(())
}

/// What stands at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Nothing.
    Nothing,
    /// A file with the very content that is wanted, and its stamp.
    Same(crate::store::stamp::Stamp),
    /// Something else.
    Other,
}

/// Compares what stands at a path with a manifest, by hash. Interrupted, it takes the file for another.
pub fn inspect(path: &Path, manifest: &Manifest, cancel: &CancellationToken) -> io::Result<Existing> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Existing::Nothing);
        }
        metadata => metadata?,
    };
    if !metadata.is_file() || metadata.len() != manifest.layout().size() {
        return Ok(Existing::Other);
    }
    let file = File::open(path)?;
    let stamp = crate::store::stamp::Stamp::of(&file.metadata()?);
    let same = prove(&file, manifest, &ChunkSet::full(manifest.layout().chunk_count()), cancel).is_full();
    Ok(if same { Existing::Same(stamp) } else { Existing::Other })
}
