//! A transfer driven by hand: no store, no tracker, no runtime, no clock.

use drizzle_engine::{holder_view::Withdrawal, schedule::Offence, waiting::GivesUp};
use drizzle_proto::{
    Address, ChunkRanges, Digest, FileId, FileName, Labels, Layout, Manifest, PeerId, PeerInfo, holder::Holder,
};

use super::*;
use crate::{
    fetch::{FetchFailure, News, error::FetchError},
    store::write::StoredChunk,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const MS: Duration = Duration::from_millis(1);

fn manifest(chunks: u64) -> Manifest {
    let layout = Layout::new(chunks << 14, 1 << 14).unwrap();
    Manifest::new(layout, vec![Digest::of(b""); usize::try_from(chunks).unwrap()]).unwrap()
}

pub(super) fn peer(n: u8) -> PeerInfo {
    let address = Address::new(&format!("host{n}:1")).unwrap();
    PeerInfo::new(PeerId::from_bytes([n; 16]), address, Labels::default())
}

fn counted(received: BTreeMap<PeerId, u64>) -> Input {
    Input::Counted(Counts { received, ..Counts::default() })
}

/// A transfer with its clock, and everything that it said so far.
pub(super) struct Bench {
    pub(super) transfer: Transfer,
    pub(super) file: FileId,
    pub(super) started: Instant,
    pub(super) now: Instant,
    pub(super) fetches: Vec<Fetch>,
    pub(super) log: Vec<String>,
}

impl Bench {
    pub(super) fn new(chunks: u64, stored: &str, unproved: &str) -> Self {
        let manifest = manifest(chunks);
        let count = manifest.layout().chunk_count();
        let job = Job {
            name: FileName::new("a").unwrap(),
            holders: Vec::new(),
            wanted: ChunkSet::full(count),
            destination: None,
            timeout: PATIENCE,
            seed: 7,
            manifest,
        };
        let now = Instant::now();
        let (stored, unproved) = (set(&job.manifest, stored), set(&job.manifest, unproved));
        let file = job.manifest.id();
        let transfer = Transfer::new(job, stored, unproved, now);
        let mut bench = Self { transfer, file, started: now, now, fetches: Vec::new(), log: Vec::new() };
        bench.apply(Input::Begin);
        bench
    }

    /// With a full holder, and the first snapshot complete.
    pub(super) fn located(chunks: u64, holders: &[u8]) -> Self {
        let mut bench = Self::new(chunks, "", "");
        for holder in holders {
            bench.holds(*holder);
        }
        bench.apply(Input::Located(Located::Synced));
        bench
    }

    pub(super) fn holds(&mut self, n: u8) -> Vec<Effect> {
        let chunks = ChunkSet::full(self.transfer.job.wanted.count());
        self.apply(Input::Located(Located::Change(HolderChange::Is(Holder { peer: peer(n), chunks }))))
    }

    pub(super) fn apply(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.transfer.apply(input, self.now);
        for effect in &effects {
            self.log.push(format!("{effect:?}"));
            match effect {
                Effect::Fetch(fetch) => self.fetches.push(fetch.clone()),
                Effect::Abort(id) => self.fetches.retain(|fetch| fetch.id != *id),
                _ => {}
            }
        }
        effects
    }

    pub(super) fn stored(&mut self, fetch: &Fetch) -> Vec<Effect> {
        self.fetches.retain(|other| other.id != fetch.id);
        let stored = StoredChunk::pretend(self.file, fetch.chunk);
        self.apply(Input::Fetched(fetch.id, Ok(stored)))
    }

    pub(super) fn failed(&mut self, fetch: &Fetch, failure: FetchFailure) -> Vec<Effect> {
        self.fetches.retain(|other| other.id != fetch.id);
        self.apply(Input::Fetched(fetch.id, Err(failure)))
    }

    fn offends(&mut self, fetch: &Fetch, offence: Offence) -> Vec<Effect> {
        self.failed(fetch, FetchFailure::Holder(FetchError::Offence(offence, "x".into())))
    }

    fn wake(&mut self) -> Vec<Effect> {
        self.now = self.transfer.wake_at(self.now);
        self.apply(Input::Woken)
    }
}

fn set(manifest: &Manifest, ranges: &str) -> ChunkSet {
    let ranges: ChunkRanges = if ranges.is_empty() { ChunkRanges::default() } else { ranges.parse().unwrap() };
    ChunkSet::from_ranges(manifest.layout().chunk_count(), &ranges).unwrap()
}

fn end(effects: &[Effect]) -> Option<&Ended> {
    let ends: Vec<_> =
        effects.iter().filter_map(|e| if let Effect::End(ended) = e { Some(ended) } else { None }).collect();
    assert!(ends.len() <= 1);
    if !ends.is_empty() {
        assert!(matches!(effects.last(), Some(Effect::End(_))), "nothing follows the end: {effects:?}");
    }
    ends.first().copied()
}

pub(super) fn failure(effects: &[Effect]) -> &Failure {
    match end(effects) {
        Some(Ended::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_asked_before_the_holders_are_known_and_all_ends_with_the_last_chunk() {
    let mut bench = Bench::new(3, "", "");
    assert!(matches!(&bench.log[..], [started] if started.contains("Started")));
    bench.holds(1);
    assert!(bench.fetches.is_empty(), "the rarest chunk is not known yet");
    bench.apply(Input::Located(Located::Synced));
    assert_eq!(bench.fetches.len(), 3);
    for nth in 0..3 {
        let fetch = bench.fetches[0].clone();
        let effects = bench.stored(&fetch);
        assert!(
            effects
                .iter()
                .any(|effect| matches!(effect, Effect::Offer { stored, .. } if stored.chunk() == fetch.chunk))
        );
        assert_eq!(end(&effects).is_some(), nth == 2, "{effects:?}");
        if nth == 2 {
            assert!(matches!(end(&effects), Some(Ended::Complete)));
        }
    }
    assert!(bench.apply(Input::Cancelled).is_empty(), "it is over");
}

#[test]
fn the_last_progress_tells_every_stored_byte_and_its_source_whenever_they_were_counted_last() {
    let mut bench = Bench::located(4, &[1, 2]);
    let mut told = None;
    while let Some(fetch) = bench.fetches.first().cloned() {
        for effect in bench.stored(&fetch) {
            told = if let Effect::Tell(DownloadEvent::Progress(progress)) = effect { Some(progress) } else { told };
        }
    }
    let told = told.expect("the end is told");
    let given: u64 = told.sources.iter().map(|source| source.bytes).sum();
    assert_eq!((told.stored, given), (4 << 14, 4 << 14), "{told:?}");
}

#[test]
fn a_file_that_is_all_here_is_complete_at_once() {
    let bench = Bench::new(3, "0-2", "");
    assert!(bench.log.last().unwrap().contains("Complete"), "{:?}", bench.log);
    assert!(Bench::new(0, "", "").log.last().unwrap().contains("Complete"), "an empty file");
}

#[test]
fn it_can_be_cancelled_at_each_step() {
    let steps: [fn(&mut Bench); 5] = [
        |_| {},
        |bench| _ = bench.holds(1),
        |bench| {
            bench.holds(1);
            bench.apply(Input::Located(Located::Synced));
        },
        |bench| {
            bench.holds(1);
            bench.apply(Input::Located(Located::Synced));
            let fetch = bench.fetches[0].clone();
            bench.stored(&fetch);
        },
        |bench| {
            bench.holds(1);
            bench.apply(Input::Located(Located::Synced));
            bench.now += RECORD;
            bench.apply(Input::Woken);
        },
    ];
    for (at, step) in steps.into_iter().enumerate() {
        for (input, is_shutdown) in [(Input::Cancelled, false), (Input::Shutdown, true)] {
            let mut bench = Bench::new(4, "", "");
            step(&mut bench);
            let running = bench.fetches.len();
            let effects = bench.apply(input);
            let aborts = effects.iter().filter(|effect| matches!(effect, Effect::Abort(_))).count();
            assert_eq!(aborts, running, "step {at}: every fetch is given up");
            assert_eq!(matches!(failure(&effects), Failure::Shutdown), is_shutdown);
        }
    }
}

#[test]
fn the_last_chunk_and_the_last_holder_at_once() {
    let mut bench = Bench::located(1, &[1]);
    let fetch = bench.fetches[0].clone();
    let effects = bench.apply(Input::Located(Located::Change(HolderChange::Gone(peer(1).id()))));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Forget(gone) if *gone == peer(1).id())));
    assert!(matches!(end(&bench.stored(&fetch)), Some(Ended::Complete)), "what was on its way still counts");
}

#[test]
fn a_busy_holder_is_asked_again_and_not_blamed() {
    let mut bench = Bench::located(1, &[1]);
    let fetch = bench.fetches[0].clone();
    bench.failed(&fetch, FetchFailure::Holder(FetchError::Busy));
    assert!(bench.fetches.is_empty());
    assert!(bench.log.iter().any(|said| said.contains("Waiting(Busy)")), "{:?}", bench.log);
    bench.wake();
    let again = bench.fetches[0].clone();
    assert!(matches!(end(&bench.stored(&again)), Some(Ended::Complete)));
    assert!(bench.transfer.blamed().is_empty());
}

#[test]
fn an_offence_is_told_and_the_chunk_comes_from_another_holder() {
    let mut bench = Bench::located(1, &[1, 2]);
    let bad = bench.fetches[0].clone();
    bench.offends(&bad, Offence::WrongBytes);
    let good = bench.fetches[0].clone();
    assert_ne!(good.holder, bad.holder);
    assert!(matches!(end(&bench.stored(&good)), Some(Ended::Complete)));
    let [blamed] = &bench.transfer.blamed()[..] else { panic!("one offence") };
    assert_eq!((&blamed.peer, blamed.offence), (bad.holder.address(), Offence::WrongBytes));
}

#[test]
fn it_gives_up_after_its_patience_and_says_why() {
    let mut bench = Bench::located(2, &[]);
    let effects = loop {
        let effects = bench.wake();
        if end(&effects).is_some() {
            break effects;
        }
    };
    let Failure::GaveUp { why: GivesUp::NoProgress(Reason::NoSupply(supply)), patience } = failure(&effects) else {
        panic!("{effects:?}")
    };
    assert_eq!((supply.unheld.len(), *patience), (2, PATIENCE));
}

#[test]
fn wrong_bytes_and_no_honest_holder_is_a_matter_of_integrity() {
    let mut bench = Bench::located(1, &[1]);
    let fetch = bench.fetches[0].clone();
    bench.offends(&fetch, Offence::WrongBytes);
    bench.now += PATIENCE;
    let effects = bench.apply(Input::Woken);
    assert!(matches!(failure(&effects), Failure::GaveUp { why: GivesUp::Tainted(chunks), .. } if chunks.len() == 1));
}

/// What is here of the chunk of each fetch.
fn had(bench: &Bench, had: u32) -> Input {
    let had = bench.fetches.iter().map(|fetch| (fetch.id, had)).collect();
    Input::Counted(Counts { had, ..Counts::default() })
}

#[test]
fn new_bytes_of_a_chunk_are_progress_and_the_same_again_are_not() {
    let mut bench = Bench::located(1, &[1]);
    for kib in [4, 8, 12] {
        bench.now += PATIENCE - MS;
        let input = had(&bench, kib << 10);
        assert!(end(&bench.apply(input)).is_none());
    }
    bench.now += PATIENCE / 2;
    let fetch = bench.fetches[0].clone();
    bench.offends(&fetch, Offence::Stalled);
    bench.wake();
    let input = had(&bench, 4 << 10);
    bench.apply(input);
    bench.now += PATIENCE;
    let input = had(&bench, 12 << 10);
    assert!(end(&bench.apply(input)).is_some(), "no more than was here before");
}

#[test]
fn time_asleep_is_no_wait_and_blames_no_holder() {
    let mut bench = Bench::located(1, &[1, 2]);
    let fetch = bench.fetches[0].clone();
    let asleep = 10 * PATIENCE;
    bench.now += asleep;
    let effects = bench.apply(Input::Slept(asleep));
    assert!(end(&effects).is_none(), "{effects:?}");
    assert_eq!(bench.fetches.len(), 1, "the holder was not slow");
    bench.offends(&fetch, Offence::BrokeOff);
    assert!(bench.transfer.blamed().is_empty());
    let again = bench.fetches[0].clone();
    bench.offends(&again, Offence::Stalled);
    assert_eq!(bench.transfer.blamed().len(), 1, "what happens afterwards counts");
    bench.now += PATIENCE;
    assert!(end(&bench.apply(Input::Woken)).is_some(), "the whole patience, and no more");
}

#[test]
fn only_the_chunk_that_was_written_counts() {
    let mut bench = Bench::located(2, &[1]);
    let fetch = bench.fetches[0].clone();
    let other = bench.fetches[1].chunk;
    let stored = StoredChunk::pretend(bench.file, other);
    let effects = bench.apply(Input::Fetched(fetch.id, Ok(stored)));
    assert!(matches!(failure(&effects), Failure::Internal(text) if text.contains("was written where")));
    assert!(bench.transfer.stored().is_empty());
}

#[test]
fn a_panic_is_an_internal_error_and_a_full_disk_is_not() {
    let mut bench = Bench::located(1, &[1]);
    let fetch = bench.fetches[0].clone();
    assert!(matches!(failure(&bench.failed(&fetch, FetchFailure::Internal("x".into()))), Failure::Internal(_)));
    let mut bench = Bench::located(1, &[1]);
    let fetch = bench.fetches[0].clone();
    let full = std::io::ErrorKind::StorageFull.into();
    assert!(matches!(failure(&bench.failed(&fetch, FetchFailure::Storage(full))), Failure::Storage(_)));
    let mut bench = Bench::located(1, &[1]);
    assert!(matches!(failure(&bench.apply(Input::Panicked("x".into()))), Failure::Internal(_)));
}

#[test]
fn an_owners_withdrawal_ends_it() {
    let mut bench = Bench::located(2, &[1]);
    let effects = bench.apply(Input::Located(Located::Withdrawn(Withdrawal::Released)));
    assert!(matches!(failure(&effects), Failure::Withdrawn(Withdrawal::Released)));
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Abort(_))).count(), 2);
}

