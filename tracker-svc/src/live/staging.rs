//! Manifests that arrive in parts, until they are whole.
//!
//! A manifest of more than 8192 chunks does not fit into one message. Its parts wait here, for each lease
//! apart, and go with the lease. Invariant: room for a whole manifest is set aside when its first part
//! arrives, so whatever is staged can be completed by a peer that keeps sending; what finds no room, or was given up
//! and dropped for others, is told to send again from the beginning. Never reads the clock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use drizzle_proto::{Digest, FileId, FileInfo, Layout, announcement::FileChunks};

use crate::limits::{MAX_STAGED, MAX_STAGED_BY_LEASE};

/// A manifest to which nothing was added for this long makes room for another one.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Parts {
    layout: Layout,
    hashes: Vec<Digest>,
    touched: Instant,
}

impl Parts {
    fn room(layout: Layout) -> usize {
        layout.chunk_count().get() as usize * size_of::<Digest>()
    }
}

/// The incomplete manifests of every lease.
#[derive(Debug, Default)]
pub struct Staging {
    leases: HashMap<u64, HashMap<FileId, Parts>>,
    total: usize,
    /// Before this, looking at every lease for what was given up would find nothing.
    sweep_at: Option<Instant>,
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub enum Staged {
    /// Every hash is there; whether they are the claimed file's is for the caller to check.
    Whole(Vec<Digest>),
    /// Hashes from this index on are missing.
    Misses(u32),
}

impl Staging {
    /// Adds the hashes of an entry to what its sender sent before.
    pub fn add(&mut self, lease: u64, entry: &FileChunks, now: Instant) -> Staged {
        let FileInfo { id, layout, .. } = entry.file;
        let count = layout.chunk_count().get() as usize;
        let first = entry.first_hash as usize;
        if first == 0 && entry.hashes.len() == count {
            self.drop_one(lease, id);
            return Staged::Whole(entry.hashes.clone());
        }
        if self.leases.get(&lease).and_then(|files| files.get(&id)).is_some_and(|parts| parts.layout != layout) {
            self.drop_one(lease, id);
        }
        let known = self.leases.get(&lease).is_some_and(|files| files.contains_key(&id));
        if !known && (first > 0 || entry.hashes.is_empty() || !self.make_room(lease, Parts::room(layout), now)) {
            return Staged::Misses(0);
        }
        if !known {
            self.total += Parts::room(layout);
        }
        let files = self.leases.entry(lease).or_default();
        let parts = files.entry(id).or_insert_with(|| Parts { layout, hashes: Vec::new(), touched: now });
        parts.touched = now;
        // A part that was sent before is sent again after a lost answer: take what is new of it.
        if let Some(new) = parts.hashes.len().checked_sub(first).and_then(|known| entry.hashes.get(known..)) {
            parts.hashes.extend_from_slice(new);
        }
        if parts.hashes.len() < count {
            // At most the chunk count, which is a u32.
            return Staged::Misses(u32::try_from(parts.hashes.len()).unwrap_or(u32::MAX));
        }
        let hashes = std::mem::take(&mut parts.hashes);
        self.drop_one(lease, id);
        Staged::Whole(hashes)
    }

    /// Bytes that are set aside.
    pub fn bytes(&self) -> usize {
        self.total
    }

    /// Forgets everything of a lease.
    pub fn drop_lease(&mut self, lease: u64) {
        for parts in self.leases.remove(&lease).unwrap_or_default().values() {
            self.total -= Parts::room(parts.layout);
        }
    }

    fn drop_one(&mut self, lease: u64, id: FileId) {
        let Some(files) = self.leases.get_mut(&lease) else { return };
        if let Some(parts) = files.remove(&id) {
            self.total -= Parts::room(parts.layout);
        }
        if files.is_empty() {
            self.leases.remove(&lease);
        }
    }

    /// Whether there is room, if need be by dropping what was given up.
    fn make_room(&mut self, lease: u64, wanted: usize, now: Instant) -> bool {
        if self.used(lease) + wanted > MAX_STAGED_BY_LEASE {
            self.drop_given_up(lease, now);
        }
        if self.used(lease) + wanted > MAX_STAGED_BY_LEASE {
            return false;
        }
        if self.total + wanted > MAX_STAGED && self.sweep_at.is_none_or(|at| at <= now) {
            for lease in self.leases.keys().copied().collect::<Vec<_>>() {
                self.drop_given_up(lease, now);
            }
            // What is left, and whatever comes, is touched later than the oldest of these.
            let oldest = self.leases.values().flatten().map(|(_, parts)| parts.touched).min();
            self.sweep_at = oldest.map(|touched| touched + PATIENCE);
        }
        self.total + wanted <= MAX_STAGED
    }

    fn used(&self, lease: u64) -> usize {
        let files = self.leases.get(&lease).into_iter().flatten();
        files.map(|(_, parts)| Parts::room(parts.layout)).sum()
    }

