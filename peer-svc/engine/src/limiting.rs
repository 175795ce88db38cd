//! What limits a download now, and what limited it in the end.
//!
//! The time of a download is charged, stretch by stretch, to one [`Cause`] each, by the state that it is in at the end
//! of the stretch; what has most of the time at the end is what limited it. Between a holder's uplink and this machine's
//! downlink one peer cannot always tell, since a link that is full looks the same from either end. What it goes by:
//! - a holder that refuses requests, while other peers are known to download the file or while it gives us nothing, is
//!   itself the limit. Where this peer is alone, the refusal only says that it has all upload slots by itself;
//! - bytes that come as fast as this machine ever took them in, from one holder alone, fill the **link** between the two,
//!   and which end of it is the narrower is not known;
//! - from several holders at once they fill the **downlink** if fewer holders brought as much before: another one adds
//!   nothing. If each one more brought more, their uplinks are the limit. Where it was never seen what fewer bring, it is
//!   the downlink if no other peer is known to download the file, and the uplinks, which all share, if one is;
//! - a download that has asked for as much as it may and gets less than that waits for the uplinks of those it asked.
//!
//! What holds (each line has a property test):
//! - every moment between the begin and the last look is charged to exactly one cause, but for time asleep;
//! - the cause that is told has most of the time, and its share is right;
//! - what was so for the last ten seconds is the cause that is told live, whatever was before;
//! - holders are blamed only if their chunks could be asked for: they are known, and neither memory, the disk nor a
//!   limit of this machine holds more fetches back than are on their way;
//! - the downlink is blamed only if several holders send, together as fast as this machine ever took in, and fewer did as
//!   well or were never seen;
//! - it is told that no peer holds a chunk only if one waits to be asked for that no holder can be asked for.

use std::time::{Duration, Instant};

use crate::{meter::Intake, schedule::Picture, senders::Sending, waiting::Fetches};

/// What limits a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// It is not known yet which peers hold the file.
    Tracker,
    /// What is missing is held by no peer, or only by those that are avoided for an offence.
    NoHolder,
    /// The uplinks of those that hold the whole file.
    Source,
    /// The uplinks of those that hold a part of it.
    Peers,
    /// What this machine can take in.
    Downlink,
    /// The link between this machine and the only peer that sends: its uplink or our downlink.
    Link,
    /// What comes waits to be written, or chunks are read again or put in place.
    Disk,
    /// Fetches wait for memory for their chunks.
    Memory,
    /// This machine has no file, port or thread left to ask a holder.
    Shortage,
    /// A limit that was set for this peer.
    OwnLimit,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Tracker,
        Self::NoHolder,
        Self::Source,
        Self::Peers,
        Self::Downlink,
        Self::Link,
        Self::Disk,
        Self::Memory,
        Self::Shortage,
        Self::OwnLimit,
    ];
}

/// This share of the best rate is as good as the best.
const FAST: f64 = 0.9;
/// Threads that write for more than this share of the time have little left to receive in.
const MOSTLY: f64 = 0.5;
/// What is told live is mostly of this long.
const LIVE: Duration = Duration::from_secs(2);
/// Before so much time is charged, nothing is told live: what is true for a moment at the begin is no news.
const FIRST: Duration = Duration::from_millis(500);

/// The state of a download at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct State {
    /// Whether its holders are known.
    pub located: bool,
    /// Whether every chunk is stored: what is left is to be done by the disk.
    pub complete: bool,
    /// Its fetches.
    pub fetches: Fetches,
    /// Share of the last second that the threads which receive its chunks spent writing them.
    pub writing: f64,
    /// Fetches that may run at once.
    pub room: usize,
    /// Whether something ran out on this machine when a holder was to be asked last.
    pub short: bool,
    /// Whether a limit that was set for this peer holds back what would come.
    pub own_limit: bool,
    /// The supply.
    pub picture: Picture,
    /// What this machine takes in.
    pub intake: Intake,
    /// Who sends it.
    pub sending: Sending,
}

