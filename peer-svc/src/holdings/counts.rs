//! How much is held, for a status and a monitor.

use drizzle_proto::FileName;

use super::{Backing, Entry, Holdings, Registration};

/// How many holdings there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Complete files.
    pub(crate) shared: usize,
    /// Unfinished downloads.
    pub(crate) partial: usize,
    /// Bytes of the chunks that are held.
    pub(crate) bytes: u64,
    /// Names of shares that the tracker refused.
    pub(crate) refused: Vec<FileName>,
}

impl Holdings {
    /// How many there are.
    pub(crate) fn counts(&self) -> Counts {
        let inner = self.lock();
        let mut counts = Counts::default();
        for (name, entry) in &inner.files {
            counts.bytes += entry.bytes();
            match (&entry.registration, &entry.backing) {
                (Registration::Refused(_), _) => counts.refused.push(name.clone()),
                (_, Backing::Shared { .. }) => counts.shared += 1,
                (_, Backing::Partial(_)) => counts.partial += 1,
            }
        }
        counts
    }
}

impl Entry {
    /// Bytes of the chunks that are held. Every chunk but the last is as long as any.
    fn bytes(&self) -> u64 {
        let layout = self.manifest.layout();
        if self.chunks.is_full() {
            return layout.size();
        }
        let last = layout.chunk_count().indices().next_back().filter(|last| self.chunks.contains(*last));
        let missing = last.map_or(0, |last| u64::from(layout.chunk_size() - layout.chunk_len(last)));
        u64::from(self.chunks.len()) * u64::from(layout.chunk_size()) - missing
    }
}