    fn drop_given_up(&mut self, lease: u64, now: Instant) {
        let files = self.leases.get(&lease).into_iter().flatten();
        let given_up = files.filter(|(_, parts)| now.duration_since(parts.touched) >= PATIENCE);
        for id in given_up.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.drop_one(lease, id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test begins its own clock")]
mod tests {
    use drizzle_proto::{ChunkSet, FileName};

    use super::*;

    /// A part of a file that has `count` chunks and is told apart from others by `tag`.
    fn part(tag: u8, count: u32, first: u32, hashes: u32) -> FileChunks {
        let layout = Layout::new(u64::from(count) << 14, 1 << 14).unwrap();
        FileChunks {
            file: FileInfo { name: FileName::new("a").unwrap(), id: FileId::from_digest(Digest::of(&[tag])), layout },
            first_hash: first,
            hashes: (first..first + hashes).map(|n| Digest::of(&n.to_be_bytes())).collect(),
            held: ChunkSet::empty(layout.chunk_count()),
            gone: false,
            replace: false,
            signature: None,
        }
    }

    #[test]
    fn parts_make_a_whole_in_order_with_resends() {
        let mut staging = Staging::default();
        let now = Instant::now();
        assert_eq!(staging.add(1, &part(0, 10, 0, 0), now), Staged::Misses(0), "none sent");
        assert_eq!(staging.add(1, &part(0, 10, 3, 2), now), Staged::Misses(0), "does not begin at 0");
        assert_eq!(staging.add(1, &part(0, 10, 0, 4), now), Staged::Misses(4));
        assert_eq!(staging.add(1, &part(0, 10, 0, 4), now), Staged::Misses(4), "sent again");
        assert_eq!(staging.add(1, &part(0, 10, 5, 3), now), Staged::Misses(4), "a gap");
        assert_eq!(staging.add(2, &part(0, 10, 4, 6), now), Staged::Misses(0), "another lease's parts do not count");
        assert_eq!(staging.add(1, &part(0, 10, 2, 5), now), Staged::Misses(7), "overlapping");
        assert_eq!(staging.add(1, &part(0, 10, 7, 3), now), Staged::Whole(part(0, 10, 0, 10).hashes));
        assert_eq!((staging.total, staging.leases.len()), (0, 0));
    }

    #[test]
    fn room_is_bounded_and_what_is_staged_can_be_completed() {
        let mut staging = Staging::default();
        let now = Instant::now();
        let most = 1 << 18;
        assert_eq!(staging.add(1, &part(0, most, 0, 1), now), Staged::Misses(1));
        assert_eq!(staging.add(1, &part(1, most, 0, 1), now), Staged::Misses(1));
        assert_eq!(staging.add(1, &part(2, most, 0, 1), now), Staged::Misses(0), "no room for a third");
        assert_eq!(staging.add(2, &part(2, most, 0, 1), now), Staged::Misses(1), "another lease has its own room");
        assert_eq!(staging.add(1, &part(0, most, 1, 8), now), Staged::Misses(9));
        // The second was given up.
        let later = now + PATIENCE;
        staging.add(1, &part(0, most, 9, 1), later);
        assert_eq!(staging.add(1, &part(2, most, 0, 1), later), Staged::Misses(1));
        assert_eq!(staging.add(1, &part(1, most, 1, 1), later), Staged::Misses(0));
        staging.drop_lease(1);
        staging.drop_lease(2);
        assert_eq!((staging.total, staging.leases.len()), (0, 0));
    }

    /// Leases that are kept alive by peers that gave up their manifests must not keep others out.
    #[test]
    fn what_any_lease_gave_up_makes_room_when_all_is_taken() {
        let mut staging = Staging::default();
        let now = Instant::now();
        let most = 1 << 18;
        let last = 8;
        for lease in 1..=last {
            assert_eq!(staging.add(lease, &part(0, most, 0, 1), now), Staged::Misses(1));
            assert_eq!(staging.add(lease, &part(1, most, 0, 1), now), Staged::Misses(1));
        }
        assert_eq!(staging.total, MAX_STAGED);
        assert_eq!(staging.add(9, &part(0, 2, 0, 1), now), Staged::Misses(0), "no room");
        let soon = now + PATIENCE / 2;
        for lease in 2..=last {
            assert_eq!(staging.add(lease, &part(0, most, 1, 1), soon), Staged::Misses(2));
        }
        assert_eq!(staging.add(9, &part(0, 2, 0, 1), soon), Staged::Misses(0), "nothing was given up yet");
        let later = now + PATIENCE;
        assert_eq!(staging.add(9, &part(0, most, 0, 1), later), Staged::Misses(1));
        assert_eq!(staging.add(2, &part(0, most, 2, 1), later), Staged::Misses(3), "whoever keeps sending goes on");
        assert_eq!(staging.add(1, &part(0, most, 1, 1), later), Staged::Misses(0), "given up");
        for lease in 1..=9 {
            staging.drop_lease(lease);
        }
        assert_eq!((staging.total, staging.leases.len()), (0, 0));
    }

    #[test]
    fn another_layout_under_the_same_id_starts_over() {
        let mut staging = Staging::default();
        let now = Instant::now();
        assert_eq!(staging.add(1, &part(0, 10, 0, 4), now), Staged::Misses(4));
        assert_eq!(staging.add(1, &part(0, 8, 4, 4), now), Staged::Misses(0));
        assert_eq!(staging.total, 0);
    }
}
