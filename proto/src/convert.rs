//! Wire messages to domain types and back. A malformed message becomes one [`WireError`], here only.

use std::collections::HashMap;

use tonic::Status;

use crate::{
    Address, ChunkCount, ChunkRanges, ChunkSet, Digest, FileId, FileInfo, FileName, Labels, Layout, PeerId, PeerInfo,
    announcement::{FileChunks, FileOutcome},
    holder::{Holder, HolderChange, HolderChanges},
    identity::{AddressError, PeerIdError},
    labels::LabelError,
    layout::{LayoutError, MAX_CHUNKS},
    limits::MAX_HASHES,
    name::NameError,
    wire,
};

/// What is wrong with a message, naming the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A digest is malformed.
    #[error("{0} is not 64 lower-case hex digits")]
    Digest(&'static str),
    /// A peer id is malformed.
    #[error("peer_id: {0}")]
    PeerId(#[from] PeerIdError),
    /// An address is malformed.
    #[error("address: {0}")]
    Address(#[from] AddressError),
    /// A label is malformed.
    #[error("labels: {0}")]
    Label(#[from] LabelError),
    /// A name is not allowed.
    #[error("name: {0}")]
    Name(#[from] NameError),
    /// Sizes do not fit together.
    #[error("file: {0}")]
    Layout(#[from] LayoutError),
    /// A chunk set is malformed.
    #[error("chunk set: {0}")]
    ChunkSet(&'static str),
    /// A number or a list is beyond its bounds.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
}

impl From<WireError> for Status {
    fn from(error: WireError) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

fn digest(field: &'static str, text: &str) -> Result<Digest, WireError> {
    text.parse().map_err(|_| WireError::Digest(field))
}

/// A `file_id` field.
pub fn file_id(text: &str) -> Result<FileId, WireError> {
    text.parse().map_err(|_| WireError::Digest("file_id"))
}

/// A list of chunk hashes, at most [`MAX_HASHES`].
pub fn hashes(texts: &[String]) -> Result<Vec<Digest>, WireError> {
    if texts.len() > MAX_HASHES {
        return Err(WireError::Bounds("chunk_sha256"));
    }
    texts.iter().map(|text| digest("chunk_sha256", text)).collect()
}

/// The wire form of chunk hashes.
pub fn hashes_to_wire(hashes: &[Digest]) -> Vec<String> {
    hashes.iter().map(Digest::to_string).collect()
}

impl TryFrom<wire::ChunkSet> for ChunkSet {
    type Error = WireError;

    fn try_from(set: wire::ChunkSet) -> Result<Self, WireError> {
        let count = ChunkCount::new(set.length).ok_or(WireError::ChunkSet("more than 262144 chunks"))?;
        if !set.bits.is_empty() {
            if !set.runs.is_empty() {
                return Err(WireError::ChunkSet("both runs and bits are given"));
            }
            return ChunkSet::from_bits(count, &set.bits).ok_or(WireError::ChunkSet("bits do not fit the length"));
        }
        let (pairs, rest) = set.runs.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(WireError::ChunkSet("runs are not pairs"));
        }
        let mut chunks = ChunkSet::empty(count);
        let mut free_from = 0;
        for &[first, run] in pairs {
            let end = first.checked_add(run).filter(|&end| end <= count.get());
            let end = end.ok_or(WireError::ChunkSet("a run is beyond the length"))?;
            if run == 0 || first < free_from {
                return Err(WireError::ChunkSet("runs are empty, overlapping, adjacent or out of order"));
            }
            for chunk in (first..end).filter_map(|index| count.index(index)) {
                chunks.insert(chunk);
            }
            free_from = end + 1;
        }
        Ok(chunks)
    }
}

impl From<&ChunkSet> for wire::ChunkSet {
    fn from(set: &ChunkSet) -> Self {
        let length = set.count().get();
        let ranges = set.ranges();
        // A run costs up to 6 bytes as varints; a bitfield one bit per chunk.
        if ranges.iter().len() * 6 <= (length as usize).div_ceil(8).max(48) {
            let runs = ranges.iter().flat_map(|(first, last)| [first, last - first + 1]).collect();
            Self { length, runs, bits: Default::default() }
        } else {
            Self { length, runs: Vec::new(), bits: set.to_bits().into() }
        }
    }
}

impl TryFrom<wire::FileInfo> for FileInfo {
    type Error = WireError;

    fn try_from(file: wire::FileInfo) -> Result<Self, WireError> {
        let name = FileName::new(&file.name)?;
        let id = file_id(&file.file_id)?;
        let layout = Layout::new(file.size, file.chunk_size)?;
        if layout.chunk_count().get() != file.chunk_count {
            return Err(WireError::Bounds("chunk_count"));
        }
        Ok(Self { name, id, layout })
    }
}

impl From<&FileInfo> for wire::FileInfo {
    fn from(file: &FileInfo) -> Self {
        Self {
            name: file.name.to_string(),
            file_id: file.id.to_string(),
            size: file.layout.size(),
            chunk_size: file.layout.chunk_size(),
            chunk_count: file.layout.chunk_count().get(),
        }
    }
}

/// The three fields that describe a peer, wherever they stand.
fn peer_info(id: &str, address: &str, labels: HashMap<String, String>) -> Result<PeerInfo, WireError> {
    Ok(PeerInfo::new(id.parse::<PeerId>()?, Address::new(address)?, Labels::new(labels)?))
}

fn labels_to_wire(labels: &Labels) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

impl TryFrom<wire::RegisterPeerRequest> for PeerInfo {
    type Error = WireError;

    fn try_from(request: wire::RegisterPeerRequest) -> Result<Self, WireError> {
        peer_info(&request.peer_id, &request.address, request.labels)
    }
}

impl From<&PeerInfo> for wire::RegisterPeerRequest {
    fn from(peer: &PeerInfo) -> Self {
        Self {
            peer_id: peer.id().to_string(),
            address: peer.address().to_string(),
            labels: labels_to_wire(peer.labels()),
        }
    }
}

impl TryFrom<wire::Holder> for Holder {
    type Error = WireError;

    fn try_from(holder: wire::Holder) -> Result<Self, WireError> {
        Ok(Self {
            peer: peer_info(&holder.peer_id, &holder.address, holder.labels)?,
            chunks: holder.chunks.ok_or(WireError::Missing("chunks"))?.try_into()?,
        })
    }
}

impl From<&Holder> for wire::Holder {
    fn from(holder: &Holder) -> Self {
        Self {
            peer_id: holder.peer.id().to_string(),
            address: holder.peer.address().to_string(),
            labels: labels_to_wire(holder.peer.labels()),
            chunks: Some((&holder.chunks).into()),
        }
    }
}

impl TryFrom<wire::HolderChange> for HolderChange {
    type Error = WireError;

    fn try_from(change: wire::HolderChange) -> Result<Self, WireError> {
        use wire::holder_change::Change;
        let peer = change.peer_id.parse::<PeerId>()?;
        Ok(match change.change.ok_or(WireError::Missing("change"))? {
            Change::Holder(holder) => Self::Is(holder.try_into()?),
            Change::Added(chunks) => Self::Added(peer, chunks.try_into()?),
            Change::Gone(_) => Self::Gone(peer),
        })
    }
}

impl From<&HolderChange> for wire::HolderChange {
    fn from(change: &HolderChange) -> Self {
        use wire::holder_change::Change;
        let (peer, change) = match change {
            HolderChange::Is(holder) => (holder.peer.id(), Change::Holder(holder.into())),
            HolderChange::Added(peer, chunks) => (*peer, Change::Added(chunks.into())),
            HolderChange::Gone(peer) => (*peer, Change::Gone(true)),
        };
        Self { peer_id: peer.to_string(), change: Some(change) }
    }
}

impl TryFrom<wire::WatchFileResponse> for HolderChanges {
    type Error = WireError;

    fn try_from(message: wire::WatchFileResponse) -> Result<Self, WireError> {
        let changes = message.changes.into_iter().map(HolderChange::try_from).collect::<Result<_, _>>()?;
        Ok(Self { reset: message.reset, changes, synced: message.synced })
    }
}

impl From<&HolderChanges> for wire::WatchFileResponse {
    fn from(changes: &HolderChanges) -> Self {
        Self { reset: changes.reset, changes: changes.changes.iter().map(Into::into).collect(), synced: changes.synced }
    }
}

impl TryFrom<wire::FileChunks> for FileChunks {
    type Error = WireError;

    fn try_from(entry: wire::FileChunks) -> Result<Self, WireError> {
        let file: FileInfo = entry.file.ok_or(WireError::Missing("file"))?.try_into()?;
        let hashes = hashes(&entry.chunk_sha256)?;
        let count = file.layout.chunk_count();
        if u64::from(entry.first_hash) + hashes.len() as u64 > u64::from(count.get()) {
            return Err(WireError::Bounds("first_hash"));
        }
        let held: ChunkSet = match entry.held {
            Some(held) => held.try_into()?,
            None => ChunkSet::empty(count),
        };
        if held.count() != count {
            return Err(WireError::ChunkSet("length is not the file's chunk_count"));
        }
        Ok(Self { file, first_hash: entry.first_hash, hashes, held, gone: entry.gone })
    }
}

impl From<&FileChunks> for wire::FileChunks {
    fn from(entry: &FileChunks) -> Self {
        Self {
            file: Some((&entry.file).into()),
            chunk_sha256: hashes_to_wire(&entry.hashes),
            first_hash: entry.first_hash,
            held: Some((&entry.held).into()),
            gone: entry.gone,
        }
    }
}

impl TryFrom<wire::FileResult> for FileOutcome {
    type Error = WireError;

    fn try_from(result: wire::FileResult) -> Result<Self, WireError> {
        use wire::file_result::Status;
        Ok(match result.status() {
            Status::Registered => Self::Registered,
            Status::Refused => {
                let registered = result.registered.ok_or(WireError::Missing("registered"))?.try_into()?;
                Self::Refused { registered, detail: result.detail }
            }
            Status::NeedHashes if result.next_hash < MAX_CHUNKS => Self::NeedHashes(result.next_hash),
            Status::NeedHashes => return Err(WireError::Bounds("next_hash")),
            Status::Invalid => Self::Invalid(result.detail),
            Status::Unspecified => return Err(WireError::Missing("status")),
        })
    }
}

impl From<FileOutcome> for wire::FileResult {
    fn from(outcome: FileOutcome) -> Self {
        use wire::file_result::Status;
        let of = |status: Status| Self { status: status.into(), ..Self::default() };
        match outcome {
            FileOutcome::Registered => of(Status::Registered),
            FileOutcome::Refused { registered, detail } => {
                Self { detail, registered: Some((&registered).into()), ..of(Status::Refused) }
            }
            FileOutcome::NeedHashes(next_hash) => Self { next_hash, ..of(Status::NeedHashes) },
            FileOutcome::Invalid(detail) => Self { detail, ..of(Status::Invalid) },
        }
    }
}

impl TryFrom<wire::ChunkRanges> for ChunkRanges {
    type Error = WireError;

    fn try_from(ranges: wire::ChunkRanges) -> Result<Self, WireError> {
        ChunkRanges::new(ranges.ranges.iter().map(|range| (range.first, range.last))).ok_or(WireError::Bounds("chunks"))
    }
}

impl From<&ChunkRanges> for wire::ChunkRanges {
    fn from(ranges: &ChunkRanges) -> Self {
        Self { ranges: ranges.iter().map(|(first, last)| wire::ChunkRange { first, last }).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn set(length: u32, runs: &[u32], bits: &[u8]) -> Result<ChunkSet, WireError> {
        wire::ChunkSet { length, runs: runs.to_vec(), bits: bits.to_vec().into() }.try_into()
    }

    #[test]
    fn malformed_chunk_sets_are_refused() {
        assert!(set(u32::MAX, &[], &[]).is_err(), "absurd length");
        assert!(set(8, &[0, u32::MAX], &[]).is_err(), "overflowing run");
        assert!(set(8, &[7, 2], &[]).is_err(), "run beyond the length");
        assert!(set(8, &[0], &[]).is_err(), "half a pair");
        assert!(set(8, &[0, 0], &[]).is_err(), "empty run");
        assert!(set(8, &[0, 4, 4, 1], &[]).is_err(), "adjacent runs");
        assert!(set(8, &[4, 1, 0, 1], &[]).is_err(), "descending runs");
        assert!(set(8, &[0, 1], &[1]).is_err(), "both forms");
        assert!(set(8, &[], &[1, 0]).is_err(), "too many bits");
        assert_eq!(set(8, &[0, 2, 7, 1], &[]).unwrap(), set(8, &[], &[0b1000_0011]).unwrap());
    }

    #[test]
    fn malformed_files_are_refused() {
        let good = wire::FileInfo {
            name: "a".into(),
            file_id: "0".repeat(64),
            size: 20_000,
            chunk_size: 1 << 14,
            chunk_count: 2,
        };
        assert!(FileInfo::try_from(good.clone()).is_ok());
        for (bad, field) in [
            (wire::FileInfo { name: "../a".into(), ..good.clone() }, "name"),
            (wire::FileInfo { file_id: "x".into(), ..good.clone() }, "file_id"),
            (wire::FileInfo { size: u64::MAX, ..good.clone() }, "size"),
            (wire::FileInfo { chunk_size: 0, ..good.clone() }, "chunk_size"),
            (wire::FileInfo { chunk_count: u32::MAX, ..good.clone() }, "chunk_count"),
        ] {
            assert!(FileInfo::try_from(bad).is_err(), "{field}");
        }
    }

    proptest! {
        #[test]
        fn chunk_sets_survive_the_wire(bools in proptest::collection::vec(any::<bool>(), 0..2000)) {
            let count = ChunkCount::new(u32::try_from(bools.len()).unwrap()).unwrap();
            let mut set = ChunkSet::empty(count);
            for (chunk, _) in count.indices().zip(&bools).filter(|(_, held)| **held) {
                set.insert(chunk);
            }
            let wire = wire::ChunkSet::from(&set);
            prop_assert!(wire.encoded_len() <= bools.len() / 8 + 64, "compact: {} bytes for {}", wire.encoded_len(), bools.len());
            prop_assert_eq!(ChunkSet::try_from(wire), Ok(set));
        }

        #[test]
        fn no_bytes_make_a_conversion_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = wire::RegisterChunkRequest::decode(&bytes[..]) {
                for entry in message.files {
                    let _ = FileChunks::try_from(entry);
                }
            }
            if let Ok(message) = wire::WatchFileResponse::decode(&bytes[..]) {
                let _ = HolderChanges::try_from(message);
            }
        }
    }

    fn peers() -> impl Strategy<Value = PeerInfo> {
        let labels = proptest::collection::btree_map("[a-z0-9._-]{1,9}", "[a-z0-9 ]{1,9}", 0..4);
        (any::<[u8; 16]>(), 1u16.., labels).prop_map(|(id, port, labels)| {
            let address = Address::new(&format!("host:{port}")).unwrap();
            PeerInfo::new(PeerId::from_bytes(id), address, Labels::new(labels).unwrap())
        })
    }

    fn files() -> impl Strategy<Value = FileInfo> {
        ("[a-z]{1,9}(/[a-z]{1,9}){0,2}", any::<[u8; 32]>(), 0u64..1 << 22, 14u32..20).prop_map(
            |(name, id, size, chunk_bits)| FileInfo {
                name: FileName::new(&name).unwrap(),
                id: FileId::from_digest(Digest::from_bytes(id)),
                layout: Layout::new(size, 1 << chunk_bits).unwrap(),
            },
        )
    }

    /// Some chunks of a file with this many.
    fn chunks(count: ChunkCount, picks: &[u32]) -> ChunkSet {
        let mut set = ChunkSet::empty(count);
        let picked = picks.iter().filter_map(|pick| count.index(pick.checked_rem(count.get())?));
        picked.for_each(|chunk| _ = set.insert(chunk));
        set
    }

    fn entries() -> impl Strategy<Value = FileChunks> {
        (files(), any::<Vec<u32>>(), any::<bool>(), any::<bool>()).prop_map(|(file, picks, with_hashes, gone)| {
            let count = file.layout.chunk_count();
            let hashes = if with_hashes {
                count.indices().map(|c| Digest::of(&c.get().to_be_bytes())).collect()
            } else {
                Vec::new()
            };
            FileChunks { held: chunks(count, &picks), file, first_hash: 0, hashes, gone }
        })
    }

    fn changes() -> impl Strategy<Value = HolderChange> {
        (peers(), 0u32..300, any::<Vec<u32>>(), 0u8..3).prop_map(|(peer, count, picks, kind)| {
            let chunks = chunks(ChunkCount::new(count).unwrap(), &picks);
            match kind {
                0 => HolderChange::Is(Holder { peer, chunks }),
                1 => HolderChange::Added(peer.id(), chunks),
                _ => HolderChange::Gone(peer.id()),
            }
        })
    }

    fn outcomes() -> impl Strategy<Value = FileOutcome> {
        prop_oneof![
            Just(FileOutcome::Registered),
            (files(), "[a-z ]{0,9}").prop_map(|(registered, detail)| FileOutcome::Refused { registered, detail }),
            (0..MAX_CHUNKS).prop_map(FileOutcome::NeedHashes),
            "[a-z ]{0,9}".prop_map(FileOutcome::Invalid),
        ]
    }

    proptest! {
        /// What one end says is what the other end hears, through the encoded bytes.
        #[test]
        fn every_domain_type_comes_back(
            peer in peers(),
            entry in entries(),
            changes in proptest::collection::vec(changes(), 0..5),
            outcome in outcomes(),
            reset in any::<bool>(),
        ) {
            fn sent<M: Message + Default>(message: &M) -> M {
                M::decode(&message.encode_to_vec()[..]).unwrap()
            }
            prop_assert_eq!(sent(&wire::RegisterPeerRequest::from(&peer)).try_into(), Ok(peer));
            prop_assert_eq!(sent(&wire::FileInfo::from(&entry.file)).try_into(), Ok(entry.file.clone()));
            prop_assert_eq!(sent(&wire::FileChunks::from(&entry)).try_into(), Ok(entry));
            let message = HolderChanges { reset, changes, synced: !reset };
            prop_assert_eq!(sent(&wire::WatchFileResponse::from(&message)).try_into(), Ok(message));
            prop_assert_eq!(sent(&wire::FileResult::from(outcome.clone())).try_into(), Ok(outcome));
        }
    }
}
