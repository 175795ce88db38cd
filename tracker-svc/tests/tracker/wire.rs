//! What clients without our types meet: malformed and absurd fields, health, reflection.

use crate::common::*;
use drizzle_proto::{
    net::{tls::Meant, transport::Transport},
    wire,
};
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use wire::file_result::Status as Entry;

fn file(manifest: &drizzle_proto::Manifest) -> wire::FileInfo {
    (&manifest.describe(name("a"))).into()
}

#[tokio::test]
async fn malformed_fields_fail_alone_and_name_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut raw = raw(&tracker);
    let told = |status: Status, field: &str| {
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(status.message().contains(field), "{field}: {}", status.message());
    };

    let (good_id, good_address) = ("ab".repeat(16), "host:1".to_owned());
    for (peer_id, address, field) in [
        (String::new(), good_address.clone(), "peer_id"),
        ("AB".repeat(16), good_address.clone(), "peer_id"),
        ("ab".repeat(100_000), good_address.clone(), "peer_id"),
        (good_id.clone(), String::new(), "address"),
        (good_id.clone(), "host:0".into(), "address"),
        (good_id.clone(), "host/../x:1".into(), "address"),
        (good_id.clone(), format!("{}:1", "h".repeat(1 << 20)), "address"),
    ] {
        told(
            raw.register_peer(wire::RegisterPeerRequest { peer_id, address, ..Default::default() }).await.unwrap_err(),
            field,
        );
    }
    let lease = wire::RegisterPeerRequest { peer_id: good_id, address: good_address, ..Default::default() };
    let lease_id = raw.register_peer(lease).await.unwrap().into_inner().lease_id;

    let files = vec![wire::FileChunks::default(); 4097];
    told(raw.register_chunk(wire::RegisterChunkRequest { lease_id, files }).await.unwrap_err(), "files");
    for bad in ["", "../x", "/x", "a/../../x", "a\0", &"x/".repeat(2048)] {
        let name = bad.to_owned();
        told(raw.file_locations(wire::FileLocationsRequest { name, ..Default::default() }).await.unwrap_err(), "name");
        told(
            raw.watch_file(wire::WatchFileRequest { name: bad.to_owned(), ..Default::default() }).await.unwrap_err(),
            "name",
        );
        let name = bad.to_owned();
        told(raw.withdraw_file(wire::WithdrawFileRequest { lease_id, name }).await.unwrap_err(), "name");
    }
    for token in ["x", "zz", "2e2e2f78", "ff", &"61".repeat(2000)] {
        let request = wire::ListFilesRequest { page_token: token.to_owned(), ..Default::default() };
        told(raw.list_files(request).await.unwrap_err(), "page_token");
    }
    let other = wire::ListFilesRequest { prefix: "b".into(), page_token: "61".into(), page_size: u32::MAX };
    told(raw.list_files(other).await.unwrap_err(), "page_token");
    let absurd = wire::ListFilesRequest { prefix: "\0".repeat(1 << 20), page_size: u32::MAX, ..Default::default() };
    assert!(raw.list_files(absurd).await.unwrap().into_inner().files.is_empty());
    for lease_id in [0, 1, u64::MAX] {
        let unknown = raw.renew_lease(wire::RenewLeaseRequest { lease_id, ..Default::default() }).await.unwrap_err();
        assert_eq!(unknown.code(), Code::FailedPrecondition);
        raw.leave(wire::LeaveRequest { lease_id }).await.unwrap();
    }

    let files = vec![(&all("a", &manifest(1, 3))).into()];
    raw.register_chunk(wire::RegisterChunkRequest { lease_id, files }).await.unwrap();
    let locate = |first_hash, holders_token: &str| wire::FileLocationsRequest {
        name: "a".into(),
        first_hash,
        holders_token: holders_token.to_owned(),
        ..Default::default()
    };
    told(raw.file_locations(locate(4, "")).await.unwrap_err(), "first_hash");
    told(raw.file_locations(locate(u32::MAX, "")).await.unwrap_err(), "first_hash");
    told(raw.file_locations(locate(0, "x")).await.unwrap_err(), "holders_token");
    assert_eq!(raw.file_locations(locate(3, "")).await.unwrap().into_inner().chunk_sha256.len(), 0);
    tracker.shutdown().await;
}

#[tokio::test]
async fn malformed_entries_fail_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let peer = Peer::new(&tracker, 1).await;
    let content = manifest(1, 3);
    let good: wire::FileChunks = (&all("a", &content)).into();
    let with_file = |change: fn(&mut wire::FileInfo)| {
        let mut info = file(&content);
        change(&mut info);
        wire::FileChunks { file: Some(info), ..good.clone() }
    };
    let with_held = |length, runs: &[u32], bits: Vec<u8>| {
        let held = wire::ChunkSet { length, runs: runs.to_vec(), bits: bits.into() };
        wire::FileChunks { held: Some(held), ..good.clone() }
    };
    let bad = vec![
        wire::FileChunks { file: None, ..good.clone() },
        with_file(|file| file.name = "../a".into()),
        with_file(|file| file.name = String::new()),
        with_file(|file| file.name = "a".repeat(4096)),
        with_file(|file| file.name = ".drizzle/x".into()),
        with_file(|file| file.file_id = "0".repeat(63)),
        with_file(|file| file.size = u64::MAX),
        with_file(|file| file.size += 1),
        with_file(|file| file.chunk_size = 0),
        with_file(|file| file.chunk_size = u32::MAX),
        with_file(|file| file.chunk_size = 3 << 14),
        with_file(|file| file.chunk_count = u32::MAX),
        with_file(|file| file.chunk_count = 0),
        wire::FileChunks { first_hash: u32::MAX, ..good.clone() },
        wire::FileChunks { first_hash: 1, ..good.clone() },
        wire::FileChunks { chunk_sha256: vec!["x".into(); 3], ..good.clone() },
        wire::FileChunks { chunk_sha256: vec!["0".repeat(64); 8193], ..good.clone() },
        wire::FileChunks { chunk_sha256: vec!["0".repeat(64); 3], ..good.clone() },
        with_held(u32::MAX, &[], vec![]),
        with_held(4, &[], vec![]),
        with_held(3, &[0, u32::MAX], vec![]),
        with_held(3, &[0], vec![]),
        with_held(3, &[1, 1, 0, 1], vec![]),
        with_held(3, &[], vec![0xff]),
        with_held(3, &[], vec![1; 100_000]),
    ];
    let count = bad.len();
    let files = bad.into_iter().chain([good]).collect();
    let request = wire::RegisterChunkRequest { lease_id: peer.lease, files };
    let results = raw(&tracker).register_chunk(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), count + 1);
    for (at, result) in results[..count].iter().enumerate() {
        assert_eq!(result.status(), Entry::Invalid, "entry {at}: {result:?}");
        assert!(!result.detail.is_empty(), "entry {at}");
    }
    assert_eq!(results[count].status(), Entry::Registered);
    tracker.shutdown().await;
}

