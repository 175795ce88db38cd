//! What the system tells of changes in the folder (inotify), so that a new file is found at once and not only by the
//! next look at the whole folder.
//!
//! Each folder that a look walked into is watched by itself; what looks leave out is not. A folder that two paths lead
//! to is watched once, and a change in it counts for both.
//!
//! What holds:
//! - nothing relies on it: whole looks go on at their pace, and find what was not told;
//! - what waits to be looked at is bounded; if there is more, the whole folder is looked at;
//! - what cannot be watched is told to the log once, with what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drizzle_proto::name::RESERVED_PREFIX;
use notify::{
    Error, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};

use super::{scan::identity, skipped::IGNORE_FILE};

/// Paths that may wait to be looked at.
const MOST: usize = 4096;
/// File systems that other machines may change unheard, by the numbers that Linux gives them: NFS, CIFS, SMB2, 9P, Ceph,
/// AFS, FUSE (sshfs, s3fs).
const REMOTE: [u32; 7] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x6573_5546];

/// What was heard since it was asked for last.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Something changed at these paths.
    Paths(BTreeSet<PathBuf>),
    /// More changed than is kept.
    TooMuch,
}

/// Watches folders, and keeps what it hears.
pub(super) struct Changes {
    watcher: Mutex<Box<dyn Watcher + Send>>,
    told: Arc<Told>,
}

/// Shared with the thread that hears.
struct Told {
    /// For the log.
    dir: PathBuf,
    look_every: Duration,
    state: Mutex<State>,
    news: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Watched folders, as looks call them: where each is, links resolved, and its device and number.
    named: BTreeMap<PathBuf, (PathBuf, (u64, u64))>,
    /// The other way round: what looks call a folder.
    names: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    changed: BTreeSet<PathBuf>,
    too_much: bool,
    /// The log was told so.
    told_limit: bool,
    told_too_much: bool,
    told_error: bool,
}

impl Changes {
    /// Nothing is watched yet. None if the system watches nothing, which the log is told.
    pub(super) fn of(dir: &Path, look_every: Duration) -> Option<Self> {
        let told = Arc::new(Told::new(dir, look_every));
        let hears = told.clone();
        match RecommendedWatcher::new(move |event| hears.hear(event), notify::Config::default()) {
            Ok(watcher) => {
                told.warn_if_remote();
                Some(Self { watcher: Mutex::new(Box::new(watcher)), told })
            }
            Err(error) => {
                told.nothing_is_watched(&error);
                None
            }
        }
    }

    /// Watches these folders too, and returns those that were not watched before. What happened in them before is not
    /// told. Blocks.
    pub(super) fn watch(&self, folders: Vec<PathBuf>) -> BTreeSet<PathBuf> {
        // Not the lock of the state: the thread that answers wants that.
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = BTreeSet::new();
        for folder in folders {
            // It may have gone meanwhile.
            let (Ok(metadata), Ok(real)) = (folder.metadata(), folder.canonicalize()) else { continue };
            let identity = identity(&metadata);
            if self.told.lock().named.get(&folder).is_some_and(|known| *known == (real.clone(), identity)) {
                continue;
            }
            let is_watched = self.told.lock().add(&folder, &real, identity);
            if !is_watched {
                // Of another folder that was there before; mostly there is none.
                let _ = watcher.unwatch(&real);
                if let Err(error) = watcher.watch(&real, RecursiveMode::NonRecursive) {
                    self.told.lock().forget(&real);
                    if matches!(error.kind, ErrorKind::MaxFilesWatch) {
                        self.told.limit_reached();
                        break;
                    }
                    self.told.not_watched(&error);
                    continue;
                }
            }
            fresh.insert(folder);
        }
        fresh
    }

    /// How many folders are watched.
    pub(super) fn folders(&self) -> usize {
        self.told.lock().names.len()
    }

    /// Waits until there is something to [`Changes::take`].
    pub(super) async fn heard(&self) {
        while self.told.lock().is_silent() {
            self.told.news.notified().await;
        }
    }

