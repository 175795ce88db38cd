//! Untrusted bytes in, proof out: the only maker of a [`VerifiedChunk`].
//!
//! Bytes are put at once where they stay, at the place of their chunk, if that was claimed, or into a buffer, and are hashed
//! as they arrive, while they are in the cache. What is proved is what was put: the bytes that wait to be hashed are the
//! very ones, and nobody can change them.

use bytes::Bytes;
use drizzle_proto::{ChunkIndex, Digest, FileId, Manifest, PeerId};

use crate::{
    hasher::Hasher,
    store::data::{Claim, PutError},
};

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
        got: u32,
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

/// Messages have this many bytes on average, or the sender is refused; some may have fewer. Each costs time and an event.
const LEAST_MESSAGE: usize = 4 << 10;
const SPARE_MESSAGES: usize = 64;

/// Why bytes are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushError {
    /// They cannot be those of the chunk.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// They did not get to their place.
    #[error(transparent)]
    Put(#[from] PutError),
}

/// Where the bytes of a chunk are put.
#[derive(Debug)]
pub(crate) enum Place {
    /// At their place in the file.
    File(Claim),
    /// Into memory, because another fetch has claimed the place, or because they come from a file here.
    Memory(Vec<u8>),
}

/// Takes the bytes of one chunk in order, perhaps from one holder after the other.
#[derive(Debug)]
pub(crate) struct Verifier {
    file: FileId,
    chunk: ChunkIndex,
    expected: Digest,
    len: u32,
    got: u32,
    messages: usize,
    hasher: Hasher,
    place: Place,
    /// The peer that is asked now.
    from: Option<PeerId>,
    /// Which peers gave bytes, each once.
    givers: Vec<PeerId>,
}

/// A chunk whose bytes match the manifest. Only this can be stored.
#[derive(Debug)]
pub(crate) struct VerifiedChunk {
    file: FileId,
    chunk: ChunkIndex,
    place: Place,
}

impl Verifier {
    /// For one chunk of a manifest, which is gathered in memory.
    pub(crate) fn new(manifest: &Manifest, chunk: ChunkIndex) -> Self {
        Self::at(manifest, chunk, Place::Memory(Vec::new()))
    }

    /// For the chunk that is claimed.
    pub(crate) fn claimed(claim: Claim) -> Self {
        let (manifest, chunk) = (claim.manifest().clone(), claim.chunk());
        Self::at(&manifest, chunk, Place::File(claim))
    }

    fn at(manifest: &Manifest, chunk: ChunkIndex, place: Place) -> Self {
        Self {
            file: manifest.id(),
            chunk,
            expected: manifest.hash(chunk),
            len: manifest.layout().chunk_len(chunk),
            got: 0,
            messages: 0,
            hasher: Hasher::default(),
            place,
            from: None,
            givers: Vec::new(),
        }
    }

    /// As far as this one is, but in memory.
    pub(crate) fn copy(&self) -> Result<Self, PutError> {
        let bytes = match &self.place {
            Place::File(claim) => claim.read_back()?,
            Place::Memory(bytes) => bytes.clone(),
        };
        // Of these very bytes, whatever the disk gave back.
        let (hasher, givers) = (Hasher::of(&bytes), self.givers.clone());
        Ok(Self { hasher, givers, place: Place::Memory(bytes), ..*self })
    }

    /// The bytes from now on come from this holder.
    pub(crate) fn comes_from(&mut self, giver: PeerId) {
        self.from = Some(giver);
        // How another one cut its bytes is not its fault.
        self.messages = 0;
    }

    /// Whether another holder than the present one gave bytes: a wrong hash is then no proof against this one.
    pub(crate) fn is_mixed(&self) -> bool {
        self.givers.iter().any(|giver| self.from != Some(*giver))
    }

    /// Bytes that came so far.
    pub(crate) fn got(&self) -> u32 {
        self.got
    }

    /// Bytes of the whole chunk.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Whether its bytes are gathered in memory.
    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// Whether it can go on: its place was not taken away.
    pub(crate) fn stands(&self) -> bool {
        match &self.place {
            Place::File(claim) => claim.stands(),
            Place::Memory(_) => true,
        }
    }

