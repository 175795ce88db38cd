//! Records over restarts, formats, damage.

use std::fs;

use drizzle_engine::priority::Priority;
use drizzle_proto::{ChunkSet, Digest, Layout, Manifest};

use super::{
    records::{seal, unseal},
    *,
};
use crate::store::stamp::Stamp;

fn manifest(chunks: u64) -> Manifest {
    let layout = Layout::new(chunks << 14, 1 << 14).unwrap();
    Manifest::new(layout, layout.chunk_count().indices().map(|c| Digest::of(&c.get().to_be_bytes())).collect()).unwrap()
}

fn open(folder: &Path) -> Result<Journal, JournalError> {
    Journal::open(folder, Disk::default())
}

#[test]
fn records_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (name, manifest) = (FileName::new("a/b").unwrap(), manifest(5));
    let chunks = ChunkSet::from_ranges(manifest.layout().chunk_count(), &"1-2,4".parse().unwrap()).unwrap();
    let share = ShareRecord {
        path: "/x/a".into(),
        stamp: Stamp { size: 5, modified_nanos: -7 },
        manifest: manifest.clone(),
        shared: true,
    };
    let id = {
        let journal = open(folder.path()).unwrap();
        journal.put_shares(&[(FileName::new("s").unwrap(), share.clone())], &|_| false).unwrap();
        journal.begin_partial(&name, &manifest, None).unwrap();
        journal.record_chunks(&name, manifest.id(), &chunks).unwrap();
        journal.peer_id([7; 16]).unwrap()
    };
    let journal = open(folder.path()).unwrap();
    assert_eq!(journal.peer_id([8; 16]).unwrap(), id);
    assert_eq!(journal.shares().unwrap(), [(FileName::new("s").unwrap(), share)]);
    let [partial] = &journal.partials().unwrap()[..] else { panic!("one partial") };
    assert_eq!((&partial.name, &partial.chunks), (&name, &chunks));
}

#[test]
fn a_missing_file_is_remembered_until_it_is_shared_again_or_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| FileName::new(name).unwrap());
    let share = ShareRecord {
        path: "/a".into(),
        stamp: Stamp { size: 5, modified_nanos: 0 },
        manifest: manifest(1),
        shared: true,
    };
    {
        let journal = open(folder.path()).unwrap();
        journal.put_shares(&[(a.clone(), share.clone()), (b.clone(), share.clone())], &|_| false).unwrap();
        journal.note_missing(&[a.clone(), b.clone()], 7).unwrap();
    }
    let journal = open(folder.path()).unwrap();
    assert_eq!(journal.missing().unwrap(), [(a.clone(), 7), (b.clone(), 7)].into());
    assert_eq!(journal.share(&a).unwrap().unwrap(), share);
    journal.put_shares(&[(a, share)], &|_| false).unwrap();
    journal.forget_shares(std::slice::from_ref(&b)).unwrap();
    assert!(journal.missing().unwrap().is_empty());
    assert_eq!(journal.share(&b).unwrap(), None);
}

#[test]
fn a_forgotten_download_is_not_recorded_again() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).unwrap();
    let (name, manifest) = (FileName::new("a").unwrap(), manifest(2));
    journal.begin_partial(&name, &manifest, None).unwrap();
    journal.forget_partial(&name).unwrap();
    journal.record_chunks(&name, manifest.id(), &ChunkSet::full(manifest.layout().chunk_count())).unwrap();
    assert!(journal.partials().unwrap().is_empty());
}

#[test]
fn data_beside_a_destination_is_a_leftover_once_no_download_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).unwrap();
    let (name, manifest) = (FileName::new("a").unwrap(), manifest(2));
    let (old, new) = (Path::new("/x/old"), Path::new("/y/new"));
    assert_eq!(journal.begin_partial(&name, &manifest, Some(old)).unwrap(), None);
    assert_eq!(journal.partial(&name).unwrap().unwrap().beside.as_deref(), Some(old));
    assert!(journal.leftovers().unwrap().is_empty());

    journal.note_leftover(new).unwrap();
    assert_eq!(journal.leftovers().unwrap(), [new], "until the move is done, the new data is one");
    let chunks = ChunkSet::full(manifest.layout().chunk_count());
    journal.move_partial(&name, manifest.id(), (old, new), true, &chunks).unwrap();
    let moved = journal.partial(&name).unwrap().unwrap();
    assert_eq!((moved.beside.as_deref(), moved.chunks), (Some(new), chunks));
    assert_eq!(journal.leftovers().unwrap(), [old]);

    journal.forget_leftover(old).unwrap();
    let ended = Some(EndedPartial { name: name.clone(), beside: Some(new.to_owned()) });
    assert_eq!(journal.begin_partial(&name, &manifest, None).unwrap(), ended);
    assert_eq!(journal.leftovers().unwrap(), [new]);
    assert_eq!(journal.partial(&name).unwrap().unwrap().beside, None);
}

#[test]
fn what_a_download_was_asked_to_do_is_known_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (name, manifest) = (FileName::new("a").unwrap(), manifest(2));
    let order =
        Order { chunks: Some(vec![(0, 1)]), output: Some("/x/a".into()), timeout_millis: 7, priority: Priority::Low };
    {
        let journal = open(folder.path()).unwrap();
        journal.begin_partial(&name, &manifest, None).unwrap();
        journal.put_order(&name, &order).unwrap();
    }
    let journal = open(folder.path()).unwrap();
    assert_eq!(journal.orders().unwrap(), [(name.clone(), order.clone())]);
    for (asked, expected) in [(Priority::High, Priority::High), (Priority::Normal, Priority::High)] {
        journal.raise_order(&name, asked).unwrap();
        assert_eq!(journal.orders().unwrap(), [(name.clone(), Order { priority: expected, ..order.clone() })]);
    }
    journal.forget_order(&name).unwrap();
    journal.raise_order(&name, Priority::High).unwrap();
    assert_eq!(journal.orders().unwrap(), [], "one that ended does not come back");
    journal.put_order(&name, &order).unwrap();
    journal.forget_partial(&name).unwrap();
    assert_eq!(journal.orders().unwrap(), [], "it goes with the record");
}