impl State {
    /// Fetches that peers were asked for and that have not come.
    fn on_way(&self) -> usize {
        self.fetches.under_way.saturating_sub(self.fetches.without_memory)
    }

    /// What limits it.
    pub fn cause(&self) -> Cause {
        let on_way = self.on_way();
        if !self.located {
            Cause::Tracker
        } else if self.complete || self.writing > MOSTLY {
            // What is received meanwhile keeps its memory: it is the disk that others wait for then.
            Cause::Disk
        } else if self.own_limit {
            Cause::OwnLimit
        } else if self.fetches.without_memory > on_way {
            Cause::Memory
        } else if on_way == 0 && self.short {
            Cause::Shortage
        } else if on_way < self.room && self.waits() {
            self.held_up(on_way)
        } else {
            self.carried()
        }
    }

    /// Whether chunks wait that could be asked for.
    fn waits(&self) -> bool {
        self.picture.only_full > 0 || self.picture.also_partial
    }

    /// There is room for more fetches, and chunks wait.
    fn held_up(&self, on_way: usize) -> Cause {
        let Picture { full, partial, also_partial, .. } = self.picture;
        let partial_can = also_partial && partial.able > 0;
        if full.able == 0 && !partial_can {
            Cause::NoHolder
        } else if partial_can && partial.refusing > 0 {
            Cause::Peers
        } else if full.shut > 0 || full.refusing > 0 && partial.able > 0 || on_way == 0 && full.able > 0 {
            Cause::Source
        } else {
            self.carried()
        }
    }

    /// What was asked for is on its way, as much as there may be.
    fn carried(&self) -> Cause {
        let Picture { full, partial, .. } = self.picture;
        let Intake { rate, best } = self.intake;
        let Sending { holders, fewer } = self.sending;
        let is_full = holders > 1 && (fewer >= FAST * rate || fewer <= 0.0 && partial.able == 0);
        if rate > 0.0 && rate >= FAST * best && (holders == 1 || is_full) {
            return if is_full { Cause::Downlink } else { Cause::Link };
        }
        let is_full = full.fetches > 0 || full.able > 0;
        if is_full && full.fetches >= partial.fetches { Cause::Source } else { Cause::Peers }
    }
}

/// A cause, and how much of the time it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// What limited the download.
    pub by: Cause,
    /// In percent.
    pub percent: u8,
}

/// The time of one download, by cause.
#[derive(Debug, Clone)]
pub struct Limiting {
    since: Instant,
    charged: [Duration; Cause::ALL.len()],
    /// Of the last moments, in seconds that fade away.
    recent: [f64; Cause::ALL.len()],
    /// By the last look.
    last: Cause,
}

impl Limiting {
    /// Of a download that begins now.
    pub fn new(now: Instant) -> Self {
        Self { since: now, charged: Default::default(), recent: Default::default(), last: Cause::Tracker }
    }

    /// So it is now, and was since the last look.
    pub fn look(&mut self, cause: Cause, now: Instant) {
        self.last = cause;
        let time = now.saturating_duration_since(self.since);
        self.since = self.since.max(now);
        let fades = (-time.as_secs_f64() / LIVE.as_secs_f64()).exp();
        self.recent.iter_mut().for_each(|weight| *weight *= fades);
        self.recent[cause as usize] += LIVE.as_secs_f64() * (1.0 - fades);
        self.charged[cause as usize] += time;
    }

    /// This process did not run for so long.
    pub fn slept(&mut self, asleep: Duration) {
        self.since += asleep;
    }

    /// Time that is not of this download's own looks: before it began, or after its last chunk.
    pub fn add(&mut self, cause: Cause, time: Duration) {
        self.charged[cause as usize] += time;
    }

    /// What limits it at present; `None` just after the begin.
    pub fn live(&self) -> Option<Cause> {
        let is_known = self.charged.iter().sum::<Duration>() >= FIRST;
        let most = Cause::ALL.into_iter().max_by(|a, b| self.recent[*a as usize].total_cmp(&self.recent[*b as usize]));
        most.filter(|_| is_known)
    }

