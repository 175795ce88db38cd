//! What every catalogue must do: the suite that a store passes before it takes the place of another.
//!
//! A store's own tests call [`contract!`] with an expression that makes an empty store; what only one store has
//! (files, restarts, damage) is tested beside it.

use drizzle_proto::{Digest, FileInfo, FileName, Layout, Manifest, PeerId, Signature, signature::Statement};

use super::{Catalogue, Claim, Known, Record, Verdict};

/// Makes a test of each part of the contract, over stores that the expression makes.
macro_rules! contract {
    ($make:expr; $($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            let (_keep, catalogue) = $make;
            $crate::catalogue::contract::$name(&catalogue);
        })*
    };
    ($make:expr) => {
        $crate::catalogue::contract::contract! {
            $make;
            a_check_passes_and_changes_nothing,
            the_first_content_of_a_name_stays_its_content,
            a_manifest_lives_as_long_as_a_name_stands_for_it,
            what_its_owner_withdrew_is_not_registered_again_by_another,
            the_owner_and_nobody_else_replaces_content_in_one_step,
            what_an_operator_dropped_is_barred_to_all_until_it_is_freed,
            a_name_is_given_to_another_owner,
            a_signature_is_its_owners_and_goes_with_its_content,
            names_are_listed_in_byte_order_by_prefix,
            a_name_is_freed_when_it_was_unattended_for_long_enough_and_only_then,
            concurrent_registrations_have_one_winner,
            hashes_of_large_manifests_come_in_any_portion,
        }
    };
}
pub(crate) use contract;

pub(crate) fn owner() -> PeerId {
    PeerId::from_bytes([7; 16])
}

pub(crate) fn claim(name: &str, content: u8) -> Claim {
    let layout = Layout::new(40_000, 1 << 14).unwrap();
    let hashes = layout.chunk_count().indices().map(|chunk| Digest::of(&[content, u8::try_from(chunk.get()).unwrap()]));
    let manifest = Manifest::new(layout, hashes.collect()).unwrap();
    Claim {
        file: manifest.describe(FileName::new(name).unwrap()),
        manifest: Some(manifest),
        replace: false,
        signature: None,
    }
}

/// Says that it was signed then. No key is asked for here.
pub(crate) fn signed(claim: Claim, time: u64) -> Claim {
    let statement = Statement::new(&claim.file, time).unwrap().to_string();
    let minisign = include_str!("../../../proto/src/signature/statement.minisig");
    Claim { signature: Some(Signature::new(&statement, minisign).unwrap()), ..claim }
}

/// What a name is refused with that the claiming peer itself registered.
pub(crate) fn own(registered: &FileInfo) -> Verdict {
    Verdict::Other { registered: registered.clone(), own: true }
}

fn without_manifest(name: &str, content: u8) -> Claim {
    Claim { manifest: None, ..claim(name, content) }
}

pub(crate) fn one(catalogue: &dyn Catalogue, claim: Claim) -> Verdict {
    catalogue.register(owner(), &[claim]).unwrap().remove(0)
}

pub(crate) fn the_first_content_of_a_name_stays_its_content(catalogue: &dyn Catalogue) {
    let a = claim("a", 1);
    let batch = [a.clone(), claim("a", 2), a.clone(), claim("b", 2)];
    let verdicts = catalogue.register(owner(), &batch).unwrap();
    assert_eq!(verdicts, [Verdict::New, own(&a.file), Verdict::Same, Verdict::New]);
    assert_eq!(one(catalogue, claim("a", 2)), own(&a.file));
    assert_eq!(catalogue.get(&a.file.name).unwrap(), Some(Record { file: a.file.clone(), owner: owner() }));
    assert_eq!(catalogue.get(&FileName::new("c").unwrap()).unwrap(), None);
}

pub(crate) fn a_manifest_lives_as_long_as_a_name_stands_for_it(catalogue: &dyn Catalogue) {
    let (a, b) = (claim("a", 1), without_manifest("b", 1));
    assert_eq!(one(catalogue, b.clone()), Verdict::NoManifest);
    assert_eq!(one(catalogue, a.clone()), Verdict::New);
    assert_eq!(one(catalogue, b.clone()), Verdict::New, "the manifest is known by another name");

    assert!(catalogue.release(&a.file.name, owner()).unwrap());
    assert!(!catalogue.release(&a.file.name, owner()).unwrap());
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap().len(), 3, "b still stands for it");
    assert_eq!(catalogue.lookup(std::slice::from_ref(&a.file)).unwrap()[0].content, Some(a.file.layout));

    assert!(catalogue.release(&b.file.name, owner()).unwrap());
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), []);
    assert_eq!(catalogue.lookup(&[a.file]).unwrap(), [Known { registered: None, content: None }]);
    assert_eq!(one(catalogue, claim("a", 2)), Verdict::New, "a released name is free");
}

