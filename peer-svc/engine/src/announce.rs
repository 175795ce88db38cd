//! What the tracker has yet to hear of: pure bookkeeping, no I/O.
//!
//! Announcements of one file merge into one chunk set, so the backlog is bounded by what this peer holds
//! however long the tracker is away. A batch is taken out, sent, and either done or put back.

use std::collections::BTreeMap;

use drizzle_proto::{
    ChunkSet, FileId, FileInfo, FileName, Manifest,
    announcement::FileChunks,
    limits::{MAX_BATCH, MAX_HASHES},
};

/// Bytes of a batch, estimated; far below what a receiver refuses.
const BATCH_BYTES: usize = 512 << 10;
/// Manifests up to this many chunks go along unasked: asking would cost a round trip for each small file.
const INLINE_HASHES: usize = 64;

/// News of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Chunks held in addition. `hashes_from` is where the tracker misses hashes, if it said so; `fresh`
    /// if it may never have heard of the file.
    Held {
        /// Of which content: the name may stand for other content by the time this is sent.
        id: FileId,
        /// The chunks.
        chunks: ChunkSet,
        /// First hash that the tracker misses.
        hashes_from: Option<u32>,
        /// Whether small manifests should go along.
        fresh: bool,
    },
    /// Nothing is held any more.
    Gone(FileInfo),
}

/// The backlog, by name.
#[derive(Debug, Default)]
pub struct Announcements {
    pending: BTreeMap<FileName, News>,
}

impl Announcements {
    /// Adds held chunks.
    pub fn held(&mut self, name: &FileName, id: FileId, chunks: &ChunkSet, fresh: bool) {
        match self.pending.get_mut(name) {
            Some(News::Held { id: known_id, chunks: known, fresh: was_fresh, .. }) if *known_id == id => {
                known.union_with(chunks);
                *was_fresh |= fresh;
            }
            _ => {
                let news = News::Held { id, chunks: chunks.clone(), hashes_from: None, fresh };
                self.pending.insert(name.clone(), news);
            }
        }
    }

    /// Says that nothing of a file is held any more; replaces what was pending.
    pub fn gone(&mut self, file: FileInfo) {
        self.pending.insert(file.name.clone(), News::Gone(file));
    }

    /// The tracker wants hashes: sends the same chunks again with them.
    pub fn wants_hashes(&mut self, name: &FileName, id: FileId, chunks: &ChunkSet, from: u32) {
        self.held(name, id, chunks, false);
        if let Some(News::Held { hashes_from, .. }) = self.pending.get_mut(name) {
            *hashes_from = Some(from);
        }
    }

    /// Drops everything: a new lease begins with a full announcement.
    pub fn clear(&mut self) {
        self.pending.clear();
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes out the next batch. `manifest` tells the manifest of a name that is held.
    pub fn take_batch(&mut self, manifest: impl Fn(&FileName) -> Option<Manifest>) -> Vec<FileChunks> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES && batch.len() < MAX_BATCH {
            let Some((name, news)) = self.pending.pop_first() else { break };
            let entry = match news {
                News::Gone(file) => {
                    let held = ChunkSet::empty(file.layout.chunk_count());
                    FileChunks { file, first_hash: 0, hashes: Vec::new(), held, gone: true }
                }
                News::Held { id, chunks, hashes_from, fresh } => {
                    // Gone from here meanwhile, or other content now: its own news follows.
                    let Some(manifest) = manifest(&name).filter(|m| m.id() == id) else {
                        continue;
                    };
                    let inline = fresh && manifest.hashes().len() <= INLINE_HASHES;
                    let first_hash = hashes_from.unwrap_or(0);
                    let hashes = match hashes_from {
                        Some(from) => manifest.hashes().iter().skip(from as usize).take(MAX_HASHES).copied().collect(),
                        None if inline => manifest.hashes().to_vec(),
                        None => Vec::new(),
                    };
                    FileChunks { file: manifest.describe(name), first_hash, hashes, held: chunks, gone: false }
                }
            };
            bytes +=
                160 + entry.file.name.as_str().len() + entry.hashes.len() * 66 + entry.held.count().get() as usize / 8;
            batch.push(entry);
        }
        batch
    }

