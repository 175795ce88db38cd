//! A watcher that applies its messages knows the truth, whatever happens in between.

use std::collections::BTreeMap;

use drizzle_proto::{Address, Digest, FileId, FileName, Labels, Layout};
use proptest::prelude::*;

use super::*;

fn swarm(chunks: u32, log_limit: usize) -> Swarm {
    let layout = Layout::new(u64::from(chunks) << 14, 1 << 14).unwrap();
    let id = FileId::from_digest(Digest::of(b""));
    let mut swarm = Swarm::new(FileInfo { name: FileName::new("a").unwrap(), id, layout });
    swarm.log_limit = log_limit;
    swarm
}

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 16])
}

fn info(n: u8) -> PeerInfo {
    PeerInfo::new(peer(n), Address::new(&format!("host{n}:1")).unwrap(), Labels::default())
}

fn set(swarm: &Swarm, chunks: impl IntoIterator<Item = u32>) -> ChunkSet {
    let mut set = ChunkSet::empty(swarm.count());
    for chunk in chunks.into_iter().filter_map(|chunk| swarm.count().index(chunk)) {
        set.insert(chunk);
    }
    set
}

/// What a watcher believes.
#[derive(Debug, Default)]
struct Belief {
    holders: BTreeMap<PeerId, Holder>,
    synced: bool,
    resets: usize,
}

impl Belief {
    fn apply(&mut self, message: HolderChanges) {
        if message.reset {
            self.holders.clear();
            self.synced = false;
            self.resets += 1;
        }
        for change in message.changes {
            match change {
                HolderChange::Is(holder) => drop(self.holders.insert(holder.peer.id(), holder)),
                HolderChange::Added(peer, chunks) => {
                    // Additions are only ever told of a holder that was told before.
                    self.holders.get_mut(&peer).expect("a known holder").chunks.union_with(&chunks);
                }
                HolderChange::Gone(peer) | HolderChange::Parted(peer) => drop(self.holders.remove(&peer)),
            }
        }
        self.synced |= message.synced;
    }

    fn catch_up(&mut self, swarm: &Swarm, cursor: &mut Cursor) {
        while let Some(message) = swarm.next_message(cursor) {
            self.apply(message);
        }
    }
}

fn truth(swarm: &Swarm) -> BTreeMap<PeerId, Holder> {
    let (page, complete) = swarm.page(None, usize::MAX);
    assert!(complete);
    page.into_iter().map(|holder| (holder.peer.id(), holder)).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Announce(u8, Vec<u32>),
    Remove(u8),
    /// One watcher takes so many messages.
    Read(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..5, prop::collection::vec(0u32..20, 0..6)).prop_map(|(peer, chunks)| Step::Announce(peer, chunks)),
        2 => (0u8..5).prop_map(Step::Remove),
        3 => (0usize..3, 1usize..3).prop_map(|(watcher, messages)| Step::Read(watcher, messages)),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn watchers_learn_the_truth(steps in steps(), log_limit in 1usize..12) {
        let mut swarm = swarm(20, log_limit);
        let mut model: BTreeMap<u8, std::collections::BTreeSet<u32>> = BTreeMap::new();
        let mut watchers: Vec<(Cursor, Belief)> = (0..3).map(|_| (swarm.watch(), Belief::default())).collect();
        for step in steps {
            match step {
                Step::Announce(n, chunks) => {
                    swarm.announce(&info(n), &set(&swarm, chunks.iter().copied()));
                    if !chunks.is_empty() {
                        model.entry(n).or_default().extend(chunks);
                    }
                }
                Step::Remove(n) => prop_assert_eq!(swarm.remove(peer(n)), model.remove(&n).is_some()),
                Step::Read(watcher, messages) => {
                    let (cursor, belief) = &mut watchers[watcher];
                    for message in (0..messages).map_while(|_| swarm.next_message(cursor)) {
                        belief.apply(message);
                    }
                }
            }
        }
        let expected: BTreeMap<_, _> = model
            .iter()
            .map(|(n, chunks)| {
                let chunks = set(&swarm, chunks.iter().copied());
                (peer(*n), Holder { peer: info(*n), chunks })
            })
            .collect();
        let full = u32::try_from(model.values().filter(|chunks| chunks.len() == 20).count()).unwrap();
        prop_assert_eq!(swarm.counts(), (full, u32::try_from(model.len()).unwrap() - full));
        prop_assert_eq!(truth(&swarm), expected.clone());
        for (cursor, belief) in &mut watchers {
            belief.catch_up(&swarm, cursor);
            prop_assert!(belief.synced);
            prop_assert_eq!(&belief.holders, &expected);
        }
    }
}