/// An entry of a few bytes makes a set of a bit for each of its chunks, whether or not it tells `held`.
#[tokio::test]
async fn a_batch_of_too_many_chunks_is_refused_before_they_take_memory() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let peer = Peer::new(&tracker, 1).await;
    let mut raw = raw(&tracker);
    let most = 1u32 << 18;
    let size = u64::from(most) << 14;
    let info = wire::FileInfo { size, chunk_count: most, ..file(&manifest(1, 1)) };
    let without_held = wire::FileChunks { file: Some(info), ..Default::default() };
    let held = wire::ChunkSet { length: most, ..Default::default() };
    let without_file = wire::FileChunks { held: Some(held), ..Default::default() };
    let both = wire::FileChunks { held: without_file.held.clone(), ..without_held.clone() };
    for entry in [without_held.clone(), without_file, both] {
        let mut call = async |count| {
            let request = wire::RegisterChunkRequest { lease_id: peer.lease, files: vec![entry.clone(); count] };
            raw.register_chunk(request).await
        };
        assert_eq!(call(128).await.unwrap().into_inner().results.len(), 128);
        let error = call(129).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("files"), "{error}");
    }
    // A number of chunks that no file has fails alone.
    let mut absurd = without_held;
    absurd.file.as_mut().unwrap().chunk_count = u32::MAX;
    let request = wire::RegisterChunkRequest { lease_id: peer.lease, files: vec![absurd; 129] };
    let results = raw.register_chunk(request).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| result.status() == Entry::Invalid));
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_tracker_lives() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut raw = raw(&tracker);
    let huge = wire::ListFilesRequest { prefix: "x".repeat(5 << 20), ..Default::default() };
    assert_eq!(raw.list_files(huge).await.unwrap_err().code(), Code::OutOfRange);
    raw.list_files(wire::ListFilesRequest::default()).await.unwrap();
    tracker.shutdown().await;
}

/// The worst batch of refusals: 4096 of them, each naming the content that was first.
#[tokio::test]
async fn a_batch_of_refusals_can_be_answered() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut owner = Peer::new(&tracker, 1).await;
    let mut other = Peer::new(&tracker, 2).await;
    let batch =
        |tag| -> Vec<_> { (0..4096).map(|n| all(&format!("{n:04}{}", "é".repeat(120)), &manifest(tag, 1))).collect() };
    owner.tracker.register_chunk(owner.lease, &batch(1)).await.unwrap();
    let outcomes = other.tracker.register_chunk(other.lease, &batch(2)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| refused(outcome).is_some()));
    tracker.shutdown().await;
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use tonic_reflection::pb::{v1, v1alpha};

    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let channel = Transport::plaintext().connect(&tracker.address().into(), Meant::Tracker).await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "drizzle.v1.Tracker", "ready"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status(), ServingStatus::Serving, "{service:?}");
    }

    let asks = [
        v1::server_reflection_request::MessageRequest::ListServices(String::new()),
        v1::server_reflection_request::MessageRequest::FileContainingSymbol("drizzle.v1.Tracker.ListFiles".into()),
        v1::server_reflection_request::MessageRequest::FileContainingSymbol("grpc.health.v1.Health".into()),
    ];
    let asks = asks.map(|ask| v1::ServerReflectionRequest { host: String::new(), message_request: Some(ask) });
    let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = reflection.server_reflection_info(tokio_stream::iter(asks)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    use v1::server_reflection_response::MessageResponse::{FileDescriptorResponse, ListServicesResponse};
    let ListServicesResponse(services) = &answers[0] else { panic!("{:?}", answers[0]) };
    let services: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(services, ["drizzle.v1.Tracker", "drizzle.v1.Enrolment", "grpc.health.v1.Health"]);
    assert!(answers[1..].iter().all(|answer| matches!(answer, FileDescriptorResponse(_))), "{answers:?}");

    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut reflection = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().is_ok());

    let address: drizzle_proto::Address = tracker.address().into();
    drizzle_proto::net::health::check(&Transport::plaintext(), &address, Meant::Tracker).await.unwrap();
    drizzle_proto::net::health::check_ready(&Transport::plaintext(), &address, Meant::Tracker).await.unwrap();
    tracker.shutdown().await;
    assert!(drizzle_proto::net::health::check(&Transport::plaintext(), &address, Meant::Tracker).await.is_err());
}
