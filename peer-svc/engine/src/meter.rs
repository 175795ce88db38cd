//! How fast bytes come, and how fast they ever came for a whole second.
//!
//! What holds (each line has a property test):
//! - the rate is that of the last [`SECOND`], or of the whole time while it is shorter;
//! - the best rate is one that was reached over a full second at least, and 0 before the first one is over;
//! - whatever was not counted for longer than a second is no second: it begins anew;
//! - a meter remembers about ten moments, however often it is told;
//! - what this machine took in is remembered for at least [`LATELY`] and at most twice as long: links change.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Rates are measured over this long: shorter ones say more about messages than about links.
pub const SECOND: Duration = Duration::from_secs(1);
/// Closer counts are one.
const STEP: Duration = Duration::from_millis(100);
/// How long it is remembered what this machine can take in.
pub const LATELY: Duration = Duration::from_secs(600);

/// A growing count of bytes.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    /// The count at moments that are at least a [`STEP`] apart; the first is a second old or the oldest one.
    moments: VecDeque<(Instant, u64)>,
    latest: Option<(Instant, u64)>,
    best: f64,
}

impl Meter {
    /// So many bytes have come by now, in all.
    pub fn count(&mut self, bytes: u64, now: Instant) {
        if self.latest.is_some_and(|(at, _)| now.saturating_duration_since(at) > SECOND) {
            self.moments.clear();
        }
        self.latest = Some((now, bytes));
        if self.moments.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            self.moments.push_back((now, bytes));
        }
        while self.moments.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SECOND) {
            self.moments.pop_front();
        }
        if self.span() >= SECOND {
            self.best = self.best.max(self.rate());
        }
    }

    fn span(&self) -> Duration {
        let ends = self.moments.front().zip(self.latest.as_ref());
        ends.map_or(Duration::ZERO, |((from, _), (to, _))| to.saturating_duration_since(*from))
    }

    /// Bytes a second, of the last second; 0 before the second count.
    pub fn rate(&self) -> f64 {
        let ends = self.moments.front().zip(self.latest.as_ref());
        let came = ends.map_or(0, |((_, from), (_, to))| to.saturating_sub(*from));
        let span = self.span();
        if span.is_zero() { 0.0 } else { came as f64 / span.as_secs_f64() }
    }

    /// The most bytes a second over any full second; 0 before the first one is over.
    pub fn best(&self) -> f64 {
        self.best
    }
}

/// How fast this machine takes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Intake {
    /// Bytes a second now.
    pub rate: f64,
    /// Bytes a second at best lately; 0 while unknown.
    pub best: f64,
}

/// What this machine takes in, over all its downloads.
#[derive(Debug, Clone, Default)]
pub struct Downlink {
    meter: Meter,
    bytes: u64,
    since: Option<Instant>,
    best: f64,
    before: f64,
}

impl Downlink {
    /// So many bytes more came, for whichever download.
    pub fn came(&mut self, bytes: u64, now: Instant) -> Intake {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LATELY {
            let is_recent = now.saturating_duration_since(since) < 2 * LATELY;
            self.before = if is_recent { self.best } else { 0.0 };
            self.best = 0.0;
            self.meter.best = 0.0;
            self.since = Some(now);
        }
        self.bytes += bytes;
        self.meter.count(self.bytes, now);
        self.best = self.best.max(self.meter.best());
        Intake { rate: self.meter.rate(), best: self.best.max(self.before) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_stream_has_its_rate_and_its_best_after_a_second() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        for tick in 0..100u32 {
            meter.count(u64::from(tick) * 1000, start + 100 * MS * tick);
            let expected = if tick < 1 { 0.0 } else { 10_000.0 };
            assert!((meter.rate() - expected).abs() < 1.0, "{tick}: {}", meter.rate());
            assert_eq!(meter.best() > 0.0, tick >= 10, "{tick}");
        }
        assert!((meter.best() - 10_000.0).abs() < 1.0);
    }

    #[test]
    fn a_pause_begins_anew() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        meter.count(0, start);
        meter.count(1000, start + 5 * SECOND);
        assert_eq!((meter.rate(), meter.best()), (0.0, 0.0), "when they came within it is not known");
        meter.count(2000, start + 5 * SECOND + 100 * MS);
        assert!((meter.rate() - 10_000.0).abs() < 1.0);
    }

    #[test]
    fn what_the_machine_took_in_is_forgotten_in_the_end() {
        let (start, mut downlink) = (Instant::now(), Downlink::default());
        for tick in 0..=20 {
            downlink.came(1000, start + 100 * MS * tick);
        }
        let best = |downlink: &mut Downlink, after| downlink.came(0, start + after).best;
        assert!(best(&mut downlink, LATELY - MS) > 9_999.0);
        assert!(best(&mut downlink, LATELY + MS) > 9_999.0);
        assert!(best(&mut downlink, 2 * LATELY) > 9_999.0);
        assert_eq!(best(&mut downlink, 2 * LATELY + 2 * MS), 0.0);
    }

    proptest! {
        /// Against all that was ever counted.
        #[test]
        fn rates_are_as_promised(steps in proptest::collection::vec((1u64..1500, 0u64..100_000), 1..200)) {
            let (start, mut meter) = (Instant::now(), Meter::default());
            let (mut now, mut bytes, mut all) = (start, 0, Vec::new());
            let mut best = 0.0_f64;
            for (millis, more) in steps {
                now += MS * u32::try_from(millis).unwrap();
                bytes += more;
                if millis > 1000 {
                    all.clear();
                }
                all.push((now, bytes));
                meter.count(bytes, now);
                prop_assert!(meter.moments.len() <= 12, "{}", meter.moments.len());
                let (from, had) = meter.moments[0];
                prop_assert!(all.contains(&(from, had)), "a count that was told, since the last pause");
                let span = now - from;
                let oldest = all[0].0;
                prop_assert!(span >= SECOND || from == oldest, "a full second, or all there is");
                // A count that is nearer to a second ago is at most a step nearer.
                let nearer = all.iter().filter(|(at, _)| now - *at >= SECOND).map(|(at, _)| now - *at).min();
                prop_assert!(nearer.is_none_or(|nearer| span < nearer + STEP + STEP), "{span:?} {nearer:?}");
                let rate = if span.is_zero() { 0.0 } else { (bytes - had) as f64 / span.as_secs_f64() };
                prop_assert!((meter.rate() - rate).abs() < 1e-6);
                best = if span >= SECOND { best.max(rate) } else { best };
                prop_assert!((meter.best() - best).abs() < 1e-6);
            }
        }
    }
}
