//! The limit under which the bytes of a download are taken.
//!
//! What came counts once it is read; the next message is read when it may have come. So a holder is slowed down by the
//! flow control of its connection, and what it sends ahead is what that lets it. A download whose bytes wait here waits for
//! itself: no holder is blamed for it.

use std::{sync::Arc, time::Duration};

use drizzle_engine::priority::Owner;
use drizzle_proto::RateLimit;

use crate::{
    limits::{Gate, HeldUp},
    ranks::Rank,
};

/// One download's part of what this peer takes.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    pub(crate) gate: Arc<Gate<Owner>>,
    pub(crate) rank: Arc<Rank>,
}

impl Intake {
    /// Whether what comes may have to wait.
    pub(super) fn is_limited(&self) -> bool {
        self.gate.limit() != RateLimit::UNLIMITED
    }

    /// Waits until so many bytes may have come; how long it took.
    pub(super) async fn take(&self, bytes: u64, held_up: &HeldUp) -> Duration {
        self.gate.pass(self.rank.owner(), self.rank.weight(), bytes, || held_up.begins()).await;
        held_up.ends()
    }
}
