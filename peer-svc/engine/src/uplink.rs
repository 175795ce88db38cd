//! How many streams fill the uplink.
//!
//! A receiver that is slower than the uplink leaves room in it, and nobody says how fast either is. So, while
//! requesters are refused for want of a slot, one slot more is tried now and then: one [`WINDOW`] for a stream to
//! begin in it, and one to measure. It stays if what is sent grew by half an equal share, and is taken back, with one
//! more, if it did not.
//!
//! Under a limit the rate is known, and a low one carries few streams: as many chunks at once as it sends within
//! [`COMFORT`] each, so that a chunk takes seconds and not minutes, and can be passed on; and one more, because a slot
//! whose turn is another requester's waits until that one asks again. (Without it a swarm under a limit of 1 Mbit/s took
//! 1.13 times the bound, with it 1.04.)
//!
//! The sockets take most of a small chunk ahead, so that in truth more of them are under way than have a slot. Of large
//! chunks they take little: the least number is then twice as high, if the uplink sends that many within [`COMFORT`].
//! (Eight peers on links of 30 Mbit/s, chunks of 512 KiB, took 1.12 times the bound with four slots, 1.07 with eight.)
//!
//! While one requester is alone, streams to it keep no other one waiting, and over a long way many are needed: each waits for
//! acknowledgements most of the time. So it may have as many large chunks as go within a second. (Of 1 MiB over 200 ms, 400 Mbit/s
//! and 16 connections one pair came to 21 MB/s with eight slots, to 37 with 32.)
//!
//! What holds (each line has a test):
//! - a requester that is alone has no fewer than several have together, and more only of large chunks: no more than go within
//!   a second, and than the limit carries;
//! - of large chunks twice as many streams run at the least, if that many go in good time, and never more than the most;
//! - the number stays between the least and the most; under a limit it is no more than one above what that lets through
//!   in time, which is 1 at least;
//! - it only grows while requesters are refused, by one in a window;
//! - where more streams send no more, it is the least but for two windows in [`REST`];
//! - where each stream sends as much as the others, it grows until none is refused, or the most is reached.

use std::time::{Duration, Instant};

use drizzle_proto::RateLimit;

use crate::streams::COMFORT;

/// What is sent is counted over this long: the time of many messages, and little to a person.
pub const WINDOW: Duration = Duration::from_secs(1);

/// Windows of rest after a slot that helped nothing.
pub const REST: u32 = 8;

/// What a chunk is taken to have before any was sent, in bytes: the usual size.
const USUAL_CHUNK: u64 = 1 << 20;
/// A chunk that takes this long under a limit takes long, against the pauses after which requesters ask again.
const SLOW: Duration = Duration::from_secs(1);
/// Of a chunk of this size the sockets take little ahead.
const LARGE: u64 = 256 << 10;
/// The size of chunks is averaged over about so many.
const AVERAGED: u64 = 4;

/// The number of streams that the uplink is taken to carry.
#[derive(Debug)]
pub struct Uplink {
    least: usize,
    most: usize,
    streams: usize,
    window_from: Option<Instant>,
    sent: u64,
    is_wanted: bool,
    /// A slot is on trial, which must bring it to so many bytes a second.
    trial: Option<u64>,
    /// The window in which a stream may begin in that slot is not over.
    begins: bool,
    rest: u32,
    limit: RateLimit,
    /// Bytes of the chunks that were sent of late, on average.
    chunk: Option<u64>,
    /// As many of them go within [`SLOW`], if they are large.
    quick: usize,
    /// They are large, and twice the least number of them goes within [`COMFORT`].
    is_roomy: bool,
}

impl Uplink {
    /// At first the least; at least one.
    pub fn new(least: usize, most: usize) -> Self {
        let least = least.max(1);
        let (streams, window_from, sent, is_wanted) = (least, None, 0, false);
        Self {
            least,
            most: most.max(least),
            streams,
            window_from,
            sent,
            is_wanted,
            trial: None,
            begins: false,
            rest: 0,
            limit: RateLimit::UNLIMITED,
            chunk: None,
            quick: 0,
            is_roomy: false,
        }
    }

    /// As many streams as run at the least, of small chunks.
    pub fn least(&self) -> usize {
        self.least
    }

    /// Streams at once.
    pub fn streams(&self) -> usize {
        let more = if self.is_roomy { self.least } else { 0 };
        (self.streams + more).min(self.most).min(self.fits())
    }

    /// Streams at once to a requester that is alone, of `most`.
    pub fn alone(&self, most: usize) -> usize {
        self.quick.min(most).min(self.fits()).max(self.streams())
    }