pub(crate) fn what_its_owner_withdrew_is_not_registered_again_by_another(catalogue: &dyn Catalogue) {
    let other = PeerId::from_bytes([8; 16]);
    let (a, name) = (claim("a", 1), FileName::new("a").unwrap());
    let by = |peer, file: &Claim| catalogue.register(peer, std::slice::from_ref(file)).unwrap().remove(0);
    assert_eq!(by(owner(), &a), Verdict::New);
    assert!(catalogue.release(&name, owner()).unwrap());
    assert_eq!(by(other, &a), Verdict::Withdrawn);
    let batch = [claim("b", 1), without_manifest("a", 1)];
    assert_eq!(catalogue.register(other, &batch).unwrap(), [Verdict::New, Verdict::Withdrawn], "only that name");
    assert_eq!(by(owner(), &a), Verdict::New, "its owner thinks better of it");
    assert_eq!(by(other, &a), Verdict::Same);

    assert!(catalogue.release(&name, owner()).unwrap());
    assert_eq!(by(other, &claim("a", 2)), Verdict::New, "other content is free to come");
    assert!(catalogue.release(&name, other).unwrap());
    assert_eq!(by(owner(), &a), Verdict::New, "only the last withdrawal counts");
    assert!(catalogue.release(&name, other).unwrap());
    assert_eq!(by(other, &a), Verdict::New, "a release by another peer is no withdrawal");
}

pub(crate) fn the_owner_and_nobody_else_replaces_content_in_one_step(catalogue: &dyn Catalogue) {
    let other = PeerId::from_bytes([8; 16]);
    let (a, replacing) = (claim("a", 1), |name, content| Claim { replace: true, ..claim(name, content) });
    let by = |peer, file: &Claim| catalogue.register(peer, std::slice::from_ref(file)).unwrap().remove(0);
    assert_eq!(by(owner(), &replacing("a", 1)), Verdict::New, "there is nothing to replace");
    assert_eq!(by(other, &claim("a", 2)), Verdict::Other { registered: a.file.clone(), own: false });
    assert_eq!(by(other, &replacing("a", 2)), Verdict::Other { registered: a.file.clone(), own: false });
    assert_eq!(by(owner(), &claim("a", 2)), own(&a.file), "it must be asked for");
    assert_eq!(by(owner(), &Claim { manifest: None, ..replacing("a", 2) }), Verdict::NoManifest);
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap().len(), 3, "nothing is lost by a claim that fails");
    assert_eq!(by(owner(), &replacing("a", 2)), Verdict::Replaced(a.file.clone()));
    assert_eq!(by(owner(), &replacing("a", 2)), Verdict::Same);
    let record = Record { file: claim("a", 2).file, owner: owner() };
    assert_eq!(catalogue.get(&a.file.name).unwrap(), Some(record));
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), [], "no name stands for the old content");
    assert_eq!(catalogue.hashes(claim("a", 2).file.id, 0, 10).unwrap().len(), 3);
    assert_eq!(by(owner(), &replacing("a", 1)), Verdict::Replaced(claim("a", 2).file), "and back");
}

pub(crate) fn what_an_operator_dropped_is_barred_to_all_until_it_is_freed(catalogue: &dyn Catalogue) {
    let other = PeerId::from_bytes([8; 16]);
    let (a, name) = (claim("a", 1), FileName::new("a").unwrap());
    let by = |peer, file: &Claim| catalogue.register(peer, std::slice::from_ref(file)).unwrap().remove(0);
    assert_eq!(catalogue.drop_name(&name, true).unwrap(), None);
    assert_eq!(by(owner(), &a), Verdict::New);
    assert_eq!(catalogue.drop_name(&name, true).unwrap(), Some(Record { file: a.file.clone(), owner: owner() }));
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), []);
    assert_eq!((by(owner(), &a), by(other, &a)), (Verdict::Dropped, Verdict::Dropped), "whichever peer comes back");
    assert_eq!(by(other, &claim("b", 1)), Verdict::New, "only that name");
    assert_eq!(by(other, &claim("a", 2)), Verdict::New, "other content is free to come");
    assert_eq!(catalogue.drop_name(&name, false).unwrap().map(|record| record.owner), Some(other));
    assert_eq!(by(other, &a), Verdict::New, "nothing is barred");

    assert!(catalogue.drop_name(&name, true).unwrap().is_some());
    assert_eq!(catalogue.drop_name(&name, false).unwrap(), None, "what was dropped before is freed");
    assert_eq!(by(owner(), &a), Verdict::New);
    assert!(catalogue.release(&name, owner()).unwrap());
    assert_eq!(catalogue.drop_name(&name, false).unwrap(), None, "and so is what was withdrawn");
    assert_eq!(by(other, &a), Verdict::New);
}

