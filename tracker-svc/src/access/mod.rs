//! Who may do what: the one place that says so.
//!
//! | module | is |
//! |---|---|
//! | [`state`] | identities, tokens, stops, and the decisions over them; pure |
//! | `store` | the same on disk |
//! | [`gate`] | stands before every method |
//! | [`denied`] | refusals and their texts |
//! | [`authority`] | what certifies, in the data folder, and the tracker's own certificate |
//! | [`audit`] | what is noted for those who look later |
//! | [`quota`] | how much one identity may ask for |
//!
//! Every call passes the [`gate`], which asks [`Access::knows`]; each that names a file passes [`Access::reads`] or
//! [`Access::may`] beside that. Nothing else decides, and what no gate let in is refused. A change is on disk before it counts
//! and before it is answered. Peers are told with their next renewal, some seconds later.

pub(crate) mod audit;
pub(crate) mod authority;
pub(crate) mod denied;
pub(crate) mod gate;
pub(crate) mod quota;
pub(crate) mod state;
pub(crate) mod store;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use drizzle_proto::{
    FileName, PeerId, Scope,
    access::Access as Told,
    net::caller::Caller,
    rights::{Grant, Grants, Verb},
    ticket::{Ticket, TicketKey},
    token::{Token, TokenId},
    wire,
};
use tokio::sync::watch;

use self::{
    audit::Audit,
    denied::Denied,
    quota::Quotas,
    state::{ANYBODY, Change, Identity, Issued, NotEnrolled, Seconds, State, granted},
    store::{Store, StoreError},
};

/// What a tracker goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Callers have to prove who they are, and to have been granted what they ask for.
    pub(crate) enforced: bool,
    /// Tickets are good for so long.
    pub(crate) ticket_life: Duration,
}

/// Rights, and whoever has them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rules: Rules,
    state: RwLock<State>,
    store: Store,
    key: TicketKey,
    quotas: Mutex<Quotas>,
    audit: Audit,
    /// What peers are told; replaced with each change.
    told: watch::Sender<Arc<Told>>,
    /// One change at a time, decided by what the one before left.
    changing: Mutex<()>,
}

/// Why rights were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotEnrolled(#[from] NotEnrolled),
    #[error(transparent)]
    TooManyGrants(#[from] drizzle_proto::rights::TooManyGrants),
    #[error("there are as many as this tracker can keep; delete some first")]
    Full,
    #[error("there is no identity {0}")]
    NoSuchIdentity(PeerId),
    #[error("nothing is stopped as {0}; `tracker-svc stops` lists what is")]
    NotStopped(Scope),
    #[error("there is no token {0}")]
    NoSuchToken(TokenId),
}