    /// Whether a limit makes chunks take so long that a slot may wait for a requester to ask again.
    pub fn is_slow(&self) -> bool {
        let chunks = self.chunk().saturating_mul(self.streams() as u64);
        self.limit.bytes_per_second().is_some_and(|rate| chunks >= rate.saturating_mul(SLOW.as_secs()))
    }

    fn chunk(&self) -> u64 {
        self.chunk.unwrap_or(USUAL_CHUNK).max(1)
    }

    /// No more than this is sent from now on.
    pub fn limit(&mut self, limit: RateLimit) {
        self.limit = limit;
    }

    /// A chunk of so many bytes is begun.
    pub fn begins(&mut self, bytes: u64) {
        self.chunk = Some(self.chunk.map_or(bytes, |chunk| (chunk * (AVERAGED - 1) + bytes) / AVERAGED));
    }

    /// As many as the limit carries, and one more.
    fn fits(&self) -> usize {
        let Some(rate) = self.limit.bytes_per_second() else { return usize::MAX };
        let chunks = rate.saturating_mul(COMFORT.as_secs()) / self.chunk();
        usize::try_from(chunks).unwrap_or(usize::MAX).max(1).saturating_add(1)
    }

    /// Some bytes were sent, over all streams.
    pub fn sent(&mut self, bytes: u64, now: Instant) {
        self.look(now);
        self.sent += bytes;
    }

    /// A requester was refused because so many streams run.
    pub fn wanted(&mut self, now: Instant) {
        self.look(now);
        self.is_wanted = true;
    }

