//! Which chunks a local file really has, decided by their hashes alone.

use std::{convert::Infallible, fs::File};

use drizzle_proto::{ChunkIndex, ChunkSet, Manifest};
use tokio_util::sync::CancellationToken;

use super::{extents::Extents, hash::hash_chunk, turns::Job};

/// Which of the given chunks a file has, decided by their hashes, in turns with other files. Cancelled, it tells of fewer.
pub(crate) fn prove(file: &File, manifest: &Manifest, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
    let layout = manifest.layout();
    let extents = Extents::of(file, layout.size());
    let chunks: Vec<ChunkIndex> = candidates.iter().collect();
    let is_proven = |at: usize| {
        let hash = || hash_chunk(file, &extents, layout, chunks[at]).ok();
        Ok::<_, Infallible>(!cancel.is_cancelled() && hash() == Some(manifest.hash(chunks[at])))
    };
    let Ok(proven) = Job::begin().each(chunks.len(), layout.chunk_size().into(), is_proven);
    let mut set = ChunkSet::empty(candidates.count());
    for (chunk, _) in chunks.iter().zip(proven).filter(|(_, is_proven)| *is_proven) {
        set.insert(*chunk);
    }
    set
}
