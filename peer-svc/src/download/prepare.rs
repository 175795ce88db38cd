//! Before the first fetch: the partial file, and every chunk that is here already.
//!
//! Chunks come from two places without asking another peer. Those that the journal vouches for are believed at once,
//! enough to offer them and to fetch only the rest; nothing is read for that, however large the file is, and each is
//! proved by its hash before the file is put in place. Those in other files here with the same content are proved as
//! they are copied. What was written after the last record is fetched again. Blocks.

use std::{fs::File, io, path::Path, sync::Arc};

use drizzle_proto::{ChunkSet, Manifest};
use tokio_util::sync::CancellationToken;

use super::{
    failure::Failure,
    job::{Context, Job},
};
use crate::{
    holdings::Backing,
    store::{
        prove::prove,
        read::{open_unchanged, read_verified},
        stamp::Stamp,
        write::PartialFile,
    },
};

/// Ready to fetch.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) partial: Arc<PartialFile>,
    /// All stored chunks, wanted or not.
    pub(super) stored: ChunkSet,
    /// Of these, chunks that only the journal vouches for.
    pub(super) unproved: ChunkSet,
    /// Whether the partial is what this peer offers under the name, as opposed to a complete file elsewhere.
    pub(super) offered: bool,
}

pub(super) fn prepare(context: &Context, job: &Job, cancel: &CancellationToken) -> Result<Prepared, Failure> {
    let (journal, partials) = (&context.sharer.journal, &context.sharer.partials);
    let (name, manifest) = (&job.name, &job.manifest);
    let path = partials.path(name);
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull => {
            let folder = path.parent().unwrap_or(&path).to_owned();
            Failure::NoRoom { bytes: partials.shortage(name, manifest), folder }
        }
        _ => Failure::Storage(source),
    };
    let turn = partials.turn();
    let record = journal.partial(name).map_err(Failure::Journal)?;
    let record = match record.filter(|record| record.manifest.id() == manifest.id()) {
        Some(record) if partials.is_whole(name, manifest).map_err(fail)? => Some(record),
        _ => None,
    };
    let begun = record.is_some();
    if !begun {
        // Nothing yet, or the leftover of other content under this name: begin anew.
        partials.discard(name).map_err(fail)?;
        journal.begin_partial(name, manifest).map_err(Failure::Journal)?;
    }
    let partial = match partials.open_file(name, manifest.clone(), job.destination.is_some()) {
        Ok(partial) => Arc::new(partial),
        Err(error) => {
            // Nothing was stored, so nothing is to be left.
            if !begun {
                partials.discard(name).map_err(fail)?;
                journal.forget_partial(name).map_err(Failure::Journal)?;
            }
            return Err(fail(error));
        }
    };
    drop(turn);
    let unproved = record.map_or_else(|| ChunkSet::empty(manifest.layout().chunk_count()), |record| record.chunks);
    let mut stored = unproved.clone();
    copy_local(context, job, &partial, &mut stored, cancel).map_err(fail)?;
    let held = context.sharer.holdings.get(name);
    let offered = held.is_none_or(|held| matches!(held.backing, Backing::Partial(_)));
    if offered {
        context.sharer.holdings.insert_partial(name.clone(), partial.clone(), stored.clone());
    }
    Ok(Prepared { partial, stored, unproved, offered })
}

/// Takes wanted chunks from other files here that have the same content, as verified as any.
fn copy_local(
    context: &Context,
    job: &Job,
    partial: &PartialFile,
    stored: &mut ChunkSet,
    cancel: &CancellationToken,
) -> io::Result<()> {
    for held in context.sharer.holdings.with_content(job.manifest.id()) {
        let file: Arc<File> = match held.backing {
            Backing::Shared { path, stamp } => match open_unchanged(&path, stamp) {
                Ok(Some(file)) => Arc::new(file),
                Ok(None) | Err(_) => continue,
            },
            Backing::Partial(other) if other.path() == partial.path() => continue,
            Backing::Partial(other) => other.file(),
        };
        let missing = job.wanted.difference(stored);
        for chunk in missing.iter().filter(|&chunk| held.chunks.contains(chunk)) {
            if cancel.is_cancelled() {
                return Ok(());
            }
            if let Ok(Some(verified)) = read_verified(&file, &job.manifest, chunk) {
                stored.insert(partial.write(&verified)?.chunk());
            }
        }
    }
    Ok(())
}

/// What stands at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Nothing.
    Nothing,
    /// A file with the very content that is wanted, and its stamp.
    Same(Stamp),
    /// Something else.
    Other,
}

