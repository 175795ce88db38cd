//! Unfinished downloads: what is stored of them, where, what they were asked to do, and data that none of them needs.

use std::path::{Path, PathBuf};

use drizzle_engine::priority::Priority;
use drizzle_proto::{ChunkSet, FileId, FileName, Manifest};
use redb::{ReadableDatabase, ReadableTable, WriteTransaction};

use super::{
    BESIDE, Journal, JournalError, LEFTOVERS, ORDERS, PARTIALS, PROGRESS,
    records::{EndedPartial, Order, PartialRecord, damaged, path_bytes, read_partial, read_path, seal},
};

impl Journal {
    /// Every unfinished download. A record of stored chunks whose checksum fails counts as empty.
    pub(crate) fn partials(&self) -> Result<Vec<PartialRecord>, JournalError> {
        self.run(|database| {
            let read = database.begin_read()?;
            let (progress, beside) = (read.open_table(PROGRESS)?, read.open_table(BESIDE)?);
            let mut partials = Vec::new();
            for row in read.open_table(PARTIALS)?.iter()? {
                let (name, value) = row?;
                let chunks = progress.get(name.value())?;
                let beside = beside.get(name.value())?.map(|path| read_path(path.value()));
                let name = FileName::new(name.value()).map_err(|_| damaged("name of a download"))?;
                partials.push(read_partial(name, value.value(), chunks.as_ref().map(|chunks| chunks.value()), beside)?);
            }
            Ok(partials)
        })
    }

    /// The unfinished download of this name, if there is one.
    pub(crate) fn partial(&self, name: &FileName) -> Result<Option<PartialRecord>, JournalError> {
        self.run(|database| {
            let read = database.begin_read()?;
            let Some(value) = read.open_table(PARTIALS)?.get(name.as_str())? else { return Ok(None) };
            let chunks = read.open_table(PROGRESS)?.get(name.as_str())?;
            let beside = read.open_table(BESIDE)?.get(name.as_str())?.map(|path| read_path(path.value()));
            read_partial(name.clone(), value.value(), chunks.as_ref().map(|chunks| chunks.value()), beside).map(Some)
        })
    }

    /// Begins the record of a download, with no chunk stored; its data is to be at `beside`, or in the folder of
    /// partial files. Returns what was recorded under the name before.
    pub(crate) fn begin_partial(
        &self,
        name: &FileName,
        manifest: &Manifest,
        beside: Option<&Path>,
    ) -> Result<Option<EndedPartial>, JournalError> {
        self.change(|write| {
            let ended = end_partial(write, name)?;
            write.open_table(PARTIALS)?.insert(name.as_str(), &manifest.encode()[..])?;
            if let Some(path) = beside {
                write.open_table(BESIDE)?.insert(name.as_str(), path_bytes(path))?;
            }
            Ok(ended)
        })
    }

    /// The data of a download is at another place now: at `beside`, or in the folder of partial files. There these
    /// chunks of it are stored and synced. The old data is noted as a leftover.
    pub(crate) fn move_partial(
        &self,
        name: &FileName,
        file: FileId,
        (from, to): (&Path, &Path),
        is_beside: bool,
        chunks: &ChunkSet,
    ) -> Result<(), JournalError> {
        self.change(|write| {
            let (mut beside, mut leftovers) = (write.open_table(BESIDE)?, write.open_table(LEFTOVERS)?);
            beside.remove(name.as_str())?;
            if is_beside {
                beside.insert(name.as_str(), path_bytes(to))?;
            }
            leftovers.remove(path_bytes(to))?;
            leftovers.insert(path_bytes(from), &[][..])?;
            write.open_table(PROGRESS)?.insert(name.as_str(), &seal(file, chunks)[..])?;
            Ok(())
        })
    }

    /// Notes what a download that runs was asked to do. Its record must be there.
    pub(crate) fn put_order(&self, name: &FileName, order: &Order) -> Result<(), JournalError> {
        self.change(|write| {
            let value = order.write().ok_or_else(|| damaged("order"))?;
            write.open_table(ORDERS)?.insert(name.as_str(), &value[..])?;
            Ok(())
        })
    }

