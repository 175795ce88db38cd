//! How many chunks a download fetches at once. On a fast link many; on a slow one few, so that a chunk takes seconds
//! rather than minutes: what is begun is shared late and is lost at a kill.
//!
//! What holds (each line has a test):
//! - as many run as come within [`COMFORT`] each at the measured rate, at least 1 and at most the limit, which is higher
//!   while holders are far;
//! - beyond that one more is tried at times, and kept only if more comes by it: slow holders are not a slow link;
//! - the link is called slow only after a look at what came, and while fewer than half of the most fit, by what at least
//!   half of those that may run bring;
//! - while nothing comes at all one more is tried, so that a silent holder does not stop a download;
//! - under a limit no more run than that lets through within [`COMFORT`] each, at least 1, whatever rate is measured: what
//!   has come and waits in a buffer for the limit looks like a fast link.

use std::time::{Duration, Instant};

use drizzle_proto::RateLimit;

/// A chunk that comes within this long is quick enough.
pub const COMFORT: Duration = Duration::from_secs(4);
/// The rate is measured over this long.
pub const PERIOD: Duration = Duration::from_secs(3);
/// After a try that brought nothing, so many periods pass before the next one.
const REST: u32 = 10;
/// Bytes asked for at once before any rate is known: two chunks of the usual size. On a slow link eight at once starve one
/// of their connections for so long that its holder seems to have stalled; on a fast one the first look lets all run.
const AT_FIRST: u32 = 512 << 10;

/// The number of one download's streams.
#[derive(Debug)]
pub struct Streams {
    chunk_size: f64,
    /// The most where nothing is far: what is slow is measured by it.
    usual: usize,
    most: usize,
    limit: RateLimit,
    room: usize,
    since: Instant,
    bytes: u64,
    /// The rate with one stream fewer, while one more is tried.
    before: Option<f64>,
    rests: u32,
    /// Whether the streams beyond what fits were found to be worth it.
    is_checked: bool,
    /// Whether fewer than half of the most came in good time, when that was looked at last.
    is_slow: bool,
}

impl Streams {
    /// For chunks of so many bytes, at most so many at once.
    pub fn new(chunk_size: u32, most: usize, now: Instant) -> Self {
        let room = usize::try_from(AT_FIRST / chunk_size.max(1)).unwrap_or(most).clamp(1, most.max(1));
        let chunk_size = f64::from(chunk_size.max(1));
        let (most, limit) = (most.max(1), RateLimit::UNLIMITED);
        Self {
            chunk_size,
            usual: most,
            most,
            limit,
            room,
            since: now,
            bytes: 0,
            before: None,
            rests: 0,
            is_checked: false,
            is_slow: false,
        }
    }

    /// How many may run.
    pub fn room(&self) -> usize {
        self.room.min(self.most())
    }

    /// Whether the link, or all holders together, is so slow that fewer than half of the most streams fit.
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// So many may run at once from now on, and never fewer than at first: see [`crate::reach`].
    pub fn widen(&mut self, most: usize) {
        self.most = most.max(self.usual);
    }

    /// No more than this comes from now on.
    pub fn limit(&mut self, limit: RateLimit) {
        self.limit = limit;
    }

    /// As many as may run under the limit.
    fn most(&self) -> usize {
        let fits = self.limit.bytes_per_second().map_or(self.most, |rate| self.fits(rate as f64));
        fits.max(1)
    }

    /// So many bytes came so far, and so many streams run.
    pub fn counted(&mut self, bytes: u64, running: usize, now: Instant) {
        let took = now.saturating_duration_since(self.since);
        if took.is_zero() {
            return;
        }
        let came = bytes.saturating_sub(self.bytes);
        self.room = self.room();
        let rate = came as f64 / took.as_secs_f64();
        let fits = self.fits(rate).min(self.most());
        // More is allowed at once; that it is too much shows only after a while.
        if fits > self.room && came as f64 >= self.chunk_size / 4.0 {
            (self.room, self.before, self.is_checked) = (fits, None, false);
            self.is_slow = 2 * fits < self.usual;
        } else if took < PERIOD {
            return;
        } else if running < self.room {
            // Nothing is known of what the whole number would bring, but that it is no more than its share.
            self.before = None;
            if 2 * running >= self.room {
                let whole = rate * self.room as f64 / running as f64;
                self.is_slow = 2 * self.fits(whole) < self.usual;
            }
        } else if came == 0 {
            (self.room, self.before) = ((self.room + 1).min(self.most()), None);
        } else {
            self.is_slow = 2 * fits < self.usual;
            self.judge(rate, fits);
        }
        (self.since, self.bytes) = (now, bytes);
    }

    fn fits(&self, rate: f64) -> usize {
        let fits = (rate * COMFORT.as_secs_f64() / self.chunk_size).min(self.most as f64);
        // Between 0 and the limit.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let fits = fits as usize;
        fits
    }

