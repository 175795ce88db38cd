//! A power cut at every step of a download, from a first start to the shared file, on one file system and on two, and
//! with data that moves from one to the other. What the disk had not yet made durable is gone, or part of it; what is
//! found then must be true, and nothing may be left that nothing will ever delete.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use drizzle_proto::{ChunkSet, FileName, Manifest, PeerId};
use tokio_util::sync::CancellationToken;

use super::{
    assemble::assemble,
    disk::{Disk, Step},
    faults::{Faults, Survives},
    journal::{Journal, ShareRecord},
    partials::{Partials, record},
    paths::{make_parents, path_of},
    place::{Moved, Opened, Place as DataPlace, PlaceError, folder_above},
    testing::{content, verified},
};

/// What the download had been told was done when the power went.
#[derive(Debug, Default, PartialEq, Eq)]
struct Promised {
    id: bool,
    recorded: bool,
    shared: bool,
}

fn name() -> FileName {
    FileName::new("sub/folder/a").unwrap()
}

fn set(manifest: &Manifest, ranges: &str) -> ChunkSet {
    ChunkSet::from_ranges(manifest.layout().chunk_count(), &ranges.parse().unwrap()).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        // In memory, where a sync costs nothing: what it would do is the witness's affair.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        Self { folder }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("var").join("state")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }
}

/// A whole download, as the daemon does it; ends early when the power goes. One that moves begins without a
/// destination, and so in the folder of partial files.
fn download(
    place: &Place,
    disk: &Disk,
    moves: bool,
    promised: &mut Promised,
) -> Result<(), Box<dyn std::error::Error>> {
    let (data, manifest) = content(1);
    let journal = Journal::open(&place.state(), disk.clone())?;
    journal.peer_id([7; 16])?;
    promised.id = true;
    let partials = Partials::open(journal.folder(), disk.clone())?;
    let path = path_of(&place.out(), &name());
    let destination = Some(folder_above(&path));
    let never = CancellationToken::new();
    let whereabouts = DataPlace { journal: &journal, partials: &partials, cancel: &never, tell: &|_| {} };
    let Opened { mut partial, mut file, .. } = whereabouts.open(&name(), &manifest, destination.filter(|_| !moves))?;
    partial.store(verified(&data, &manifest, 0))?;
    partial.store(verified(&data, &manifest, 1))?;
    record(&journal, &name(), &partial, &set(&manifest, "0-1"))?;
    promised.recorded = true;
    if moves {
        Opened { partial, file, .. } = whereabouts.open(&name(), &manifest, destination)?;
    }
    partial.store(verified(&data, &manifest, 2))?;
    make_parents(disk, &place.out(), &name())?;
    let stamp = assemble(&partial, &path, &|| true)?;
    drop(file);
    let share = ShareRecord { path, stamp, manifest, shared: true };
    let ended = journal.put_shares(&[(name(), share)], &|_| false)?;
    promised.shared = true;
    ended.iter().try_for_each(|ended| partials.discard(&journal, ended))?;
    Ok(())
}

#[test]
fn a_move_to_another_file_system_that_is_cancelled_ends_soon_and_leaves_the_data_where_it_was() {
    let (place, (data, manifest)) = (Place::new(), content(1));
    let journal = Journal::open(&place.state(), Disk::default()).unwrap();
    let partials = Partials::open(journal.folder(), Disk::default()).unwrap();
    let cancel = CancellationToken::new();
    let told = std::cell::Cell::new(0);
    // Ctrl-C after the first chunk.
    let tell = |_: Moved<'_>| {
        told.set(told.get() + 1);
        cancel.cancel();
    };
    let whereabouts = DataPlace { journal: &journal, partials: &partials, cancel: &cancel, tell: &tell };
    let Opened { partial, file: _file, .. } = whereabouts.open(&name(), &manifest, None).unwrap();
    for chunk in 0..3 {
        partial.store(verified(&data, &manifest, chunk)).unwrap();
    }
    record(&journal, &name(), &partial, &set(&manifest, "0-2")).unwrap();
    let [before] = &journal.partials().unwrap()[..] else { panic!("one download") };
    let moved = whereabouts.relocate(before, &place.out());
    assert!(matches!(moved, Err(PlaceError::Cancelled)), "{moved:?}");
    assert_eq!(told.get(), 1, "it ends between two chunks");
    let [after] = &journal.partials().unwrap()[..] else { panic!("one download") };
    assert_eq!((&after.chunks, partials.path_of(after)), (&before.chunks, partials.path_of(before)));
    assert_eq!(partial.prove(&after.chunks, &CancellationToken::new()), after.chunks);
    assert!(hidden(&place.out()).is_empty(), "nothing is left in the user's folder");
}

