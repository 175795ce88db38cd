//! First hash wins, in one process and over restarts; manifests live as long as their names.

use drizzle_proto::Manifest;

use super::*;

fn owner() -> PeerId {
    PeerId::from_bytes([7; 16])
}

fn registration(name: &str, content: u8) -> Registration {
    let layout = Layout::new(40_000, 1 << 14).unwrap();
    let hashes = layout.chunk_count().indices().map(|chunk| Digest::of(&[content, u8::try_from(chunk.get()).unwrap()]));
    let manifest = Manifest::new(layout, hashes.collect()).unwrap();
    Registration { file: manifest.describe(FileName::new(name).unwrap()), manifest: Some(manifest) }
}

fn without_manifest(name: &str, content: u8) -> Registration {
    Registration { manifest: None, ..registration(name, content) }
}

fn one(catalogue: &RedbCatalogue, registration: Registration) -> Verdict {
    catalogue.register(owner(), &[registration]).unwrap().remove(0)
}

#[test]
fn the_first_content_of_a_name_stays_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let a = registration("a", 1);
    {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        let batch = [a.clone(), registration("a", 2), a.clone(), registration("b", 2)];
        let verdicts = catalogue.register(owner(), &batch).unwrap();
        assert_eq!(verdicts, [Verdict::New, Verdict::Other(a.file.clone()), Verdict::Same, Verdict::New]);
    }
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    assert_eq!(one(&catalogue, registration("a", 2)), Verdict::Other(a.file.clone()));
    assert_eq!(catalogue.get(&a.file.name).unwrap(), Some(Record { file: a.file.clone(), owner: owner() }));
    let hashes = a.manifest.unwrap().hashes().to_vec();
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), hashes);
    assert_eq!(catalogue.hashes(a.file.id, 1, 1).unwrap(), hashes[1..2]);
    assert_eq!(catalogue.hashes(a.file.id, 3, 10).unwrap(), []);
}

#[test]
fn a_manifest_lives_as_long_as_a_name_stands_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let (a, b) = (registration("a", 1), without_manifest("b", 1));
    assert_eq!(one(&catalogue, b.clone()), Verdict::NoManifest);
    assert_eq!(one(&catalogue, a.clone()), Verdict::New);
    assert_eq!(one(&catalogue, b.clone()), Verdict::New, "the manifest is known by another name");

    assert!(catalogue.release(&a.file.name, owner()).unwrap());
    assert!(!catalogue.release(&a.file.name, owner()).unwrap());
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap().len(), 3, "b still stands for it");
    assert_eq!(catalogue.lookup(std::slice::from_ref(&a.file)).unwrap()[0].content, Some(a.file.layout));

    assert!(catalogue.release(&b.file.name, owner()).unwrap());
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), []);
    assert_eq!(catalogue.lookup(&[a.file]).unwrap(), [Known { registered: None, content: None }]);
    assert_eq!(one(&catalogue, registration("a", 2)), Verdict::New, "a released name is free");
}

#[test]
fn what_its_owner_withdrew_is_not_registered_again_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let other = PeerId::from_bytes([8; 16]);
    let (a, name) = (registration("a", 1), FileName::new("a").unwrap());
    let by = |catalogue: &RedbCatalogue, peer, file: &Registration| {
        catalogue.register(peer, std::slice::from_ref(file)).unwrap().remove(0)
    };
    {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        assert_eq!(by(&catalogue, owner(), &a), Verdict::New);
        assert!(catalogue.release(&name, owner()).unwrap());
    }
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    assert_eq!(by(&catalogue, other, &a), Verdict::Withdrawn);
    let batch = [registration("b", 1), without_manifest("a", 1)];
    assert_eq!(catalogue.register(other, &batch).unwrap(), [Verdict::New, Verdict::Withdrawn], "only that name");
    assert_eq!(by(&catalogue, owner(), &a), Verdict::New, "its owner thinks better of it");
    assert_eq!(by(&catalogue, other, &a), Verdict::Same);

    assert!(catalogue.release(&name, owner()).unwrap());
    assert_eq!(by(&catalogue, other, &registration("a", 2)), Verdict::New, "other content is free to come");
    assert!(catalogue.release(&name, other).unwrap());
    assert_eq!(by(&catalogue, owner(), &a), Verdict::New, "only the last withdrawal counts");
    assert!(catalogue.release(&name, other).unwrap());
    assert_eq!(by(&catalogue, other, &a), Verdict::New, "a release by another peer is no withdrawal");
}

