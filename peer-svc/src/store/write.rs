//! Partial files: verified chunks in, stored chunks out.
//!
//! Invariants: only a [`VerifiedChunk`] becomes a [`StoredChunk`], only in the file that it belongs to, and only a
//! [`StoredChunk`] may be announced and served. Storing the same chunk twice leaves the same bytes, so a late copy is
//! harmless; once [`PartialFile::close`] has returned, nothing is written any more and the file may be put in place.
//! Calls block on disk I/O.

use std::{fs::File, io, path::Path, sync::Arc, time::Duration};

use drizzle_proto::{ChunkIndex, ChunkSet, FileId, Manifest};
use tokio_util::sync::CancellationToken;

use super::{
    data::{Claim, Data, PutError},
    disk::Disk,
    prove::prove,
};
use crate::verify::{Place, VerifiedChunk};

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
pub(crate) struct PartialFile(Arc<Data>);

impl PartialFile {
    /// Data that is there; it is opened when first used.
    pub(crate) fn at(path: &Path, manifest: Manifest, disk: Disk) -> Self {
        Self(Data::at(path, manifest, disk))
    }

    /// Makes the data file, a new one: an error if anything has its name.
    pub(crate) fn make(&self) -> io::Result<()> {
        let file = self.disk().create_new(self.path())?;
        self.disk().resize(&file, self.path(), self.manifest().layout().size())
    }

    /// Opens the data file for a download, which keeps it open with what is returned. With `reserve` the whole space
    /// is taken now, so that a full disk is found before anything is fetched and not after.
    pub(crate) fn begin(&self, reserve: bool) -> io::Result<Arc<File>> {
        let (file, size) = (self.file()?, self.manifest().layout().size());
        // A synced file whose name a power cut takes is lost as well. An old file's name may not be durable either: the
        // daemon may have been killed before it was.
        self.disk().sync_folder_of(self.path())?;
        if reserve && size > 0 {
            self.disk().reserve(&file, self.path(), size)?;
        }
        Ok(file)
    }

    /// What it is to become.
    pub(crate) fn manifest(&self) -> &Manifest {
        self.0.manifest()
    }