/// What a restart finds, if it is not true.
fn lie(place: &Place, promised: &Promised) -> Result<(), String> {
    let (data, manifest) = content(1);
    let arrived = match fs::read(path_of(&place.out(), &name())) {
        Ok(found) if found == data => true,
        Ok(_) => return Err("a wrong file under the final name".into()),
        Err(_) => false,
    };
    let journal = Journal::open(&place.state(), Disk::default()).map_err(|error| error.to_string())?;
    let partials = Partials::open(journal.folder(), Disk::default()).map_err(|error| error.to_string())?;
    let id = journal.peer_id([8; 16]).map_err(|error| error.to_string())?;
    if promised.id && id != PeerId::from_bytes([7; 16]) {
        return Err("the peer's id is another one".into());
    }
    let mut believed = None;
    let records = journal.partials().map_err(|error| error.to_string())?;
    partials.sweep(&journal, &records).map_err(|error| error.to_string())?;
    let needed: Vec<PathBuf> = records.iter().map(|record| partials.path_of(record)).collect();
    let left = hidden(&place.folder.path().join("out")).into_iter().chain(hidden(partials.folder()));
    if let Some(left) = left.into_iter().find(|path| !needed.contains(path)) {
        return Err(format!("{} is left for ever", left.display()));
    }
    for partial in records {
        if partials.is_whole(&partial).map_err(|error| error.to_string())? {
            let file = partials.of(&partial);
            if file.prove(&partial.chunks, &CancellationToken::new()) != partial.chunks {
                return Err(format!("chunks {} are believed and not there", partial.chunks.ranges()));
            }
            believed = Some(partial.chunks);
        }
    }
    let shares = journal.shares().map_err(|error| error.to_string())?;
    if !shares.is_empty() && !arrived {
        return Err("a file is shared that is not there".into());
    }
    if promised.recorded && !arrived && believed != Some(set(&manifest, "0-1")) {
        return Err(format!("recorded chunks are lost: {believed:?}"));
    }
    if promised.shared && (!arrived || shares.len() != 1) {
        return Err("a finished file is lost".into());
    }
    Ok(())
}

/// Every file of a folder, and of those in it, that is not the downloaded one.
fn hidden(folder: &Path) -> Vec<PathBuf> {
    let all = ignore::WalkBuilder::new(folder).standard_filters(false).build().flatten();
    let files = all.filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()));
    files.map(ignore::DirEntry::into_path).filter(|path| !path.ends_with("a")).collect()
}

/// What is unusual about a run.
#[derive(Debug, Clone, Copy, Default)]
struct Setting {
    /// Syncs that do nothing.
    ignored: Option<fn(&Step<'_>) -> bool>,
    /// Half of the write at the cut is done.
    torn: bool,
    /// The destination is on another file system.
    elsewhere: bool,
    /// The data is moved on the way.
    moves: bool,
}

impl Setting {
    fn place(self) -> (Place, Arc<Faults>, Disk) {
        let (place, (faults, disk)) = (Place::new(), Faults::disk());
        if let Some(ignored) = self.ignored {
            faults.ignore(ignored);
        }
        if self.elsewhere {
            faults.is_elsewhere(&place.out());
        }
        (place, faults, disk)
    }

    /// The steps of an uninterrupted run.
    fn steps(self) -> usize {
        let (place, faults, disk) = self.place();
        let mut promised = Promised::default();
        download(&place, &disk, self.moves, &mut promised).unwrap();
        assert_eq!(promised, Promised { id: true, recorded: true, shared: true });
        faults.steps()
    }

