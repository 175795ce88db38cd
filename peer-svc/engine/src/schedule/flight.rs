//! One fetch that runs, and when it is slow enough for a second copy.

use std::time::{Duration, Instant};

use drizzle_proto::ChunkIndex;

use super::holders::Key;

/// No second copy before the first has taken this long, however fast chunks usually come.
const MIN_PATIENCE: Duration = Duration::from_millis(300);
/// How long a chunk is taken to need before any has come.
const TYPICAL_AT_FIRST: Duration = Duration::from_secs(1);

/// Fewer new bytes than this are no sign that a holder moves on.
const LEAST_MOVE: u32 = 256;

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) chunk: ChunkIndex,
    pub(super) holder: Key,
    /// The holder may still choose another chunk.
    pub(super) is_open: bool,
    pub(super) since: Instant,
    /// When bytes came last; `since` before the first.
    pub(super) moved_at: Instant,
    /// Bytes of the chunk that were here when it began, that are here now, and that it has.
    pub(super) had: Option<(u32, u32, u32)>,
    /// Waits for this peer's own memory: its holder was not asked yet.
    pub(super) held_back: bool,
    /// Asked for although another copy was in flight.
    pub(super) is_copy: bool,
}

impl Flight {
    /// So many bytes of its chunk, which has `len`, are here now.
    pub(super) fn moved(&mut self, had: u32, len: u32, now: Instant) {
        let (first, before, _) = *self.had.get_or_insert((had, had, len));
        // Less is what keeps a connection alive, not a chunk.
        if had.saturating_sub(before) >= LEAST_MOVE || had == len && before < len {
            self.moved_at = now;
            self.had = Some((first, had, len));
        }
    }

    /// From when on a second copy is worth its bytes. A holder that moves on is left alone unless the rest takes
    /// longer than a whole chunk may take.
    pub(super) fn overdue_at(&self, typical: Option<Duration>) -> Instant {
        let patience = (2 * typical.unwrap_or(TYPICAL_AT_FIRST)).max(MIN_PATIENCE);
        let took = self.moved_at - self.since;
        let is_slow = match (typical, self.had) {
            (Some(_), Some((first, had, len))) if had > first => {
                took.as_secs_f64() * f64::from(len.saturating_sub(had))
                    > patience.as_secs_f64() * f64::from(had - first)
            }
            _ => false,
        };
        if is_slow { self.since + patience } else { self.moved_at + patience }
    }
}
