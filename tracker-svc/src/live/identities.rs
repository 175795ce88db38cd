//! Which process is a peer, when two say so: a peer that was restarted or moved, or a copy of its state folder that was
//! started elsewhere (a golden image).
//!
//! A process is alive if it calls. A restart begins when the process before it has ended, so of two processes that
//! both call, one works on a copy. What holds:
//! - a process keeps its peer's id over restarts at the same address at once, and over restarts elsewhere when the
//!   lease of the run before has ended;
//! - a lease is never taken from a process that renews it, except at the same address (no two programs listen there on
//!   one machine), or by a process that had the id before the one that holds it now;
//! - a process that was found to be a copy never gets the id.
//!
//! Remembers sessions, not peers that left: bounded, and lost at a restart of the tracker, after which the first
//! process to come is the peer. Pure: reads no clock.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use drizzle_proto::{Address, PeerClaim, PeerId, Session};

use crate::limits::{MAX_PEERS, MAX_SESSIONS};

/// The live lease that a claim meets.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Its id.
    pub lease: u64,
    /// The process that holds it.
    pub session: Option<Session>,
    /// Where that process is.
    pub address: &'a Address,
    /// When it was opened or last renewed.
    pub renewed: Instant,
}

/// What becomes of a claim to a peer's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// No live process has it.
    Free,
    /// The same process, or a later run of it, at the same address.
    SamePlace,
    /// The same process at another address.
    Moved,
    /// The process that had it before a copy of it came; the copy loses it.
    Original,
    /// Neither process tells its session, so the later one gets it.
    Unknown,
    /// It is not clear yet whether the holder is alive. `first` for the first claim of this process.
    Wait {
        /// Worth a log line.
        first: bool,
    },
    /// The holder is alive: the claimant works on a copy.
    Copy,
}

/// What is remembered of the processes that had ids.
#[derive(Debug)]
pub struct Identities {
    /// A claim is remembered this long: a claimant asks far more often.
    patience: Duration,
    known: HashMap<PeerId, Known>,
    /// The peers in `known`, oldest first.
    order: VecDeque<PeerId>,
}

#[derive(Debug, Default)]
struct Known {
    /// Processes that held a lease and did not leave, in the order in which they came.
    sessions: VecDeque<Session>,
    copies: VecDeque<Session>,
    /// Processes that wait, each with the moment of its first claim and of its last.
    waiting: VecDeque<((Option<Session>, Address), Instant, Instant)>,
}

/// The oldest is forgotten for the newest.
fn push<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() == MAX_SESSIONS {
        queue.pop_front();
    }
    queue.push_back(value);
}

impl Known {
    /// Whether the claimant had the id before the holder.
    fn is_older(&self, claimant: Session, holder: Session) -> bool {
        let place = |session| self.sessions.iter().position(|known| *known == session);
        matches!((place(claimant), place(holder)), (Some(one), Some(other)) if one < other)
    }

    fn note_copy(&mut self, session: Option<Session>) {
        if let Some(session) = session
            && !self.copies.contains(&session)
        {
            push(&mut self.copies, session);
        }
    }
}

impl Identities {
    /// None is known; leases last this long.
    pub fn new(lease: Duration) -> Self {
        Self { patience: lease * 2, known: HashMap::new(), order: VecDeque::new() }
    }

    /// Judges a claim to a peer's id, of which there may be a live lease. If it is granted, a lease must be opened.
    pub fn judge(&mut self, claim: &PeerClaim, held: Option<Held<'_>>, now: Instant) -> Ruling {
        let patience = self.patience;
        let known = self.entry(claim.peer.id());
        let ruling = known.judge(claim, held, patience, now);
        match ruling {
            Ruling::Wait { .. } => {}
            Ruling::Copy => {
                if held.is_none_or(|held| held.session != claim.session) {
                    known.note_copy(claim.session);
                }
            }
            _ => {
                known.waiting.clear();
                if ruling == Ruling::Original {
                    known.note_copy(held.and_then(|held| held.session));
                }
                if let Some(session) = claim.session
                    && !known.sessions.contains(&session)
                {
                    push(&mut known.sessions, session);
                }
            }
        }
        ruling
    }

