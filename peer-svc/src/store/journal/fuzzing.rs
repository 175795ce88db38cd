//! What fuzzing calls of the journal: its records, and the whole of it from a file that may be damaged.

use std::{fs, io, path::Path};

use drizzle_engine::priority::Priority;
use drizzle_proto::{ChunkSet, Digest, FileName, Layout, Manifest};

use super::{
    Journal, Order, ShareRecord,
    database::FILE,
    records::{read_partial, read_share, seal, unseal, write_share},
};
use crate::store::{disk::Disk, stamp::Stamp};

fn manifest(chunks: u8) -> Manifest {
    let layout = Layout::new(u64::from(chunks) << 14, 1 << 14).expect("few chunks");
    Manifest::new(layout, (0..chunks).map(|chunk| Digest::of(&[chunk])).collect()).expect("one hash per chunk")
}

fn order() -> Order {
    Order { chunks: Some(vec![(0, 1)]), output: Some("/x/a".into()), timeout_millis: 7, priority: Priority::Low }
}

fn share() -> ShareRecord {
    let stamp = Stamp { size: 3 << 14, modified_nanos: -7 };
    ShareRecord { path: "/x/a".into(), stamp, manifest: manifest(3), shared: true }
}

/// Reads a record of each kind. What is read is written as it was read.
pub(crate) fn records(value: &[u8]) {
    if let Ok(read) = read_share(value) {
        let written = write_share(&read).expect("what was read can be written");
        assert_eq!(read_share(&written).expect("it is what this program writes"), read);
    }
    if let Some(read) = Order::read(value) {
        let written = read.write().expect("what was read can be written");
        assert_eq!(Order::read(&written), Some(read));
    }
    let known = manifest(9);
    if let Some(chunks) = unseal(&known, value) {
        assert_eq!(seal(known.id(), &chunks), value, "no other bytes are believed");
    }
    let name = FileName::new("a").expect("a plain name");
    let (front, rest) = value.split_at(value.len() / 2);
    if let Ok(partial) = read_partial(name, front, Some(rest), None) {
        assert_eq!(partial.chunks.count(), partial.manifest.layout().chunk_count());
    }
}

/// A valid record of each kind.
pub(crate) fn valid_records() -> Vec<Vec<u8>> {
    let known = manifest(9);
    let some = ChunkSet::full(known.layout().chunk_count());
    vec![
        write_share(&share()).expect("it can be written"),
        order().write().expect("it can be written"),
        seal(known.id(), &some),
        manifest(5).encode(),
    ]
}

/// The bytes of a journal with something in every table.
pub(crate) fn valid_journal() -> io::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    {
        let journal = Journal::open(folder.path(), Disk::default()).map_err(io::Error::other)?;
        let name = |text: &str| FileName::new(text).map_err(io::Error::other);
        let fill = || {
            journal.peer_id([7; 16])?;
            journal.put_shares(&[(name("s")?, share())], &|_| false)?;
            journal.note_missing(&[name("s")?], 7)?;
            journal.begin_partial(&name("p")?, &manifest(5), Some(Path::new("/y/p")))?;
            journal.put_order(&name("p")?, &order())?;
            let chunks = ChunkSet::full(manifest(5).layout().chunk_count());
            journal.record_chunks(&name("p")?, manifest(5).id(), &chunks)?;
            journal.note_leftover(Path::new("/y/old"))?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        fill().map_err(io::Error::other)?;
    }
    fs::read(folder.path().join(FILE))
}

/// Opens a folder whose journal has these bytes, and reads and changes all of it. Any part may refuse.
pub(crate) fn journal(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(folder.join(FILE), bytes)?;
    let Ok(journal) = Journal::open(folder, Disk::default()) else { return Ok(()) };
    let _ = journal.peer_id([7; 16]);
    let _ = (journal.orders(), journal.leftovers(), journal.missing());
    if let Ok(partials) = journal.partials() {
        for partial in partials {
            assert_eq!(partial.chunks.count(), partial.manifest.layout().chunk_count());
            let _ = journal.record_chunks(&partial.name, partial.manifest.id(), &partial.chunks);
            let _ = journal.forget_partial(&partial.name);
        }
    }
    if let Ok(shares) = journal.shares() {
        let names: Vec<FileName> = shares.into_iter().map(|(name, _)| name).collect();
        let _ = journal.forget_shares(&names);
    }
    Ok(())
}
