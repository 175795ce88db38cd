//! Local files in, manifests and full holdings out.
//!
//! | module | is |
//! |---|---|
//! | [`find`] | what a person asked to share |
//! | [`scan`] | which files there are, and what they are called |
//! | [`skipped`] | what is left out of a folder, and why |
//! | [`folder`] | the daemon's own folder: what is recorded against what is there |
//! | [`changes`] | what the system tells of changes in that folder |
//! | [`watch`] | when the files are looked at, and the new ones hashed |
//! | [`writers`] | which files are being written to |
//! | [`untrusted`] | which files are not offered, because no trusted key signed them |
//!
//! A file that was hashed before and has the same size and modification time is not read again. Names come from
//! paths; what cannot be a name (not UTF-8, control characters, too long) is skipped with a reason, never guessed
//! at. [`Sharer::offer`] is the one place where a finished file becomes one that this peer holds, and where one that
//! no trusted key signed does not. Calls block.

mod changes;
mod find;
mod folder;
mod scan;
mod skipped;
mod untrusted;
pub(crate) mod watch;
mod writers;

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use drizzle_proto::{FileInfo, FileName, Manifest, Signature, trust::TrustedKeys};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    folder::{Busy, Shelf, ShelfState},
    scan::{Found, Scanned},
    skipped::{Exclusions, Reason, Skipped},
    untrusted::Untrusted,
};
use crate::{
    holdings::{Backing, Held, Holdings, Refusal},
    store::{
        fence::Outside,
        hash::{HashError, HashProgress, hash_file},
        journal::{EndedPartial, Journal, JournalError, ShareRecord},
        partials::Partials,
        stamp::Stamp,
        turns::{Job, side_by_side},
    },
};

/// Hashed files are recorded and offered in groups, so that a crash in a long scan costs little.
const GROUP_FILES: usize = 2048;
const GROUP_BYTES: u64 = 4 << 30;

/// Why a file is not shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// It could not be hashed, or does not exist.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The path makes no name.
    #[error("{}: {reason}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Whoever asked may not name it.
    #[error(transparent)]
    Outside(#[from] Outside),
    /// Recording failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A panic; the log has its text.
    #[error("internal error: sharing panicked; the log of peer-svc says where")]
    Panicked,
}

/// How files are to be shared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Bytes of a chunk; `None` for the default.
    pub(crate) chunk_size: Option<u32>,
    /// Whether they take the place of what this peer registered under their names.
    pub(crate) replace: bool,
}

/// What became of each file that was to be hashed.
pub(crate) type Hashed = Vec<(FileName, Result<FileInfo, ShareError>)>;

/// Whether a download of this name runs, whose partial file is not to be touched.
pub(crate) type IsDownloading<'a> = &'a (dyn Fn(&FileName) -> bool + Sync);

/// Shares files on behalf of the daemon.
#[derive(Debug)]
pub(crate) struct Sharer {
    pub(crate) journal: Arc<Journal>,
    pub(crate) partials: Arc<Partials>,
    pub(crate) holdings: Arc<Holdings>,
    /// The daemon's folder, absolute.
    pub(crate) dir: PathBuf,
    /// What is recorded and looked at.
    pub(crate) shelf: Shelf,
    /// Whose signatures count.
    pub(crate) trust: TrustedKeys,
    /// What is not offered for want of one.
    pub(crate) untrusted: Untrusted,
    /// How far hashing the folder is.
    pub(crate) progress: HashProgress,
    /// Set when the daemon stops.
    pub(crate) stop: CancellationToken,
}

impl Sharer {
    /// Offers finished files: hashed here, or downloaded. The one place where a file becomes one that this peer
    /// holds in full.
    ///
    /// Order at a crash: the record first, which also ends the record of an unfinished download of the same name;
    /// then the data of that download is deleted; then the file is offered.
    pub(crate) fn offer(
        &self,
        files: Vec<(FileName, ShareRecord)>,
        is_downloading: IsDownloading<'_>,
    ) -> Result<(), JournalError> {
        let turn = self.partials.turn();
        for ended in self.journal.put_shares(&files, is_downloading)? {
            self.discard(&ended);
        }
        drop(turn);
        for (name, record) in files {
            self.shelf.recorded(&name, &record);
            self.hold(name, record)?;
        }
        Ok(())
    }

    /// Deletes the data of an unfinished download whose record ended.
    pub(crate) fn discard(&self, ended: &EndedPartial) {
        if let Err(error) = self.partials.discard(&self.journal, ended) {
            tracing::warn!(name = %ended.name, %error, "cannot delete the data of an unfinished download; it is deleted at the next start");
        }
    }

