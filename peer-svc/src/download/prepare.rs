//! Before the first fetch: the partial file, and every chunk that is here already.
//!
//! Chunks come from three places without asking anybody: the record of an earlier run, data that the
//! record had not caught up with (proved by hash), and other files here with the same content. Blocks.

use std::{fs::File, io, path::Path, sync::Arc};

use drizzle_proto::{ChunkSet, Manifest};

use super::{Context, Job};
use crate::{
    holdings::{Source, open_unchanged},
    state::StateError,
    write::{PartialFile, prove, read_verified},
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

pub(super) fn prepare(context: &Context, job: &Job) -> Result<Prepared, PrepareError> {
    let (state, name, manifest) = (&context.state, &job.name, &job.manifest);
    let path = state.partial_path(name);
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull => {
            PrepareError::DiskFull { name: name.to_string(), bytes: manifest.layout().size() }
        }
        _ => PrepareError::Io { path: path.clone(), source },
    };
    let record = state.partials()?.into_iter().find(|record| record.name == *name);
    let mut fresh = false;
    let mut stored = match record {
        Some(record) if record.manifest.id() == manifest.id() && path.exists() => record.chunks,
        // Nothing yet, or the leavings of other content under this name: begin anew.
        _ => {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
                _ => {}
            }
            state.begin_partial(name, manifest)?;
            fresh = true;
            ChunkSet::empty(manifest.layout().chunk_count())
        }
    };
    let held = context.holdings.get(name);
    if let Some(view) =
        held.as_ref().filter(|view| view.manifest.id() == manifest.id() && matches!(view.source, Source::Partial(_)))
    {
        stored.union_with(&view.chunks);
    }
    let partial = match PartialFile::open(&path, manifest.clone(), job.destination.is_some()) {
        Ok(partial) => Arc::new(partial),
        Err(error) => {
            // Nothing was stored, so nothing is to be left.
            if stored.is_empty() {
                let _ = std::fs::remove_file(&path);
                state.forget_partial(name)?;
            }
            return Err(fail(error));
        }
    };
    if !fresh {
        let all = ChunkSet::full(manifest.layout().chunk_count());
        stored.union_with(&partial.prove(&all.difference(&stored)));
    }
    copy_local(context, job, &partial, &mut stored).map_err(fail)?;
    let offered = held.is_none_or(|view| matches!(view.source, Source::Partial(_)));
    if offered {
        context.holdings.insert_partial(name.clone(), partial.clone(), stored.clone());
    }
    Ok(Prepared { partial, stored, offered })
}

/// Takes wanted chunks from other files here that have the same content, as verified as any.
fn copy_local(context: &Context, job: &Job, partial: &PartialFile, stored: &mut ChunkSet) -> io::Result<()> {
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
    Same(crate::state::Stamp),
    /// Something else.
    Other,
}

/// Compares what stands at a path with a manifest, by hash.
pub fn inspect(path: &Path, manifest: &Manifest) -> io::Result<Existing> {
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
    let stamp = crate::state::Stamp::of(&file.metadata()?);
    let same = prove(&file, manifest, &ChunkSet::full(manifest.layout().chunk_count())).is_full();
    Ok(if same { Existing::Same(stamp) } else { Existing::Other })
}
