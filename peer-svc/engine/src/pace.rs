//! When a stream of bytes has stalled, or only drips. Both ends use it: a receiver gives up a holder that sends
//! nothing, a holder frees the slot of a receiver that takes nothing.
//!
//! What holds (each line has a test):
//! - a stream that moves no byte for [`Limits::silence`] is silent, from that moment on and not before;
//! - a stream that moves fewer than [`Limits::least`] bytes within a window drips;
//! - a stream that moves at least that much within each window, with no silence, is never complained of;
//! - while others bring some bytes over a slow link, a stream is starved rather than silent: it is complained of only
//!   after [`STARVED`];
//! - looking is worth while at [`Pace::next_look`] and not before;
//! - time in which this process did not run is no silence of the other end ([`was_asleep`], [`Pace::restart`]);
//! - nor is time in which this end itself held the stream up, for a limit of its own ([`Pace::held_up`]): the verdicts
//!   are those of a stream that was not.

use std::time::{Duration, Instant};

/// What is demanded of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest time without a byte.
    pub silence: Duration,
    /// Bytes are counted over this long.
    pub window: Duration,
    /// Fewest bytes within a window.
    pub least: u64,
}

/// What a receiver demands of a holder: one that drips holds up a chunk as well as one that sends nothing. Bytes on
/// the connection count, not whole messages, so that any slow link is fast enough; only what stands in the queue of a
/// congested link may take some seconds to come.
pub const RECEIVING: Limits =
    Limits { silence: Duration::from_secs(8), window: Duration::from_secs(8), least: 4 << 10 };

/// On a link that is slower than this, in bytes a second over all streams of a download, one stream may get nothing for
/// a while because the others fill the queue: TCP waits ever longer after each loss, up to many seconds.
pub const SLOW_LINK: u64 = 512 << 10;

/// And at least so much comes over it: less is no traffic that could starve a stream, but what connections cost.
const TRAFFIC: u64 = 4 << 10;

/// A starved stream is silent after this long: after five losses in a row TCP has waited about half of it.
pub const STARVED: Duration = Duration::from_secs(60);

/// What a holder demands of a receiver. A receiver takes messages of up to 256 KiB: over a link of 64 KiB/s that four
/// streams share, one takes 16 s. A slow link is no offence: the holder frees a dripping stream's slot only for
/// another peer that waits.
pub const SENDING: Limits =
    Limits { silence: Duration::from_secs(30), window: Duration::from_secs(10), least: 320 << 10 };

/// A look that comes this much later than it was due was late because this process did not run: it was stopped, or
/// its machine was paused.
const ASLEEP: Duration = Duration::from_secs(2);

/// Whether this process did not run for a while before `now`, since it meant to look at `due`.
pub fn was_asleep(due: Instant, now: Instant) -> bool {
    now.saturating_duration_since(due) >= ASLEEP
}

/// What all streams of a download moved together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// Since the one that is judged moved last.
    pub since_moved: u64,
    /// Since its window began.
    pub in_window: u64,
}

/// The pace of one stream.
#[derive(Debug, Clone)]
pub struct Pace {
    limits: Limits,
    /// When a byte moved last.
    moved_at: Instant,
    window_from: Instant,
    in_window: u64,
}

/// What there is to say of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Enough bytes come for it to go on.
    Fine,
    /// No byte for [`Limits::silence`].
    Silent,
    /// So few bytes within the last window.
    Drips(u64),
}