    /// Holds a file whose record stands, if it may be offered.
    fn hold(&self, name: FileName, record: ShareRecord) -> Result<(), JournalError> {
        let file = record.manifest.describe(name.clone());
        let signature = self.journal.signature(&name, file.id)?;
        if let Err(why) = self.trust.check(&file, signature.as_ref()) {
            // What was offered under the name is not what is there now.
            self.holdings.set_aside(&name);
            self.untrusted.note(&name, why.to_string());
            return Ok(());
        }
        self.untrusted.forget(&name);
        self.holdings.insert_shared(name, record.manifest, record.path, record.stamp);
        if let Some(signature) = signature {
            self.holdings.sign(&signature);
        }
        Ok(())
    }

    /// Keeps what was signed of a file that is shared here, and offers the file if it was not for want of that. Whether
    /// there is such a file. The caller has judged the signature.
    pub(crate) fn sign(&self, signature: &Signature, is_downloading: IsDownloading<'_>) -> Result<bool, JournalError> {
        let name = signature.statement().name();
        let record = self.journal.share(name)?.filter(|record| record.shared);
        let Some(record) =
            record.filter(|record| signature.statement().is_about(&record.manifest.describe(name.clone())))
        else {
            return Ok(false);
        };
        self.journal.put_signature(signature)?;
        if !self.untrusted.has(name) {
            self.holdings.sign(signature);
        } else if self.is_as_recorded(&record) {
            self.offer(vec![(name.clone(), record)], is_downloading)?;
        }
        Ok(true)
    }

    /// The tracker's registered signature is by a trusted key: if it is of the very content that is here under its name,
    /// that is offered. Whether it is.
    pub(crate) fn vouched(
        &self,
        registered: &FileInfo,
        signature: &Signature,
        is_downloading: IsDownloading<'_>,
    ) -> Result<bool, ShareError> {
        let name = &registered.name;
        let Some(record) = self.journal.share(name)?.filter(|record| record.shared) else { return Ok(false) };
        let ours = record.manifest.layout();
        let may_be_same =
            ours.size() == registered.layout.size() && ours.chunk_size() != registered.layout.chunk_size();
        let record = match record.manifest.id() == registered.id {
            true => Some(record).filter(|record| self.is_as_recorded(record)),
            false if may_be_same => self.hash_as(record.path, registered)?,
            false => None,
        };
        let Some(record) = record else {
            let why = format!("what is signed under this name is other content, with id {}", registered.id);
            self.untrusted.explain(name, why);
            return Ok(false);
        };
        self.journal.put_signature(signature)?;
        self.offer(vec![(name.clone(), record)], is_downloading)?;
        Ok(!self.untrusted.has(name))
    }

    /// Hashes files, in turns with other requests, records them and offers them; one result for each, in no order.
    ///
    /// A file that some program has open for writing is shared as it is, and is registered anew by itself when it was
    /// written to after that.
    pub(crate) fn share_found(
        &self,
        files: Vec<Found>,
        wish: Wish,
        progress: &HashProgress,
        is_downloading: IsDownloading<'_>,
    ) -> Result<Hashed, JournalError> {
        progress.begin(files.len() as u64, files.iter().map(|file| file.stamp.size).sum());
        let job = Job::begin();
        let mut results = Vec::with_capacity(files.len());
        let mut rest = &files[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let group = rest.iter().take(GROUP_FILES).take_while(|file| {
                let fits = bytes < GROUP_BYTES;
                bytes += file.stamp.size;
                fits
            });
            let (group, later) = rest.split_at(group.count());
            rest = later;
            let Ok(hashed) = side_by_side(group.len(), |at| {
                let file = &group[at];
                if let Some(known) = self.known(file, wish) {
                    progress.file_done(file.stamp.size);
                    return Ok(Ok(known));
                }
                let result = hash_file(&job, self.holdings.calls(), &file.path, wish.chunk_size, progress, &self.stop);
                progress.file_done(if result.is_err() { file.stamp.size } else { 0 });
                let path = file.path.clone();
                Ok::<_, Infallible>(result.map(|(manifest, stamp)| ShareRecord { path, stamp, manifest, shared: true }))
            });
            let (mut finished, mut growing, written) = (Vec::new(), Vec::new(), writers::open_for_writing());
            for (Found { name, identity, .. }, record) in group.iter().zip(hashed) {
                let result = match record {
                    Ok(record) => {
                        let before = self.journal.share(name)?;
                        if let Some(before) = before.filter(|before| before.manifest.id() != record.manifest.id()) {
                            self.holdings.has_changed(before.manifest.id());
                        }
                        if wish.replace || self.shelf.was_growing(name) {
                            self.holdings.replace(name.clone());
                        }
                        if written.contains(identity) {
                            growing.push(name.clone());
                        }
                        let info = record.manifest.describe(name.clone());
                        finished.push((name.clone(), record));
                        Ok(info)
                    }
                    Err(error) => Err(error.into()),
                };
                results.push((name.clone(), result));
            }
            self.offer(finished, is_downloading)?;
            for name in growing {
                tracing::warn!(%name, "shared while some program has it open for writing: if it changes, it is shared again and takes the place of this content");
                self.shelf.grows(&name);
            }
        }
        Ok(results)
    }

