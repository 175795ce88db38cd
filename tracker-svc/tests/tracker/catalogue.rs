//! Invariant 1: the content first registered under a name is its content, whatever happens.

use crate::common::*;
use drizzle_proto::{FileId, announcement::FileOutcome, wire};
use tonic::Code;

#[tokio::test]
async fn first_hash_wins_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (first, other) = (manifest(1, 3), manifest(2, 3));
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    peer.share("a", &first).await;
    let outcome = peer.announce(all("a", &other)).await;
    assert_eq!(refused(&outcome), Some(&first.describe(name("a"))));
    let FileOutcome::Refused { detail, .. } = outcome else { unreachable!() };
    assert!(detail.contains(&first.id().to_string()) && detail.contains(&other.id().to_string()), "{detail}");
    assert!(peer.holders("a").await.is_empty(), "a refused sender is no holder of the name any more");
    tracker.shutdown().await;

    let tracker = start(dir.path()).await;
    let mut stranger = Peer::new(&tracker, 2).await;
    assert_eq!(refused(&stranger.announce(all("a", &other)).await), Some(&first.describe(name("a"))));
    assert_eq!(stranger.tracker.manifest(&name("a")).await.unwrap(), first);
    assert!(stranger.holders("a").await.is_empty(), "holders are told anew after a restart");
    let mut known = all("a", &first);
    known.hashes.clear();
    assert_eq!(stranger.announce(known).await, FileOutcome::Registered, "no hashes are needed for what is known");
    assert_eq!(stranger.holder_ids("a").await, [2]);
    tracker.shutdown().await;
}

#[tokio::test]
async fn one_refused_file_does_not_harm_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut owner = Peer::new(&tracker, 1).await;
    owner.share("b", &manifest(1, 2)).await;
    let mut peer = Peer::new(&tracker, 2).await;
    let batch = [all("a", &manifest(2, 2)), all("b", &manifest(2, 2)), all("c", &manifest(3, 0))];
    let outcomes = peer.tracker.register_chunk(peer.lease, &batch).await.unwrap();
    assert_eq!(outcomes[0], FileOutcome::Registered);
    assert!(refused(&outcomes[1]).is_some());
    assert_eq!(outcomes[2], FileOutcome::Registered);
    assert_eq!((peer.holder_ids("a").await, peer.holder_ids("b").await), (vec![2], vec![1]));
    assert_eq!(peer.holder_ids("c").await, [2], "an empty file is held by whoever says so");
    tracker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_first_registrations_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut racers = tokio::task::JoinSet::new();
    for n in 1..=16 {
        let mut peer = Peer::new(&tracker, n).await;
        racers.spawn(async move { (n, peer.announce(all("a", &manifest(n, 2))).await) });
    }
    let outcomes = racers.join_all().await;
    let winners: Vec<u8> =
        outcomes.iter().filter(|(_, outcome)| *outcome == FileOutcome::Registered).map(|(n, _)| *n).collect();
    assert_eq!(winners.len(), 1);
    let registered = manifest(winners[0], 2).describe(name("a"));
    for (n, outcome) in outcomes.iter().filter(|(n, _)| *n != winners[0]) {
        assert_eq!(refused(outcome), Some(&registered), "peer {n}");
    }
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_manifest_in_parts_takes_effect_when_whole() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let large = manifest(1, 20_000);
    let part = |first: usize, last: usize| {
        let mut part = all("a", &large);
        part.first_hash = u32::try_from(first).unwrap();
        part.hashes = large.hashes()[first..last].to_vec();
        part
    };
    assert_eq!(peer.announce(part(0, 0)).await, FileOutcome::NeedHashes(0));
    assert_eq!(peer.announce(part(0, 8192)).await, FileOutcome::NeedHashes(8192));
    assert_eq!(peer.announce(part(16384, 20_000)).await, FileOutcome::NeedHashes(8192), "a gap");
    assert_eq!(peer.announce(part(8192, 16384)).await, FileOutcome::NeedHashes(16384));
    assert_eq!(peer.tracker.holders(&name("a")).await.unwrap_err().code(), Code::NotFound, "not whole yet");
    assert_eq!(peer.announce(part(16384, 20_000)).await, FileOutcome::Registered);
    assert_eq!(peer.tracker.manifest(&name("a")).await.unwrap(), large);
    assert_eq!(peer.holder_ids("a").await, [1]);
    tracker.shutdown().await;
}

