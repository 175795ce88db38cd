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
//! - a lease that the tracker does not know is given up at once, whichever call finds out;
//! - news is gathered for [`BATCH`], and after a failure it waits for its pause.

use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::StdRng};

use crate::retry::{self, Backoff};

/// News is gathered this long before it is sent.
pub const BATCH: Duration = Duration::from_millis(40);
/// Before hashes are sent again that the tracker had no room for.
pub const STUCK: Duration = Duration::from_secs(1);

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
    /// Nothing.
    Nothing,
    /// The tracker answers, under this lease.
    Connected(u64),
    /// It does not answer; the lease may still be good.
    Away,
    /// The lease is gone; everything is to be announced again under the next one.
    Lost,
}

#[derive(Debug)]
struct Held {
    terms: Terms,
    renew_at: Instant,
    renewing: bool,
    announcing: bool,
    announce_from: Instant,
    /// When the news that waits became known.
    news_since: Option<Instant>,
    connected: bool,
}

/// The lease of one peer.
#[derive(Debug)]
pub struct Lease {
    held: Option<Held>,
    registering: bool,
    register_from: Instant,
    backoff: Backoff,
    rng: StdRng,
}

impl Lease {
    /// None yet: registering is due now. The seed decides the jitter of the pauses.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            held: None,
            registering: false,
            register_from: now,
            backoff: Backoff::new(retry::TRACKER),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// The lease that is held, whether or not the tracker answers at present.
    pub fn id(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.terms.id)
    }

    /// Whether [`Lease::has_news`] would change anything: otherwise the news needs no watching now.
    pub fn listens(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.news_since.is_none())
    }

    /// There is something to announce.
    pub fn has_news(&mut self, now: Instant) {
        if let Some(held) = &mut self.held {
            held.news_since.get_or_insert(now);
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
            held.news_since = None;
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
        self.backoff.succeeded();
        self.held = Some(Held {
            terms,
            renew_at: now + terms.renew_every,
            renewing: false,
            announcing: false,
            announce_from: now,
            news_since: None,
            connected: true,
        });
        Change::Connected(terms.id)
    }

    /// Registering failed.
    pub fn register_failed(&mut self, now: Instant) -> Change {
        self.registering = false;
        self.register_from = now + self.backoff.failed(&mut self.rng);
        Change::Away
    }

    /// A renewal of this lease ended.
    pub fn renewed(&mut self, lease: u64, answer: Answer, now: Instant) -> Change {
        let Some(held) = self.held.as_mut().filter(|held| held.terms.id == lease) else { return Change::Nothing };
        held.renewing = false;
        match answer {
            Answer::Taken | Answer::NoRoom => self.answered(),
            Answer::UnknownLease => self.lost(now),
            Answer::Failed => {
                held.renew_at = now + self.backoff.failed(&mut self.rng);
                self.away()
            }
        }
    }

    /// An announcement under this lease ended.
    pub fn announced(&mut self, lease: u64, answer: Answer, now: Instant) -> Change {
        let Some(held) = self.held.as_mut().filter(|held| held.terms.id == lease) else { return Change::Nothing };
        held.announcing = false;
        match answer {
            Answer::Taken => self.answered(),
            Answer::NoRoom => {
                held.announce_from = now + STUCK;
                self.answered()
            }
            Answer::UnknownLease => self.lost(now),
            Answer::Failed => {
                let pause = self.backoff.failed(&mut self.rng);
                held.announce_from = now + pause;
                held.news_since.get_or_insert(now);
                // Finds out soon whether the tracker is back, and whether it remembers this peer.
                held.renew_at = held.renew_at.min(now + pause);
                self.away()
            }
        }
    }

    fn answered(&mut self) -> Change {
        self.backoff.succeeded();
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
        self.held = None;
        self.register_from = now;
        Change::Lost
    }
}

