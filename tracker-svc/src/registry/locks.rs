//! Locks on names: held shared while names are looked up or registered on behalf of a swarm, alone while one is
//! released, so that no swarm outlives its name.
//!
//! They span disk writes and are only ever taken on blocking threads. Each stands for a share of all names, so that a
//! release that waits for the disk holds up few others. Whoever takes several takes them in their order, and each once.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::{LockResult, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use drizzle_proto::FileName;

const LOCKS: u64 = 64;

/// The locks.
pub(super) struct Locks {
    locks: Vec<RwLock<()>>,
    hasher: RandomState,
}

/// What keeps some names as they are, until dropped. There is no data behind a lock that a panic could spoil.
pub(super) struct Held<'a> {
    _shared: Vec<LockResult<RwLockReadGuard<'a, ()>>>,
    _alone: Vec<LockResult<RwLockWriteGuard<'a, ()>>>,
}

impl Locks {
    pub(super) fn new() -> Self {
        Self { locks: (0..LOCKS).map(|_| RwLock::new(())).collect(), hasher: RandomState::new() }
    }

    /// Nobody releases any of these names meanwhile.
    pub(super) fn shared<'n>(&self, names: impl IntoIterator<Item = &'n FileName>) -> Held<'_> {
        let shared = self.of(names).into_iter().map(|at| self.locks[at].read());
        Held { _shared: shared.collect(), _alone: Vec::new() }
    }

    /// Nobody does anything with any of these names meanwhile.
    pub(super) fn alone<'n>(&self, names: impl IntoIterator<Item = &'n FileName>) -> Held<'_> {
        let alone = self.of(names).into_iter().map(|at| self.locks[at].write());
        Held { _shared: Vec::new(), _alone: alone.collect() }
    }

    /// Waits until each release that is under way is done.
    pub(super) fn pass(&self) {
        for lock in &self.locks {
            drop(lock.read());
        }
    }

    fn of<'n>(&self, names: impl IntoIterator<Item = &'n FileName>) -> BTreeSet<usize> {
        // Below the number of locks.
        #[allow(clippy::cast_possible_truncation)]
        let at = |name: &FileName| (self.hasher.hash_one(name) % LOCKS) as usize;
        names.into_iter().map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
        time::Duration,
    };

    use super::*;

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    #[test]
    fn a_name_is_released_when_nobody_looks_at_it_and_others_do_not_wait_for_that() {
        let locks = Arc::new(Locks::new());
        let a = name("a");
        let other = (0..).map(|n| name(&n.to_string())).find(|other| locks.of([other]) != locks.of([&a])).unwrap();
        let looking = locks.shared([&a, &a]);
        let also = locks.shared([&a]);
        let (tell, told) = mpsc::channel();
        let (theirs, released) = (locks.clone(), a.clone());
        let thread = thread::spawn(move || {
            let _alone = theirs.alone([&released]);
            tell.send(()).unwrap();
        });
        drop(locks.alone([&other]));
        assert!(told.recv_timeout(Duration::from_millis(20)).is_err(), "two still look at it");
        drop((looking, also));
        told.recv().unwrap();
        thread.join().unwrap();
        locks.pass();
    }

    #[test]
    fn many_names_are_locked_by_many_at_once() {
        let locks = Locks::new();
        let names: Vec<FileName> = (0..300).map(|n| name(&n.to_string())).collect();
        thread::scope(|scope| {
            for turn in 0..8 {
                let (locks, names) = (&locks, &names);
                scope.spawn(move || {
                    for _ in 0..200 {
                        // In another order each.
                        let mine = names.iter().cycle().skip(turn * 40).take(120);
                        let _held = if turn % 2 == 0 { locks.shared(mine) } else { locks.alone(mine) };
                    }
                });
            }
        });
    }
}
