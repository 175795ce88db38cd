//! A power cut at every step of a download, from the first record to the shared file. Whatever the disk had not yet
//! made durable is gone; what is found then must be true.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use drizzle_proto::{ChunkSet, FileName, Manifest};
use tokio_util::sync::CancellationToken;

use super::{
    assemble::assemble,
    disk::{Disk, Step},
    faults::Faults,
    journal::{Journal, ShareRecord},
    partials::{Partials, record},
    testing::{content, verified},
};

/// What the download had been told was done when the power went.
#[derive(Debug, Default, PartialEq, Eq)]
struct Promised {
    recorded: bool,
    shared: bool,
}

fn name() -> FileName {
    FileName::new("a").unwrap()
}

fn set(manifest: &Manifest, ranges: &str) -> ChunkSet {
    ChunkSet::from_ranges(manifest.layout().chunk_count(), &ranges.parse().unwrap()).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        Self { folder }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn destination(&self) -> PathBuf {
        self.folder.path().join("out").join("a")
    }
}

/// A whole download, as the daemon does it; ends early when the power goes.
fn download(place: &Place, disk: &Disk, promised: &mut Promised) -> Result<(), Box<dyn std::error::Error>> {
    let (data, manifest) = content(1);
    let journal = Journal::open(&place.state(), disk.clone())?;
    let partials = Partials::open(journal.folder(), disk.clone())?;
    journal.begin_partial(&name(), &manifest)?;
    let partial = partials.open_file(&name(), manifest.clone(), true)?;
    partial.write(&verified(&data, &manifest, 0))?;
    partial.write(&verified(&data, &manifest, 1))?;
    record(&journal, &name(), &partial, &set(&manifest, "0-1"))?;
    promised.recorded = true;
    partial.write(&verified(&data, &manifest, 2))?;
    let path = place.destination();
    let stamp = assemble(&partial, &path)?;
    let share = ShareRecord { path, stamp, manifest, shared: true };
    journal.put_shares(&[(name(), share)], &|_| false)?;
    promised.shared = true;
    Ok(())
}

/// What a restart finds, if it is not true.
fn lie(place: &Place, promised: &Promised) -> Result<(), String> {
    let (data, manifest) = content(1);
    let arrived = match fs::read(place.destination()) {
        Ok(found) if found == data => true,
        Ok(_) => return Err("a wrong file under the final name".into()),
        Err(_) => false,
    };
    if !place.state().exists() {
        return Ok(());
    }
    let journal = Journal::open(&place.state(), Disk::default()).map_err(|error| error.to_string())?;
    let partials = Partials::open(journal.folder(), Disk::default()).map_err(|error| error.to_string())?;
    let mut believed = None;
    for partial in journal.partials().map_err(|error| error.to_string())? {
        if partials.is_whole(&partial.name, &partial.manifest) {
            let file = partials.open_file(&partial.name, partial.manifest, false).map_err(|error| error.to_string())?;
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

/// The steps of an uninterrupted run.
fn steps() -> usize {
    let (place, (faults, disk)) = (Place::new(), Faults::disk());
    let mut promised = Promised::default();
    download(&place, &disk, &mut promised).unwrap();
    assert_eq!(promised, Promised { recorded: true, shared: true });
    faults.steps()
}

/// The first cut after which a restart finds something untrue.
fn first_lie(ignored: Option<fn(&Step<'_>) -> bool>, torn: bool) -> Option<String> {
    (0..=steps()).find_map(|cut| {
        let (place, (faults, disk)) = (Place::new(), Faults::disk());
        if let Some(ignored) = ignored {
            faults.ignore(ignored);
        }
        faults.cut_at(cut, torn);
        let mut promised = Promised::default();
        let _ = download(&place, &disk, &mut promised);
        faults.cut_power();
        let lie = lie(&place, &promised).err()?;
        Some(format!("cut at step {cut}: {lie}; {}", last(&faults)))
    })
}

fn last(faults: &Arc<Faults>) -> String {
    let log = faults.log();
    log[log.len().saturating_sub(6)..].join(", ")
}

#[test]
fn no_power_cut_makes_a_restart_believe_or_lose_what_it_must_not() {
    assert_eq!(first_lie(None, false), None);
}

#[test]
fn no_torn_write_does_either() {
    assert_eq!(first_lie(None, true), None);
}

fn is_partial(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.ends_with("partial"))
}

#[test]
fn a_missing_sync_of_the_data_is_noticed() {
    assert!(first_lie(Some(|step| matches!(step, Step::Sync(path) if is_partial(path))), false).is_some());
}

#[test]
fn a_missing_sync_of_a_folder_is_noticed() {
    for ignored in [
        (|step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("out"))) as fn(&Step<'_>) -> bool,
        |step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("partial")),
        |step| matches!(step, Step::SyncFolder(folder) if folder.ends_with("state")),
    ] {
        assert!(first_lie(Some(ignored), false).is_some());
    }
}