#[test]
fn a_second_copy_that_loses_is_given_up() {
    let mut bench = Bench::located(1, &[1, 2]);
    let slow = bench.fetches[0].clone();
    bench.now += Duration::from_secs(30);
    bench.apply(counted([(slow.holder.id(), 1)].into()));
    let copy = bench.fetches.iter().find(|fetch| fetch.id != slow.id).expect("a second copy").clone();
    assert_ne!(copy.holder, slow.holder);
    let effects = bench.stored(&copy);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Abort(id) if *id == slow.id)), "{effects:?}");
    assert!(matches!(end(&effects), Some(Ended::Complete)));
}

#[test]
fn recorded_chunks_are_offered_at_once_and_proved_while_the_rest_comes() {
    let mut bench = Bench::new(4, "0-2", "0-2");
    assert!(bench.log.iter().any(|said| said.starts_with("Prove(") && said.contains("0-2")), "{:?}", bench.log);
    bench.holds(1);
    bench.apply(Input::Located(Located::Synced));
    let [fetch] = &bench.fetches.clone()[..] else { panic!("only the missing chunk: {:?}", bench.fetches) };
    let effects = bench.stored(fetch);
    assert!(end(&effects).is_none(), "what only the record vouches for is not proved yet");
    let recorded = set(&bench.transfer.job.manifest, "0-2");
    let effects = bench.apply(Input::Proved { checked: recorded.clone(), sound: recorded });
    assert!(matches!(end(&effects), Some(Ended::Complete)));
}

