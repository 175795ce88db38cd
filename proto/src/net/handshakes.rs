//! TLS handshakes, counted by the end that this program was at, and by how they went.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// How a handshake went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// With certificates.
    Full,
    /// By a session of before.
    Resumed,
    /// It did not end well.
    Failed,
}

impl Went {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Full, Self::Resumed, Self::Failed];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::Failed => "failed",
        }
    }

    pub(super) fn of(kind: Option<rustls::HandshakeKind>) -> Self {
        if kind == Some(rustls::HandshakeKind::Resumed) { Self::Resumed } else { Self::Full }
    }
}

/// At which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Others came.
    Accepted,
    /// This program went.
    Made,
}

/// The counts of one program. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Handshakes(Arc<[[AtomicU64; 3]; 2]>);

impl Handshakes {
    pub(super) fn count(&self, end: End, went: Went) {
        self.0[end as usize][went as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many went so.
    pub fn counted(&self, end: End, went: Went) -> u64 {
        self.0[end as usize][went as usize].load(Ordering::Relaxed)
    }
}
