//! Slots and streams as their receivers see them.

use std::time::Duration;

use drizzle_proto::{Digest, FileName, Layout, Manifest, RateLimit};
use prost::Message as _;
use tokio_stream::StreamExt;

use super::*;
use crate::store::stamp::Stamp;
use crate::trust::Permit;

const CHUNK: u32 = 4 << 20;
const NEVER: pace::Limits =
    pace::Limits { silence: Duration::from_secs(3600), window: Duration::from_secs(3600), least: 0 };

/// One file of four chunks, each of more messages than are read ahead.
fn uploads(folder: &std::path::Path, slots: usize, limits: pace::Limits) -> (FileId, Uploads) {
    let path = folder.join("a");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(u64::from(CHUNK) * 4).unwrap();
    let layout = Layout::new(u64::from(CHUNK) * 4, CHUNK).unwrap();
    let manifest = Manifest::new(layout, vec![Digest::of(b""); 4]).unwrap();
    let holdings = Arc::new(Holdings::default());
    let (id, stamp) = (manifest.id(), Stamp::of(&path.metadata().unwrap()));
    holdings.insert_shared(FileName::new("a").unwrap(), manifest, path, stamp);
    let gate = Gate::new(RateLimit::UNLIMITED);
    (id, Uploads::new(holdings, Lanes::new(Slots::most(slots)).unwrap(), slots, limits, gate, Arc::default()))
}

fn request(file: FileId, requester: u8) -> ChunkRequest {
    ChunkRequest {
        file,
        chunk: 1,
        alternatives: Vec::new(),
        offset: 0,
        slot: Some(PeerId::from_bytes([requester; 16])).into(),
    }
}

async fn until_taken(uploads: &Uploads, taken: usize) {
    let waiting = async {
        while uploads.counts().taken != taken {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the slots change in time");
}

#[tokio::test]
async fn a_request_beyond_the_slots_is_refused_and_a_slot_is_free_again_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 2, NEVER);
    let first = uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
    let _second = uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
    assert!(matches!(uploads.open(request(file, 1), Permit::anybody()).await, Err(ServeError::Busy(2))));
    assert_eq!(uploads.counts(), UploadCounts { slots: 2, taken: 2, sent: 0 });
    let bytes: u64 = first.map(|message| message.unwrap().data).collect::<Vec<_>>().await.iter().sum();
    assert_eq!(bytes, u64::from(CHUNK));
    until_taken(&uploads, 1).await;
    uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
}

#[tokio::test]
async fn a_slot_is_free_again_when_its_receiver_goes_away_or_asks_for_nothing_that_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 1, NEVER);
    drop(uploads.open(request(file, 1), Permit::anybody()).await.unwrap());
    until_taken(&uploads, 0).await;
    for bad in [
        ChunkRequest { chunk: 4, ..request(file, 1) },
        ChunkRequest { offset: CHUNK, ..request(file, 1) },
        ChunkRequest { file: FileId::from_digest(Digest::of(b"x")), ..request(file, 1) },
    ] {
        uploads.open(bad, Permit::anybody()).await.unwrap_err();
        until_taken(&uploads, 0).await;
    }
}

#[tokio::test]
async fn a_slot_is_held_until_the_last_byte_was_taken_out_of_the_transport() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 1, NEVER);
    let in_transport: Vec<_> = uploads.open(request(file, 1), Permit::anybody()).await.unwrap().collect().await;
    assert!(
        matches!(uploads.open(request(file, 1), Permit::anybody()).await, Err(ServeError::Busy(1))),
        "no byte of it has left"
    );
    let last = in_transport.into_iter().next_back();
    assert_eq!(uploads.counts().taken, 1);
    drop(last);
    until_taken(&uploads, 0).await;
}

#[tokio::test]
async fn a_small_chunk_takes_a_slot_too() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 1, NEVER);
    for left in [1, 2, 1000] {
        let request = ChunkRequest { offset: CHUNK - left, ..request(file, 1) };
        let in_transport: Vec<_> = uploads.open(request.clone(), Permit::anybody()).await.unwrap().collect().await;
        assert!(matches!(uploads.open(request, Permit::anybody()).await, Err(ServeError::Busy(1))), "{left} bytes");
        drop(in_transport);
        until_taken(&uploads, 0).await;
    }
}

#[tokio::test]
async fn where_it_may_choose_a_full_holder_sends_what_it_sent_least_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 4, NEVER);
    let any = ChunkRequest { alternatives: vec![0, 2, 3], ..request(file, 1) };
    let named = async |request: ChunkRequest| {
        let first = uploads.open(request, Permit::anybody()).await.unwrap().next().await.unwrap().unwrap().bytes;
        wire::FetchChunkResponse::decode(&first[5..]).unwrap().chunk
    };
    let mut sent = std::collections::BTreeSet::new();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = uploads.open(any.clone(), Permit::anybody()).await.unwrap();
        let first = stream.next().await.unwrap().unwrap().bytes;
        sent.extend(wire::FetchChunkResponse::decode(&first[5..]).unwrap().chunk);
        streams.push(stream);
    }
    let left = (0..4).find(|chunk| !sent.contains(chunk));
    assert_eq!(sent.len(), 3, "{sent:?}");
    assert_eq!(named(any.clone()).await, left, "the one that was not sent");
    until_taken(&uploads, 3).await;
    assert_eq!(named(any.clone()).await, left, "it broke off, and does not count");
    until_taken(&uploads, 3).await;
    assert_eq!(named(request(file, 1)).await, None, "no choice, no name");
    until_taken(&uploads, 3).await;
    let refused = uploads.open(ChunkRequest { alternatives: vec![4], ..any }, Permit::anybody()).await;
    assert!(matches!(refused, Err(ServeError::Read(ReadError::NoSuchChunk { chunk: 4, .. }))), "{refused:?}");
}

