//! Whom this peer serves which file.
//!
//! The tracker says with each lease and renewal whether that is enforced, who is revoked, what is stopped, and by which
//! keys tickets are checked; what it said last is kept in the state folder, so that a peer that starts while the tracker is
//! away knows. A requester shows its ticket with each request; it is checked when it is new, and then compared. What holds
//! (each line has a test):
//! - where it is enforced, a file is served to a certified peer whose ticket covers one of the names that it is held by;
//! - nobody is served who is revoked, and nothing that is stopped, also in the middle of a chunk;
//! - before the tracker said anything, a peer with certificates serves nobody.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use drizzle_proto::{
    FileId, PeerId,
    access::Access,
    client::{KnownRights, Rights as Told},
    files,
    net::{
        caller::Caller,
        pass::{Pass, decoded},
    },
    ticket::{Ticket, TicketError, lifetime},
};
use http::HeaderValue;
use tokio::sync::watch;
use tonic::Status;

use crate::holdings::Holdings;

/// Peers whose tickets are remembered at most: then all are forgotten, and each is checked once more.
const REMEMBERED: usize = 16 << 10;

/// Why a requester is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Nothing is known of rights yet.
    #[error(
        "this peer has not reached its tracker yet, and does not know whom it may serve; ask another holder, or again shortly"
    )]
    NothingKnown,
    /// It proved no identity.
    #[error("this peer serves only peers that show a certificate")]
    NoIdentity,
    /// It showed no ticket.
    #[error("a ticket from the tracker is needed, which a peer gets with its lease")]
    NoTicket,
    /// The ticket is of no use.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// An operator ended what it may do.
    #[error("peer {0} was revoked")]
    Revoked(PeerId),
    /// Not this file.
    #[error("peer {0} may not read this file")]
    NotCovered(PeerId),
    /// An operator stopped the file.
    #[error("an operator stopped this file")]
    Stopped,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            // As good as no slot: the caller goes elsewhere, and blames nobody.
            Refused::NothingKnown => Status::resource_exhausted(text),
            Refused::NoIdentity | Refused::NoTicket | Refused::Ticket(_) => Status::unauthenticated(text),
            Refused::Revoked(_) | Refused::NotCovered(_) | Refused::Stopped => Status::permission_denied(text),
        }
    }
}

/// What this peer knows of rights. One for the daemon.
#[derive(Debug)]
pub(crate) struct Rights {
    access: watch::Sender<Arc<Access>>,
    /// Counts the changes, to be looked at without a lock.
    changes: AtomicU64,
    /// Checked tickets, as they were shown.
    checked: Mutex<HashMap<PeerId, (HeaderValue, Arc<Ticket>)>>,
    /// Where the own ticket is shown, and when it is to be renewed.
    pass: Pass,
    renew_at: Mutex<Option<SystemTime>>,
    holdings: Arc<Holdings>,
    /// Where what the tracker said is kept.
    file: Option<PathBuf>,
    keeping: Mutex<()>,
}

/// A requester that is served a file. It is to be asked again with each message.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    rights: Arc<Rights>,
    seen: u64,
    peer: Option<PeerId>,
    ticket: Option<Arc<Ticket>>,
    file: FileId,
}

impl Rights {
    /// For a daemon that serves anybody until the tracker says otherwise; or, `secured`, nobody until it said something,
    /// in this run or an earlier one. Blocks on the disk.
    pub(crate) fn open(file: Option<PathBuf>, secured: bool, pass: Pass, holdings: Arc<Holdings>) -> Self {
        let kept = file.as_ref().and_then(|file| files::read(file).ok()).and_then(|bytes| Access::from_bytes(&bytes));
        let none = Access { enforced: secured, ..Access::default() };
        // Whatever the tracker said earlier, one that is secured does not serve strangers.
        let mut access = kept.unwrap_or(none);
        access.enforced |= secured;
        Self {
            access: watch::Sender::new(Arc::new(access)),
            changes: AtomicU64::new(0),
            checked: Mutex::default(),
            pass,
            renew_at: Mutex::default(),
            holdings,
            file,
            keeping: Mutex::default(),
        }
    }