    /// A process ended its lease by itself: it is no more.
    pub fn left(&mut self, peer: PeerId, session: Option<Session>) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.sessions.retain(|known| Some(*known) != session);
        }
    }

    fn entry(&mut self, peer: PeerId) -> &mut Known {
        if !self.known.contains_key(&peer) {
            if self.order.len() == MAX_PEERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back(peer);
        }
        self.known.entry(peer).or_default()
    }
}

impl Known {
    fn judge(&mut self, claim: &PeerClaim, held: Option<Held<'_>>, patience: Duration, now: Instant) -> Ruling {
        if claim.session.is_some_and(|session| self.copies.contains(&session)) {
            return Ruling::Copy;
        }
        let Some(held) = held else { return Ruling::Free };
        let here = held.address == claim.peer.address();
        match (claim.session, held.session) {
            (Some(one), Some(other)) if one == other && here => return Ruling::SamePlace,
            (Some(one), Some(other)) if one == other && claim.last_lease == Some(held.lease) => return Ruling::Moved,
            (Some(one), Some(other)) if self.is_older(one, other) => return Ruling::Original,
            _ if here => return Ruling::SamePlace,
            (None, None) => return Ruling::Unknown,
            _ => {}
        }
        self.waiting.retain(|(_, _, last)| now.saturating_duration_since(*last) < patience);
        let claimant = (claim.session, claim.peer.address().clone());
        match self.waiting.iter_mut().find(|(known, ..)| *known == claimant) {
            Some((_, first, _)) if held.renewed > *first => Ruling::Copy,
            Some((_, _, last)) => {
                *last = now;
                Ruling::Wait { first: false }
            }
            None => {
                push(&mut self.waiting, (claimant, now, now));
                Ruling::Wait { first: true }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test begins its own clock")]
mod tests {
    use drizzle_proto::{Labels, PeerInfo};
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn claim(session: u8, host: u8) -> PeerClaim {
        let address = Address::new(&format!("host{host}:1")).unwrap();
        let peer = PeerInfo::new(PeerId::from_bytes([1; 16]), address, Labels::default());
        PeerClaim { peer, session: (session > 0).then(|| Session::from_bytes([session; 16])), last_lease: None }
    }

    /// One peer id, with the lease that the rulings lead to.
    struct World {
        identities: Identities,
        held: Option<(u64, PeerClaim, Instant)>,
        leases: u64,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            Self { identities: Identities::new(LEASE), held: None, leases: 0, now: Instant::now() }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.held = self.held.take().filter(|(.., renewed)| self.now < *renewed + LEASE);
        }

        fn holder(&self) -> Option<Session> {
            self.held.as_ref().and_then(|(_, claim, _)| claim.session)
        }

        fn renew(&mut self) {
            if let Some((.., renewed)) = &mut self.held {
                *renewed = self.now;
            }
        }

        fn claims(&mut self, claim: &PeerClaim) -> Ruling {
            let held = self.held.as_ref().map(|(lease, claim, renewed)| Held {
                lease: *lease,
                session: claim.session,
                address: claim.peer.address(),
                renewed: *renewed,
            });
            let ruling = self.identities.judge(claim, held, self.now);
            if !matches!(ruling, Ruling::Wait { .. } | Ruling::Copy) {
                self.leases += 1;
                self.held = Some((self.leases, claim.clone(), self.now));
            }
            ruling
        }
    }

    #[test]
    fn a_copy_elsewhere_is_found_out_by_the_originals_next_renewal_and_never_gets_the_id() {
        let mut world = World::new();
        assert_eq!(world.claims(&claim(1, 1)), Ruling::Free);
        assert_eq!(world.claims(&claim(2, 2)), Ruling::Wait { first: true });
        world.pass(Duration::from_secs(1));
        assert_eq!(world.claims(&claim(2, 2)), Ruling::Wait { first: false });
        world.renew();
        assert_eq!(world.claims(&claim(2, 2)), Ruling::Copy);
        world.pass(LEASE * 9);
        assert_eq!(world.claims(&claim(2, 2)), Ruling::Copy, "though the original is away now");
        assert_eq!(world.claims(&claim(1, 1)), Ruling::Free);
    }

    #[test]
    fn a_restart_keeps_the_id_wherever_it_is() {
        let mut world = World::new();
        world.claims(&claim(1, 1));
        world.pass(Duration::from_secs(1));
        world.renew();
        assert_eq!(world.claims(&claim(2, 1)), Ruling::SamePlace, "at once at the same address");
        world.pass(Duration::from_secs(1));
        for _ in 0..14 {
            assert!(matches!(world.claims(&claim(3, 3)), Ruling::Wait { .. }), "elsewhere it waits ...");
            world.pass(Duration::from_secs(1));
        }
        assert_eq!(world.claims(&claim(3, 3)), Ruling::Free, "... for the end of the lease");
    }

    #[test]
    fn a_restart_elsewhere_long_after_a_copy_asked_from_there_is_no_copy() {
        let mut world = World::new();
        world.claims(&claim(1, 1));
        assert_eq!(world.claims(&claim(2, 2)), Ruling::Wait { first: true });
        for _ in 0..10 {
            world.pass(LEASE / 3);
            world.renew();
        }
        assert_eq!(world.claims(&claim(3, 2)), Ruling::Wait { first: true });
        world.pass(LEASE);
        assert_eq!(world.claims(&claim(3, 2)), Ruling::Free);
    }

    #[test]
    fn a_process_that_moves_shows_its_lease_and_a_copy_of_its_memory_cannot() {
        let mut world = World::new();
        world.claims(&claim(1, 1));
        assert_eq!(world.claims(&PeerClaim { last_lease: Some(1), ..claim(1, 2) }), Ruling::Moved);
        let copy = PeerClaim { last_lease: Some(1), ..claim(1, 3) };
        assert_eq!(world.claims(&copy), Ruling::Wait { first: true });
        world.pass(Duration::from_secs(1));
        world.renew();
        assert_eq!(world.claims(&copy), Ruling::Copy);
        assert_eq!(world.claims(&claim(1, 2)), Ruling::SamePlace, "its session is not held against the original");
    }

    #[test]
    fn an_original_takes_its_id_back_from_a_copy_that_came_while_it_was_away_or_at_the_same_address() {
        for away in [true, false] {
            let mut world = World::new();
            world.claims(&claim(1, 1));
            if away {
                world.pass(LEASE);
            }
            let copy = claim(2, if away { 2 } else { 1 });
            assert_eq!(world.claims(&copy), if away { Ruling::Free } else { Ruling::SamePlace });
            assert_eq!(world.claims(&claim(1, 1)), Ruling::Original);
            assert_eq!(world.claims(&copy), Ruling::Copy);
        }
    }

    #[test]
    fn programs_that_tell_no_session_are_told_apart_from_those_that_do() {
        let mut world = World::new();
        world.claims(&claim(0, 1));
        assert_eq!(world.claims(&claim(0, 2)), Ruling::Unknown, "as it always was");
        assert_eq!(world.claims(&claim(1, 3)), Ruling::Wait { first: true });
        world.pass(LEASE);
        assert_eq!(world.claims(&claim(1, 3)), Ruling::Free);
        assert_eq!(world.claims(&claim(0, 1)), Ruling::Wait { first: true });
    }

    proptest! {
        /// One machine that is killed and started anew, here and elsewhere; its copies, which call all the time.
        #[test]
        fn a_machine_keeps_its_id_and_its_copies_do_not_get_it_while_it_renews(
            steps in proptest::collection::vec((0u8..4, 0u8..3), 1..60),
        ) {
            let mut world = World::new();
            let (mut run, mut host) = (1u8, 10u8);
            prop_assert_eq!(world.claims(&claim(run, host)), Ruling::Free);
            for (step, n) in steps {
                match step {
                    // Time passes, with renewals.
                    0 => {
                        world.pass(LEASE / 3);
                        world.renew();
                    }
                    // A copy asks.
                    1 => {
                        let ruling = world.claims(&claim(200 + n, n));
                        prop_assert!(matches!(ruling, Ruling::Wait { .. } | Ruling::Copy), "{ruling:?}");
                    }
                    // A restart, in the same place or elsewhere.
                    _ => {
                        run += 1;
                        host += u8::from(step == 3);
                        let mut ruling = world.claims(&claim(run, host));
                        while let Ruling::Wait { .. } = ruling {
                            world.pass(Duration::from_secs(1));
                            ruling = world.claims(&claim(run, host));
                        }
                        prop_assert_ne!(ruling, Ruling::Copy, "a restart is no copy");
                    }
                }
                prop_assert_eq!(world.holder(), claim(run, host).session);
            }
        }
    }
}
