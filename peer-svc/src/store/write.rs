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
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
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
    /// Open only while something uses it: a peer may keep more unfinished downloads than it may open files.
    file: Mutex<Weak<File>>,
    manifest: Manifest,
    disk: Disk,
    /// Writers hold it shared; closing takes it alone and so waits for them.
    open: RwLock<bool>,
}

impl PartialFile {
    /// Data that is there; it is opened when first used.
    pub(crate) fn at(path: &Path, manifest: Manifest, disk: Disk) -> Self {
        Self { path: path.to_owned(), file: Mutex::default(), manifest, disk, open: RwLock::new(true) }
    }

    /// Makes the data file, a new one: an error if anything has its name.
    pub(crate) fn make(&self) -> io::Result<()> {
        let file = self.disk.create_new(&self.path)?;
        self.disk.resize(&file, &self.path, self.manifest.layout().size())
    }

    /// Opens the data file for a download, which keeps it open with what is returned. With `reserve` the whole space
    /// is taken now, so that a full disk is found before anything is fetched and not after.
    pub(crate) fn begin(&self, reserve: bool) -> io::Result<Arc<File>> {
        let (file, size) = (self.file()?, self.manifest.layout().size());
        // A synced file whose name a power cut takes is lost as well. An old file's name may not be durable either: the
        // daemon may have been killed before it was.
        self.disk.sync_folder_of(&self.path)?;
        if reserve && size > 0 {
            self.disk.reserve(&file, &self.path, size)?;
        }
        Ok(file)
    }

    /// What it is to become.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the data is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for reading stored chunks; it stays valid after the file was put in place.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        let mut known = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = known.upgrade() {
            return Ok(file);
        }
        let file = Arc::new(self.disk.open_own(&self.path)?);
        if file.metadata()?.len() != self.manifest.layout().size() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the data of the unfinished download was cut short",
            ));
        }
        *known = Arc::downgrade(&file);
        Ok(file)
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
        let (file, mut at) = (self.file()?, self.manifest.layout().offset(chunk.chunk()));
        for slice in chunk.slices() {
            self.disk.write(&file, &self.path, slice, at)?;
            at += slice.len() as u64;
        }
        Ok(StoredChunk { file: chunk.file(), chunk: chunk.chunk() })
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let file = self.file()?;
        self.disk.sync(&file, &self.path)
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

    /// Which of the given chunks are in the file, decided by their hashes. Holes are skipped without reading; of a file
    /// that cannot be opened none is.
    pub(crate) fn prove(&self, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
        match self.file() {
            Ok(file) => prove(&file, &self.manifest, candidates, cancel),
            Err(_) => ChunkSet::empty(candidates.count()),
        }
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
        let partial = PartialFile::at(path, manifest.clone(), Disk::default());
        partial.make().unwrap();
        partial
    }

    #[test]
    fn a_file_that_nothing_uses_is_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let (data, manifest) = content(1);
        let path = folder.path().join("p");
        let partial = open(&path, &manifest);
        let is_open = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|file| file == path.canonicalize().unwrap())
        };
        assert!(!is_open());
        let download = partial.begin(true).unwrap();
        partial.write(&verified(&data, &manifest, 0)).unwrap();
        assert!(is_open() && Arc::ptr_eq(&download, &partial.file().unwrap()), "opened once for a whole download");
        drop(download);
        assert!(!is_open());
        // It is opened again for a peer that asks, but not after it was cut short.
        partial.file().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(7).unwrap();
        assert!(partial.file().is_err());
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
        partial.file().unwrap().write_all_at(&data[1 << 14..][..1000], 1 << 14).unwrap();
        drop(partial);
        let again = PartialFile::at(&path, manifest.clone(), Disk::default());
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
