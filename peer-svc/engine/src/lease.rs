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
//! - a lease that the tracker does not know is given up at once, whichever call finds out; a new one is asked for
//!   at once too, but after a pause that grows if the last one was lost before its first renewal was due;
//! - news is gathered for [`BATCH`], and after a failure it waits for a pause that grows, whatever renewals do.

use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::StdRng};

use crate::retry::{self, Backoff};

/// News is gathered this long before it is sent.
pub const BATCH: Duration = Duration::from_millis(40);
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
    since: Instant,
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
    /// Each kind of failure has pauses of its own: a call that succeeds says nothing of the others.
    pauses: Pauses,
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
            news_since: None,
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
                held.announce_from = now + self.pauses.no_room.failed(&mut self.rng);
                self.answered()
            }
            Answer::UnknownLease => self.lost(now),
            Answer::Failed => {
                let pause = self.pauses.announce.failed(&mut self.rng);
                held.announce_from = now + pause;
                held.news_since.get_or_insert(now);
                // Finds out soon whether the tracker is back, and whether it remembers this peer.
                held.renew_at = held.renew_at.min(now + pause);
                self.away()
            }
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
        let again = lease.wake_at().unwrap();
        assert!((retry::NO_ROOM.first / 2..=retry::NO_ROOM.first).contains(&(again - now)));
        assert_eq!((lease.next(again - BATCH), lease.next(again)), (None, Some(Call::Announce(7))));
    }

    #[test]
    fn a_tracker_that_forgets_each_lease_at_once_is_not_asked_in_a_tight_loop() {
        let start = Instant::now();
        let (mut lease, mut now) = (Lease::new(1, start), start);
        let mut registered = 0;
        while now < start + Duration::from_secs(60) {
            match lease.next(now) {
                Some(Call::Register) => {
                    registered += 1;
                    lease.registered(Terms { id: registered, ..TERMS }, now);
                    lease.has_news(now);
                }
                Some(Call::Announce(id) | Call::Renew(id)) => {
                    assert_eq!(lease.announced(id, Answer::UnknownLease, now), Change::Lost);
                }
                None => now = lease.wake_at().unwrap(),
            }
        }
        assert!((30..70).contains(&registered), "{registered} in a minute");
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

    /// What the properties allow, kept the simplest way.
    #[derive(Default)]
    struct Model {
        /// Calls that are under way; renewals and announcements with their lease.
        registering: bool,
        renewing: Option<u64>,
        announcing: Option<u64>,
        /// By when a renewal must be sent.
        renew_by: Option<Instant>,
        news_at: Option<Instant>,
        /// Before these moments there is no call of the kind.
        no_announcement_before: Option<Instant>,
        no_registration_before: Option<Instant>,
        lease_since: Option<Instant>,
        /// Failures in a row.
        registrations: u32,
        short_leases: u32,
        announcements: u32,
        without_room: u32,
    }

    /// One more failure in a row: how long the pause after it is at least.
    fn least_pause(limits: retry::Limits, in_a_row: &mut u32) -> Duration {
        let longest = (limits.first * (1 << (*in_a_row).min(16))).min(limits.max);
        *in_a_row += 1;
        longest / 2
    }

    impl Model {
        fn registered(&mut self, now: Instant) {
            (self.registrations, self.announcements) = (0, 0);
            (self.lease_since, self.renew_by) = (Some(now), Some(now + EVERY));
            (self.news_at, self.no_announcement_before) = (None, None);
        }

        fn lost(&mut self, now: Instant) {
            let lasted = self.lease_since.take().is_none_or(|since| now >= since + EVERY);
            self.renew_by = None;
            if lasted {
                (self.short_leases, self.no_registration_before) = (0, None);
            } else {
                self.no_registration_before = Some(now + least_pause(retry::TRACKER, &mut self.short_leases));
            }
        }

        fn renewed(&mut self, answer: Answer, now: Instant) {
            match answer {
                Answer::Taken | Answer::NoRoom => {}
                Answer::Failed => self.renew_by = Some(now + retry::TRACKER.max),
                Answer::UnknownLease => self.lost(now),
            }
        }

        fn announced(&mut self, answer: Answer, now: Instant) {
            match answer {
                Answer::Taken => (self.announcements, self.without_room) = (0, 0),
                Answer::NoRoom => {
                    self.announcements = 0;
                    self.no_announcement_before = Some(now + least_pause(retry::NO_ROOM, &mut self.without_room));
                }
                Answer::Failed => {
                    self.news_at.get_or_insert(now);
                    self.no_announcement_before = Some(now + least_pause(retry::TRACKER, &mut self.announcements));
                }
                Answer::UnknownLease => self.lost(now),
            }
        }

        fn sent(&mut self, call: Call, held: Option<u64>, now: Instant) {
            match call {
                Call::Register => {
                    assert!(!self.registering && held.is_none());
                    assert!(self.no_registration_before.is_none_or(|at| now >= at), "registers too soon");
                    self.registering = true;
                }
                Call::Renew(id) => {
                    assert!(self.renewing != Some(id) && held == Some(id));
                    (self.renewing, self.renew_by) = (Some(id), Some(now + EVERY));
                }
                Call::Announce(id) => {
                    assert!(self.announcing != Some(id) && held == Some(id));
                    assert!(self.news_at.take().is_some_and(|at| now >= at + BATCH), "news was not gathered");
                    assert!(self.no_announcement_before.is_none_or(|at| now >= at), "announces too soon");
                    self.announcing = Some(id);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn calls_are_due_as_promised(seed in any::<u64>(), events in proptest::collection::vec(events(), 1..200)) {
            let start = Instant::now();
            let (mut lease, mut now, mut ids) = (Lease::new(seed, start), start, 0u64);
            let mut model = Model::default();
            for event in events {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::News => {
                        lease.has_news(now);
                        model.news_at.get_or_insert(now);
                    }
                    Event::Register(granted) if std::mem::take(&mut model.registering) => {
                        if granted {
                            ids += 1;
                            lease.registered(Terms { id: ids, renew_every: EVERY }, now);
                            model.registered(now);
                        } else {
                            lease.register_failed(now);
                            model.no_registration_before = Some(now + least_pause(retry::TRACKER, &mut model.registrations));
                        }
                    }
                    Event::Register(_) => {}
                    Event::Renewal(answer) => if let Some(id) = model.renewing.take() {
                        let counts = lease.id() == Some(id);
                        let change = lease.renewed(id, answer, now);
                        prop_assert_eq!(change == Change::Lost, counts && answer == Answer::UnknownLease);
                        if counts {
                            model.renewed(answer, now);
                        }
                    },
                    Event::Announcement(answer) => if let Some(id) = model.announcing.take() {
                        let counts = lease.id() == Some(id);
                        let change = lease.announced(id, answer, now);
                        prop_assert_eq!(change == Change::Lost, counts && answer == Answer::UnknownLease);
                        if counts {
                            model.announced(answer, now);
                        }
                    },
                }
                let promised = lease.wake_at();
                let mut first = true;
                while let Some(call) = lease.next(now) {
                    prop_assert!(promised.is_some_and(|at| at <= now) || !first, "{call:?} came unannounced");
                    first = false;
                    model.sent(call, lease.id(), now);
                }
                // Whatever announcements do.
                if lease.id().is_some() && model.renewing != lease.id() {
                    let due = model.renew_by.unwrap();
                    prop_assert!(now < due, "the renewal is overdue");
                    prop_assert!(lease.wake_at().is_some_and(|at| at <= due));
                }
            }
        }
    }
}
