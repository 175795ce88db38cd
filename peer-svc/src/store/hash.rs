//! SHA-256 of chunks of local files. A hole is hashed without being read. Calls block.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use drizzle_proto::{ChunkIndex, Digest, Layout, limits::MESSAGE_SIZE};
use sha2::{Digest as _, Sha256};

use super::extents::Extents;

/// The hash of a run of zero bytes. That of a whole chunk is remembered, because a sparse file asks for it
/// thousands of times; there are few chunk sizes.
pub fn hash_of_zeros(len: u32) -> Digest {
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
pub fn hash_chunk(file: &File, extents: &Extents, layout: Layout, chunk: ChunkIndex) -> io::Result<Digest> {
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