    fn judge(&mut self, rate: f64, fits: usize) {
        if self.room <= fits {
            // Quick enough; should it become slow, nothing is known.
            (self.before, self.is_checked) = (None, false);
            return;
        }
        let fits = fits.max(1);
        let was_checked = std::mem::replace(&mut self.is_checked, true);
        match self.before.take() {
            // Half of what a stream brought before is worth a stream.
            Some(before) if rate < before * (1.0 + 0.5 / (self.room - 1).max(1) as f64) => {
                self.room = (self.room - 1).max(fits);
                self.rests = REST;
            }
            Some(_) => self.try_more(rate),
            // They were for another rate.
            None if !was_checked && self.room > fits => (self.room, self.rests) = (fits, 1),
            None if self.rests > 0 => self.rests -= 1,
            None => self.try_more(rate),
        }
    }

    fn try_more(&mut self, rate: f64) {
        if self.room < self.most() {
            self.room += 1;
            self.before = Some(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(200);

    /// The number of streams after `seconds` if so many bytes come per second with so many streams; and the highest.
    fn after(chunk_size: u32, seconds: u32, rate: impl Fn(u64) -> u64) -> (usize, usize) {
        let start = Instant::now();
        let (mut streams, mut bytes, mut highest) = (Streams::new(chunk_size, 8, start), 0, 0);
        for tick in 1..=seconds * 5 {
            bytes += rate(streams.room() as u64) / 5;
            streams.counted(bytes, streams.room(), start + TICK * tick);
            highest = highest.max(streams.room());
            assert!((1..=8).contains(&streams.room()));
        }
        (streams.room(), highest)
    }

    #[test]
    fn a_link_is_slow_once_little_came_over_it_and_not_before() {
        let start = Instant::now();
        for (rate, slow) in [(125_000, true), (250_000, true), (12_500_000, false)] {
            let mut streams = Streams::new(256 << 10, 8, start);
            assert!(!streams.is_slow(), "nothing is known");
            for second in 1..=10 {
                streams.counted(rate * second, 8, start + Duration::from_secs(second));
            }
            assert_eq!(streams.is_slow(), slow, "{rate}");
        }
    }

    #[test]
    fn a_link_that_seemed_fast_is_slow_once_half_of_the_streams_bring_little() {
        let start = Instant::now();
        let after = |running: usize| {
            let (mut streams, mut bytes) = (Streams::new(256 << 10, 12, start), 0);
            // What stood in a queue comes in a burst, so that all may run; then too few chunks are left for all.
            for tick in 1..=50 {
                bytes += if tick == 1 { 1 << 20 } else { 50_000 };
                streams.counted(bytes, running, start + TICK * tick);
            }
            streams.is_slow()
        };
        assert!(after(10), "with two more that bring as much it would be slow, too");
        assert!(!after(1), "one slow holder is no slow link");
    }

    #[test]
    fn a_fast_link_gets_all_streams_at_once() {
        for chunk_size in [16 << 10, 256 << 10, 16 << 20] {
            assert_eq!(after(chunk_size, 1, |_| 100_000_000).0, 8, "chunks of {chunk_size}");
        }
    }

    #[test]
    fn a_slow_link_gets_few_streams() {
        for (chunk_size, rate) in [(16 << 20, 125_000), (16 << 20, 500_000), (16 << 20, 65_000), (1 << 20, 65_000)] {
            let (room, highest) = after(chunk_size, 600, |_| rate);
            assert!(room <= 2 && highest <= 3, "chunks of {chunk_size} at {rate}: {room}, {highest}");
        }
    }

    #[test]
    fn slow_holders_on_a_fast_link_are_used_together() {
        assert_eq!(after(16 << 20, 60, |streams| 125_000 * streams).0, 8);
    }

    #[test]
    fn a_link_that_becomes_slow_gets_fewer_streams() {
        let start = Instant::now();
        let (mut streams, mut bytes) = (Streams::new(1 << 20, 8, start), 0);
        for tick in 1..=600 {
            bytes += if tick <= 50 { 10 << 20 } else { 20_000 };
            streams.counted(bytes, streams.room(), start + TICK * tick);
            assert!(tick != 50 || streams.room() == 8);
        }
        assert!(streams.room() <= 2, "{}", streams.room());
    }

    #[test]
    fn under_a_limit_no_burst_lets_more_run_than_it_lets_through_in_time() {
        let start = Instant::now();
        let mut streams = Streams::new(256 << 10, 8, start);
        streams.limit(RateLimit::new(128 << 10).unwrap());
        for (tick, bytes) in [(1, 2 << 20), (2, 2 << 20), (30, 4 << 20), (60, 8 << 20)] {
            streams.counted(bytes, streams.room(), start + TICK * tick);
            assert_eq!(streams.room(), 2, "4 s for each chunk");
        }
        streams.limit(RateLimit::new(16 << 10).unwrap());
        assert_eq!(streams.room(), 1);
        streams.limit(RateLimit::UNLIMITED);
        streams.counted(16 << 20, 2, start + TICK * 61);
        assert_eq!(streams.room(), 8);
    }

    #[test]
    fn silence_lets_one_more_try() {
        assert_eq!(after(16 << 20, 3, |_| 0).0, 2);
        assert_eq!(after(16 << 20, 60, |_| 0).0, 8);
    }
}
