//! What is shared, adopted, unshared; by files in a folder of their own.

use std::{fs, os::unix::fs::FileExt, path::Path};

use super::*;
use crate::store::disk::Disk;

const IDLE: Busy<'_> = Busy { name: &|_| false, path: &|_| false };

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
        shelf: crate::share::Shelf::new(crate::share::Exclusions::new(&[]).unwrap(), std::time::Duration::ZERO),
        trust: drizzle_proto::trust::TrustedKeys::default(),
        untrusted: crate::share::Untrusted::default(),
        progress: HashProgress::default(),
        stop: CancellationToken::new(),
    }
}

fn share(sharer: &Sharer, name: &str, chunk_size: Option<u32>) -> FileInfo {
    let Scanned { found, failed, .. } = sharer.find(&[sharer.dir.join(name)], None).unwrap();
    assert!(failed.is_empty());
    let mut hashed =
        sharer.share_found(found, Wish { chunk_size, replace: false }, &HashProgress::default(), &|_| false).unwrap();
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
fn a_file_that_is_shared_as_it_is_is_not_read_again_and_one_that_was_changed_in_secret_is() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    let path = sharer.dir.join("a");
    fs::write(&path, vec![7; 100_000]).unwrap();
    let first = share(&sharer, "a", Some(1 << 15));
    // Hashed again it would have other chunks.
    assert_eq!(share(&sharer, "a", None), first);
    assert_ne!(share(&sharer, "a", Some(1 << 14)).id, first.id, "other chunks are wanted");
    let before = share(&sharer, "a", Some(1 << 15));
    let (file, modified) =
        (fs::File::options().write(true).open(&path).unwrap(), path.metadata().unwrap().modified().unwrap());
    file.write_all_at(b"x", 50_000).unwrap();
    file.set_modified(modified).unwrap();
    assert_ne!(share(&sharer, "a", None).id, before.id);
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
        sharer.journal.begin_partial(&info.name, &manifest, None).unwrap();
        let record = sharer.journal.partial(&info.name).unwrap().unwrap();
        let _ = sharer.partials.of(&record).make();
    };
    let found = sharer.find(&[sharer.dir.join("a")], None).unwrap().found;
    for runs in [true, false] {
        begin();
        let is_downloading = |_: &FileName| {
            assert!(sharer.partials.is_turn_taken(), "none begins between the answer and what follows from it");
            runs
        };
        sharer.share_found(found.clone(), Wish::default(), &HashProgress::default(), &is_downloading).unwrap();
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
        sharer.share_folder(&IDLE).unwrap();
        assert!(sharer.unshare(&FileName::new("a").unwrap()).unwrap().is_some());
    }
    let sharer = sharer(folder.path());
    sharer.share_folder(&IDLE).unwrap();
    assert_eq!(sharer.holdings.counts().shared, 0);
}

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

fn shared(sharer: &Sharer) -> usize {
    sharer.holdings.counts().shared
}

#[test]
fn a_start_without_the_disk_forgets_nothing_and_shares_nothing_that_was_withdrawn() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, away) = (folder.path().join("dir"), folder.path().join("away"));
    {
        let sharer = sharer(folder.path());
        for file in ["a", "b"] {
            fs::write(sharer.dir.join(file), file).unwrap();
        }
        sharer.share_folder(&IDLE).unwrap();
        assert!(sharer.unshare(&name("b")).unwrap().is_some());
    }
    fs::rename(&dir, &away).unwrap();
    {
        let sharer = sharer(folder.path());
        sharer.share_folder(&IDLE).unwrap();
        let state = sharer.shelf.state(&sharer.dir);
        assert_eq!((shared(&sharer), state.folder_is_away, state.missing), (0, true, vec![name("a")]));
    }
    fs::remove_dir(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    let sharer = sharer(folder.path());
    sharer.share_folder(&IDLE).unwrap();
    assert_eq!(shared(&sharer), 1, "what was withdrawn stays withdrawn");
    assert!(sharer.holdings.get(&name("a")).is_some());
    assert_eq!(sharer.progress.read().files_done, 0, "nothing is hashed again");
    assert_eq!(sharer.shelf.state(&sharer.dir), ShelfState::default());
}

