//! A running download as numbers: bytes, rates, time left.
//!
//! Pure: events and the time go in, numbers come out; what to draw is decided in [`crate::render`].

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use drizzle_proto::wire;

use crate::figures;

/// Over how long rates are averaged: long enough to be read, short enough to follow a peer that stalls.
const WINDOW: f64 = 3.0;

/// Closer observations than this say more about scheduling than about the network.
const MIN_STEP: Duration = Duration::from_millis(50);

/// Exponentially weighted moving average of a growing count, corrected for its short past at the start.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rate {
    last: Option<(Instant, u64)>,
    sum: f64,
    weight: f64,
}

impl Rate {
    /// Notes how far the count is now.
    pub(crate) fn observe(&mut self, now: Instant, count: u64) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, count));
            return;
        };
        let step = now.saturating_duration_since(then);
        if step < MIN_STEP {
            return;
        }
        let keep = (-step.as_secs_f64() / WINDOW).exp();
        let current = count.saturating_sub(before) as f64 / step.as_secs_f64();
        self.sum = self.sum * keep + current * (1.0 - keep);
        self.weight = self.weight * keep + (1.0 - keep);
        self.last = Some((now, count));
    }

    /// Per second; `None` before the second observation.
    pub(crate) fn per_second(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// One peer that chunks come from.
#[derive(Debug)]
pub(crate) struct Source {
    /// HOST:PORT.
    pub(crate) peer: String,
    pub(crate) bytes: u64,
    pub(crate) chunks: u32,
    pub(crate) in_flight: u32,
    pub(crate) rate: Rate,
}

/// A download so far.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) name: String,
    /// Bytes of the wanted chunks.
    pub(crate) total: u64,
    /// Of these, verified and stored ones.
    pub(crate) stored: u64,
    pub(crate) sources: Vec<Source>,
    pub(crate) rate: Rate,
    /// Of the stored bytes, those that are still to be read again and checked.
    pub(crate) unchecked: u64,
    /// Why nothing can be requested, while that is so.
    pub(crate) waiting: Option<String>,
    /// What limits it at present.
    pub(crate) limited_by: Option<&'static str>,
    moving: bool,
}

