//! Which chunks a local file really has, decided by their hashes alone.

use std::fs::File;

use drizzle_proto::{ChunkIndex, ChunkSet, Manifest};
use rayon::prelude::*;
use tokio_util::sync::CancellationToken;

use super::{extents::Extents, hash::hash_chunk};

/// Which of the given chunks a file has, decided by their hashes, on all cores. Cancelled, it tells of fewer.
pub(crate) fn prove(file: &File, manifest: &Manifest, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
    let layout = manifest.layout();
    let extents = Extents::of(file, layout.size());
    let chunks: Vec<ChunkIndex> = candidates.iter().collect();
    let is_proven = |chunk: &ChunkIndex| {
        let hash = || hash_chunk(file, &extents, layout, *chunk).ok();
        !cancel.is_cancelled() && hash() == Some(manifest.hash(*chunk))
    };
    let mut set = ChunkSet::empty(candidates.count());
    for chunk in chunks.into_par_iter().filter(is_proven).collect::<Vec<_>>() {
        set.insert(chunk);
    }
    set
}
