//! How many chunks more than usual are asked of a holder that is far in time.
//!
//! A chunk begins to come a round trip after it was asked for, so over a long way a fixed number of them bounds the rate.
//! What fills the way is the rate times the round trip; the rate is known only by what came. So twice as much is asked
//! for as came within a round trip, beside what is usual: while the link has room the number doubles, and where it is full
//! one half is on its way and the other half is asked for meanwhile.
//!
//! What holds (each line has a test):
//! - of a holder whose round trip is below [`LONG`] no more is asked than usual: that hides it;
//! - what is asked of one beyond that is twice what came from it within a round trip, and never more than [`MOST`] bytes
//!   nor [`MOST_CHUNKS`] over all holders: it grows while the rate does, and falls with it;
//! - the round trip is the shortest of the last [`EPOCH`]s: what stands for a while in a queue before an answer is no distance (in one that never empties it is);
//! - a holder has as many connections as usual until what is asked of it is more than those carry, and never more than
//!   [`MOST_CONNECTIONS`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_proto::PeerId;

/// A shorter round trip is hidden by what is usual: 12 chunks of 1 MiB are 600 MB/s at 20 ms.
pub const LONG: Duration = Duration::from_millis(20);
/// The shortest round trip is that of this epoch and the one before.
pub const EPOCH: Duration = Duration::from_secs(10);
/// So many times what comes within a round trip is asked for.
const GAIN: f64 = 2.0;
/// The rate is measured over this long at least, and over a round trip.
const PERIOD: Duration = Duration::from_millis(250);

/// Bytes beyond the usual that are asked for at once, over all holders: 10 Gbit/s at 100 ms are 125 MB.
pub const MOST: u64 = 192 << 20;
/// And chunks: each is a task, and is begun and not complete.
pub const MOST_CHUNKS: usize = 256;

/// Connections to one holder that carry what is usual: four streams over four connections are a fifth faster than over one,
/// because each connection has a task and a socket buffer of its own.
pub const CONNECTIONS: usize = 4;
/// Connections to one holder at the most.
pub const MOST_CONNECTIONS: usize = 32;
/// Bytes of which one connection carries so many within a round trip: a kernel keeps some 4 MiB of what is not
/// acknowledged for each, headers included, and streams do not spread evenly.
const CARRIED: f64 = 2.0 * 1024.0 * 1024.0;

/// What is known of the way to one holder.
#[derive(Debug)]
struct Way {
    /// The shortest round trip of the epoch before, and of this one.
    shortest: [Option<Duration>; 2],
    epoch: Instant,
    since: Instant,
    bytes: u64,
    /// Bytes a second, in the period before and in this one's predecessor.
    rates: [f64; 2],
}

/// The ways to the holders of one download.
#[derive(Debug)]
pub struct Reach {
    /// Bytes of one chunk that may be on their way at once.
    unit: f64,
    ways: BTreeMap<PeerId, Way>,
}

impl Way {
    fn new(now: Instant) -> Self {
        Self { shortest: [None; 2], epoch: now, since: now, bytes: 0, rates: [0.0; 2] }
    }

    fn round_trip(&self) -> Option<Duration> {
        self.shortest.iter().flatten().min().copied().filter(|trip| *trip >= LONG)
    }

    /// Bytes that fill it, at the rate of late.
    fn fill(&self) -> f64 {
        let rate = self.rates[0].max(self.rates[1]);
        self.round_trip().map_or(0.0, |trip| rate * trip.as_secs_f64())
    }

    fn answered(&mut self, took: Duration, now: Instant) {
        if now.saturating_duration_since(self.epoch) >= EPOCH {
            (self.shortest, self.epoch) = ([self.shortest[1], None], now);
        }
        let shortest = self.shortest[1].map_or(took, |shortest| shortest.min(took));
        self.shortest[1] = Some(shortest);
    }

    fn counted(&mut self, bytes: u64, now: Instant) {
        let took = now.saturating_duration_since(self.since);
        if took < PERIOD.max(self.round_trip().unwrap_or_default()) {
            return;
        }
        let rate = bytes.saturating_sub(self.bytes) as f64 / took.as_secs_f64();
        (self.rates, self.since, self.bytes) = ([self.rates[1], rate], now, bytes);
    }
}

impl Reach {
    /// For chunks of so many bytes, of each of which a holder may have so many on their way.
    pub fn new(chunk_size: u32, window: u32) -> Self {
        Self { unit: f64::from(chunk_size.min(window).max(1)), ways: BTreeMap::new() }
    }

    /// A holder's first bytes came so long after they were asked for.
    pub fn answered(&mut self, holder: PeerId, took: Duration, now: Instant) {
        self.ways.entry(holder).or_insert_with(|| Way::new(now)).answered(took, now);
    }

    /// So many bytes came from a holder so far.
    pub fn counted(&mut self, holder: PeerId, bytes: u64, now: Instant) {
        if let Some(way) = self.ways.get_mut(&holder) {
            way.counted(bytes, now);
        }
    }

    /// Chunks beyond the usual number, over all holders.
    pub fn all(&self) -> usize {
        self.chunks(self.ways.values().map(Way::fill).sum())
    }

    /// Chunks of one holder beyond the usual number.
    pub fn of(&self, holder: PeerId) -> usize {
        self.chunks(self.ways.get(&holder).map_or(0.0, Way::fill))
    }

