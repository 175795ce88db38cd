//! Who may do what, and who may become somebody: pure. What holds (each line has a test):
//! - nothing is allowed that was not granted, and nothing to an identity that was revoked;
//! - a token enrols as often as it says, until it runs out, and gives what it says;
//! - an identity belongs to the key that it was first certified for; that key is certified anew without a token, for
//!   [`REMEMBERED`] after the last time;
//! - what is stopped stays so until the same is resumed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use drizzle_proto::{
    FileName, PeerId, Scope,
    access::Access,
    rights::{Grant, Grants, Verb},
    token::{Kept, Token, TokenId},
};

/// A machine that was off for so long joins again with a token.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(90 * 24 * 3600);
/// Identities, tokens and stops that are kept at most.
pub(crate) const MOST_IDENTITIES: usize = 200_000;
const MOST_TOKENS: usize = 10_000;
const MOST_STOPS: usize = 4096;

/// Seconds since 1970.
pub(crate) type Seconds = u64;

/// A token that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    pub(crate) kept: Kept,
    pub(crate) expires: Seconds,
    pub(crate) uses_left: u32,
    pub(crate) grants: Grants,
}

/// An identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    /// SHA-256 of the public key that it belongs to, if this tracker certified it.
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) grants: Grants,
    pub(crate) revoked: Option<Seconds>,
    /// When it was certified last.
    pub(crate) certified: Seconds,
}

/// Why an identity was not certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotEnrolled {
    #[error("a join token is needed: have `tracker-svc token create` print one, and start with --join")]
    NeedsToken,
    #[error("the join token is not known to this tracker: it was made by another one, or deleted")]
    UnknownToken,
    #[error("the join token has run out; `tracker-svc token create` prints another one")]
    RanOut,
    #[error("the join token was used as often as it may be; `tracker-svc token create` prints another one")]
    UsedUp,
    #[error("this identity was revoked; to come back, delete the peer's state folder and join with a new token")]
    Revoked,
    #[error(
        "this identity belongs to another key: two machines have the same id. Delete the state folder of the one that was copied, or, if its key was lost, let an operator run `tracker-svc forget` with this id"
    )]
    OtherKey,
    #[error("this tracker knows as many identities as it can; an operator may forget some")]
    Full,
}

/// What was changed, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Token(TokenId, Option<Issued>),
    Identity(PeerId, Option<Identity>),
    Stop(Scope, Option<Seconds>),
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    tokens: BTreeMap<TokenId, Issued>,
    identities: HashMap<PeerId, Identity>,
    /// What every certified identity may do.
    anybody: Grants,
    stops: BTreeMap<Scope, Seconds>,
}

