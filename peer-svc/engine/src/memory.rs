//! Which fetch gets memory for its chunk, when the downloads of one peer want more than there is.
//!
//! A chunk is held in memory until it is verified, so a fetch first gets room for its whole chunk and then asks a
//! peer. It holds nothing while it waits, neither memory nor an upload slot of another peer, so none waits for
//! another in a circle.
//!
//! What holds at all times (the property test checks each line):
//! - no more is out than there is;
//! - the next grant goes to the download that holds least for its weight; of several to the one whose last grant, or
//!   whose beginning, is longest ago;
//! - no smaller wish overtakes the next one, so that a download in large chunks gets its room as well;
//! - while nothing is out, a wish is granted: even one for more than there is, which then gets all of it;
//! - while a download wants memory and holds none, no other is granted some twice, whatever their weights: none starves.

use std::collections::BTreeMap;

pub use crate::priority::Owner;

/// Names one wish for memory; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wish(u64);

#[derive(Debug)]
struct Account {
    /// How much more it may hold than others.
    weight: u64,
    /// Bytes that are out.
    held: u64,
    /// Since when it has got nothing, in half grants of all downloads: odd for a grant of its own, even for its
    /// beginning, which goes before the grant that it follows.
    since: u64,
    /// What it waits for, in the order of asking.
    wishes: BTreeMap<Wish, u64>,
}

/// The memory for chunks, shared between downloads.
#[derive(Debug)]
pub struct Memory {
    total: u64,
    free: u64,
    grants: u64,
    next: u64,
    owners: BTreeMap<Owner, Account>,
}

/// What is held is compared in bytes times this, divided by a weight.
const SCALE: u128 = 1 << 20;

impl Account {
    fn for_its_weight(&self) -> u128 {
        u128::from(self.held) * SCALE / u128::from(self.weight)
    }
}

impl Memory {
    /// So many bytes, all of them free.
    pub fn new(total: u64) -> Self {
        Self { total, free: total, grants: 0, next: 0, owners: BTreeMap::new() }
    }

    /// A wish of a download, which has this weight from now on, at least 1; it is granted by [`Memory::grant`], or
    /// withdrawn.
    pub fn ask(&mut self, owner: Owner, weight: u64, bytes: u64) -> Wish {
        let wish = Wish(self.next);
        self.next += 1;
        let begin = || Account { weight: 1, held: 0, since: 2 * self.grants, wishes: BTreeMap::new() };
        let account = self.owners.entry(owner).or_insert_with(begin);
        account.weight = weight.max(1);
        account.wishes.insert(wish, bytes.min(self.total));
        wish
    }

    /// A wish that is wanted no more. One that was granted or withdrawn before is ignored.
    pub fn withdraw(&mut self, owner: Owner, wish: Wish) {
        if let Some(account) = self.owners.get_mut(&owner) {
            account.wishes.remove(&wish);
        }
    }

    /// The next wish that has its memory now, and how much that is: to be [released](Memory::release). Call until
    /// `None`, after every wish, withdrawal and release.
    pub fn grant(&mut self) -> Option<(Wish, u64)> {
        let waiting = self.owners.values_mut().filter_map(|account| {
            let (wish, bytes) = account.wishes.first_key_value()?;
            Some(((account.for_its_weight(), account.since, *wish), *bytes, account))
        });
        let ((_, _, wish), bytes, account) = waiting.min_by_key(|(turn, _, _)| *turn)?;
        self.free = self.free.checked_sub(bytes)?;
        self.grants += 1;
        account.wishes.remove(&wish);
        account.held += bytes;
        account.since = 2 * self.grants + 1;
        Some((wish, bytes))
    }

    /// Memory of a download is free again.
    pub fn release(&mut self, owner: Owner, bytes: u64) {
        if let Some(account) = self.owners.get_mut(&owner) {
            account.held -= bytes;
            self.free += bytes;
        }
    }

