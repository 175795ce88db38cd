//! A disk: one thing after the other, at a rate.

use super::clock::{Nanos, SECOND};

/// The disk of one peer.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// Bytes a second; 0 takes no time.
    rate: f64,
    free_at: Nanos,
}

impl Disk {
    /// One that moves so many bytes a second, reading or writing; with 0 it takes no time.
    pub fn new(rate: f64) -> Self {
        Self { rate, free_at: 0 }
    }

    /// When so many bytes are read or written that are asked for now.
    pub fn done_at(&mut self, bytes: u32, now: Nanos) -> Nanos {
        if self.rate <= 0.0 {
            return now;
        }
        let takes = f64::from(bytes) / self.rate * SECOND as f64;
        // Below 2^53.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let takes = takes as Nanos;
        self.free_at = self.free_at.max(now) + takes;
        self.free_at
    }
}
