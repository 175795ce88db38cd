//! Whatever happens to a transfer, its promises hold; what happened is recorded, and replays to the same decisions.

use drizzle_engine::{meter::Intake, schedule::Offence};
use drizzle_proto::{ChunkSet, holder::Holder};
use proptest::prelude::*;

use drizzle_proto::ChunkIndex;

use super::{
    tests::{Bench, MS, peer},
    *,
};
use crate::{
    fetch::{FetchFailure, News, error::FetchError},
    store::write::StoredChunk,
};

/// What may happen to a download, chosen by a number where it depends on the state.
#[derive(Debug, Clone)]
enum Happening {
    Pass(u64),
    Wake,
    Holds(u8),
    Gone(u8),
    Synced,
    Stored(usize),
    /// Another chunk was written than the one that was fetched.
    StoredOther(usize),
    /// The holder chose: the chunk asked for, or an alternative.
    Bound(usize, prop::sample::Index),
    Busy(usize),
    Offends(usize, Offence),
    Counted(u64),
    News(usize, News),
    Recorded,
    Slept(u64),
    /// The chunks to prove were read, and those with a bit set are sound.
    Proved(u16),
    Cancelled,
}

fn happenings() -> impl Strategy<Value = Happening> {
    let offences = proptest::sample::select(&Offence::ALL[..]);
    prop_oneof![
        4 => (0u64..2_000).prop_map(Happening::Pass),
        4 => Just(Happening::Wake),
        2 => (1u8..5).prop_map(Happening::Holds),
        1 => (1u8..5).prop_map(Happening::Gone),
        2 => Just(Happening::Synced),
        9 => (0usize..8).prop_map(Happening::Stored),
        5 => (0usize..8, any::<prop::sample::Index>()).prop_map(|(nth, chosen)| Happening::Bound(nth, chosen)),
        2 => (0usize..8).prop_map(Happening::Busy),
        2 => (0usize..8, offences).prop_map(|(nth, offence)| Happening::Offends(nth, offence)),
        2 => (0u64..1000).prop_map(Happening::Counted),
        2 => (0usize..8).prop_map(|nth| Happening::News(nth, News::AwaitsRoom)),
        2 => (0usize..8).prop_map(|nth| Happening::News(nth, News::HasRoom)),
        2 => Just(Happening::Recorded),
        1 => (2_000u64..100_000).prop_map(Happening::Slept),
        3 => prop_oneof![Just(u16::MAX), any::<u16>()].prop_map(Happening::Proved),
    ]
}

fn rare_happenings() -> impl Strategy<Value = Happening> {
    prop_oneof![
        60 => happenings(),
        1 => (0usize..8).prop_map(Happening::StoredOther),
        1 => Just(Happening::Cancelled),
    ]
}

/// An input once more: some errors cannot be cloned.
fn again(input: &Input) -> Input {
    match input {
        Input::Begin => Input::Begin,
        Input::Cancelled => Input::Cancelled,
        Input::Located(Located::Change(change)) => Input::Located(Located::Change(change.clone())),
        Input::Located(Located::Synced) => Input::Located(Located::Synced),
        Input::Fetched(id, Ok(stored)) => Input::Fetched(*id, Ok(*stored)),
        Input::Fetched(id, Err(FetchFailure::Holder(error))) => {
            Input::Fetched(*id, Err(FetchFailure::Holder(error.clone())))
        }
        Input::Recorded(Ok(()), took) => Input::Recorded(Ok(()), *took),
        Input::Proved { checked, sound } => Input::Proved { checked: checked.clone(), sound: sound.clone() },
        Input::Counted(counts) => Input::Counted(counts.clone()),
        Input::Slept(asleep) => Input::Slept(*asleep),
        Input::News(id, news) => Input::News(*id, *news),
        Input::Woken => Input::Woken,
        other => panic!("no test records {other:?}"),
    }
}

/// Makes things happen, records what was applied when, and checks the promises of the module on the way.
struct Recorder {
    bench: Bench,
    record: Vec<(Duration, Input)>,
    start: Instant,
    /// What was written and is not known to be damaged; and what the record vouched for at the start.
    written: ChunkSet,
    proving: Option<ChunkSet>,
    recording: bool,
    /// Fetches whose holder chose.
    bound: BTreeSet<FetchId>,
    ended: bool,
}

