//! Which chunks of a file: a bitfield, and ranges as a person writes them.
//!
//! Invariant: a [`ChunkSet`] has no bit at or beyond its count, so every index it yields exists.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use crate::{ChunkCount, ChunkIndex};

/// A set of chunks of a file with a known chunk count; one bit per chunk.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkSet {
    count: ChunkCount,
    len: u32,
    words: Box<[u64]>,
}

impl ChunkSet {
    /// No chunk of a file with `count` chunks.
    pub fn empty(count: ChunkCount) -> Self {
        Self { count, len: 0, words: vec![0; count.get().div_ceil(64) as usize].into() }
    }

    /// Every chunk of a file with `count` chunks.
    pub fn full(count: ChunkCount) -> Self {
        let mut set = Self::empty(count);
        set.words.fill(u64::MAX);
        if let (Some(last), spare @ 1..) = (set.words.last_mut(), count.get() % 64) {
            *last = (1 << spare) - 1;
        }
        set.len = count.get();
        set
    }

    /// The chunks in the given ranges; the first index that does not exist is the error.
    pub fn from_ranges(count: ChunkCount, ranges: &ChunkRanges) -> Result<Self, NoSuchChunk> {
        let mut set = Self::empty(count);
        for range in &ranges.0 {
            let last = *range.end();
            count.index(last).ok_or(NoSuchChunk { chunk: last, count: count.get() })?;
            set.insert_run(*range.start(), last + 1);
        }
        Ok(set)
    }

    /// From little-endian bitfield bytes; `None` unless there are exactly ceil(count / 8) bytes and
    /// the spare bits are zero.
    pub fn from_bits(count: ChunkCount, bits: &[u8]) -> Option<Self> {
        if bits.len() != count.get().div_ceil(8) as usize {
            return None;
        }
        let mut set = Self::empty(count);
        for (word, bytes) in set.words.iter_mut().zip(bits.chunks(8)) {
            let mut buffer = [0; 8];
            buffer[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(buffer);
        }
        if let (Some(last), spare @ 1..) = (set.words.last(), count.get() % 64)
            && last >> spare != 0
        {
            return None;
        }
        set.len = set.words.iter().map(|word| word.count_ones()).sum();
        Some(set)
    }

    /// The bitfield: bit i is bit (i mod 8) of byte i / 8; ceil(count / 8) bytes.
    pub fn to_bits(&self) -> Vec<u8> {
        let mut bits: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bits.truncate(self.count.get().div_ceil(8) as usize);
        bits
    }

    /// Chunks of the file.
    pub fn count(&self) -> ChunkCount {
        self.count
    }

    /// Chunks in the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no chunk is in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every chunk of the file is in the set; always so for an empty file.
    pub fn is_full(&self) -> bool {
        self.len == self.count.get()
    }

    /// Whether a chunk is in the set.
    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        self.words.get(chunk.as_usize() / 64).is_some_and(|word| word & Self::bit(chunk) != 0)
    }

    /// Adds a chunk; whether it is new. A chunk of a longer file is not added.
    pub fn insert(&mut self, chunk: ChunkIndex) -> bool {
        let new = self.count.index(chunk.get()).is_some() && !self.contains(chunk);
        if new {
            self.words[chunk.as_usize() / 64] |= Self::bit(chunk);
            self.len += 1;
        }
        new
    }

    /// Adds the chunks from `first` to before `end`, as far as they exist. A few steps for each 64 chunks: a few bytes on
    /// the wire may name a quarter of a million.
    pub(crate) fn insert_run(&mut self, first: u32, end: u32) {
        let end = end.min(self.count.get());
        let mut at = first;
        while at < end {
            let next = end.min((at / 64 + 1) * 64);
            let bits = (u64::MAX >> (64 - (next - at))) << (at % 64);
            let word = &mut self.words[at as usize / 64];
            self.len += (bits & !*word).count_ones();
            *word |= bits;
            at = next;
        }
    }

    /// Takes a chunk out; whether it was in.
    pub fn remove(&mut self, chunk: ChunkIndex) -> bool {
        let had = self.contains(chunk);
        if had {
            self.words[chunk.as_usize() / 64] &= !Self::bit(chunk);
            self.len -= 1;
        }
        had
    }