#[tokio::test]
async fn hashes_that_do_not_make_the_claimed_id_are_invalid() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let (true_one, other) = (manifest(1, 9000), manifest(2, 9000));
    let mut lie = all("a", &true_one);
    lie.file.id = other.id();
    lie.hashes.truncate(8000);
    assert_eq!(peer.announce(lie.clone()).await, FileOutcome::NeedHashes(8000));
    lie.first_hash = 8000;
    lie.hashes = true_one.hashes()[8000..].to_vec();
    let FileOutcome::Invalid(detail) = peer.announce(lie).await else { panic!("a lie is invalid") };
    assert!(detail.contains(&true_one.id().to_string()) && detail.contains(&other.id().to_string()), "{detail}");
    // A known id with another size is a lie as well, whether its file has holders or not.
    peer.share("b", &manifest(3, 2)).await;
    for file in ["b", "c"] {
        let mut lie = all(file, &manifest(3, 3));
        lie.file.id = manifest(3, 2).id();
        lie.hashes.clear();
        assert!(matches!(peer.announce(lie).await, FileOutcome::Invalid(_)), "{file}");
    }
    assert_eq!(peer.tracker.holders(&name("a")).await.unwrap_err().code(), Code::NotFound);
    tracker.shutdown().await;
}

#[tokio::test]
async fn the_owner_releases_the_name_and_others_only_their_holding() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut owner = Peer::new(&tracker, 1).await;
    let mut holder = Peer::new(&tracker, 2).await;
    let mut stranger = Peer::new(&tracker, 3).await;
    let content = manifest(1, 2);
    owner.share("a", &content).await;
    holder.share("a", &content).await;

    let withdraw = async |peer: &mut Peer, lease: u64, file: &str| {
        peer.tracker.withdraw_file(lease, &name(file)).await.map_err(|error| error.code())
    };
    let lease = stranger.lease;
    assert_eq!(withdraw(&mut stranger, lease, "a").await, Err(Code::PermissionDenied));
    assert_eq!(withdraw(&mut stranger, lease, "b").await, Err(Code::NotFound));
    assert_eq!(withdraw(&mut stranger, lease ^ 1, "a").await, Err(Code::FailedPrecondition));

    let lease = holder.lease;
    assert_eq!(withdraw(&mut holder, lease, "a").await, Ok(false));
    assert_eq!(owner.holder_ids("a").await, [1]);
    assert_eq!(refused(&stranger.announce(all("a", &manifest(2, 2))).await).unwrap().id, content.id());

    holder.share("a", &content).await;
    let lease = owner.lease;
    assert_eq!(withdraw(&mut owner, lease, "a").await, Ok(true));
    assert_eq!(owner.tracker.holders(&name("a")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        holder.tracker.renew_lease(holder.lease, Default::default()).await.unwrap().released,
        [content.describe(name("a"))]
    );
    assert_eq!(holder.tracker.renew_lease(holder.lease, Default::default()).await.unwrap().released, [], "told once");
    assert_eq!(
        owner.tracker.renew_lease(owner.lease, Default::default()).await.unwrap().released,
        [],
        "the owner knows"
    );
    stranger.share("a", &manifest(2, 2)).await;
    assert_eq!(stranger.holder_ids("a").await, [3]);
    tracker.shutdown().await;
}

/// Who alone holds a file does not thereby own its name: the owner may be back at any moment.
#[tokio::test]
async fn the_last_holder_does_not_release_a_name_while_its_owner_may_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut owner = Peer::new(&tracker, 1).await;
    let mut holder = Peer::new(&tracker, 2).await;
    owner.share("a", &manifest(1, 2)).await;
    let mut gone = all("a", &manifest(1, 2));
    gone.gone = true;
    assert_eq!(owner.announce(gone).await, FileOutcome::Registered);
    assert_eq!(holder.announce(some("a", &manifest(1, 2), &[1])).await, FileOutcome::Registered);
    assert!(!holder.tracker.withdraw_file(holder.lease, &name("a")).await.unwrap(), "the owner is alive");

    holder.share("a", &manifest(1, 2)).await;
    owner.tracker.leave(owner.lease).await.unwrap();
    assert!(!holder.tracker.withdraw_file(holder.lease, &name("a")).await.unwrap(), "the tracker is just up");
    assert_eq!(holder.holder_ids("a").await, [0u8; 0]);
    assert!(refused(&holder.announce(all("a", &manifest(2, 2))).await).is_some());
    tracker.shutdown().await;
}

