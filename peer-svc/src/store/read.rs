//! Reading local files: whole slices, whole chunks, and only files that did not change. Calls block.

use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt, path::Path};

use drizzle_proto::{ChunkIndex, limits::MESSAGE_SIZE};

use super::{
    calls::Calls,
    data::PutError,
    stamp::Stamp,
    write::{PartialFile, StoredChunk},
};
use crate::verify::{PushError, Verifier};

/// Opens a file if it is still the one that was hashed; `None` if it changed or is gone.
pub(crate) fn open_unchanged(calls: &Calls, path: &Path, stamp: Stamp) -> io::Result<Option<File>> {
    match calls.open(path) {
        Ok((file, metadata)) => Ok((Stamp::of(&metadata) == stamp).then_some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads as much as is in memory, at least one byte. [`WouldBlock`](io::ErrorKind::WouldBlock) if the disk would have to be
/// waited for, or if that cannot be told. For a file that lies in memory alone it is known.
pub(crate) fn read_now(file: &File, in_memory: bool, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let read = loop {
        if in_memory {
            break file.read_at(buffer, offset)?;
        }
        match preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
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

/// Why a chunk was not copied.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// It cannot be read.
    Read(io::Error),
    /// It cannot be written.
    Write(io::Error),
}

/// Copies a chunk from a local file, at its place and proved as it is copied; `None` if its bytes are not those of the
/// manifest. It takes the memory of a message, however large the chunk is.
pub(crate) fn copy_chunk(from: &File, to: &PartialFile, chunk: ChunkIndex) -> Result<Option<StoredChunk>, CopyError> {
    let put = |error: PutError| CopyError::Write(error.into());
    let (manifest, layout) = (to.manifest(), to.manifest().layout());
    let (mut at, mut left) = (layout.offset(chunk), layout.chunk_len(chunk) as usize);
    let mut verifier = to.claim(chunk).map_or_else(|| Verifier::new(manifest, chunk), Verifier::claimed);
    let mut buffer = vec![0; left.min(MESSAGE_SIZE)];
    while left > 0 {
        let slice = &mut buffer[..left.min(MESSAGE_SIZE)];
        from.read_exact_at(slice, at).map_err(CopyError::Read)?;
        match verifier.push_now(slice) {
            Err(PushError::Put(error)) => return Err(put(error)),
            Err(PushError::Mismatch(_)) => return Ok(None),
            Ok(()) => {}
        }
        at += slice.len() as u64;
        left -= slice.len();
    }
    verifier.finish().ok().map(|verified| to.store(verified).map_err(put)).transpose()
}
