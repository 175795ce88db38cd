//! What the tracker has yet to hear of: pure bookkeeping, no I/O.
//!
//! Announcements of one file merge into one chunk set, so the backlog is bounded by what this peer holds
//! however long the tracker is away. A batch is taken out, sent, and either done or put back.
//!
//! What holds (each line has a property test):
//! - once every batch was delivered, the tracker knows exactly the chunks that are held, however often a batch was put
//!   back and whatever was gone and came back in between;
//! - a batch has at most [`MAX_BATCH`] files, each named once, with at most [`MAX_HASHES`] hashes each;
//! - what is told of a file is of the content that is held when the batch is taken.

use std::collections::BTreeMap;

use drizzle_proto::{
    ChunkSet, FileId, FileInfo, FileName, Manifest, Signature,
    announcement::FileChunks,
    limits::{MAX_BATCH, MAX_HASHES},
};

/// Bytes of a batch, estimated; far below what a receiver refuses.
const BATCH_BYTES: usize = 512 << 10;
/// Manifests up to this many chunks go along unasked: asking would cost a round trip for each small file.
const INLINE_HASHES: usize = 64;

/// News of one file. What is gone is told first, and what is held now in a later batch, so that the tracker does not
/// take what was held once for what is held now.
#[derive(Debug, Default)]
struct News {
    /// Nothing is held of this content any more.
    gone: Option<FileInfo>,
    /// What is held of the name's content now.
    held: Option<HeldNews>,
}

#[derive(Debug)]
struct HeldNews {
    /// Of which content: the name may stand for other content by the time this is sent.
    id: FileId,
    chunks: ChunkSet,
    /// First hash that the tracker misses, if it said so.
    hashes_from: Option<u32>,
    /// The tracker may never have heard of the file: small manifests go along.
    fresh: bool,
}

/// The backlog, by name.
#[derive(Debug, Default)]
pub struct Announcements {
    pending: BTreeMap<FileName, News>,
}

impl Announcements {
    /// Adds held chunks.
    pub fn held(&mut self, name: &FileName, id: FileId, chunks: &ChunkSet, fresh: bool) {
        let news = self.pending.entry(name.clone()).or_default();
        match &mut news.held {
            Some(known) if known.id == id => {
                known.chunks.union_with(chunks);
                known.fresh |= fresh;
            }
            held => *held = Some(HeldNews { id, chunks: chunks.clone(), hashes_from: None, fresh }),
        }
    }

    /// Says that nothing of a file is held any more; replaces what was pending.
    pub fn gone(&mut self, file: FileInfo) {
        self.pending.insert(file.name.clone(), News { gone: Some(file), held: None });
    }

