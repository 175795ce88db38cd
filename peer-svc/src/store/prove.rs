//! Which chunks a local file really has, decided by their hashes alone.

use std::{convert::Infallible, fs::File};

use drizzle_proto::{ChunkIndex, ChunkSet, Manifest};
use tokio_util::sync::CancellationToken;

use super::{
    extents::Extents,
    hash::{hash_chunks, hash_pair},
    turns::Job,
};

/// Which of the given chunks a file has, decided by their hashes, in turns with other files. Cancelled, it tells of fewer.
pub(crate) fn prove(file: &File, manifest: &Manifest, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
    let layout = manifest.layout();
    let extents = Extents::of(file, layout.size());
    let chunks: Vec<ChunkIndex> = candidates.iter().collect();
    let proven = hash_chunks(&Job::begin(), layout, &chunks, |pair| {
        if cancel.is_cancelled() {
            return Ok(vec![false; pair.len()]);
        }
        // One that cannot be read takes nothing from the other.
        let alone = || pair.iter().map(|chunk| Some(hash_pair(file, &extents, layout, &[*chunk]).ok()?[0]));
        let both = hash_pair(file, &extents, layout, pair);
        let hashes = both.map_or_else(|_| alone().collect(), |hashes| hashes.into_iter().map(Some).collect::<Vec<_>>());
        Ok::<_, Infallible>(pair.iter().zip(hashes).map(|(chunk, hash)| hash == Some(manifest.hash(*chunk))).collect())
    });
    let Ok(proven) = proven;
    let mut set = ChunkSet::empty(candidates.count());
    for (chunk, _) in chunks.iter().zip(proven).filter(|(_, is_proven)| *is_proven) {
        set.insert(*chunk);
    }
    set
}
