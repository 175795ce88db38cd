//! Why downloads take, or took, as long as they do: of those that run, and of those that ended last.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use drizzle_proto::FileName;

use super::Transfers;
use crate::download::Explanation;

/// So many that have ended are remembered, until the daemon stops.
const REMEMBERED: usize = 32;

/// The reasons of downloads that ended, the latest last.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<VecDeque<Arc<Explanation>>>);

impl Remembered {
    /// A download has ended. An earlier one of its name is forgotten.
    pub(super) fn add(&self, reasons: Arc<Explanation>) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|known| known.name != reasons.name);
        if ended.len() >= REMEMBERED {
            ended.pop_front();
        }
        ended.push_back(reasons);
    }

    fn latest_first(&self) -> Vec<Arc<Explanation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

impl Transfers {
    /// Why the download of that name takes, or took, as long as it does. Without a name: of all that run, and of those that
    /// ended lately, the latest first.
    pub(crate) fn explain(&self, name: Option<&FileName>) -> Vec<Arc<Explanation>> {
        let mut all: Vec<_> = self.lock().values().filter_map(|transfer| transfer.reasons.latest()).collect();
        let running = all.len();
        for ended in self.ended.latest_first() {
            if all[..running].iter().all(|known| known.name != ended.name) {
                all.push(ended);
            }
        }
        all.retain(|known| name.is_none_or(|name| known.name == *name));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use drizzle_proto::{ChunkCount, ChunkSet};

    use super::*;

    fn reasons(name: &str, stored: u64) -> Arc<Explanation> {
        let none = ChunkSet::empty(ChunkCount::new(1).unwrap());
        Arc::new(Explanation {
            name: FileName::new(name).unwrap(),
            ended: Some(Ok(())),
            elapsed: Duration::ZERO,
            wanted: 0,
            stored,
            rate: 0,
            limited_by: None,
            shares: Vec::new(),
            holders: Vec::new(),
            holders_known: 0,
            unheld: none.clone(),
            avoided: none,
            blamed: Vec::new(),
        })
    }

    #[test]
    fn the_last_of_each_name_is_remembered_and_so_many_names() {
        let remembered = Remembered::default();
        for nth in 0..REMEMBERED as u64 + 8 {
            remembered.add(reasons(&format!("f{nth}"), 0));
        }
        remembered.add(reasons("f20", 7));
        let known = remembered.latest_first();
        assert_eq!(known.len(), REMEMBERED);
        assert_eq!((known[0].name.as_str(), known[0].stored), ("f20", 7));
        assert_eq!(known.iter().filter(|known| known.name.as_str() == "f20").count(), 1);
        assert!(known.iter().all(|known| known.name.as_str() != "f0"), "the oldest are forgotten");
    }
}