    /// As it is if nothing changed since the last look.
    pub fn until(&self, now: Instant) -> Self {
        let mut until = self.clone();
        until.look(self.last, now);
        until
    }

    /// The time that each cause had, the longest first. Together they are all the time that was looked at.
    pub fn shares(&self) -> Vec<(Cause, Duration)> {
        let mut shares: Vec<_> = Cause::ALL.into_iter().map(|cause| (cause, self.charged[cause as usize])).collect();
        shares.retain(|(_, time)| !time.is_zero());
        shares.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        shares
    }

    /// What limited it; `None` if no time passed.
    pub fn most(&self) -> Option<Limited> {
        let all: Duration = self.charged.iter().sum();
        let by = Cause::ALL.into_iter().max_by_key(|cause| self.charged[*cause as usize])?;
        let percent = (self.charged[by as usize].as_nanos() * 100 + all.as_nanos() / 2).checked_div(all.as_nanos())?;
        Some(Limited { by, percent: u8::try_from(percent).unwrap_or(100) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::Side;

    const MS: Duration = Duration::from_millis(1);

    fn side(able: usize, refusing: usize, sending: usize, fetches: usize) -> Side {
        Side { able, refusing, shut: 0, sending, fetches }
    }

    fn fast(rate: f64) -> Intake {
        Intake { rate, best: 100.0 }
    }

    /// Eight fetches of one source run, more is waited for.
    fn one_source() -> State {
        State {
            located: true,
            fetches: Fetches { under_way: 8, without_memory: 0 },
            room: 8,
            picture: Picture { full: side(1, 0, 1, 8), only_full: 100, ..Picture::default() },
            intake: fast(100.0),
            sending: Sending { holders: 1, fewer: 0.0 },
            ..State::default()
        }
    }

    #[test]
    fn one_source_alone() {
        let full_rate = one_source();
        assert_eq!(full_rate.cause(), Cause::Link);
        // It has four slots, and this peer has them all.
        let mut refused = State { fetches: Fetches { under_way: 4, without_memory: 0 }, ..full_rate };
        refused.picture.full = side(1, 1, 1, 4);
        assert_eq!(refused.cause(), Cause::Link);
        assert_eq!(State { intake: fast(80.0), ..refused }.cause(), Cause::Source, "this machine could take more");
        refused.picture.partial = side(1, 0, 0, 0);
        assert_eq!(refused.cause(), Cause::Source, "others want its slots");
        assert_eq!(State { intake: fast(0.0), ..full_rate }.cause(), Cause::Source, "nothing comes");
    }

    #[test]
    fn every_holder_is_busy() {
        let mut busy = State { fetches: Fetches::default(), ..one_source() };
        busy.picture.full = Side { able: 1, refusing: 1, shut: 1, ..Side::default() };
        assert_eq!(busy.cause(), Cause::Source);
        busy.picture.partial = busy.picture.full;
        assert_eq!(busy.cause(), Cause::Source, "they have nothing that is missing");
        busy.picture.also_partial = true;
        assert_eq!(busy.cause(), Cause::Peers);
        (busy.picture.full, busy.picture.only_full) = (Side::default(), 0);
        assert_eq!(busy.cause(), Cause::Peers);
    }

    #[test]
    fn many_senders_fill_the_downlink_or_are_slow_themselves() {
        let mut many = one_source();
        (many.picture.full, many.picture.partial) = (side(1, 0, 1, 2), side(3, 0, 3, 6));
        many.sending = Sending { holders: 4, fewer: 95.0 };
        assert_eq!(many.cause(), Cause::Downlink, "fewer brought as much");
        many.sending.fewer = 70.0;
        assert_eq!(many.cause(), Cause::Peers, "each one more brings more");
        many.sending.fewer = 0.0;
        assert_eq!(many.cause(), Cause::Peers, "they share the uplinks with this one");
        many.picture.partial = Side::default();
        assert_eq!(many.cause(), Cause::Downlink, "it has them for itself");
        many.intake = fast(50.0);
        assert_eq!(many.cause(), Cause::Source);
    }

    #[test]
    fn chunks_that_no_peer_holds() {
        let mut unheld = one_source();
        unheld.picture.full = Side::default();
        unheld.fetches = Fetches::default();
        assert_eq!(unheld.cause(), Cause::NoHolder);
        unheld.picture.partial = side(2, 0, 1, 1);
        unheld.fetches.under_way = 1;
        assert_eq!(unheld.cause(), Cause::NoHolder, "what comes is not the reason that the rest does not");
    }

    #[test]
    fn this_machine_holds_it_up() {
        let with = |under_way, without_memory, writing| {
            State { fetches: Fetches { under_way, without_memory }, writing, ..one_source() }.cause()
        };
        assert_eq!(with(8, 8, 0.0), Cause::Memory);
        assert_eq!(with(8, 5, 0.1), Cause::Memory);
        assert_eq!(with(8, 6, 0.9), Cause::Disk, "the chunks that wait for it have the memory");
        assert_eq!(with(8, 0, 0.3), Cause::Link);
        let short = State { short: true, fetches: Fetches::default(), ..one_source() };
        assert_eq!(short.cause(), Cause::Shortage);
        assert_eq!(State { own_limit: true, ..one_source() }.cause(), Cause::OwnLimit);
        assert_eq!(State { complete: true, ..one_source() }.cause(), Cause::Disk);
        assert_eq!(State::default().cause(), Cause::Tracker);
    }

    /// One source and one peer, at full rate from the first moment to the last.
    #[test]
    fn an_ideal_download_reaches_its_bound_and_its_link_is_what_limits_it() {
        use crate::{
            bound::{Bound, Given},
            meter::{Downlink, Meter},
        };
        let start = Instant::now();
        let (mut limiting, mut downlink, mut meter) = (Limiting::new(start), Downlink::default(), Meter::default());
        let (mut now, mut bytes) = (start, 0);
        for tick in 0..=50 {
            now = start + 200 * MS * tick;
            let more = if tick == 0 { 0 } else { 1 << 20 };
            bytes += more;
            meter.count(bytes, now);
            let state = State { intake: downlink.came(more, now), ..one_source() };
            limiting.look(state.cause(), now);
        }
        assert_eq!(limiting.most(), Some(Limited { by: Cause::Link, percent: 100 }));
        assert_eq!(limiting.live(), Some(Cause::Link));
        let given = [Given { bytes, best: meter.best(), is_full: true }];
        let bound = Bound::of(&given, downlink.came(0, now).best, now - start).tightest().unwrap();
        let ratio = (now - start).as_secs_f64() / bound.as_secs_f64();
        assert!((1.0..1.01).contains(&ratio), "{ratio}");
    }

    fn sides() -> impl Strategy<Value = Side> {
        (0usize..4, 0usize..4, 0usize..4, 0usize..4, 0usize..6).prop_map(|(able, refusing, shut, sending, more)| {
            let refusing = refusing.min(able);
            let fetches = if sending == 0 { 0 } else { sending + more };
            Side { able, refusing, shut: shut.min(refusing), sending, fetches }
        })
    }

    fn states() -> impl Strategy<Value = State> {
        let flags = (prop::bool::weighted(0.9), prop::bool::weighted(0.1), any::<bool>(), prop::bool::weighted(0.1));
        let numbers = (0usize..9, 0usize..9, 0.0..1.0, 1usize..9);
        let supply = (sides(), sides(), 0usize..3, any::<bool>());
        let comes = (0.0..120.0, 0usize..4, prop_oneof![Just(0.0), 0.0..120.0]);
        (flags, numbers, supply, comes).prop_map(|(flags, numbers, supply, (rate, holders, fewer))| {
            let (located, complete, short, own_limit) = flags;
            let (under_way, without_memory, writing, room) = numbers;
            let (full, partial, only_full, also_partial) = supply;
            let without_memory = without_memory.min(under_way);
            State {
                located,
                complete,
                fetches: Fetches { under_way, without_memory },
                writing,
                room,
                short,
                own_limit,
                picture: Picture { full, partial, only_full, also_partial },
                intake: fast(rate),
                sending: Sending { holders, fewer },
            }
        })
    }

    proptest! {
        #[test]
        fn causes_are_as_promised(state in states()) {
            let cause = state.cause();
            let on_way = state.on_way();
            let Picture { full, partial, only_full, also_partial } = state.picture;
            let waits = only_full > 0 || also_partial;
            let can_be_asked = full.able > 0 || also_partial && partial.able > 0;
            if matches!(cause, Cause::Source | Cause::Peers | Cause::Downlink | Cause::Link) {
                prop_assert!(state.located && !state.complete && !state.own_limit);
                prop_assert!(state.writing <= 0.5 && state.fetches.without_memory <= on_way);
                prop_assert!(on_way >= state.room || !waits || can_be_asked);
            }
            if cause == Cause::Downlink {
                let Sending { holders, fewer } = state.sending;
                prop_assert!(holders > 1 && state.intake.rate >= 90.0);
                prop_assert!(fewer >= 0.9 * state.intake.rate || fewer <= 0.0 && partial.able == 0);
            }
            if cause == Cause::Link {
                prop_assert!(state.sending.holders == 1 && state.intake.rate >= 90.0);
            }
            if cause == Cause::NoHolder {
                prop_assert!(waits && !can_be_asked);
            }
            prop_assert_eq!(cause == Cause::Tracker, !state.located);
        }

        #[test]
        fn every_moment_is_charged_once(looks in proptest::collection::vec((0usize..10, 0u64..5000, any::<bool>()), 1..100)) {
            let start = Instant::now();
            let (mut limiting, mut now) = (Limiting::new(start), start);
            let (mut charged, mut asleep) = ([Duration::ZERO; 10], Duration::ZERO);
            for (which, millis, sleeps) in looks {
                let time = MS * u32::try_from(millis).unwrap();
                now += time;
                if sleeps {
                    asleep += time;
                    limiting.slept(time);
                } else {
                    charged[which] += time;
                    limiting.look(Cause::ALL[which], now);
                }
            }
            let all = now - start - asleep;
            prop_assert_eq!(limiting.charged, charged);
            let shares = limiting.shares();
            prop_assert!(shares.is_sorted_by(|(_, longer), (_, shorter)| longer >= shorter));
            prop_assert!(shares.iter().all(|(cause, time)| charged[*cause as usize] == *time && !time.is_zero()));
            prop_assert_eq!(shares.iter().map(|(_, time)| *time).sum::<Duration>(), all, "they add up to the whole time");
            prop_assert_eq!(charged.iter().sum::<Duration>(), all);
            match limiting.most() {
                None => prop_assert!(all.is_zero()),
                Some(Limited { by, percent }) => {
                    let time = charged[by as usize];
                    prop_assert!(charged.iter().all(|other| *other <= time));
                    let exact = time.as_secs_f64() * 100.0 / all.as_secs_f64();
                    prop_assert!((exact - f64::from(percent)).abs() <= 0.501, "{exact} {percent}");
                }
            }
        }

        #[test]
        fn what_was_so_for_ten_seconds_is_told(
            looks in proptest::collection::vec((0usize..10, 0u64..5000), 0..50), last in 0usize..10, step in 1u32..1000,
        ) {
            let start = Instant::now();
            let (mut limiting, mut now) = (Limiting::new(start), start);
            for (which, millis) in looks {
                now += MS * u32::try_from(millis).unwrap();
                limiting.look(Cause::ALL[which], now);
            }
            let until = now + Duration::from_secs(10);
            while now < until {
                now += MS * step;
                limiting.look(Cause::ALL[last], now);
            }
            prop_assert_eq!(limiting.live(), Some(Cause::ALL[last]));
        }
    }
}