impl Progress {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            total: 0,
            stored: 0,
            sources: Vec::new(),
            rate: Rate::default(),
            unchecked: 0,
            waiting: None,
            limited_by: None,
            moving: false,
        }
    }

    /// Takes in what the daemon tells.
    pub(crate) fn apply(&mut self, event: &wire::download_event::Event) {
        use wire::download_event::Event;
        match event {
            Event::Started(started) => {
                self.total = started.bytes_wanted;
                self.stored = started.bytes_resumed;
                self.waiting = None;
            }
            Event::Progress(progress) => self.advance(progress),
            Event::Waiting(waiting) => self.waiting = Some(waiting.reason.clone()),
            Event::Chunk(_) | Event::Done(_) | Event::Failed(_) => {}
        }
    }

    fn advance(&mut self, progress: &wire::DownloadProgress) {
        if progress.bytes_stored > self.stored {
            self.waiting = None;
        }
        self.stored = progress.bytes_stored;
        self.unchecked = progress.bytes_unchecked();
        self.limited_by = figures::limited_by(progress.limited_by());
        self.moving = true;
        let mut known: HashMap<String, Rate> =
            self.sources.drain(..).map(|source| (source.peer, source.rate)).collect();
        self.sources = progress
            .sources
            .iter()
            .map(|source| Source {
                peer: source.peer.clone(),
                bytes: source.bytes,
                chunks: source.chunks,
                in_flight: source.in_flight,
                rate: known.remove(&source.peer).unwrap_or_default(),
            })
            .collect();
    }

    /// Brings the rates up to date; they fall while nothing arrives.
    pub(crate) fn observe(&mut self, now: Instant) {
        // A caller that attaches to a running download sees its bytes at once: those are no speed.
        if self.moving {
            self.rate.observe(now, self.stored);
        }
        for source in &mut self.sources {
            source.rate.observe(now, source.bytes);
        }
    }

    /// 0 to 100, and 100 only when all is stored.
    pub(crate) fn percent(&self) -> u8 {
        let percent = u128::from(self.stored.min(self.total)) * 100 / u128::from(self.total.max(1));
        if self.total == 0 { 100 } else { u8::try_from(percent).unwrap_or(100) }
    }

    /// Whether every byte is stored and checked.
    pub(crate) fn is_complete(&self) -> bool {
        self.stored >= self.total && self.unchecked == 0
    }

    /// Bytes that are checked and bytes to check in all, while that alone is left to be done.
    pub(crate) fn checking(&self) -> Option<(u64, u64)> {
        (self.unchecked > 0 && self.stored >= self.total)
            .then(|| (self.total.saturating_sub(self.unchecked), self.total))
    }

    /// `None` while the rate is unknown or 0.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        let rate = self.rate.per_second().filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64(self.total.saturating_sub(self.stored) as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::wire::download_event::Event;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_steady_stream_has_its_rate_from_the_second_look_on() {
        let start = Instant::now();
        let mut rate = Rate::default();
        rate.observe(start, 500);
        assert_eq!(rate.per_second(), None);
        for step in 1..100u32 {
            rate.observe(start + Duration::from_millis(100) * step, 500 + 1000 * u64::from(step));
            let now = rate.per_second().unwrap();
            assert!((now - 10_000.0).abs() < 1.0, "{now}");
        }
    }

    #[test]
    fn a_stalled_stream_loses_its_rate() {
        let start = Instant::now();
        let mut rate = Rate::default();
        for step in 0..200u32 {
            let count = if step < 100 { u64::from(step) * 1000 } else { 100_000 };
            rate.observe(start + Duration::from_millis(100) * step, count);
        }
        assert!(rate.per_second().unwrap() < 1000.0);
    }

    #[test]
    fn time_left_follows_from_the_rate() {
        let start = Instant::now();
        let mut progress = Progress::new("a".into());
        progress.apply(&Event::Started(wire::DownloadStarted { bytes_wanted: 1000, ..Default::default() }));
        assert_eq!((progress.percent(), progress.time_left()), (0, None));
        for (at, stored) in [(0u32, 0), (1, 100), (2, 200), (3, 300)] {
            progress.apply(&Event::Progress(wire::DownloadProgress { bytes_stored: stored, ..Default::default() }));
            progress.observe(start + Duration::from_secs(1) * at);
        }
        assert_eq!(progress.percent(), 30);
        assert_eq!(progress.time_left().unwrap().as_secs_f64().round(), 7.0);
    }

    #[test]
    fn an_empty_file_is_complete() {
        assert_eq!(Progress::new("a".into()).percent(), 100);
    }

    #[test]
    fn waiting_ends_with_the_next_byte() {
        let mut progress = Progress::new("a".into());
        progress.apply(&Event::Waiting(wire::DownloadWaiting { reason: "no holder".into() }));
        progress.apply(&Event::Progress(wire::DownloadProgress::default()));
        assert!(progress.waiting.is_some());
        progress.apply(&Event::Progress(wire::DownloadProgress { bytes_stored: 1, ..Default::default() }));
        assert!(progress.waiting.is_none());
    }

    proptest! {
        #[test]
        fn no_numbers_make_it_panic(total: u64, stored: u64, later: u64, millis in 0u64..100_000) {
            let start = Instant::now();
            let mut progress = Progress::new("a".into());
            progress.apply(&Event::Started(wire::DownloadStarted { bytes_wanted: total, bytes_resumed: stored, file: None }));
            for (at, bytes_stored) in [(0, stored), (millis, later)] {
                progress.apply(&Event::Progress(wire::DownloadProgress { bytes_stored, ..Default::default() }));
                progress.observe(start + Duration::from_millis(at));
            }
            prop_assert!(progress.percent() <= 100);
            prop_assert_eq!(progress.percent() == 100, later >= total);
            let _ = progress.time_left();
        }
    }
}
