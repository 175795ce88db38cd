//! First hash wins, in one process and over restarts; manifests live as long as their names.

use super::{
    super::contract::{claim, contract, one, own, owner, signed},
    *,
};

fn fresh() -> (tempfile::TempDir, RedbCatalogue) {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    (dir, catalogue)
}

contract!(fresh());

#[test]
fn first_contents_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let a = claim("a", 1);
    {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        let batch = [a.clone(), claim("a", 2), a.clone(), claim("b", 2)];
        let verdicts = catalogue.register(owner(), &batch).unwrap();
        assert_eq!(verdicts, [Verdict::New, own(&a.file), Verdict::Same, Verdict::New]);
    }
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    assert_eq!(one(&catalogue, claim("a", 2)), own(&a.file));
    assert_eq!(catalogue.get(&a.file.name).unwrap(), Some(Record { file: a.file.clone(), owner: owner() }));
    let hashes = a.manifest.unwrap().hashes().to_vec();
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), hashes);
    assert_eq!(catalogue.hashes(a.file.id, 1, 1).unwrap(), hashes[1..2]);
    assert_eq!(catalogue.hashes(a.file.id, 3, 10).unwrap(), []);
}

#[test]
fn signatures_survive_a_restart_and_a_catalogue_from_before_there_were_any_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, a) = (claim("a", 1), signed(claim("a", 1), 1));
    {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        assert_eq!(one(&catalogue, plain.clone()), Verdict::New);
        let remove = |database: &Database| {
            let write = begin_write(database)?;
            write.delete_table(SIGNATURES)?;
            write.commit()?;
            Ok(())
        };
        catalogue.run(remove).unwrap();
    }
    {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        assert_eq!(catalogue.signature(&plain.file.name).unwrap(), None);
        assert_eq!(
            catalogue.lookup(std::slice::from_ref(&plain.file)).unwrap()[0].registered.as_ref().unwrap().file,
            plain.file
        );
        assert_eq!(one(&catalogue, a.clone()), Verdict::Signed);
    }
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    assert_eq!(catalogue.signature(&plain.file.name).unwrap(), a.signature);
}

#[test]
fn withdrawals_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let a = claim("a", 1);
    {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        assert_eq!(one(&catalogue, a.clone()), Verdict::New);
        assert!(catalogue.release(&a.file.name, owner()).unwrap());
    }
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let other = PeerId::from_bytes([8; 16]);
    assert_eq!(catalogue.register(other, std::slice::from_ref(&a)).unwrap(), [Verdict::Withdrawn]);
    assert_eq!(one(&catalogue, a), Verdict::New, "its owner thinks better of it");
}

#[test]
fn the_oldest_withdrawals_are_forgotten_first() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let remembered = catalogue.run(|database| {
        let write = begin_write(database)?;
        let mut tables = Tables::open(&write)?;
        for name in ["z", "y", "x", "w"] {
            tables.remember_withdrawal(name, &[0; 32], &[7; 16], 3)?;
        }
        tables.forget_withdrawal("x")?;
        tables.remember_withdrawal("v", &[0; 32], &[7; 16], 3)?;
        tables.remember_withdrawal("u", &[0; 32], &[7; 16], 3)?;
        let names = tables.withdrawn.iter()?.map(|row| Ok(row?.0.value().to_owned()));
        Ok((names.collect::<Result<Vec<_>, redb::Error>>()?, tables.withdrawals.len()?))
    });
    assert_eq!(remembered.unwrap(), (["u", "v", "w"].map(str::to_owned).to_vec(), 3));
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

/// Peers that register at once share commits, and each hears of its own names.
#[test]
fn what_many_peers_register_at_once_is_all_there_and_each_name_has_one_owner() {
    const PEERS: u8 = 16;
    let dir = tempfile::tempdir().unwrap();
    let verdicts: Vec<Vec<Verdict>> = {
        let catalogue = RedbCatalogue::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let peers: Vec<_> = (0..PEERS)
                .map(|peer| {
                    let catalogue = &catalogue;
                    let batch = [claim("contested", peer), claim(&format!("own-{peer}"), peer)];
                    scope.spawn(move || catalogue.register(PeerId::from_bytes([peer; 16]), &batch).unwrap())
                })
                .collect();
            peers.into_iter().map(|peer| peer.join().unwrap()).collect()
        })
    };
    let firsts = verdicts.iter().filter(|verdicts| verdicts[0] == Verdict::New).count();
    assert_eq!(firsts, 1, "one is first: {verdicts:?}");
    assert!(verdicts.iter().all(|verdicts| verdicts[1] == Verdict::New), "{verdicts:?}");
    let catalogue = RedbCatalogue::open(dir.path()).unwrap();
    let owner = catalogue.get(&claim("contested", 0).file.name).unwrap().unwrap().owner;
    let first = verdicts.iter().position(|verdicts| verdicts[0] == Verdict::New).unwrap();
    assert_eq!(owner, PeerId::from_bytes([u8::try_from(first).unwrap(); 16]));
    assert_eq!(catalogue.list("own-", None, 100).unwrap().len(), usize::from(PEERS));
}