    /// What was heard.
    pub(super) fn take(&self) -> Heard {
        let mut state = self.told.lock();
        let changed = std::mem::take(&mut state.changed);
        if std::mem::take(&mut state.too_much) { Heard::TooMuch } else { Heard::Paths(changed) }
    }
}

impl Told {
    fn new(dir: &Path, look_every: Duration) -> Self {
        Self { dir: dir.to_owned(), look_every, state: Mutex::default(), news: tokio::sync::Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.not_watched(&error),
        };
        let is_first_flood = {
            let mut state = self.lock();
            state.note(&event);
            if !state.is_silent() {
                self.news.notify_one();
            }
            state.too_much && !std::mem::replace(&mut state.told_too_much, true)
        };
        if is_first_flood {
            tracing::info!(dir = %self.dir.display(), "more changes in the folder at once than are kept: all of it is looked at instead");
        }
    }

    fn every(&self) -> humantime::FormattedDuration {
        humantime::format_duration(self.look_every)
    }

    fn nothing_is_watched(&self, error: &Error) {
        let (dir, every) = (self.dir.display(), self.every());
        // Too many open files: of this process, or of inotify.
        let is_limit = matches!(&error.kind, ErrorKind::Io(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()));
        let advice = if is_limit { "; raise fs.inotify.max_user_instances by sysctl and start again" } else { "" };
        tracing::warn!(%dir, %error, "the folder cannot be watched: new files are looked for every {every} instead of being found at once{advice}");
    }

    fn limit_reached(&self) {
        if std::mem::replace(&mut self.lock().told_limit, true) {
            return;
        }
        let (dir, every) = (self.dir.display(), self.every());
        tracing::warn!(%dir, "not every folder in there is watched: the system's limit is reached. New files in the others are looked for every {every} instead of being found at once; raise fs.inotify.max_user_watches by sysctl");
    }

    fn not_watched(&self, error: &Error) {
        if std::mem::replace(&mut self.lock().told_error, true) {
            tracing::debug!(%error, "not watched");
            return;
        }
        let (dir, every) = (self.dir.display(), self.every());
        tracing::warn!(%dir, %error, "not every folder in there is watched: new files in the others are looked for every {every}");
    }

    fn warn_if_remote(&self) {
        let kind = rustix::fs::statfs(&self.dir).map(|found| found.f_type);
        // The type differs between machines; the numbers have 32 bits on all.
        if kind.is_ok_and(|kind| REMOTE.iter().any(|known| i128::from(kind) & 0xffff_ffff == i128::from(*known))) {
            let (dir, every) = (self.dir.display(), self.every());
            tracing::info!(%dir, "the folder is on a network or FUSE file system, which may not tell of changes that other machines make: their new files are looked for every {every} (--look-every)");
        }
    }
}

impl State {
    fn is_silent(&self) -> bool {
        self.changed.is_empty() && !self.too_much
    }

