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
use drizzle_sha256::{Sha256, update_both};
use tokio_util::sync::CancellationToken;

use super::{calls::Calls, extents::Extents, stamp::Stamp, turns::Job};
use crate::{hasher::timed, shortage::wait_out};

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
    let hashes = hash_chunks(job, layout, &chunks, |pair| {
        if stop.is_cancelled() {
            return Err(HashError::Stopped);
        }
        let hashes = hash_pair(&file, &extents, layout, pair).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => HashError::Changing(path.to_owned()),
            _ => fail(source),
        })?;
        let bytes = pair.iter().map(|chunk| u64::from(layout.chunk_len(*chunk))).sum();
        progress.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        Ok(hashes)
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
    let digest = Digest::from_bytes(sha.finish());
    if len.is_power_of_two() {
        known().insert(len, digest);
    }
    digest
}

/// Hashes chunks of a file two at a time, in turns. The results come in order; after a failure the rest is left out.
pub(super) fn hash_chunks<T: Send, E: Send>(
    job: &Job,
    layout: Layout,
    chunks: &[ChunkIndex],
    hash: impl Fn(&[ChunkIndex]) -> Result<Vec<T>, E> + Sync,
) -> Result<Vec<T>, E> {
    let pairs: Vec<&[ChunkIndex]> = chunks.chunks(2).collect();
    let cost = 2 * u64::from(layout.chunk_size());
    Ok(job.each(pairs.len(), cost, |at| timed(|| hash(pairs[at])))?.into_iter().flatten().collect())
}

/// Bytes that are read of each of two chunks before both are hashed: both are still in the cache of one core then.
const AT_ONCE: usize = MESSAGE_SIZE / 2;

thread_local! {
    static BUFFERS: RefCell<[Vec<u8>; 2]> = RefCell::new([vec![0; AT_ONCE], vec![0; AT_ONCE]]);
}

/// Hashes one chunk of a file, or two at a time; a hole without reading it.
pub(super) fn hash_pair(
    file: &File,
    extents: &Extents,
    layout: Layout,
    chunks: &[ChunkIndex],
) -> io::Result<Vec<Digest>> {
    let alone = |chunk: &ChunkIndex| hash_chunk(file, extents, layout, *chunk);
    let is_hole = |chunk: &ChunkIndex| !extents.has_data(layout.offset(*chunk), layout.chunk_len(*chunk).into());
    let (&[a, b], false) = (chunks, chunks.iter().any(is_hole)) else { return chunks.iter().map(alone).collect() };
    BUFFERS.with_borrow_mut(|[ours, theirs]| {
        let mut hashes = [Sha256::new(), Sha256::new()];
        let [first, second] = &mut hashes;
        let (mut done, longer) = (0, layout.chunk_len(a).max(layout.chunk_len(b)) as usize);
        while done < longer {
            let (ours, theirs) = (next(file, layout, a, done, ours)?, next(file, layout, b, done, theirs)?);
            update_both(first, ours, second, theirs);
            done += AT_ONCE;
        }
        Ok(hashes.map(|hash| Digest::from_bytes(hash.finish())).into())
    })
}

/// Reads what comes in a chunk after so many bytes, as much as the buffer takes.
fn next<'b>(file: &File, layout: Layout, chunk: ChunkIndex, done: usize, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let left = (layout.chunk_len(chunk) as usize).saturating_sub(done).min(buffer.len());
    let slice = &mut buffer[..left];
    if !slice.is_empty() {
        file.read_exact_at(slice, layout.offset(chunk) + done as u64)?;
    }
    Ok(slice)
}

/// Hashes one chunk of a file; a hole without reading it.
fn hash_chunk(file: &File, extents: &Extents, layout: Layout, chunk: ChunkIndex) -> io::Result<Digest> {
    let (start, len) = (layout.offset(chunk), layout.chunk_len(chunk));
    if !extents.has_data(start, len.into()) {
        return Ok(hash_of_zeros(len));
    }
    BUFFERS.with_borrow_mut(|[buffer, _]| {
        let mut sha = Sha256::new();
        let mut done = 0;
        while done < len as usize {
            let slice = next(file, layout, chunk, done, buffer)?;
            sha.update(slice);
            done += slice.len();
        }
        Ok(Digest::from_bytes(sha.finish()))
    })
}