    /// Where the data is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The open file, for reading stored chunks; it stays valid after the file was put in place.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        self.0.file()
    }

    /// The same, if anything has it open: that blocks on no disk.
    pub(crate) fn open_file(&self) -> Option<Arc<File>> {
        self.0.open_file()
    }

    /// Whether it lies in memory alone, so that no disk is waited for to read it; known once it was opened.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.0.is_in_memory()
    }

    /// The place of a chunk, for bytes that are not proved yet; `None` if it is stored or claimed.
    pub(crate) fn claim(&self, chunk: ChunkIndex) -> Option<Claim> {
        Claim::of(&self.0, chunk)
    }

    /// Has a proved chunk at its place.
    pub(crate) fn store(&self, verified: VerifiedChunk) -> Result<StoredChunk, PutError> {
        let (file, chunk) = (verified.file(), verified.chunk());
        let stray = || io::Error::new(io::ErrorKind::InvalidInput, "internal error: a chunk of another file");
        match verified.place() {
            Place::File(claim) if claim.is_of(&self.0) => claim.settle()?,
            Place::Memory(bytes) if file == self.manifest().id() => self.0.put(chunk, &bytes)?,
            Place::File(_) | Place::Memory(_) => Err(stray())?,
        }
        Ok(StoredChunk { file, chunk })
    }

    /// The journal says that these chunks are stored.
    pub(crate) fn vouch_for(&self, recorded: &ChunkSet) {
        self.0.vouch_for(recorded);
    }

    /// A chunk that is stored already: by a fetch that was given up before it could tell, for instance.
    pub(crate) fn stored(&self, chunk: ChunkIndex) -> Option<StoredChunk> {
        self.0.is_stored(chunk).then(|| StoredChunk { file: self.manifest().id(), chunk })
    }

    /// Chunks that the journal vouched for turned out to be damaged.
    pub(crate) fn take_back(&self, chunks: &ChunkSet) {
        self.0.take_back(chunks);
    }

    /// For how long threads have been writing it, all together.
    pub(crate) fn time_writing(&self) -> Duration {
        self.0.time_writing()
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let file = self.file()?;
        self.disk().sync(&file, self.path())
    }

    /// Waits for writers and refuses later ones.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// Deletes the data.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.close();
        self.disk().remove(self.path())
    }

    /// Which of the given chunks are in the file, decided by their hashes. Holes are skipped without reading; of a file
    /// that cannot be opened none is.
    pub(crate) fn prove(&self, candidates: &ChunkSet, cancel: &CancellationToken) -> ChunkSet {
        match self.file() {
            Ok(file) => prove(&file, self.manifest(), candidates, cancel),
            Err(_) => ChunkSet::empty(candidates.count()),
        }
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Disk {
        self.0.disk()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::{
        store::testing::{content, verified},
        verify::{Mismatch, PushError, Verifier},
    };

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
        partial.store(verified(&data, &manifest, 0)).unwrap();
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
        partial.store(verified(&data, &manifest, 2)).unwrap();
        partial.store(verified(&data, &manifest, 0)).unwrap();
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
        let other_partial = open(&folder.path().join("other"), &other);
        assert!(partial.store(verified(&other_data, &other, 0)).is_err());
        assert!(partial.store(claimed(&other_partial, &other_data, 0).finish().unwrap()).is_err());
        let (early, mut late) = (claimed(&partial, &data, 1), Verifier::claimed(claim(&partial, 2).unwrap()));
        partial.close();
        assert!(partial.store(verified(&data, &manifest, 0)).is_err());
        assert!(late.push_now(&data[2 << 14..]).is_err());
        // Every byte was written before.
        partial.store(early.finish().unwrap()).unwrap();
    }

    #[test]
    fn a_chunk_is_claimed_once_and_not_when_it_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (data, manifest) = content(1);
        let partial = open(&folder.path().join("p"), &manifest);
        let first = claim(&partial, 0).unwrap();
        assert!(claim(&partial, 0).is_none());
        drop(first);
        let again = claimed(&partial, &data, 0);
        partial.store(again.finish().unwrap()).unwrap();
        assert!(claim(&partial, 0).is_none());
        partial.store(verified(&data, &manifest, 1)).unwrap();
        assert!(claim(&partial, 1).is_none());
        let mut two = ChunkSet::empty(manifest.layout().chunk_count());
        two.insert(chunk(&partial, 2));
        partial.vouch_for(&two);
        assert!(claim(&partial, 2).is_none());
        partial.take_back(&two);
        assert!(claim(&partial, 2).is_some());
    }

    #[test]
    fn what_a_claim_wrote_is_a_chunk_only_with_the_proof_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (data, manifest) = content(1);
        let partial = open(&folder.path().join("p"), &manifest);
        let mut wrong = Verifier::claimed(claim(&partial, 0).unwrap());
        wrong.push_now(&[7; 1 << 14]).unwrap();
        assert_eq!(wrong.finish().unwrap_err(), Mismatch::Hash);
        // Its place is free again, and whoever has it next begins at its first byte.
        let right = claimed(&partial, &data, 0);
        partial.store(right.finish().unwrap()).unwrap();
        let all = ChunkSet::full(manifest.layout().chunk_count());
        assert_eq!(partial.prove(&all, &CancellationToken::new()).ranges().to_string(), "0");
    }

    #[test]
    fn a_proved_copy_ends_the_claim_of_one_that_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (data, manifest) = content(1);
        let partial = open(&folder.path().join("p"), &manifest);
        let mut claimed_first = Verifier::claimed(claim(&partial, 0).unwrap());
        claimed_first.push_now(&data[..100]).unwrap();
        let copy = claimed_first.copy().unwrap();
        assert_eq!((copy.got(), copy.is_in_memory()), (100, true));
        partial.store(verified(&data, &manifest, 0)).unwrap();
        assert!(matches!(claimed_first.push_now(&[7; 100]), Err(PushError::Put(PutError::Overtaken))));
        assert!(matches!(claimed_first.copy(), Err(PutError::Overtaken)));
        drop(claimed_first);
        assert!(claim(&partial, 0).is_none(), "it is stored");
        let proved = partial.prove(&ChunkSet::full(manifest.layout().chunk_count()), &CancellationToken::new());
        assert_eq!(proved.ranges().to_string(), "0");
    }

    fn chunk(partial: &PartialFile, chunk: u32) -> ChunkIndex {
        partial.manifest().layout().chunk_count().index(chunk).unwrap()
    }

    fn claim(partial: &PartialFile, which: u32) -> Option<Claim> {
        partial.claim(chunk(partial, which))
    }

    /// A chunk that was written as it came.
    fn claimed(partial: &PartialFile, data: &[u8], which: u32) -> Verifier {
        let mut verifier = Verifier::claimed(claim(partial, which).unwrap());
        for bytes in data.chunks(1 << 14).nth(which as usize).unwrap().chunks(1000) {
            verifier.push_now(bytes).unwrap();
        }
        verifier
    }
}
