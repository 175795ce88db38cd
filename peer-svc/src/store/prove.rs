//! Which chunks a local file really has, decided by their hashes alone.

use std::{convert::Infallible, fs::File};

use drizzle_proto::{ChunkIndex, ChunkSet, Digest, Manifest};
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
        let is_proven = |(chunk, hash): (&ChunkIndex, Digest)| hash == manifest.hash(*chunk);
        let hash = |chunks: &[ChunkIndex]| hash_pair(file, &extents, layout, chunks);
        let proven = match hash(pair) {
            Ok(hashes) => pair.iter().zip(hashes).map(is_proven).collect(),
            // One that cannot be read takes nothing from the other.
            Err(_) => {
                let alone = |chunk: &ChunkIndex| hash(&[*chunk]).is_ok_and(|hash| is_proven((chunk, hash[0])));
                pair.iter().map(alone).collect()
            }
        };
        Ok::<Vec<bool>, Infallible>(proven)
    });
    let Ok(proven) = proven;
    let mut set = ChunkSet::empty(candidates.count());
    for (chunk, _) in chunks.iter().zip(proven).filter(|(_, is_proven)| *is_proven) {
        set.insert(*chunk);
    }
    set
}
