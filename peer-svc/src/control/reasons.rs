//! The reasons for a download's pace, on the wire.

use drizzle_engine::schedule::{Holds, State};
use drizzle_proto::wire;

use super::convert::{limited_by, millis};
use crate::download::{Explanation, HolderSeen};

impl From<&Explanation> for wire::Explanation {
    fn from(reasons: &Explanation) -> Self {
        use wire::explanation::State;
        let state = match &reasons.ended {
            None => State::Running,
            Some(Ok(())) => State::Done,
            Some(Err(_)) => State::Failed,
        };
        let shares = reasons.shares.iter().map(|(cause, time)| {
            let by = limited_by(Some(*cause));
            wire::LimitShare { by, millis: millis(*time) }
        });
        Self {
            name: reasons.name.to_string(),
            state: state.into(),
            failure: reasons.ended.clone().and_then(Result::err).unwrap_or_default(),
            elapsed_millis: millis(reasons.elapsed),
            bytes_wanted: reasons.wanted,
            bytes_stored: reasons.stored,
            rate: reasons.rate,
            limited_by: limited_by(reasons.limited_by),
            shares: shares.collect(),
            holders: reasons.holders.iter().map(Into::into).collect(),
            holders_known: count(reasons.holders_known),
            unheld: Some((&reasons.unheld.ranges()).into()),
            avoided: Some((&reasons.avoided.ranges()).into()),
            blamed: reasons.blamed.iter().map(Into::into).collect(),
        }
    }
}

impl From<&HolderSeen> for wire::HolderSeen {
    fn from(holder: &HolderSeen) -> Self {
        use wire::holder_seen::State as Wire;
        let (state, avoided_millis) = match holder.state {
            State::Sending => (Wire::Sending, 0),
            State::Idle => (Wire::Idle, 0),
            State::Busy => (Wire::Busy, 0),
            State::Avoided(left) => (Wire::Avoided, millis(left)),
            State::Gone => (Wire::Gone, 0),
        };
        let (full, chunks) = match holder.holds {
            Holds::All => (true, 0),
            Holds::Part(chunks) => (false, chunks),
            Holds::Nothing => (false, 0),
        };
        Self {
            peer: holder.peer.to_string(),
            state: state.into(),
            full,
            chunks,
            in_flight: count(holder.fetches),
            bytes: holder.received,
            rate: holder.rate,
            avoided_millis,
            far: holder.is_far,
        }
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
