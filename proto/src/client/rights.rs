//! What comes with a lease of one's own rights and those of others.

use crate::{WireError, access::Access, wire};

/// In the trailers of PERMISSION_DENIED if an operator stopped the name: see `tracker.proto`.
pub const STOPPED_TRAILER: &str = "drizzle-stopped";

/// What is known already when a lease is renewed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnownRights {
    /// Of the [`Access`] that is known; 0: none.
    pub access_version: u64,
    /// The ticket is to be renewed.
    pub wants_ticket: bool,
}

/// What a tracker told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// To be shown to holders.
    pub ticket: Option<wire::Ticket>,
    /// What replaces what was known.
    pub access: Option<Access>,
}

impl Rights {
    pub(super) fn of(ticket: Option<wire::Ticket>, access: Option<wire::Access>) -> Result<Self, WireError> {
        Ok(Self { ticket, access: access.map(Access::try_from).transpose()? })
    }
}
