//! What the tracker must not forget: which content each name stands for.
//!
//! [`Catalogue`] is a trait so that a shared store can take the place of the embedded one when several
//! trackers serve one fleet. It is blocking; [`crate::registry`] calls it away from the async threads.
//!
//! Invariants: a name stands for the content that was first registered under it, until it is released;
//! once a call has answered, its effect survives a crash; a manifest is kept exactly as long as a name
//! stands for it, and what its owner signed of that content likewise; a name that its owner withdrew is not given to another peer with the same content, one that an
//! operator dropped to none. Knows nothing of peers that are alive, nor of which peer holds what.

#[cfg(test)]
pub(crate) mod contract;
mod group;
pub mod memory;
mod redb;
mod tables;

use std::path::PathBuf;

use drizzle_proto::{Digest, FileId, FileInfo, FileName, Layout, Manifest, PeerId, Signature};

pub use self::redb::RedbCatalogue;

/// What a store said of its own failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the catalogue failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The folder for it cannot be made.
    #[error("cannot create the data directory {path}: {source}")]
    Directory {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("{0} is in use by another tracker; give each tracker its own --data-dir")]
    InUse(PathBuf),
    /// It cannot be opened.
    #[error("cannot open the catalogue {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Cause,
    },
    /// It is not what a tracker wrote.
    #[error(
        "the catalogue {path} is damaged ({reason}); restore it from a copy, or move it away to start with an empty one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Another version of the tracker wrote it.
    #[error(
        "the catalogue {path} has format {found} and this tracker reads format {expected}; start the version that wrote it, or give another --data-dir"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// Reading or writing failed, for instance because the disk is full.
    #[error("the catalogue cannot be read or written: {0}")]
    Storage(#[source] Cause),
}

/// A name, what it stands for, and the peer that registered it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Name and content.
    pub file: FileInfo,
    /// The peer that registered it.
    pub owner: PeerId,
}

/// What is known of a file that a peer claims to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What the name stands for, and its owner.
    pub registered: Option<Record>,
    /// The layout of the claimed content, if its manifest is here, under whichever name.
    pub content: Option<Layout>,
}

/// A name to be registered.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Name and content.
    pub file: FileInfo,
    /// The content's manifest; not needed if another name stands for the same content.
    pub manifest: Option<Manifest>,
    /// Whether it is to take the place of other content that the same peer registered.
    pub replace: bool,
    /// To be kept with the name if the peer is its owner.
    pub signature: Option<Signature>,
}

/// What became of a [`Claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The name was free and stands for this content now.
    New,
    /// The name stood for other content of the same peer, this one, and stands for the new one now.
    Replaced(FileInfo),
    /// The name stood for this content already.
    Same,
    /// The same, and the signature of the claiming peer, which owns the name, is new.
    Signed,
    /// The name stands for other content.
    Other {
        /// Which.
        registered: FileInfo,
        /// Whether the claiming peer registered it, and so may replace it.
        own: bool,
    },
    /// The name's owner, another peer, withdrew this very content.
    Withdrawn,
    /// An operator dropped this very content.
    Dropped,
    /// The manifest is missing.
    NoManifest,
    /// There are [`crate::limits::MAX_NAMES`] names.
    Full,
}

/// The durable half of the tracker. Every call may block for as long as a disk takes.
pub trait Catalogue: Send + Sync + 'static {
    /// Passes if it can be read, and written to as far as can be told without writing. Changes nothing.
    fn check(&self) -> Result<(), CatalogueError>;

    /// What is known of each of these files, in order.
    fn lookup(&self, files: &[FileInfo]) -> Result<Vec<Known>, CatalogueError>;

    /// Registers names, all in one durable step, and says what became of each, in order. Of two
    /// registrations of one name, in one call or in two concurrent ones, exactly one is first.
    fn register(&self, owner: PeerId, files: &[Claim]) -> Result<Vec<Verdict>, CatalogueError>;

    /// Frees a name on behalf of a peer; whether it was taken. If that peer owns it, this is a withdrawal:
    /// until the name is registered again, other peers cannot register the same content under it.
    fn release(&self, name: &FileName, by: PeerId) -> Result<bool, CatalogueError>;

    /// Frees a name on behalf of an operator; what it stood for, if it was taken. With `bar` no peer can register the
    /// same content under it until other content was; without, what a withdrawal or an earlier drop barred is free too.
    fn drop_name(&self, name: &FileName, bar: bool) -> Result<Option<Record>, CatalogueError>;

    /// Makes a peer the owner of a name; what the name stands for and which peer owned it, if it is taken.
    fn reassign(&self, name: &FileName, owner: PeerId) -> Result<Option<Record>, CatalogueError>;

    /// What a name stands for.
    fn get(&self, name: &FileName) -> Result<Option<Record>, CatalogueError>;

    /// Names with this prefix in byte order, after the given one; at most `limit`.
    fn list(&self, prefix: &str, after: Option<&FileName>, limit: usize) -> Result<Vec<Record>, CatalogueError>;

    /// How far [`Catalogue::attend`] last set the clock of attendance; 0 at first.
    fn clock(&self) -> Result<u64, CatalogueError>;

    /// Sets the clock of attendance (seconds that trackers have run on this catalogue, so that a time in which all
    /// machines were off counts for nothing) and notes which of these names are attended, that is have a live owner
    /// or holder. Writes only what changed. Which of them are unattended for at least `limit` seconds, in order.
    fn attend(&self, names: &[(FileName, bool)], clock: u64, limit: u64) -> Result<Vec<FileName>, CatalogueError>;

    /// Frees a name if it is unattended for at least `limit` seconds; what it stood for. This is no withdrawal: any
    /// peer may register any content under it again.
    fn expire(&self, name: &FileName, clock: u64, limit: u64) -> Result<Option<Record>, CatalogueError>;

    /// What a name's owner signed last of the content that it stands for now, if it signed it.
    fn signature(&self, name: &FileName) -> Result<Option<Signature>, CatalogueError>;

    /// Some of a content's chunk hashes: from `first` on, at most `count`. Empty if there are none.
    fn hashes(&self, id: FileId, first: u32, count: usize) -> Result<Vec<Digest>, CatalogueError>;
}
