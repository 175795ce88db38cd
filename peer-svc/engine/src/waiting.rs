//! Why a download does not go on, and when it gives up.
//!
//! What holds (each line has a property test):
//! - a download gives up exactly when it made no progress for its whole patience, and progress starts the wait
//!   over;
//! - bytes are progress if they are more of a chunk than ever was here, in portions of [`PORTION`]: a holder that
//!   sends the same first bytes again and again, and one that drips, are none; what was wrong counts at most once
//!   more, so that progress ends if no chunk is ever stored;
//! - waiting for this peer's own memory, or for a limit of its own, is no patience spent;
//! - of several reasons the one is told that keeps the download from its end: chunks without supply before fetches
//!   that do not come, and "busy" only if nothing is under way at all;
//! - a reason is news once, until it changes or a chunk is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use drizzle_proto::{ChunkIndex, ChunkSet};

use crate::schedule::Supply;

/// Why a download does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is not known yet which peers hold the file.
    NotLocated,
    /// Chunks that no known peer holds, or that only peers hold which are avoided for an offence at present.
    /// Not both are empty.
    NoSupply(Supply),
    /// Every holder is busy.
    Busy,
    /// Every fetch waits for memory for its chunk, which other downloads of this peer use.
    NoMemory,
    /// No holder could be asked, for want of this on this machine; in words.
    Short(String),
    /// Chunks were asked for, and nothing comes.
    Silence,
}

/// The fetches of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fetches {
    /// That were started and have not ended.
    pub under_way: usize,
    /// Of these, those that have no memory for their chunk yet and have asked no peer.
    pub without_memory: usize,
}

impl Reason {
    /// From what the scheduler says of the supply, and from the fetches.
    pub fn of(located: bool, supply: Supply, fetches: Fetches) -> Self {
        if !located {
            Self::NotLocated
        } else if !supply.unheld.is_empty() || !supply.avoided.is_empty() {
            Self::NoSupply(supply)
        } else if fetches.under_way == 0 {
            Self::Busy
        } else if fetches.wait_for_memory() {
            Self::NoMemory
        } else {
            Self::Silence
        }
    }
}

impl Fetches {
    /// Whether there are fetches, and each of them waits for memory.
    pub fn wait_for_memory(self) -> bool {
        self.under_way > 0 && self.ask_no_peer()
    }

    /// Whether no peer was asked that may yet answer: a fetch that was only just started is no reason to wait.
    pub fn ask_no_peer(self) -> bool {
        self.without_memory >= self.under_way
    }
}

/// What a download that gives up is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivesUp {
    /// For these chunks peers offered other bytes than those registered first.
    Tainted(ChunkSet),
    /// No progress, for this reason.
    NoProgress(Reason),
}

/// Fewer new bytes of a chunk than this are no progress yet.
pub const PORTION: u32 = 4 << 10;

/// The patience of one download.
#[derive(Debug)]
pub struct Waiting {
    patience: Duration,
    progress_at: Instant,
    told: Option<Reason>,
    /// The most bytes of a missing chunk that counted.
    most: BTreeMap<ChunkIndex, u32>,
    /// Chunks that were wrong once.
    spoiled: BTreeSet<ChunkIndex>,
}

