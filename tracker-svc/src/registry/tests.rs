//! The registry over a catalogue in memory, with a clock that the test turns.

#![allow(clippy::disallowed_methods, reason = "a test begins its own clock")]

use drizzle_proto::{Address, ChunkSet, Digest, Labels, Layout, Manifest, PeerInfo};
use proptest::prelude::*;

use super::*;
use crate::{catalogue::memory::MemoryCatalogue, live::LiveCounts};

const LEASE: Duration = Duration::from_secs(15);

fn peer(n: u8) -> PeerInfo {
    let address = Address::new(&format!("host{n}:1")).unwrap();
    PeerInfo::new(PeerId::from_bytes([n; 16]), address, Labels::default())
}

fn manifest(content: u8) -> Manifest {
    let layout = Layout::new(4 << 14, 1 << 14).unwrap();
    Manifest::new(layout, vec![Digest::of(&[content]); 4]).unwrap()
}

fn name(n: u8) -> FileName {
    FileName::new(&format!("file{n}")).unwrap()
}

fn entry(n: u8, content: u8, held: &str) -> FileChunks {
    let manifest = manifest(content);
    let held = ChunkSet::from_ranges(manifest.layout().chunk_count(), &held.parse().unwrap()).unwrap();
    let hashes = manifest.hashes().to_vec();
    FileChunks {
        file: manifest.describe(name(n)),
        first_hash: 0,
        hashes,
        held,
        gone: false,
        replace: false,
        signature: None,
    }
}

fn registry(start: Instant) -> Registry {
    Registry::new(MemoryCatalogue::default(), LEASE, 7, start)
}

async fn announce(registry: &Registry, lease: u64, entry: FileChunks, now: Instant) -> FileOutcome {
    registry.announce(lease, vec![entry], now).await.unwrap().remove(0)
}

#[test]
fn leases_are_named_by_the_seed() {
    let start = Instant::now();
    let id =
        |seed| Registry::new(MemoryCatalogue::default(), LEASE, seed, start).register_peer(&peer(1), start).unwrap();
    assert_eq!(id(1), id(1));
    assert_ne!(id(1), id(2));
}

#[tokio::test]
async fn an_owners_withdrawal_reaches_holders_and_watches() {
    let start = Instant::now();
    let registry = registry(start);
    let owner = registry.register_peer(&peer(1), start).unwrap();
    let holder = registry.register_peer(&peer(2), start).unwrap();
    for lease in [owner, holder] {
        assert_eq!(announce(&registry, lease, entry(1, 1, "0-3"), start).await, FileOutcome::Registered);
    }
    let mut watcher = registry.watch(name(1), None, Instant::now()).await.unwrap();
    assert_eq!(watcher.next_message().unwrap().unwrap().changes.len(), 2);
    assert!(watcher.next_message().unwrap().is_none());
    assert!(!watcher.has_changed());

    assert!(registry.withdraw(owner, name(1), true, start).await.unwrap());
    assert!(watcher.has_changed());
    watcher.changed().await;
    assert!(matches!(watcher.next_message(), Err(Error::NoSuchFile(_))));
    assert_eq!(registry.renew(owner, start).unwrap().0, [], "the owner knows");
    assert_eq!(registry.renew(holder, start).unwrap().0, [manifest(1).describe(name(1))]);
    assert_eq!(registry.renew(holder, start).unwrap().0, [], "told once");
    assert!(matches!(announce(&registry, holder, entry(1, 1, "0-3"), start).await, FileOutcome::Invalid(_)));
}

#[tokio::test]
async fn the_last_holder_releases_a_name_only_when_its_owner_had_time_to_come_back() {
    let start = Instant::now();
    let registry = registry(start);
    let owner = registry.register_peer(&peer(1), start).unwrap();
    let holder = registry.register_peer(&peer(2), start).unwrap();
    announce(&registry, owner, entry(1, 1, "0-3"), start).await;
    announce(&registry, holder, entry(1, 1, "0-3"), start).await;
    registry.leave(owner);
    let soon = start + LEASE - Duration::from_millis(1);
    assert!(!registry.withdraw(holder, name(1), true, soon).await.unwrap(), "the tracker is too young to judge");
    announce(&registry, holder, entry(1, 1, "0-3"), soon).await;
    registry.renew(holder, soon).unwrap();
    let settled = start + LEASE;
    assert!(registry.withdraw(holder, name(1), true, settled).await.unwrap());
    let again = announce(&registry, holder, entry(1, 1, "0-3"), settled).await;
    assert_eq!(again, FileOutcome::Registered, "a release by another peer than the owner is no withdrawal");
}

