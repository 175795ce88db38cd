//! Why a download does not go on, and when it gives up.
//!
//! What holds (each line has a test):
//! - a download gives up exactly when it made no progress for its whole patience, and progress starts the wait
//!   over;
//! - a reason names what is missing; holders of the missing chunks that are merely busy are no other reason;
//! - a reason is news once, until it changes or the download goes on.

use std::time::{Duration, Instant};

use drizzle_proto::ChunkSet;

use crate::schedule::Supply;

/// Why nothing can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is not known yet which peers hold the file.
    NotLocated,
    /// Chunks that no known peer holds, or that only peers hold which are avoided for an offence at present.
    /// Not both are empty.
    NoSupply(Supply),
    /// Every holder is busy.
    Busy,
}

impl Reason {
    /// From what the scheduler says of the supply.
    pub fn of(located: bool, supply: Supply) -> Self {
        match (located, supply.unheld.is_empty() && supply.avoided.is_empty()) {
            (false, _) => Self::NotLocated,
            (true, true) => Self::Busy,
            (true, false) => Self::NoSupply(supply),
        }
    }
}

/// What a download that gives up is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivesUp {
    /// For these chunks peers offered other bytes than those registered first.
    Tainted(ChunkSet),
    /// No progress, for this reason.
    NoProgress(Reason),
}

/// The patience of one download.
#[derive(Debug)]
pub struct Waiting {
    patience: Duration,
    progress_at: Instant,
    told: Option<Reason>,
}

impl Waiting {
    /// A download that begins now and gives up after `patience` without progress.
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, progress_at: now, told: None }
    }

    /// Bytes came: large chunks over slow links take longer than the patience.
    pub fn bytes_came(&mut self, now: Instant) {
        self.progress_at = now;
    }

    /// A chunk was stored.
    pub fn chunk_stored(&mut self, now: Instant) {
        self.progress_at = now;
        self.told = None;
    }

    /// How long it waits in all.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// When it gives up if nothing happens.
    pub fn gives_up_at(&self) -> Instant {
        self.progress_at + self.patience
    }

    /// What it gives up for, once its patience is over. `tainted` are the missing chunks for which other bytes
    /// than the registered ones were offered.
    pub fn gives_up(&self, tainted: ChunkSet, reason: impl FnOnce() -> Reason, now: Instant) -> Option<GivesUp> {
        (now >= self.gives_up_at()).then(|| match tainted.is_empty() {
            true => GivesUp::NoProgress(reason()),
            false => GivesUp::Tainted(tainted),
        })
    }

    /// Nothing can be asked for: the reason, if it was not told before.
    pub fn stands_still(&mut self, reason: Reason) -> Option<Reason> {
        if self.told.as_ref() == Some(&reason) {
            return None;
        }
        self.told = Some(reason.clone());
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::ChunkCount;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn none() -> ChunkSet {
        ChunkSet::empty(ChunkCount::new(4).unwrap())
    }

    fn all() -> ChunkSet {
        ChunkSet::full(ChunkCount::new(4).unwrap())
    }

    #[test]
    fn it_gives_up_after_its_patience_and_not_before() {
        let start = Instant::now();
        let mut waiting = Waiting::new(PATIENCE, start);
        let later = start + PATIENCE / 2;
        waiting.bytes_came(later);
        let end = later + PATIENCE;
        assert_eq!(waiting.gives_up_at(), end);
        assert_eq!(waiting.gives_up(none(), || Reason::Busy, end - Duration::from_nanos(1)), None);
        assert_eq!(waiting.gives_up(none(), || Reason::Busy, end), Some(GivesUp::NoProgress(Reason::Busy)));
        assert_eq!(waiting.gives_up(all(), || Reason::Busy, end), Some(GivesUp::Tainted(all())));
        waiting.chunk_stored(end);
        assert_eq!(waiting.gives_up(all(), || Reason::Busy, end), None);
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        let supply = |unheld: ChunkSet, avoided: ChunkSet| Supply { unheld, avoided };
        assert_eq!(Reason::of(false, supply(all(), none())), Reason::NotLocated);
        assert_eq!(Reason::of(true, supply(none(), none())), Reason::Busy);
        assert_eq!(Reason::of(true, supply(none(), all())), Reason::NoSupply(supply(none(), all())));
        assert_eq!(Reason::of(true, supply(all(), none())), Reason::NoSupply(supply(all(), none())));
    }

    #[test]
    fn a_reason_is_told_once() {
        let start = Instant::now();
        let mut waiting = Waiting::new(PATIENCE, start);
        assert_eq!(waiting.stands_still(Reason::Busy), Some(Reason::Busy));
        assert_eq!(waiting.stands_still(Reason::Busy), None);
        waiting.bytes_came(start);
        assert_eq!(waiting.stands_still(Reason::Busy), None, "bytes alone end no wait");
        assert_eq!(waiting.stands_still(Reason::NotLocated), Some(Reason::NotLocated));
        waiting.chunk_stored(start);
        assert_eq!(waiting.stands_still(Reason::NotLocated), Some(Reason::NotLocated));
    }
}
