//! How one holder has behaved, and what follows: how many fetches it may carry, and until when it is
//! left alone.
//!
//! Two things are kept apart. **Busy** is no offence: the holder's upload slots are taken. If it
//! carries other fetches of ours it is simply at its limit, and that many are what it can carry until
//! one succeeds; if it carries none, we ask again after a short, growing, jittered pause. **Offences**
//! cost a longer rest that doubles, and afterwards one fetch at a time until a success.
//!
//! Several fetches that fail together (a cut connection fails all of them) count as one offence: the
//! penalty grows only when the holder offends again after it was given another chance.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::Offence;

/// Pauses after "busy" lie between these; the first is at most twice the shortest.
const BUSY_MIN: Duration = Duration::from_millis(20);
const BUSY_MAX: Duration = Duration::from_millis(500);

/// Rest of a holder that could not be asked for want of something on this machine.
const SPARED_REST: Duration = Duration::from_secs(1);

/// First rest of a holder that failed to deliver.
const SOFT_REST: Duration = Duration::from_secs(1);
/// First rest of a holder that kept a chunk and sent nothing.
const STALL_REST: Duration = Duration::from_secs(4);
/// First rest of a holder whose holdings are not what the tracker was told; often just stale news.
const NOT_HELD_REST: Duration = Duration::from_millis(200);
/// Well below the usual timeout of a download, so that a sole holder that came back is asked again in time.
const SOFT_REST_MAX: Duration = Duration::from_secs(10);
/// First rest of a holder whose content is in doubt.
const HARD_REST: Duration = Duration::from_secs(30);
const HARD_REST_MAX: Duration = Duration::from_secs(960);

/// Offences of one severity.
#[derive(Debug, Default)]
struct Record {
    count: u32,
    until: Option<Instant>,
}

impl Record {
    /// Charges an offence unless the last one is still being paid for.
    fn charge(&mut self, first: Duration, max: Duration, now: Instant) {
        if self.until.is_some_and(|until| now < until) {
            return;
        }
        self.until = Some(now + doubled(first, self.count).min(max));
        self.count += 1;
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    // 2^16 times any first rest is beyond every maximum.
    first * (1 << times.min(16))
}

/// One holder's behaviour.
#[derive(Debug)]
pub(super) struct Conduct {
    /// Fetches that the holder can carry for us as far as we know; at least 1.
    room: usize,
    busy_streak: u32,
    soft: Record,
    hard: Record,
    /// One fetch at a time, since the last offence until the next success.
    probation: bool,
    /// A chunk came whole since the last offence.
    delivered: bool,
    /// It said that its file is no longer there, and no chunk came whole since.
    gone: bool,
    /// No new fetch before this; see [`Conduct::awake`].
    rest_until: Option<Instant>,
}

impl Conduct {
    pub(super) fn new(per_holder: usize) -> Self {
        Self {
            room: per_holder,
            busy_streak: 0,
            soft: Record::default(),
            hard: Record::default(),
            probation: false,
            delivered: false,
            gone: false,
            rest_until: None,
        }
    }

    /// Fetches that the holder may carry now; 0 while it rests.
    pub(super) fn room(&self) -> usize {
        match self.rest_until {
            Some(_) => 0,
            None if self.probation => 1,
            None => self.room,
        }
    }

    /// Whether a chunk came whole since the last offence.
    pub(super) fn has_delivered(&self) -> bool {
        self.delivered
    }

    /// Whether it said that its file is no longer there, and no chunk came whole since.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether its slots were taken when it was asked last; it may carry up to `most` otherwise.
    pub(super) fn refuses(&self, most: usize) -> bool {
        self.busy_streak > 0 || self.room < most
    }

    /// Until when the holder rests; set until [`Conduct::awake`] is called.
    pub(super) fn rest_until(&self) -> Option<Instant> {
        self.rest_until
    }

    /// The rest is over.
    pub(super) fn awake(&mut self) {
        self.rest_until = None;
    }

    /// Whether the holder rests because of an offence, not because it is busy.
    pub(super) fn is_avoided(&self, now: Instant) -> bool {
        [&self.soft, &self.hard].into_iter().filter_map(|record| record.until).any(|until| now < until)
    }

