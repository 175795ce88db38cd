//! Chunk arithmetic: how a file of some size falls into fixed-size chunks.
//!
//! Every offset, length and index in Drizzle comes from here, so that an off-by-one can live in one
//! place only. A [`ChunkIndex`] is made by [`ChunkCount::index`] alone (everything else goes through
//! it) and is therefore below some file's chunk count; code that indexes with it names the file.

use std::fmt;

/// Smallest chunk size in bytes: below it the per-chunk cost of an RPC outweighs the data.
pub const MIN_CHUNK_SIZE: u32 = 16 << 10;
/// Largest chunk size in bytes: a chunk is held in memory until it is verified.
pub const MAX_CHUNK_SIZE: u32 = 64 << 20;
/// Most chunks of a file; its hashes are 8 MiB then and a chunk set 32 KiB.
pub const MAX_CHUNKS: u32 = 1 << 18;
/// Largest file in bytes (16 TiB).
pub const MAX_FILE_SIZE: u64 = MAX_CHUNK_SIZE as u64 * MAX_CHUNKS as u64;

const MIN_DEFAULT_CHUNK_SIZE: u64 = 64 << 10;
const MAX_DEFAULT_CHUNK_SIZE: u64 = 16 << 20;
/// More chunks spread better but cost more requests; about a thousand is where both are small.
const DEFAULT_CHUNKS: u64 = 1 << 10;

/// Why a size and a chunk size do not make a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The chunk size in bytes is no power of two within the bounds.
    #[error("chunk size {0} is not a power of two from {MIN_CHUNK_SIZE} (16 KiB) to {MAX_CHUNK_SIZE} (64 MiB)")]
    ChunkSize(u64),
    /// The file has more chunks than [`MAX_CHUNKS`].
    #[error(
        "{size} bytes make more than {MAX_CHUNKS} chunks of {chunk_size} bytes; use larger chunks (16 TiB is the largest file)"
    )]
    TooManyChunks {
        /// Bytes of the file.
        size: u64,
        /// Bytes of a chunk.
        chunk_size: u32,
    },
}

/// How many chunks a file has: 0 to [`MAX_CHUNKS`]. The sole maker of a [`ChunkIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkCount(u32);

