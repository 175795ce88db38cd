//! Named cases, and the promises of the module under random events.

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
    lease.has_news();
    assert_eq!(lease.wake_at(), Some(start));
    // It is sent just before the renewal is due, and takes its whole deadline.
    let sent = start + EVERY - Duration::from_millis(1);
    assert_eq!((lease.next(sent), lease.next(sent)), (Some(Call::Announce(7)), None));
    assert_eq!(lease.wake_at(), Some(start + EVERY));
    assert_eq!(lease.next(start + EVERY), Some(Call::Renew(7)));
}

#[test]
fn a_renewal_that_hangs_leaves_time_for_another_one_within_the_lease() {
    let start = Instant::now();
    let mut lease = held(start);
    let hung = start + EVERY;
    assert_eq!(lease.next(hung), Some(Call::Renew(7)));
    let given_up = hung + lease.renew_within();
    lease.renewed(7, Answer::Failed, given_up);
    let again = lease.wake_at().unwrap();
    assert_eq!(lease.next(again), Some(Call::Renew(7)));
    // The tracker grants three times the time between renewals.
    assert!(again < start + 3 * EVERY - EVERY / 2, "{:?} after the lease began", again - start);
}

#[test]
fn an_unknown_lease_is_replaced_at_once_and_late_answers_are_ignored() {
    let start = Instant::now();
    let mut lease = held(start);
    lease.has_news();
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
fn news_is_gathered_for_as_long_as_the_tracker_wants_within_bounds() {
    let start = Instant::now();
    for (wanted, gathered) in [(Duration::ZERO, BATCH), (20 * BATCH, 20 * BATCH), (100 * LONGEST, LONGEST)] {
        let mut lease = Lease::new(1, start);
        lease.next(start);
        lease.registered(Terms { renew_every: 10 * LONGEST, ..TERMS }, start);
        lease.gather(wanted);
        lease.has_news();
        assert_eq!(lease.next(start), Some(Call::Announce(7)), "the first at once");
        lease.announced(7, Answer::Taken, start);
        lease.has_news();
        let again = start + gathered;
        assert_eq!(lease.next(again - Duration::from_millis(1)), None);
        assert_eq!(lease.next(again), Some(Call::Announce(7)));
    }
}

#[test]
fn a_peer_that_moved_registers_at_once_but_not_in_a_tight_loop() {
    let start = Instant::now();
    let mut lease = held(start);
    let now = start + EVERY;
    assert_eq!(lease.next(now), Some(Call::Renew(7)));
    assert_eq!(lease.moved(6, now), Change::Nothing, "of an earlier lease");
    assert_eq!(lease.moved(7, now), Change::Moved);
    assert_eq!((lease.id(), lease.next(now)), (None, Some(Call::Register)));
    assert_eq!(lease.renewed(7, Answer::Taken, now), Change::Nothing);
    lease.registered(Terms { id: 8, ..TERMS }, now);
    // An address that flickers is told, each time a little later.
    assert_eq!(lease.moved(8, now), Change::Moved);
    assert_eq!(lease.next(now), None);
    assert_eq!(lease.next(lease.wake_at().unwrap()), Some(Call::Register));
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
    lease.has_news();
    let now = start;
    assert_eq!(lease.next(now), Some(Call::Announce(7)));
    assert_eq!(lease.announced(7, Answer::NoRoom, now), Change::Nothing);
    lease.has_news();
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
                lease.has_news();
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
    Moved,
}

fn events() -> impl Strategy<Value = Event> {
    let answer = || prop_oneof![4 => Just(Answer::Taken), 1 => Just(Answer::NoRoom), 1 => Just(Answer::UnknownLease), 2 => Just(Answer::Failed)];
    prop_oneof![
        3 => (0u64..3000).prop_map(Event::Pass),
        2 => Just(Event::News),
        2 => any::<bool>().prop_map(Event::Register),
        2 => answer().prop_map(Event::Renewal),
        2 => answer().prop_map(Event::Announcement),
        1 => Just(Event::Moved),
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
    has_news: bool,
    /// When news was told last, under this lease.
    announced_at: Option<Instant>,
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
        (self.has_news, self.announced_at, self.no_announcement_before) = (false, None, None);
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
                self.has_news = true;
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
                assert!(std::mem::take(&mut self.has_news), "there is no news");
                assert!(self.announced_at.is_none_or(|at| now >= at + BATCH), "news was not gathered");
                self.announced_at = Some(now);
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
                    lease.has_news();
                    model.has_news |= lease.id().is_some();
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
                Event::Moved => if let Some(id) = lease.id() {
                    prop_assert_eq!(lease.moved(id, now), Change::Moved);
                    model.lost(now);
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
