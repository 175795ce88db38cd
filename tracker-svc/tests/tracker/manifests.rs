//! Long manifests in one stream.

use crate::common::*;
use drizzle_proto::{Manifest, announcement::FileOutcome, convert::packed, wire};
use tonic::{Code, Status};

const PAGE: usize = 8192;

/// The messages of a stream, at most `pages` of them.
fn messages(peer: &Peer, file: &str, manifest: &Manifest, pages: usize) -> Vec<wire::RegisterManifestRequest> {
    let page =
        |at: usize| packed(&manifest.hashes()[at * PAGE..].iter().copied().take(PAGE).collect::<Vec<_>>()).into();
    let mut entry = all(file, manifest);
    entry.hashes.clear();
    let entry = wire::FileChunks { packed_sha256: page(0), ..(&entry).into() };
    let first =
        wire::RegisterManifestRequest { lease_id: peer.lease, file: Some(entry), packed_sha256: Vec::new().into() };
    let rest = (1..pages).map(|at| wire::RegisterManifestRequest { packed_sha256: page(at), ..Default::default() });
    std::iter::once(first).chain(rest).collect()
}

#[tokio::test]
async fn a_manifest_of_any_length_is_one_call_and_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let most = manifest(1, 1 << 18);
    let mut entry = all("a", &most);
    entry.hashes.clear();
    let outcome = peer.tracker.register_manifest(peer.lease, &entry, &most).await.unwrap();
    assert_eq!(outcome, FileOutcome::Registered);
    assert_eq!(peer.tracker.manifest(&name("a")).await.unwrap(), most);
    assert_eq!(peer.holder_ids("a").await, [1]);

    // What is known already needs no second message, and what was begun in parts goes on from there.
    let outcome = peer.tracker.register_manifest(peer.lease, &entry, &most).await.unwrap();
    assert_eq!(outcome, FileOutcome::Registered);
    let other = manifest(2, 20_000);
    let mut part = all("b", &other);
    part.hashes.truncate(PAGE);
    assert_eq!(peer.announce(part.clone()).await, FileOutcome::NeedHashes(8192));
    (part.first_hash, part.hashes) = (8192, Vec::new());
    let outcome = peer.tracker.register_manifest(peer.lease, &part, &other).await.unwrap();
    assert_eq!(outcome, FileOutcome::Registered);
    assert_eq!(peer.tracker.manifest(&name("b")).await.unwrap(), other);
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_ends_too_soon_says_what_is_missing_and_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let large = manifest(1, 30_000);
    let cut = tokio_stream::iter(messages(&peer, "a", &large, 2));
    let answer = raw(&tracker).register_manifest(cut).await.unwrap().into_inner();
    assert_eq!(FileOutcome::try_from(answer.result.unwrap()), Ok(FileOutcome::NeedHashes(2 * 8192)));
    assert_eq!(peer.tracker.holders(&name("a")).await.unwrap_err().code(), Code::NotFound);
    let whole = tokio_stream::iter(messages(&peer, "a", &large, 4));
    let answer = raw(&tracker).register_manifest(whole).await.unwrap().into_inner();
    assert_eq!(FileOutcome::try_from(answer.result.unwrap()), Ok(FileOutcome::Registered));
    assert_eq!(peer.tracker.manifest(&name("a")).await.unwrap(), large);
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_is_wrong_registers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let (one, other) = (manifest(1, 20_000), manifest(2, 20_000));
    let right = messages(&peer, "a", &one, 3);
    let sent = async |messages: Vec<wire::RegisterManifestRequest>| -> Result<FileOutcome, Status> {
        let answer = raw(&tracker).register_manifest(tokio_stream::iter(messages)).await?.into_inner();
        Ok(answer.result.unwrap().try_into().unwrap())
    };

    let mut lie = right.clone();
    lie[2].packed_sha256 = packed(&other.hashes()[2 * PAGE..]).into();
    assert!(matches!(sent(lie).await, Ok(FileOutcome::Invalid(_))));

    let mut too_many = right.clone();
    too_many[2].packed_sha256 = packed(&one.hashes()[..PAGE]).into();
    let mut odd = right.clone();
    odd[1].packed_sha256 = vec![0; 33].into();
    let mut twice = right.clone();
    twice[1].file = right[0].file.clone();
    let mut empty = right.clone();
    empty[1].packed_sha256 = Vec::new().into();
    let mut headless = right.clone();
    headless[0].file = None;
    for wrong in [too_many, odd, twice, empty, headless, Vec::new()] {
        assert_eq!(sent(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut strange = right.clone();
    strange[0].lease_id += 1;
    assert_eq!(sent(strange).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(peer.tracker.holders(&name("a")).await.unwrap_err().code(), Code::NotFound);

    assert_eq!(sent(right).await.unwrap(), FileOutcome::Registered);
    tracker.shutdown().await;
}
