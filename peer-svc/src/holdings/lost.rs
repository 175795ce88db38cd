//! Content that was offered and no longer is, and what a peer that asks for it is told.

use std::{collections::VecDeque, fs::Metadata, io, path::Path};

use drizzle_proto::FileId;

use crate::store::{calls::Calls, stamp::Stamp};

/// Why a chunk cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// No such content here.
    #[error("this peer holds nothing of file {0}")]
    UnknownFile(FileId),
    /// The index is beyond the file's end.
    #[error("the file has {count} chunks, counted from 0; there is no chunk {chunk}")]
    NoSuchChunk {
        /// What was asked for.
        chunk: u32,
        /// What there is.
        count: u32,
    },
    /// Not yet, or not any more.
    #[error("this peer does not hold chunk {0}")]
    NotHeld(u32),
    /// The file is not the one that was hashed.
    #[error("the file changed on disk since it was shared; it is no longer offered")]
    Changed,
    /// Its time is another one, and its content may be.
    #[error("the file was touched since it was shared; it is offered again once its hash was taken")]
    InDoubt,
    /// There is no file.
    #[error("the file is no longer there: it was deleted, or its disk is away")]
    Gone,
    /// Reading failed.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
}

/// Why a shared file is no longer offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It has other content.
    Changed,
    /// Its time is another one: only hashing it again can tell.
    InDoubt,
    /// It was deleted, or its disk is away.
    Gone,
}

impl Lost {
    /// What became of a file that is not the one that was hashed. Fails if its disk hangs.
    pub(crate) fn of(calls: &Calls, path: &Path, hashed: Stamp) -> io::Result<Self> {
        match calls.run(path, || path.metadata()) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
            now => Ok(Self::seen(now.ok().as_ref(), hashed)),
        }
    }

    /// What this look at it says.
    pub(crate) fn seen(now: Option<&Metadata>, hashed: Stamp) -> Self {
        match now {
            None => Self::Gone,
            Some(now) if !now.is_file() || now.len() != hashed.size => Self::Changed,
            Some(_) => Self::InDoubt,
        }
    }

    pub(super) fn error(self) -> ReadError {
        match self {
            Self::Changed => ReadError::Changed,
            Self::InDoubt => ReadError::InDoubt,
            Self::Gone => ReadError::Gone,
        }
    }
}

/// The last contents that were lost; bounded, because it only makes an answer clearer.
#[derive(Debug, Default)]
pub(super) struct LostContents(pub(super) VecDeque<(FileId, Lost)>);

impl LostContents {
    pub(super) const MOST: usize = 1024;

    pub(super) fn note(&mut self, id: FileId, why: Lost) {
        self.forget(id);
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back((id, why));
    }

    pub(super) fn forget(&mut self, id: FileId) {
        self.0.retain(|(known, _)| *known != id);
    }

    pub(super) fn why(&self, id: FileId) -> Option<Lost> {
        self.0.iter().find(|(known, _)| *known == id).map(|(_, why)| *why)
    }
}
