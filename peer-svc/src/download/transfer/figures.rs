//! How near a download comes to its bound, and what keeps it from it: what a [`Transfer`] notes for that. What limits it
//! and what the bound is, [`drizzle_engine`] decides.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_engine::{
    bound::{Bound, Given},
    limiting::{Cause, Limiting, State},
    rate::{Intake, Meter},
    senders::Senders,
};
use drizzle_proto::PeerId;

use super::{super::events::Figures, Transfer};

/// Of a download that took less than this there is nothing to tell: it is over before anything could be measured.
const TOO_SHORT: Duration = Duration::from_millis(50);

/// What is noted on the way.
#[derive(Debug)]
pub(super) struct Account {
    begun: Instant,
    limiting: Limiting,
    at_disk: usize,
    intake: Intake,
    senders: Senders,
    seen: BTreeMap<PeerId, Seen>,
    /// When its holders were known, and when the last chunk was stored.
    located: Option<Instant>,
    ended: Option<Instant>,
}

/// What was seen of one holder.
#[derive(Debug)]
struct Seen {
    meter: Meter,
    is_full: bool,
}

impl Account {
    /// Of a download that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            limiting: Limiting::new(now),
            at_disk: 0,
            intake: Intake::default(),
            senders: Senders::default(),
            seen: BTreeMap::new(),
            located: None,
            ended: None,
        }
    }

    /// Its holders are known.
    pub(super) fn located(&mut self, now: Instant) {
        self.located.get_or_insert(now);
    }

    /// A holder, of the whole file or not, is asked for a chunk.
    pub(super) fn asked(&mut self, holder: PeerId, is_full: bool, now: Instant) {
        self.seen.entry(holder).or_insert_with(|| {
            let mut meter = Meter::default();
            meter.count(0, now);
            Seen { meter, is_full }
        });
    }

    /// So many bytes came from each holder by now.
    pub(super) fn counted(&mut self, received: &BTreeMap<PeerId, u64>, at_disk: usize, intake: Intake, now: Instant) {
        (self.at_disk, self.intake) = (at_disk, intake);
        for (holder, bytes) in received {
            if let Some(seen) = self.seen.get_mut(holder) {
                seen.meter.count(*bytes, now);
            }
        }
    }

    /// This process did not run for so long.
    pub(super) fn slept(&mut self, asleep: Duration) {
        self.limiting.slept(asleep);
    }

    /// The last chunk is stored.
    pub(super) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// What limits it at present.
    pub(super) fn live(&self) -> Option<Cause> {
        self.limiting.live()
    }
}

impl Transfer {
    /// Charges the time since the last look to what limits it now.
    pub(super) fn look(&mut self, now: Instant) {
        let (picture, intake) = (self.scheduler.picture(now), self.account.intake);
        let sending = self.account.senders.look(picture.full.sending + picture.partial.sending, intake.rate, now);
        let state = State {
            located: self.located,
            complete: self.scheduler.is_complete(),
            fetches: self.fetches(),
            at_disk: self.account.at_disk,
            room: self.streams.room(),
            short: self.shortage.is_some(),
            own_limit: false,
            picture,
            intake,
            sending,
        };
        self.account.limiting.look(state.cause(), now);
    }

    /// How near it came to its bound, if it fetched anything and took long enough to tell. It was asked for at `start`,
    /// and its last byte was in its place when `elapsed` was over.
    pub(in super::super) fn figures(&self, start: Instant, elapsed: Duration) -> Option<Figures> {
        let account = &self.account;
        let mut limiting = account.limiting.clone();
        limiting.add(Cause::Disk, account.begun.saturating_duration_since(start));
        limiting.look(Cause::Disk, start + elapsed);
        let fetching = account.ended?.saturating_duration_since(account.located?).min(elapsed);
        let given = self.sources.verified().filter_map(|(holder, bytes)| {
            let Seen { meter, is_full } = account.seen.get(&holder)?;
            Some(Given { bytes, best: meter.best(), is_full: *is_full })
        });
        let given: Vec<Given> = given.collect();
        let bound = Bound::of(&given, account.intake.best, fetching);
        bound.tightest().filter(|_| elapsed >= TOO_SHORT)?;
        Some(Figures { bound, limited: limiting.most()? })
    }
}
