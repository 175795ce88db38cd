//! Wire messages to domain types and back. A malformed message becomes one [`WireError`], here only.

use std::collections::HashMap;

use tonic::Status;

use crate::{
    Address, ChunkCount, ChunkRanges, ChunkSet, Digest, FileId, FileInfo, FileName, Labels, Layout, PeerClaim, PeerId,
    PeerInfo, Signature,
    announcement::{FileChunks, FileOutcome},
    holder::{Holder, HolderChange, HolderChanges},
    identity::{AddressError, PeerIdError},
    labels::LabelError,
    layout::{LayoutError, MAX_CHUNKS},
    limits::{MAX_HASHES, MAX_TOLD_CHUNKS},
    name::NameError,
    rights::Grant,
    scope::ScopeError,
    signature::SignatureError,
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
    /// A session is malformed.
    #[error("session: {0}")]
    Session(PeerIdError),
    /// An address is malformed.
    #[error("address: {0}")]
    Address(#[from] AddressError),
    /// A label is malformed.
    #[error("labels: {0}")]
    Label(#[from] LabelError),
    /// A name is not allowed.
    #[error("name: {0}")]
    Name(#[from] NameError),
    /// Neither a name nor a prefix.
    #[error("scope: {0}")]
    Scope(#[from] ScopeError),
    /// Sizes do not fit together.
    #[error("file: {0}")]
    Layout(#[from] LayoutError),
    /// A chunk set is malformed.
    #[error("chunk set: {0}")]
    ChunkSet(&'static str),
    /// A signature is malformed.
    #[error("signature: {0}")]
    Signature(#[from] SignatureError),
    /// A signature is of something else.
    #[error("signature: it is about another file")]
    OtherFile,
    /// A field stands twice in a message, with different values.
    #[error("{0} is given twice, with different values")]
    Contradiction(&'static str),
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

/// A field that names a peer, or is empty.
pub fn optional_peer(text: &str) -> Result<Option<PeerId>, WireError> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

/// A list of chunk hashes, at most [`MAX_HASHES`], in one of its two forms.
pub fn hashes(texts: &[String], packed: &[u8]) -> Result<Vec<Digest>, WireError> {
    if !texts.is_empty() && !packed.is_empty() || texts.len() > MAX_HASHES {
        return Err(WireError::Bounds("chunk_sha256"));
    }
    let (digests, rest) = packed.as_chunks::<32>();
    if !rest.is_empty() || digests.len() > MAX_HASHES {
        return Err(WireError::Bounds("packed_sha256"));
    }
    if texts.is_empty() {
        return Ok(digests.iter().map(|bytes| Digest::from_bytes(*bytes)).collect());
    }
    texts.iter().map(|text| digest("chunk_sha256", text)).collect()
}

/// The readable wire form of chunk hashes, from the short one.
pub fn readable(packed: &[u8]) -> Vec<String> {
    packed.as_chunks::<32>().0.iter().map(|bytes| Digest::from_bytes(*bytes).to_string()).collect()
}

/// The short wire form of chunk hashes.
pub fn packed(hashes: &[Digest]) -> Vec<u8> {
    hashes.iter().flat_map(Digest::as_bytes).copied().collect()
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
            chunks.insert_run(first, end);
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

impl TryFrom<wire::RegisterPeerRequest> for PeerClaim {
    type Error = WireError;

    fn try_from(request: wire::RegisterPeerRequest) -> Result<Self, WireError> {
        Ok(Self {
            peer: peer_info(&request.peer_id, &request.address, request.labels)?,
            session: match request.session.as_str() {
                "" => None,
                session => Some(session.parse().map_err(WireError::Session)?),
            },
            last_lease: Some(request.last_lease_id).filter(|&lease| lease != 0),
        })
    }
}

impl From<&PeerClaim> for wire::RegisterPeerRequest {
    fn from(claim: &PeerClaim) -> Self {
        Self {
            peer_id: claim.peer.id().to_string(),
            address: claim.peer.address().to_string(),
            labels: labels_to_wire(claim.peer.labels()),
            session: claim.session.map(|session| session.to_string()).unwrap_or_default(),
            last_lease_id: claim.last_lease.unwrap_or_default(),
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
            Change::Holder(holder) => {
                let holder = Holder::try_from(holder)?;
                if holder.peer.id() != peer {
                    return Err(WireError::Contradiction("peer_id"));
                }
                Self::Is(holder)
            }
            Change::Added(chunks) => Self::Added(peer, chunks.try_into()?),
            Change::Gone(_) => Self::Gone(peer),
            Change::Parted(_) => Self::Parted(peer),
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
            HolderChange::Parted(peer) => (*peer, Change::Parted(true)),
        };
        Self { peer_id: peer.to_string(), change: Some(change) }
    }
}

/// How many chunks' worth of set the conversion of a change makes: one that cannot be makes none.
fn chunks_told(change: &wire::HolderChange) -> u64 {
    use wire::holder_change::Change;
    let set = match &change.change {
        Some(Change::Holder(holder)) => holder.chunks.as_ref(),
        Some(Change::Added(chunks)) => Some(chunks),
        _ => None,
    };
    set.map_or(0, |set| set.length.min(MAX_CHUNKS)).into()
}

/// The holders in an answer. A set takes a bit per chunk in memory however few bytes it had on the wire.
pub fn holders(holders: Vec<wire::Holder>) -> Result<Vec<Holder>, WireError> {
    let told = holders.iter().filter_map(|holder| holder.chunks.as_ref());
    let told = told.map(|set| u64::from(set.length.min(MAX_CHUNKS))).sum::<u64>();
    if told > MAX_TOLD_CHUNKS {
        return Err(WireError::Bounds("holders"));
    }
    holders.into_iter().map(Holder::try_from).collect()
}

impl TryFrom<wire::WatchFileResponse> for HolderChanges {
    type Error = WireError;

    fn try_from(message: wire::WatchFileResponse) -> Result<Self, WireError> {
        let told = message.changes.iter().map(chunks_told).sum::<u64>();
        if told > MAX_TOLD_CHUNKS {
            return Err(WireError::Bounds("changes"));
        }
        let changes = message.changes.into_iter().map(HolderChange::try_from).collect::<Result<_, _>>()?;
        Ok(Self { reset: message.reset, changes, synced: message.synced, introduces: message.introduces })
    }
}

impl From<&HolderChanges> for wire::WatchFileResponse {
    fn from(changes: &HolderChanges) -> Self {
        Self {
            reset: changes.reset,
            changes: changes.changes.iter().map(Into::into).collect(),
            synced: changes.synced,
            introduces: changes.introduces,
        }
    }
}

impl TryFrom<wire::FileSignature> for Signature {
    type Error = WireError;

    fn try_from(signature: wire::FileSignature) -> Result<Self, WireError> {
        Ok(Self::new(&signature.statement, &signature.minisign)?)
    }
}

impl From<&Signature> for wire::FileSignature {
    fn from(signature: &Signature) -> Self {
        Self { statement: signature.statement().to_string(), minisign: signature.minisign().to_owned() }
    }
}

impl TryFrom<wire::FileChunks> for FileChunks {
    type Error = WireError;

    fn try_from(entry: wire::FileChunks) -> Result<Self, WireError> {
        let file: FileInfo = entry.file.ok_or(WireError::Missing("file"))?.try_into()?;
        let hashes = hashes(&entry.chunk_sha256, &entry.packed_sha256)?;
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
        let signature = entry.signature.map(Signature::try_from).transpose()?;
        if signature.as_ref().is_some_and(|signature| !signature.statement().is_about(&file)) {
            return Err(WireError::OtherFile);
        }
        let (gone, replace) = (entry.gone, entry.replace);
        Ok(Self { file, first_hash: entry.first_hash, hashes, held, gone, replace, signature })
    }
}

impl From<&FileChunks> for wire::FileChunks {
    fn from(entry: &FileChunks) -> Self {
        Self {
            file: Some((&entry.file).into()),
            chunk_sha256: Vec::new(),
            packed_sha256: packed(&entry.hashes).into(),
            first_hash: entry.first_hash,
            held: Some((&entry.held).into()),
            gone: entry.gone,
            replace: entry.replace,
            signature: entry.signature.as_ref().map(Into::into),
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

impl From<&Grant> for wire::RightsGrant {
    fn from(grant: &Grant) -> Self {
        Self { role: grant.role.to_string(), scope: grant.scope.to_string() }
    }
}

impl TryFrom<&wire::RightsGrant> for Grant {
    type Error = WireError;

    fn try_from(grant: &wire::RightsGrant) -> Result<Self, WireError> {
        let role = grant.role.parse().map_err(|_| WireError::Bounds("role"))?;
        Ok(Self { scope: grant.scope.parse()?, role })
    }
}

#[cfg(test)]
mod tests;