impl Waiting {
    /// A download that begins now and gives up after `patience` without progress.
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, progress_at: now, told: None, most: BTreeMap::new(), spoiled: BTreeSet::new() }
    }

    /// So many bytes are here of a chunk: large chunks over slow links take longer than the patience.
    pub fn chunk_grew(&mut self, chunk: ChunkIndex, had: u32, now: Instant) {
        let most = self.most.entry(chunk).or_default();
        if had >= most.saturating_add(PORTION) {
            *most = had;
            self.progress_at = now;
        }
    }

    /// What was here of a chunk was wrong and is thrown away. An honest holder may be slow, so it counts anew; a
    /// second time it does not.
    pub fn chunk_spoiled(&mut self, chunk: ChunkIndex) {
        if self.spoiled.insert(chunk) {
            self.most.remove(&chunk);
        }
    }

    /// From now on it gives up after another time.
    pub fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Chunks that were here already are read again.
    pub fn chunk_proved(&mut self, now: Instant) {
        self.progress_at = now;
    }

    /// This process did not run for so long: that was no waiting.
    pub fn slept(&mut self, asleep: Duration) {
        self.progress_at += asleep;
    }

    /// Fetches were held up for so long, until now, by a limit of this peer's own: that was no waiting either.
    pub fn held_up(&mut self, time: Duration, now: Instant) {
        self.progress_at = (self.progress_at + time).min(now).max(self.progress_at);
    }

    /// Other downloads of this peer have, in turn, what this one waits for: memory, or what busy holders can send. No peer
    /// keeps it waiting.
    pub fn waits_for_itself(&mut self, now: Instant) {
        self.progress_at = now;
    }

    /// A chunk was stored.
    pub fn chunk_stored(&mut self, now: Instant) {
        self.progress_at = now;
        self.told = None;
    }

    /// How long it waits in all.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// When it gives up if nothing happens.
    pub fn gives_up_at(&self) -> Instant {
        self.progress_at + self.patience
    }

    /// What it gives up for, once its patience is over. `tainted` are the missing chunks for which other bytes
    /// than the registered ones were offered.
    pub fn gives_up(&self, tainted: ChunkSet, reason: impl FnOnce() -> Reason, now: Instant) -> Option<GivesUp> {
        (now >= self.gives_up_at()).then(|| match tainted.is_empty() {
            true => GivesUp::NoProgress(reason()),
            false => GivesUp::Tainted(tainted),
        })
    }

    /// Nothing can be asked for: the reason, if it was not told before.
    pub fn stands_still(&mut self, reason: Reason) -> Option<Reason> {
        if self.told.as_ref() == Some(&reason) {
            return None;
        }
        self.told = Some(reason.clone());
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::ChunkCount;
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn none() -> ChunkSet {
        ChunkSet::empty(ChunkCount::new(4).unwrap())
    }

    fn chunk(n: u32) -> ChunkIndex {
        ChunkCount::new(4).unwrap().index(n).unwrap()
    }

    fn all() -> ChunkSet {
        ChunkSet::full(ChunkCount::new(4).unwrap())
    }

    #[test]
    fn it_gives_up_after_its_patience_and_not_before() {
        let start = Instant::now();
        let mut waiting = Waiting::new(PATIENCE, start);
        let later = start + PATIENCE / 2;
        waiting.chunk_grew(chunk(0), PORTION, later);
        let end = later + PATIENCE;
        assert_eq!(waiting.gives_up_at(), end);
        assert_eq!(waiting.gives_up(none(), || Reason::Busy, end - Duration::from_nanos(1)), None);
        assert_eq!(waiting.gives_up(none(), || Reason::Busy, end), Some(GivesUp::NoProgress(Reason::Busy)));
        assert_eq!(waiting.gives_up(all(), || Reason::Busy, end), Some(GivesUp::Tainted(all())));
        waiting.be_patient(PATIENCE * 2);
        assert_eq!((waiting.gives_up_at(), waiting.patience()), (later + PATIENCE * 2, PATIENCE * 2));
        assert_eq!(waiting.gives_up(all(), || Reason::Busy, end), None);
        waiting.be_patient(PATIENCE);
        waiting.chunk_stored(end);
        assert_eq!(waiting.gives_up(all(), || Reason::Busy, end), None);
    }

    #[test]
    fn bytes_are_progress_and_end_no_wait() {
        let start = Instant::now();
        let mut waiting = Waiting::new(PATIENCE, start);
        assert_eq!(waiting.stands_still(Reason::Busy), Some(Reason::Busy));
        waiting.chunk_grew(chunk(0), PORTION, start);
        assert_eq!(waiting.stands_still(Reason::Busy), None);
        waiting.chunk_stored(start);
        assert_eq!(waiting.stands_still(Reason::Busy), Some(Reason::Busy));
    }

    fn sets() -> impl Strategy<Value = ChunkSet> {
        prop_oneof![Just(none()), Just(all())]
    }

    fn reasons() -> impl Strategy<Value = Reason> {
        prop_oneof![Just(Reason::NotLocated), Just(Reason::Busy), Just(Reason::NoMemory), Just(Reason::Silence)]
    }

    #[derive(Debug, Clone)]
    enum Event {
        Pass(u64),
        Grew(u32, u32),
        Spoiled(u32),
        Slept(u64),
        WaitsForItself,
        HeldUp(u64),
        Stored,
        Stands(Reason),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0u64..70_000).prop_map(Event::Pass),
            2 => (0u32..4, 0u32..40_000).prop_map(|(chunk, had)| Event::Grew(chunk, had)),
            1 => (0u32..4).prop_map(Event::Spoiled),
            1 => (0u64..70_000).prop_map(Event::Slept),
            1 => Just(Event::WaitsForItself),
            1 => (0u64..70_000).prop_map(Event::HeldUp),
            1 => Just(Event::Stored),
            3 => reasons().prop_map(Event::Stands),
        ]
    }

    /// The first bytes of a chunk again and again, from however many holders, wrong in the end or not.
    #[test]
    fn the_same_bytes_again_and_again_end_in_giving_up() {
        let start = Instant::now();
        let (mut waiting, mut now) = (Waiting::new(PATIENCE, start), start);
        let step = PATIENCE / 4;
        let gave_up = (0..20).any(|_| {
            now += step;
            waiting.chunk_grew(chunk(0), 3 * PORTION, now);
            waiting.chunk_spoiled(chunk(0));
            waiting.gives_up(none(), || Reason::Silence, now).is_some()
        });
        assert!(gave_up, "after {:?}", now - start);
        assert_eq!(now - start, 2 * step + PATIENCE, "what was wrong counts once more and then not");
    }

    /// 16 MiB at 100 KB/s takes nearly three patiences; the link is away for some seconds now and then.
    #[test]
    fn an_honest_slow_holder_is_not_given_up() {
        let start = Instant::now();
        let (mut waiting, mut now) = (Waiting::new(PATIENCE, start), start);
        let mut had = 0;
        while had < 16 << 20 {
            now += Duration::from_secs(if (had / 100_000) % 20 == 7 { 20 } else { 1 });
            assert_eq!(waiting.gives_up(none(), || Reason::Silence, now), None);
            had += 100_000;
            waiting.chunk_grew(chunk(0), had, now);
        }
    }

    proptest! {
        #[test]
        fn the_reason_keeps_the_download_from_its_end(
            located in any::<bool>(), unheld in sets(), avoided in sets(), under_way in 0usize..4, asked in 0usize..4,
        ) {
            let fetches = Fetches { under_way, without_memory: under_way.saturating_sub(asked) };
            let supply = Supply { unheld: unheld.clone(), avoided: avoided.clone(), gone: false };
            let is_supplied = unheld.is_empty() && avoided.is_empty();
            let reason = Reason::of(located, supply.clone(), fetches);
            prop_assert_eq!(reason == Reason::NotLocated, !located);
            prop_assert_eq!(reason == Reason::NoSupply(supply), located && !is_supplied);
            prop_assert_eq!(reason == Reason::Busy, located && is_supplied && under_way == 0);
            prop_assert_eq!(reason == Reason::NoMemory, located && is_supplied && under_way > 0 && asked == 0);
            let is_asked = under_way > 0 && asked > 0;
            prop_assert_eq!(reason == Reason::Silence, located && is_supplied && is_asked);
            prop_assert_eq!(fetches.ask_no_peer(), !is_asked);
        }

        #[test]
        fn patience_and_news_are_as_promised(events in proptest::collection::vec(events(), 1..100)) {
            let start = Instant::now();
            let (mut waiting, mut now) = (Waiting::new(PATIENCE, start), start);
            let (mut progress_at, mut told) = (start, None);
            let (mut most, mut spoiled) = ([0; 4], [false; 4]);
            for event in events {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::Grew(n, had) => {
                        waiting.chunk_grew(chunk(n), had, now);
                        if had >= most[n as usize] + PORTION {
                            (most[n as usize], progress_at) = (had, now);
                        }
                    }
                    Event::Spoiled(n) => {
                        waiting.chunk_spoiled(chunk(n));
                        if !std::mem::replace(&mut spoiled[n as usize], true) {
                            most[n as usize] = 0;
                        }
                    }
                    Event::Slept(ms) => {
                        let asleep = Duration::from_millis(ms);
                        now += asleep;
                        waiting.slept(asleep);
                        progress_at += asleep;
                    }
                    Event::WaitsForItself => {
                        waiting.waits_for_itself(now);
                        progress_at = now;
                    }
                    Event::HeldUp(ms) => {
                        // It began before the last progress, perhaps.
                        let held_up = Duration::from_millis(ms);
                        now += held_up / 2;
                        waiting.held_up(held_up, now);
                        progress_at = now.min(progress_at + held_up);
                    }
                    Event::Stored => {
                        waiting.chunk_stored(now);
                        (progress_at, told) = (now, None);
                    }
                    Event::Stands(reason) => {
                        let news = waiting.stands_still(reason.clone());
                        prop_assert_eq!(news.is_some(), told.replace(reason.clone()) != Some(reason));
                    }
                }
                prop_assert_eq!(waiting.gives_up_at(), progress_at + PATIENCE);
                let gives_up = waiting.gives_up(none(), || Reason::Busy, now);
                prop_assert_eq!(gives_up.is_some(), now >= progress_at + PATIENCE);
            }
        }
    }
}