    /// Adds the chunks of another set over the same count.
    pub fn union_with(&mut self, other: &Self) {
        debug_assert_eq!(self.count, other.count);
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            let new = more & !*word;
            // News is small against the file: mostly there is nothing to count.
            if new != 0 {
                *word |= new;
                self.len += new.count_ones();
            }
        }
    }

    /// The chunks that are in this set but not in the other, over the same count.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        debug_assert_eq!(self.count, other.count);
        let mut left = self.clone();
        for (word, less) in left.words.iter_mut().zip(&other.words) {
            *word &= !less;
        }
        left.recount();
        left
    }

    /// The chunks that are in both sets, over the same count.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        debug_assert_eq!(self.count, other.count);
        let mut both = self.clone();
        for (word, common) in both.words.iter_mut().zip(&other.words) {
            *word &= common;
        }
        both.recount();
        both
    }

    /// Whether some chunk is in both sets, over the same count.
    pub fn intersects(&self, other: &Self) -> bool {
        debug_assert_eq!(self.count, other.count);
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// The chunks in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        let count = self.count;
        (0u32..).zip(&self.words).filter(|(_, word)| **word != 0).flat_map(move |(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                count.index(at * 64 + bit)
            })
        })
    }

    /// The set as maximal ranges, ascending.
    pub fn ranges(&self) -> ChunkRanges {
        let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
        for chunk in self.iter().map(ChunkIndex::get) {
            match ranges.last_mut() {
                Some(last) if last.end() + 1 == chunk => *last = *last.start()..=chunk,
                _ => ranges.push(chunk..=chunk),
            }
        }
        ChunkRanges(ranges)
    }

    fn bit(chunk: ChunkIndex) -> u64 {
        1 << (chunk.get() % 64)
    }

    fn recount(&mut self) {
        self.len = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

impl fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkSet({}/{}: {})", self.len, self.count.get(), self.ranges())
    }
}

/// A chunk index beyond the end of the file at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no chunk {chunk}: the file has {count} chunks, counted from 0")]
pub struct NoSuchChunk {
    /// The index that was asked for.
    pub chunk: u32,
    /// Chunks of the file.
    pub count: u32,
}

/// Chunks as a person writes them: `0-9,15`. Ranges are inclusive, ascending and apart; whether the
/// chunks exist is decided by [`ChunkSet::from_ranges`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkRanges(Vec<RangeInclusive<u32>>);

/// The text is no list of chunks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of chunks such as 0-9,15")]
pub struct RangesError(String);

impl ChunkRanges {
    /// From pairs of first and last index; `None` if a range runs backwards. Sorted and merged, so that
    /// no list however long names a chunk twice.
    pub fn new(ranges: impl IntoIterator<Item = (u32, u32)>) -> Option<Self> {
        let mut pairs: Vec<(u32, u32)> = ranges.into_iter().collect();
        if pairs.iter().any(|(first, last)| first > last) {
            return None;
        }
        pairs.sort_unstable();
        let mut merged: Vec<RangeInclusive<u32>> = Vec::with_capacity(pairs.len());
        for (first, last) in pairs {
            match merged.last_mut() {
                Some(before) if first <= before.end().saturating_add(1) => {
                    *before = *before.start()..=last.max(*before.end());
                }
                _ => merged.push(first..=last),
            }
        }
        Some(Self(merged))
    }

    /// First and last index of each range.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        self.0.iter().map(|range| (*range.start(), *range.end()))
    }

    /// Whether no range is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for ChunkRanges {
    type Err = RangesError;

    fn from_str(text: &str) -> Result<Self, RangesError> {
        let number = |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None };
        let pair = |part: &str| match part.split_once('-') {
            Some((first, last)) => Some((number(first)?, number(last)?)),
            None => number(part).map(|only| (only, only)),
        };
        text.split(',')
            .map(|part| pair(part.trim()))
            .collect::<Option<Vec<_>>>()
            .and_then(Self::new)
            .ok_or_else(|| RangesError(text.to_owned()))
    }
}