    /// Puts a batch back that was not delivered. What became pending meanwhile stands.
    pub fn put_back(&mut self, batch: Vec<FileChunks>) {
        for entry in batch {
            match self.pending.get(&entry.file.name) {
                Some(News::Gone(_)) => {}
                _ if entry.gone => {
                    self.pending.entry(entry.file.name.clone()).or_insert(News::Gone(entry.file));
                }
                _ => self.held(&entry.file.name, entry.file.id, &entry.held, true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Digest, Layout};

    use super::*;

    fn manifest(chunks: u64) -> Manifest {
        let layout = Layout::new(chunks << 14, 1 << 14).unwrap();
        Manifest::new(layout, vec![Digest::of(b""); usize::try_from(chunks).unwrap()]).unwrap()
    }

    fn set(manifest: &Manifest, ranges: &str) -> ChunkSet {
        ChunkSet::from_ranges(manifest.layout().chunk_count(), &ranges.parse().unwrap()).unwrap()
    }

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    #[test]
    fn news_of_one_file_merges() {
        let manifest = manifest(100);
        let mut pending = Announcements::default();
        pending.held(&name("a"), manifest.id(), &set(&manifest, "0-3"), false);
        pending.held(&name("a"), manifest.id(), &set(&manifest, "7"), false);
        let batch = pending.take_batch(|_| Some(manifest.clone()));
        assert_eq!(batch.len(), 1);
        assert_eq!(batch[0].held.ranges().to_string(), "0-3,7");
        assert!(batch[0].hashes.is_empty(), "100 hashes are sent only when asked for");
        assert!(pending.is_empty());
        pending.held(&name("a"), manifest.id(), &set(&manifest, "9"), false);
        pending.put_back(batch);
        assert_eq!(pending.take_batch(|_| Some(manifest.clone()))[0].held.ranges().to_string(), "0-3,7,9");
    }

    #[test]
    fn news_of_replaced_content_is_not_told_of_its_successor() {
        let (old, new) = (manifest(2), {
            let layout = Layout::new(2 << 14, 1 << 14).unwrap();
            Manifest::new(layout, vec![Digest::of(b"new"); 2]).unwrap()
        });
        let mut pending = Announcements::default();
        pending.held(&name("a"), old.id(), &set(&old, "0-1"), true);
        let batch = pending.take_batch(|_| Some(old.clone()));
        pending.put_back(batch);
        assert!(pending.take_batch(|_| Some(new.clone())).is_empty());
    }

    #[test]
    fn batches_are_bounded_and_lose_nothing() {
        let small = manifest(1);
        let mut pending = Announcements::default();
        for i in 0..10_000 {
            pending.held(&name(&format!("file-{i}")), small.id(), &set(&small, "0"), true);
        }
        let (mut files, mut batches) = (0, 0);
        while !pending.is_empty() {
            let batch = pending.take_batch(|_| Some(small.clone()));
            assert!(batch.len() <= MAX_BATCH);
            assert!(batch.iter().all(|entry| entry.hashes.len() == 1));
            files += batch.len();
            batches += 1;
        }
        assert_eq!(files, 10_000);
        assert!(batches < 10, "{batches} batches");
    }

    #[test]
    fn long_manifests_go_in_parts() {
        let long = manifest(20_000);
        let mut pending = Announcements::default();
        pending.wants_hashes(&name("a"), long.id(), &set(&long, "0"), 8192);
        let batch = pending.take_batch(|_| Some(long.clone()));
        assert_eq!((batch[0].first_hash, batch[0].hashes.len()), (8192, MAX_HASHES));
    }

    #[test]
    fn gone_outlives_what_was_sent_before() {
        let manifest = manifest(2);
        let mut pending = Announcements::default();
        pending.held(&name("a"), manifest.id(), &set(&manifest, "0"), true);
        let batch = pending.take_batch(|_| Some(manifest.clone()));
        pending.gone(manifest.describe(name("a")));
        pending.put_back(batch);
        let batch = pending.take_batch(|_| None);
        assert!(batch.len() == 1 && batch[0].gone);
    }
}
