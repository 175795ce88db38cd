//! Before the first fetch: the partial file, and every chunk that is here already.
//!
//! Chunks come from two places without asking another peer. Those that the journal vouches for are believed at once,
//! enough to offer them and to fetch only the rest; nothing is read for that, however large the file is, and each is
//! proved by its hash before the file is put in place. Those in other files here with the same content are proved as
//! they are copied. What was written after the last record is fetched again. Blocks.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use drizzle_engine::priority::Priority;
use drizzle_proto::{ChunkSet, FileName, Manifest};
use tokio_util::sync::CancellationToken;

use super::{
    events::Broadcast,
    failure::{Failure, size_text},
    job::{Context, Job},
};
use crate::{
    fetch::receiver::Receivers,
    holdings::{Backing, Held, Lost},
    store::{
        calls::Calls,
        place::{Moved, Opened, Place, folder_above},
        prove::prove,
        read::{CopyError, copy_chunk, open_unchanged},
        stamp::Stamp,
        write::PartialFile,
    },
};

/// Ready to fetch.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) partial: Arc<PartialFile>,
    /// Keeps the data file open, so that no chunk has to open it again.
    pub(super) file: Arc<File>,
    /// The threads that write it.
    pub(super) receivers: Arc<Receivers>,
    /// All stored chunks, wanted or not.
    pub(super) stored: ChunkSet,
    /// Of these, chunks that only the journal vouches for.
    pub(super) unproved: ChunkSet,
    /// Whether the partial is what this peer offers under the name, as opposed to a complete file elsewhere.
    pub(super) offered: bool,
}

pub(super) fn prepare(
    context: &Context,
    job: &Job,
    priority: Priority,
    events: &Broadcast,
    cancel: &CancellationToken,
) -> Result<Prepared, Failure> {
    let (name, manifest) = (&job.name, &job.manifest);
    let destination = job.destination.as_ref().map(|destination| destination.path(&context.sharer.dir, name));
    let tell = |moved: Moved<'_>| tell_move(events, moved);
    let (journal, partials) = (&context.sharer.journal, &context.sharer.partials);
    let place = Place { journal, partials, cancel, tell: &tell };
    let Opened { partial, file, recorded } = place.open(name, manifest, destination.as_deref().map(folder_above))?;
    let partial = Arc::new(partial);
    let disk = file.metadata().map_err(|error| Failure::storage(&partial, error))?.dev();
    let receivers = context.connections.receivers(disk).map_err(|error| Failure::storage(&partial, error))?;
    journal.put_order(name, &job.order(priority)).map_err(Failure::Journal)?;
    let unproved = recorded;
    let mut stored = unproved.clone();
    copy_local(context, job, &partial, &mut stored, cancel).map_err(|error| Failure::storage(&partial, error))?;
    let offered = held_elsewhere(context, name).is_none();
    if offered {
        context.sharer.holdings.insert_partial(name.clone(), partial.clone(), stored.clone());
    }
    Ok(Prepared { partial, file, receivers, stored, unproved, offered })
}

/// Tells how far a move to another file system is, in steps that a person can follow.
pub(super) fn tell_move(events: &Broadcast, Moved { to, done, total }: Moved<'_>) {
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
    events.work(format!("copying {} of earlier chunks to {}: {percent} %", size_text(total), to.display()));
}

