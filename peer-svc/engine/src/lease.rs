//! When to register with the tracker, to renew, to announce, and to try again.
//!
//! The caller makes the calls and reports how they ended; this value says which call is due. Renewals and
//! announcements are independent, because an announcement may take as long as its deadline and a lease that
//! waits for it is lost.
//!
//! What holds (each line has a property test):
//! - at most one call of each kind is under way;
//! - while a lease is held, its renewal is due [`Terms::renew_every`] after the last one was sent, or a pause
//!   that grows after that one failed, whatever announcements do;
//! - without a lease the only call is to register, and what a call under an earlier lease brings is ignored;
//! - a lease under which the tracker knows an old address is given up at once, like one that the tracker does not know;
//! - a lease that the tracker does not know is given up at once, whichever call finds out; a new one is asked for
//!   at once too, but after a pause that grows if the last one was lost before its first renewal was due;
//! - news is told at once, but [`BATCH`], or as long as the tracker wants up to [`LONGEST`], after the last that was told:
//!   meanwhile it is gathered; and after a failure it waits for a pause that grows, whatever renewals do.

use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::StdRng};

use crate::retry::{self, Backoff};

/// News is told this long after the last news at the soonest.
pub const BATCH: Duration = Duration::from_millis(40);
/// And no later than this, however large its fleet is to the tracker.
pub const LONGEST: Duration = Duration::from_secs(5);
/// A renewal that gets no answer is given up after the time between renewals, so that two more fit into a lease of
/// three times that; but not before this, which a busy machine may need.
pub const LEAST_DEADLINE: Duration = Duration::from_secs(1);

/// What the tracker granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Names the lease in later calls.
    pub id: u64,
    /// Renew it this often.
    pub renew_every: Duration,
}

/// A call to make now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Ask for a lease.
    Register,
    /// Prolong this lease.
    Renew(u64),
    /// Tell news under this lease.
    Announce(u64),
}

/// How a renewal or an announcement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The tracker took it.
    Taken,
    /// It took it, but had no room for the hashes that came along: asking again at once would not help.
    NoRoom,
    /// It does not know the lease.
    UnknownLease,
    /// No answer, or a refusal that may pass.
    Failed,
}

/// What changed for the rest of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The rest of the daemon need not know.
    Nothing,
    /// The tracker answers, under this lease.
    Connected(u64),
    /// It does not answer; the lease may still be good.
    Away,
    /// The lease is gone; everything is to be announced again under the next one.
    Lost,
    /// The lease is given up for one at another address; otherwise as `Lost`.
    Moved,
}

#[derive(Debug)]
struct Held {
    terms: Terms,
    since: Instant,
    renew_at: Instant,
    renewing: bool,
    announcing: bool,
    announce_from: Instant,
    has_news: bool,
    connected: bool,
}

/// The lease of one peer.
#[derive(Debug)]
pub struct Lease {
    held: Option<Held>,
    registering: bool,
    register_from: Instant,
    /// Each kind of failure has pauses of its own: a call that succeeds says nothing of the others.
    pauses: Pauses,
    /// News is gathered this long at least.
    least_batch: Duration,
    /// And this long at present.
    batch: Duration,
    rng: StdRng,
}

#[derive(Debug)]
struct Pauses {
    register: Backoff,
    /// After a lease that was lost before its first renewal was due.
    short_lease: Backoff,
    renew: Backoff,
    announce: Backoff,
    no_room: Backoff,
}

impl Lease {
    /// None yet: registering is due now. The seed decides the jitter of the pauses.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            held: None,
            registering: false,
            register_from: now,
            pauses: Pauses {
                register: Backoff::new(retry::TRACKER),
                short_lease: Backoff::new(retry::TRACKER),
                renew: Backoff::new(retry::TRACKER),
                announce: Backoff::new(retry::TRACKER),
                no_room: Backoff::new(retry::NO_ROOM),
            },
            least_batch: BATCH,
            batch: BATCH,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// The same, but news is gathered for another time than [`BATCH`]: for a simulation that asks what that changes.
    #[must_use]
    pub fn gathering(self, batch: Duration) -> Self {
        Self { least_batch: batch, batch, ..self }
    }

    /// The tracker wants to hear news no more often than once in this time.
    pub fn gather(&mut self, pause: Duration) {
        self.batch = pause.min(LONGEST).max(self.least_batch);
    }