/// The owner's machine was reinstalled: it is another peer now, and no holder is left.
#[tokio::test]
async fn a_name_without_owner_and_holder_is_released_in_time() {
    const LIMIT: Duration = Duration::from_secs(3600);
    let start = Instant::now();
    let registry = registry(start);
    let base = registry.attendance().await.unwrap();
    let sweep = async |now| registry.release_unattended(base, LIMIT, now).await.unwrap();
    let owner = registry.register_peer(&peer(1), start).unwrap();
    let holder = registry.register_peer(&peer(2), start).unwrap();
    assert_eq!(announce(&registry, owner, entry(1, 1, "0-3"), start).await, FileOutcome::Registered);
    assert_eq!(announce(&registry, owner, entry(2, 2, "0-3"), start).await, FileOutcome::Registered);
    assert_eq!(announce(&registry, holder, entry(2, 2, "0-3"), start).await, FileOutcome::Registered);

    let gone = start + LEASE;
    registry.renew(holder, gone - Duration::from_secs(1)).unwrap();
    assert_eq!(sweep(gone).await, 0, "noted from here on");
    let mut now = gone;
    // The holder stays until the end.
    while now + LEASE / 2 < gone + LIMIT {
        now += LEASE / 2;
        registry.renew(holder, now).unwrap();
    }
    assert_eq!(sweep(now).await, 0, "too early");
    let due = gone + LIMIT + Duration::from_secs(1);
    let late = registry.register_peer(&peer(3), due).unwrap();
    registry.renew(holder, now + LEASE / 2).unwrap();
    assert!(matches!(announce(&registry, late, entry(1, 3, "0-3"), due).await, FileOutcome::Refused { .. }));
    assert_eq!(sweep(due).await, 1, "the one without a holder");
    assert_eq!(announce(&registry, late, entry(1, 3, "0-3"), due).await, FileOutcome::Registered);
    assert!(matches!(announce(&registry, late, entry(2, 3, "0-3"), due).await, FileOutcome::Refused { .. }));
}

/// The whole fleet was off for a month: its names must be there when it comes back.
#[tokio::test]
async fn time_without_a_tracker_releases_no_name() {
    const LIMIT: Duration = Duration::from_secs(3600);
    let start = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let open = |now| Registry::new(crate::catalogue::RedbCatalogue::open(dir.path()).unwrap(), LEASE, 7, now);
    let first = open(start);
    let owner = first.register_peer(&peer(1), start).unwrap();
    announce(&first, owner, entry(1, 1, "0-3"), start).await;
    let end = start + LEASE + LIMIT / 2;
    for at in [start + LEASE, end] {
        assert_eq!(first.release_unattended(Duration::ZERO, LIMIT, at).await.unwrap(), 0);
    }
    drop(first);
    let again = end + 720 * LIMIT;
    let second = open(again);
    let base = second.attendance().await.unwrap();
    let sweep = async |now| second.release_unattended(base, LIMIT, now).await.unwrap();
    assert_eq!(sweep(again).await, 0, "its owner had no time to come back");
    assert_eq!(sweep(again + LEASE).await, 0, "half of the time is over");
    assert_eq!(sweep(again + LIMIT / 2).await, 1, "the first half is not forgotten");
}

#[tokio::test]
async fn a_lease_that_is_over_is_unknown_before_and_after_it_is_reaped() {
    let start = Instant::now();
    let registry = registry(start);
    let lease = registry.register_peer(&peer(1), start).unwrap();
    announce(&registry, lease, entry(1, 1, "0-3"), start).await;
    let end = start + LEASE;
    assert!(matches!(registry.renew(lease, end), Err(Error::UnknownLease)));
    assert_eq!(registry.census(end).live, LiveCounts::default(), "over, though not reaped");
    registry.expire(end);
    assert_eq!(registry.census(end).live, LiveCounts::default());
    assert!(matches!(registry.announce(lease, Vec::new(), end).await, Err(Error::UnknownLease)));
}

#[tokio::test]
async fn the_census_counts() {
    let start = Instant::now();
    let registry = registry(start);
    let (one, two) =
        (registry.register_peer(&peer(1), start).unwrap(), registry.register_peer(&peer(2), start).unwrap());
    announce(&registry, one, entry(1, 1, "0-3"), start).await;
    announce(&registry, two, entry(1, 1, "0"), start).await;
    announce(&registry, two, entry(1, 2, "0"), start).await;
    let watcher = registry.watch(name(1), None, Instant::now()).await.unwrap();
    let census = registry.census(start + LEASE / 2);
    let live = LiveCounts { peers: 2, swarms: 1, holders: 1, watches: 1, staged_bytes: 0 };
    assert_eq!(census.live, live, "a refused peer is no holder");
    assert_eq!(census.counts, Counts { registered: 2, refused: 1, invalid: 0 });
    assert_eq!(census.uptime, LEASE / 2);
    drop(watcher);
    assert_eq!(registry.census(start).live.watches, 0);
}

