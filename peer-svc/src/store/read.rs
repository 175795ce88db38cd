//! Reading local files: whole slices, whole chunks, and only files that did not change. Calls block.

use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt, path::Path};

use drizzle_proto::{ChunkIndex, Manifest, limits::MESSAGE_SIZE};

use super::{calls::Calls, disk::is_in_memory, stamp::Stamp};
use crate::verify::{VerifiedChunk, Verifier};

/// Opens a file if it is still the one that was hashed; `None` if it changed or is gone.
pub(crate) fn open_unchanged(calls: &Calls, path: &Path, stamp: Stamp) -> io::Result<Option<File>> {
    match calls.open(path) {
        Ok((file, metadata)) => Ok((Stamp::of(&metadata) == stamp).then_some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads as much as is in memory, at least one byte. [`WouldBlock`](io::ErrorKind::WouldBlock) if the disk would have to be
/// waited for, or if that cannot be told.
pub(crate) fn read_now(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let read = loop {
        match preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if is_in_memory(file) => break file.read_at(buffer, offset)?,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::WouldBlock.into()),
            read => break read?,
        }
    };
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}

/// Reads all of it, and has the disk begin with the bytes behind it.
pub(crate) fn read_and_go_on(file: &File, buffer: &mut [u8], offset: u64, behind: u64) -> io::Result<()> {
    let next = offset + buffer.len() as u64;
    // Only advice: that it fails changes nothing.
    if let Some(behind) = NonZeroU64::new(behind) {
        let _ = rustix::fs::fadvise(file, next, Some(behind), rustix::fs::Advice::WillNeed);
    }
    file.read_exact_at(buffer, offset)
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