impl State {
    /// Takes over what was written.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Token(id, Some(token)) => drop(self.tokens.insert(id, token)),
            Change::Token(id, None) => drop(self.tokens.remove(&id)),
            Change::Identity(ANYBODY, identity) => self.anybody = identity.unwrap_or_default().grants,
            Change::Identity(id, Some(identity)) => drop(self.identities.insert(id, identity)),
            Change::Identity(id, None) => drop(self.identities.remove(&id)),
            Change::Stop(scope, Some(since)) => drop(self.stops.insert(scope, since)),
            Change::Stop(scope, None) => drop(self.stops.remove(&scope)),
        }
    }

    /// Identities that may do something, those that were revoked, tokens, and stops.
    pub(crate) fn counts(&self) -> (u64, u64, u64, u64) {
        let revoked = self.identities.values().filter(|identity| identity.revoked.is_some()).count();
        let granted =
            self.identities.values().filter(|identity| identity.revoked.is_none() && !identity.grants.is_empty());
        (granted.count() as u64, revoked as u64, self.tokens.len() as u64, self.stops.len() as u64)
    }

    pub(crate) fn identity(&self, id: PeerId) -> Option<&Identity> {
        self.identities.get(&id)
    }

    pub(crate) fn is_revoked(&self, id: PeerId) -> bool {
        self.identity(id).is_some_and(|identity| identity.revoked.is_some())
    }

    /// Whether anything is granted to it.
    pub(crate) fn knows(&self, id: PeerId) -> bool {
        !self.anybody.is_empty() || self.identity(id).is_some_and(|identity| !identity.grants.is_empty())
    }

    /// Each grant that counts for an identity.
    pub(crate) fn grants_of(&self, id: PeerId) -> impl Iterator<Item = &Grants> {
        let own = self.identity(id);
        let live = own.is_none_or(|own| own.revoked.is_none());
        own.map(|own| &own.grants).into_iter().chain([&self.anybody]).filter(move |_| live)
    }

    pub(crate) fn allows(&self, id: PeerId, verb: Verb, name: &FileName) -> bool {
        self.grants_of(id).any(|grants| grants.allow(verb, name))
    }

    pub(crate) fn is_stopped(&self, name: &FileName) -> bool {
        !self.stops.is_empty() && self.stops.keys().any(|scope| scope.covers(name))
    }

    pub(crate) fn stops(&self) -> impl Iterator<Item = (&Scope, Seconds)> {
        self.stops.iter().map(|(scope, since)| (scope, *since))
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = (TokenId, &Issued)> {
        self.tokens.iter().map(|(id, token)| (*id, token))
    }

    /// In the order of their ids.
    pub(crate) fn identities(&self) -> Vec<(PeerId, &Identity)> {
        let mut all: Vec<_> = self.identities.iter().map(|(id, identity)| (*id, identity)).collect();
        all.sort_by_key(|(id, _)| *id);
        all
    }

    pub(crate) fn anybody(&self) -> &Grants {
        &self.anybody
    }

    /// What is changed when this key asks to be certified for this identity.
    pub(crate) fn enrol(
        &self,
        id: PeerId,
        key: [u8; 32],
        token: Option<&Token>,
        now: Seconds,
    ) -> Result<Vec<Change>, NotEnrolled> {
        let known = self.identity(id);
        if known.is_some_and(|known| known.revoked.is_some()) {
            return Err(NotEnrolled::Revoked);
        }
        let of_key = known.filter(|known| known.key.is_some());
        if of_key.is_some_and(|known| known.key != Some(key)) {
            return Err(NotEnrolled::OtherKey);
        }
        let certified = Identity { key: Some(key), certified: now, ..known.cloned().unwrap_or_default() };
        if of_key.is_some_and(|known| now <= known.certified.saturating_add(REMEMBERED.as_secs())) {
            return Ok(vec![Change::Identity(id, Some(certified))]);
        }
        let token = token.ok_or(NotEnrolled::NeedsToken)?;
        let issued = self.tokens.get(&token.id).filter(|issued| issued.kept.is_of(token));
        let issued = issued.ok_or(NotEnrolled::UnknownToken)?;
        if issued.expires < now {
            return Err(NotEnrolled::RanOut);
        }
        let uses_left = issued.uses_left.checked_sub(1).ok_or(NotEnrolled::UsedUp)?;
        if known.is_none() && self.identities.len() >= MOST_IDENTITIES {
            return Err(NotEnrolled::Full);
        }
        let grants = certified.grants.iter().chain(issued.grants.iter()).cloned();
        let grants = Grants::new(grants).map_err(|_| NotEnrolled::Full)?;
        let issued = Issued { uses_left, ..issued.clone() };
        Ok(vec![Change::Token(token.id, Some(issued)), Change::Identity(id, Some(Identity { grants, ..certified }))])
    }

    /// Tokens of which nothing is to be had any more.
    pub(crate) fn stale_tokens(&self, now: Seconds) -> Vec<Change> {
        // For a day the bearer hears that it ran out, or was used.
        let is_stale = |token: &Issued| token.expires.saturating_add(24 * 3600) < now;
        self.tokens.iter().filter(|(_, token)| is_stale(token)).map(|(id, _)| Change::Token(*id, None)).collect()
    }

    pub(crate) fn has_room_for_tokens(&self) -> bool {
        self.tokens.len() < MOST_TOKENS
    }

    pub(crate) fn has_room_for_stops(&self) -> bool {
        self.stops.len() < MOST_STOPS
    }

    /// What peers are told.
    pub(crate) fn told(&self, version: u64, enforced: bool, key: [u8; 32]) -> Access {
        let ids = |wanted: &dyn Fn(&Identity) -> bool| -> BTreeSet<PeerId> {
            self.identities.iter().filter(|(_, identity)| wanted(identity)).map(|(id, _)| *id).collect()
        };
        Access {
            version,
            enforced,
            ticket_keys: vec![key],
            revoked: ids(&|identity| identity.revoked.is_some()),
            stopped: self.stops.keys().cloned().collect(),
            admins: ids(&|identity| identity.revoked.is_none() && identity.grants.allow_all(Verb::Admin)),
        }
    }
}

/// Stands for every identity that is certified. No peer has this id: they are random.
pub(crate) const ANYBODY: PeerId = PeerId::from_bytes([0xff; 16]);

/// Some grants more, or in place of those there were.
pub(crate) fn granted(
    before: &Grants,
    more: impl IntoIterator<Item = Grant>,
) -> Result<Grants, drizzle_proto::rights::TooManyGrants> {
    Grants::new(before.iter().cloned().chain(more))
}

#[cfg(test)]
mod tests {
    use drizzle_proto::rights::Role;

    use super::*;

    const PEER: PeerId = PeerId::from_bytes([1; 16]);
    const OTHER: PeerId = PeerId::from_bytes([2; 16]);
    const KEY: [u8; 32] = [1; 32];

    fn grants(scope: &str, role: Role) -> Grants {
        Grants::new([Grant { scope: scope.parse().unwrap(), role }]).unwrap()
    }

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    /// A state with a token for `uses` readers of `models/`, until second 100.
    fn with_token(uses_left: u32) -> (State, Token) {
        let (mut state, token) = (State::default(), Token::generate([0; 32]).unwrap());
        let grants = grants("models/", Role::Reader);
        state.apply(Change::Token(token.id, Some(Issued { kept: token.kept(), expires: 100, uses_left, grants })));
        (state, token)
    }

