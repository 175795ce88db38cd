//! What the journal remembers, and its bytes.

use std::path::{Path, PathBuf};

use drizzle_engine::priority::Priority;
use drizzle_proto::{ChunkSet, Digest, FileId, FileName, Manifest};
use serde::{Deserialize, Serialize};

use crate::store::stamp::Stamp;

/// Priorities as they are written.
const LOW: u8 = 0;
const NORMAL: u8 = 1;
const HIGH: u8 = 2;

/// A file that was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShareRecord {
    /// Absolute path of the file.
    pub(crate) path: PathBuf,
    /// The file as it was when hashed.
    pub(crate) stamp: Stamp,
    /// Its content.
    pub(crate) manifest: Manifest,
    /// False after `unshare`: the file is not offered by a restart.
    pub(crate) shared: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredShare {
    path: Vec<u8>,
    stamp: Stamp,
    shared: bool,
    manifest: Vec<u8>,
}

/// An unfinished download.
#[derive(Debug, Clone)]
pub(crate) struct PartialRecord {
    /// The name of the file; no other record has it.
    pub(crate) name: FileName,
    /// What it is to become.
    pub(crate) manifest: Manifest,
    /// Chunks whose data is synced.
    pub(crate) chunks: ChunkSet,
    /// Where its data is, if that is not in the folder of partial files.
    pub(crate) beside: Option<PathBuf>,
}

/// What a running download was asked to do: after a crash or a restart it goes on by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Only these chunks, first to last, and no file in place.
    pub(crate) chunks: Option<Vec<(u32, u32)>>,
    /// Where the file goes; `None`: its default place.
    pub(crate) output: Option<PathBuf>,
    /// Without progress for this long it gives up.
    pub(crate) timeout_millis: u64,
    /// How urgent it is: a byte of its own after the rest, which records of earlier versions lack.
    #[serde(skip)]
    pub(crate) priority: Priority,
}

impl Order {
    pub(super) fn write(&self) -> Option<Vec<u8>> {
        let mut value = postcard::to_stdvec(self).ok()?;
        value.push(match self.priority {
            Priority::Low => LOW,
            Priority::Normal => NORMAL,
            Priority::High => HIGH,
        });
        Some(value)
    }

    pub(super) fn read(value: &[u8]) -> Option<Self> {
        let (order, rest): (Self, _) = postcard::take_from_bytes(value).ok()?;
        let priority = match rest {
            [LOW] => Priority::Low,
            [HIGH] => Priority::High,
            _ => Priority::Normal,
        };
        Some(Self { priority, ..order })
    }
}

/// An unfinished download whose record ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedPartial {
    /// The name of the file.
    pub(crate) name: FileName,
    /// Where its data is, if that is not in the folder of partial files. It is noted as a leftover.
    pub(crate) beside: Option<PathBuf>,
}

pub(super) fn damaged(what: &str) -> redb::Error {
    redb::Error::Corrupted(format!("unreadable {what}"))
}

pub(super) fn path_bytes(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

pub(super) fn read_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}

pub(super) fn write_share(share: &ShareRecord) -> Result<Vec<u8>, redb::Error> {
    let stored = StoredShare {
        path: path_bytes(&share.path).to_vec(),
        stamp: share.stamp,
        shared: share.shared,
        manifest: share.manifest.encode(),
    };
    postcard::to_stdvec(&stored).map_err(|_| damaged("share"))
}

pub(super) fn read_share(value: &[u8]) -> Result<ShareRecord, redb::Error> {
    let stored: StoredShare = postcard::from_bytes(value).map_err(|_| damaged("share"))?;
    Ok(ShareRecord {
        path: read_path(&stored.path),
        stamp: stored.stamp,
        manifest: Manifest::decode(&stored.manifest).map_err(|_| damaged("manifest of a share"))?,
        shared: stored.shared,
    })
}

pub(super) fn read_partial(
    name: FileName,
    manifest: &[u8],
    chunks: Option<&[u8]>,
    beside: Option<PathBuf>,
) -> Result<PartialRecord, redb::Error> {
    let manifest = Manifest::decode(manifest).map_err(|_| damaged("manifest of a download"))?;
    let chunks = chunks.and_then(|sealed| unseal(&manifest, sealed));
    let chunks = chunks.unwrap_or_else(|| ChunkSet::empty(manifest.layout().chunk_count()));
    Ok(PartialRecord { name, manifest, chunks, beside })
}

/// Bitfield, then the first 8 bytes of SHA-256(file id, bitfield).
pub(super) fn seal(file: FileId, chunks: &ChunkSet) -> Vec<u8> {
    let mut value = chunks.to_bits();
    let checksum = checksum(file, &value);
    value.extend_from_slice(&checksum);
    value
}

pub(super) fn unseal(manifest: &Manifest, value: &[u8]) -> Option<ChunkSet> {
    let (bits, found) = value.split_last_chunk::<8>()?;
    if checksum(manifest.id(), bits) != *found {
        return None;
    }
    ChunkSet::from_bits(manifest.layout().chunk_count(), bits)
}

fn checksum(file: FileId, bits: &[u8]) -> [u8; 8] {
    let digest = Digest::of(&[&file.as_bytes()[..], bits].concat());
    let mut short = [0; 8];
    short.copy_from_slice(&digest.as_bytes()[..8]);
    short
}
