//! A disk that forgets what was not synced, and refuses steps on demand.
//!
//! Files lie in a real folder. Before each step the old state is noted; a sync makes it unneeded. [`Faults::cut_power`]
//! takes back what was not synced, latest first, so that the folder is what a machine would find after a power cut.
//! How much of it is taken back is [`Survives`]: a disk may well have written what nothing asked it to.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use redb::StorageBackend;

use super::disk::{Disk, Step, Witness};

/// What of that which was not synced is there after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survives {
    Nothing,
    /// As after kill -9.
    Everything,
    /// Names and no data: what a journal of metadata alone leaves.
    Names,
    Data,
    /// Deletions and nothing else: what goes before what was to replace it is there.
    Deletions,
    /// Each write and each name for itself, by this seed; the names of one path in their order.
    Some(u64),
}

/// How to take a step back.
#[derive(Debug)]
enum Undo {
    /// A file was made.
    Made,
    /// A folder was made. What is in it goes with it.
    MadeFolder,
    /// Bytes were overwritten.
    Bytes { at: u64, old: Vec<u8>, len: u64 },
    /// The file had this length.
    Len(u64),
    /// It got its name from this one.
    RenamedFrom(PathBuf),
    /// It was deleted, with this content.
    Removed(Vec<u8>),
}

impl Undo {
    /// Whether a sync of the file itself makes the step durable, as opposed to one of its folder.
    fn is_data(&self) -> bool {
        matches!(self, Self::Bytes { .. } | Self::Len(_))
    }
}

#[derive(Default)]
struct State {
    undo: Vec<(PathBuf, Undo)>,
    steps: usize,
    /// The step from which on everything fails: the power is gone.
    cut_at: Option<usize>,
    /// This one step fails, in this way.
    fail_at: Option<(usize, io::ErrorKind)>,
    /// Of the last write before the cut, only half is done.
    torn: bool,
    /// Syncs that do nothing: what a missing fsync would be.
    ignored: Option<fn(&Step<'_>) -> bool>,
    /// Nothing can be renamed into this folder from elsewhere: it is on another file system.
    elsewhere: Option<PathBuf>,
    log: Vec<String>,
}

impl State {
    fn names_are_durable(&mut self, folder: &Path) {
        let (durable, rest) = std::mem::take(&mut self.undo)
            .into_iter()
            .partition(|(path, undo)| path.parent() == Some(folder) && !undo.is_data());
        self.undo = rest;
        let durable: Vec<(PathBuf, Undo)> = durable;
        for (to, undo) in durable {
            if let Undo::RenamedFrom(from) = undo {
                // What is not yet durable of the file's data goes by its new name from now on.
                for (path, _) in self.undo.iter_mut().filter(|(path, undo)| *path == from && undo.is_data()) {
                    path.clone_from(&to);
                }
                self.undo.retain(|(path, undo)| *path != from || undo.is_data());
            }
        }
    }
}

/// The witness.
#[derive(Default)]
pub(crate) struct Faults(Mutex<State>);

impl Faults {
    /// A witness, and a disk that it watches.
    pub(crate) fn disk() -> (Arc<Self>, Disk) {
        let faults = Arc::new(Self::default());
        (faults.clone(), Disk::watched(faults))
    }

    /// Every step from this one on fails, as if the power were gone; `torn` does half of a write that is cut.
    pub(crate) fn cut_at(&self, step: usize, torn: bool) {
        let mut state = self.0.lock().unwrap();
        (state.cut_at, state.torn) = (Some(step), torn);
    }

    /// This one step fails; those after it do not.
    pub(crate) fn fail_at(&self, step: usize, kind: io::ErrorKind) {
        self.0.lock().unwrap().fail_at = Some((step, kind));
    }