#[tokio::test]
async fn holders_that_were_not_told_do_not_bring_a_withdrawn_file_back() {
    let dir = tempfile::tempdir().unwrap();
    let content = manifest(1, 2);
    let tracker = start(dir.path()).await;
    let mut owner = Peer::new(&tracker, 1).await;
    owner.share("a", &content).await;
    owner.share("b", &content).await;
    let mut holder = Peer::new(&tracker, 2).await;
    for file in ["a", "b"] {
        holder.share(file, &content).await;
        assert!(owner.tracker.withdraw_file(owner.lease, &name(file)).await.unwrap());
    }
    tracker.shutdown().await;

    let tracker = start(dir.path()).await;
    let mut holder = Peer::new(&tracker, 2).await;
    let mut stranger = Peer::new(&tracker, 3).await;
    for peer in [&mut holder, &mut stranger] {
        let FileOutcome::Invalid(detail) = peer.announce(all("a", &content)).await else { panic!("withdrawn") };
        assert_eq!(detail, r#""a" was withdrawn by its owner; share it under another name"#);
    }
    assert_eq!(holder.tracker.holders(&name("a")).await.unwrap_err().code(), Code::NotFound);
    holder.share("c", &content).await;

    let mut owner = Peer::new(&tracker, 1).await;
    owner.share("a", &content).await;
    holder.share("a", &content).await;
    assert_eq!(owner.holder_ids("a").await, [1, 2]);
    stranger.share("b", &manifest(2, 2)).await;
    assert!(refused(&holder.announce(all("b", &content)).await).is_some());
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_holding_can_be_taken_back_without_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    peer.share("a", &manifest(1, 2)).await;
    let mut gone = all("a", &manifest(1, 2));
    gone.gone = true;
    assert_eq!(peer.announce(gone.clone()).await, FileOutcome::Registered);
    assert_eq!(peer.holder_ids("a").await, [0u8; 0]);
    assert_eq!(peer.tracker.manifest(&name("a")).await.unwrap().id(), manifest(1, 2).id());
    gone.file.name = name("never-there");
    assert_eq!(peer.announce(gone).await, FileOutcome::Registered);
    assert_eq!(peer.tracker.holders(&name("never-there")).await.unwrap_err().code(), Code::NotFound);
    tracker.shutdown().await;
}

#[tokio::test]
async fn names_and_holders_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    let content = manifest(1, 4);
    let names: Vec<String> = (0..25).map(|n| format!("d/{n:03}")).collect();
    let mut batch: Vec<_> = names.iter().map(|file| some(file, &content, &[0])).collect();
    batch.push(all("z", &content));
    peer.tracker.register_chunk(peer.lease, &batch).await.unwrap();

    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let request = wire::ListFilesRequest { prefix: "d/".into(), page_size: 10, page_token: token };
        let (page, next) = peer.tracker.list_files(request).await.unwrap();
        assert!(page.len() <= 10);
        assert!(page.iter().all(|file| (file.full_holders, file.partial_holders) == (0, 1)));
        listed.extend(page.into_iter().map(|file| file.file.name.to_string()));
        match next {
            Some(next) => token = next,
            None => break,
        }
    }
    assert_eq!(listed, names);
    let (rest, next) = peer.tracker.list_files(wire::ListFilesRequest::default()).await.unwrap();
    assert_eq!((rest.len(), next), (26, None));
    assert_eq!((rest[25].full_holders, rest[25].partial_holders), (1, 0));

    // Bitfields of 32 KiB: a dozen fit into one answer.
    let large = manifest(2, 1 << 18);
    let odd: Vec<u32> = (0..1 << 18).filter(|n| n % 2 == 1).collect();
    for first in (0..1 << 18).step_by(8192) {
        let mut part = some("large", &large, &odd);
        part.first_hash = first;
        part.hashes = large.hashes()[first as usize..][..8192].to_vec();
        let last = first + 8192 == 1 << 18;
        let expected = if last { FileOutcome::Registered } else { FileOutcome::NeedHashes(first + 8192) };
        assert_eq!(peer.announce(part).await, expected);
    }
    for n in 2..=30 {
        let mut other = Peer::new(&tracker, n).await;
        let mut known = some("large", &large, &odd);
        known.hashes.clear();
        assert_eq!(other.announce(known).await, FileOutcome::Registered);
    }
    let request = wire::FileLocationsRequest { name: "large".into(), ..Default::default() };
    let answer = peer.tracker.file_locations_wire(request).await.unwrap();
    assert_eq!(answer.chunk_sha256.len(), 8192);
    assert!(!answer.next_holders_token.is_empty() && !answer.holders.is_empty());
    let bytes = prost::Message::encoded_len(&answer);
    assert!(bytes < 1_200_000, "{bytes}");
    assert_eq!(peer.holder_ids("large").await, (1..=30).collect::<Vec<u8>>());
    assert_eq!(peer.holders("large").await[29].chunks.len(), 1 << 17);
    assert_eq!(peer.tracker.manifest(&name("large")).await.unwrap(), large);
    tracker.shutdown().await;
}

#[tokio::test]
async fn a_second_tracker_on_the_same_folder_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let Err(error) = tracker_svc::bind(config(dir.path(), LONG)).await else { panic!("two trackers, one catalogue") };
    assert!(error.to_string().contains("in use by another tracker"), "{error}");
    tracker.shutdown().await;
}

#[tokio::test]
async fn equal_content_under_two_names_is_one_content() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut peer = Peer::new(&tracker, 1).await;
    peer.share("a", &manifest(1, 2)).await;
    let mut twin = all("b", &manifest(1, 2));
    twin.hashes.clear();
    assert_eq!(peer.announce(twin).await, FileOutcome::Registered);
    let id = |manifest: drizzle_proto::Manifest| -> FileId { manifest.id() };
    assert!(peer.tracker.withdraw_file(peer.lease, &name("a")).await.unwrap());
    assert_eq!(id(peer.tracker.manifest(&name("b")).await.unwrap()), id(manifest(1, 2)));
    tracker.shutdown().await;
}