    fn note(&mut self, event: &Event) {
        if event.need_rescan() {
            // What was made, moved or deleted is not known: all is watched anew by the next look.
            (self.named, self.names) = Default::default();
            self.be_overwhelmed();
            return;
        }
        let is_gone = match event.kind {
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => true,
            EventKind::Create(_)
            | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_))
            | EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            // That a file is read is no change, and one that is written to is looked at when it is closed.
            _ => return,
        };
        for path in &event.paths {
            for named in self.as_named(path) {
                self.changed_at(&named);
                if is_gone {
                    self.forget(&named);
                }
            }
            if is_gone {
                self.forget(path);
            }
        }
    }

    /// What looks call a path in a watched folder, or the folder itself.
    fn as_named(&self, path: &Path) -> Vec<PathBuf> {
        if let Some(names) = self.names.get(path) {
            return names.iter().cloned().collect();
        }
        let (Some(folder), Some(last)) = (path.parent(), path.file_name()) else { return Vec::new() };
        self.names.get(folder).into_iter().flatten().map(|named| named.join(last)).collect()
    }

    fn changed_at(&mut self, path: &Path) {
        let path = match path.file_name().unwrap_or_default() {
            // What it says holds for all that is beside it and below.
            last if last == IGNORE_FILE => path.parent().unwrap_or(path),
            // The daemon's own.
            last if last.as_encoded_bytes().starts_with(RESERVED_PREFIX.as_bytes()) => return,
            _ => path,
        };
        if self.too_much {
            return;
        }
        self.changed.insert(path.to_owned());
        if self.changed.len() > MOST {
            self.be_overwhelmed();
        }
    }

    fn be_overwhelmed(&mut self) {
        self.changed.clear();
        self.too_much = true;
    }

    /// A folder is watched by this name; returns whether it is watched already.
    fn add(&mut self, folder: &Path, real: &Path, identity: (u64, u64)) -> bool {
        self.forget(folder);
        let is_same = |name: &PathBuf| self.named.get(name).is_some_and(|(_, known)| *known == identity);
        let is_watched = self.names.get(real).is_some_and(|names| names.iter().any(is_same));
        self.names.entry(real.to_owned()).or_default().insert(folder.to_owned());
        self.named.insert(folder.to_owned(), (real.to_owned(), identity));
        is_watched
    }

    /// Neither this folder nor any below it is there as it was.
    fn forget(&mut self, folder: &Path) {
        let below = |path: &&PathBuf| path.starts_with(folder);
        let real = self.names.range(folder.to_owned()..).take_while(|(path, _)| below(path));
        let mut gone: Vec<PathBuf> = real.flat_map(|(_, names)| names.iter().cloned()).collect();
        let named = self.named.range(folder.to_owned()..).take_while(|(path, _)| below(path));
        gone.extend(named.map(|(name, _)| name.clone()));
        for name in gone {
            let Some((real, _)) = self.named.remove(&name) else { continue };
            if let Some(names) = self.names.get_mut(&real) {
                names.remove(&name);
                if names.is_empty() {
                    self.names.remove(&real);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const EVERY: Duration = Duration::from_secs(60);

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        (folder, root)
    }

    /// Waits until each of these paths was heard of.
    async fn until_heard(changes: &Changes, paths: &[PathBuf]) {
        let mut missing: BTreeSet<&PathBuf> = paths.iter().collect();
        let hear = async {
            while !missing.is_empty() {
                changes.heard().await;
                match changes.take() {
                    Heard::Paths(heard) => missing.retain(|path| !heard.contains(*path)),
                    Heard::TooMuch => panic!("one change is not too much"),
                }
            }
        };
        let heard = tokio::time::timeout(EVERY, hear).await;
        assert!(heard.is_ok(), "nothing was heard of {missing:?}");
    }

    /// Waits until all that happened so far was heard. One change makes several events, and a folder that is watched
    /// again between two of them is forgotten by the second: it is told as changed once more, and the next look watches it.
    async fn until_all_is_heard(changes: &Changes, root: &Path) {
        let marker = root.join(rand::random::<u64>().to_string());
        fs::write(&marker, "").unwrap();
        until_heard(changes, &[marker]).await;
    }

    #[tokio::test]
    async fn a_change_is_told_by_every_path_that_looks_take_to_it() {
        let (_folder, root) = folder();
        fs::create_dir(root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        let changes = Changes::of(&root, EVERY).unwrap();
        let folders = vec![root.clone(), root.join("a"), root.join("b"), root.join("gone")];
        assert_eq!(changes.watch(folders.clone()).len(), 3, "one is not there");
        assert!(changes.watch(folders).is_empty(), "they are watched");
        fs::write(root.join("a/new"), "x").unwrap();
        until_heard(&changes, &[root.join("a/new"), root.join("b/new")]).await;
        fs::rename(root.join("a/new"), root.join("moved")).unwrap();
        until_heard(&changes, &[root.join("a/new"), root.join("b/new"), root.join("moved")]).await;
    }

    #[tokio::test]
    async fn a_folder_that_is_moved_or_made_anew_is_watched_again() {
        let (_folder, root) = folder();
        let [a, b] = ["a", "b"].map(|name| root.join(name));
        let changes = Changes::of(&root, EVERY).unwrap();
        fs::create_dir_all(a.join("in")).unwrap();
        changes.watch(vec![root.clone(), a.clone(), a.join("in")]);
        fs::rename(&a, &b).unwrap();
        until_heard(&changes, &[a.clone(), b.clone()]).await;
        until_all_is_heard(&changes, &root).await;
        assert_eq!(changes.watch(vec![root.clone(), b.clone(), b.join("in")]).len(), 2);
        fs::write(b.join("in/new"), "x").unwrap();
        until_heard(&changes, &[b.join("in/new")]).await;
        fs::rename(&b, &a).unwrap();
        until_heard(&changes, &[a.clone(), b.clone()]).await;
        until_all_is_heard(&changes, &root).await;
        assert_eq!(changes.watch(vec![a.clone(), a.join("in")]).len(), 2, "moved back, it is watched by its old path");
        fs::remove_dir_all(&a).unwrap();
        until_heard(&changes, std::slice::from_ref(&a)).await;
        until_all_is_heard(&changes, &root).await;
        fs::create_dir(&a).unwrap();
        assert_eq!(changes.watch(vec![root.clone(), a.clone()]), [a.clone()].into());
        fs::write(a.join("new"), "x").unwrap();
        until_heard(&changes, &[a.join("new")]).await;
    }

    #[tokio::test]
    async fn more_than_is_kept_asks_for_a_look_at_all_and_the_next_change_is_told_again() {
        let (_folder, root) = folder();
        let changes = Changes::of(&root, EVERY).unwrap();
        changes.watch(vec![root.clone()]);
        let created = |n: usize| {
            Event::new(EventKind::Create(notify::event::CreateKind::File)).add_path(root.join(n.to_string()))
        };
        for n in 0..2 * MOST {
            changes.told.hear(Ok(created(n)));
            assert!(changes.told.lock().changed.len() <= MOST);
        }
        assert_eq!(changes.take(), Heard::TooMuch);
        changes.told.hear(Ok(created(0)));
        assert_eq!(changes.take(), Heard::Paths([root.join("0")].into()));
        let lost = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        changes.told.hear(Ok(lost));
        assert_eq!(changes.take(), Heard::TooMuch, "the system's own queue was full");
        assert_eq!(changes.watch(vec![root.clone()]).len(), 1, "it may have been moved meanwhile");
    }

    /// A system whose limit of watches is reached at once.
    #[derive(Debug)]
    struct AtLimit;

    impl Watcher for AtLimit {
        fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
            Ok(Self)
        }

        fn watch(&mut self, _: &Path, _: RecursiveMode) -> notify::Result<()> {
            Err(Error::new(ErrorKind::MaxFilesWatch))
        }

        fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
            Err(Error::watch_not_found())
        }

        fn kind() -> notify::WatcherKind {
            notify::WatcherKind::NullWatcher
        }
    }

    #[test]
    fn at_the_systems_limit_nothing_is_taken_for_watched() {
        let (_folder, root) = folder();
        let told = Arc::new(Told::new(&root, EVERY));
        let changes = Changes { watcher: Mutex::new(Box::new(AtLimit)), told: told.clone() };
        assert!(changes.watch(vec![root]).is_empty());
        assert_eq!((changes.folders(), told.lock().told_limit), (0, true));
    }

    #[test]
    fn what_is_read_or_written_or_the_daemons_own_is_no_news() {
        let (_folder, root) = folder();
        let told = Told::new(&root, EVERY);
        told.lock().add(&root, &root, (1, 1));
        let hear = |kind: EventKind, name: &str| told.hear(Ok(Event::new(kind).add_path(root.join(name))));
        hear(EventKind::Access(AccessKind::Open(AccessMode::Any)), "a");
        hear(EventKind::Modify(ModifyKind::Data(notify::event::DataChange::Any)), "a");
        hear(EventKind::Create(notify::event::CreateKind::File), ".drizzle-part-1");
        assert!(told.lock().is_silent());
        hear(EventKind::Access(AccessKind::Close(AccessMode::Write)), IGNORE_FILE);
        assert_eq!(told.lock().changed, [root.clone()].into(), "all below it is judged anew");
    }
}
