//! Which peer this daemon is: its lasting id, from the journal, and the session that tells this run of it from others.
//!
//! The id changes only when the tracker found that this daemon works on a copy of another peer's state folder. It is
//! recorded before it is used, so that a restart keeps the new one.

use std::sync::Arc;

use drizzle_proto::{PeerId, Session};
use tokio::sync::watch;

use crate::store::journal::{Journal, JournalError};

/// This daemon's identity. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    id: watch::Sender<PeerId>,
    session: Session,
    /// Others know it by a certificate, so it cannot change.
    certified: bool,
    journal: Arc<Journal>,
}

impl Identity {
    /// The recorded id; at a first start a random one, which is recorded.
    /// `suggested` is taken at a first start, and for a `certified` peer the id does not change afterwards.
    pub(crate) fn load(
        journal: Arc<Journal>,
        suggested: Option<PeerId>,
        certified: bool,
    ) -> Result<Self, JournalError> {
        let new = suggested.map_or_else(rand::random, |id| *id.as_bytes());
        let id = watch::Sender::new(journal.peer_id(new)?);
        Ok(Self { id, session: Session::from_bytes(rand::random()), certified, journal })
    }

    /// Whether others know it by a certificate.
    pub(crate) fn is_certified(&self) -> bool {
        self.certified
    }

    /// The id now.
    pub(crate) fn id(&self) -> PeerId {
        *self.id.borrow()
    }

    /// This run.
    pub(crate) fn session(&self) -> Session {
        self.session
    }

    /// Tells when the id changes.
    pub(crate) fn changes(&self) -> watch::Receiver<PeerId> {
        self.id.subscribe()
    }

    /// Takes a new random id, unless it is another one than `copied` already; the id from now on. Blocks on the disk.
    pub(crate) fn replace(&self, copied: PeerId) -> Result<PeerId, JournalError> {
        if self.id() == copied {
            let id = PeerId::from_bytes(rand::random());
            self.journal.replace_peer_id(id)?;
            self.id.send_replace(id);
        }
        Ok(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::Disk;

    #[test]
    fn a_new_id_is_taken_once_and_kept_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let load = || {
            let journal = Arc::new(Journal::open(folder.path(), Disk::default()).unwrap());
            Identity::load(journal, None, false).unwrap()
        };
        let identity = load();
        let (first, session) = (identity.id(), identity.session());
        let second = identity.replace(first).unwrap();
        assert_ne!(second, first);
        assert_eq!(identity.replace(first).unwrap(), second, "it is no copy of that one any more");
        assert_eq!(*identity.changes().borrow(), second);
        drop(identity);
        let again = load();
        assert_eq!(again.id(), second);
        assert_ne!(again.session(), session, "another run");
    }
}