    /// The lease that is held, whether or not the tracker answers at present.
    pub fn id(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.terms.id)
    }

    /// How long a renewal may take. One with the deadline of other calls would hang for as long as the lease lasts.
    pub fn renew_within(&self) -> Duration {
        self.held.as_ref().map_or(LEAST_DEADLINE, |held| held.terms.renew_every.max(LEAST_DEADLINE))
    }

    /// Whether [`Lease::has_news`] would change anything: otherwise the news needs no watching now.
    pub fn listens(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.has_news)
    }

    /// There is something to announce.
    pub fn has_news(&mut self) {
        if let Some(held) = &mut self.held {
            held.has_news = true;
        }
    }

    /// The next call that is due, if any; ask until there is none. Each must be answered.
    pub fn next(&mut self, now: Instant) -> Option<Call> {
        let Some(held) = &mut self.held else {
            let due = !self.registering && self.register_from <= now;
            self.registering |= due;
            return due.then_some(Call::Register);
        };
        if !held.renewing && held.renew_at <= now {
            held.renewing = true;
            held.renew_at = now + held.terms.renew_every;
            return Some(Call::Renew(held.terms.id));
        }
        if !held.announcing && held.announce_at().is_some_and(|at| at <= now) {
            held.announcing = true;
            held.has_news = false;
            held.announce_from = now + self.batch;
            return Some(Call::Announce(held.terms.id));
        }
        None
    }

    /// When a call will be due although nothing happens; ask after [`Lease::next`] returned `None`.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.held {
            None => (!self.registering).then_some(self.register_from),
            Some(held) => {
                let renew = (!held.renewing).then_some(held.renew_at);
                let announce = if held.announcing { None } else { held.announce_at() };
                renew.into_iter().chain(announce).min()
            }
        }
    }

    /// The tracker granted a lease.
    pub fn registered(&mut self, terms: Terms, now: Instant) -> Change {
        self.registering = false;
        for pauses in [&mut self.pauses.register, &mut self.pauses.renew, &mut self.pauses.announce] {
            pauses.succeeded();
        }
        self.held = Some(Held {
            terms,
            since: now,
            renew_at: now + terms.renew_every,
            renewing: false,
            announcing: false,
            announce_from: now,
            has_news: false,
            connected: true,
        });
        Change::Connected(terms.id)
    }

    /// Registering failed.
    pub fn register_failed(&mut self, now: Instant) -> Change {
        self.registering = false;
        self.register_from = now + self.pauses.register.failed(&mut self.rng);
        Change::Away
    }

    /// A renewal of this lease ended.
    pub fn renewed(&mut self, lease: u64, answer: Answer, now: Instant) -> Change {
        let Some(held) = self.held.as_mut().filter(|held| held.terms.id == lease) else { return Change::Nothing };
        held.renewing = false;
        match answer {
            Answer::Taken | Answer::NoRoom => {
                self.pauses.renew.succeeded();
                self.answered()
            }
            Answer::UnknownLease => self.lost(now),
            Answer::Failed => {
                held.renew_at = now + self.pauses.renew.failed(&mut self.rng);
                self.away()
            }
        }
    }

    /// An announcement under this lease ended.
    pub fn announced(&mut self, lease: u64, answer: Answer, now: Instant) -> Change {
        let Some(held) = self.held.as_mut().filter(|held| held.terms.id == lease) else { return Change::Nothing };
        held.announcing = false;
        match answer {
            Answer::Taken => {
                self.pauses.announce.succeeded();
                self.pauses.no_room.succeeded();
                self.answered()
            }
            Answer::NoRoom => {
                self.pauses.announce.succeeded();
                let pause = self.pauses.no_room.failed(&mut self.rng);
                held.announce_from = held.announce_from.max(now + pause);
                self.answered()
            }
            Answer::UnknownLease => self.lost(now),
            Answer::Failed => {
                let pause = self.pauses.announce.failed(&mut self.rng);
                held.announce_from = held.announce_from.max(now + pause);
                held.has_news = true;
                // Finds out soon whether the tracker is back, and whether it remembers this peer.
                held.renew_at = held.renew_at.min(now + pause);
                self.away()
            }
        }
    }

    /// This peer is reached at another address than the one told under this lease.
    pub fn moved(&mut self, lease: u64, now: Instant) -> Change {
        match self.held.as_ref().is_some_and(|held| held.terms.id == lease) {
            true => {
                self.lost(now);
                Change::Moved
            }
            false => Change::Nothing,
        }
    }

    fn answered(&mut self) -> Change {
        let Some(held) = self.held.as_mut().filter(|held| !held.connected) else { return Change::Nothing };
        held.connected = true;
        Change::Connected(held.terms.id)
    }

    fn away(&mut self) -> Change {
        let Some(held) = self.held.as_mut().filter(|held| held.connected) else { return Change::Nothing };
        held.connected = false;
        Change::Away
    }

    fn lost(&mut self, now: Instant) -> Change {
        let lasted = self.held.take().is_some_and(|held| now >= held.since + held.terms.renew_every);
        self.register_from = if lasted {
            self.pauses.short_lease.succeeded();
            now
        } else {
            now + self.pauses.short_lease.failed(&mut self.rng)
        };
        Change::Lost
    }
}

impl Held {
    fn announce_at(&self) -> Option<Instant> {
        self.has_news.then_some(self.announce_from)
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
