//! What each target begins with: valid values, so that the search need not find the formats by itself.

use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::Ed25519KeyPair;
use drizzle_proto::{
    Address, ChunkSet, Labels, PeerClaim, PeerId, PeerInfo, Session,
    access::Access,
    announcement::{FileChunks, FileOutcome},
    holder::{Holder, HolderChange, HolderChanges},
    layout::ChunkCount,
    net::{
        chunk_message::front,
        tls::{Certified, authority::Authority, enrol::Key},
    },
    ticket::{Ticket, TicketKey},
    token::Token,
    wire,
};
use prost::Message;

use super::trust::BEARER;
use crate::Content;

fn content() -> Content {
    Content::small_chunks("models/a.bin", 1, 5)
}

fn peer() -> PeerInfo {
    let labels = "rack=7,zone=a".parse::<Labels>().expect("labels");
    PeerInfo::new(PeerId::from_bytes([5; 16]), Address::new("[::1]:7401").expect("an address"), labels)
}

fn count(count: u32) -> ChunkCount {
    ChunkCount::new(count).expect("within the bounds")
}

fn some(of: u32) -> ChunkSet {
    ChunkSet::from_ranges(count(of), &"0,2-3".parse().expect("ranges")).expect("they exist")
}

/// Every other chunk: told as bits.
fn scattered(of: u32) -> ChunkSet {
    let mut set = ChunkSet::empty(count(of));
    for chunk in count(of).indices().step_by(2) {
        set.insert(chunk);
    }
    set
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn holder(chunks: ChunkSet) -> Holder {
    Holder { peer: peer(), chunks }
}

/// The seeds of a target; none if there is no such target.
///
/// # Panics
/// If a value cannot be made.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "chunk_set" => {
            let sets = [ChunkSet::empty(count(0)), some(9), scattered(1000), ChunkSet::full(count(1 << 18))];
            let ranges = wire::ChunkRanges::from(&some(9).ranges()).encode_to_vec();
            let mut all: Vec<_> = sets.iter().map(|set| wire::ChunkSet::from(set).encode_to_vec()).collect();
            all.extend(texts(&["0-9,15", "4294967294-4294967295,0"]));
            all.extend([ranges]);
            all
        }
        "announcement" => vec![announcement(true), announcement(false)],
        "outcome" => outcomes(),
        "claim" => vec![claim()],
        "holders" => holders(),
        "access" => vec![access().to_bytes(), Access::default().to_bytes()],
        "chunk_message" => chunk_messages(),
        "tracker_requests" => tracker_requests(),
        "control_requests" => control_requests(),
        "name" => texts(&["models/llama.bin", "a", "..a/...", "ünï çödé", "models/", "*", ".drizzle/x", "a/../b"]),
        "address" => texts(&[
            "host-1.example:7401",
            "127.0.0.1:1",
            "[::1]:65535",
            "http://[::]:7400/",
            "rack=7,zone=a",
            "00112233445566778899aabbccddeeff",
            "12.5 MB/s",
            "1.5 Gbit/s",
            "unlimited",
        ]),
        "token" => {
            let token = Token::generate([9; 32]).expect("random bytes").to_string();
            vec![token.into_bytes(), vec![7; 72]]
        }
        "ticket" => tickets(),
        "certificate" | "certification" | "pem" => certified(target),
        "manifest" => vec![content().manifest.encode(), Content::new("a", Vec::new(), 1 << 14).manifest.encode()],
        "records" => {
            let mut all = peer_svc::fuzzing::valid_records();
            all.extend(tracker_svc::fuzzing::valid_records());
            all
        }
        // Changes to a good file: none, one in the head, one in a page, and one that cuts it short.
        "journal" | "rights" | "catalogue" => {
            vec![vec![], vec![0, 2, 1, 0xff], vec![1, 0x10, 4, 0xff, 0, 0xff, 0], vec![1, 0, 0]]
        }
        _ => Vec::new(),
    }
}

fn announcement(brings_hashes: bool) -> Vec<u8> {
    let content = content();
    let hashes = if brings_hashes { content.manifest.hashes().to_vec() } else { Vec::new() };
    let entry = FileChunks {
        file: content.info(),
        first_hash: 0,
        hashes,
        held: some(5),
        gone: false,
        replace: true,
        signature: None,
    };
    wire::FileChunks::from(&entry).encode_to_vec()
}

fn outcomes() -> Vec<Vec<u8>> {
    let outcomes = [
        FileOutcome::Registered,
        FileOutcome::Refused { registered: content().info(), detail: "because".to_owned() },
        FileOutcome::NeedHashes(8192),
        FileOutcome::Invalid("wrong".to_owned()),
    ];
    let outcomes = outcomes.into_iter().map(|outcome| wire::FileResult::from(outcome).encode_to_vec());
    outcomes.chain([wire::FileInfo::from(&content().info()).encode_to_vec()]).collect()
}

fn claim() -> Vec<u8> {
    let claim = PeerClaim { peer: peer(), session: Some(Session::from_bytes([6; 16])), last_lease: Some(u64::MAX) };
    wire::RegisterPeerRequest::from(&claim).encode_to_vec()
}

