//! What is read from a disk that may lie: manifests, records, and whole databases.
//!
//! An input of the last kind is a list of changes to a good file: each is two bytes of where, in units of 16 bytes, one
//! byte of how many, and so many bytes that stand there instead. So a short input reaches every page, and one that was
//! found says what is wrong.

use std::{fs, path::Path, sync::LazyLock};

use drizzle_proto::{FileId, FileName, Manifest, PeerId};
use tempfile::TempDir;
use tracker_svc::catalogue::{Catalogue, Claim, RedbCatalogue};

use crate::Content;

/// The canonical form of a manifest.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(manifest.encode(), bytes, "there is one form");
    assert_eq!(manifest.hashes().len(), manifest.layout().chunk_count().get() as usize);
    let digest = drizzle_proto::Digest::of(bytes);
    assert_eq!(manifest.id().as_bytes(), digest.as_bytes(), "the id is of all of it");
}

/// Records of peer and tracker.
pub fn records(bytes: &[u8]) {
    peer_svc::fuzzing::records(bytes);
    tracker_svc::fuzzing::records(bytes);
}

/// A copy of a good file with some of its bytes changed, or cut short where a change says how much is left.
pub fn damaged(good: &[u8], mut input: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    while let [high, low, len, rest @ ..] = input {
        let at = usize::from(u16::from_be_bytes([*high, *low])) * 16 % good.len().max(1);
        if *len == 0 {
            bytes.truncate(at);
        }
        let (new, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        for (old, new) in bytes.iter_mut().skip(at).zip(new) {
            *old = *new;
        }
        input = rest;
    }
    bytes
}

/// Memory instead of a disk, where there is some: each input is a file of a megabyte or more.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.or_else(|_| TempDir::new()).expect("a temporary folder")
}

static JOURNAL: LazyLock<Vec<u8>> = LazyLock::new(|| peer_svc::fuzzing::valid_journal().expect("it can be made"));

/// A peer's journal.
pub fn journal(input: &[u8]) {
    let folder = folder();
    peer_svc::fuzzing::journal(folder.path(), &damaged(&JOURNAL, input)).expect("the file can be written");
}

static RIGHTS: LazyLock<Vec<u8>> =
    LazyLock::new(|| tracker_svc::fuzzing::valid_access(folder().path()).expect("it can be made"));

/// A tracker's database of rights.
pub fn rights(input: &[u8]) {
    let folder = folder();
    tracker_svc::fuzzing::access(folder.path(), &damaged(&RIGHTS, input)).expect("the file can be written");
}

/// Its file.
const NAMES: &str = "catalogue.redb";

fn content() -> Content {
    Content::small_chunks("a/b", 1, 3)
}

fn owner() -> PeerId {
    PeerId::from_bytes([3; 16])
}

static CATALOGUE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = folder();
    {
        let catalogue = RedbCatalogue::open(folder.path()).expect("a new one");
        for content in [content(), Content::small_chunks("b", 2, 2)] {
            let claim = Claim {
                file: content.info(),
                manifest: Some(content.manifest.clone()),
                replace: false,
                signature: None,
            };
            catalogue.register(owner(), &[claim]).expect("a free name");
        }
        let b = FileName::new("b").expect("a plain name");
        catalogue.release(&b, owner()).expect("its owner may");
        catalogue.attend(&[(content().name, false)], 5, 100).expect("it writes");
    }
    fs::read(folder.path().join(NAMES)).expect("it is there")
});

/// A tracker's catalogue.
pub fn catalogue(input: &[u8]) {
    let folder = folder();
    fs::write(folder.path().join(NAMES), damaged(&CATALOGUE, input)).expect("the file can be written");
    let Ok(catalogue) = RedbCatalogue::open(folder.path()) else { return };
    let content = content();
    let _ = (catalogue.check(), catalogue.clock());
    let _ = catalogue.lookup(&[content.info()]);
    if let Ok(listed) = catalogue.list("", None, 10) {
        for record in listed {
            let _ = catalogue.hashes(record.file.id, 0, 10);
        }
    }
    let _ = catalogue.hashes(FileId::from_digest(drizzle_proto::Digest::of(b"x")), u32::MAX, 1);
    let other = Content::small_chunks("c", 3, 1);
    let claim = Claim { file: other.info(), manifest: Some(other.manifest.clone()), replace: false, signature: None };
    let _ = catalogue.register(owner(), &[claim]);
    let _ = catalogue.release(&content.name, owner());
    let _ = catalogue.attend(&[(other.name, false)], 9, 1);
}
