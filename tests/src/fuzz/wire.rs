//! Messages as they come from the network.

use drizzle_proto::{
    ChunkRanges, ChunkSet, FileInfo, PeerClaim,
    access::{Access, MAX_ENTRIES},
    announcement::{FileChunks, FileOutcome},
    holder::{Holder, HolderChange, HolderChanges},
    layout::MAX_CHUNKS,
    limits::{MAX_HASHES, MAX_TOLD_CHUNKS, MESSAGE_SIZE},
    net::chunk_message::Messages,
    wire,
};
use prost::{Message, bytes::Bytes};

/// Chunk sets in each of their forms.
pub fn chunk_set(bytes: &[u8]) {
    if let Ok(message) = wire::ChunkSet::decode(bytes) {
        let length = message.length;
        if let Ok(set) = ChunkSet::try_from(message) {
            whole(&set);
            assert_eq!(set.count().get(), length);
            let told = wire::ChunkSet::from(&set);
            assert!(told.encoded_len() <= 64 + (length as usize).div_ceil(8).max(48), "the short form is chosen");
            assert_eq!(ChunkSet::try_from(told).expect("what this program tells converts"), set);
            assert_eq!(ChunkSet::from_bits(set.count(), &set.to_bits()).expect("likewise"), set);
            assert_eq!(ChunkSet::from_ranges(set.count(), &set.ranges()).expect("likewise"), set);
        }
    }
    if let Ok(message) = wire::ChunkRanges::decode(bytes)
        && let Ok(ranges) = ChunkRanges::try_from(message)
    {
        ascending(&ranges);
        let told = wire::ChunkRanges::from(&ranges);
        assert_eq!(ChunkRanges::try_from(told).expect("what this program tells converts"), ranges);
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(ranges) = text.parse::<ChunkRanges>()
    {
        ascending(&ranges);
        assert_eq!(ranges.to_string().parse::<ChunkRanges>().expect("it reads back"), ranges);
    }
}

fn whole(set: &ChunkSet) {
    assert!(set.count().get() <= MAX_CHUNKS && set.len() <= set.count().get());
    assert_eq!(set.iter().count(), set.len() as usize, "every bit is a chunk that exists");
}

/// Ranges are apart, so that no list names a chunk twice.
fn ascending(ranges: &ChunkRanges) {
    let mut free_from = Some(0);
    for (first, last) in ranges.iter() {
        assert!(first <= last && free_from.is_some_and(|free| first >= free));
        free_from = last.checked_add(2);
    }
}

/// What a peer announces.
pub fn announcement(bytes: &[u8]) {
    let Ok(message) = wire::FileChunks::decode(bytes) else { return };
    let Ok(entry) = FileChunks::try_from(message) else { return };
    whole(&entry.held);
    let count = entry.file.layout.chunk_count();
    assert_eq!(entry.held.count(), count);
    assert!(entry.hashes.len() <= MAX_HASHES && entry.first_hash as usize + entry.hashes.len() <= count.get() as usize);
    assert_eq!(FileChunks::try_from(wire::FileChunks::from(&entry)).expect("what is told converts"), entry);
}

/// What the tracker makes of that, and descriptions of files.
pub fn outcome(bytes: &[u8]) {
    if let Ok(message) = wire::FileResult::decode(bytes)
        && let Ok(outcome) = FileOutcome::try_from(message)
    {
        let told = wire::FileResult::from(outcome.clone());
        assert_eq!(FileOutcome::try_from(told).expect("what is told converts"), outcome);
    }
    if let Ok(message) = wire::FileInfo::decode(bytes)
        && let Ok(file) = FileInfo::try_from(message)
    {
        assert!(file.layout.chunk_count().get() <= MAX_CHUNKS);
        assert_eq!(FileInfo::try_from(wire::FileInfo::from(&file)).expect("what is told converts"), file);
    }
}

/// Who a peer says that it is.
pub fn claim(bytes: &[u8]) {
    let Ok(message) = wire::RegisterPeerRequest::decode(bytes) else { return };
    let Ok(claim) = PeerClaim::try_from(message) else { return };
    assert_eq!(PeerClaim::try_from(wire::RegisterPeerRequest::from(&claim)).expect("what is told converts"), claim);
}

/// What a tracker tells of holders: a few bytes each, and in memory a bit for each chunk of a file.
pub fn holders(bytes: &[u8]) {
    if let Ok(message) = wire::Holder::decode(bytes)
        && let Ok(holder) = Holder::try_from(message)
    {
        whole(&holder.chunks);
        assert_eq!(Holder::try_from(wire::Holder::from(&holder)).expect("what is told converts"), holder);
    }
    if let Ok(message) = wire::WatchFileResponse::decode(bytes)
        && let Ok(changes) = HolderChanges::try_from(message)
    {
        let chunks = |change: &HolderChange| match change {
            HolderChange::Is(holder) => u64::from(holder.chunks.count().get()),
            HolderChange::Added(_, chunks) => u64::from(chunks.count().get()),
            HolderChange::Gone(_) | HolderChange::Parted(_) => 0,
        };
        assert!(changes.changes.iter().map(chunks).sum::<u64>() <= MAX_TOLD_CHUNKS, "memory is bounded");
        let told = wire::WatchFileResponse::from(&changes);
        assert_eq!(HolderChanges::try_from(told).expect("what is told converts"), changes);
    }
}

/// What a tracker tells of the rights of others, and what a peer keeps of it.
pub fn access(bytes: &[u8]) {
    let Some(access) = Access::from_bytes(bytes) else { return };
    let Access { ticket_keys, revoked, stopped, admins, .. } = &access;
    assert!(ticket_keys.len() + revoked.len() + stopped.len() + admins.len() <= MAX_ENTRIES);
    assert_eq!(Access::from_bytes(&access.to_bytes()).expect("what is kept is read"), access);
}

/// Messages of a chunk, cut into frames: the first byte says into how long ones.
pub fn chunk_message(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let mut messages = Messages::default();
    let mut came = 0;
    for frame in stream.chunks(usize::from(cut).max(1)) {
        let mut frame = Bytes::copy_from_slice(frame);
        loop {
            match messages.take(&mut frame) {
                Ok(Some(part)) => {
                    came += part.data.len();
                    assert!(part.data.len() <= MESSAGE_SIZE + 1024, "no message beyond the bound is gathered");
                    assert!(came <= stream.len(), "no byte comes from nowhere");
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(frame.is_empty(), "a frame is used up");
    }
}