pub(crate) fn a_name_is_given_to_another_owner(catalogue: &dyn Catalogue) {
    let other = PeerId::from_bytes([8; 16]);
    let (a, name) = (claim("a", 1), FileName::new("a").unwrap());
    assert_eq!(catalogue.reassign(&name, other).unwrap(), None);
    assert_eq!(one(catalogue, a.clone()), Verdict::New);
    assert_eq!(catalogue.reassign(&name, other).unwrap(), Some(Record { file: a.file.clone(), owner: owner() }));
    assert_eq!(catalogue.get(&name).unwrap(), Some(Record { file: a.file.clone(), owner: other }));
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap().len(), 3);
    assert!(catalogue.release(&name, other).unwrap());
    assert_eq!(one(catalogue, a), Verdict::Withdrawn, "the new owner's withdrawal counts");
}

pub(crate) fn a_signature_is_its_owners_and_goes_with_its_content(catalogue: &dyn Catalogue) {
    let other = PeerId::from_bytes([8; 16]);
    let name = FileName::new("a").unwrap();
    let by = |peer, file: &Claim| catalogue.register(peer, std::slice::from_ref(file)).unwrap().remove(0);
    let kept = || catalogue.signature(&name).unwrap().map(|signature| signature.statement().seconds());
    assert_eq!(kept(), None);
    assert_eq!(by(owner(), &claim("a", 1)), Verdict::New);
    assert_eq!(by(other, &signed(claim("a", 1), 1)), Verdict::Same);
    assert_eq!(kept(), None, "another holder's word counts for nothing");
    assert_eq!(by(owner(), &signed(without_manifest("a", 1), 2)), Verdict::Signed, "it was registered without one");
    assert_eq!(catalogue.signature(&name).unwrap(), signed(claim("a", 1), 2).signature);
    assert_eq!(by(owner(), &signed(claim("a", 1), 2)), Verdict::Same, "that is no news");
    assert_eq!((by(owner(), &claim("a", 1)), by(other, &claim("a", 1))), (Verdict::Same, Verdict::Same));
    assert_eq!(kept(), Some(2), "who tells none takes none back");
    assert_eq!(by(owner(), &signed(claim("a", 1), 3)), Verdict::Signed);
    assert_eq!(by(other, &signed(claim("a", 2), 4)), Verdict::Other { registered: claim("a", 1).file, own: false });
    assert_eq!(kept(), Some(3), "of the content that the name stands for");

    let replacing = |claim| Claim { replace: true, ..claim };
    assert_eq!(by(owner(), &replacing(claim("a", 2))), Verdict::Replaced(claim("a", 1).file));
    assert_eq!(kept(), None, "other content");
    assert_eq!(by(owner(), &replacing(signed(claim("a", 3), 5))), Verdict::Replaced(claim("a", 2).file));
    assert_eq!(kept(), Some(5));
    assert_eq!(by(owner(), &signed(claim("b", 3), 6)), Verdict::New);
    assert!(catalogue.release(&name, owner()).unwrap());
    assert_eq!(kept(), None, "the name is free");
    assert_eq!(by(owner(), &claim("a", 3)), Verdict::New);
    assert_eq!(kept(), None, "an old signature does not come back");
    assert!(catalogue.signature(&FileName::new("b").unwrap()).unwrap().is_some());
}

pub(crate) fn names_are_listed_in_byte_order_by_prefix(catalogue: &dyn Catalogue) {
    let names = ["a", "a.b", "a/b", "a/c", "a/é", "b"];
    let mut batch: Vec<_> = names.iter().map(|name| claim(name, 1)).collect();
    batch.reverse();
    catalogue.register(owner(), &batch).unwrap();
    let list = |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let after = after.map(|name| FileName::new(name).unwrap());
        let page = catalogue.list(prefix, after.as_ref(), limit).unwrap();
        page.into_iter().map(|record| record.file.name.to_string()).collect()
    };
    assert_eq!(list("", None, 100), names);
    assert_eq!(list("a/", None, 100), ["a/b", "a/c", "a/é"]);
    assert_eq!(list("a/", None, 2), ["a/b", "a/c"]);
    assert_eq!(list("a/", Some("a/c"), 2), ["a/é"]);
    assert_eq!(list("c", None, 2), [""; 0]);
}

