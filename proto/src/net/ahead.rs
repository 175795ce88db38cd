//! How much a server's connection writes ahead of the network.
//!
//! What it writes waits in the kernel; the rest waits in the program, where a stream that is given up costs nothing, and
//! where an upload slot is held until it is written. A kernel's buffer of several MiB would take a slow link half a
//! minute, and would swallow whole chunks, so that slots would hold nothing back: with 256 KiB here and as many
//! receivers as slots on links of 100 Mbit/s, a swarm took 1.68 times the bound, with 32 KiB 1.24. On a fast link so
//! little is a system call and a wake-up for each of a hundred thousand writes, and costs a twelfth of the time.
//!
//! What holds (each line has a test):
//! - it is what passes in [`TIME`], at least [`LEAST`] and at most [`MOST`], by the rate of a period that is over;
//! - it is set only when it doubles or halves.

use std::time::{Duration, Instant};

/// So much of what passes is written ahead.
pub const TIME: Duration = Duration::from_micros(2500);
/// Bytes at least, which pass in that time at 100 Mbit/s.
pub const LEAST: u32 = 32 << 10;
/// Bytes at most.
pub const MOST: u32 = 1 << 20;
/// The rate is measured over this long at least.
const PERIOD: Duration = Duration::from_millis(20);

/// A connection on which this can be set.
pub trait WriteAhead {
    /// Writes so many bytes ahead from now on, where the system can.
    fn write_ahead(&self, bytes: u32);
}

/// What one connection writes ahead.
#[derive(Debug)]
pub struct Ahead {
    set: u32,
    since: Instant,
    bytes: u64,
}

impl Ahead {
    /// Of a connection that begins now, with [`LEAST`].
    pub fn new(now: Instant) -> Self {
        Self { set: LEAST, since: now, bytes: 0 }
    }

    /// So many bytes were written; how many are to be written ahead from now on, if that changes.
    pub fn wrote(&mut self, bytes: usize, now: Instant) -> Option<u32> {
        self.bytes += bytes as u64;
        let took = now.saturating_duration_since(self.since);
        if took < PERIOD {
            return None;
        }
        let passes = u128::from(self.bytes) * TIME.as_nanos() / took.as_nanos();
        (self.bytes, self.since) = (0, now);
        let wanted = u32::try_from(passes).unwrap_or(MOST).clamp(LEAST, MOST);
        if wanted >= 2 * self.set || wanted <= self.set / 2 {
            self.set = wanted;
            return Some(wanted);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_follows_the_rate_within_its_bounds() {
        let (mut now, mut ahead) = (Instant::now(), Ahead::new(Instant::now()));
        let mut at = |bytes_a_ms: usize, millis: u32| {
            let mut set = Vec::new();
            for _ in 0..millis {
                now += MS;
                set.extend(ahead.wrote(bytes_a_ms, now));
            }
            set
        };
        assert!(at(12_500, 1000).is_empty(), "100 Mbit/s need no more");
        let [set] = at(100_000, 1000)[..] else { panic!("once") };
        assert!((245_000..=250_000).contains(&set), "{set}");
        assert!(at(120_000, 1000).is_empty(), "not twice as much");
        assert_eq!(at(10_000_000, 100), [MOST]);
        assert_eq!(at(125, 100).last(), Some(&LEAST));
    }

    #[test]
    fn after_a_pause_it_is_little_again() {
        let now = Instant::now();
        let mut ahead = Ahead::new(now);
        assert_eq!(ahead.wrote(64 << 20, now + PERIOD), Some(MOST));
        assert_eq!(ahead.wrote(1 << 20, now + 1000 * PERIOD), Some(LEAST));
    }
}