const CHUNKS: u64 = 12;

impl Recorder {
    fn new(unproved: &str) -> Self {
        let bench = Bench::new(CHUNKS, unproved, unproved);
        let written = bench.transfer.stored().clone();
        let start = bench.now;
        let proving = (!written.is_empty()).then(|| written.clone());
        let (record, bound) = (Vec::new(), BTreeSet::new());
        Self { bench, record, start, written, proving, recording: false, bound, ended: false }
    }

    /// What a fetch is for at present.
    fn chunk(&self, fetch: &Fetch) -> ChunkIndex {
        self.bench.transfer.scheduler.chunk(fetch.id).expect("it is in flight")
    }

    fn happens(&mut self, happening: Happening) {
        let nth = |n: usize| self.bench.fetches.get(n % self.bench.fetches.len().max(1)).cloned();
        let holder = |change| Input::Located(Located::Change(change));
        let input = match happening {
            Happening::Pass(ms) => {
                self.bench.now += Duration::from_millis(ms);
                return;
            }
            Happening::Wake => {
                self.bench.now = self.bench.transfer.wake_at(self.bench.now).max(self.bench.now);
                Input::Woken
            }
            Happening::Holds(n) => {
                let chunks = ChunkSet::full(self.bench.transfer.job.wanted.count());
                holder(HolderChange::Is(Holder { peer: peer(n), chunks }))
            }
            Happening::Gone(n) => holder(HolderChange::Gone(peer(n).id())),
            Happening::Synced => Input::Located(Located::Synced),
            Happening::Stored(n) => {
                let Some(fetch) = nth(n) else { return };
                let chunk = self.chunk(&fetch);
                self.written.insert(chunk);
                Input::Fetched(fetch.id, Ok(StoredChunk::pretend(self.bench.file, chunk)))
            }
            Happening::StoredOther(n) => {
                let Some(fetch) = nth(n) else { return };
                let count = self.bench.transfer.job.wanted.count();
                let other = count.index((self.chunk(&fetch).get() + 1) % count.get()).unwrap();
                Input::Fetched(fetch.id, Ok(StoredChunk::pretend(self.bench.file, other)))
            }
            Happening::Bound(n, chosen) => {
                let Some(fetch) = nth(n) else { return };
                let chosen = *chosen.get(&[&[fetch.chunk][..], &fetch.alternatives].concat());
                // A fetch is bound once.
                if !self.bound.insert(fetch.id) {
                    return;
                }
                Input::News(fetch.id, News::Bound(chosen))
            }
            Happening::Busy(n) => {
                let Some(fetch) = nth(n) else { return };
                Input::Fetched(fetch.id, Err(FetchFailure::Holder(FetchError::Busy)))
            }
            Happening::Offends(n, offence) => {
                let Some(fetch) = nth(n) else { return };
                Input::Fetched(fetch.id, Err(FetchFailure::Holder(FetchError::Offence(offence, "x".into()))))
            }
            Happening::Counted(bytes) => {
                let received = self.bench.fetches.iter().map(|fetch| (fetch.holder.id(), bytes)).collect();
                let had = |fetch: &Fetch| (fetch.id, 1000 * u32::try_from(bytes).unwrap());
                let had = self.bench.fetches.iter().map(had).collect();
                let intake = Intake { rate: bytes as f64, best: 20.0 };
                Input::Counted(Counts { received, had, wire: bytes, intake, ..Counts::default() })
            }
            Happening::Slept(ms) => {
                let asleep = Duration::from_millis(ms);
                self.bench.now += asleep;
                Input::Slept(asleep)
            }
            Happening::News(n, news) => {
                let Some(fetch) = nth(n) else { return };
                Input::News(fetch.id, news)
            }
            Happening::Recorded if std::mem::take(&mut self.recording) => Input::Recorded(Ok(()), MS),
            Happening::Recorded => return,
            Happening::Proved(sound) => {
                let Some(checked) = self.proving.take() else { return };
                let mut kept = checked.clone();
                for chunk in checked.iter().filter(|chunk| sound >> chunk.get() & 1 == 0) {
                    kept.remove(chunk);
                    self.written.remove(chunk);
                }
                Input::Proved { checked, sound: kept }
            }
            Happening::Cancelled => Input::Cancelled,
        };
        self.apply(input);
    }

