//! The priorities of the downloads that run. What they are worth is decided by [`drizzle_engine::priority`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use drizzle_engine::priority::{Owner, Priorities, Priority};

/// Of all downloads of a daemon.
#[derive(Debug, Default)]
pub(crate) struct Ranks(Mutex<Priorities>);

impl Ranks {
    fn lock(&self) -> MutexGuard<'_, Priorities> {
        // No change of it can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a download that begins.
    pub(crate) fn enter(self: &Arc<Self>, priority: Priority) -> Arc<Rank> {
        let owner = self.lock().enter(priority);
        Arc::new(Rank { ranks: self.clone(), owner })
    }
}

/// One download among the others, until dropped.
#[derive(Debug)]
pub(crate) struct Rank {
    ranks: Arc<Ranks>,
    owner: Owner,
}

impl Rank {
    /// What the download is called among the others.
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// The highest that anybody asked for.
    pub(crate) fn priority(&self) -> Priority {
        self.ranks.lock().priority(self.owner)
    }

    /// What that is worth.
    pub(crate) fn weight(&self) -> u64 {
        self.priority().weight()
    }

    /// Somebody wants it this urgently.
    pub(crate) fn raise(&self, priority: Priority) {
        self.ranks.lock().raise(self.owner, priority);
    }

    /// So many bytes came for it so far; how many streams it may run now, of `most`.
    pub(crate) fn streams(&self, bytes: u64, most: usize) -> usize {
        let (mut ranks, now) = (self.ranks.lock(), Instant::now());
        ranks.counted(self.owner, bytes, now);
        ranks.streams(self.owner, most, now)
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.ranks.lock().leave(self.owner);
    }
}
