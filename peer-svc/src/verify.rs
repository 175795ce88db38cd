//! Untrusted bytes in, proof out: the only maker of a [`VerifiedChunk`].
//!
//! Slices are hashed as they arrive, while they are in the cache, and kept as they are: nothing is
//! copied together. No I/O here.

use bytes::Bytes;
use drizzle_proto::{ChunkIndex, Digest, FileId, Manifest, PeerId};
use sha2::{Digest as _, Sha256};

/// The bytes of a chunk are not those of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    /// More bytes than the chunk has.
    #[error("more than {0} bytes")]
    TooLong(u32),
    /// Fewer bytes than the chunk has.
    #[error("{got} of {expected} bytes")]
    TooShort {
        /// Bytes that came.
        got: u64,
        /// Bytes of the chunk.
        expected: u32,
    },
    /// So many small messages that keeping them apart would take more memory than the chunk.
    #[error("sent in too many small messages")]
    Fragmented,
    /// The right number of bytes with another hash.
    #[error("the hash differs from the registered one")]
    Hash,
    /// The same of bytes that several holders gave: any of them may be to blame.
    #[error("what several holders gave differs from what was registered")]
    MixedHash,
}

/// Slices are this long on average, in bytes, or the sender is refused; some may be shorter.
const LEAST_SLICE: usize = 4 << 10;
const SPARE_SLICES: usize = 64;

/// Takes the bytes of one chunk in order, perhaps from one holder after the other.
#[derive(Debug, Clone)]
pub(crate) struct Verifier {
    file: FileId,
    chunk: ChunkIndex,
    expected: Digest,
    len: u32,
    got: u64,
    sha: Sha256,
    slices: Vec<Bytes>,
    /// The peer that is asked now.
    from: Option<PeerId>,
    /// Which peers gave bytes, each once.
    givers: Vec<PeerId>,
}

/// A chunk whose bytes match the manifest. Only this can be written.
#[derive(Debug)]
pub(crate) struct VerifiedChunk {
    file: FileId,
    chunk: ChunkIndex,
    slices: Vec<Bytes>,
}

impl Verifier {
    /// For one chunk of a manifest.
    pub(crate) fn new(manifest: &Manifest, chunk: ChunkIndex) -> Self {
        Self {
            file: manifest.id(),
            chunk,
            expected: manifest.hash(chunk),
            len: manifest.layout().chunk_len(chunk),
            got: 0,
            sha: Sha256::new(),
            slices: Vec::new(),
            from: None,
            givers: Vec::new(),
        }
    }

    /// The bytes from now on come from this holder.
    pub(crate) fn comes_from(&mut self, giver: PeerId) {
        self.from = Some(giver);
    }

    /// Whether another holder than the present one gave bytes: a wrong hash is then no proof against this one.
    pub(crate) fn is_mixed(&self) -> bool {
        self.givers.iter().any(|giver| self.from != Some(*giver))
    }

    /// Bytes that came so far.
    pub(crate) fn got(&self) -> u32 {
        // More than the chunk has is refused.
        u32::try_from(self.got).unwrap_or(self.len)
    }

    /// The next bytes. Refuses more than the chunk has, so that no sender can fill the memory.
    pub(crate) fn push(&mut self, slice: Bytes) -> Result<(), Mismatch> {
        if self.got + slice.len() as u64 > u64::from(self.len) {
            return Err(Mismatch::TooLong(self.len));
        }
        if self.slices.len() > SPARE_SLICES + self.len as usize / LEAST_SLICE {
            return Err(Mismatch::Fragmented);
        }
        // One that was asked and gave nothing is not to blame.
        if let Some(from) = self.from.filter(|from| !slice.is_empty() && !self.givers.contains(from)) {
            self.givers.push(from);
        }
        self.got += slice.len() as u64;
        self.sha.update(&slice);
        self.slices.push(slice);
        Ok(())
    }

    /// Whether every byte has come.
    pub(crate) fn is_full(&self) -> bool {
        self.got == u64::from(self.len)
    }

    /// The proof, if the hash matches.
    pub(crate) fn finish(self) -> Result<VerifiedChunk, Mismatch> {
        if self.got < u64::from(self.len) {
            return Err(Mismatch::TooShort { got: self.got, expected: self.len });
        }
        let is_mixed = self.is_mixed();
        if Digest::from_bytes(self.sha.finalize().into()) != self.expected {
            return Err(if is_mixed { Mismatch::MixedHash } else { Mismatch::Hash });
        }
        Ok(VerifiedChunk { file: self.file, chunk: self.chunk, slices: self.slices })
    }
}

impl VerifiedChunk {
    /// The content that it belongs to.
    pub(crate) fn file(&self) -> FileId {
        self.file
    }

    /// Which chunk it is.
    pub(crate) fn chunk(&self) -> ChunkIndex {
        self.chunk
    }

    /// Its bytes, in order.
    pub(crate) fn slices(&self) -> &[Bytes] {
        &self.slices
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::Layout;

    use super::*;

    fn verify(content: &[u8], pushed: &[&[u8]]) -> Result<Vec<Bytes>, Mismatch> {
        let layout = Layout::new(content.len() as u64, 1 << 14).unwrap();
        let manifest = Manifest::new(layout, vec![Digest::of(content)]).unwrap();
        let mut verifier = Verifier::new(&manifest, layout.chunk_count().index(0).unwrap());
        for slice in pushed {
            verifier.push(Bytes::copy_from_slice(slice))?;
        }
        verifier.finish().map(|chunk| chunk.slices().to_vec())
    }

    #[test]
    fn only_the_right_bytes_pass() {
        assert_eq!(verify(b"abcd", &[b"a", b"", b"bcd"]).unwrap().concat(), b"abcd");
        assert_eq!(verify(b"abcd", &[b"abce"]), Err(Mismatch::Hash));
        assert_eq!(verify(b"abcd", &[b"abc"]), Err(Mismatch::TooShort { got: 3, expected: 4 }));
        assert_eq!(verify(b"abcd", &[]), Err(Mismatch::TooShort { got: 0, expected: 4 }));
        assert_eq!(verify(b"abcd", &[b"abcd", b"e"]), Err(Mismatch::TooLong(4)));
        assert_eq!(verify(b"abcd", &[b"".as_slice(); 100]), Err(Mismatch::Fragmented));
    }
}