fn holders() -> Vec<Vec<u8>> {
    let id = peer().id();
    let changes = vec![
        HolderChange::Is(holder(some(5))),
        HolderChange::Added(id, scattered(500)),
        HolderChange::Gone(id),
        HolderChange::Parted(id),
    ];
    let changes = HolderChanges { reset: true, changes, synced: true, introduces: true };
    // Many of the largest file: few bytes here, and much memory.
    let full = HolderChange::Added(id, ChunkSet::full(count(1 << 18)));
    let many = HolderChanges { changes: vec![full; 8], ..HolderChanges::default() };
    vec![
        wire::WatchFileResponse::from(&changes).encode_to_vec(),
        wire::WatchFileResponse::from(&many).encode_to_vec(),
        wire::Holder::from(&holder(scattered(500))).encode_to_vec(),
    ]
}

fn access() -> Access {
    Access {
        version: 7,
        enforced: true,
        ticket_keys: vec![[1; 32], [2; 32]],
        revoked: [PeerId::from_bytes([1; 16])].into(),
        stopped: vec!["models/".parse().expect("a scope"), "a".parse().expect("a scope")],
        admins: [PeerId::from_bytes([2; 16])].into(),
    }
}

fn chunk_messages() -> Vec<Vec<u8>> {
    let usual = [&front(Some(7), 300)[..], &[1; 300], &front(None, 20), &[2; 20]].concat();
    let odd = wire::FetchChunkResponse { data: vec![3; 40].into(), chunk: Some(1) }.encode_to_vec();
    let odd = [&[0, 0, 0, 0, odd.len().to_le_bytes()[0]][..], &odd].concat();
    [(255, &usual), (1, &usual), (7, &odd)].map(|(cut, stream)| [&[cut][..], stream].concat()).into()
}

fn tracker_requests() -> Vec<Vec<u8>> {
    let entry = wire::FileChunks::decode(&announcement(true)[..]).expect("it was encoded");
    let watch = wire::WatchFileRequest {
        name: "models/a".to_owned(),
        lease_id: 1,
        neighbours: 24,
        known: vec![peer().id().to_string()],
    };
    let locations = wire::FileLocationsRequest {
        name: "models/a".to_owned(),
        first_hash: 8192,
        holders_token: peer().id().to_string(),
        sample: 3,
        packed: true,
        ..Default::default()
    };
    // The token is a name in hex.
    let list = wire::ListFilesRequest { prefix: "m".to_owned(), page_size: 9, page_token: "6d61".to_owned() };
    vec![
        wire::RegisterChunkRequest { lease_id: 1, files: vec![entry.clone(), entry] }.encode_to_vec(),
        watch.encode_to_vec(),
        locations.encode_to_vec(),
        list.encode_to_vec(),
    ]
}

fn control_requests() -> Vec<Vec<u8>> {
    let download = wire::DownloadRequest {
        name: "models/a".to_owned(),
        output: "/x/a".to_owned(),
        chunks: Some(wire::ChunkRanges::from(&some(9).ranges())),
        timeout_millis: 60_000,
        caller: "me".to_owned(),
        ..Default::default()
    };
    let share = wire::ShareRequest {
        paths: vec!["/x/a".to_owned()],
        name: "models/a".to_owned(),
        chunk_size: 1 << 16,
        ..Default::default()
    };
    let limits = wire::LimitsRequest { up: Some(1 << 20), down: Some(0) };
    vec![download.encode_to_vec(), share.encode_to_vec(), limits.encode_to_vec()]
}

/// Claims that become tickets, and a whole one.
fn tickets() -> Vec<Vec<u8>> {
    let claims = |scopes: &[&str]| {
        let scopes = scopes.iter().map(ToString::to_string).collect();
        wire::TicketClaims { peer_id: BEARER.as_bytes().to_vec().into(), expires: 1_900_000_000, scopes }
            .encode_to_vec()
    };
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes are a seed");
    let kept = key.to_pkcs8().expect("it can be written");
    let key = TicketKey::from_kept(kept.as_ref()).expect("it was just written");
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let whole = Ticket { peer: BEARER, expires, scopes: vec!["models/".parse().expect("a scope")] };
    vec![claims(&["*"]), claims(&["models/", "a/b"]), key.sign(&whole).encode_to_vec()]
}

fn certified(target: &str) -> Vec<Vec<u8>> {
    let now = SystemTime::now();
    let (root, root_key) = Authority::generate(now).expect("a new authority");
    let authority = Authority::from_pem(&root, &root_key).expect("it was just made");
    let names = ["tracker.example".to_owned(), "::1".to_owned()];
    let (key, chain) =
        authority.issue(Certified::Peer(BEARER), &names, now, Duration::from_secs(3600)).expect("it can certify");
    let (shown, root) = chain.to_pem().expect("it has a root");
    match target {
        "certificate" => {
            let uris =
                ["spiffe://drizzle/tracker".to_owned(), format!("spiffe://example.org/fleet/drizzle/peer/{BEARER}")];
            chain.0.into_iter().chain(uris.map(String::into_bytes)).collect()
        }
        "certification" => vec![Key::generate().and_then(|key| key.request()).expect("a request")],
        _ => vec![[shown.as_bytes(), &[0xff], key.to_pem().as_bytes(), &[0xff], root.as_bytes()].concat()],
    }
}