/// Compares what stands at a path with a manifest, by hash. Interrupted, it takes the file for another.
pub(crate) fn inspect(path: &Path, manifest: &Manifest, cancel: &CancellationToken) -> io::Result<Existing> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Existing::Nothing);
        }
        metadata => metadata?,
    };
    if !metadata.is_file() || metadata.len() != manifest.layout().size() {
        return Ok(Existing::Other);
    }
    let file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let same = prove(&file, manifest, &ChunkSet::full(manifest.layout().chunk_count()), cancel).is_full();
    Ok(if same { Existing::Same(stamp) } else { Existing::Other })
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::atomic::AtomicU64, time::Duration};

    use drizzle_proto::{Address, FileName, PeerId, client::TrackerClient, net::transport::Transport};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        share::Sharer,
        store::{
            disk::Disk,
            hash::HashProgress,
            journal::Journal,
            partials::{Partials, record},
            testing::{content, verified},
        },
    };

    fn context(folder: &Path) -> Context {
        let journal = Journal::open(&folder.join("state"), Disk::default()).unwrap();
        let partials = Partials::open(journal.folder(), Disk::default()).unwrap();
        let transport = Transport::plaintext();
        let sharer = Sharer {
            journal: Arc::new(journal),
            partials: Arc::new(partials),
            holdings: Arc::default(),
            dir: folder.to_owned(),
            shelf: crate::share::Shelf::new(crate::share::Exclusions::new(&[]).unwrap(), std::time::Duration::ZERO),
            progress: HashProgress::default(),
            stop: CancellationToken::new(),
        };
        Context {
            tracker: TrackerClient::new(&transport, &Address::new("127.0.0.1:1").unwrap()).unwrap(),
            transport,
            peer: PeerId::from_bytes([1; 16]),
            sharer: Arc::new(sharer),
            budget: Arc::new(Semaphore::new(1)),
            downloaded: AtomicU64::new(0),
        }
    }

    fn job(manifest: &Manifest) -> Job {
        let wanted = ChunkSet::full(manifest.layout().chunk_count());
        let (name, timeout) = (FileName::new("a").unwrap(), Duration::from_secs(1));
        Job { name, manifest: manifest.clone(), wanted, destination: None, timeout, seed: 1 }
    }

    fn ranges(chunks: &ChunkSet) -> String {
        chunks.ranges().to_string()
    }

    #[tokio::test]
    async fn what_is_recorded_is_believed_and_what_is_not_is_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, manifest), context) = (content(1), context(folder.path()));
        let job = job(&manifest);
        let prepared = prepare(&context, &job, &CancellationToken::new()).unwrap();
        assert!(prepared.stored.is_empty() && prepared.offered);
        let first = prepared.partial.write(&verified(&data, &manifest, 0)).unwrap().chunk();
        let mut stored = prepared.stored;
        stored.insert(first);
        record(&context.sharer.journal, &job.name, &prepared.partial, &stored).unwrap();
        prepared.partial.write(&verified(&data, &manifest, 2)).unwrap();
        drop(prepared.partial);

        let prepared = prepare(&context, &job, &CancellationToken::new()).unwrap();
        assert_eq!((ranges(&prepared.stored), ranges(&prepared.unproved)), ("0".into(), "0".into()));
        let held = context.sharer.holdings.get(&job.name).unwrap();
        assert_eq!(ranges(&held.chunks), "0", "it is offered at once");

        // Data that was cut short proves nothing, whatever is recorded.
        fs::File::options().write(true).open(context.sharer.partials.path(&job.name)).unwrap().set_len(7).unwrap();
        let prepared = prepare(&context, &job, &CancellationToken::new()).unwrap();
        assert!(prepared.stored.is_empty());
        let record = context.sharer.journal.partial(&job.name).unwrap().unwrap();
        assert!(record.chunks.is_empty(), "the old record vouches for nothing in the new file");
    }

    #[tokio::test]
    async fn the_leftover_of_other_content_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, old), (_, new), context) = (content(1), content(2), context(folder.path()));
        let prepared = prepare(&context, &job(&old), &CancellationToken::new()).unwrap();
        let mut stored = prepared.stored;
        stored.insert(prepared.partial.write(&verified(&data, &old, 0)).unwrap().chunk());
        record(&context.sharer.journal, &job(&old).name, &prepared.partial, &stored).unwrap();
        let prepared = prepare(&context, &job(&new), &CancellationToken::new()).unwrap();
        assert!(prepared.stored.is_empty());
        assert!(prepared.partial.prove(&ChunkSet::full(stored.count()), &CancellationToken::new()).is_empty());
    }

    #[tokio::test]
    async fn chunks_are_copied_from_a_file_here_that_has_them_and_only_the_right_ones() {
        let folder = tempfile::tempdir().unwrap();
        let ((mut data, manifest), context) = (content(1), context(folder.path()));
        // The other file lost its second chunk in secret.
        data[20_000] ^= 1;
        let path = folder.path().join("other");
        fs::write(&path, &data).unwrap();
        let stamp = Stamp::of(&path.metadata().unwrap());
        let other = FileName::new("other").unwrap();
        context.sharer.holdings.insert_shared(other, manifest.clone(), path, stamp);
        let prepared = prepare(&context, &job(&manifest), &CancellationToken::new()).unwrap();
        assert_eq!(ranges(&prepared.stored), "0,2");
        assert!(prepared.unproved.is_empty(), "each was proved as it was copied");
        let all = ChunkSet::full(manifest.layout().chunk_count());
        assert_eq!(ranges(&prepared.partial.prove(&all, &CancellationToken::new())), "0,2");
    }
}
