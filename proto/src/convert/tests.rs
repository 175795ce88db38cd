//! Every domain type with a wire form survives the wire, and whatever else arrives is refused or becomes a valid
//! value: one that survives the wire in turn.

use std::fmt::Debug;

use proptest::{collection::vec, prelude::*, sample::Index};
use prost::Message;

use super::*;
use crate::signature::{self, Statement};

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

/// Some fifty bytes each, and 32 KiB in memory.
#[test]
fn holders_that_take_much_memory_are_refused_in_one_message() {
    let full = || wire::ChunkSet { length: MAX_CHUNKS, runs: vec![0, MAX_CHUNKS], bits: Default::default() };
    let change =
        || wire::HolderChange { peer_id: "a".repeat(32), change: Some(wire::holder_change::Change::Added(full())) };
    let message = |holders| wire::WatchFileResponse { changes: vec![change(); holders], ..Default::default() };
    assert!(HolderChanges::try_from(message(512)).is_ok());
    assert_eq!(HolderChanges::try_from(message(513)), Err(WireError::Bounds("changes")));
    let holder = || wire::Holder {
        peer_id: "a".repeat(32),
        address: "h:1".into(),
        chunks: Some(full()),
        labels: Default::default(),
    };
    assert_eq!(super::holders(vec![holder(); 513]), Err(WireError::Bounds("holders")));
}