#[test]
fn what_an_earlier_version_noted_is_of_normal_priority() {
    let order = Order { chunks: None, output: None, timeout_millis: 7, priority: Priority::High };
    let mut value = order.write().unwrap();
    assert_eq!(Order::read(&value), Some(order.clone()));
    value.pop();
    assert_eq!(Order::read(&value), Some(Order { priority: Priority::Normal, ..order }));
}

#[test]
fn no_altered_record_is_believed() {
    let manifest = manifest(9);
    let sealed =
        seal(manifest.id(), &ChunkSet::from_ranges(manifest.layout().chunk_count(), &"3".parse().unwrap()).unwrap());
    assert!(unseal(&manifest, &sealed).is_some());
    for at in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert!(unseal(&manifest, &altered).is_none(), "byte {at}");
    }
    assert!(unseal(&manifest, &sealed[..4]).is_none(), "truncated");
}

#[test]
fn garbage_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let file = folder.path().join("peer.redb");
    let good = fs::read(&file).unwrap();
    for bad in [b"garbage".to_vec(), good[..good.len() / 2].to_vec(), good[..100].to_vec()] {
        fs::write(&file, &bad).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bad, "nothing is deleted");
    }
}

#[test]
fn two_daemons_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path()).unwrap();
    assert!(matches!(open(folder.path()), Err(JournalError::InUse(_))));
}

#[test]
fn a_shared_file_ends_the_record_of_its_download_unless_that_still_runs() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).unwrap();
    let (name, manifest) = (FileName::new("a").unwrap(), manifest(2));
    let stamp = Stamp { size: 1 << 15, modified_nanos: 0 };
    let share = ShareRecord { path: "/a".into(), stamp, manifest: manifest.clone(), shared: true };
    journal.begin_partial(&name, &manifest, None).unwrap();
    assert!(journal.put_shares(&[(name.clone(), share.clone())], &|_| true).unwrap().is_empty());
    assert!(journal.partial(&name).unwrap().is_some());
    let ended = EndedPartial { name: name.clone(), beside: None };
    assert_eq!(journal.put_shares(&[(name.clone(), share)], &|_| false).unwrap(), [ended]);
    assert!(journal.partial(&name).unwrap().is_none());
}

fn number(folder: &Path) -> Option<u64> {
    let database = Database::open(folder.join(FILE)).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    meta.get(FORMAT_KEY).unwrap().map(|value| u64::from_le_bytes(value.value().try_into().unwrap()))
}

fn set_number(folder: &Path, number: Option<u64>) {
    let database = Database::open(folder.join(FILE)).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut meta = write.open_table(META).unwrap();
        match number {
            Some(number) => drop(meta.insert(FORMAT_KEY, &number.to_le_bytes()[..]).unwrap()),
            None => drop(meta.remove(FORMAT_KEY).unwrap()),
        }
    }
    write.commit().unwrap();
}

#[test]
fn a_journal_without_a_number_is_the_first_format_and_gets_one() {
    let folder = tempfile::tempdir().unwrap();
    let id = open(folder.path()).unwrap().peer_id([7; 16]).unwrap();
    set_number(folder.path(), None);
    assert_eq!(open(folder.path()).unwrap().peer_id([8; 16]).unwrap(), id);
    assert_eq!(number(folder.path()), Some(FORMAT));
}

#[test]
fn a_newer_journal_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    set_number(folder.path(), Some(FORMAT + 1));
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, JournalError::Newer { found, .. } if found == FORMAT + 1), "{error}");
    assert!(error.to_string().contains("newer peer-svc") && error.to_string().contains("--state-dir"), "{error}");
    assert_eq!(number(folder.path()), Some(FORMAT + 1));
}

/// redb alone takes a file that was closed well for what it was, and some damage then costs seconds and gigabytes.
#[test]
fn damage_to_any_page_is_found_when_the_journal_is_opened_or_does_no_harm() {
    let good = super::fuzzing::valid_journal().unwrap();
    let mut found = 0;
    // A leaf that passes for a branch, a branch that passes for a leaf, or anything.
    let damages: [&[u8]; 3] = [&[2], &[1], &[0xa5; 24]];
    for (at, damage) in (0..good.len()).step_by(512).flat_map(|at| damages.map(|damage| (at, damage))) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = good.clone();
        bytes.iter_mut().skip(at).zip(damage).for_each(|(byte, wrong)| *byte = *wrong);
        fs::write(folder.path().join(super::database::FILE), bytes).unwrap();
        match open(folder.path()) {
            Err(JournalError::Damaged { .. }) => found += 1,
            Err(other) => panic!("at {at}: {other}"),
            Ok(journal) => {
                let read =
                    || journal.peer_id([7; 16]).and(journal.shares()).and(journal.partials()).and(journal.orders());
                read().unwrap_or_else(|error| panic!("at {at}: {error}"));
            }
        }
    }
    assert!(found > 0, "some of it is in use");
}