    /// What is known now, and when it changes.
    pub(crate) fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.subscribe()
    }

    /// What the tracker need not tell again.
    pub(crate) fn known(&self) -> KnownRights {
        let renew_at = *self.renew_at.lock().unwrap_or_else(PoisonError::into_inner);
        let wants_ticket = renew_at.is_some_and(|at| at <= SystemTime::now());
        KnownRights { access_version: self.access.borrow().version, wants_ticket }
    }

    /// Takes over what the tracker told; whether that is to be [kept](Rights::keep).
    #[must_use]
    pub(crate) fn heed(&self, told: Told) -> bool {
        if let Some(ticket) = &told.ticket {
            let now = SystemTime::now();
            let half = lifetime(ticket, now).map(|left| now + left / 2);
            *self.renew_at.lock().unwrap_or_else(PoisonError::into_inner) = half;
            self.pass.show(ticket);
        }
        let Some(access) = told.access else { return false };
        let before = self.access.borrow().clone();
        if *before == access {
            return false;
        }
        if before.ticket_keys != access.ticket_keys {
            self.checked.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        self.access.send_replace(Arc::new(access));
        self.changes.fetch_add(1, Ordering::Release);
        true
    }

    /// Keeps what is known now for a start without the tracker. Blocks on the disk.
    pub(crate) fn keep(&self) {
        let Some(file) = &self.file else { return };
        // One after the other, and each what is known by then: the last one writes the last word.
        let _one_at_a_time = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let access = self.access.borrow().to_bytes();
        if let Err(error) = files::write(file, &access, 0o600) {
            tracing::warn!(path = %file.display(), %error, "cannot keep what the tracker says of rights; a start without the tracker will not know it");
        }
    }

    /// Lets a requester have a file, which it shows this ticket for; or says why not. Files that are not held pass: that
    /// they are not held is answered elsewhere.
    pub(crate) fn permit(
        self: &Arc<Self>,
        caller: Caller,
        shown: Option<&HeaderValue>,
        file: FileId,
    ) -> Result<Permit, Refused> {
        let seen = self.changes.load(Ordering::Acquire);
        let access = self.access.borrow().clone();
        let mut permit = Permit { rights: self.clone(), seen, peer: caller.peer(), ticket: None, file };
        if access.enforced {
            if access.ticket_keys.is_empty() {
                return Err(Refused::NothingKnown);
            }
            let peer = permit.peer.ok_or(Refused::NoIdentity)?;
            let shown = shown.ok_or(Refused::NoTicket)?;
            permit.ticket = Some(self.ticket(peer, shown, &access)?);
        }
        permit.judge(&access)?;
        Ok(permit)
    }

    fn ticket(&self, peer: PeerId, shown: &HeaderValue, access: &Access) -> Result<Arc<Ticket>, Refused> {
        let now = SystemTime::now();
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, ticket)) = checked.get(&peer)
            && known == shown
        {
            return if ticket.ran_out(now) { Err(TicketError::RanOut.into()) } else { Ok(ticket.clone()) };
        }
        drop(checked);
        let bytes = decoded(shown).ok_or(TicketError::Malformed)?;
        let ticket = Arc::new(Ticket::check(&bytes, peer, &access.ticket_keys, now)?);
        checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.len() >= REMEMBERED {
            checked.clear();
        }
        checked.insert(peer, (shown.clone(), ticket.clone()));
        Ok(ticket)
    }
}

impl Permit {
    /// Of a daemon without rules.
    #[cfg(test)]
    pub(crate) fn anybody() -> Self {
        let rights = Arc::new(Rights::open(None, false, Pass::default(), Arc::default()));
        let file = "00".repeat(32).parse().unwrap_or_else(|_| unreachable!("32 bytes in hex"));
        Self { rights, seen: 0, peer: None, ticket: None, file }
    }

    /// Whether it still holds, if anything changed since.
    pub(crate) fn still(&mut self) -> Result<(), Refused> {
        let now = self.rights.changes.load(Ordering::Acquire);
        if now == self.seen {
            return Ok(());
        }
        self.seen = now;
        let access = self.rights.access.borrow().clone();
        self.judge(&access)
    }