    /// For how much longer it rests because of an offence, if it does.
    pub(super) fn avoided_for(&self, now: Instant) -> Option<Duration> {
        let ends = [&self.soft, &self.hard].into_iter().filter_map(|record| record.until).max();
        ends.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// A chunk came whole; the holder carries `load` more fetches of ours and can carry up to `most`.
    pub(super) fn delivered(&mut self, load: usize, most: usize) {
        self.busy_streak = 0;
        self.probation = false;
        self.delivered = true;
        self.gone = false;
        self.soft.count /= 2;
        // The slot that was freed, and one more to find out whether others left too. More at once
        // would earn a row of "busy" after every chunk.
        self.room = self.room.max(load + 2).min(most);
    }

    /// It may carry up to `most` from now on, and not up to `before` any more.
    pub(super) fn reach(&mut self, before: usize, most: usize) {
        // One that never refused may carry all of them.
        self.room = if self.room >= before { most } else { self.room.min(most) };
    }

    /// The holder has no upload slot; it carries `load` other fetches of ours, and may carry up to `most` otherwise.
    pub(super) fn busy(&mut self, load: usize, most: usize, now: Instant, rng: &mut (impl Rng + ?Sized)) {
        // More than the most may still run of what was asked when more was allowed.
        self.room = load.clamp(1, most.max(1));
        if load == 0 {
            let longest = doubled(2 * BUSY_MIN, self.busy_streak).min(BUSY_MAX);
            self.busy_streak = self.busy_streak.saturating_add(1);
            self.rest(now + rng.random_range(longest / 2..=longest));
        }
    }

    /// The holder could not be asked, which is this machine's fault: a pause, so that it is not asked in a spin.
    pub(super) fn spared(&mut self, now: Instant) {
        self.rest(now + SPARED_REST);
    }

    /// The holder did something wrong.
    pub(super) fn offended(&mut self, offence: Offence, now: Instant) {
        self.probation = true;
        self.delivered = false;
        self.gone |= offence == Offence::Gone;
        let record = match offence {
            Offence::WrongBytes | Offence::Changed => {
                self.hard.charge(HARD_REST, HARD_REST_MAX, now);
                &self.hard
            }
            Offence::NotHeld | Offence::Gone => {
                self.soft.charge(NOT_HELD_REST, SOFT_REST_MAX, now);
                &self.soft
            }
            // It kept a chunk for seconds: the rest is in proportion.
            Offence::Stalled => {
                self.soft.charge(STALL_REST, SOFT_REST_MAX, now);
                &self.soft
            }
            Offence::BrokeOff | Offence::Refused | Offence::Unreachable | Offence::OtherPeer | Offence::OwnAddress => {
                self.soft.charge(SOFT_REST, SOFT_REST_MAX, now);
                &self.soft
            }
        };
        if let Some(until) = record.until {
            self.rest(until);
        }
    }

    fn rest(&mut self, until: Instant) {
        self.rest_until = self.rest_until.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn no_more_may_run_than_are_allowed_now_although_more_were_before_and_run_still() {
        let (now, mut conduct) = (Instant::now(), Conduct::new(40));
        conduct.reach(40, 10);
        conduct.busy(29, 10, now, &mut StdRng::seed_from_u64(1));
        assert_eq!(conduct.room(), 10);
    }

    #[test]
    fn busy_pauses_grow_within_their_bounds_and_a_success_resets_them() {
        let (mut conduct, mut rng, start) = (Conduct::new(4), StdRng::seed_from_u64(1), Instant::now());
        let mut pause = |conduct: &mut Conduct| {
            conduct.busy(0, 6, start, &mut rng);
            let pause = conduct.rest_until().unwrap() - start;
            conduct.awake();
            pause
        };
        let pauses: Vec<_> = (0..8).map(|_| pause(&mut conduct)).collect();
        assert!(pauses.iter().all(|pause| (BUSY_MIN..=BUSY_MAX).contains(pause)), "{pauses:?}");
        assert!(pauses[0] <= 2 * BUSY_MIN && pauses[7] >= BUSY_MAX / 2, "{pauses:?}");
        conduct.delivered(0, 4);
        assert!(pause(&mut conduct) <= 2 * BUSY_MIN);
    }

    #[test]
    fn busy_beside_our_own_fetches_is_a_limit_not_a_pause() {
        let (mut conduct, now) = (Conduct::new(4), Instant::now());
        conduct.busy(2, 6, now, &mut StdRng::seed_from_u64(1));
        assert_eq!((conduct.room(), conduct.rest_until()), (2, None));
        conduct.delivered(1, 4);
        assert_eq!(conduct.room(), 3);
    }

    #[test]
    fn a_holder_that_could_not_be_asked_rests_and_is_not_blamed() {
        let (mut conduct, now) = (Conduct::new(4), Instant::now());
        conduct.spared(now);
        assert_eq!((conduct.room(), conduct.is_avoided(now)), (0, false));
        assert_eq!(conduct.rest_until(), Some(now + SPARED_REST));
        conduct.awake();
        assert_eq!(conduct.room(), 4, "no probation");
    }

    #[test]
    fn penalties_double_once_per_chance_and_end_in_probation() {
        let (mut conduct, mut now) = (Conduct::new(4), Instant::now());
        for expected in [1, 2, 4, 8, 10, 10] {
            for _ in 0..3 {
                conduct.offended(Offence::BrokeOff, now); // three fetches fall with one connection
            }
            assert_eq!(conduct.rest_until().unwrap() - now, Duration::from_secs(expected));
            assert_eq!(conduct.room(), 0);
            assert!(conduct.is_avoided(now));
            now = conduct.rest_until().unwrap();
            conduct.awake();
            assert!(!conduct.is_avoided(now));
            assert_eq!(conduct.room(), 1, "one fetch at a time until a success");
        }
        conduct.delivered(0, 4);
        assert_eq!(conduct.room(), 4);
    }

    #[test]
    fn a_lighter_offence_never_shortens_a_rest() {
        let (mut conduct, now) = (Conduct::new(4), Instant::now());
        conduct.offended(Offence::WrongBytes, now);
        conduct.offended(Offence::NotHeld, now);
        assert_eq!(conduct.rest_until().unwrap() - now, HARD_REST);
    }
}
