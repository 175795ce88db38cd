//! How many files are held, for a status.

use drizzle_proto::FileName;

use super::{Backing, Holdings, Registration};

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
