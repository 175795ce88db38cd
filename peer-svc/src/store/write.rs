//! Partial files: verified chunks in, stored chunks out.
//!
//! Invariants: only a [`VerifiedChunk`] is written, only into the file that it belongs to, and only a
//! [`StoredChunk`] may be announced and served. Writing the same chunk twice writes the same bytes, so
//! a late copy is harmless; once [`PartialFile::close`] has returned, nothing is written any more and
//! the file may be put in place. Calls block on disk I/O.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use drizzle_proto::{ChunkIndex, ChunkSet, FileId, Manifest};
use rustix::fs::FallocateFlags;
use tokio_util::sync::CancellationToken;

use crate::{store::prove::prove, verify::VerifiedChunk};

/// A chunk that is verified and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    file: FileId,
    chunk: ChunkIndex,
}

impl StoredChunk {
    /// The content that it belongs to.
    pub fn file(self) -> FileId {
        self.file
    }

    /// Which chunk it is.
    pub fn chunk(self) -> ChunkIndex {
        self.chunk
    }
}

/// The data of an unfinished download.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    file: Arc<File>,
    manifest: Manifest,
    /// Writers hold it shared; closing takes it alone and so waits for them.
    open: RwLock<bool>,
}

impl PartialFile {
    /// Opens or makes the data file. With `reserve` the whole space is taken now, so that a full disk is
    /// found before anything is fetched and not after.
    pub fn open(path: &Path, manifest: Manifest, reserve: bool) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let size = manifest.layout().size();
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        if reserve && size > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
                // File systems that cannot reserve (some network ones) find out while writing.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), manifest, open: RwLock::new(true) })
    }

    /// What it is to become.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the data is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For reading stored chunks; stays valid after the file was put in place.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Writes a chunk at its place.
    pub fn write(&self, chunk: &VerifiedChunk) -> io::Result<StoredChunk> {
        let other = || io::Error::new(io::ErrorKind::InvalidInput, "a chunk of another file");
        if chunk.file() != self.manifest.id() {
            return Err(other());
        }
        let open = self.open.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*open {
            return Err(io::Error::other("the download has ended"));
        }
        let mut at = self.manifest.layout().offset(chunk.chunk());
        for slice in chunk.slices() {
            self.file.write_all_at(slice, at)?;
            at += slice.len() as u64;
        }
        Ok(StoredChunk { file: chunk.file(), chunk: chunk.chunk() })
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Waits for writers and refuses later ones.
    pub fn close(&self) {
        *self.open.write().unwrap_or_else(std::sync::PoisonError::into_inner) = false;
    }

    /// Deletes the data.
    pub fn discard(&self) -> io::Result<()> {
        self.close();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Which of the given chunks are in the file, decided by their hashes. Holes are skipped without reading.
    pub fn prove(&self, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
        prove(&self.file, &self.manifest, candidates, cancel)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use drizzle_proto::{Digest, Layout};

    use super::*;
    use crate::verify::Verifier;

    fn content(byte: u8) -> (Vec<u8>, Manifest) {
        let data: Vec<u8> = (0..40_000u32).map(|i| byte.wrapping_add(i.to_le_bytes()[1])).collect();
        let layout = Layout::new(data.len() as u64, 1 << 14).unwrap();
        let hashes = data.chunks(1 << 14).map(Digest::of).collect();
        (data, Manifest::new(layout, hashes).unwrap())
    }

    fn verified(data: &[u8], manifest: &Manifest, chunk: u32) -> VerifiedChunk {
        let chunk = manifest.layout().chunk_count().index(chunk).unwrap();
        let start = usize::try_from(manifest.layout().offset(chunk)).unwrap();
        let mut verifier = Verifier::new(manifest, chunk);
        verifier.push(Bytes::copy_from_slice(&data[start..][..manifest.layout().chunk_len(chunk) as usize])).unwrap();
        verifier.finish().unwrap()
    }

    #[test]
    fn only_whole_chunks_are_proved() {
        let folder = tempfile::tempdir().unwrap();
        let (data, manifest) = content(1);
        let path = folder.path().join("p");
        let partial = PartialFile::open(&path, manifest.clone(), true).unwrap();
        partial.write(&verified(&data, &manifest, 2)).unwrap();
        partial.write(&verified(&data, &manifest, 0)).unwrap();
        // Half a chunk, as a kill in the middle of a write leaves it.
        partial.file().write_all_at(&data[1 << 14..][..1000], 1 << 14).unwrap();
        drop(partial);
        let again = PartialFile::open(&path, manifest.clone(), true).unwrap();
        let all = ChunkSet::full(manifest.layout().chunk_count());
        assert_eq!(again.prove(&all, &CancellationToken::new()).ranges().to_string(), "0,2");
    }

    #[test]
    fn chunks_of_other_files_and_late_writes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, manifest), (other_data, other)) = (content(1), content(2));
        let partial = PartialFile::open(&folder.path().join("p"), manifest.clone(), false).unwrap();
        assert!(partial.write(&verified(&other_data, &other, 0)).is_err());
        partial.close();
        assert!(partial.write(&verified(&data, &manifest, 0)).is_err());
    }
}
