//! Reading local files: whole slices, whole chunks, and only files that did not change. Calls block.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use drizzle_proto::{ChunkIndex, Manifest, limits::MESSAGE_SIZE};

use super::{calls::Calls, stamp::Stamp};
use crate::verify::{VerifiedChunk, Verifier};

/// Opens a file if it is still the one that was hashed; `None` if it changed or is gone.
pub(crate) fn open_unchanged(calls: &Calls, path: &Path, stamp: Stamp) -> io::Result<Option<File>> {
    match calls.open(path) {
        Ok((file, metadata)) => Ok((Stamp::of(&metadata) == stamp).then_some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Appends so many bytes of a file, or more if there is room for more, to a buffer that has room for them. The memory is not
/// cleared first: that would cost a pass over every byte served.
pub(crate) fn append_exact(file: &File, offset: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    let from = buffer.len();
    while buffer.len() < from + len {
        let at = offset + (buffer.len() - from) as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads a chunk from a local file; `None` if its bytes are not those of the manifest.
pub(crate) fn read_verified(file: &File, manifest: &Manifest, chunk: ChunkIndex) -> io::Result<Option<VerifiedChunk>> {
    let layout = manifest.layout();
    let (start, len) = (layout.offset(chunk), layout.chunk_len(chunk));
    let mut verifier = Verifier::new(manifest, chunk);
    let mut at = start;
    while !verifier.is_full() {
        let left = usize::try_from(start + u64::from(len) - at).unwrap_or(MESSAGE_SIZE);
        let mut slice = vec![0; left.min(MESSAGE_SIZE)];
        file.read_exact_at(&mut slice, at)?;
        at += slice.len() as u64;
        if verifier.push(&slice).is_err() {
            return Ok(None);
        }
    }
    Ok(verifier.finish().ok())
}
