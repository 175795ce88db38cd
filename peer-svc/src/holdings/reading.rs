//! Chunks that are held, opened for reading.

use std::{fs::File, path::PathBuf, sync::Arc, time::Instant};

use drizzle_proto::{ChunkIndex, FileId, FileName, Layout};

use super::{Backing, Holdings, Lost, LostContents, ReadError};
use crate::store::{disk::is_in_memory, read::open_unchanged, stamp::Stamp};

/// A chunk that may be read and sent.
#[derive(Debug)]
pub(crate) struct Readable {
    /// The data file.
    pub(crate) file: Arc<File>,
    /// Where it is, if that is not this peer's own state folder.
    pub(crate) path: Option<PathBuf>,
    /// Whether it lies in memory alone, so that no disk is waited for to read it.
    pub(crate) in_memory: bool,
    /// Where the chunk begins in it, in bytes.
    pub(crate) offset: u64,
    /// Bytes of the chunk.
    pub(crate) len: u32,
}

impl Holdings {
    /// A chunk of a file that is open already, or why it cannot be read; `None` if a file has to be opened for it. Asks no
    /// disk.
    pub(crate) fn open_chunk_now(&self, id: FileId, chunk: u32) -> Result<Option<Readable>, ReadError> {
        let (_, backing, index, layout) = self.find_chunk(id, chunk)?;
        let (open, path) = match backing {
            Backing::Partial(partial) => (partial.open_file().map(|file| (file, partial.is_in_memory())), None),
            Backing::Shared { path, stamp } => (self.open_files.get(&path, stamp, Instant::now()), Some(path)),
        };
        let (offset, len) = (layout.offset(index), layout.chunk_len(index));
        Ok(open.map(|(file, in_memory)| Readable { file, path, in_memory, offset, len }))
    }

    /// Files that were opened for chunks a while ago, to be dropped where that may wait for a disk; and whether any is
    /// left. To be called from time to time once one was.
    pub(crate) fn old_files(&self) -> (Vec<Arc<File>>, bool) {
        self.open_files.take_old(Instant::now())
    }

    /// Opens a chunk for reading. A shared file that is not the one that was hashed is dropped from the
    /// holdings, and the tracker hears of it. Blocks on a file system look-up.
    pub(crate) fn open_chunk(&self, id: FileId, chunk: u32) -> Result<Readable, ReadError> {
        loop {
            let (name, backing, index, layout) = self.find_chunk(id, chunk)?;
            let (offset, len) = (layout.offset(index), layout.chunk_len(index));
            match backing {
                Backing::Partial(partial) => {
                    let (file, in_memory) = (partial.file()?, partial.is_in_memory());
                    return Ok(Readable { file, path: None, in_memory, offset, len });
                }
                Backing::Shared { path, stamp } => match open_unchanged(&self.calls, &path, stamp)? {
                    Some(file) => {
                        let (in_memory, file) = (is_in_memory(&file), Arc::new(file));
                        self.open_files.opened(&path, (&file, in_memory), Instant::now());
                        return Ok(Readable { file, path: Some(path), in_memory, offset, len });
                    }
                    // The same content may be here under another name; each round drops one.
                    None => self.lost_while_served(&name, id, stamp, Lost::of(&self.calls, &path, stamp)?),
                },
            }
        }
    }

    fn lost_while_served(&self, name: &FileName, id: FileId, seen: Stamp, why: Lost) {
        if self.withhold(name, id, seen, why) {
            let mut inner = self.lock();
            // What is not remembered here is found by the next look at all shared files.
            if inner.doubts.len() < LostContents::MOST {
                inner.doubts.insert(name.clone());
            }
            self.has_doubts.notify_one();
        }
    }

    fn find_chunk(&self, id: FileId, chunk: u32) -> Result<(FileName, Backing, ChunkIndex, Layout), ReadError> {
        let inner = self.lock();
        let names =
            inner.by_id.get(&id).ok_or_else(|| inner.lost.why(id).map_or(ReadError::UnknownFile(id), Lost::error))?;
        for (name, entry) in names.iter().filter_map(|name| Some((name, inner.files.get(name)?))) {
            let count = entry.chunks.count();
            let index = count.index(chunk).ok_or(ReadError::NoSuchChunk { chunk, count: count.get() })?;
            if entry.chunks.contains(index) {
                return Ok((name.clone(), entry.backing.clone(), index, entry.manifest.layout()));
            }
        }
        // An id stands in the index only with a name that holds it.
        Err(ReadError::NotHeld(chunk))
    }
}