#[test]
fn a_watcher_that_falls_behind_starts_over() {
    let mut swarm = swarm(100, 8);
    let mut belief = Belief::default();
    let mut cursor = swarm.watch();
    belief.catch_up(&swarm, &mut cursor);
    for chunk in 0..50 {
        swarm.announce(&info(1), &set(&swarm, [chunk]));
    }
    assert_eq!(swarm.log.len(), 8);
    belief.catch_up(&swarm, &mut cursor);
    assert_eq!((belief.resets, belief.holders), (2, truth(&swarm)));
}

#[test]
fn additions_of_one_peer_merge() {
    let mut swarm = swarm(100, 64);
    swarm.announce(&info(1), &set(&swarm, [0]));
    let mut cursor = swarm.watch();
    swarm.next_message(&mut cursor).unwrap();
    for chunk in 1..5 {
        swarm.announce(&info(1), &set(&swarm, [chunk]));
    }
    let message = swarm.next_message(&mut cursor).unwrap();
    assert_eq!(message.changes, [HolderChange::Added(peer(1), set(&swarm, 1..5))]);
    assert!(swarm.next_message(&mut cursor).is_none());
}

#[test]
fn nothing_is_kept_for_nobody() {
    let mut swarm = swarm(100, 64);
    swarm.announce(&info(1), &set(&swarm, [0]));
    assert_eq!(swarm.log.len(), 0, "no watcher, no log");
    swarm.watch();
    swarm.announce(&info(1), &set(&swarm, [1]));
    swarm.unwatch();
    assert_eq!(swarm.log.len(), 0);
    swarm.remove(peer(1));
    assert!(swarm.is_idle());
}

#[test]
fn a_sample_begins_behind_its_caller_and_goes_round() {
    let mut swarm = swarm(4, 8);
    for n in [1, 3, 5, 7] {
        swarm.announce(&info(n), &set(&swarm, [0]));
    }
    let sample = |after: Option<u8>, most| -> Vec<PeerId> {
        let sample = swarm.sample(after.map(peer), most, usize::MAX);
        sample.iter().map(|holder| holder.peer.id()).collect()
    };
    assert_eq!(sample(None, 2), [peer(1), peer(3)]);
    assert_eq!(sample(Some(3), 3), [peer(5), peer(7), peer(1)]);
    assert_eq!(sample(Some(9), 9), [peer(1), peer(3), peer(5), peer(7)], "each once");
    assert_eq!(swarm.sample(None, 4, 0).len(), 1, "what fits, and at least one");
}

#[test]
fn an_empty_file_is_held_in_full_by_whoever_says_so() {
    let mut swarm = swarm(0, 64);
    assert!(swarm.announce(&info(1), &set(&swarm, [])));
    assert_eq!(swarm.counts(), (1, 0));
}

#[test]
fn no_holder_without_a_chunk() {
    let mut swarm = swarm(1, 64);
    assert!(!swarm.announce(&info(1), &set(&swarm, [])));
    assert_eq!(swarm.counts(), (0, 0));
}

/// The worst case: every holder has a bitfield of 32 KiB.
#[test]
fn messages_stay_small() {
    use drizzle_proto::wire;
    use prost::Message;

    let mut swarm = swarm(1 << 18, LOG_LIMIT);
    let mut cursor = swarm.watch();
    let mut late = swarm.watch();
    swarm.next_message(&mut late).unwrap();
    for n in 0..60 {
        let odd = set(&swarm, (0..1 << 18).filter(|chunk| chunk % 2 == 1));
        swarm.announce(&info(n), &odd);
        swarm.announce(&info(n), &set(&swarm, (0..5000).map(|chunk| chunk * 2)));
    }
    for cursor in [&mut cursor, &mut late] {
        let mut belief = Belief::default();
        let mut messages = 0;
        while let Some(message) = swarm.next_message(cursor) {
            let bytes = wire::WatchFileResponse::from(&message).encoded_len();
            assert!(bytes <= MESSAGE_BUDGET + (64 << 10), "{bytes}");
            belief.apply(message);
            messages += 1;
        }
        assert!(messages > 1);
        assert_eq!(belief.holders, truth(&swarm));
    }
}
