//! SHA-256 of local files, chunk by chunk, in turns with other files that are hashed. Each byte is read once, and a hole not at all. Calls block.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use drizzle_proto::{ChunkIndex, Digest, Layout, Manifest, layout::LayoutError, limits::MESSAGE_SIZE};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{calls::Calls, extents::Extents, stamp::Stamp, turns::Job};
use crate::shortage::wait_out;

/// Why a file was not hashed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    /// No such path.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// Written to while it was read.
    #[error("{} changed while it was hashed; share it again once it is complete", .0.display())]
    Changing(PathBuf),
    /// The chunk size does not suit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The daemon stops.
    #[error("interrupted by the daemon's shutdown")]
    Stopped,
}

/// How far hashing is. All zero while nothing is hashed.
#[derive(Debug, Default)]
pub(crate) struct HashProgress {
    files_done: AtomicU64,
    files_total: AtomicU64,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
}

/// A reading of [`HashProgress`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HashState {
    /// Files that are done.
    pub(crate) files_done: u64,
    /// Files in all.
    pub(crate) files_total: u64,
    /// Bytes that are done.
    pub(crate) bytes_done: u64,
    /// Bytes in all.
    pub(crate) bytes_total: u64,
}

impl HashProgress {
    pub(crate) fn begin(&self, files: u64, bytes: u64) {
        self.files_total.fetch_add(files, Ordering::Relaxed);
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One file is done, whether it was hashed or failed; `unread` are the bytes that were not counted.
    pub(crate) fn file_done(&self, unread: u64) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
        self.bytes_done.fetch_add(unread, Ordering::Relaxed);
    }

    /// The present state.
    pub(crate) fn read(&self) -> HashState {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        HashState {
            files_done: read(&self.files_done),
            files_total: read(&self.files_total),
            bytes_done: read(&self.bytes_done),
            bytes_total: read(&self.bytes_total),
        }
    }
}

/// Hashes one file in the given chunks, or in default ones.
pub(crate) fn hash_file(
    job: &Job,
    calls: &Calls,
    path: &Path,
    chunk_size: Option<u32>,
    progress: &HashProgress,
    stop: &CancellationToken,
) -> Result<(Manifest, Stamp), HashError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => HashError::NotFound(path.to_owned()),
        io::ErrorKind::InvalidInput => HashError::NotRegular(path.to_owned()),
        _ => HashError::Io { path: path.to_owned(), source },
    };
    let (file, metadata) = wait_out("hash files", stop, || calls.open(path)).map_err(fail)?;
    let stamp = Stamp::of(&metadata);
    let layout = match chunk_size {
        Some(chunk_size) => Layout::new(stamp.size, chunk_size)?,
        None => Layout::with_default_chunk_size(stamp.size)?,
    };
    let extents = Extents::of(&file, stamp.size);
    let chunks: Vec<ChunkIndex> = layout.chunk_count().indices().collect();
    let hashes = job.each(chunks.len(), layout.chunk_size().into(), |at| {
        if stop.is_cancelled() {
            return Err(HashError::Stopped);
        }
        let chunk = chunks[at];
        let hash = hash_chunk(&file, &extents, layout, chunk).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => HashError::Changing(path.to_owned()),
            _ => fail(source),
        })?;
        progress.bytes_done.fetch_add(layout.chunk_len(chunk).into(), Ordering::Relaxed);
        Ok(hash)
    })?;
    if Stamp::of(&file.metadata().map_err(fail)?) != stamp {
        return Err(HashError::Changing(path.to_owned()));
    }
    let manifest = Manifest::new(layout, hashes).map_err(|error| fail(io::Error::other(error)))?;
    Ok((manifest, stamp))
}

/// The hash of a run of zero bytes. That of a whole chunk is remembered, because a sparse file asks for it
/// thousands of times; there are few chunk sizes.
pub(crate) fn hash_of_zeros(len: u32) -> Digest {
    static WHOLE_CHUNKS: Mutex<BTreeMap<u32, Digest>> = Mutex::new(BTreeMap::new());
    let known = || WHOLE_CHUNKS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(digest) = known().get(&len) {
        return *digest;
    }
    let zeros = vec![0; MESSAGE_SIZE];
    let mut sha = Sha256::new();
    let mut left = len as usize;
    while left > 0 {
        let run = left.min(MESSAGE_SIZE);
        sha.update(&zeros[..run]);
        left -= run;
    }
    let digest = Digest::from_bytes(sha.finalize().into());
    if len.is_power_of_two() {
        known().insert(len, digest);
    }
    digest
}

/// Hashes one chunk of a file; a hole without reading it.
pub(crate) fn hash_chunk(file: &File, extents: &Extents, layout: Layout, chunk: ChunkIndex) -> io::Result<Digest> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MESSAGE_SIZE]);
    }
    let (start, len) = (layout.offset(chunk), layout.chunk_len(chunk));
    if !extents.has_data(start, len.into()) {
        return Ok(hash_of_zeros(len));
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut sha = Sha256::new();
        let mut done = 0;
        while done < len as usize {
            let slice = &mut buffer[..MESSAGE_SIZE.min(len as usize - done)];
            file.read_exact_at(slice, start + done as u64)?;
            sha.update(&*slice);
            done += slice.len();
        }
        Ok(Digest::from_bytes(sha.finalize().into()))
    })
}
