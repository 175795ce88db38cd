//! Everything that a monitor may ask of the tracker, at one moment. Pages, metrics and the log only render it.

use std::time::Duration;

use drizzle_proto::announcement::FileOutcome;

use crate::live::LiveCounts;

/// What was answered since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of announcements that were registered.
    pub registered: u64,
    /// Entries that were refused because other content has the name.
    pub refused: u64,
    /// Entries that were malformed, withdrawn or beyond a limit.
    pub invalid: u64,
}

/// Everything that a monitor may ask of the tracker, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// What lives in memory.
    pub live: LiveCounts,
    /// What was answered.
    pub counts: Counts,
    /// Since the start.
    pub uptime: Duration,
    /// Bytes of hashes that are kept in memory because they were asked for lately.
    pub hash_bytes: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, outcomes: &[FileOutcome]) {
        for outcome in outcomes {
            match outcome {
                FileOutcome::Registered => self.registered += 1,
                FileOutcome::Refused { .. } => self.refused += 1,
                FileOutcome::Invalid(_) => self.invalid += 1,
                FileOutcome::NeedHashes(_) => {}
            }
        }
    }
}