    fn enrol(state: &mut State, id: PeerId, key: [u8; 32], token: Option<&Token>, now: u64) -> Option<NotEnrolled> {
        match state.enrol(id, key, token, now) {
            Ok(changes) => {
                changes.into_iter().for_each(|change| state.apply(change));
                None
            }
            Err(error) => Some(error),
        }
    }

    #[test]
    fn nothing_is_allowed_that_was_not_granted() {
        let mut state = State::default();
        assert!(!state.allows(PEER, Verb::Read, &name("a")) && !state.knows(PEER));
        state.apply(Change::Identity(
            PEER,
            Some(Identity { grants: grants("models/", Role::Publisher), ..Identity::default() }),
        ));
        assert!(state.allows(PEER, Verb::Share, &name("models/a")) && !state.allows(PEER, Verb::Read, &name("a")));
        assert!(!state.allows(OTHER, Verb::Read, &name("models/a")));
        state.apply(Change::Identity(
            ANYBODY,
            Some(Identity { grants: grants("a", Role::Reader), ..Identity::default() }),
        ));
        assert!(state.allows(OTHER, Verb::Read, &name("a")) && state.allows(PEER, Verb::Read, &name("a")));
        let revoked = Identity { revoked: Some(5), ..state.identity(PEER).unwrap().clone() };
        state.apply(Change::Identity(PEER, Some(revoked)));
        assert!(!state.allows(PEER, Verb::Read, &name("a")) && !state.allows(PEER, Verb::Share, &name("models/a")));
        assert_eq!(state.told(1, true, KEY).revoked, [PEER].into());
    }

    #[test]
    fn a_token_enrols_as_often_as_it_says_until_it_runs_out() {
        let (mut state, token) = with_token(1);
        let stranger = Token::generate([0; 32]).unwrap();
        let mut forged = stranger.clone();
        forged.id = token.id;
        assert_eq!(enrol(&mut state, PEER, KEY, None, 1), Some(NotEnrolled::NeedsToken));
        assert_eq!(enrol(&mut state, PEER, KEY, Some(&stranger), 1), Some(NotEnrolled::UnknownToken));
        assert_eq!(enrol(&mut state, PEER, KEY, Some(&forged), 1), Some(NotEnrolled::UnknownToken));
        assert_eq!(enrol(&mut state, PEER, KEY, Some(&token), 101), Some(NotEnrolled::RanOut));
        assert_eq!(enrol(&mut state, PEER, KEY, Some(&token), 100), None);
        assert!(
            state.allows(PEER, Verb::Read, &name("models/a")) && !state.allows(PEER, Verb::Share, &name("models/a"))
        );
        assert_eq!(enrol(&mut state, OTHER, [2; 32], Some(&token), 100), Some(NotEnrolled::UsedUp));
        assert!(state.stale_tokens(100 + 24 * 3600).is_empty());
        assert_eq!(state.stale_tokens(101 + 24 * 3600), [Change::Token(token.id, None)]);
    }

    #[test]
    fn an_identity_belongs_to_its_key() {
        let (mut state, token) = with_token(9);
        assert_eq!(enrol(&mut state, PEER, KEY, Some(&token), 1), None);
        assert_eq!(enrol(&mut state, PEER, KEY, None, 2), None, "renewed");
        assert_eq!(enrol(&mut state, PEER, [2; 32], Some(&token), 2), Some(NotEnrolled::OtherKey));
        let later = 2 + REMEMBERED.as_secs();
        assert_eq!(enrol(&mut state, PEER, KEY, None, later), None);
        assert_eq!(enrol(&mut state, PEER, KEY, None, later + REMEMBERED.as_secs() + 1), Some(NotEnrolled::NeedsToken));
        let revoked = Identity { revoked: Some(5), ..state.identity(PEER).unwrap().clone() };
        state.apply(Change::Identity(PEER, Some(revoked)));
        assert_eq!(enrol(&mut state, PEER, KEY, Some(&token), 3), Some(NotEnrolled::Revoked));
        state.apply(Change::Identity(PEER, None));
        assert_eq!(enrol(&mut state, PEER, [2; 32], Some(&token), 3), None, "forgotten, it may have another key");
    }

    #[test]
    fn what_is_stopped_stays_so_until_it_is_resumed() {
        let mut state = State::default();
        let scope: Scope = "models/".parse().unwrap();
        state.apply(Change::Stop(scope.clone(), Some(1)));
        assert!(state.is_stopped(&name("models/a")) && !state.is_stopped(&name("a")));
        assert_eq!(state.told(1, false, KEY).stopped, std::slice::from_ref(&scope));
        state.apply(Change::Stop("models/a".parse().unwrap(), None));
        assert!(state.is_stopped(&name("models/a")));
        state.apply(Change::Stop(scope, None));
        assert!(!state.is_stopped(&name("models/a")));
    }
}