#[test]
fn a_recorded_chunk_that_is_damaged_is_fetched_again() {
    let mut bench = Bench::new(3, "0-2", "0-2");
    bench.holds(1);
    bench.apply(Input::Located(Located::Synced));
    assert!(bench.fetches.is_empty());
    let manifest = bench.transfer.job.manifest.clone();
    let effects = bench.apply(Input::Proved { checked: set(&manifest, "0-2"), sound: set(&manifest, "0,2") });
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::TakeBack(chunks) if chunks.ranges().to_string() == "1"))
    );
    let fetch = bench.fetches[0].clone();
    assert_eq!(fetch.chunk.get(), 1);
    assert!(matches!(end(&bench.stored(&fetch)), Some(Ended::Complete)));
}

#[test]
fn what_is_still_to_be_checked_is_told_as_such_and_not_as_done() {
    let mut bench = Bench::new(200, "0-199", "0-199");
    let chunk = u64::from(bench.transfer.job.manifest.layout().chunk_size());
    let told = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Tell(DownloadEvent::Progress(progress)) => Some((progress.stored, progress.unchecked)),
            _ => None,
        })
    };
    assert_eq!(told(&bench.apply(counted(BTreeMap::new()))), Some((200 * chunk, 200 * chunk)));
    let checked = first(&bench.transfer.unproved, PROVE_AT_ONCE);
    bench.apply(Input::Proved { sound: checked.clone(), checked });
    assert_eq!(told(&bench.apply(counted(BTreeMap::new()))), Some((200 * chunk, 136 * chunk)));
}

