//! What is shared, adopted, unshared; by files in a folder of their own.

use std::{fs, os::unix::fs::FileExt, path::Path};

use super::*;
use crate::store::disk::Disk;

fn sharer(folder: &Path) -> Sharer {
    let dir = folder.join("dir");
    fs::create_dir_all(&dir).unwrap();
    let journal = Journal::open(&folder.join("state"), Disk::default()).unwrap();
    let partials = Partials::open(journal.folder(), Disk::default()).unwrap();
    Sharer {
        journal: Arc::new(journal),
        partials: Arc::new(partials),
        holdings: Arc::default(),
        dir: dir.canonicalize().unwrap(),
        progress: HashProgress::default(),
        stop: CancellationToken::new(),
    }
}

fn share(sharer: &Sharer, name: &str, chunk_size: Option<u32>) -> FileInfo {
    let (found, skipped) = sharer.find(&[sharer.dir.join(name)], None).unwrap();
    assert!(skipped.is_empty());
    let mut hashed = sharer.share_found(found, chunk_size, &HashProgress::default(), &|_| false).unwrap();
    hashed.remove(0).1.unwrap()
}

#[test]
fn the_same_content_in_other_chunks_is_adopted_and_other_content_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    fs::write(sharer.dir.join("a"), vec![7; 100_000]).unwrap();
    fs::write(sharer.dir.join("b"), vec![8; 100_000]).unwrap();
    let registered = share(&sharer, "a", Some(1 << 15));
    let other = share(&sharer, "b", Some(1 << 15));
    let ours = share(&sharer, "a", Some(1 << 14));
    assert_ne!(ours.id, registered.id);
    let refusal =
        |registered: FileInfo| Refusal { ours: ours.clone(), registered: Some(registered), detail: String::new() };
    assert!(!sharer.adopt_chunk_size(&refusal(other), &|_| false).unwrap());
    assert_eq!(sharer.holdings.get(&ours.name).unwrap().manifest.id(), ours.id);
    assert!(sharer.adopt_chunk_size(&refusal(registered.clone()), &|_| false).unwrap());
    assert_eq!(sharer.holdings.get(&ours.name).unwrap().manifest.id(), registered.id);
    let recorded = sharer.journal.shares().unwrap().into_iter().find(|(name, _)| *name == ours.name).unwrap().1;
    assert_eq!(recorded.manifest.id(), registered.id, "a restart does not hash it a third time");
}

#[test]
fn a_sparse_file_has_the_hashes_of_its_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    let (sparse, dense) = (sharer.dir.join("sparse"), sharer.dir.join("dense"));
    let file = fs::File::create(&sparse).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(b"x", (3 << 20) - 1).unwrap();
    fs::write(&dense, fs::read(&sparse).unwrap()).unwrap();
    assert_eq!(share(&sharer, "sparse", Some(1 << 20)).id, share(&sharer, "dense", Some(1 << 20)).id);
}

#[test]
fn offering_a_file_ends_its_unfinished_download_unless_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    fs::write(sharer.dir.join("a"), vec![7; 100_000]).unwrap();
    let info = share(&sharer, "a", None);
    let manifest = sharer.holdings.get(&info.name).unwrap().manifest;
    let begin = || {
        sharer.journal.begin_partial(&info.name, &manifest).unwrap();
        sharer.partials.open_file(&info.name, manifest.clone(), false).unwrap();
    };
    let (found, _) = sharer.find(&[sharer.dir.join("a")], None).unwrap();
    for runs in [true, false] {
        begin();
        let is_downloading = |_: &FileName| {
            assert!(sharer.partials.is_turn_taken(), "none begins between the answer and what follows from it");
            runs
        };
        sharer.share_found(found.clone(), None, &HashProgress::default(), &is_downloading).unwrap();
        assert_eq!(sharer.partials.path(&info.name).exists(), runs);
        assert_eq!(sharer.journal.partial(&info.name).unwrap().is_some(), runs);
    }
}

#[test]
fn an_unshared_file_is_not_offered_by_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    {
        let sharer = sharer(folder.path());
        fs::write(sharer.dir.join("a"), "a").unwrap();
        sharer.share_folder(&|_| false).unwrap();
        assert!(sharer.unshare(&FileName::new("a").unwrap()).unwrap().is_some());
    }
    let sharer = sharer(folder.path());
    sharer.share_folder(&|_| false).unwrap();
    assert_eq!(sharer.holdings.counts().shared, 0);
}