#[derive(Debug, Clone)]
enum Event {
    Register(u8),
    Announce { peer: u8, file: u8, content: u8, bits: u8 },
    Withdraw { peer: u8, file: u8 },
    Renew(u8),
    Leave(u8),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Event> {
    let announce = (0u8..4, 0u8..3, 0u8..2, 1u8..16);
    prop_oneof![
        2 => (0u8..4).prop_map(Event::Register),
        6 => announce.prop_map(|(peer, file, content, bits)| Event::Announce { peer, file, content, bits }),
        1 => (0u8..4, 0u8..3).prop_map(|(peer, file)| Event::Withdraw { peer, file }),
        2 => (0u8..4).prop_map(Event::Renew),
        1 => (0u8..4).prop_map(Event::Leave),
        2 => (0u64..9000).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a model: which live peer holds what, and what each name stands for.
    #[test]
    fn holders_are_what_live_peers_announced(events in proptest::collection::vec(events(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let start = Instant::now();
            let (registry, mut now) = (registry(start), start);
            // Lease and its end, by peer; what each live peer holds, by file.
            let mut leases: HashMap<u8, (u64, Instant)> = HashMap::new();
            let mut held: HashMap<(u8, u8), (u8, u8)> = HashMap::new();
            for event in events {
                match event {
                    Event::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        registry.expire(now);
                        leases.retain(|_, (_, end)| *end > now);
                        held.retain(|(peer, _), _| leases.contains_key(peer));
                    }
                    Event::Register(n) => {
                        leases.insert(n, (registry.register_peer(&peer(n), now).unwrap(), now + LEASE));
                        held.retain(|(peer, _), _| *peer != n);
                    }
                    Event::Renew(n) => if let Some((lease, end)) = leases.get_mut(&n) {
                        registry.renew(*lease, now).unwrap();
                        *end = now + LEASE;
                    },
                    Event::Leave(n) => if let Some((lease, _)) = leases.remove(&n) {
                        registry.leave(lease);
                        held.retain(|(peer, _), _| *peer != n);
                    },
                    Event::Announce { peer, file, content, bits } => if let Some((lease, _)) = leases.get(&peer) {
                        let mut told = entry(file, content, "0");
                        told.held = ChunkSet::from_bits(told.held.count(), &[bits]).unwrap();
                        match announce(&registry, *lease, told, now).await {
                            FileOutcome::Registered => {
                                let known = held.entry((peer, file)).or_insert((content, 0));
                                prop_assert_eq!(known.0, content, "one name, one content");
                                known.1 |= bits;
                            }
                            FileOutcome::Refused { .. } => drop(held.remove(&(peer, file))),
                            FileOutcome::Invalid(_) => {}
                            other @ FileOutcome::NeedHashes(_) => prop_assert!(false, "{:?}", other),
                        }
                    },
                    Event::Withdraw { peer, file } => if let Some((lease, _)) = leases.get(&peer) {
                        match registry.withdraw(*lease, name(file), true, now).await {
                            Ok(true) => held.retain(|(_, other), _| *other != file),
                            Ok(false) => drop(held.remove(&(peer, file))),
                            Err(_) => prop_assert!(!held.contains_key(&(peer, file)), "a holder may withdraw"),
                        }
                    },
                }
                prop_assert_eq!(registry.census(now).live.peers, leases.len());
                prop_assert_eq!(registry.census(now).live.holders, held.len());
                for file in 0..3 {
                    let wanted = Wanted { hashes_from: None, signature: true, holders: HolderPage::First };
                    let holders = registry.locate(name(file), wanted).await.map(|found| found.holders).unwrap_or_default();
                    let found: HashMap<u8, Vec<u8>> =
                        holders.iter().map(|holder| (holder.peer.id().as_bytes()[0], holder.chunks.to_bits())).collect();
                    let expected: HashMap<u8, Vec<u8>> = held
                        .iter()
                        .filter(|((_, other), _)| *other == file)
                        .map(|((peer, _), (_, bits))| (*peer, vec![*bits]))
                        .collect();
                    prop_assert_eq!(found, expected);
                }
            }
            Ok(())
        })?;
    }
}

/// The tracker's machine was paused; whichever call comes first hears that no lease ended meanwhile.
#[tokio::test]
async fn after_a_pause_the_first_call_finds_every_lease_as_it_was() {
    let start = Instant::now();
    let thawed = start + 4 * LEASE;
    for first in 0..3 {
        let registry = registry(start);
        registry.pulse(start);
        let lease = registry.register_peer(&peer(1), start).unwrap();
        match first {
            0 => assert_eq!(announce(&registry, lease, entry(1, 1, "0-3"), thawed).await, FileOutcome::Registered),
            1 => assert!(registry.renew(lease, thawed).is_ok()),
            _ => drop(registry.expire(thawed)),
        }
        assert_eq!(registry.census(thawed).live.peers, 1, "first call {first}");
    }
}
