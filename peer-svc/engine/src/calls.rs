//! Which calls to the file system hang, and which are not begun for that.
//!
//! A call to a network mount whose server is gone, or to a dying disk, may not return for hours, and nothing can end
//! it: it costs its thread. So few are begun that are likely to hang too, and other files go on.
//!
//! What holds (each line has a test):
//! - a call hangs once it has run for [`LATE`];
//! - while a call on a file hangs, no other one is begun on it;
//! - while [`PER_MOUNT`] calls hang on a mount, none is begun on any file of it;
//! - where nothing hangs every call is begun; and a call that returned after all is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A call that took this long hangs: disks answer in milliseconds, and busy ones in a second.
pub const LATE: Duration = Duration::from_secs(2);

/// Calls that may hang on one mount before it is left alone.
pub const PER_MOUNT: usize = 4;

/// A call that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call(u64);

/// Calls to the file system that have not returned.
#[derive(Debug, Default)]
pub struct Calls {
    running: BTreeMap<Call, (PathBuf, Instant)>,
    next: u64,
}

/// Not begun: calls like it hang, the first one for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hangs(pub Duration);

impl Calls {
    /// A call on a file. Every call that is begun must be [ended](Calls::end). `mount` says on which mount a path is,
    /// and is asked only if something hangs.
    pub fn begin(&mut self, path: &Path, mount: impl Fn(&Path) -> PathBuf, now: Instant) -> Result<Call, Hangs> {
        let late: Vec<(&Path, Duration)> = self.late(now).collect();
        let longest = |mut calls: Vec<Duration>, most: usize| {
            calls.sort_unstable();
            calls.last().copied().filter(|_| calls.len() >= most)
        };
        let same_file = late.iter().filter(|(other, _)| *other == path).map(|(_, took)| *took).collect();
        let mut hangs = longest(same_file, 1);
        if hangs.is_none() && late.len() >= PER_MOUNT {
            let here = mount(path);
            let same_mount = late.iter().filter(|(other, _)| mount(other) == here).map(|(_, took)| *took).collect();
            hangs = longest(same_mount, PER_MOUNT);
        }
        match hangs {
            Some(took) => Err(Hangs(took)),
            None => {
                let call = Call(self.next);
                self.next += 1;
                self.running.insert(call, (path.to_owned(), now));
                Ok(call)
            }
        }
    }

    /// A call has returned; how long it hung, if it did.
    pub fn end(&mut self, call: Call, now: Instant) -> Option<Duration> {
        let (_, since) = self.running.remove(&call)?;
        Some(now.saturating_duration_since(since)).filter(|took| *took >= LATE)
    }

    /// The files on which calls hang.
    pub fn hanging(&self, now: Instant) -> BTreeSet<PathBuf> {
        self.late(now).map(|(path, _)| path.to_owned()).collect()
    }

    fn late(&self, now: Instant) -> impl Iterator<Item = (&Path, Duration)> {
        self.running
            .values()
            .map(move |(path, since)| (path.as_path(), now.saturating_duration_since(*since)))
            .filter(|(_, took)| *took >= LATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first folder is the mount.
    fn mount(path: &Path) -> PathBuf {
        path.components().take(2).collect()
    }

    #[test]
    fn a_file_whose_call_hangs_is_left_alone_and_others_go_on() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        let mut begin = |path: &str, now| calls.begin(Path::new(path), mount, now);
        let first = begin("/dead/a", now).unwrap();
        begin("/dead/a", now + LATE - Duration::from_nanos(1)).expect("it is only slow yet");
        assert_eq!(begin("/dead/a", now + LATE), Err(Hangs(LATE)));
        begin("/dead/b", now + LATE).unwrap();
        begin("/good/a", now + LATE).unwrap();
        assert_eq!(calls.hanging(now + LATE), [PathBuf::from("/dead/a")].into());
        assert_eq!(calls.end(first, now + LATE), Some(LATE));
        assert!(calls.hanging(now + LATE).is_empty());
        calls.begin(Path::new("/dead/a"), mount, now + LATE).expect("it returned after all");
    }

    #[test]
    fn a_mount_where_several_files_hang_is_left_alone_and_others_go_on() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        let later = now + LATE;
        for n in 0..PER_MOUNT {
            calls.begin(Path::new(&format!("/dead/{n}")), mount, now).unwrap();
        }
        assert!(calls.begin(Path::new("/dead/new"), mount, later).is_err());
        let good: Vec<Call> =
            (0..100).map(|n| calls.begin(Path::new(&format!("/good/{n}")), mount, later).unwrap()).collect();
        assert!(good.into_iter().all(|call| calls.end(call, later).is_none()), "none of them was late");
        assert_eq!(calls.hanging(later).len(), PER_MOUNT);
    }
}