    fn judge(&self, access: &Access) -> Result<(), Refused> {
        if let Some(peer) = self.peer.filter(|peer| access.revoked.contains(peer)) {
            return Err(Refused::Revoked(peer));
        }
        if !access.enforced && access.stopped.is_empty() {
            return Ok(());
        }
        let holdings = &self.rights.holdings;
        // A file may be held by several names, and is as readable as the most readable of them.
        match holdings.any_name(self.file, |name| !access.stops(name)) {
            None => return Ok(()),
            Some(false) => return Err(Refused::Stopped),
            Some(true) => {}
        }
        let Some(ticket) = &self.ticket else { return Ok(()) };
        match holdings.any_name(self.file, |name| ticket.covers(name) && !access.stops(name)) {
            Some(false) => Err(Refused::NotCovered(ticket.peer)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use drizzle_proto::{net::tls::Certified, ticket::TicketKey};
    use prost::Message;

    use super::*;
    use crate::holdings::testing;

    const PEER: PeerId = PeerId::from_bytes([1; 16]);
    const OTHER: PeerId = PeerId::from_bytes([2; 16]);

    /// As it stands in a request's header.
    fn shown(key: &TicketKey, ticket: &Ticket) -> HeaderValue {
        let value = tonic::metadata::MetadataValue::from_bytes(&key.sign(ticket).encode_to_vec());
        HeaderValue::from_bytes(value.as_encoded_bytes()).unwrap()
    }

    fn is(peer: PeerId) -> Caller {
        Caller::Certified(Certified::Peer(peer))
    }

    struct World {
        rights: Arc<Rights>,
        key: TicketKey,
        file: FileId,
        _dir: tempfile::TempDir,
    }

    /// A holder of one file under these names.
    fn world(names: &[&str], secured: bool) -> World {
        let dir = tempfile::tempdir().unwrap();
        let holdings = Arc::new(Holdings::default());
        let file = testing::holds(&holdings, dir.path(), names);
        let rights = Rights::open(Some(dir.path().join("access")), secured, Pass::default(), holdings);
        let key = TicketKey::from_kept(&TicketKey::generate().unwrap()).unwrap();
        World { rights: Arc::new(rights), key, file, _dir: dir }
    }

    impl World {
        fn hears(&self, change: impl FnOnce(&mut Access)) {
            let mut access = (**self.rights.access.borrow()).clone();
            access.version += 1;
            change(&mut access);
            assert!(self.rights.heed(Told { ticket: None, access: Some(access) }));
        }

        fn enforces(&self) {
            self.hears(|access| (access.enforced, access.ticket_keys) = (true, vec![self.key.public()]));
        }

        fn ticket(&self, peer: PeerId, scope: &str, life: i64) -> HeaderValue {
            let now = SystemTime::now();
            let expires = match u64::try_from(life) {
                Ok(life) => now + Duration::from_secs(life),
                Err(_) => now - Duration::from_secs(life.unsigned_abs()),
            };
            shown(&self.key, &Ticket { peer, expires, scopes: vec![scope.parse().unwrap()] })
        }

        fn asks(&self, caller: Caller, shown: Option<&HeaderValue>) -> Option<Refused> {
            self.rights.permit(caller, shown, self.file).err()
        }
    }

    #[test]
    fn a_file_is_served_to_those_whose_ticket_covers_a_name_of_it() {
        let world = world(&["models/a", "b"], true);
        world.enforces();
        for scope in ["models/", "b", "*"] {
            assert_eq!(world.asks(is(PEER), Some(&world.ticket(PEER, scope, 60))), None, "{scope}");
        }
        let elsewhere = world.ticket(PEER, "other/", 60);
        assert_eq!(world.asks(is(PEER), Some(&elsewhere)), Some(Refused::NotCovered(PEER)));
        let good = world.ticket(PEER, "*", 60);
        assert_eq!(world.asks(is(OTHER), Some(&good)), Some(Refused::Ticket(TicketError::NotYours)), "replayed");
        assert_eq!(world.asks(is(PEER), None), Some(Refused::NoTicket));
        for stranger in [Caller::Plain, Caller::Unknown, Caller::Certified(Certified::Tracker)] {
            assert_eq!(world.asks(stranger, Some(&good)), Some(Refused::NoIdentity));
        }
        let over = world.ticket(PEER, "*", -3600);
        assert_eq!(world.asks(is(PEER), Some(&over)), Some(Refused::Ticket(TicketError::RanOut)));
        let forger = TicketKey::from_kept(&TicketKey::generate().unwrap()).unwrap();
        let expires = SystemTime::now() + Duration::from_secs(60);
        let forged = shown(&forger, &Ticket { peer: PEER, expires, scopes: vec!["*".parse().unwrap()] });
        assert_eq!(world.asks(is(PEER), Some(&forged)), Some(Refused::Ticket(TicketError::Forged)));
    }

    #[test]
    fn what_is_revoked_or_stopped_ends_in_the_middle_of_a_chunk() {
        let world = world(&["models/a"], true);
        world.enforces();
        let ticket = world.ticket(PEER, "*", 60);
        let mut permit = world.rights.permit(is(PEER), Some(&ticket), world.file).unwrap();
        world.hears(|access| access.revoked = [OTHER].into());
        assert_eq!(permit.still(), Ok(()));
        world.hears(|access| access.stopped = vec!["models/".parse().unwrap()]);
        assert_eq!(permit.still(), Err(Refused::Stopped));
        assert_eq!(world.asks(is(PEER), Some(&ticket)), Some(Refused::Stopped));
        world.hears(|access| access.stopped.clear());
        assert_eq!(permit.still(), Ok(()));
        world.hears(|access| access.revoked = [PEER].into());
        assert_eq!(permit.still(), Err(Refused::Revoked(PEER)));
        assert_eq!(world.asks(is(PEER), Some(&ticket)), Some(Refused::Revoked(PEER)));
    }

    #[test]
    fn without_rules_everybody_is_served_but_nothing_that_is_stopped() {
        let world = world(&["a"], false);
        assert_eq!(world.asks(Caller::Plain, None), None);
        world.hears(|access| access.stopped = vec!["a".parse().unwrap()]);
        assert_eq!(world.asks(Caller::Plain, None), Some(Refused::Stopped));
    }

    #[test]
    fn a_secured_peer_serves_nobody_before_it_heard_the_rules_and_keeps_them() {
        let world = world(&["a"], true);
        let ticket = world.ticket(PEER, "*", 60);
        assert_eq!(world.asks(is(PEER), Some(&ticket)), Some(Refused::NothingKnown));
        world.enforces();
        assert_eq!(world.asks(is(PEER), Some(&ticket)), None);
        world.rights.keep();
        let Rights { file, holdings, .. } = &*world.rights;
        let again = Arc::new(Rights::open(file.clone(), true, Pass::default(), holdings.clone()));
        assert!(again.permit(is(PEER), Some(&ticket), world.file).is_ok(), "after a restart, without the tracker");
    }
}