    /// The record of a file that is shared already, as it is now: then nothing is read. A file that was changed and given its
    /// old time again is told by the time of that change, which nobody can set.
    fn known(&self, file: &Found, wish: Wish) -> Option<ShareRecord> {
        let (path, stamp, manifest) = self.hashed(&file.name)?;
        let has_same_chunks = wish.chunk_size.is_none_or(|size| size == manifest.layout().chunk_size());
        if path != file.path || !has_same_chunks {
            return None;
        }
        let metadata = self.holdings.calls().run(&path, || path.metadata()).ok()?;
        let is_as_hashed = Stamp::of(&metadata) == stamp && stamp.is_time_of_last_change(&metadata);
        is_as_hashed.then_some(ShareRecord { path, stamp, manifest, shared: true })
    }

    /// What was hashed of a name, and is offered or waits for a signature.
    fn hashed(&self, name: &FileName) -> Option<(PathBuf, Stamp, Manifest)> {
        match self.holdings.get(name) {
            Some(Held { backing: Backing::Shared { path, stamp }, manifest, .. }) => Some((path, stamp, manifest)),
            None if self.untrusted.has(name) => {
                let record = self.journal.share(name).ok()??;
                Some((record.path, record.stamp, record.manifest))
            }
            _ => None,
        }
    }

    /// The tracker refused a share. If the registered file has the same size in other chunks it may be the
    /// same content after all: hashes again in those chunks. Returns whether it is.
    pub(crate) fn adopt_chunk_size(
        &self,
        refusal: &Refusal,
        is_downloading: IsDownloading<'_>,
    ) -> Result<bool, ShareError> {
        let Some(registered) = refusal.registered.as_ref().filter(|_| refusal.may_be_same_content()) else {
            return Ok(false);
        };
        let name = &refusal.ours.name;
        let Some(Backing::Shared { path, .. }) = self.holdings.get(name).map(|held| held.backing) else {
            return Ok(false);
        };
        let Some(record) = self.hash_as(path, registered)? else { return Ok(false) };
        self.offer(vec![(name.clone(), record)], is_downloading)?;
        Ok(true)
    }

    /// Hashes a file in the chunks of another; its record, if it is the same content.
    fn hash_as(&self, path: PathBuf, other: &FileInfo) -> Result<Option<ShareRecord>, HashError> {
        let chunk_size = Some(other.layout.chunk_size());
        let (manifest, stamp) =
            hash_file(&Job::begin(), self.holdings.calls(), &path, chunk_size, &HashProgress::default(), &self.stop)?;
        Ok((manifest.id() == other.id).then_some(ShareRecord { path, stamp, manifest, shared: true }))
    }

    /// Stops offering a file, now and after a restart. The file stays; an unfinished download is deleted.
    /// Returns what was held. The tracker is not told.
    pub(crate) fn unshare(&self, name: &FileName) -> Result<Option<FileInfo>, JournalError> {
        self.untrusted.forget(name);
        let Some(held) = self.holdings.remove(name, false) else { return self.unshare_missing(name) };
        let info = held.manifest.describe(name.clone());
        match held.backing {
            Backing::Shared { path, stamp } => {
                let record = ShareRecord { path, stamp, manifest: held.manifest, shared: false };
                self.withdraw(name, record)?;
            }
            Backing::Partial(partial) => {
                partial.close();
                if let Some(ended) = self.journal.forget_partial(name)? {
                    self.discard(&ended);
                }
            }
        }
        Ok(Some(info))
    }

    /// What is away now is not offered when it is back.
    fn unshare_missing(&self, name: &FileName) -> Result<Option<FileInfo>, JournalError> {
        let Some(record) = self.journal.share(name)?.filter(|record| record.shared) else { return Ok(None) };
        let info = record.manifest.describe(name.clone());
        self.withdraw(name, ShareRecord { shared: false, ..record })?;
        Ok(Some(info))
    }

    fn withdraw(&self, name: &FileName, record: ShareRecord) -> Result<(), JournalError> {
        self.shelf.recorded(name, &record);
        // An unfinished download of another content under this name is its own affair.
        self.journal.put_shares(&[(name.clone(), record)], &|_| true)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