impl fmt::Display for ChunkRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn count(n: u32) -> ChunkCount {
        ChunkCount::new(n).unwrap()
    }

    fn set_of(n: u32, chunks: &BTreeSet<u32>) -> ChunkSet {
        let mut set = ChunkSet::empty(count(n));
        for &chunk in chunks {
            assert!(set.insert(count(n).index(chunk).unwrap()));
        }
        set
    }

    /// A chunk count, mostly near the edges of a byte and a word, and a subset of its indices.
    fn sets() -> impl Strategy<Value = (u32, BTreeSet<u32>)> {
        prop_oneof![Just(1u32), Just(7), Just(8), Just(9), Just(63), Just(64), Just(65), 1u32..300]
            .prop_flat_map(|n| (Just(n), proptest::collection::btree_set(0..n, 0..=n as usize)))
    }

    proptest! {
        #[test]
        fn behaves_like_a_set((n, chunks) in sets(), other in proptest::collection::btree_set(0u32..300, 0..100)) {
            let set = set_of(n, &chunks);
            let other: BTreeSet<u32> = other.into_iter().filter(|&chunk| chunk < n).collect();
            prop_assert_eq!(set.iter().map(ChunkIndex::get).collect::<BTreeSet<_>>(), chunks.clone());
            prop_assert_eq!(set.len() as usize, chunks.len());
            prop_assert_eq!(set.is_full(), chunks.len() == n as usize);
            prop_assert_eq!(set.difference(&set_of(n, &other)), set_of(n, &chunks.difference(&other).copied().collect()));
            prop_assert_eq!(set.intersection(&set_of(n, &other)), set_of(n, &chunks.intersection(&other).copied().collect()));
            prop_assert_eq!(set.intersects(&set_of(n, &other)), chunks.intersection(&other).next().is_some());
            let mut union = set.clone();
            union.union_with(&set_of(n, &other));
            prop_assert_eq!(union, set_of(n, &chunks.union(&other).copied().collect()));
            let mut emptied = set.clone();
            for chunk in set.iter() {
                prop_assert!(emptied.remove(chunk));
            }
            prop_assert_eq!(emptied, ChunkSet::empty(count(n)));
        }

        #[test]
        fn bits_and_ranges_round_trip((n, chunks) in sets()) {
            let set = set_of(n, &chunks);
            prop_assert_eq!(ChunkSet::from_bits(count(n), &set.to_bits()), Some(set.clone()));
            let ranges = set.ranges();
            prop_assert_eq!(ChunkSet::from_ranges(count(n), &ranges), Ok(set.clone()));
            if !set.is_empty() {
                prop_assert_eq!(ranges.to_string().parse(), Ok(ranges));
            }
        }
    }

    #[test]
    fn full_sets() {
        for n in [0, 1, 63, 64, 65, 128] {
            let full = ChunkSet::full(count(n));
            assert!(full.is_full());
            assert_eq!(full.iter().count(), n as usize);
            assert_eq!(ChunkSet::from_bits(count(n), &full.to_bits()), Some(full));
        }
    }

    #[test]
    fn bits_beyond_the_count_are_refused() {
        assert!(ChunkSet::from_bits(count(4), &[0b1_0000]).is_none());
        assert!(ChunkSet::from_bits(count(4), &[]).is_none());
        assert!(ChunkSet::from_bits(count(4), &[1, 0]).is_none());
        assert!(ChunkSet::from_bits(count(70), &[0, 0, 0, 0, 0, 0, 0, 0, 0b100_0000]).is_none());
    }

    #[test]
    fn lists_of_chunks() {
        assert_eq!("0-2,15".parse::<ChunkRanges>().unwrap().to_string(), "0-2,15");
        assert_eq!("15,3-9,0-4,10,15".parse::<ChunkRanges>().unwrap().to_string(), "0-10,15");
        for bad in ["", "-", "1-", "-1", "2-1", "a", "1,,2", "+1", "4294967296"] {
            assert!(bad.parse::<ChunkRanges>().is_err(), "{bad}");
        }
        let far: ChunkRanges = "0,4000000000-4294967295".parse().unwrap();
        assert_eq!(ChunkSet::from_ranges(count(9), &far), Err(NoSuchChunk { chunk: u32::MAX, count: 9 }));
    }
}