#[test]
fn a_share_from_elsewhere_whose_drive_is_away_at_a_start_is_offered_when_it_is_back() {
    let (folder, drive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, away) = (drive.path().join("a"), drive.path().join("moved"));
    {
        let sharer = sharer(folder.path());
        fs::write(&path, "a").unwrap();
        let found = sharer.find(std::slice::from_ref(&path), None).unwrap().found;
        sharer.share_found(found, Wish::default(), &HashProgress::default(), &|_| false).unwrap();
    }
    fs::rename(&path, &away).unwrap();
    let sharer = sharer(folder.path());
    sharer.share_folder(&IDLE).unwrap();
    assert_eq!((shared(&sharer), sharer.shelf.state(&sharer.dir).missing), (0, vec![name("a")]));
    fs::rename(&away, &path).unwrap();
    assert!(sharer.look_at([name("a")], &IDLE).unwrap().is_empty(), "it is as it was");
    assert_eq!((shared(&sharer), sharer.shelf.state(&sharer.dir).missing), (1, vec![]));
}

#[test]
fn a_file_that_is_deleted_is_no_longer_offered_and_is_offered_again_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    let (path, away) = (sharer.dir.join("a"), folder.path().join("away"));
    fs::write(&path, "a").unwrap();
    fs::write(sharer.dir.join("b"), "b").unwrap();
    sharer.share_folder(&IDLE).unwrap();
    let id = sharer.holdings.get(&name("a")).unwrap().manifest.id();
    assert!(sharer.look_at([name("a")], &IDLE).unwrap().is_empty());
    fs::rename(&path, &away).unwrap();
    sharer.look_at([name("a")], &IDLE).unwrap();
    assert_eq!(shared(&sharer), 1);
    assert!(matches!(sharer.holdings.open_chunk(id, 0), Err(crate::holdings::ReadError::Gone)));
    fs::rename(&away, &path).unwrap();
    assert!(sharer.look_at([name("a")], &IDLE).unwrap().is_empty(), "size, time and identity are the same");
    assert!(sharer.holdings.open_chunk(id, 0).is_ok());
    // Of the same size and time, and yet another file.
    fs::rename(&path, &away).unwrap();
    sharer.look_at([name("a")], &IDLE).unwrap();
    fs::write(&path, "x").unwrap();
    let time = away.metadata().unwrap().modified().unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let found = sharer.look_at([name("a")], &IDLE).unwrap();
    assert_eq!((shared(&sharer), found.len()), (1, 1), "its hash is taken first");
}

#[test]
fn a_missing_file_that_is_unshared_is_not_offered_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    let (path, away) = (sharer.dir.join("a"), folder.path().join("away"));
    fs::write(&path, "a").unwrap();
    sharer.share_folder(&IDLE).unwrap();
    fs::rename(&path, &away).unwrap();
    sharer.look_at([name("a")], &IDLE).unwrap();
    assert!(sharer.unshare(&name("a")).unwrap().is_some());
    assert!(sharer.unshare(&name("a")).unwrap().is_none(), "once");
    fs::rename(&away, &path).unwrap();
    assert!(sharer.look_at([name("a")], &IDLE).unwrap().is_empty());
    assert_eq!(shared(&sharer), 0);
}

#[test]
fn a_touched_file_is_hashed_again_and_offered() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    let path = sharer.dir.join("a");
    fs::write(&path, "a").unwrap();
    sharer.share_folder(&IDLE).unwrap();
    let id = sharer.holdings.get(&name("a")).unwrap().manifest.id();
    let touch = |seconds| {
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    touch(1000);
    assert!(matches!(sharer.holdings.open_chunk(id, 0), Err(crate::holdings::ReadError::InDoubt)));
    let found = sharer.look_at([name("a")], &IDLE).unwrap();
    sharer.hash(found, &|_| false).unwrap();
    assert!(sharer.holdings.open_chunk(id, 0).is_ok());
    fs::write(&path, "b").unwrap();
    touch(2000);
    let found = sharer.look_at([name("a")], &IDLE).unwrap();
    sharer.hash(found, &|_| false).unwrap();
    assert!(matches!(sharer.holdings.open_chunk(id, 0), Err(crate::holdings::ReadError::Changed)));
}

#[test]
fn a_file_that_is_still_copied_waits_until_it_is_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let day = std::time::Duration::from_secs(86_400);
    let sharer = Sharer { shelf: Shelf::new(Exclusions::new(&[]).unwrap(), day), ..sharer(folder.path()) };
    let path = sharer.dir.join("a");
    fs::write(&path, "half").unwrap();
    fs::write(sharer.dir.join("b.part"), "half").unwrap();
    sharer.share_folder(&IDLE).unwrap();
    assert_eq!((shared(&sharer), sharer.shelf.state(&sharer.dir).settling), (0, 1));
    let time = std::time::SystemTime::now() - 2 * day;
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let found = sharer.look_for_new(Some([path].into()), &IDLE).files;
    sharer.hash(found, &|_| false).unwrap();
    assert_eq!((shared(&sharer), sharer.shelf.state(&sharer.dir).settling), (1, 0));
}

