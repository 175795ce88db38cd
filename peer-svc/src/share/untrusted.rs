//! Files that are hashed and recorded but not offered, because no trusted key signed them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use drizzle_proto::FileName;
use tokio::sync::Notify;

/// Those files, each with the reason for a person.
#[derive(Debug, Default)]
pub(crate) struct Untrusted {
    state: Mutex<State>,
    has_fresh: Notify,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<FileName, String>,
    /// Of these, those that the tracker was not asked about.
    fresh: BTreeSet<FileName>,
}

impl Untrusted {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file is not offered.
    pub(super) fn note(&self, name: &FileName, why: String) {
        let mut state = self.lock();
        state.files.insert(name.clone(), why);
        state.fresh.insert(name.clone());
        self.has_fresh.notify_one();
    }

    /// It is offered, or not there any more.
    pub(super) fn forget(&self, name: &FileName) {
        let mut state = self.lock();
        state.files.remove(name);
        state.fresh.remove(name);
    }

    /// The tracker was asked, and this is why it is still not offered.
    pub(crate) fn explain(&self, name: &FileName, why: String) {
        if let Some(reason) = self.lock().files.get_mut(name) {
            *reason = why;
        }
    }

    /// Why a file is not offered; `None` for others.
    pub(crate) fn why(&self, name: &FileName) -> Option<String> {
        self.lock().files.get(name).cloned()
    }

    /// Whether a file is one of them.
    pub(crate) fn has(&self, name: &FileName) -> bool {
        self.lock().files.contains_key(name)
    }

    /// How many there are, and some of them with the reasons.
    pub(crate) fn some(&self, most: usize) -> (usize, Vec<(FileName, String)>) {
        let state = self.lock();
        let some = state.files.iter().take(most).map(|(name, why)| (name.clone(), why.clone()));
        (state.files.len(), some.collect())
    }

    /// Waits for files that the tracker was not asked about, and takes them.
    pub(crate) async fn fresh(&self) -> BTreeSet<FileName> {
        loop {
            let notified = self.has_fresh.notified();
            let fresh = std::mem::take(&mut self.lock().fresh);
            if !fresh.is_empty() {
                return fresh;
            }
            notified.await;
        }
    }

    /// Names after this one, in order and at most so many; from the first one on if there are none.
    pub(crate) fn following(&self, after: Option<&FileName>, most: usize) -> Vec<FileName> {
        let state = self.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest: Vec<FileName> = state
            .files
            .range::<FileName, _>((from, Bound::Unbounded))
            .take(most)
            .map(|(name, _)| name.clone())
            .collect();
        if rest.is_empty() { state.files.keys().take(most).cloned().collect() } else { rest }
    }
}
