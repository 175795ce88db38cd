//! Other peers that want to know which chunks of a file are held here, and which come.

use std::collections::HashMap;

use drizzle_proto::{ChunkSet, FileId};
use tokio::sync::watch;

use super::Holdings;

/// Rung when the chunks of a file change that somebody listens for.
#[derive(Debug, Default)]
pub(super) struct Bells(HashMap<FileId, watch::Sender<Scarce>>);

/// How many scarce chunks came of a file while somebody listened.
pub(crate) type Scarce = u64;

impl Bells {
    /// What is held of a file changed.
    pub(super) fn ring(&mut self, id: FileId) {
        self.stored(id, false);
    }

    /// One chunk more is held of it, which may be scarce.
    pub(super) fn stored(&mut self, id: FileId, is_scarce: bool) {
        if let Some(bell) = self.0.get(&id) {
            bell.send_modify(|scarce| *scarce += u64::from(is_scarce));
        }
    }

    fn listen(&mut self, id: FileId) -> watch::Receiver<Scarce> {
        // Those of files that nobody listens for any more.
        self.0.retain(|_, bell| bell.receiver_count() > 0);
        self.0.entry(id).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

impl Holdings {
    /// Rings when the chunks that are held of some content may have changed, and counts the scarce ones that came.
    pub(crate) fn listen(&self, id: FileId) -> watch::Receiver<Scarce> {
        self.lock().bells.listen(id)
    }

    /// The chunks that are held of some content, under any name, and the bytes of one; nothing if it is not known here.
    pub(crate) fn chunks_of(&self, id: FileId) -> Option<(ChunkSet, u32)> {
        let inner = self.lock();
        let mut entries = inner.by_id.get(&id)?.iter().filter_map(|name| inner.files.get(name));
        let first = entries.next()?;
        let (mut chunks, size) = (first.chunks.clone(), first.manifest.layout().chunk_size());
        entries.for_each(|entry| chunks.union_with(&entry.chunks));
        Some((chunks, size))
    }
}