impl Pace {
    /// A stream that begins now.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, moved_at: now, window_from: now, in_window: 0 }
    }

    /// This process did not run for a while: the stream is judged as one that begins now.
    pub fn restart(&mut self, now: Instant) {
        *self = Self::new(self.limits, now);
    }

    /// This end itself let nothing move for so long, until now.
    pub fn held_up(&mut self, time: Duration, now: Instant) {
        self.moved_at = (self.moved_at + time).min(now);
        self.window_from = (self.window_from + time).min(now);
    }

    /// Some bytes moved. Look first: a window that is over is judged without them.
    pub fn moved(&mut self, bytes: u64, now: Instant) {
        self.moved_at = now;
        self.in_window += bytes;
    }

    /// Judges the stream as it is now. A window that is over is followed by the next one.
    pub fn look(&mut self, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.moved_at) >= self.limits.silence {
            return Verdict::Silent;
        }
        if now.saturating_duration_since(self.window_from) >= self.limits.window {
            let bytes = std::mem::take(&mut self.in_window);
            self.window_from = now;
            if bytes < self.limits.least {
                return Verdict::Drips(bytes);
            }
        }
        Verdict::Fine
    }

    /// As [`Pace::look`], for one of several streams.
    pub fn look_beside(&mut self, others: Others, now: Instant) -> Verdict {
        let (silence, window) =
            (now.saturating_duration_since(self.moved_at), now.saturating_duration_since(self.window_from));
        let is_slow = |bytes: u64, time: Duration| {
            let in_that_time = |rate: u64| rate.saturating_mul(time.as_secs());
            (in_that_time(TRAFFIC)..in_that_time(SLOW_LINK)).contains(&bytes)
        };
        match self.look(now) {
            Verdict::Silent if silence < STARVED && is_slow(others.since_moved, silence) => Verdict::Fine,
            Verdict::Drips(_) if is_slow(others.in_window, window) => Verdict::Fine,
            verdict => verdict,
        }
    }

    /// When the present window began.
    pub fn window_from(&self) -> Instant {
        self.window_from
    }

    /// When [`Pace::look`] may have something new to say.
    pub fn next_look(&self) -> Instant {
        (self.moved_at + self.limits.silence).min(self.window_from + self.limits.window)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { silence: Duration::from_secs(4), window: Duration::from_secs(4), least: 4096 };
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_stream_that_drips_while_others_fill_a_slow_link_is_no_offence() {
        let start = Instant::now();
        let verdicts = |rate: u64| -> Vec<Verdict> {
            let (mut pace, mut now) = (Pace::new(RECEIVING, start), start);
            let looks = (1..=64).map(|second| {
                now += Duration::from_secs(1);
                if second % 4 == 0 {
                    pace.moved(100, now);
                }
                // The window is over each 8 s.
                let window = now.saturating_duration_since(pace.window_from()).as_secs();
                pace.look_beside(Others { since_moved: 0, in_window: window * rate }, now)
            });
            looks.filter(|verdict| *verdict != Verdict::Fine).collect()
        };
        assert_eq!(verdicts(0).first(), Some(&Verdict::Drips(200)));
        assert_eq!(verdicts(100 << 10), [], "the others had the link");
        assert_eq!(verdicts(10 << 20).first(), Some(&Verdict::Drips(200)));
    }

    #[test]
    fn a_stream_that_others_starve_on_a_slow_link_is_no_offence_for_a_minute() {
        let start = Instant::now();
        let looks = |others: fn(u64) -> u64| {
            let mut pace = Pace::new(RECEIVING, start);
            let verdicts = (1..=70).map(move |second| {
                let others = Others { since_moved: others(second), in_window: 0 };
                (second, pace.look_beside(others, start + Duration::from_secs(second)))
            });
            verdicts.filter(|(_, verdict)| *verdict != Verdict::Fine).map(|(second, _)| second).next()
        };
        for nothing in [|_| 0, |_| 1000] {
            assert_eq!(looks(nothing), Some(8), "nothing comes from anyone: that is the holder, or the link is dead");
        }
        assert_eq!(looks(|second| second * (100 << 10)), Some(60));
        assert_eq!(looks(|second| second * (10 << 20)), Some(8), "there is room for all on a fast link");
    }

    #[test]
    fn silence_is_noticed_when_it_has_lasted_and_not_before() {
        let start = Instant::now();
        let mut pace = Pace::new(LIMITS, start);
        assert_eq!(pace.look(start + LIMITS.silence - MS), Verdict::Fine);
        assert_eq!(pace.look(start + LIMITS.silence), Verdict::Silent);
        pace.moved(1, start + LIMITS.silence);
        assert_ne!(pace.look(start + LIMITS.silence), Verdict::Silent);
    }

    #[test]
    fn a_receiver_that_takes_one_message_per_nearly_ten_seconds_drips() {
        let start = Instant::now();
        let mut pace = Pace::new(SENDING, start);
        let mut now = start;
        let verdict = (0..10).find_map(|_| {
            now += Duration::from_millis(9900);
            let verdict = pace.look(now);
            pace.moved(256 << 10, now);
            (verdict != Verdict::Fine).then_some(verdict)
        });
        assert_eq!(verdict, Some(Verdict::Drips(256 << 10)));
        assert!(now - start < 2 * SENDING.window, "within the second window");
    }

    #[test]
    fn time_asleep_is_no_silence() {
        let start = Instant::now();
        let mut pace = Pace::new(LIMITS, start);
        let (due, thawed) = (pace.next_look(), start + Duration::from_secs(600));
        assert!(!was_asleep(due, due) && !was_asleep(due, due + ASLEEP - MS) && was_asleep(due, thawed));
        pace.restart(thawed);
        assert_eq!(pace.look(thawed + LIMITS.silence - MS), Verdict::Fine);
        assert_eq!(pace.look(thawed + LIMITS.silence), Verdict::Silent);
    }

    proptest! {
        #[test]
        fn time_in_which_this_end_held_the_stream_up_changes_no_verdict(
            steps in proptest::collection::vec((1u64..5000, 0u64..9000, 0u64..100_000), 1..60),
        ) {
            let start = Instant::now();
            let (mut plain, mut limited) = (Pace::new(LIMITS, start), Pace::new(LIMITS, start));
            let (mut now, mut waited) = (start, Duration::ZERO);
            for (ms, bytes, waits) in steps {
                now += Duration::from_millis(ms);
                prop_assert_eq!(limited.next_look(), plain.next_look() + waited);
                prop_assert_eq!(limited.look(now + waited), plain.look(now));
                plain.moved(bytes, now);
                limited.moved(bytes, now + waited);
                waited += Duration::from_millis(waits);
                limited.held_up(Duration::from_millis(waits), now + waited);
            }
        }

        #[test]
        fn verdicts_follow_from_the_bytes_alone(steps in proptest::collection::vec((1u64..6000, 0u64..9000), 1..60)) {
            let start = Instant::now();
            let (mut pace, mut now) = (Pace::new(LIMITS, start), start);
            let (mut window_from, mut in_window) = (start, 0);
            for (ms, bytes) in steps {
                let before = now;
                now += Duration::from_millis(ms);
                let look_at = pace.next_look();
                let verdict = pace.look(now);
                if now < look_at {
                    prop_assert_eq!(verdict, Verdict::Fine, "nothing to say before the next look");
                }
                match verdict {
                    Verdict::Silent => { prop_assert!(now - before >= LIMITS.silence); break; }
                    Verdict::Drips(few) => {
                        prop_assert!(few == in_window && few < LIMITS.least && now - window_from >= LIMITS.window);
                        break;
                    }
                    Verdict::Fine => {
                        prop_assert!(now - before < LIMITS.silence);
                        if now - window_from >= LIMITS.window {
                            prop_assert!(in_window >= LIMITS.least);
                            (window_from, in_window) = (now, 0);
                        }
                    }
                }
                // Every step moves at least a byte, so that a step is a silence.
                pace.moved(bytes + 1, now);
                in_window += bytes + 1;
            }
        }
    }
}
