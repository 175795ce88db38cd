//! Why a download takes as long as it does: what limits it, how its holders stand, and what was tried. All of it is what
//! the engine went by; nothing is guessed afterwards.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drizzle_engine::{
    limiting::Cause,
    schedule::{Holds, State},
};
use drizzle_proto::{Address, ChunkSet, FileName};

use super::events::Blamed;

/// Holders that are told at most: those that matter first.
const MOST_HOLDERS: usize = 64;

/// The reasons of one download, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// The file.
    pub(crate) name: FileName,
    /// Whether it runs, and how it ended.
    pub(crate) ended: Option<Result<(), String>>,
    /// Since it was asked for.
    pub(crate) elapsed: Duration,
    /// Bytes of the wanted chunks, and of those that are stored.
    pub(crate) wanted: u64,
    pub(crate) stored: u64,
    /// Bytes a second that this machine takes in at present, over all its downloads.
    pub(crate) rate: u64,
    /// What limits it at present.
    pub(crate) limited_by: Option<Cause>,
    /// The time that each cause had, the longest first; together `elapsed`, but for time in which the process did not run.
    pub(crate) shares: Vec<(Cause, Duration)>,
    /// How its holders stand, at most [`MOST_HOLDERS`] of them.
    pub(crate) holders: Vec<HolderSeen>,
    /// How many are known.
    pub(crate) holders_known: usize,
    /// Chunks that no holder has; chunks that only holders have that are avoided.
    pub(crate) unheld: ChunkSet,
    pub(crate) avoided: ChunkSet,
    /// What holders did wrong so far.
    pub(crate) blamed: Vec<Blamed>,
}

/// One holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HolderSeen {
    /// Where it is reached.
    pub(crate) peer: Address,
    /// What it has.
    pub(crate) holds: Holds,
    /// How it stands.
    pub(crate) state: State,
    /// Fetches that it carries.
    pub(crate) fetches: usize,
    /// Bytes that came from it in this run.
    pub(crate) received: u64,
    /// Bytes a second that come from it at present.
    pub(crate) rate: u64,
    /// Whether its labels name another place than this peer's.
    pub(crate) is_far: bool,
}

impl Explanation {
    /// It is over; what came after the last look went to putting the file in its place.
    pub(super) fn ended(mut self, how: Result<(), String>, rest: Duration) -> Self {
        self.elapsed += rest;
        match self.shares.iter_mut().find(|(cause, _)| *cause == Cause::Disk) {
            Some((_, time)) => *time += rest,
            None => self.shares.push((Cause::Disk, rest)),
        }
        self.shares.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        self.limited_by = None;
        self.rate = 0;
        self.ended = Some(how);
        self
    }
}

/// The latest reasons of a download, for whoever asks. Clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reasons(Arc<Mutex<Option<Arc<Explanation>>>>);

impl Reasons {
    pub(super) fn are(&self, explanation: Explanation) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(explanation));
    }

    /// None before the first look.
    pub(crate) fn latest(&self) -> Option<Arc<Explanation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Leaves those that matter most: the ones that send, then the ones that keep it waiting, whole files before parts.
pub(super) fn foremost(mut holders: Vec<HolderSeen>) -> Vec<HolderSeen> {
    let rank = |holder: &HolderSeen| {
        let state = match holder.state {
            State::Sending => 0,
            State::Avoided(_) => 1,
            State::Busy => 2,
            State::Idle => 3,
            State::Gone => 4,
        };
        (state, holder.holds != Holds::All, std::cmp::Reverse(holder.rate), std::cmp::Reverse(holder.received))
    };
    holders.sort_by_key(rank);
    holders.truncate(MOST_HOLDERS);
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_send_come_first_and_the_list_is_bounded() {
        let seen = |state, rate| HolderSeen {
            peer: Address::new("h:1").unwrap(),
            holds: Holds::All,
            state,
            fetches: 0,
            received: 0,
            rate,
            is_far: false,
        };
        let mut holders = vec![seen(State::Idle, 0); 100];
        holders.extend([seen(State::Busy, 0), seen(State::Sending, 1), seen(State::Sending, 2)]);
        let told = foremost(holders);
        assert_eq!(told.len(), MOST_HOLDERS);
        assert_eq!(told[..3], [seen(State::Sending, 2), seen(State::Sending, 1), seen(State::Busy, 0)]);
    }
}