    /// The tracker wants hashes: sends the same chunks again with them.
    pub fn wants_hashes(&mut self, name: &FileName, id: FileId, chunks: &ChunkSet, from: u32) {
        self.held(name, id, chunks, false);
        if let Some(held) = self.pending.get_mut(name).and_then(|news| news.held.as_mut()) {
            held.hashes_from = Some(from);
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

    /// Takes out the next batch. `held_as` tells the manifest of a name that is held, whether it is to take the place of
    /// what this peer registered under that name, and a signature that the tracker has not heard of.
    pub fn take_batch(
        &mut self,
        held_as: impl Fn(&FileName) -> Option<(Manifest, bool, Option<Signature>)>,
    ) -> Vec<FileChunks> {
        let mut batch = Vec::new();
        let mut later = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES && batch.len() < MAX_BATCH {
            let Some((name, news)) = self.pending.pop_first() else { break };
            let entry = match news {
                News { gone: Some(file), held } => {
                    if held.is_some() {
                        later.push((name, News { gone: None, held }));
                    }
                    let held = ChunkSet::empty(file.layout.chunk_count());
                    FileChunks {
                        file,
                        first_hash: 0,
                        hashes: Vec::new(),
                        held,
                        gone: true,
                        replace: false,
                        signature: None,
                    }
                }
                News { gone: None, held: Some(HeldNews { id, chunks, hashes_from, fresh }) } => {
                    // Gone from here meanwhile, or other content now: its own news follows.
                    let held_as = held_as(&name).filter(|(manifest, ..)| manifest.id() == id);
                    let Some((manifest, replace, signature)) = held_as else { continue };
                    let inline = fresh && manifest.hashes().len() <= INLINE_HASHES;
                    let first_hash = hashes_from.unwrap_or(0);
                    let hashes = match hashes_from {
                        Some(from) => manifest.hashes().iter().skip(from as usize).take(MAX_HASHES).copied().collect(),
                        None if inline => manifest.hashes().to_vec(),
                        None => Vec::new(),
                    };
                    let (file, held) = (manifest.describe(name), chunks);
                    FileChunks { file, first_hash, hashes, held, gone: false, replace, signature }
                }
                News { gone: None, held: None } => continue,
            };
            // Its statement names the file once more.
            let signed = |signature: &Signature| 200 + entry.file.name.as_str().len() + signature.minisign().len();
            bytes += entry.signature.as_ref().map_or(0, signed);
            bytes +=
                160 + entry.file.name.as_str().len() + entry.hashes.len() * 66 + entry.held.count().get() as usize / 8;
            batch.push(entry);
        }
        self.pending.extend(later);
        batch
    }

    /// Puts a batch back that was not delivered. What became pending meanwhile is newer and stands.
    pub fn put_back(&mut self, batch: Vec<FileChunks>) {
        for entry in batch {
            let news = self.pending.entry(entry.file.name.clone()).or_default();
            match &news.held {
                _ if news.gone.is_some() => {}
                _ if entry.gone => news.gone = Some(entry.file),
                Some(held) if held.id != entry.file.id => {}
                _ => self.held(&entry.file.name, entry.file.id, &entry.held, true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Digest, Layout};
    use proptest::prelude::*;

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
        let batch = pending.take_batch(|_| Some((manifest.clone(), false, None)));
        assert_eq!(batch.len(), 1);
        assert_eq!(batch[0].held.ranges().to_string(), "0-3,7");
        assert!(batch[0].hashes.is_empty(), "100 hashes are sent only when asked for");
        assert!(pending.is_empty());
        pending.held(&name("a"), manifest.id(), &set(&manifest, "9"), false);
        pending.put_back(batch);
        assert_eq!(
            pending.take_batch(|_| Some((manifest.clone(), false, None)))[0].held.ranges().to_string(),
            "0-3,7,9"
        );
    }

    #[test]
    fn news_of_replaced_content_is_not_told_of_its_successor() {
        let (old, new) = (manifest(2), {
            let layout = Layout::new(2 << 14, 1 << 14).unwrap();
            Manifest::new(layout, vec![Digest::of(b"new"); 2]).unwrap()
        });
        let mut pending = Announcements::default();
        pending.held(&name("a"), old.id(), &set(&old, "0-1"), true);
        let batch = pending.take_batch(|_| Some((old.clone(), false, None)));
        pending.put_back(batch);
        assert!(pending.take_batch(|_| Some((new.clone(), false, None))).is_empty());
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
            let batch = pending.take_batch(|_| Some((small.clone(), false, None)));
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
        let batch = pending.take_batch(|_| Some((long.clone(), true, None)));
        assert_eq!((batch[0].first_hash, batch[0].hashes.len()), (8192, MAX_HASHES));
    }

    #[test]
    fn gone_outlives_what_was_sent_before() {
        let manifest = manifest(2);
        let mut pending = Announcements::default();
        pending.held(&name("a"), manifest.id(), &set(&manifest, "0"), true);
        let batch = pending.take_batch(|_| Some((manifest.clone(), false, None)));
        pending.gone(manifest.describe(name("a")));
        pending.put_back(batch);
        let batch = pending.take_batch(|_| None);
        assert!(batch.len() == 1 && batch[0].gone);
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// A chunk of a file's present content is stored.
        Held(u8, u32),
        /// Nothing of the file is held any more.
        Gone(u8),
        /// The name stands for other content from now on.
        Replaced(u8),
        /// A batch is taken out.
        Take,
        /// The batch that is out was delivered, or not.
        End(bool),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u8..3, 0u32..6).prop_map(|(file, chunk)| Event::Held(file, chunk)),
            1 => (0u8..3).prop_map(Event::Gone),
            1 => (0u8..3).prop_map(Event::Replaced),
            3 => Just(Event::Take),
            3 => any::<bool>().prop_map(Event::End),
        ]
    }

    /// A file that this peer may hold, and what the tracker was told of it.
    struct File {
        name: FileName,
        manifest: Manifest,
        held: ChunkSet,
        told: BTreeMap<FileId, ChunkSet>,
    }

    fn content(version: u64) -> Manifest {
        let layout = Layout::new(6 << 14, 1 << 14).unwrap();
        Manifest::new(layout, vec![Digest::of(&version.to_le_bytes()); 6]).unwrap()
    }

    proptest! {
        #[test]
        fn the_tracker_hears_of_everything_in_the_end(events in proptest::collection::vec(events(), 1..120)) {
            let nothing = ChunkSet::empty(content(0).layout().chunk_count());
            let mut files: Vec<File> = (0..3)
                .map(|n| {
                    let name = name(&format!("file-{n}"));
                    File { name, manifest: content(n), held: nothing.clone(), told: BTreeMap::new() }
                })
                .collect();
            let (mut pending, mut out, mut versions) = (Announcements::default(), None::<Vec<FileChunks>>, 3);
            let finish = [Event::End(true), Event::Take, Event::End(true), Event::Take, Event::End(true)];
            for event in events.into_iter().chain(finish) {
                match event {
                    Event::Held(n, chunk) => {
                        let File { name, manifest, held, .. } = &mut files[usize::from(n)];
                        let chunk = set(manifest, &chunk.to_string());
                        let is_first = held.is_empty();
                        held.union_with(&chunk);
                        pending.held(name, manifest.id(), &chunk, is_first);
                    }
                    Event::Gone(n) => {
                        let file = &mut files[usize::from(n)];
                        file.held = nothing.clone();
                        pending.gone(file.manifest.describe(file.name.clone()));
                    }
                    Event::Replaced(n) => {
                        let file = &mut files[usize::from(n)];
                        pending.gone(file.manifest.describe(file.name.clone()));
                        (file.held, file.manifest) = (nothing.clone(), content(versions));
                        versions += 1;
                    }
                    Event::Take if out.is_none() => {
                        let held = |name: &FileName| {
                            let file = files.iter().find(|file| file.name == *name && !file.held.is_empty());
                            file.map(|file| (file.manifest.clone(), false, None))
                        };
                        let batch = pending.take_batch(held);
                        prop_assert!(batch.len() <= MAX_BATCH);
                        prop_assert!(batch.iter().all(|entry| entry.hashes.len() <= MAX_HASHES));
                        let names: std::collections::BTreeSet<_> = batch.iter().map(|entry| &entry.file.name).collect();
                        prop_assert_eq!(names.len(), batch.len(), "each file once");
                        for entry in batch.iter().filter(|entry| !entry.gone) {
                            let file = files.iter().find(|file| file.name == entry.file.name).unwrap();
                            prop_assert_eq!(entry.file.id, file.manifest.id(), "other content");
                        }
                        out = Some(batch);
                    }
                    Event::Take => {}
                    Event::End(delivered) => match out.take() {
                        None => {}
                        Some(batch) if !delivered => pending.put_back(batch),
                        Some(batch) => for entry in batch {
                            let file = files.iter_mut().find(|file| file.name == entry.file.name).unwrap();
                            let told = file.told.entry(entry.file.id).or_insert_with(|| nothing.clone());
                            if entry.gone {
                                *told = nothing.clone();
                            } else {
                                told.union_with(&entry.held);
                            }
                        }
                    },
                }
            }
            prop_assert!(pending.is_empty());
            for File { manifest, held, told, .. } in files {
                let of_now = told.get(&manifest.id()).unwrap_or(&nothing);
                prop_assert_eq!(of_now.ranges().to_string(), held.ranges().to_string());
            }
        }
    }
}