    /// Syncs like these are taken to be done, but make nothing durable.
    pub(crate) fn ignore(&self, which: fn(&Step<'_>) -> bool) {
        self.0.lock().unwrap().ignored = Some(which);
    }

    /// From now on this folder is on another file system.
    pub(crate) fn is_elsewhere(&self, folder: &Path) {
        self.0.lock().unwrap().elsewhere = Some(folder.to_owned());
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> usize {
        self.0.lock().unwrap().steps
    }

    /// What was done, for a failing test.
    pub(crate) fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    /// Takes back what was not synced and does not survive.
    pub(crate) fn cut_power(&self, survives: Survives) {
        let mut rng = StdRng::seed_from_u64(if let Survives::Some(seed) = survives { seed } else { 0 });
        let mut lost_names = HashSet::new();
        let mut lost = Vec::new();
        for (path, undo) in self.0.lock().unwrap().undo.drain(..) {
            let is_lost = match survives {
                Survives::Nothing => true,
                Survives::Everything => false,
                Survives::Names => undo.is_data(),
                Survives::Data => !undo.is_data(),
                Survives::Deletions => !matches!(undo, Undo::Removed(_)),
                Survives::Some(_) => rng.random_bool(0.5),
            };
            let follows = |path: &PathBuf| !undo.is_data() && lost_names.contains(path);
            let renamed = if let Undo::RenamedFrom(from) = &undo { follows(from) } else { false };
            if is_lost || renamed || follows(&path) {
                if !undo.is_data() {
                    lost_names.insert(path.clone());
                }
                lost.push((path, undo));
            }
        }
        for (path, undo) in lost.into_iter().rev() {
            match undo {
                Undo::MadeFolder => _ = fs::remove_dir_all(&path),
                Undo::Made => _ = fs::remove_file(&path),
                Undo::Bytes { at, old, len } => {
                    if let Ok(file) = File::options().write(true).open(&path) {
                        file.write_all_at(&old, at).unwrap();
                        file.set_len(len).unwrap();
                    }
                }
                Undo::Len(len) => {
                    if let Ok(file) = File::options().write(true).open(&path) {
                        file.set_len(len).unwrap();
                    }
                }
                Undo::RenamedFrom(from) => _ = fs::rename(&path, from),
                // Its folder may be lost as well.
                Undo::Removed(content) => _ = fs::write(&path, content),
            }
        }
    }
}

fn old_bytes(path: &Path, at: u64, len: usize) -> (Vec<u8>, u64) {
    let Ok(file) = File::open(path) else { return (Vec::new(), 0) };
    let size = file.metadata().unwrap().len();
    let mut old = vec![0; len.min(usize::try_from(size.saturating_sub(at)).unwrap())];
    file.read_exact_at(&mut old, at).unwrap();
    (old, size)
}

impl Witness for Faults {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.steps += 1;
        let text = match step {
            Step::Write { path, bytes, at } => format!("Write {} {}+{}", path.display(), at, bytes.len()),
            other => format!("{other:?}"),
        };
        state.log.push(text);
        if state.cut_at.is_some_and(|at| state.steps > at) {
            if let Step::Write { path, bytes, at } = step
                && state.torn
                && state.cut_at == Some(state.steps - 1)
            {
                let half = &bytes[..bytes.len() / 2];
                File::options().write(true).open(path)?.write_all_at(half, at)?;
            }
            return Err(io::Error::other("the power is gone"));
        }
        let steps = state.steps;
        if let Some((_, kind)) = state.fail_at.take_if(|(at, _)| steps > *at) {
            return Err(kind.into());
        }
        if state.ignored.is_some_and(|ignored| ignored(&step)) {
            return Ok(());
        }
        match step {
            Step::Open(path) if !path.exists() => state.undo.push((path.to_owned(), Undo::Made)),
            Step::Open(_) => {}
            Step::MakeFolder(path) if !path.exists() => state.undo.push((path.to_owned(), Undo::MadeFolder)),
            Step::MakeFolder(_) => {}
            Step::Write { path, bytes, at } => {
                let (old, len) = old_bytes(path, at, bytes.len());
                state.undo.push((path.to_owned(), Undo::Bytes { at, old, len }));
            }
            Step::Resize(path) => {
                let len = path.metadata().map_or(0, |metadata| metadata.len());
                state.undo.push((path.to_owned(), Undo::Len(len)));
            }
            Step::Sync(path) => state.undo.retain(|(other, undo)| other != path || !undo.is_data()),
            Step::Rename { from, to } => {
                let elsewhere = |path: &Path| state.elsewhere.as_ref().is_some_and(|folder| path.starts_with(folder));
                if elsewhere(from) != elsewhere(to) {
                    return Err(io::ErrorKind::CrossesDevices.into());
                }
                if !to.exists() {
                    state.undo.push((to.to_owned(), Undo::RenamedFrom(from.to_owned())));
                }
            }
            Step::Remove(path) => {
                if let Ok(content) = fs::read(path) {
                    state.undo.push((path.to_owned(), Undo::Removed(content)));
                }
            }
            Step::SyncFolder(folder) => state.names_are_durable(folder),
        }
        Ok(())
    }
}

/// The journal's database on a watched disk.
#[derive(Debug)]
pub(crate) struct WatchedBackend {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl WatchedBackend {
    /// On an open file.
    pub(crate) fn new(file: File, path: &Path, disk: &Disk) -> Self {
        Self { file, path: path.to_owned(), disk: disk.clone() }
    }
}

impl StorageBackend for WatchedBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.resize(&self.file, &self.path, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync(&self.file, &self.path)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(&self.file, &self.path, data, offset)
    }
}