    /// Judges a window that is over.
    pub fn look(&mut self, now: Instant) {
        let from = *self.window_from.get_or_insert(now);
        let took = now.saturating_duration_since(from);
        if took < WINDOW {
            return;
        }
        let (sent, is_wanted) = (std::mem::take(&mut self.sent), std::mem::take(&mut self.is_wanted));
        self.window_from = Some(now);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let rate = sent.saturating_mul(1000) / millis;
        let most_at_once = rate.saturating_mul(COMFORT.as_secs()) / self.chunk();
        let is_large = self.chunk.is_some_and(|chunk| chunk >= LARGE);
        let quick = rate.saturating_mul(SLOW.as_secs()) / self.chunk();
        self.quick = if is_large { usize::try_from(quick).unwrap_or(usize::MAX) } else { 0 };
        self.is_roomy = is_large && most_at_once >= 2 * self.least as u64;
        if std::mem::take(&mut self.begins) {
            return;
        }
        if self.trial.take().is_some_and(|needed| rate < needed) {
            self.streams = self.streams.saturating_sub(2).max(self.least);
            self.rest = REST;
        } else if self.rest > 0 {
            self.rest -= 1;
        } else if is_wanted && self.streams < self.most.min(self.fits()) {
            let half_a_share = rate / (2 * self.streams().max(1) as u64);
            self.trial = Some(rate + half_a_share.max(1));
            self.begins = true;
            self.streams += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Windows on a link that carries `link`, with `wish` receivers that take `each`; how many streams run in each.
    fn run(uplink: &mut Uplink, windows: usize, wish: usize, each: u64, link: u64) -> Vec<usize> {
        let mut now = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..windows {
            let running = uplink.streams().min(wish);
            seen.push(uplink.streams());
            for _ in 0..10 {
                now += WINDOW / 10;
                if wish > running {
                    uplink.wanted(now);
                }
                uplink.sent((running as u64 * each).min(link) / 10, now);
            }
        }
        seen
    }

    #[test]
    fn slow_receivers_are_joined_by_more_until_none_is_refused() {
        let seen = run(&mut Uplink::new(4, 16), 12, 7, MIB, 100 * MIB);
        assert!(seen.is_sorted() && seen.last() == Some(&7), "{seen:?}");
        let seen = run(&mut Uplink::new(4, 16), 40, 50, MIB, 100 * MIB);
        assert_eq!(seen.last(), Some(&16), "{seen:?}");
    }

    #[test]
    fn a_full_uplink_keeps_its_number() {
        let seen = run(&mut Uplink::new(4, 16), 50, 50, 100 * MIB, 100 * MIB);
        assert!(seen.iter().all(|streams| (4..=5).contains(streams)), "{seen:?}");
        assert!(seen.iter().filter(|streams| **streams == 5).count() <= 2 * (seen.len() / REST as usize), "{seen:?}");
    }

    #[test]
    fn of_large_chunks_more_run_if_they_go_in_good_time() {
        let streams = |chunk: u64, rate: u64| {
            let (mut uplink, start) = (Uplink::new(4, 16), Instant::now());
            (0..8).for_each(|_| uplink.begins(chunk));
            uplink.look(start);
            uplink.sent(rate, start + WINDOW / 2);
            uplink.look(start + WINDOW);
            uplink.streams()
        };
        assert_eq!(streams(MIB, 10 * MIB), 8);
        assert_eq!(streams(MIB, MIB), 4, "a slow uplink");
        assert_eq!(streams(MIB / 16, 10 * MIB), 4, "small chunks");
    }

    #[test]
    fn a_requester_that_is_alone_may_have_as_many_large_chunks_as_go_within_a_second() {
        let alone = |chunk: u64, rate: u64, limit: RateLimit| {
            let (mut uplink, start) = (Uplink::new(4, 16), Instant::now());
            uplink.limit(limit);
            (0..8).for_each(|_| uplink.begins(chunk));
            assert_eq!(uplink.alone(32), uplink.streams(), "nothing is known");
            uplink.look(start);
            uplink.sent(rate, start + WINDOW / 2);
            uplink.look(start + WINDOW);
            uplink.alone(32)
        };
        assert_eq!(alone(MIB, 20 * MIB, RateLimit::UNLIMITED), 20);
        assert_eq!(alone(MIB, 100 * MIB, RateLimit::UNLIMITED), 32, "the most");
        assert_eq!(alone(MIB, 3 * MIB, RateLimit::UNLIMITED), 8, "as many as several");
        assert_eq!(alone(MIB / 16, 100 * MIB, RateLimit::UNLIMITED), 4, "small chunks");
        assert_eq!(
            alone(MIB, 20 * MIB, RateLimit::new(MIB).unwrap()),
            5,
            "the limit carries four in time, and one more"
        );
    }

    #[test]
    fn receivers_that_take_nothing_at_all_earn_no_slots() {
        let seen = run(&mut Uplink::new(4, 16), 50, 50, 0, 100 * MIB);
        assert!(seen.iter().all(|streams| *streams <= 5), "{seen:?}");
    }

    #[test]
    fn a_low_limit_carries_few_streams_and_a_high_one_all_of_them() {
        let mut uplink = Uplink::new(4, 16);
        uplink.limit(RateLimit::new(256 << 10).unwrap());
        assert_eq!((uplink.streams(), uplink.is_slow()), (2, true), "a usual chunk takes 4 s");
        (0..20).for_each(|_| uplink.begins(16 << 20));
        assert_eq!(uplink.streams(), 2, "at least");
        (0..60).for_each(|_| uplink.begins(256 << 10));
        assert_eq!((uplink.streams(), uplink.is_slow()), (4, true));
        uplink.limit(RateLimit::new(2 << 20).unwrap());
        assert_eq!((uplink.streams(), uplink.is_slow()), (4, false));
        uplink.limit(RateLimit::new(128 << 10).unwrap());
        assert_eq!((uplink.streams(), uplink.is_slow()), (3, true));
        let seen = run(&mut uplink, 12, 7, MIB, 100 * MIB);
        assert!(seen.iter().all(|streams| *streams == 3), "none is tried that would be too many: {seen:?}");
        uplink.limit(RateLimit::UNLIMITED);
        assert_eq!((uplink.streams(), uplink.is_slow()), (8, false), "large chunks that went quickly");
    }

    proptest! {
        #[test]
        fn under_a_limit_a_chunk_takes_no_longer_than_it_should(
            rate in RateLimit::LEAST..1 << 30, chunk in 1u64 << 14..1 << 26, least in 1usize..9,
        ) {
            let mut uplink = Uplink::new(least, 4 * least);
            uplink.limit(RateLimit::new(rate).unwrap());
            uplink.begins(chunk);
            let streams = uplink.streams();
            prop_assert!((1..=least).contains(&streams));
            prop_assert!(streams <= 2 || chunk * (streams as u64 - 1) <= rate * COMFORT.as_secs());
        }

        #[test]
        fn the_number_is_between_its_bounds_and_grows_only_when_it_is_wanted(
            least in 1usize..9, more in 0usize..9,
            steps in proptest::collection::vec((0u64..1500, 0u64..MIB, any::<bool>()), 1..200),
        ) {
            let (mut uplink, mut now) = (Uplink::new(least, least + more), Instant::now());
            let mut wanted = false;
            for (ms, bytes, refused) in steps {
                let before = uplink.streams();
                now += Duration::from_millis(ms);
                uplink.sent(bytes, now);
                prop_assert!(uplink.streams() <= before + usize::from(wanted));
                if uplink.streams() > before {
                    wanted = false;
                }
                if refused {
                    uplink.wanted(now);
                    wanted = true;
                }
                prop_assert!((least..=least + more).contains(&uplink.streams()));
            }
        }
    }
}