    /// A message of the holder begins. Refuses so many of them that each brings next to nothing.
    pub(crate) fn message_begins(&mut self) -> Result<(), Mismatch> {
        self.messages += 1;
        if self.messages > SPARE_MESSAGES + self.len as usize / LEAST_MESSAGE {
            return Err(Mismatch::Fragmented);
        }
        Ok(())
    }

    /// The next bytes, which may be hashed when another chunk has some: see [`Hasher`]. Refuses more than the chunk has,
    /// so that no sender can fill the memory. Blocks on disk I/O if its place is claimed.
    pub(crate) fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        self.put(&bytes)?;
        self.hasher.take(bytes);
        Ok(())
    }

    /// As [`Verifier::push`], but hashed now.
    pub(crate) fn push_now(&mut self, bytes: &[u8]) -> Result<(), PushError> {
        self.put(bytes)?;
        self.hasher.take_now(bytes);
        Ok(())
    }

    /// Whether [`Verifier::finish`] is cheaper once other chunks got bytes.
    pub(crate) fn waits(&self) -> bool {
        self.hasher.waits()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), PushError> {
        let got = u32::try_from(bytes.len()).ok().and_then(|len| self.got.checked_add(len));
        let got = got.filter(|got| *got <= self.len).ok_or(Mismatch::TooLong(self.len))?;
        match &mut self.place {
            Place::File(claim) => claim.append(bytes)?,
            Place::Memory(all) => {
                all.reserve_exact(self.len as usize - all.len());
                all.extend_from_slice(bytes);
            }
        }
        self.got = got;
        // One that was asked and gave nothing is not to blame.
        if let Some(from) = self.from.filter(|from| !bytes.is_empty() && !self.givers.contains(from)) {
            self.givers.push(from);
        }
        Ok(())
    }

    /// Whether every byte has come.
    pub(crate) fn is_full(&self) -> bool {
        self.got == self.len
    }

    /// The proof, if the hash matches.
    pub(crate) fn finish(self) -> Result<VerifiedChunk, Mismatch> {
        if !self.is_full() {
            return Err(Mismatch::TooShort { got: self.got, expected: self.len });
        }
        let is_mixed = self.is_mixed();
        if Digest::from_bytes(self.hasher.finish()) != self.expected {
            return Err(if is_mixed { Mismatch::MixedHash } else { Mismatch::Hash });
        }
        Ok(VerifiedChunk { file: self.file, chunk: self.chunk, place: self.place })
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

    /// Where its bytes are.
    pub(crate) fn place(self) -> Place {
        self.place
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::Layout;

    use super::*;

    fn verify(content: &[u8], pushed: &[&[u8]]) -> Result<Vec<u8>, Mismatch> {
        let layout = Layout::new(content.len() as u64, 1 << 14).unwrap();
        let manifest = Manifest::new(layout, vec![Digest::of(content)]).unwrap();
        let mut verifier = Verifier::new(&manifest, layout.chunk_count().index(0).unwrap());
        for bytes in pushed {
            verifier.message_begins()?;
            match verifier.push(Bytes::copy_from_slice(bytes)) {
                Err(PushError::Mismatch(mismatch)) => return Err(mismatch),
                pushed => pushed.unwrap(),
            }
        }
        match verifier.finish()?.place() {
            Place::Memory(bytes) => Ok(bytes),
            Place::File(_) => panic!("nothing was claimed"),
        }
    }

    #[test]
    fn only_the_right_bytes_pass() {
        assert_eq!(verify(b"abcd", &[b"a", b"", b"bcd"]).unwrap(), b"abcd");
        assert_eq!(verify(b"abcd", &[b"abce"]), Err(Mismatch::Hash));
        assert_eq!(verify(b"abcd", &[b"abc"]), Err(Mismatch::TooShort { got: 3, expected: 4 }));
        assert_eq!(verify(b"abcd", &[]), Err(Mismatch::TooShort { got: 0, expected: 4 }));
        assert_eq!(verify(b"abcd", &[b"abcd", b"e"]), Err(Mismatch::TooLong(4)));
        assert_eq!(verify(b"abcd", &[b"".as_slice(); 100]), Err(Mismatch::Fragmented));
    }
}