impl ChunkCount {
    /// `None` above [`MAX_CHUNKS`].
    pub fn new(count: u32) -> Option<Self> {
        (count <= MAX_CHUNKS).then_some(Self(count))
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The index of an existing chunk; `None` if there is no such chunk.
    pub fn index(self, index: u32) -> Option<ChunkIndex> {
        (index < self.0).then_some(ChunkIndex(index))
    }

    /// Every index, ascending.
    pub fn indices(self) -> impl DoubleEndedIterator<Item = ChunkIndex> + ExactSizeIterator + Clone {
        (0..self.0).map(ChunkIndex)
    }
}

/// The index of a chunk that exists in the file at hand, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(u32);

impl ChunkIndex {
    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number for indexing slices.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A file's size and chunk size, known to be compatible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    size: u64,
    chunk_size: u32,
}

impl Layout {
    /// A file of `size` bytes in chunks of `chunk_size` bytes.
    pub fn new(size: u64, chunk_size: u32) -> Result<Self, LayoutError> {
        if !chunk_size.is_power_of_two() || !(MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(&chunk_size) {
            return Err(LayoutError::ChunkSize(chunk_size.into()));
        }
        if size.div_ceil(chunk_size.into()) > MAX_CHUNKS.into() {
            return Err(LayoutError::TooManyChunks { size, chunk_size });
        }
        Ok(Self { size, chunk_size })
    }

    /// A file of `size` bytes with the default chunk size: the power of two that gives about 1,000
    /// chunks, within 64 KiB and 16 MiB; beyond that as large as [`MAX_CHUNKS`] requires.
    pub fn with_default_chunk_size(size: u64) -> Result<Self, LayoutError> {
        let about = (size / DEFAULT_CHUNKS).checked_next_power_of_two().unwrap_or(u64::MAX);
        let wanted = about.clamp(MIN_DEFAULT_CHUNK_SIZE, MAX_DEFAULT_CHUNK_SIZE);
        let needed = size.div_ceil(MAX_CHUNKS.into()).checked_next_power_of_two().unwrap_or(u64::MAX);
        let chunk_size = u32::try_from(wanted.max(needed)).unwrap_or(MAX_CHUNK_SIZE).min(MAX_CHUNK_SIZE);
        Self::new(size, chunk_size)
    }

    /// Bytes of the file.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Bytes of every chunk but perhaps the last.
    pub fn chunk_size(self) -> u32 {
        self.chunk_size
    }

    /// How many chunks there are; none for an empty file.
    pub fn chunk_count(self) -> ChunkCount {
        // The constructor checked that this is at most MAX_CHUNKS.
        ChunkCount(u32::try_from(self.size.div_ceil(self.chunk_size.into())).unwrap_or(MAX_CHUNKS))
    }

    /// Where a chunk begins in the file, in bytes.
    pub fn offset(self, chunk: ChunkIndex) -> u64 {
        u64::from(chunk.0) * u64::from(self.chunk_size)
    }

    /// Bytes of a chunk: the chunk size, or what is left for the last one. Never 0 for a chunk of
    /// this file.
    pub fn chunk_len(self, chunk: ChunkIndex) -> u32 {
        let left = self.size.saturating_sub(self.offset(chunk));
        u32::try_from(left).unwrap_or(self.chunk_size).min(self.chunk_size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_at_the_edges_of_a_chunk() {
        let chunk = MIN_CHUNK_SIZE;
        for (size, count, last) in [
            (1, 1, 1),                            // the smallest file with content
            (u64::from(chunk) - 1, 1, chunk - 1), // one byte short
            (u64::from(chunk), 1, chunk),         // exact: no empty chunk behind it
            (u64::from(chunk) + 1, 2, 1),         // one byte over
            (u64::from(chunk) * 3, 3, chunk),     // exact multiple
        ] {
            let layout = Layout::new(size, chunk).unwrap();
            assert_eq!(layout.chunk_count().get(), count, "size {size}");
            let index = layout.chunk_count().index(count - 1).unwrap();
            assert_eq!(layout.chunk_len(index), last, "size {size}");
            assert_eq!(layout.chunk_count().index(count), None, "size {size}");
        }
        assert_eq!(Layout::new(0, chunk).unwrap().chunk_count().get(), 0);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for chunk_size in [0, 1, MIN_CHUNK_SIZE - 1, MIN_CHUNK_SIZE + 1, MAX_CHUNK_SIZE * 2, u32::MAX] {
            assert_eq!(Layout::new(1, chunk_size), Err(LayoutError::ChunkSize(chunk_size.into())));
        }
        assert!(Layout::new(MAX_FILE_SIZE, MAX_CHUNK_SIZE).is_ok());
        assert!(Layout::new(MAX_FILE_SIZE + 1, MAX_CHUNK_SIZE).is_err());
        assert!(Layout::new(u64::MAX, MAX_CHUNK_SIZE).is_err());
        assert!(Layout::with_default_chunk_size(u64::MAX).is_err());
        assert!(Layout::with_default_chunk_size(MAX_FILE_SIZE).is_ok());
    }

    #[test]
    fn default_chunk_sizes() {
        for (size, chunk_size) in [
            (0, 64 << 10),
            (64 << 20, 64 << 10),
            (256 << 20, 256 << 10),
            (1 << 30, 1 << 20),
            (64 << 30, 16 << 20),
            (8 << 40, 32 << 20), // 16 MiB would make more than MAX_CHUNKS
        ] {
            assert_eq!(Layout::with_default_chunk_size(size).unwrap().chunk_size(), chunk_size, "size {size}");
        }
    }

    proptest! {
        #[test]
        fn chunks_tile_the_file(size in 0..(1u64 << 40), shift in 14u32..27) {
            let Ok(layout) = Layout::new(size, 1 << shift) else {
                prop_assert!(size.div_ceil(1 << shift) > u64::from(MAX_CHUNKS));
                return Ok(());
            };
            let mut end = 0;
            for chunk in layout.chunk_count().indices() {
                prop_assert_eq!(layout.offset(chunk), end);
                prop_assert!(layout.chunk_len(chunk) > 0);
                end += u64::from(layout.chunk_len(chunk));
            }
            prop_assert_eq!(end, size);
        }
    }
}
