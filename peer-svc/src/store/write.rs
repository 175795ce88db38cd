//! Partial files: verified chunks in, stored chunks out.
//!
//! Invariants: only a [`VerifiedChunk`] is written, only into the file that it belongs to, and only a
//! [`StoredChunk`] may be announced and served. Writing the same chunk twice writes the same bytes, so
//! a late copy is harmless; once [`PartialFile::close`] has returned, nothing is written any more and
//! the file may be put in place. Calls block on disk I/O.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use drizzle_proto::{ChunkIndex, ChunkSet, FileId, Manifest};
use tokio_util::sync::CancellationToken;

use super::{disk::Disk, prove::prove};
use crate::verify::VerifiedChunk;

/// A chunk that is verified and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredChunk {
    file: FileId,
    chunk: ChunkIndex,
}

impl StoredChunk {
    /// The content that it belongs to.
    pub(crate) fn file(self) -> FileId {
        self.file
    }

    /// Which chunk it is.
    pub(crate) fn chunk(self) -> ChunkIndex {
        self.chunk
    }

    /// Without a disk, for tests of what comes after it.
    #[cfg(test)]
    pub(crate) fn pretend(file: FileId, chunk: ChunkIndex) -> Self {
        Self { file, chunk }
    }
}

/// The data of an unfinished download.
#[derive(Debug)]
pub(crate) struct PartialFile {
    path: PathBuf,
    file: Arc<File>,
    manifest: Manifest,
    disk: Disk,
    /// Writers hold it shared; closing takes it alone and so waits for them.
    open: RwLock<bool>,
}

impl PartialFile {
    /// Opens or makes the data file. With `reserve` the whole space is taken now.
    pub(crate) fn open(path: &Path, manifest: Manifest, reserve: bool, disk: Disk) -> io::Result<Self> {
        let file = disk.open(path)?;
        // A synced file whose name a power cut takes is lost as well. An old file's name may not be durable either: the
        // daemon may have been killed just here.
        disk.sync_folder_of(path)?;
        let size = manifest.layout().size();
        if file.metadata()?.len() != size {
            disk.resize(&file, path, size)?;
        }
        if reserve && size > 0 {
            disk.reserve(&file, path, size)?;
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), manifest, disk, open: RwLock::new(true) })
    }

    /// What it is to become.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the data is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// For reading stored chunks; stays valid after the file was put in place.
    pub(crate) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Writes a chunk at its place.
    pub(crate) fn write(&self, chunk: &VerifiedChunk) -> io::Result<StoredChunk> {
        if chunk.file() != self.manifest.id() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "internal error: a chunk of another file"));
        }
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(io::Error::other("the download has ended"));
        }
        let mut at = self.manifest.layout().offset(chunk.chunk());
        for slice in chunk.slices() {
            self.disk.write(&self.file, &self.path, slice, at)?;
            at += slice.len() as u64;
        }
        Ok(StoredChunk { file: chunk.file(), chunk: chunk.chunk() })
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.disk.sync(&self.file, &self.path)
    }

    /// Waits for writers and refuses later ones.
    pub(crate) fn close(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Deletes the data.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.close();
        self.disk.remove(&self.path)
    }

    /// Which of the given chunks are in the file, decided by their hashes. Holes are skipped without reading.
    pub(crate) fn prove(&self, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
        prove(&self.file, &self.manifest, candidates, cancel)
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::store::testing::{content, verified};

    fn open(path: &Path, manifest: &Manifest) -> PartialFile {
        PartialFile::open(path, manifest.clone(), true, Disk::default()).unwrap()
    }

    #[test]
    fn only_whole_chunks_are_proved() {
        let folder = tempfile::tempdir().unwrap();
        let (data, manifest) = content(1);
        let path = folder.path().join("p");
        let partial = open(&path, &manifest);
        partial.write(&verified(&data, &manifest, 2)).unwrap();
        partial.write(&verified(&data, &manifest, 0)).unwrap();
        // Half a chunk, as a kill in the middle of a write leaves it.
        partial.file().write_all_at(&data[1 << 14..][..1000], 1 << 14).unwrap();
        drop(partial);
        let again = open(&path, &manifest);
        let all = ChunkSet::full(manifest.layout().chunk_count());
        assert_eq!(again.prove(&all, &CancellationToken::new()).ranges().to_string(), "0,2");
    }

    #[test]
    fn chunks_of_other_files_and_late_writes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, manifest), (other_data, other)) = (content(1), content(2));
        let partial = open(&folder.path().join("p"), &manifest);
        assert!(partial.write(&verified(&other_data, &other, 0)).is_err());
        partial.close();
        assert!(partial.write(&verified(&data, &manifest, 0)).is_err());
    }
}