#[test]
fn a_long_proof_is_no_standstill() {
    let mut bench = Bench::new(200, "0-199", "0-199");
    let mut proved = 0;
    loop {
        bench.now += PATIENCE - MS;
        let checked = first(&bench.transfer.unproved, PROVE_AT_ONCE);
        proved += checked.len();
        let effects = bench.apply(Input::Proved { sound: checked.clone(), checked });
        match end(&effects) {
            None => assert!(proved < 200),
            Some(Ended::Complete) => break,
            Some(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(proved, 200);
}

#[test]
fn records_are_written_one_at_a_time_and_take_a_small_share_of_the_time() {
    let mut bench = Bench::located(8, &[1]);
    let is_record = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Record(_)));
    let fetch = bench.fetches[0].clone();
    assert!(is_record(&bench.stored(&fetch)), "the first one at once");
    let fetch = bench.fetches[0].clone();
    assert!(!is_record(&bench.stored(&fetch)), "one at a time");
    // A slow disk: it took three seconds, so the next one is due after thirty.
    assert!(!is_record(&bench.apply(Input::Recorded(Ok(()), Duration::from_secs(3)))));
    bench.now += Duration::from_secs(29);
    assert!(!is_record(&bench.apply(counted([(peer(1).id(), 1)].into()))));
    bench.now += Duration::from_secs(1);
    assert!(is_record(&bench.apply(counted([(peer(1).id(), 2)].into()))));
    assert!(!is_record(&bench.apply(Input::Recorded(Ok(()), MS))), "nothing is new");
}

#[test]
fn a_download_without_memory_says_so_and_one_whose_holders_are_silent_says_that() {
    let mut bench = Bench::located(2, &[1]);
    let [first, second] = &bench.fetches.clone()[..] else { panic!("two fetches") };
    let waits = |reason: Reason| move |effect: &Effect| matches!(effect, Effect::Tell(DownloadEvent::Waiting(r)) if *r == reason);
    let effects = bench.apply(Input::News(first.id, News::AwaitsRoom));
    assert!(!effects.iter().any(waits(Reason::NoMemory)), "the other one asks its holder: {effects:?}");
    let effects = bench.apply(Input::News(second.id, News::AwaitsRoom));
    assert!(effects.iter().any(waits(Reason::NoMemory)), "{effects:?}");
    let effects = bench.apply(Input::Woken);
    assert!(!effects.iter().any(waits(Reason::NoMemory)), "told once");
    bench.apply(Input::News(first.id, News::HasRoom));
    bench.now += PATIENCE;
    let effects = bench.apply(Input::Woken);
    let Failure::GaveUp { why: GivesUp::NoProgress(reason), .. } = failure(&effects) else { panic!("{effects:?}") };
    assert_eq!(*reason, Reason::Silence, "one peer was asked and sent nothing");
}

#[test]
fn waiting_for_memory_is_no_patience_spent_and_no_holder_is_overdue_meanwhile() {
    let mut bench = Bench::located(1, &[1, 2]);
    let fetch = bench.fetches[0].clone();
    bench.apply(Input::News(fetch.id, News::AwaitsRoom));
    for _ in 0..3 {
        bench.now += PATIENCE;
        let effects = bench.apply(Input::Woken);
        assert!(end(&effects).is_none(), "{effects:?}");
        assert_eq!(bench.fetches.len(), 1, "no second copy: the first was not asked for yet");
    }
    bench.now += PATIENCE - MS;
    bench.apply(Input::News(fetch.id, News::HasRoom));
    assert_eq!(bench.transfer.wake_at(bench.now), bench.now + 2 * Duration::from_secs(1), "overdue from now on");
    assert!(matches!(end(&bench.stored(&fetch)), Some(Ended::Complete)));
}

#[test]
fn what_this_machine_is_short_of_is_no_fault_of_a_holder_and_is_tried_again_after_a_pause() {
    let mut bench = Bench::located(1, &[1]);
    let fetch = bench.fetches[0].clone();
    let effects = bench.failed(&fetch, FetchFailure::Holder(FetchError::Short(Shortage::Files)));
    let says = |effect: &Effect| matches!(effect, Effect::Tell(DownloadEvent::Waiting(Reason::Short(text))) if text.contains("open files"));
    assert!(effects.iter().any(says), "{effects:?}");
    assert!(bench.fetches.is_empty() && bench.transfer.wake_at(bench.now) > bench.now, "no spin");
    bench.wake();
    let again = bench.fetches[0].clone();
    assert!(matches!(end(&bench.stored(&again)), Some(Ended::Complete)));
    assert!(bench.transfer.blamed().is_empty());
}
