//! How near a download comes to its bound, and what keeps it from it: what a [`Transfer`] notes for that. What limits it
//! and what the bound is, [`drizzle_engine`] decides.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drizzle_engine::{
    bound::{Bound, Given},
    limiting::{Cause, Limiting, State},
    meter::{Intake, Meter},
    senders::Senders,
};
use drizzle_proto::{ChunkSet, PeerId};

use super::{
    super::{
        events::Figures,
        explanation::{Explanation, HolderSeen, foremost},
        job::bytes_of,
    },
    Transfer,
};

/// Of a download that took less than this there is nothing to tell: it is over before anything could be measured.
const TOO_SHORT: Duration = Duration::from_millis(50);

/// Held up for less than this between two looks, a fetch waited for its turn and not for the limit.
const HELD_UP: Duration = Duration::from_millis(20);

/// What is noted on the way.
#[derive(Debug)]
pub(super) struct Account {
    begun: Instant,
    limiting: Limiting,
    writing: f64,
    receiving: u32,
    /// Whether the limit of this peer held fetches up since the last look.
    own_limit: bool,
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
            writing: 0.0,
            receiving: 0,
            own_limit: false,
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
    pub(super) fn counted(
        &mut self,
        received: &BTreeMap<PeerId, u64>,
        (writing, receiving): (f64, u32),
        intake: Intake,
        now: Instant,
    ) {
        (self.writing, self.receiving, self.intake) = (writing, receiving, intake);
        for (holder, bytes) in received {
            if let Some(seen) = self.seen.get_mut(holder) {
                seen.meter.count(*bytes, now);
            }
        }
    }

    /// The limit of this peer held a fetch up for so long since the last look.
    pub(super) fn held_up(&mut self, longest: Duration) {
        self.own_limit = longest >= HELD_UP;
    }

    /// This process did not run for so long.
    pub(super) fn slept(&mut self, asleep: Duration) {
        self.limiting.slept(asleep);
    }

    /// The last chunk is stored.
    pub(super) fn ended(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// Whether any chunk comes at present, for whichever download of this peer.
    pub(super) fn receives(&self) -> bool {
        self.receiving > 0
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
            writing: self.account.writing,
            room: self.streams.room(),
            short: self.shortage.is_some(),
            own_limit: self.account.own_limit,
            picture,
            intake,
            sending,
        };
        self.account.limiting.look(state.cause(), now);
    }

    /// The reasons for its pace. It was asked for at `start`.
    pub(in super::super) fn explain(&self, start: Instant, now: Instant) -> Explanation {
        let account = &self.account;
        let mut limiting = account.limiting.until(now);
        limiting.add(Cause::Disk, account.begun.saturating_duration_since(start));
        let holders = self.scheduler.standings(now).map(|standing| {
            let peer = standing.peer.address().clone();
            let rate = account.seen.get(&standing.peer.id()).map_or(0.0, |seen| seen.meter.rate());
            HolderSeen {
                is_far: self.locality.is_far(standing.peer.labels()),
                holds: standing.holds,
                state: standing.state,
                fetches: standing.fetches,
                received: self.sources.came_from(standing.peer.id()),
                rate: whole(rate),
                peer,
            }
        });
        let holders: Vec<HolderSeen> = holders.collect();
        let limited_by = account.limiting.live();
        // It looks at every chunk of every holder: only where nothing comes it is of use.
        let lacks = self.running.is_empty() || limited_by == Some(Cause::NoHolder);
        let none = || ChunkSet::empty(self.job.wanted.count());
        let (unheld, avoided) = match lacks.then(|| self.scheduler.supply(now)) {
            Some(supply) => (supply.unheld, supply.avoided),
            None => (none(), none()),
        };
        Explanation {
            name: self.job.name.clone(),
            ended: None,
            elapsed: now.saturating_duration_since(start),
            wanted: bytes_of(&self.job.manifest, &self.job.wanted),
            stored: self.stored_bytes,
            rate: whole(account.intake.rate),
            limited_by,
            shares: limiting.shares(),
            holders_known: holders.len(),
            holders: foremost(holders),
            unheld,
            avoided,
            blamed: self.blamed(),
        }
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

/// A rate in whole bytes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no rate is negative, or beyond 64 bits")]
fn whole(rate: f64) -> u64 {
    rate.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use drizzle_engine::limiting::Limited;

    use super::*;
    use crate::{
        download::{
            effects::{Counts, Input},
            transfer::tests::{Bench, MS, peer},
        },
        fetch::{FetchFailure, error::FetchError},
        locate::Located,
    };

    fn counted(received: u64, intake: Intake) -> Input {
        let received = [(peer(1).id(), received)].into();
        Input::Counted(Counts { received, intake, ..Counts::default() })
    }

    /// Eight chunks of one holder, one each 200 ms.
    fn steady() -> Bench {
        let mut bench = Bench::located(8, &[1]);
        let rate = f64::from(1 << 14) * 5.0;
        for came in 1..=8 {
            bench.now += 200 * MS;
            bench.apply(counted(came << 14, Intake { rate, best: rate }));
            let fetch = bench.fetches[0].clone();
            bench.stored(&fetch);
        }
        bench
    }

    #[test]
    fn a_steady_source_is_the_bound_and_its_link_the_limit() {
        let bench = steady();
        let figures = bench.transfer.figures(bench.started, bench.now - bench.started).unwrap();
        assert_eq!(figures.limited, Limited { by: Cause::Link, percent: 100 });
        assert_eq!(figures.bound.tightest(), Some(1600 * MS));
        assert_eq!(figures.bound.source, Some(1600 * MS));
    }

    #[test]
    fn what_comes_before_the_first_fetch_and_after_the_last_is_the_disks() {
        let bench = steady();
        let took = bench.now - bench.started + 5000 * MS;
        let figures = bench.transfer.figures(bench.started, took).unwrap();
        assert_eq!(figures.limited, Limited { by: Cause::Disk, percent: 76 });
        assert_eq!(figures.bound.tightest(), Some(1600 * MS), "that is no time of any link");
    }

    #[test]
    fn a_download_of_no_time_or_of_nothing_has_no_figures() {
        let bench = steady();
        assert_eq!(bench.transfer.figures(bench.started, 49 * MS), None);
        let here = Bench::new(3, "0-2", "");
        assert_eq!(here.transfer.figures(here.started, 1000 * MS), None);
        let failed = Bench::located(3, &[1]);
        assert_eq!(failed.transfer.figures(failed.started, 1000 * MS), None);
    }

    #[test]
    fn a_busy_source_and_an_unknown_one_are_told_live_and_time_asleep_is_nobodys() {
        let mut bench = Bench::new(1, "", "");
        bench.now += 600 * MS;
        bench.apply(counted(0, Intake::default()));
        assert_eq!(bench.transfer.account.live(), Some(Cause::Tracker));
        let mut bench = Bench::located(1, &[1]);
        let fetch = bench.fetches[0].clone();
        bench.apply(Input::Fetched(fetch.id, Err(FetchFailure::Holder(FetchError::Busy))));
        bench.now += 600 * MS;
        bench.apply(counted(0, Intake::default()));
        assert_eq!(bench.transfer.account.live(), Some(Cause::Source));
        bench.now += 100_000 * MS;
        bench.apply(Input::Slept(100_000 * MS));
        bench.apply(Input::Located(Located::Synced));
        let limited = bench.transfer.account.limiting.most();
        assert_eq!(limited, Some(Limited { by: Cause::Source, percent: 100 }));
        assert_eq!(bench.transfer.account.limiting.clone().live(), Some(Cause::Source));
    }
}