    /// Bytes that no download holds.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// The download has ended, released what it held, and wants nothing any more.
    pub fn leave(&mut self, owner: Owner) {
        if let Some(account) = self.owners.remove(&owner) {
            self.free += account.held;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn granted(memory: &mut Memory) -> Vec<Wish> {
        std::iter::from_fn(|| memory.grant()).map(|(wish, _)| wish).collect()
    }

    #[test]
    fn a_lone_download_may_have_all_and_the_next_one_gets_what_is_released_first() {
        let mut memory = Memory::new(64 * MIB);
        let first: Vec<Wish> = (0..8).map(|_| memory.ask(1, 1, 16 * MIB)).collect();
        assert_eq!(granted(&mut memory), first[..4]);
        let second: Vec<Wish> = (0..8).map(|_| memory.ask(2, 1, 16 * MIB)).collect();
        assert!(granted(&mut memory).is_empty());
        memory.release(1, 16 * MIB);
        memory.release(1, 16 * MIB);
        assert_eq!(granted(&mut memory), second[..2]);
        memory.release(2, 16 * MIB);
        assert_eq!(granted(&mut memory), second[2..3], "each has half");
    }

    #[test]
    fn a_heavy_download_holds_more_and_a_light_one_has_its_chunk_all_the_same() {
        let mut memory = Memory::new(64 * MIB);
        let mut owners = BTreeMap::new();
        for (owner, weight) in [(1, 1), (2, 4)] {
            for _ in 0..40 {
                owners.insert(memory.ask(owner, weight, 4 * MIB), owner);
            }
        }
        let mut order: Vec<Owner> = granted(&mut memory).iter().map(|wish| owners[wish]).collect();
        for nth in 0..20 {
            memory.release(order[nth], 4 * MIB);
            order.extend(granted(&mut memory).iter().map(|wish| owners[wish]));
        }
        let of = |owner, grants: &[Owner]| grants.iter().filter(|other| **other == owner).count();
        assert_eq!((of(1, &order[..16]), of(2, &order[..16])), (4, 12), "{order:?}");
        assert!((3..=5).contains(&of(1, &order[16..36])), "{order:?}");
    }

    #[test]
    fn twenty_downloads_take_turns_though_memory_is_for_four_chunks() {
        let mut memory = Memory::new(64 * MIB);
        let mut owners = BTreeMap::new();
        for _ in 0..8 {
            for owner in 0..20 {
                owners.insert(memory.ask(owner, 1, 16 * MIB), owner);
            }
        }
        let mut order: Vec<Owner> = granted(&mut memory).iter().map(|wish| owners[wish]).collect();
        for nth in 0..36 {
            memory.release(order[nth], 16 * MIB);
            order.extend(granted(&mut memory).iter().map(|wish| owners[wish]));
        }
        let round: Vec<Owner> = (0..20).collect();
        assert_eq!((&order[..20], &order[20..40]), (&round[..], &round[..]));
    }

    #[test]
    fn a_large_chunk_is_not_overtaken_by_small_ones_for_ever() {
        let mut memory = Memory::new(64 * MIB);
        for _ in 0..8 {
            memory.ask(1, 1, 16 * MIB);
        }
        assert_eq!(granted(&mut memory).len(), 4);
        let large = memory.ask(2, 1, 64 * MIB);
        for nth in 1..=4 {
            memory.release(1, 16 * MIB);
            assert_eq!(granted(&mut memory), if nth == 4 { vec![large] } else { vec![] });
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(Owner, u64),
        Withdraw(prop::sample::Index),
        Release(prop::sample::Index),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u64..6, 1u64..80).prop_map(|(owner, mib)| Event::Ask(owner, mib * MIB)),
            1 => any::<prop::sample::Index>().prop_map(Event::Withdraw),
            4 => any::<prop::sample::Index>().prop_map(Event::Release),
        ]
    }

    proptest! {
        #[test]
        fn the_properties_hold(events in proptest::collection::vec(events(), 1..200)) {
            const TOTAL: u64 = 64 * MIB;
            let weight = |owner: Owner| [1, 4, 16][usize::try_from(owner % 3).unwrap()];
            let mut memory = Memory::new(TOTAL);
            let mut wishes: Vec<(Wish, Owner, u64)> = Vec::new();
            let mut out: Vec<(Owner, u64)> = Vec::new();
            // How often others were granted while an owner that holds nothing waits.
            let mut passed_over: BTreeMap<Owner, BTreeMap<Owner, usize>> = BTreeMap::new();
            for event in events {
                match event {
                    Event::Ask(owner, bytes) => wishes.push((memory.ask(owner, weight(owner), bytes), owner, bytes.min(TOTAL))),
                    Event::Withdraw(at) if !wishes.is_empty() => {
                        let (wish, owner, _) = wishes.swap_remove(at.index(wishes.len()));
                        memory.withdraw(owner, wish);
                    }
                    Event::Release(at) if !out.is_empty() => {
                        let (owner, bytes) = out.swap_remove(at.index(out.len()));
                        memory.release(owner, bytes);
                    }
                    Event::Withdraw(_) | Event::Release(_) => {}
                }
                let holds = |out: &[(Owner, u64)], owner: Owner| -> u64 {
                    out.iter().filter(|(other, _)| *other == owner).map(|(_, bytes)| bytes).sum()
                };
                while let Some((wish, bytes)) = memory.grant() {
                    let at = wishes.iter().position(|(other, ..)| *other == wish).expect("a wish that waits");
                    let (_, owner, asked) = wishes.remove(at);
                    prop_assert_eq!(bytes, asked);
                    let share = |owner: Owner| holds(&out, owner) as f64 / weight(owner) as f64;
                    prop_assert!(wishes.iter().all(|(_, other, _)| share(*other) >= share(owner)));
                    out.push((owner, bytes));
                    passed_over.remove(&owner);
                    let waits = |other: &Owner| wishes.iter().any(|(_, waiting, _)| waiting == other);
                    for other in (0..6).filter(|other| waits(other) && holds(&out, *other) == 0) {
                        let times = passed_over.entry(other).or_default().entry(owner).or_default();
                        *times += 1;
                        prop_assert!(*times <= 1, "{owner} was served twice while {other} had nothing");
                    }
                }
                passed_over.retain(|owner, _| {
                    holds(&out, *owner) == 0 && wishes.iter().any(|(_, waiting, _)| waiting == owner)
                });
                let taken: u64 = out.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!(memory.free, TOTAL - taken);
                prop_assert!(!out.is_empty() || wishes.is_empty(), "all is free and nothing is granted");
            }
        }
    }
}