/// The complete file that this peer holds under a name, if it is still there as it was. One that is gone or changed is
/// dropped, and the tracker hears of it: the download is what this peer has of it.
pub(super) fn held_elsewhere(context: &Context, name: &FileName) -> Option<Held> {
    let holdings = &context.sharer.holdings;
    let held = holdings.get(name)?;
    let Backing::Shared { path, stamp } = &held.backing else { return None };
    if matches!(open_unchanged(holdings.calls(), path, *stamp), Ok(None)) {
        tracing::info!(%name, path = %path.display(), "no longer there as it was shared: no longer offered");
        let why = Lost::of(holdings.calls(), path, *stamp).unwrap_or(Lost::InDoubt);
        holdings.withhold(name, held.manifest.id(), *stamp, why);
        return None;
    }
    Some(held)
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
            Backing::Shared { path, stamp } => match open_unchanged(context.sharer.holdings.calls(), &path, stamp) {
                Ok(Some(file)) => Arc::new(file),
                Ok(None) | Err(_) => continue,
            },
            Backing::Partial(other) if other.path() == partial.path() => continue,
            Backing::Partial(other) => match other.file() {
                Ok(file) => file,
                Err(_) => continue,
            },
        };
        let missing = job.wanted.difference(stored);
        for chunk in missing.iter().filter(|&chunk| held.chunks.contains(chunk)) {
            if cancel.is_cancelled() {
                return Ok(());
            }
            match copy_chunk(&file, partial, chunk) {
                Ok(Some(copied)) => _ = stored.insert(copied.chunk()),
                // It is fetched.
                Ok(None) | Err(CopyError::Read(_)) => {}
                Err(CopyError::Write(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What stands at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// There is nothing of that name.
    Nothing,
    /// A file with the very content that is wanted, and its stamp.
    Same(Stamp),
    /// Other content, or no regular file.
    Other,
}

/// Compares what stands at a path with a manifest, by hash. Interrupted, it takes the file for another.
pub(crate) fn inspect(
    calls: &Calls,
    path: &Path,
    manifest: &Manifest,
    cancel: &CancellationToken,
) -> io::Result<Existing> {
    let metadata = match calls.run(path, || std::fs::symlink_metadata(path)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Existing::Nothing);
        }
        metadata => metadata?,
    };
    if !metadata.is_file() || metadata.len() != manifest.layout().size() {
        return Ok(Existing::Other);
    }
    let (file, metadata) = calls.open(path)?;
    let stamp = Stamp::of(&metadata);
    let same = prove(&file, manifest, &ChunkSet::full(manifest.layout().chunk_count()), cancel).is_full();
    Ok(if same { Existing::Same(stamp) } else { Existing::Other })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use drizzle_proto::FileName;

    use super::{super::testing::job, *};
    use crate::store::{
        disk::Disk,
        partials::record,
        testing::{content, verified},
    };

    fn context(folder: &Path) -> Context {
        super::super::testing::context(folder, Disk::default())
    }

    fn begin(context: &Context, job: &Job) -> Result<Prepared, Failure> {
        prepare(context, job, Priority::Normal, &Broadcast::default(), &CancellationToken::new())
    }

    fn ranges(chunks: &ChunkSet) -> String {
        chunks.ranges().to_string()
    }

    #[tokio::test]
    async fn what_is_recorded_is_believed_and_what_is_not_is_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, manifest), context) = (content(1), context(folder.path()));
        let job = job(&manifest);
        let prepared = begin(&context, &job).unwrap();
        assert!(prepared.stored.is_empty() && prepared.offered);
        let first = prepared.partial.store(verified(&data, &manifest, 0)).unwrap().chunk();
        let mut stored = prepared.stored;
        stored.insert(first);
        record(&context.sharer.journal, &job.name, &prepared.partial, &stored).unwrap();
        prepared.partial.store(verified(&data, &manifest, 2)).unwrap();
        drop(prepared.partial);

        let prepared = begin(&context, &job).unwrap();
        assert_eq!((ranges(&prepared.stored), ranges(&prepared.unproved)), ("0".into(), "0".into()));
        let held = context.sharer.holdings.get(&job.name).unwrap();
        assert_eq!(ranges(&held.chunks), "0", "it is offered at once");

        // Data that was cut short proves nothing, whatever is recorded.
        fs::File::options().write(true).open(context.sharer.partials.path(&job.name)).unwrap().set_len(7).unwrap();
        let prepared = begin(&context, &job).unwrap();
        assert!(prepared.stored.is_empty());
        let record = context.sharer.journal.partial(&job.name).unwrap().unwrap();
        assert!(record.chunks.is_empty(), "the old record vouches for nothing in the new file");
    }

    #[tokio::test]
    async fn the_leftover_of_other_content_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let ((data, old), (_, new), context) = (content(1), content(2), context(folder.path()));
        let prepared = begin(&context, &job(&old)).unwrap();
        let mut stored = prepared.stored;
        stored.insert(prepared.partial.store(verified(&data, &old, 0)).unwrap().chunk());
        record(&context.sharer.journal, &job(&old).name, &prepared.partial, &stored).unwrap();
        let prepared = begin(&context, &job(&new)).unwrap();
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
        let prepared = begin(&context, &job(&manifest)).unwrap();
        assert_eq!(ranges(&prepared.stored), "0,2");
        assert!(prepared.unproved.is_empty(), "each was proved as it was copied");
        let all = ChunkSet::full(manifest.layout().chunk_count());
        assert_eq!(ranges(&prepared.partial.prove(&all, &CancellationToken::new())), "0,2");
    }
}