pub(crate) fn a_check_passes_and_changes_nothing(catalogue: &dyn Catalogue) {
    catalogue.check().unwrap();
    assert_eq!(one(catalogue, claim("a", 1)), Verdict::New);
    catalogue.check().unwrap();
    assert_eq!(one(catalogue, claim("a", 1)), Verdict::Same);
}

pub(crate) fn a_name_is_freed_when_it_was_unattended_for_long_enough_and_only_then(catalogue: &dyn Catalogue) {
    let (a, b) = (claim("a", 1), claim("b", 2));
    let (name, other) = (a.file.name.clone(), PeerId::from_bytes([8; 16]));
    let attend = |attended, clock| catalogue.attend(&[(name.clone(), attended)], clock, 10).unwrap();
    assert_eq!(catalogue.clock().unwrap(), 0);
    assert_eq!(catalogue.register(owner(), &[a.clone(), b]).unwrap(), [Verdict::New, Verdict::New]);
    assert_eq!(attend(false, 100), []);
    assert_eq!(catalogue.clock().unwrap(), 100);
    assert_eq!(attend(false, 109), []);
    assert_eq!(catalogue.expire(&name, 109, 10).unwrap(), None, "too early");
    assert_eq!(attend(false, 110), std::slice::from_ref(&name));
    assert_eq!(attend(true, 110), [], "a peer came back");
    assert_eq!(catalogue.expire(&name, 120, 10).unwrap(), None);
    assert_eq!(attend(false, 120), [], "it counts from the beginning");
    assert_eq!(attend(false, 130), std::slice::from_ref(&name));
    assert_eq!(catalogue.expire(&name, 130, 10).unwrap(), Some(Record { file: a.file.clone(), owner: owner() }));
    assert_eq!(catalogue.expire(&name, 130, 10).unwrap(), None, "gone");
    assert_eq!(attend(false, 140), [], "what is no name is not noted");
    assert_eq!(catalogue.hashes(a.file.id, 0, 10).unwrap(), []);
    assert_eq!(catalogue.register(other, std::slice::from_ref(&a)).unwrap(), [Verdict::New], "this is no withdrawal");
    assert_eq!(catalogue.expire(&name, 200, 10).unwrap(), None, "a new registration begins anew");
    assert_eq!(catalogue.list("", None, 10).unwrap().len(), 2, "b stays");
}

pub(crate) fn concurrent_registrations_have_one_winner(catalogue: &dyn Catalogue) {
    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8).map(|n| scope.spawn(move || one(catalogue, claim("a", n)))).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    let winner = catalogue.get(&FileName::new("a").unwrap()).unwrap().unwrap().file;
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::New).count(), 1);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == own(&winner)).count(), 7);
}

/// Pages that begin and end inside, at and across the borders of whatever a store keeps together.
pub(crate) fn hashes_of_large_manifests_come_in_any_portion(catalogue: &dyn Catalogue) {
    let layout = Layout::new(9001 << 14, 1 << 14).unwrap();
    let hashes: Vec<Digest> = (0..9001u32).map(|n| Digest::of(&n.to_be_bytes())).collect();
    let manifest = Manifest::new(layout, hashes.clone()).unwrap();
    let file = manifest.describe(FileName::new("large").unwrap());
    let large = Claim { file: file.clone(), manifest: Some(manifest), replace: false, signature: None };
    assert_eq!(catalogue.register(owner(), &[large, claim("b", 1)]).unwrap(), [Verdict::New, Verdict::New]);
    for first in [0, 1, 3999, 4000, 4001, 8000, 8192, 9000, 9001, 20_000] {
        for count in [0, 1, 4000, 4001, 8192, 10_000] {
            let from = (first as usize).min(hashes.len());
            let to = (from + count).min(hashes.len());
            assert_eq!(catalogue.hashes(file.id, first, count).unwrap(), hashes[from..to], "{first} {count}");
        }
    }
    assert!(catalogue.release(&file.name, owner()).unwrap());
    assert_eq!(catalogue.hashes(file.id, 0, 10).unwrap(), []);
    assert_eq!(catalogue.hashes(claim("b", 1).file.id, 0, 10).unwrap().len(), 3, "others keep theirs");
}