    /// The holders of whom more may be asked than usual, or might have been.
    pub fn holders(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.ways.keys().copied()
    }

    /// Connections to one holder.
    pub fn connections(&self, holder: PeerId) -> usize {
        let fill = self.ways.get(&holder).map_or(0.0, Way::fill);
        // A small positive number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let connections = (GAIN * fill / CARRIED).min(MOST_CONNECTIONS as f64).ceil() as usize;
        connections.clamp(CONNECTIONS, MOST_CONNECTIONS)
    }

    fn chunks(&self, fill: f64) -> usize {
        let bytes = (GAIN * fill).min(MOST as f64);
        // At most a few thousand.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let chunks = (bytes / self.unit) as usize;
        chunks.min(MOST_CHUNKS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u32 = 1 << 20;
    const USUAL: usize = 6;
    const TICK: Duration = Duration::from_millis(200);

    fn holder(number: u8) -> PeerId {
        PeerId::from_bytes([number; 16])
    }

    /// One holder at such a distance, whose link carries so many bytes a second: what is asked of it beyond the usual after
    /// so many seconds.
    fn after(seconds: u32, round_trip: Duration, link: f64, reach: &mut Reach, start: Instant) -> usize {
        let mut bytes = 0.0;
        for tick in 1..=5 * seconds {
            let (now, asked) = (start + TICK * tick, (USUAL + reach.of(holder(1))) as f64 * reach.unit);
            bytes += (asked / round_trip.as_secs_f64()).min(link) * TICK.as_secs_f64();
            reach.answered(holder(1), round_trip, now);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            reach.counted(holder(1), bytes as u64, now);
        }
        reach.of(holder(1))
    }

    #[test]
    fn over_a_long_way_the_number_grows_until_the_link_is_full_and_no_further() {
        for (millis, link) in [(200, 125e6), (100, 125e6), (50, 600e6)] {
            let (round_trip, mut reach) = (Duration::from_millis(millis), Reach::new(MIB, 2 * MIB));
            let fills = link * round_trip.as_secs_f64() / f64::from(MIB);
            let asked = after(10, round_trip, link, &mut reach, Instant::now()) as f64;
            assert!(asked >= fills && asked <= 2.0 * fills, "{millis} ms: {asked} of {fills}");
        }
    }

    #[test]
    fn a_short_way_changes_nothing() {
        for millis in [0, 1, 10, 19] {
            let mut reach = Reach::new(64 << 10, 2 * MIB);
            assert_eq!(after(10, Duration::from_millis(millis.max(1)), 1.25e9, &mut reach, Instant::now()), 0);
            assert_eq!(reach.connections(holder(1)), CONNECTIONS);
        }
    }

    #[test]
    fn a_slow_link_changes_nothing_however_long() {
        let mut reach = Reach::new(MIB, 2 * MIB);
        assert_eq!(after(10, Duration::from_millis(400), 1e6, &mut reach, Instant::now()), 0);
        assert_eq!(reach.connections(holder(1)), CONNECTIONS);
    }

    #[test]
    fn it_falls_with_the_rate() {
        let (start, mut reach) = (Instant::now(), Reach::new(MIB, 2 * MIB));
        assert!(after(10, TICK, 125e6, &mut reach, start) > 20);
        let all = reach.connections(holder(1));
        assert!((10..=MOST_CONNECTIONS).contains(&all), "{all}");
        for tick in 1..=10 {
            reach.counted(holder(1), 10_u64.pow(10), start + Duration::from_secs(10) + TICK * tick);
        }
        assert_eq!((reach.of(holder(1)), reach.all(), reach.connections(holder(1))), (0, 0, CONNECTIONS));
    }

    #[test]
    fn an_answer_that_waited_in_a_queue_is_no_distance() {
        let (start, mut reach) = (Instant::now(), Reach::new(MIB, 2 * MIB));
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            // One in eight finds the queue empty.
            let took = if second % 8 == 0 { Duration::from_millis(2) } else { Duration::from_millis(900) };
            reach.answered(holder(1), took, now);
            reach.counted(holder(1), second * 12_000_000, now);
            assert_eq!(reach.of(holder(1)), 0, "{second} s");
        }
    }

    proptest! {
        #[test]
        fn it_is_bounded_whatever_is_measured(
            events in proptest::collection::vec((0u8..5, 0u64..3000, 0u64..10_000_000_000, 0u64..5000), 1..200),
            chunk in (16u32..26).prop_map(|bits| 1 << bits),
        ) {
            let (mut now, mut reach) = (Instant::now(), Reach::new(chunk, 2 * MIB));
            for (number, took, bytes, later) in events {
                now += Duration::from_millis(later);
                reach.answered(holder(number), Duration::from_millis(took), now);
                reach.counted(holder(number), bytes, now);
                let most = reach.holders().map(|holder| reach.of(holder)).max().unwrap_or(0);
                prop_assert!(most <= reach.all() && reach.all() <= MOST_CHUNKS);
                prop_assert!(reach.all() as u64 * u64::from(chunk.min(2 * MIB)) <= MOST);
                prop_assert!((CONNECTIONS..=MOST_CONNECTIONS).contains(&reach.connections(holder(number))));
            }
        }
    }
}
