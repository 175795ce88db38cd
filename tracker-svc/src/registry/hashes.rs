//! Pages of chunk hashes that were asked for lately: a crowd that downloads one file asks for the same ones.
//!
//! A page belongs to a content, which never changes, so nothing is ever taken out because it became wrong. Whether a name
//! stands for that content is asked elsewhere, each time.

use bytes::Bytes;
use drizzle_proto::FileId;
use quick_cache::{Weighter, sync::Cache};

use crate::limits::CACHED_HASHES;

/// What a page needs beside its hashes, about.
const OVERHEAD: u64 = 128;
/// A page is mostly as long as it may be, which is 256 KiB.
const PAGES: usize = (CACHED_HASHES >> 18) as usize;

/// A content, and the first chunk whose hash is in the page.
type Key = (FileId, u32);

#[derive(Debug, Clone)]
struct Size;

impl Weighter<Key, Bytes> for Size {
    fn weight(&self, _: &Key, hashes: &Bytes) -> u64 {
        hashes.len() as u64 + OVERHEAD
    }
}

/// The pages, at most [`CACHED_HASHES`] bytes of them.
#[derive(Debug)]
pub(super) struct Pages(Cache<Key, Bytes, Size>);

impl Pages {
    pub(super) fn new() -> Self {
        Self(Cache::with_weighter(PAGES, CACHED_HASHES, Size))
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.0.weight()
    }

    /// A page, 32 bytes a hash, if it is here.
    pub(super) fn get(&self, file: FileId, first: u32) -> Option<Bytes> {
        self.0.get(&(file, first))
    }

    pub(super) fn insert(&self, file: FileId, first: u32, hashes: &Bytes) {
        // A caller may ask for any first one: only what many ask for alike is worth its room.
        if (first as usize).is_multiple_of(drizzle_proto::limits::MAX_HASHES) && !hashes.is_empty() {
            self.0.insert((file, first), hashes.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Digest, limits::MAX_HASHES};

    use super::*;

    fn file(n: u32) -> FileId {
        FileId::from_digest(Digest::of(&n.to_be_bytes()))
    }

    #[test]
    fn pages_are_found_and_their_bytes_bounded() {
        let pages = Pages::new();
        let page = Bytes::from(vec![7; MAX_HASHES * 32]);
        pages.insert(file(0), 0, &page);
        assert_eq!(
            (pages.get(file(0), 0), pages.get(file(0), 8192), pages.get(file(1), 0)),
            (Some(page.clone()), None, None)
        );
        pages.insert(file(0), 1, &page);
        assert_eq!(pages.get(file(0), 1), None, "nobody else asks for this one");
        for n in 0..1000 {
            pages.insert(file(n), 8192, &page);
        }
        assert!(pages.0.weight() <= CACHED_HASHES, "{}", pages.0.weight());
    }
}