pub(crate) fn seconds(now: SystemTime) -> Seconds {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Access {
    /// Opens what a data folder holds. Blocks on the disk.
    pub(crate) fn open(dir: &Path, rules: Rules, audit: Audit) -> Result<Self, StoreError> {
        let store = Store::open(dir)?;
        let key = store.ticket_key()?;
        let mut state = State::default();
        store.read()?.into_iter().for_each(|change| state.apply(change));
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros());
        // Another one than before the restart.
        let version = u64::try_from(micros).unwrap_or(u64::MAX / 2);
        let told = watch::Sender::new(Arc::new(state.told(version, rules.enforced, key.public())));
        let (state, quotas) = (RwLock::new(state), Mutex::default());
        Ok(Self(Arc::new(Inner { rules, state, store, key, quotas, audit, told, changing: Mutex::default() })))
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happens to rights, and what is refused.
    pub(crate) fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// What peers are told, now and when it changes.
    pub(crate) fn told(&self) -> watch::Receiver<Arc<Told>> {
        self.0.told.subscribe()
    }

    /// The peer behind a caller that has to be one; none where callers are not told apart.
    pub(crate) fn knows(&self, caller: Caller) -> Result<Option<PeerId>, Denied> {
        let peer = match caller {
            Caller::Local => return Ok(None),
            Caller::Plain | Caller::Unknown if !self.0.rules.enforced => return Ok(None),
            _ => caller.peer().ok_or(Denied::NoIdentity)?,
        };
        let state = self.state();
        if state.is_revoked(peer) {
            return Err(Denied::Revoked(peer));
        }
        if self.0.rules.enforced && !state.knows(peer) {
            return Err(Denied::NothingGranted(peer));
        }
        drop(state);
        let mut quotas = self.0.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        quotas.call(peer, Instant::now()).map_err(|again| Denied::TooOften { peer, again })?;
        Ok(Some(peer))
    }

    /// Whether a peer that is known may read a name, now and as long as it watches it. A name that an operator stopped
    /// may not be read by anybody.
    pub(crate) fn reads(&self, peer: Option<PeerId>, name: &FileName) -> Result<(), Denied> {
        let state = self.state();
        if let Some(peer) = peer.filter(|peer| state.is_revoked(*peer)) {
            return Err(Denied::Revoked(peer));
        }
        if state.is_stopped(name) {
            return Err(Denied::Stopped(name.clone()));
        }
        drop(state);
        self.may(peer, Verb::Read, name)
    }

    /// Whether a peer that is known may do this with that name.
    pub(crate) fn may(&self, peer: Option<PeerId>, verb: Verb, name: &FileName) -> Result<(), Denied> {
        match peer {
            Some(peer) if self.0.rules.enforced && !self.state().allows(peer, verb, name) => {
                Err(Denied::NotGranted { peer, verb, name: name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whether names may differ in what a peer may read of them; else all may be read.
    pub(crate) fn reads_all(&self, peer: Option<PeerId>) -> bool {
        peer.is_none_or(|peer| !self.0.rules.enforced || self.state().grants_of(peer).any(|g| g.allow_all(Verb::Read)))
    }

    /// Whether a peer may read some name that starts so.
    pub(crate) fn reads_some(&self, peer: PeerId, prefix: &str) -> bool {
        self.state().grants_of(peer).any(|grants| grants.meet(Verb::Read, prefix))
    }

    /// Another watch of a peer; it counts until it is dropped.
    pub(crate) fn watches(&self, peer: Option<PeerId>) -> Result<quota::Watching, Denied> {
        let Some(peer) = peer else { return Ok(quota::Watching::default()) };
        let mut quotas = self.0.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        quotas.watch(peer).ok_or(Denied::TooManyWatches(peer))
    }

    /// Bytes of manifests that a peer brings.
    pub(crate) fn brings(&self, peer: Option<PeerId>, names: usize, bytes: usize) -> Result<(), Denied> {
        let Some(peer) = peer else { return Ok(()) };
        let mut quotas = self.0.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = quotas.bring(peer, names, bytes, Instant::now());
        fits.map_err(|again| Denied::TooOften { peer, again })
    }

    /// What a peer shows to holders.
    pub(crate) fn ticket(&self, peer: Option<PeerId>, now: SystemTime) -> Option<wire::Ticket> {
        let peer = peer.filter(|_| self.0.rules.enforced)?;
        let mut scopes: Vec<Scope> =
            self.state().grants_of(peer).flat_map(Grants::iter).map(|g| g.scope.clone()).collect();
        scopes.sort();
        scopes.dedup();
        Some(self.0.key.sign(&Ticket { peer, expires: now + self.0.rules.ticket_life, scopes }))
    }

    /// Makes changes: decided, written, then in force. Blocks on the disk.
    fn change<T>(
        &self,
        decide: impl FnOnce(&State) -> Result<(Vec<Change>, T), ChangeError>,
    ) -> Result<T, ChangeError> {
        let _one_at_a_time = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (changes, answer) = decide(&self.state())?;
        self.0.store.write(&changes)?;
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut tells = false;
        for change in changes {
            // Tokens are nobody's business, and neither is when an identity was certified.
            tells |= match &change {
                Change::Token(..) => false,
                Change::Stop(..) => true,
                Change::Identity(id, new) => {
                    let before = state.identity(*id).map(|before| (&before.grants, before.revoked));
                    before != new.as_ref().map(|new| (&new.grants, new.revoked))
                }
            };
            state.apply(change);
        }
        if tells {
            self.0.told.send_modify(|told| {
                let version = told.version + 1;
                *told = Arc::new(state.told(version, self.0.rules.enforced, self.0.key.public()));
            });
        }
        Ok(answer)
    }

    async fn changing<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&State) -> Result<(Vec<Change>, T), ChangeError> + Send + 'static,
    ) -> Result<T, ChangeError> {
        let access = self.clone();
        let changed = tokio::task::spawn_blocking(move || access.change(decide)).await;
        changed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Notes that a key is certified for an identity, if it may be.
    pub(crate) async fn enrol(&self, id: PeerId, key: [u8; 32], token: Option<Token>) -> Result<(), ChangeError> {
        let now = seconds(SystemTime::now());
        self.changing(move |state| Ok((state.enrol(id, key, token.as_ref(), now)?, ()))).await
    }

    /// A new token; its text is known to the caller alone.
    pub(crate) async fn create_token(
        &self,
        authority: [u8; 32],
        life: Duration,
        uses_left: u32,
        grants: Grants,
    ) -> Result<Token, ChangeError> {
        let now = seconds(SystemTime::now());
        self.changing(move |state| {
            let token = Token::generate(authority).map_err(|_| ChangeError::Full)?;
            let mut changes = state.stale_tokens(now);
            if changes.is_empty() && !state.has_room_for_tokens() {
                return Err(ChangeError::Full);
            }
            let expires = now.saturating_add(life.as_secs());
            changes.push(Change::Token(token.id, Some(Issued { kept: token.kept(), expires, uses_left, grants })));
            Ok((changes, token))
        })
        .await
    }

    /// Deletes a token.
    pub(crate) async fn delete_token(&self, id: TokenId) -> Result<(), ChangeError> {
        self.changing(move |state| match state.tokens().any(|(known, _)| known == id) {
            true => Ok((vec![Change::Token(id, None)], ())),
            false => Err(ChangeError::NoSuchToken(id)),
        })
        .await
    }

    /// Grants more to an identity, or to anybody who is certified; or lets it have these alone.
    pub(crate) async fn grant(
        &self,
        id: Option<PeerId>,
        grants: Vec<Grant>,
        only: bool,
    ) -> Result<Grants, ChangeError> {
        self.changing(move |state| {
            let of = id.unwrap_or(ANYBODY);
            let before = match id {
                Some(id) => state.identity(id).cloned().unwrap_or_default(),
                None => Identity { grants: state.anybody().clone(), ..Identity::default() },
            };
            let now = if only { Grants::new(grants)? } else { granted(&before.grants, grants)? };
            Ok((vec![Change::Identity(of, Some(Identity { grants: now.clone(), ..before }))], now))
        })
        .await
    }

    /// Ends what an identity may do, for good.
    pub(crate) async fn revoke(&self, id: PeerId) -> Result<(), ChangeError> {
        let now = seconds(SystemTime::now());
        self.changing(move |state| {
            let known = state.identity(id).cloned().unwrap_or_default();
            Ok((vec![Change::Identity(id, Some(Identity { revoked: Some(now), ..known }))], ()))
        })
        .await
    }

    /// Forgets an identity, so that another key may have it.
    pub(crate) async fn forget(&self, id: PeerId) -> Result<(), ChangeError> {
        self.changing(move |state| {
            state.identity(id).ok_or(ChangeError::NoSuchIdentity(id))?;
            Ok((vec![Change::Identity(id, None)], ()))
        })
        .await
    }

    /// Nobody serves or downloads these names any more.
    pub(crate) async fn stop(&self, scope: Scope) -> Result<(), ChangeError> {
        let now = seconds(SystemTime::now());
        self.changing(move |state| match state.has_room_for_stops() {
            true => Ok((vec![Change::Stop(scope, Some(now))], ())),
            false => Err(ChangeError::Full),
        })
        .await
    }

    /// Undoes [`Access::stop`].
    pub(crate) async fn resume(&self, scope: Scope) -> Result<(), ChangeError> {
        self.changing(move |state| match state.stops().any(|(known, _)| *known == scope) {
            true => Ok((vec![Change::Stop(scope, None)], ())),
            false => Err(ChangeError::NotStopped(scope)),
        })
        .await
    }

    /// Tokens, identities and stops, to be listed.
    /// How often callers were refused for who they are, by reason.
    pub(crate) fn denials(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.audit.denials()
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state())
    }
}