    fn apply(&mut self, input: Input) {
        self.record.push((self.bench.now - self.start, again(&input)));
        if let Input::Fetched(id, _) = &input {
            self.bench.fetches.retain(|fetch| fetch.id != *id);
        }
        let mut asked: BTreeSet<FetchId> = self.bench.fetches.iter().map(|fetch| fetch.id).collect();
        let effects = self.bench.apply(input);
        if self.ended {
            assert!(effects.is_empty(), "after the end: {effects:?}");
            return;
        }
        for effect in &effects {
            match effect {
                Effect::Fetch(fetch) => {
                    assert!(asked.insert(fetch.id), "started twice");
                    assert!(!self.written.contains(fetch.chunk), "chunk {} is stored", fetch.chunk);
                }
                // Also one that this very input started: a download gives up after it looked for what to fetch.
                Effect::Abort(id) => assert!(asked.remove(id), "no fetch {id:?} is on its way"),
                Effect::Offer { stored, .. } => assert!(self.written.contains(stored.chunk())),
                Effect::Record(stored) => {
                    assert!(!std::mem::replace(&mut self.recording, true), "one record at a time");
                    assert!(stored.difference(&self.written).is_empty(), "only what is written is recorded");
                }
                Effect::Seek(chunks) => {
                    assert!(chunks.difference(self.bench.transfer.missing()).is_empty(), "only what is missing");
                }
                Effect::Prove(chunks) => {
                    assert!(self.proving.replace(chunks.clone()).is_none(), "one proof at a time");
                }
                Effect::End(ended) => {
                    self.ended = true;
                    assert!(self.bench.fetches.is_empty(), "every fetch was given up");
                    if matches!(ended, Ended::Complete) {
                        assert!(self.written.is_full() && self.proving.is_none(), "stored and proved");
                    }
                }
                Effect::Tell(_) | Effect::TakeBack(_) | Effect::Forget(_) => {}
            }
        }
        assert_eq!(*self.bench.transfer.stored(), self.written, "what is stored was written, and the other way round");
    }
}

proptest! {
    #[test]
    fn recorded_events_replay_to_the_same_decisions(
        unproved in prop_oneof![Just(""), Just("0-3,7")],
        happenings in proptest::collection::vec(rare_happenings(), 1..200),
    ) {
        let mut recorder = Recorder::new(unproved);
        for happening in happenings {
            recorder.happens(happening);
        }
        let mut replay = Bench::new(CHUNKS, unproved, unproved);
        for (at, input) in recorder.record {
            replay.now = replay.now.max(replay.started + at);
            replay.apply(input);
        }
        prop_assert_eq!(recorder.bench.log, replay.log);
    }

    /// Nothing that happens keeps a download from its end once an honest holder serves what is missing.
    #[test]
    fn a_download_ends_whatever_happened_before(
        unproved in prop_oneof![Just(""), Just("0-3,7")],
        happenings in proptest::collection::vec(happenings(), 0..100),
    ) {
        let mut recorder = Recorder::new(unproved);
        let honest = [Happening::Synced, Happening::Holds(9)];
        for happening in happenings.into_iter().chain(honest) {
            recorder.happens(happening);
        }
        for _ in 0..1000 {
            if recorder.ended {
                break;
            }
            recorder.happens(Happening::Proved(u16::MAX));
            recorder.happens(Happening::Recorded);
            match recorder.bench.fetches.iter().position(|fetch| fetch.holder == peer(9)) {
                Some(served) => recorder.happens(Happening::Stored(served)),
                // The others serve nothing any more.
                None if !recorder.bench.fetches.is_empty() => recorder.happens(Happening::Offends(0, Offence::Stalled)),
                None => recorder.happens(Happening::Wake),
            }
        }
        prop_assert!(recorder.ended);
    }
}