#[test]
fn the_oldest_withdrawals_are_forgotten_first() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let slot = catalogue.database.read().unwrap();
    let write = begin_write(slot.as_ref().unwrap()).unwrap();
    let mut tables = Tables::open(&write).unwrap();
    for name in ["z", "y", "x", "w"] {
        tables.remember_withdrawal(name, &[0; 32], &[7; 16], 3).unwrap();
    }
    tables.forget_withdrawal("x").unwrap();
    tables.remember_withdrawal("v", &[0; 32], &[7; 16], 3).unwrap();
    tables.remember_withdrawal("u", &[0; 32], &[7; 16], 3).unwrap();
    let names = |tables: &Tables<'_>| -> Vec<String> {
        tables.withdrawn.iter().unwrap().map(|row| row.unwrap().0.value().to_owned()).collect()
    };
    assert_eq!(names(&tables), ["u", "v", "w"]);
    assert_eq!(tables.withdrawals.len().unwrap(), 3);
}

#[test]
fn names_are_listed_in_byte_order_by_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let names = ["a", "a.b", "a/b", "a/c", "a/é", "b"];
    let mut batch: Vec<_> = names.iter().map(|name| registration(name, 1)).collect();
    batch.reverse();
    catalogue.register(owner(), &batch).unwrap();
    let list = |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let after = after.map(|name| FileName::new(name).unwrap());
        let page = catalogue.list(prefix, after.as_ref(), limit).unwrap();
        page.into_iter().map(|file| file.name.to_string()).collect()
    };
    assert_eq!(list("", None, 100), names);
    assert_eq!(list("a/", None, 100), ["a/b", "a/c", "a/é"]);
    assert_eq!(list("a/", None, 2), ["a/b", "a/c"]);
    assert_eq!(list("a/", Some("a/c"), 2), ["a/é"]);
    assert_eq!(list("c", None, 2), [""; 0]);
}

#[test]
fn concurrent_registrations_have_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let catalogue = &catalogue;
        let racers: Vec<_> = (0..8).map(|n| scope.spawn(move || one(catalogue, registration("a", n)))).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    let winner = catalogue.get(&FileName::new("a").unwrap()).unwrap().unwrap().file;
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::New).count(), 1);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Other(winner.clone())).count(), 7);
}

#[test]
fn a_second_tracker_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let _first = RedbCatalogue::open(dir.path()).unwrap();
    let error = RedbCatalogue::open(dir.path()).unwrap_err();
    assert!(matches!(error, CatalogueError::InUse(_)), "{error}");
}

#[test]
fn damage_is_told_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalogue.redb");
    drop(RedbCatalogue::open(dir.path()).unwrap());
    let sound = fs::read(&path).unwrap();
    let noise: Vec<u8> =
        (0..sound.len() as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]).collect();
    let half = sound.len() / 2;
    for (damage, bytes) in [
        ("something else", b"this is no database, but it may be dear to somebody".repeat(1000)),
        ("cut off", sound[..half].to_vec()),
        ("without a head", [&[0; 4096], &sound[4096..]].concat()),
        ("noise behind the head", [&sound[..4096], &noise[4096..]].concat()),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = RedbCatalogue::open(dir.path()).unwrap_err();
        assert!(matches!(error, CatalogueError::Damaged { .. }), "{damage}: {error}");
        if damage == "something else" {
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}

#[test]
fn a_catalogue_of_another_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(RedbCatalogue::open(dir.path()).unwrap());
    {
        let database = Database::open(dir.path().join("catalogue.redb")).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(META).unwrap().insert(FORMAT_KEY, FORMAT + 1).unwrap();
        write.commit().unwrap();
    }
    let error = RedbCatalogue::open(dir.path()).unwrap_err();
    assert!(matches!(error, CatalogueError::Format { found: 2, expected: 1, .. }), "{error}");
}

/// Pages that begin and end inside, at and across the borders of segments.
#[test]
fn hashes_of_large_manifests_come_in_any_portion() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let layout = Layout::new(9001 << 14, 1 << 14).unwrap();
    let hashes: Vec<Digest> = (0..9001u32).map(|n| Digest::of(&n.to_be_bytes())).collect();
    let manifest = Manifest::new(layout, hashes.clone()).unwrap();
    let file = manifest.describe(FileName::new("large").unwrap());
    let large = Registration { file: file.clone(), manifest: Some(manifest) };
    assert_eq!(catalogue.register(owner(), &[large, registration("b", 1)]).unwrap(), [Verdict::New, Verdict::New]);
    for first in [0, 1, 3999, 4000, 4001, 8000, 8192, 9000, 9001, 20_000] {
        for count in [0, 1, 4000, 4001, 8192, 10_000] {
            let from = (first as usize).min(hashes.len());
            let to = (from + count).min(hashes.len());
            assert_eq!(catalogue.hashes(file.id, first, count).unwrap(), hashes[from..to], "{first} {count}");
        }
    }
    assert!(catalogue.release(&file.name, owner()).unwrap());
    assert_eq!(catalogue.hashes(file.id, 0, 10).unwrap(), []);
    assert_eq!(catalogue.hashes(registration("b", 1).file.id, 0, 10).unwrap().len(), 3, "others keep theirs");
}
