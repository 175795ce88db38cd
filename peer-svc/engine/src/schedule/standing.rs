//! How each holder stands with a download now: for those that ask why it is slow.
//!
//! What holds (each line has a test):
//! - every holder that has something, carries a fetch or did something wrong is told once;
//! - one that rests for an offence is told as avoided, and for how long; one whose slots are taken is busy, and no more.

use std::time::{Duration, Instant};

use drizzle_proto::PeerInfo;

use super::{Scheduler, holders::Held};

/// What a holder has of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Nothing any more.
    Nothing,
    /// So many chunks.
    Part(u32),
    /// All of it.
    All,
}

/// How a holder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It left, or lost what it had.
    Gone,
    /// It did something wrong, and is asked again after so long.
    Avoided(Duration),
    /// Others have its upload slots.
    Busy,
    /// It was asked for chunks that are on their way.
    Sending,
    /// It could be asked.
    Idle,
}

/// One holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which, and where.
    pub peer: PeerInfo,
    /// What it has.
    pub holds: Holds,
    /// How it stands.
    pub state: State,
    /// Fetches that it carries.
    pub fetches: usize,
}

impl Scheduler {
    /// How each holder stands now. Looks at each of them.
    pub fn standings(&self, now: Instant) -> impl Iterator<Item = Standing> {
        self.holders.iter().map(move |holder| {
            let holds = match &holder.held {
                Held::Nothing => Holds::Nothing,
                Held::All => Holds::All,
                Held::Part(chunks) => Holds::Part(chunks.len()),
            };
            let state = if let Some(left) = holder.conduct.avoided_for(now) {
                State::Avoided(left)
            } else if holder.load > 0 {
                State::Sending
            } else if holder.held.is_empty() {
                State::Gone
            } else if holder.conduct.refuses(holder.most) {
                State::Busy
            } else {
                State::Idle
            };
            Standing { peer: holder.peer.clone(), holds, state, fetches: holder.load }
        })
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Address, ChunkCount, ChunkSet, Labels, PeerId};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::schedule::{Limits, Offence, Outcome};

    #[test]
    fn each_holder_is_told_once_and_as_it_stands() {
        let count = ChunkCount::new(4).unwrap();
        let all = ChunkSet::full(count);
        let mut scheduler = Scheduler::new(&all, Limits { in_flight: 8, per_holder: 1 });
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let peer = |n: u8| PeerInfo::new(PeerId::from_bytes([n; 16]), Address::new("h:1").unwrap(), Labels::default());
        for n in 1..=4 {
            scheduler.holder_is(peer(n), all.clone());
        }
        let fetches: Vec<_> = std::iter::from_fn(|| scheduler.next(now, &mut rng)).collect();
        assert_eq!(fetches.len(), 4);
        let of = |n: u8| fetches.iter().find(|fetch| fetch.holder.id() == peer(n).id()).unwrap().id;
        scheduler.finished(of(1), Outcome::Failed(Offence::WrongBytes), now, &mut rng);
        scheduler.finished(of(2), Outcome::Busy, now, &mut rng);
        scheduler.finished(of(3), Outcome::Cancelled, now, &mut rng);
        scheduler.holder_gone(peer(3).id());
        let standings: Vec<Standing> = scheduler.standings(now).collect();
        let state = |n: u8| {
            let mut told = standings.iter().filter(|standing| standing.peer.id() == peer(n).id());
            let standing = told.next().unwrap();
            assert!(told.next().is_none(), "once");
            (standing.state, standing.holds, standing.fetches)
        };
        let (avoided, holds, _) = state(1);
        assert!(matches!(avoided, State::Avoided(left) if left > Duration::from_secs(20)), "{avoided:?}");
        assert_eq!(holds, Holds::Part(3), "not the chunk that it gave wrong bytes for");
        assert_eq!(state(2), (State::Busy, Holds::All, 0));
        assert_eq!(state(3), (State::Gone, Holds::Nothing, 0));
        assert_eq!(state(4), (State::Sending, Holds::All, 1));
        // It is asked again once its rest is over.
        let later = now + Duration::from_secs(31);
        let first = scheduler.standings(later).find(|standing| standing.peer.id() == peer(1).id()).unwrap();
        assert_eq!(first.state, State::Idle);
    }
}