    /// A download that was noted is more urgent than it was. Nothing if it has ended.
    pub(crate) fn raise_order(&self, name: &FileName, priority: Priority) -> Result<(), JournalError> {
        self.change(|write| {
            let mut orders = write.open_table(ORDERS)?;
            let noted = orders.get(name.as_str())?.map(|value| Order::read(value.value()));
            if let Some(noted) = noted {
                let order = noted.ok_or_else(|| damaged("order"))?;
                let order = Order { priority: order.priority.max(priority), ..order };
                let value = order.write().ok_or_else(|| damaged("order"))?;
                orders.insert(name.as_str(), &value[..])?;
            }
            Ok(())
        })
    }

    /// A download ended, and is not to go on by itself.
    pub(crate) fn forget_order(&self, name: &FileName) -> Result<(), JournalError> {
        self.run(|database| {
            // The record of a finished download took it along.
            if database.begin_read()?.open_table(ORDERS)?.get(name.as_str())?.is_some() {
                let write = database.begin_write()?;
                write.open_table(ORDERS)?.remove(name.as_str())?;
                write.commit()?;
            }
            Ok(())
        })
    }

    /// What the downloads were asked to do that ran when this journal was used last.
    pub(crate) fn orders(&self) -> Result<Vec<(FileName, Order)>, JournalError> {
        self.rows(ORDERS, |order| Order::read(order).ok_or_else(|| damaged("order")))
    }

    /// Paths of data that no download needs.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>, JournalError> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(LEFTOVERS)?;
            table.iter()?.map(|row| Ok(read_path(row?.0.value()))).collect()
        })
    }

    /// Notes data that is not needed, or not yet: a start deletes it. To be called before it is made.
    pub(crate) fn note_leftover(&self, path: &Path) -> Result<(), JournalError> {
        self.change_leftover(path, true)
    }

    /// Forgets data that was deleted, durably.
    pub(crate) fn forget_leftover(&self, path: &Path) -> Result<(), JournalError> {
        self.change_leftover(path, false)
    }

    fn change_leftover(&self, path: &Path, is_one: bool) -> Result<(), JournalError> {
        self.change(|write| {
            let mut leftovers = write.open_table(LEFTOVERS)?;
            if is_one {
                leftovers.insert(path_bytes(path), &[][..])?;
            } else {
                leftovers.remove(path_bytes(path))?;
            }
            Ok(())
        })
    }

    /// Records which chunks are stored. Their data must have been synced before.
    pub(crate) fn record_chunks(&self, name: &FileName, file: FileId, chunks: &ChunkSet) -> Result<(), JournalError> {
        self.change(|write| {
            // A download that ended meanwhile must not come back.
            if write.open_table(PARTIALS)?.get(name.as_str())?.is_some() {
                write.open_table(PROGRESS)?.insert(name.as_str(), &seal(file, chunks)[..])?;
            }
            Ok(())
        })
    }

    /// Forgets an unfinished download; what was recorded, if there was one.
    pub(crate) fn forget_partial(&self, name: &FileName) -> Result<Option<EndedPartial>, JournalError> {
        self.change(|write| {
            let ended = end_partial(write, name)?;
            Ok(ended)
        })
    }
}

/// Ends the record of a download. Data beside a destination becomes a leftover: nothing else would find it.
pub(super) fn end_partial(write: &WriteTransaction, name: &FileName) -> Result<Option<EndedPartial>, redb::Error> {
    write.open_table(PROGRESS)?.remove(name.as_str())?;
    write.open_table(ORDERS)?.remove(name.as_str())?;
    let beside = write.open_table(BESIDE)?.remove(name.as_str())?.map(|path| read_path(path.value()));
    if let Some(path) = &beside {
        write.open_table(LEFTOVERS)?.insert(path_bytes(path), &[][..])?;
    }
    let was_there = write.open_table(PARTIALS)?.remove(name.as_str())?.is_some();
    Ok(was_there.then(|| EndedPartial { name: name.clone(), beside }))
}
