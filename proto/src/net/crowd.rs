//! How many connections one identity has at once.
//!
//! What holds (each line has a test): an identity has at most [`MOST`], whatever it does; one that ends makes room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::tls::Certified;

/// Far above what a well-behaved peer has: some for each of its threads, and a few more.
pub const MOST: usize = 512;

/// The connections of a listener, by whom they are. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<HashMap<Certified, usize>>>);

/// One connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
    of: Certified,
}

impl Crowd {
    fn lock(&self) -> MutexGuard<'_, HashMap<Certified, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more connection of this identity, unless it has as many as it may.
    pub(super) fn enter(&self, of: Certified) -> Option<Place> {
        let mut all = self.lock();
        let count = all.entry(of).or_default();
        if *count >= MOST {
            return None;
        }
        *count += 1;
        Some(Place { crowd: self.clone(), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.crowd.lock();
        if let Some(count) = all.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PeerId;

    #[test]
    fn an_identity_has_its_share_and_no_more() {
        let crowd = Crowd::default();
        let [noisy, quiet] = [1, 2].map(|n| Certified::Peer(PeerId::from_bytes([n; 16])));
        let mut all: Vec<Place> = (0..MOST).map(|_| crowd.enter(noisy).unwrap()).collect();
        assert!(crowd.enter(noisy).is_none() && crowd.enter(quiet).is_some());
        all.pop();
        assert!(crowd.enter(noisy).is_some());
        drop(all);
        assert!(crowd.lock().is_empty(), "nobody is remembered");
    }
}
