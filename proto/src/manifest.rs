//! Manifests: the sizes and chunk hashes that decide what a file is.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::{ChunkIndex, Digest, FileId, FileName, Layout};

/// First bytes of the canonical form. Another form of manifest gets another tag and so other ids.
const TAG: &[u8; 8] = b"drizzle1";

/// A file's layout and the hash of each of its chunks. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    layout: Layout,
    hashes: Arc<[Digest]>,
    id: FileId,
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not one hash per chunk.
    #[error("{chunks} chunks, but {hashes} hashes")]
    HashCount {
        /// Chunks of the layout.
        chunks: u32,
        /// Hashes that came with it.
        hashes: usize,
    },
    /// Stored bytes are no canonical form.
    #[error("the stored manifest is damaged")]
    Damaged,
}

impl Manifest {
    /// One hash for each chunk of the layout.
    pub fn new(layout: Layout, hashes: Vec<Digest>) -> Result<Self, ManifestError> {
        let chunks = layout.chunk_count().get();
        if hashes.len() != chunks as usize {
            return Err(ManifestError::HashCount { chunks, hashes: hashes.len() });
        }
        let mut sha = Sha256::new();
        sha.update(Self::head(layout));
        for hash in &hashes {
            sha.update(hash.as_bytes());
        }
        let id = FileId::from_digest(Digest::from_bytes(sha.finalize().into()));
        Ok(Self { layout, hashes: hashes.into(), id })
    }

    /// Size and chunk size.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The hash of every chunk, in order.
    pub fn hashes(&self) -> &[Digest] {
        &self.hashes
    }

    /// What a chunk's bytes must hash to.
    pub fn hash(&self, chunk: ChunkIndex) -> Digest {
        self.hashes[chunk.as_usize()]
    }

    /// SHA-256 of [`Manifest::encode`]: equal ids mean equal content in equal chunks.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The description of this content under a name.
    pub fn describe(&self, name: FileName) -> FileInfo {
        FileInfo { name, id: self.id, layout: self.layout }
    }

    /// The canonical form: the tag `drizzle1`, the size (u64, big-endian), the chunk size (u32,
    /// big-endian), then 32 bytes per chunk.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(20 + 32 * self.hashes.len());
        bytes.extend_from_slice(&Self::head(self.layout));
        for hash in self.hashes.iter() {
            bytes.extend_from_slice(hash.as_bytes());
        }
        bytes
    }

    /// Reads the canonical form.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let bytes = bytes.strip_prefix(TAG).ok_or(ManifestError::Damaged)?;
        let (size, bytes) = bytes.split_first_chunk().ok_or(ManifestError::Damaged)?;
        let (chunk_size, bytes) = bytes.split_first_chunk().ok_or(ManifestError::Damaged)?;
        let layout = Layout::new(u64::from_be_bytes(*size), u32::from_be_bytes(*chunk_size))
            .map_err(|_| ManifestError::Damaged)?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(ManifestError::Damaged);
        }
        Self::new(layout, hashes.iter().map(|hash| Digest::from_bytes(*hash)).collect())
    }

    fn head(layout: Layout) -> [u8; 20] {
        let mut head = [0; 20];
        head[..8].copy_from_slice(TAG);
        head[8..16].copy_from_slice(&layout.size().to_be_bytes());
        head[16..].copy_from_slice(&layout.chunk_size().to_be_bytes());
        head
    }
}

/// What a file is, without its hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// What it is called.
    pub name: FileName,
    /// Which content that is.
    pub id: FileId,
    /// How large it is, in which chunks.
    pub layout: Layout,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(size: u64, seed: u8) -> Manifest {
        let layout = Layout::new(size, 1 << 14).unwrap();
        Manifest::new(layout, layout.chunk_count().indices().map(|_| Digest::of(&[seed])).collect()).unwrap()
    }

    #[test]
    fn the_id_covers_every_field() {
        let one = manifest(40_000, 1);
        assert_eq!(one.id(), manifest(40_000, 1).id());
        assert_ne!(one.id(), manifest(40_001, 1).id(), "size");
        assert_ne!(one.id(), manifest(40_000, 2).id(), "hashes");
        let other = Layout::new(40_000, 1 << 15).unwrap();
        assert_ne!(one.id(), Manifest::new(other, one.hashes()[..2].to_vec()).unwrap().id(), "chunk size");
        assert_eq!(one.id().as_bytes(), Digest::of(&one.encode()).as_bytes());
    }

    #[test]
    fn stored_manifests_come_back_or_are_refused() {
        let one = manifest(40_000, 1);
        let bytes = one.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(one));
        for cut in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn hashes_must_match_the_layout() {
        let layout = Layout::new(40_000, 1 << 14).unwrap();
        assert_eq!(Manifest::new(layout, vec![]), Err(ManifestError::HashCount { chunks: 3, hashes: 0 }));
    }
}
