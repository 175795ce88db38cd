//! Registrations as a table; what changed, what was taken back.

use drizzle_proto::{Digest, Layout};

use super::*;
use crate::store::disk::Disk;

fn manifest(chunk_size: u32) -> Manifest {
    let layout = Layout::new(1 << 16, chunk_size).unwrap();
    Manifest::new(layout, layout.chunk_count().indices().map(|_| Digest::of(b"")).collect()).unwrap()
}

fn name() -> FileName {
    FileName::new("a").unwrap()
}

const STAMP: Stamp = Stamp { size: 1 << 16, modified_nanos: 0 };

fn share(holdings: &Holdings, manifest: &Manifest) {
    holdings.insert_shared(name(), manifest.clone(), "/a".into(), STAMP);
}

fn registration(holdings: &Holdings) -> Registration {
    holdings.get(&name()).unwrap().registration
}

/// An answer of the tracker, or something else that may change a registration.
#[derive(Debug, Clone, Copy)]
enum On {
    Registered,
    NeedHashes,
    /// Other content of another size is registered.
    Refused,
    /// A file of the same size in other chunks is registered.
    RefusedInOtherChunks,
    Invalid,
    NewLease,
    SharedAgain,
    SharedWithOtherContent,
}

fn apply(holdings: &Holdings, on: On) {
    let (ours, same_size) = (manifest(1 << 14), manifest(1 << 15));
    let outcome = match on {
        On::NewLease => return holdings.announce_everything(),
        On::SharedAgain => return share(holdings, &ours),
        On::SharedWithOtherContent => return share(holdings, &manifest(1 << 16)),
        On::Registered => FileOutcome::Registered,
        On::NeedHashes => FileOutcome::NeedHashes(0),
        On::Invalid => FileOutcome::Invalid("x".into()),
        On::Refused => {
            let other = FileInfo { layout: Layout::new(7, 1 << 14).unwrap(), ..same_size.describe(name()) };
            FileOutcome::Refused { registered: other, detail: "x".into() }
        }
        On::RefusedInOtherChunks => FileOutcome::Refused { registered: same_size.describe(name()), detail: "x".into() },
    };
    let held = ChunkSet::full(ours.layout().chunk_count());
    let told = FileChunks {
        file: ours.describe(name()),
        first_hash: 0,
        hashes: Vec::new(),
        held,
        gone: false,
        replace: false,
        signature: None,
    };
    holdings.apply(vec![told], vec![outcome]);
}

#[test]
fn registrations_change_as_the_table_says() {
    use Registration::{Pending, Refused, Registered};
    let refused = || Refused("x".to_owned());
    for (before, on, after) in [
        (Pending, On::Registered, Registered),
        (Pending, On::NeedHashes, Pending),
        (Pending, On::Refused, refused()),
        (Pending, On::RefusedInOtherChunks, Pending),
        (Pending, On::Invalid, refused()),
        (Pending, On::NewLease, Pending),
        (Pending, On::SharedAgain, Pending),
        (Pending, On::SharedWithOtherContent, Pending),
        (Registered, On::Registered, Registered),
        (Registered, On::NeedHashes, Registered),
        (Registered, On::Refused, refused()),
        (Registered, On::NewLease, Pending),
        (Registered, On::SharedAgain, Registered),
        (Registered, On::SharedWithOtherContent, Pending),
        (refused(), On::Registered, Registered),
        (refused(), On::Refused, refused()),
        (refused(), On::NewLease, Pending),
        (refused(), On::SharedAgain, Pending),
        (refused(), On::SharedWithOtherContent, Pending),
    ] {
        let holdings = Holdings::default();
        share(&holdings, &manifest(1 << 14));
        match before {
            Pending => {}
            Registered => apply(&holdings, On::Registered),
            Refused(_) => apply(&holdings, On::Refused),
        }
        assert_eq!(registration(&holdings), before);
        apply(&holdings, on);
        assert_eq!(registration(&holdings), after, "{before:?} on {on:?}");
    }
}

#[test]
fn a_decided_refusal_stands() {
    let holdings = Holdings::default();
    share(&holdings, &manifest(1 << 14));
    let ours = manifest(1 << 14).describe(name());
    holdings.refuse(&Refusal { ours, registered: None, detail: "x".into() });
    assert_eq!(registration(&holdings), Registration::Refused("x".into()));
    assert_eq!(holdings.counts().refused, [name()]);
}

#[test]
fn a_file_that_changed_is_dropped_and_one_that_was_shared_anew_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (path, manifest) = (folder.path().join("a"), manifest(1 << 14));
    std::fs::write(&path, vec![0; 1 << 16]).unwrap();
    let now = Stamp::of(&path.metadata().unwrap());
    let before = Stamp { modified_nanos: 7, ..now };
    let holdings = Holdings::default();
    holdings.insert_shared(name(), manifest.clone(), path.clone(), before);
    // Shared anew between the look at the file and the judgement: the new one stays.
    holdings.insert_shared(name(), manifest.clone(), path.clone(), now);
    assert!(!holdings.withhold(&name(), manifest.id(), before, Lost::Changed));
    assert!(holdings.open_chunk(manifest.id(), 3).is_ok());
    holdings.remove(&name(), false);
    let unshared = holdings.open_chunk(manifest.id(), 3);
    assert!(matches!(unshared, Err(ReadError::UnknownFile(_))), "it did not change: {unshared:?}");
    holdings.insert_shared(name(), manifest.clone(), path.clone(), before);
    assert!(matches!(holdings.open_chunk(manifest.id(), 3), Err(ReadError::InDoubt)), "it may have been touched only");
    assert!(holdings.get(&name()).is_none());
    holdings.insert_shared(name(), manifest.clone(), path.clone(), Stamp { size: 1, ..now });
    assert!(matches!(holdings.open_chunk(manifest.id(), 3), Err(ReadError::Changed)));
    std::fs::remove_file(&path).unwrap();
    holdings.insert_shared(name(), manifest.clone(), path, now);
    assert!(matches!(holdings.open_chunk(manifest.id(), 3), Err(ReadError::Gone)));
}

