//! The callers that follow one download: how long it waits for them, and when it ends because they left.
//!
//! What holds (tested):
//! - a download waits as long as the most patient of those that follow it; when the last one goes away without a
//!   word, as it was before;
//! - a caller that leaves ends the download if no other follows it, and only then.

use std::{collections::BTreeMap, time::Duration};

/// One caller among those of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallerId(u64);

/// What becomes of a download when a caller leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Other callers follow it.
    GoesOn,
    /// It was the last caller: the download ends.
    Ends,
}

#[derive(Debug)]
struct Caller {
    /// As it calls itself; empty if it does not.
    name: String,
    patience: Duration,
}

/// Those that follow one download.
#[derive(Debug)]
pub struct Callers {
    next: u64,
    following: BTreeMap<CallerId, Caller>,
    /// What the download waits for in any case: the patience that an earlier run was asked for.
    least: Duration,
    patience: Duration,
}

impl Callers {
    /// None yet. `least` is how long the download waits whichever callers come.
    pub fn new(least: Duration) -> Self {
        Self { next: 0, following: BTreeMap::new(), least, patience: least }
    }

    /// A caller follows from now on.
    pub fn come(&mut self, name: String, patience: Duration) -> CallerId {
        let id = CallerId(self.next);
        self.next += 1;
        self.following.insert(id, Caller { name, patience });
        self.count();
        id
    }

    /// A caller is gone, without a word: the download is not its business any more, and goes on.
    pub fn gone(&mut self, id: CallerId) {
        if self.following.remove(&id).is_some() {
            self.count();
        }
    }

    /// A caller leaves and wants no more of it. One that is not known leaves nothing behind.
    pub fn leave(&mut self, name: &str) -> Leave {
        self.following.retain(|_, caller| caller.name != name);
        self.count();
        if self.following.is_empty() { Leave::Ends } else { Leave::GoesOn }
    }

    /// How long the download waits without progress.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    fn count(&mut self) {
        if let Some(most) = self.following.values().map(|caller| caller.patience).max() {
            self.patience = most.max(self.least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_most_patient_caller_that_follows_counts() {
        let mut callers = Callers::new(Duration::ZERO);
        let short = callers.come("a".into(), seconds(60));
        assert_eq!(callers.patience(), seconds(60));
        let long = callers.come("b".into(), seconds(600));
        assert_eq!(callers.patience(), seconds(600));
        callers.gone(long);
        assert_eq!(callers.patience(), seconds(60));
        callers.gone(short);
        assert_eq!(callers.patience(), seconds(60), "it goes on as it was");
        callers.come("c".into(), seconds(5));
        assert_eq!(callers.patience(), seconds(5));
    }

    #[test]
    fn a_resumed_download_waits_at_least_as_long_as_it_was_asked_to() {
        let mut callers = Callers::new(seconds(600));
        assert_eq!(callers.patience(), seconds(600));
        callers.come("a".into(), seconds(5));
        assert_eq!(callers.patience(), seconds(600));
    }

    #[test]
    fn only_the_last_caller_that_leaves_ends_it() {
        let mut callers = Callers::new(Duration::ZERO);
        callers.come("a".into(), seconds(1));
        let b = callers.come("b".into(), seconds(1));
        callers.come("c".into(), seconds(1));
        assert_eq!(callers.leave("a"), Leave::GoesOn);
        assert_eq!(callers.leave("a"), Leave::GoesOn, "twice is once");
        callers.gone(b);
        assert_eq!(callers.leave("c"), Leave::Ends);
        // Two that are interrupted together do not leave it to each other.
        callers.come("d".into(), seconds(1));
        callers.come("e".into(), seconds(1));
        assert_eq!([callers.leave("d"), callers.leave("e")], [Leave::GoesOn, Leave::Ends]);
    }

    #[test]
    fn a_caller_that_never_followed_ends_only_what_no_other_follows() {
        let mut callers = Callers::new(Duration::ZERO);
        assert_eq!(callers.leave("x"), Leave::Ends);
        callers.come(String::new(), seconds(1));
        assert_eq!(callers.leave("x"), Leave::GoesOn);
    }
}