    /// The first cut after which a restart finds something untrue.
    fn first_lie(self) -> Option<String> {
        let steps = self.steps();
        let some = [1, 2].map(Survives::Some);
        let all = [Survives::Nothing, Survives::Everything, Survives::Names, Survives::Data, Survives::Deletions];
        all.into_iter().chain(some).find_map(|survives| {
            (0..=steps).find_map(|cut| {
                let (place, faults, disk) = self.place();
                faults.cut_at(cut, self.torn);
                let mut promised = Promised::default();
                let _ = download(&place, &disk, self.moves, &mut promised);
                faults.cut_power(survives);
                let lie = lie(&place, &promised).err()?;
                Some(format!("cut at step {cut} of {steps}, {survives:?} survives: {lie}; {}", last(&faults)))
            })
        })
    }
}

fn last(faults: &Arc<Faults>) -> String {
    let log = faults.log();
    log[log.len().saturating_sub(6)..].join(", ")
}

#[test]
fn no_power_cut_makes_a_restart_believe_or_lose_what_it_must_not() {
    assert_eq!(Setting::default().first_lie(), None);
}

#[test]
fn no_torn_write_does_either() {
    assert_eq!(Setting { torn: true, ..Setting::default() }.first_lie(), None);
}

#[test]
fn nor_does_a_power_cut_with_a_destination_on_another_file_system() {
    assert_eq!(Setting { elsewhere: true, ..Setting::default() }.first_lie(), None);
}

#[test]
fn nor_does_a_power_cut_while_data_moves_to_another_file_system() {
    assert_eq!(Setting { elsewhere: true, moves: true, ..Setting::default() }.first_lie(), None);
}

#[test]
fn a_step_that_fails_once_costs_one_attempt_at_most() {
    for (elsewhere, moves) in [(false, false), (true, false), (true, true)] {
        let setting = Setting { elsewhere, moves, ..Setting::default() };
        for step in 0..setting.steps() {
            for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
                let (place, faults, disk) = setting.place();
                faults.fail_at(step, kind);
                let mut promised = Promised::default();
                let first = download(&place, &disk, moves, &mut promised);
                let context = format!("{kind:?} at step {step}, {setting:?}: {first:?}; {}", last(&faults));
                assert_eq!(lie(&place, &promised), Ok(()), "{context}");
                // Placed already, it would be found there.
                if !path_of(&place.out(), &name()).exists() {
                    download(&place, &disk, moves, &mut promised).unwrap_or_else(|error| panic!("{context}: {error}"));
                }
                let left: Vec<_> = fs::read_dir(place.out().join("sub/folder")).unwrap().map(Result::unwrap).collect();
                assert_eq!(left.len(), 1, "{context}: {left:?}");
            }
        }
    }
}

fn is_partial(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.ends_with("partial"))
}

#[test]
fn a_missing_sync_of_the_data_is_noticed() {
    let of_partial = Some((|step| matches!(step, Step::Sync(path) if is_partial(path))) as fn(&Step<'_>) -> bool);
    assert!(Setting { ignored: of_partial, ..Setting::default() }.first_lie().is_some());
    let beside: fn(&Step<'_>) -> bool =
        |step| matches!(step, Step::Sync(path) if path.to_string_lossy().contains("/.drizzle-"));
    for moves in [false, true] {
        let setting = Setting { ignored: Some(beside), elsewhere: true, moves, torn: false };
        assert!(setting.first_lie().is_some(), "{moves}");
    }
}

#[test]
fn a_missing_sync_of_a_folder_is_noticed() {
    type Which = fn(&Step<'_>) -> bool;
    let of_the_file: Which = |step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("out/sub/folder"));
    for (ignored, elsewhere) in [
        (of_the_file, false),
        (of_the_file, true),
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("out")), false),
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("out/sub")), false),
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("partial")), false),
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("state")), false),
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("var")), false),
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("out")), true),
    ] as [(Which, bool); 8]
    {
        assert!(Setting { ignored: Some(ignored), elsewhere, ..Setting::default() }.first_lie().is_some());
    }
}