/// A look at the file in the middle of a share that replaces it: what was held is withheld.
#[test]
fn what_is_to_be_replaced_stays_so_until_the_tracker_took_it_or_it_is_unshared() {
    let (holdings, old, new) = (Holdings::default(), manifest(1 << 14), manifest(1 << 15));
    let replaces = || {
        let batches = std::iter::from_fn(|| Some(holdings.take_batch()).filter(|batch| !batch.is_empty()));
        batches.flatten().filter(|told| !told.gone).map(|told| told.replace).collect::<Vec<_>>()
    };
    share(&holdings, &old);
    assert_eq!(replaces(), [false]);
    holdings.replace(name());
    assert!(holdings.withhold(&name(), old.id(), STAMP, Lost::InDoubt));
    share(&holdings, &new);
    assert_eq!(replaces(), [true]);
    holdings.remove(&name(), false);
    share(&holdings, &new);
    assert_eq!(replaces(), [false]);
}

#[test]
fn of_lost_contents_only_the_last_are_remembered() {
    let holdings = Holdings::default();
    let id = |n: usize| drizzle_proto::FileId::from_digest(Digest::of(&n.to_le_bytes()));
    for n in 0..=LostContents::MOST {
        holdings.withhold(&name(), id(n), STAMP, Lost::Gone);
    }
    assert!(matches!(holdings.open_chunk(id(0), 0), Err(ReadError::UnknownFile(_))));
    assert!(matches!(holdings.open_chunk(id(1), 0), Err(ReadError::Gone)));
    assert_eq!(holdings.lock().lost.0.len(), LostContents::MOST);
}

#[test]
fn chunks_that_were_taken_back_are_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(1 << 14);
    let path = folder.path().join("p");
    let partial = PartialFile::at(&path, manifest.clone(), Disk::default());
    partial.make().unwrap();
    let holdings = Holdings::default();
    let count = manifest.layout().chunk_count();
    holdings.insert_partial(name(), Arc::new(partial), ChunkSet::full(count));
    holdings.take_back(&name(), manifest.id(), &ChunkSet::from_ranges(count, &"1".parse().unwrap()).unwrap());
    assert!(holdings.open_chunk(manifest.id(), 0).is_ok());
    assert!(matches!(holdings.open_chunk(manifest.id(), 1), Err(ReadError::NotHeld(1))));
    assert!(holdings.stored(&name(), StoredChunk::pretend(manifest.id(), count.index(1).unwrap()), false));
    assert!(holdings.open_chunk(manifest.id(), 1).is_ok());
}

fn signed(manifest: &Manifest, time: u64) -> Signature {
    let statement = drizzle_proto::signature::Statement::new(&manifest.describe(name()), time).unwrap().to_string();
    Signature::new(&statement, include_str!("../../../proto/src/signature/statement.minisig")).unwrap()
}

#[test]
fn a_signature_is_told_until_the_tracker_took_it_and_again_under_a_new_lease() {
    let (holdings, ours) = (Holdings::default(), manifest(1 << 14));
    let told = |holdings: &Holdings| holdings.take_batch().into_iter().map(|entry| entry.signature).collect::<Vec<_>>();
    let (one, two) = (signed(&ours, 1), signed(&ours, 2));
    holdings.sign(&one);
    assert_eq!(told(&holdings), [], "nothing is held");
    share(&holdings, &ours);
    assert_eq!(told(&holdings), [None]);
    apply(&holdings, On::Registered);
    holdings.sign(&one);
    assert_eq!(registration(&holdings), Registration::Pending, "until the tracker heard of it");
    let batch = holdings.take_batch();
    // Another one that comes meanwhile is not taken for the one that was told.
    holdings.sign(&two);
    holdings.apply(batch, vec![FileOutcome::Registered]);
    assert_eq!(registration(&holdings), Registration::Pending);
    let batch = holdings.take_batch();
    assert_eq!(batch[0].signature, Some(two.clone()));
    holdings.put_back(batch);
    let batch = holdings.take_batch();
    assert_eq!(batch[0].signature, Some(two.clone()), "it was not delivered");
    holdings.apply(batch, vec![FileOutcome::Registered]);
    assert_eq!(registration(&holdings), Registration::Registered);
    holdings.sign(&two);
    assert_eq!((told(&holdings), registration(&holdings)), (vec![], Registration::Registered), "no news");
    holdings.announce_everything();
    assert_eq!(told(&holdings), [Some(two)]);

    share(&holdings, &manifest(1 << 15));
    assert_eq!(told(&holdings), [None], "other content is not signed");
    holdings.sign(&one);
    assert_eq!(told(&holdings), []);
}