#[test]
fn what_is_downloaded_into_the_folder_is_not_shared_under_a_second_name() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    fs::write(sharer.dir.join("a"), "a").unwrap();
    let path = sharer.dir.join("a");
    let running = Busy { name: &|_| false, path: &|to| to == path };
    assert!(sharer.look_for_new(None, &running).files.is_empty(), "its download runs");
    let found = sharer.find(std::slice::from_ref(&path), Some(name("models/a"))).unwrap().found;
    sharer.share_found(found, Wish::default(), &HashProgress::default(), &|_| false).unwrap();
    assert!(sharer.look_for_new(None, &IDLE).files.is_empty());
}

#[test]
fn a_link_that_a_person_names_is_followed_and_named_by_the_link() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sharer = sharer(folder.path());
    fs::create_dir(outside.path().join("target")).unwrap();
    fs::write(outside.path().join("target/file"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path().join("target/file"), sharer.dir.join("model.bin")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("target"), sharer.dir.join("models")).unwrap();
    let names = |path: &str| -> Vec<String> {
        let found = sharer.find(&[sharer.dir.join(path)], None).unwrap().found;
        found.iter().map(|found| found.name.to_string()).collect()
    };
    assert_eq!(names("model.bin"), ["model.bin"]);
    assert_eq!(names("models"), ["models/file"]);
    assert_eq!(names("."), [""; 0], "not by themselves: they lead out of the folder");
}

/// A peer that trusts a key, and a file of its folder that is hashed.
fn trusting(folder: &Path) -> (Sharer, FileInfo) {
    let mut trust = TrustedKeys::default();
    trust.add(include_str!("../../../proto/src/signature/test.pub")).unwrap();
    let sharer = Sharer { trust, ..sharer(folder) };
    fs::write(sharer.dir.join("a"), vec![7; 100_000]).unwrap();
    let file = share(&sharer, "a", None);
    (sharer, file)
}

/// By the number of the trusted key, and not right: to sign takes a secret key, as the end-to-end tests have.
fn wrong(file: &FileInfo) -> Signature {
    let statement = drizzle_proto::signature::Statement::new(file, 1).unwrap().to_string();
    Signature::new(&statement, include_str!("../../../proto/src/signature/statement.minisig")).unwrap()
}

#[test]
fn without_a_trusted_signature_a_file_is_recorded_and_not_offered_whatever_is_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let (sharer, file) = trusting(folder.path());
    let is_kept_back = |sharer: &Sharer| {
        assert!(sharer.holdings.get(&file.name).is_none() && sharer.holdings.take_batch().is_empty());
        assert_eq!(sharer.journal.share(&file.name).unwrap().unwrap().manifest.id(), file.id);
        sharer.untrusted.why(&file.name).unwrap()
    };
    assert!(is_kept_back(&sharer).contains("not signed"));
    assert!(sharer.look_at([file.name.clone()], &IDLE).unwrap().is_empty());
    assert!(sharer.sign(&wrong(&file), &|_| false).unwrap(), "there is such a file");
    assert!(is_kept_back(&sharer).contains("is wrong"), "what is recorded is judged like anything else");
    assert!(!sharer.vouched(&file, &wrong(&file), &|_| false).unwrap());
    is_kept_back(&sharer);

    // It is away, and back.
    let at = |name: &str| sharer.dir.join(name);
    fs::rename(at("a"), at("away")).unwrap();
    sharer.look_at([file.name.clone()], &IDLE).unwrap();
    assert!(sharer.untrusted.why(&file.name).is_none(), "it is missing, not untrusted");
    fs::rename(at("away"), at("a")).unwrap();
    sharer.look_at([file.name.clone()], &IDLE).unwrap();
    is_kept_back(&sharer);
    assert!(sharer.unshare(&file.name).unwrap().is_some());
    assert!(sharer.untrusted.why(&file.name).is_none());
}

#[test]
fn what_was_signed_of_old_content_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let sharer = sharer(folder.path());
    fs::write(sharer.dir.join("a"), vec![7; 100_000]).unwrap();
    let old = share(&sharer, "a", None);
    let signature = wrong(&old);
    assert!(sharer.sign(&signature, &|_| false).unwrap(), "who trusts no key keeps what there is");
    assert_eq!(sharer.holdings.take_batch()[0].signature.as_ref(), Some(&signature));
    assert_eq!(sharer.journal.signature(&old.name, old.id).unwrap(), Some(signature.clone()));
    fs::write(sharer.dir.join("a"), vec![8; 100_001]).unwrap();
    share(&sharer, "a", None);
    assert_eq!(sharer.journal.signature(&old.name, old.id).unwrap(), None);
    assert!(!sharer.sign(&signature, &|_| false).unwrap(), "there is no such content any more");
}