impl Held {
    fn announce_at(&self) -> Option<Instant> {
        self.news_since.map(|since| (since + BATCH).max(self.announce_from))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(5);
    const TERMS: Terms = Terms { id: 7, renew_every: EVERY };

    fn held(start: Instant) -> Lease {
        let mut lease = Lease::new(1, start);
        assert_eq!((lease.next(start), lease.next(start)), (Some(Call::Register), None));
        assert_eq!(lease.registered(TERMS, start), Change::Connected(7));
        lease
    }

    #[test]
    fn a_renewal_does_not_wait_for_an_announcement() {
        let start = Instant::now();
        let mut lease = held(start);
        lease.has_news(start);
        assert_eq!(lease.wake_at(), Some(start + BATCH));
        // It is sent just before the renewal is due, and takes its whole deadline.
        let sent = start + EVERY - Duration::from_millis(1);
        assert_eq!((lease.next(sent), lease.next(sent)), (Some(Call::Announce(7)), None));
        assert_eq!(lease.wake_at(), Some(start + EVERY));
        assert_eq!(lease.next(start + EVERY), Some(Call::Renew(7)));
    }

    #[test]
    fn an_unknown_lease_is_replaced_at_once_and_late_answers_are_ignored() {
        let start = Instant::now();
        let mut lease = held(start);
        lease.has_news(start);
        assert_eq!(lease.next(start + BATCH), Some(Call::Announce(7)));
        assert_eq!(lease.next(start + EVERY), Some(Call::Renew(7)));
        assert_eq!(lease.renewed(7, Answer::UnknownLease, start + EVERY), Change::Lost);
        assert_eq!(lease.next(start + EVERY), Some(Call::Register));
        assert_eq!(lease.announced(7, Answer::Failed, start + EVERY), Change::Nothing);
        assert_eq!(lease.registered(Terms { id: 8, ..TERMS }, start + EVERY), Change::Connected(8));
        assert_eq!(lease.announced(7, Answer::UnknownLease, start + EVERY), Change::Nothing);
        assert_eq!(lease.id(), Some(8));
    }

    #[test]
    fn a_tracker_that_is_away_is_told_once_and_asked_ever_less_often() {
        let start = Instant::now();
        let mut lease = held(start);
        let mut now = start + EVERY;
        assert_eq!(lease.next(now), Some(Call::Renew(7)));
        assert_eq!(lease.renewed(7, Answer::Failed, now), Change::Away);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let wake = lease.wake_at().unwrap();
            pauses.push(wake - now);
            now = wake;
            assert_eq!(lease.next(now), Some(Call::Renew(7)));
            assert_eq!(lease.renewed(7, Answer::Failed, now), Change::Nothing, "said once");
        }
        assert!(pauses.iter().all(|pause| *pause <= retry::TRACKER.max), "{pauses:?}");
        assert!(pauses[7] >= retry::TRACKER.max / 2, "{pauses:?}");
        assert_eq!(lease.next(lease.wake_at().unwrap()), Some(Call::Renew(7)));
        assert_eq!(lease.renewed(7, Answer::Taken, now), Change::Connected(7));
    }

    #[test]
    fn hashes_without_room_wait_and_other_news_with_them() {
        let start = Instant::now();
        let mut lease = held(start);
        lease.has_news(start);
        let now = start + BATCH;
        assert_eq!(lease.next(now), Some(Call::Announce(7)));
        assert_eq!(lease.announced(7, Answer::NoRoom, now), Change::Nothing);
        lease.has_news(now);
        assert_eq!((lease.next(now + STUCK - BATCH), lease.wake_at()), (None, Some(now + STUCK)));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Pass(u64),
        News,
        Register(bool),
        Renewal(Answer),
        Announcement(Answer),
    }

    fn events() -> impl Strategy<Value = Event> {
        let answer = || prop_oneof![4 => Just(Answer::Taken), 1 => Just(Answer::NoRoom), 1 => Just(Answer::UnknownLease), 2 => Just(Answer::Failed)];
        prop_oneof![
            3 => (0u64..3000).prop_map(Event::Pass),
            2 => Just(Event::News),
            2 => any::<bool>().prop_map(Event::Register),
            2 => answer().prop_map(Event::Renewal),
            2 => answer().prop_map(Event::Announcement),
        ]
    }

    proptest! {
        #[test]
        fn calls_are_due_as_promised(seed in any::<u64>(), events in proptest::collection::vec(events(), 1..200)) {
            let start = Instant::now();
            let (mut lease, mut now, mut ids) = (Lease::new(seed, start), start, 0u64);
            // Calls that are under way, and when the last renewal of the present lease was sent or had to be.
            let (mut registering, mut renewing, mut announcing) = (false, None, None);
            let (mut renewed_at, mut failed_at) = (start, None);
            for event in events {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::News => lease.has_news(now),
                    Event::Register(granted) if registering => {
                        registering = false;
                        if granted {
                            ids += 1;
                            lease.registered(Terms { id: ids, renew_every: EVERY }, now);
                            (renewed_at, failed_at) = (now, None);
                        } else {
                            lease.register_failed(now);
                        }
                    }
                    Event::Renewal(answer) => if let Some(id) = renewing.take() {
                        if lease.id() == Some(id) && answer == Answer::Failed {
                            failed_at = Some(now);
                        }
                        lease.renewed(id, answer, now);
                    },
                    Event::Announcement(answer) => if let Some(id) = announcing.take() { lease.announced(id, answer, now); },
                    Event::Register(_) => {}
                }
                let promised = lease.wake_at();
                let mut first = true;
                while let Some(call) = lease.next(now) {
                    prop_assert!(promised.is_some_and(|at| at <= now) || !first, "{call:?} came unannounced");
                    first = false;
                    match call {
                        Call::Register => {
                            prop_assert!(!registering && lease.id().is_none());
                            registering = true;
                        }
                        Call::Renew(id) => {
                            prop_assert!(renewing.is_none_or(|old| old != id) && lease.id() == Some(id));
                            renewing = Some(id);
                            (renewed_at, failed_at) = (now, None);
                        }
                        Call::Announce(id) => {
                            prop_assert!(announcing.is_none_or(|old| old != id) && lease.id() == Some(id));
                            announcing = Some(id);
                        }
                    }
                }
                let waits_for_renewal = renewing.is_some_and(|id| lease.id() == Some(id));
                if lease.id().is_some() && !waits_for_renewal {
                    let due = failed_at.map_or(renewed_at + EVERY, |at| at + retry::TRACKER.max);
                    prop_assert!(now < due, "the renewal is overdue");
                    prop_assert!(lease.wake_at().is_some_and(|at| at <= due));
                }
            }
        }
    }
}