#[test]
fn malformed_files_are_refused() {
    let good =
        wire::FileInfo { name: "a".into(), file_id: "0".repeat(64), size: 20_000, chunk_size: 1 << 14, chunk_count: 2 };
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

#[test]
fn malformed_peers_are_refused() {
    let good = wire::RegisterPeerRequest {
        peer_id: "a".repeat(32),
        address: "h:1".into(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        session: "b".repeat(32),
        last_lease_id: 7,
    };
    assert!(PeerClaim::try_from(good.clone()).is_ok());
    let too_many = (0..=crate::labels::MAX_LABELS).map(|at| (format!("k{at}"), "v".to_owned())).collect();
    for (bad, field) in [
        (wire::RegisterPeerRequest { peer_id: "A".repeat(32), ..good.clone() }, "peer_id"),
        (wire::RegisterPeerRequest { address: "h:0".into(), ..good.clone() }, "address"),
        (wire::RegisterPeerRequest { session: "1".into(), ..good.clone() }, "session"),
        (wire::RegisterPeerRequest { labels: [("Zone".into(), "a".into())].into(), ..good.clone() }, "label key"),
        (wire::RegisterPeerRequest { labels: [("zone".into(), String::new())].into(), ..good.clone() }, "label value"),
        (wire::RegisterPeerRequest { labels: too_many, ..good.clone() }, "number of labels"),
    ] {
        assert!(PeerClaim::try_from(bad).is_err(), "{field}");
    }
}

#[test]
fn hashes_come_in_one_of_two_forms() {
    let digests = [Digest::of(b"a"), Digest::of(b"b")];
    let (texts, short) = (readable(&packed(&digests)), packed(&digests));
    assert_eq!(hashes(&texts, &[]).unwrap(), digests);
    assert_eq!(hashes(&[], &short).unwrap(), digests);
    assert_eq!(hashes(&[], &[]).unwrap(), []);
    assert_eq!(hashes(&texts, &short), Err(WireError::Bounds("chunk_sha256")), "both");
    assert_eq!(hashes(&[], &short[1..]), Err(WireError::Bounds("packed_sha256")), "cut short");
    assert_eq!(hashes(&[], &vec![0; 32 * (MAX_HASHES + 1)]), Err(WireError::Bounds("packed_sha256")), "too many");
}

#[test]
fn a_holder_under_another_id_is_refused() {
    let peer = PeerInfo::new(PeerId::from_bytes([1; 16]), Address::new("h:1").unwrap(), Labels::default());
    let chunks = ChunkSet::full(ChunkCount::new(3).unwrap());
    let mut change = wire::HolderChange::from(&HolderChange::Is(Holder { peer, chunks }));
    assert!(HolderChange::try_from(change.clone()).is_ok());
    change.peer_id = "02".repeat(16);
    assert_eq!(HolderChange::try_from(change), Err(WireError::Contradiction("peer_id")));
}

// --- the values ---------------------------------------------------------------------------------------

fn file_names() -> impl Strategy<Value = FileName> {
    "[a-zA-Z0-9 _äß-]{1,12}(/[a-z.]{1,4}[a-z]){0,2}".prop_filter_map("not a name", |text| FileName::new(&text).ok())
}

fn digests() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

fn layouts() -> impl Strategy<Value = Layout> {
    (0..3_u32, 0..6_000_000_u64).prop_map(|(shift, size)| Layout::new(size, (1 << 14) << shift).unwrap())
}

fn files() -> impl Strategy<Value = FileInfo> {
    (file_names(), digests(), layouts()).prop_map(|(name, id, layout)| {
        let id = FileId::from_digest(id);
        FileInfo { name, id, layout }
    })
}

/// Sets in many short runs and in few long ones, so that both wire forms occur.
fn chunk_sets(count: ChunkCount) -> impl Strategy<Value = ChunkSet> {
    (vec(any::<bool>(), count.get() as usize), 1..200_usize).prop_map(move |(bools, run)| {
        let mut set = ChunkSet::empty(count);
        for chunk in count.indices().filter(|chunk| bools[chunk.as_usize() / run]) {
            set.insert(chunk);
        }
        set
    })
}

fn any_chunk_sets() -> impl Strategy<Value = ChunkSet> {
    (0..2000_u32).prop_flat_map(|count| chunk_sets(ChunkCount::new(count).unwrap()))
}

fn claims() -> impl Strategy<Value = PeerClaim> {
    let session = proptest::option::of(any::<[u8; 16]>().prop_map(crate::Session::from_bytes));
    (peers(), session, proptest::option::of(1..u64::MAX)).prop_map(|(peer, session, last_lease)| PeerClaim {
        peer,
        session,
        last_lease,
    })
}

fn peers() -> impl Strategy<Value = PeerInfo> {
    let addresses = prop_oneof![
        any::<std::net::IpAddr>().prop_map(|ip| ip.to_string()),
        "[a-z][a-z0-9.-]{0,30}".prop_map(String::from)
    ];
    let addresses = (addresses, 1..=u16::MAX).prop_map(|(host, port)| {
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Address::new(&format!("{host}:{port}")).unwrap()
    });
    let labels = proptest::collection::btree_map("[a-z0-9._-]{1,63}", "[a-zA-Z0-9ä][^,=\\p{C}\\p{Z}]{0,80}", 0..=16);
    let labels = labels.prop_filter_map("not printable", |pairs| Labels::new(pairs).ok());
    (any::<[u8; 16]>(), addresses, labels)
        .prop_map(|(id, address, labels)| PeerInfo::new(PeerId::from_bytes(id), address, labels))
}

fn holders() -> impl Strategy<Value = Holder> {
    (peers(), any_chunk_sets()).prop_map(|(peer, chunks)| Holder { peer, chunks })
}

fn holder_changes() -> impl Strategy<Value = HolderChange> {
    let ids = || any::<[u8; 16]>().prop_map(PeerId::from_bytes);
    prop_oneof![
        holders().prop_map(HolderChange::Is),
        (ids(), any_chunk_sets()).prop_map(|(peer, chunks)| HolderChange::Added(peer, chunks)),
        ids().prop_map(HolderChange::Gone),
        ids().prop_map(HolderChange::Parted),
    ]
}

fn watch_messages() -> impl Strategy<Value = HolderChanges> {
    let told = (any::<bool>(), any::<bool>(), any::<bool>(), vec(holder_changes(), 0..4));
    told.prop_map(|(reset, synced, introduces, changes)| HolderChanges { reset, changes, synced, introduces })
}

fn announcements() -> impl Strategy<Value = FileChunks> {
    files().prop_flat_map(|file| {
        let count = file.layout.chunk_count();
        (Just(file), chunk_sets(count), any::<Index>(), vec(digests(), 0..20), any::<[bool; 3]>()).prop_map(
            move |(file, held, first, mut hashes, [gone, replace, signed])| {
                let first_hash = u32::try_from(first.index(count.get() as usize + 1)).unwrap();
                hashes.truncate((count.get() - first_hash) as usize);
                let signature = signed.then(|| signed_at(&file, 1_700_000_000));
                FileChunks { file, first_hash, hashes, held, gone, replace, signature }
            },
        )
    })
}

/// What a key said that nobody asks for here.
fn signed_at(file: &FileInfo, time: u64) -> Signature {
    let statement = Statement::new(file, time).unwrap().to_string();
    Signature::new(&statement, signature::tests::MINISIGN).unwrap()
}

fn signatures() -> impl Strategy<Value = Signature> {
    (files(), 0..1_u64 << 36).prop_map(|(file, time)| signed_at(&file, time))
}

fn outcomes() -> impl Strategy<Value = FileOutcome> {
    prop_oneof![
        Just(FileOutcome::Registered),
        (files(), any::<String>()).prop_map(|(registered, detail)| FileOutcome::Refused { registered, detail }),
        (0..MAX_CHUNKS).prop_map(FileOutcome::NeedHashes),
        any::<String>().prop_map(FileOutcome::Invalid),
    ]
}

fn chunk_ranges() -> impl Strategy<Value = ChunkRanges> {
    vec((0..MAX_CHUNKS, 0..50_u32), 1..20).prop_filter_map("not ranges", |ranges| {
        ChunkRanges::new(ranges.into_iter().map(|(first, more)| (first, (first + more).min(MAX_CHUNKS - 1))))
    })
}

// --- the properties -----------------------------------------------------------------------------------

/// Through the bytes that really travel.
fn travel<W: Message + Default>(message: &W) -> W {
    W::decode(&message.encode_to_vec()[..]).unwrap()
}

/// A value arrives as it was sent, and its message is the only one for it that this program makes.
fn survives<D, W>(value: &D, to_wire: impl Fn(&D) -> W) -> Result<(), TestCaseError>
where
    D: TryFrom<W, Error = WireError> + PartialEq + Debug,
    W: Message + Default + PartialEq + Debug,
{
    let message = to_wire(value);
    let arrived = D::try_from(travel(&message));
    prop_assert_eq!(arrived.as_ref(), Ok(value));
    prop_assert_eq!(to_wire(&arrived.unwrap()), message);
    Ok(())
}

/// The bytes of a message with a few of them altered: refused, or a value that survives the wire itself.
fn altered_is_refused_or_valid<D, W>(
    value: &D,
    to_wire: impl Fn(&D) -> W,
    edits: &[(Index, u8)],
) -> Result<(), TestCaseError>
where
    D: TryFrom<W, Error = WireError> + PartialEq + Debug,
    W: Message + Default + PartialEq + Debug,
{
    let mut bytes = to_wire(value).encode_to_vec();
    for (at, byte) in edits.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    match W::decode(&bytes[..]).map(D::try_from) {
        Ok(Ok(value)) => survives(&value, to_wire),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

macro_rules! wire_properties {
    ($($name:ident: $values:expr => $to_wire:expr;)*) => {
        mod survive {
            use super::*;
            proptest! {
                $(#[test]
                fn $name(value in $values) {
                    survives(&value, $to_wire)?;
                })*
            }
        }
        mod altered {
            use super::*;
            proptest! {
                $(#[test]
                fn $name(value in $values, edits in vec((any::<Index>(), any::<u8>()), 1..4)) {
                    altered_is_refused_or_valid(&value, $to_wire, &edits)?;
                })*
            }
        }
    };
}

wire_properties! {
    chunk_set: any_chunk_sets() => |value| wire::ChunkSet::from(value);
    chunk_range: chunk_ranges() => |value| wire::ChunkRanges::from(value);
    file_info: files() => |value| wire::FileInfo::from(value);
    claim: claims() => |value| wire::RegisterPeerRequest::from(value);
    holder: holders() => |value| wire::Holder::from(value);
    holder_change: holder_changes() => |value| wire::HolderChange::from(value);
    watch_message: watch_messages() => |value| wire::WatchFileResponse::from(value);
    signature: signatures() => |value| wire::FileSignature::from(value);
    announcement: announcements() => |value| wire::FileChunks::from(value);
    outcome: outcomes() => |value: &FileOutcome| wire::FileResult::from(value.clone());
}

proptest! {
    #[test]
    fn hash_lists_survive_the_wire(list in vec(digests(), 0..50)) {
        prop_assert_eq!(hashes(&readable(&packed(&list)), &[]), Ok(list.clone()));
        prop_assert_eq!(hashes(&[], &packed(&list)), Ok(list));
    }

    #[test]
    fn file_ids_survive_the_wire(id in digests().prop_map(FileId::from_digest)) {
        prop_assert_eq!(file_id(&id.to_string()), Ok(id));
    }

    #[test]
    fn chunk_sets_are_compact(set in any_chunk_sets()) {
        let (length, encoded) = (set.count().get() as usize, wire::ChunkSet::from(&set).encoded_len());
        prop_assert!(encoded <= length / 8 + 64, "{encoded} bytes for {length} chunks");
    }

    #[test]
    fn no_bytes_make_a_conversion_panic(bytes in vec(any::<u8>(), 0..200)) {
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