#[test]
fn a_source_without_a_free_file_is_busy_and_not_broken() {
    let short = std::io::Error::from(rustix::io::Errno::MFILE);
    assert_eq!(Status::from(ServeError::from(ReadError::Io(short))).code(), tonic::Code::ResourceExhausted);
    let broken = std::io::Error::from(rustix::io::Errno::IO);
    assert_eq!(Status::from(ServeError::from(ReadError::Io(broken))).code(), tonic::Code::Internal);
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_loses_its_slot() {
    let folder = tempfile::tempdir().unwrap();
    let silence = Duration::from_millis(50);
    let (file, uploads) = uploads(folder.path(), 1, pace::Limits { silence, window: silence, least: 0 });
    let idle = uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
    until_taken(&uploads, 0).await;
    let last = idle.collect::<Vec<_>>().await.pop().expect("what was read ahead");
    assert_eq!(last.unwrap_err().code(), tonic::Code::Aborted, "it must not pass for a whole chunk");
}

#[tokio::test]
async fn a_reader_that_panics_is_no_fault_of_the_receiver() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 1, NEVER);
    let mut stream = uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.panics();
    assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Internal);
    assert!(stream.next().await.is_none());
    until_taken(&uploads, 0).await;
}

#[tokio::test]
async fn a_dripping_receiver_loses_its_slot_only_to_a_peer_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let window = Duration::from_millis(20);
    let limits = pace::Limits { silence: NEVER.silence, window, least: u64::from(CHUNK) };
    let (file, uploads) = uploads(folder.path(), 1, limits);
    let mut dripping = uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
    for _ in 0..3 {
        dripping.next().await.unwrap().unwrap();
        tokio::time::sleep(window).await;
        assert_eq!(uploads.counts().taken, 1, "no other peer waits");
    }
    assert!(matches!(uploads.open(request(file, 2), Permit::anybody()).await, Err(ServeError::Busy(1))));
    until_taken(&uploads, 0).await;
    uploads.open(request(file, 2), Permit::anybody()).await.unwrap();
}

#[tokio::test]
async fn a_receiver_that_does_not_read_does_not_keep_another_one_from_its_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 2, NEVER);
    let _hog = [
        uploads.open(request(file, 1), Permit::anybody()).await.unwrap(),
        uploads.open(request(file, 1), Permit::anybody()).await.unwrap(),
    ];
    let other = uploads
        .open(request(file, 2), Permit::anybody())
        .await
        .expect("no peer keeps every slot while another one waits");
    let bytes: u64 = other.map(|message| message.unwrap().data).collect::<Vec<_>>().await.iter().sum();
    assert_eq!(bytes, u64::from(CHUNK));
    until_taken(&uploads, 2).await;
    assert!(
        matches!(uploads.open(request(file, 1), Permit::anybody()).await, Err(ServeError::Busy(2))),
        "it has more than its share"
    );
}

#[tokio::test]
async fn under_a_limit_messages_are_small_and_no_receiver_is_blamed_for_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    // Each message waits twice as long as a receiver may take nothing.
    let silence = Duration::from_millis(125);
    let (file, uploads) = uploads(folder.path(), 1, pace::Limits { silence, window: silence, least: 1 });
    uploads.way.gate.set(RateLimit::new(16 << 10).unwrap());
    let rest = ChunkRequest { offset: CHUNK - (20 << 10), ..request(file, 1) };
    let begun = Instant::now();
    let messages: Vec<_> =
        uploads.open(rest, Permit::anybody()).await.unwrap().map(|message| message.unwrap().data).collect().await;
    assert_eq!(messages, [4 << 10; 5]);
    // Two messages go at once.
    assert!(begun.elapsed() >= Duration::from_millis(750), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_receiver_that_goes_while_its_bytes_wait_for_the_limit_leaves_its_slot_and_a_lifted_limit_counts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (file, uploads) = uploads(folder.path(), 4, NEVER);
    uploads.way.gate.set(RateLimit::new(16 << 10).unwrap());
    let mut waits = uploads.open(request(file, 1), Permit::anybody()).await.unwrap();
    waits.next().await.unwrap().unwrap();
    waits.next().await.unwrap().unwrap();
    let _other = uploads.open(request(file, 2), Permit::anybody()).await.unwrap();
    assert!(
        matches!(uploads.open(request(file, 3), Permit::anybody()).await, Err(ServeError::Busy(2))),
        "a chunk takes minutes"
    );
    drop(waits);
    until_taken(&uploads, 1).await;
    assert!(
        matches!(uploads.open(request(file, 1), Permit::anybody()).await, Err(ServeError::Busy(2))),
        "it is the third one's turn"
    );
    let slow = uploads.open(request(file, 3), Permit::anybody()).await.unwrap();
    uploads.way.gate.set(RateLimit::UNLIMITED);
    let bytes: u64 = slow.map(|message| message.unwrap().data).collect::<Vec<_>>().await.iter().sum();
    assert_eq!(bytes, u64::from(CHUNK));
}
