//! Signed manifests: a peer that trusts a key fetches and offers what that key signed, and nothing else, whatever the
//! tracker, the folder and other peers say.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use drizzle_proto::{
    Labels, PeerId, PeerInfo, Signature,
    announcement::FileOutcome,
    net::transport::Transport,
    wire::{self, file_result, peer_client::PeerClient},
};
use drizzle_tests::{
    Cluster, Content, FakePeer, Peer, Run, cluster::Options, content::files_below, lying_tracker::LyingTracker,
    skipped, until,
};

/// A key without a password, in the cluster's folder; its public half is beside it.
async fn key(peer: &Peer, cluster: &Cluster, name: &str) -> PathBuf {
    let path = cluster.folder().join(name);
    peer.cli(["key".as_ref(), "new".as_ref(), "--no-password".as_ref(), path.as_os_str()]).await.expect(0);
    path
}

fn public(key: &Path) -> PathBuf {
    let mut path = key.as_os_str().to_owned();
    path.push(".pub");
    path.into()
}

fn trusting(key: &Path) -> Options {
    Options::default().args([OsString::from("--trust"), public(key).into(), "--look-every".into(), "100ms".into()])
}

/// `peer-cli share` of a file that is in the peer's folder already, in small chunks.
async fn share(peer: &Peer, name: &str, more: &[OsString]) -> Run {
    let mut args: Vec<OsString> = ["share", "--chunk-size", "16KiB"].map(Into::into).to_vec();
    args.extend_from_slice(more);
    args.push(peer.path(name).into());
    peer.cli(args).await
}

fn signed_by(key: &Path) -> [OsString; 2] {
    ["--sign".into(), key.into()]
}

async fn share_signed(peer: &Peer, content: &Content, key: &Path) {
    fs::write(peer.path(content.name.as_str()), &content.bytes).unwrap();
    share(peer, content.name.as_str(), &signed_by(key)).await.expect(0);
}

/// What the tracker keeps.
async fn kept(cluster: &Cluster, content: &Content) -> Option<Signature> {
    cluster.tracker.client().signature(&content.name).await.ok()?.1.expect("a signature that is well-formed")
}

/// A download is refused, for this reason, and nothing was fetched of it.
async fn refused(peer: &Peer, name: &str, why: &str) {
    let before = peer.status().await;
    let run = peer.cli(["download", name]).await.expect(8);
    let reason = run.reason();
    assert!(reason.contains("is not fetched") && reason.contains(why), "{why}: {reason}");
    let after = peer.status().await;
    assert_eq!((after.downloaded_bytes, after.partial_files), (before.downloaded_bytes, before.partial_files));
    assert!(!peer.path(name).exists() && after.transfers.is_empty());
}

/// Whether a peer sends the first chunk of some content.
async fn serves(peer: &Peer, content: &Content) -> bool {
    let mut client = PeerClient::new(
        Transport::plaintext().connect_lazy(&peer.address().into(), drizzle_proto::net::tls::Meant::AnyPeer).unwrap(),
    );
    let request = wire::FetchChunkRequest { file_id: content.manifest.id().to_string(), ..Default::default() };
    match client.fetch_chunk(request).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), tonic::Code::NotFound, "{status:?}");
            false
        }
    }
}

/// Files that a peer has and does not offer, with the reasons.
async fn untrusted(peer: &Peer) -> Vec<(String, String)> {
    peer.status().await.untrusted.into_iter().map(|file| (file.name, file.reason)).collect()
}

async fn until_untrusted(peer: &Peer, name: &str, why: &str) {
    until(&format!("{name} is not offered: {why}"), async || {
        untrusted(peer).await.iter().any(|(of, reason)| of == name && reason.contains(why)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_trusted_key_signed_is_fetched_and_nothing_else() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let (mine, other) = (key(&one, &cluster, "mine").await, key(&one, &cluster, "other").await);
    let (a, b, c) =
        (Content::small_chunks("A", 1, 8), Content::small_chunks("B", 2, 8), Content::small_chunks("C", 3, 8));
    share_signed(&one, &a, &mine).await;
    one.share(&b).await;
    share_signed(&one, &c, &other).await;

    let two = cluster.peer_with("two", trusting(&mine)).await;
    refused(&two, "B", "it is not signed").await;
    refused(&two, "C", "which this peer does not trust").await;
    assert_eq!(one.status().await.uploaded_bytes, 0, "not a byte was asked for");
    assert_eq!(files_below(&two.dir), [""; 0]);
    two.download("A").await;
    a.assert_at(&two.path("A"));
    cluster.until_held("A", 2).await;

    // Who asks for no signature gets everything, and passes it on.
    let three = cluster.peer("three").await;
    three.download("C").await;
    let locations = three.cli(["locations", "C"]).await.expect(0);
    let signed = kept(&cluster, &c).await.unwrap();
    assert_eq!(locations.events[0]["signature"]["key_id"], signed.key().to_string());
    let both = trusting(&mine).args([OsString::from("--trust"), public(&other).into()]);
    let four = cluster.peer_with("four", both).await;
    assert_eq!(four.status().await.trusted_keys.len(), 2);
    four.download("C").await;
    refused(&four, "B", "it is not signed").await;
}

#[tokio::test]
async fn a_shared_file_is_signed_later_and_what_takes_its_place_is_not_signed() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let mine = key(&one, &cluster, "mine").await;
    let (old, new) = (Content::small_chunks("A", 1, 8), Content::small_chunks("A", 2, 8));
    one.share(&old).await;
    let two = cluster.peer_with("two", trusting(&mine)).await;
    refused(&two, "A", "it is not signed").await;
    let run = share(&one, "A", &signed_by(&mine)).await.expect(0);
    assert_eq!(run.events[0]["signature"]["key_id"], kept(&cluster, &old).await.unwrap().key().to_string());
    two.download("A").await;

    fs::write(one.path("A"), &new.bytes).unwrap();
    share(&one, "A", &["--replace".into()]).await.expect(0);
    assert_eq!(kept(&cluster, &new).await, None);
    let three = cluster.peer_with("three", trusting(&mine)).await;
    refused(&three, "A", "it is not signed").await;
    share(&one, "A", &signed_by(&mine)).await.expect(0);
    three.download("A").await;
    new.assert_at(&three.path("A"));
}

#[tokio::test]
async fn restarts_of_the_tracker_and_of_the_sharer_keep_signatures() {
    let mut cluster = Cluster::start().await;
    let mut one = cluster.peer("one").await;
    let mine = key(&one, &cluster, "mine").await;
    let a = Content::small_chunks("A", 1, 8);
    share_signed(&one, &a, &mine).await;
    let signed = kept(&cluster, &a).await;
    assert!(signed.is_some());

    cluster.tracker.daemon.kill();
    cluster.tracker.daemon.restart().await;
    assert_eq!(kept(&cluster, &a).await, signed, "the catalogue keeps it");
    one.daemon.kill();
    one.restart().await;
    // A tracker that lost its data hears of it from the peer.
    cluster.tracker.daemon.kill();
    fs::remove_dir_all(cluster.folder().join("tracker")).unwrap();
    cluster.tracker.daemon.restart().await;
    until("the signature is registered again", async || {
        kept(&cluster, &a).await.filter(|kept| Some(kept) == signed.as_ref())
    })
    .await;
    let two = cluster.peer_with("two", trusting(&mine)).await;
    two.download("A").await;
}

#[tokio::test]
async fn a_signature_counts_for_its_file_alone_whatever_the_tracker_says() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let mine = key(&one, &cluster, "mine").await;
    let (a, b) = (Content::small_chunks("A", 1, 8), Content::small_chunks("B", 2, 8));
    share_signed(&one, &a, &mine).await;
    one.share(&b).await;
    let signed = kept(&cluster, &a).await.unwrap();
    let liar = LyingTracker::start(&cluster.tracker.address()).await;
    let two = cluster.peer_with("two", trusting(&mine).tracker(liar.url())).await;

    let of_a = wire::FileSignature::from(&signed);
    let told = of_a.clone();
    liar.lies(move |answer| answer.signature = Some(told.clone()));
    refused(&two, "B", "its signature is of another file").await;
    // Other content under the name that was signed.
    let info = wire::FileInfo { name: "A".into(), ..(&b.info()).into() };
    let (told, packed) = (of_a.clone(), drizzle_proto::convert::packed(b.manifest.hashes()));
    liar.lies(move |answer| {
        (answer.file, answer.signature) = (Some(info.clone()), Some(told.clone()));
        answer.packed_sha256 = packed.clone().into();
    });
    refused(&two, "A", "its signature is of another file").await;
    // A statement that fits, with a signature that was made for another one.
    let statement = of_a
        .statement
        .replace("name: A", "name: B")
        .replace(&a.manifest.id().to_string(), &b.manifest.id().to_string());
    let told = wire::FileSignature { statement, ..of_a.clone() };
    liar.lies(move |answer| answer.signature = Some(told.clone()));
    refused(&two, "B", "its signature is wrong").await;
    // Another file with its own signature: neither a download of B nor a look at a copy takes it for B.
    let (whole, copy) = (wire::FileInfo::from(&a.info()), cluster.folder().join("copy"));
    let (told, packed) = (of_a.clone(), drizzle_proto::convert::packed(a.manifest.hashes()));
    liar.lies(move |answer| {
        (answer.file, answer.signature) = (Some(whole.clone()), Some(told.clone()));
        answer.packed_sha256 = packed.clone().into();
    });
    refused(&two, "B", "its signature is of another file").await;
    fs::write(&copy, &a.bytes).unwrap();
    let by_mine = public(&mine);
    let verify =
        [&["verify", "B"].map(AsRef::as_ref)[..], &[copy.as_ref(), "--trust".as_ref(), by_mine.as_ref()]].concat();
    let run = two.cli::<&std::ffi::OsStr>(verify).await.expect(1);
    assert!(run.stderr.contains("about another file"), "{}", run.stderr);
    liar.lies(|answer| answer.signature = Some(wire::FileSignature { statement: "x".into(), minisign: "y".into() }));
    refused(&two, "A", "its signature is malformed").await;
    liar.lies(|answer| answer.signature = None);
    refused(&two, "A", "it is not signed").await;
    assert_eq!(one.status().await.uploaded_bytes, 0, "not a byte was asked for");
    liar.lies(|_| {});
    two.download("A").await;
}

/// The real tracker keeps what is about the file, and from the peer that registered it first.
#[tokio::test]
async fn the_tracker_keeps_the_signature_of_the_first_registrant_alone() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.peer("one").await, cluster.peer("two").await);
    let (mine, other) = (key(&one, &cluster, "mine").await, key(&one, &cluster, "other").await);
    let a = Content::small_chunks("A", 1, 8);
    share_signed(&one, &a, &mine).await;
    let signed = kept(&cluster, &a).await.unwrap();
    two.download("A").await;
    let run = share(&two, "A", &signed_by(&other)).await.expect(1);
    let detail = run.events[0]["detail"].as_str().unwrap();
    assert!(detail.contains("only the peer that registered a name first signs it"), "{detail}");
    assert_eq!(kept(&cluster, &a).await.unwrap(), signed);

    let mut tracker = cluster.tracker.client();
    let peer = PeerInfo::new(PeerId::from_bytes([7; 16]), "h:1".parse().unwrap(), Labels::default());
    let lease = tracker.register_peer(&peer).await.unwrap().id;
    let b = Content::small_chunks("B", 2, 1);
    let announced = |content: &Content, signature| drizzle_proto::announcement::FileChunks {
        file: content.info(),
        first_hash: 0,
        hashes: content.manifest.hashes().to_vec(),
        held: drizzle_proto::ChunkSet::full(content.manifest.layout().chunk_count()),
        gone: false,
        replace: false,
        signature,
    };
    let outcomes = tracker.register_chunk(lease, &[announced(&a, None)]).await.unwrap();
    assert_eq!(outcomes, [FileOutcome::Registered]);
    let of_another = wire::FileChunks::from(&announced(&b, Some(signed)));
    let request = wire::RegisterChunkRequest { lease_id: lease, files: vec![of_another] };
    let result = cluster.tracker.wire().register_chunk(request).await.unwrap().into_inner().results.remove(0);
    assert_eq!(result.status(), file_result::Status::Invalid);
    assert!(result.detail.contains("signature"), "{}", result.detail);
}

#[tokio::test]
async fn a_peer_that_trusts_a_key_offers_only_what_that_key_signed() {
    let cluster = Cluster::start().await;
    let plain = cluster.peer("plain").await;
    let (mine, other) = (key(&plain, &cluster, "mine").await, key(&plain, &cluster, "other").await);
    let (x, y) = (Content::small_chunks("X", 1, 8), Content::small_chunks("Y", 2, 8));
    let mut one = cluster.peer_with("one", trusting(&mine).file("X", &x.bytes)).await;
    until_untrusted(&one, "X", "it is not signed").await;
    fs::write(one.path("Y"), &y.bytes).unwrap();
    let run = share(&one, "Y", &[]).await.expect(8);
    assert_eq!(run.events[0]["status"], "untrusted", "{run:?}");
    let run = share(&one, "Y", &signed_by(&other)).await.expect(8);
    assert!(run.events[0]["detail"].as_str().unwrap().contains("does not trust"), "{run:?}");
    assert_eq!((cluster.listed().await, one.status().await.shared_files), (vec![], 0));
    share(&one, "Y", &signed_by(&mine)).await.expect(0);
    assert_eq!(cluster.listed().await, [("Y".to_owned(), 1, 0)]);

    one.restart().await;
    cluster.until_held("Y", 1).await;
    until_untrusted(&one, "X", "it is not signed").await;
    assert_eq!(cluster.listed().await, [("Y".to_owned(), 1, 0)]);
    // Nor are its chunks sent to whoever asks for them by their content, in the chunks of a folder or of the others here.
    let status = one.status().await;
    assert_eq!((status.shared_files, status.untrusted_files), (1, 1));
    let as_in_folder = Content::new("X", x.bytes.clone(), 256 << 10);
    assert_eq!(
        (serves(&one, &as_in_folder).await, serves(&one, &x).await, serves(&one, &y).await),
        (false, false, true)
    );

    // Machines that have a file of that name: the registered signature vouches for the very content alone.
    let two = cluster.peer_with("two", trusting(&mine).file("Y", &y.bytes)).await;
    cluster.until_held("Y", 2).await;
    assert_eq!(two.status().await.untrusted_files, 0);
    let three = cluster.peer_with("three", trusting(&mine).file("Y", &x.bytes)).await;
    until_untrusted(&three, "Y", "other content").await;

    // A file that was waited for is offered once it is signed where it was registered.
    plain.share(&x).await;
    share(&plain, "X", &signed_by(&mine)).await.expect(0);
    cluster.until_held("X", 2).await;
    assert_eq!(untrusted(&one).await, []);
    one.cli(["unshare", "Y"]).await.expect(0);
}

#[tokio::test]
async fn a_download_that_began_before_a_key_was_trusted_does_not_go_on() {
    let cluster = Cluster::start().await;
    let a = Content::small_chunks("A", 1, 8);
    let (source, gate) = FakePeer::gated(&cluster.tracker.url(), &a).await;
    let mut two = cluster.peer("two").await;
    let mine = key(&two, &cluster, "mine").await;
    gate.add_permits(3);
    let mut running = two.start_cli(["download", "A"]);
    running.until_stored(3).await;
    two.until_recorded(1).await;
    two.daemon.terminate().await;
    source.forget_requests();
    gate.add_permits(100);

    two.daemon.restart_with([OsString::from("--trust"), public(&mine).into()]).await;
    until("the restarted peer's lease", async || two.status().await.tracker_connected.then_some(())).await;
    let status = two.status().await;
    assert_eq!((status.transfers.len(), status.partial_files), (0, 0), "neither fetched nor offered");
    refused(&two, "A", "it is not signed").await;
    assert_eq!(source.requests(), [0; 0]);
    // Without the key it goes on where it was.
    two.daemon.restart().await;
    let run = two.download("A").await;
    assert!(run.resumed() > 0);
    a.assert_at(&two.path("A"));
}

/// What is wrong with `--trust` is told at once.
#[tokio::test]
async fn a_file_without_a_key_is_told_before_anything_is_bound() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    let mine = key(&peer, &cluster, "mine").await;
    for (path, why) in [(cluster.folder().join("nowhere"), "No such file"), (mine.clone(), "no public key")] {
        let output = Command::new(drizzle_tests::binaries::path("peer-svc"))
            .args(["--tracker", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--dir"])
            .args([cluster.folder().join("another").as_os_str(), "--trust".as_ref(), path.as_os_str()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(text.contains(&format!("--trust {}", path.display())) && text.contains(why), "{text}");
    }
}

/// Runs the real minisign; none if it is not here, which is an error in CI.
fn minisign(args: &[&std::ffi::OsStr]) -> Option<Output> {
    match Command::new("minisign").args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            assert!(env::var_os("CI").is_none(), "minisign is missing: run tests/run");
            skipped("minisign is missing; run tests/run, or install the Debian package of that name");
            None
        }
        Err(error) => panic!("minisign: {error}"),
    }
}

#[tokio::test]
async fn verify_tells_whether_a_local_file_is_the_registered_one_and_minisign_accepts_what_was_signed() {
    let cluster = Cluster::start().await;
    let one = cluster.peer("one").await;
    let (mine, other) = (key(&one, &cluster, "mine").await, key(&one, &cluster, "other").await);
    let (a, b) = (Content::small_chunks("models/a b", 1, 8), Content::small_chunks("B", 2, 8));
    fs::create_dir(one.path("models")).unwrap();
    share_signed(&one, &a, &mine).await;
    one.share(&b).await;
    let copy = cluster.folder().join("copy");
    let verify = async |name: &str, more: &[&std::ffi::OsStr]| {
        one.cli([&["verify".as_ref(), name.as_ref(), copy.as_os_str()], more].concat()).await
    };
    let trust = |key: &Path| [OsString::from("--trust"), public(key).into()];
    let (by_mine, by_other) = (trust(&mine), trust(&other));
    let by_mine = [by_mine[0].as_os_str(), by_mine[1].as_os_str()];
    let by_other = [by_other[0].as_os_str(), by_other[1].as_os_str()];

    verify("B", &[]).await.expect(3);
    fs::write(&copy, &a.bytes).unwrap();
    let run = verify("models/a b", &by_mine).await.expect(0);
    assert_eq!((&run.events[0]["matches"], &run.events[0]["trusted"]), (&true.into(), &true.into()));
    let run = verify("models/a b", &[]).await.expect(0);
    assert!(run.events[0]["trusted"].is_null(), "nobody asked: {:?}", run.events);
    verify("models/a b", &by_other).await.expect(8);
    verify("nothing", &[]).await.expect(3);

    let mut changed = a.bytes.clone();
    changed[20_000] ^= 1;
    fs::write(&copy, &changed).unwrap();
    let run = verify("models/a b", &by_mine).await.expect(4);
    assert_eq!(run.events[0]["wrong_chunks"], serde_json::json!([[1, 1]]));
    assert!(run.stderr.contains("chunks 1 differ"), "{}", run.stderr);
    fs::write(&copy, &a.bytes[1..]).unwrap();
    verify("models/a b", &[]).await.expect(4);
    fs::write(&copy, &b.bytes).unwrap();
    verify("B", &[]).await.expect(0);
    verify("B", &by_mine).await.expect(8);

    fs::write(&copy, &a.bytes).unwrap();
    let exported = cluster.folder().join("statement");
    let export = ["--export-signature".as_ref(), exported.as_os_str()];
    verify("models/a b", &export).await.expect(0);
    verify("models/a b", &export).await.expect(6);
    let text = fs::read_to_string(&exported).unwrap();
    assert!(text.contains("\nname: models/a b\n") && text.contains(&a.manifest.id().to_string()), "{text}");
    let check = |key: &Path| {
        minisign(&["-V".as_ref(), "-m".as_ref(), exported.as_os_str(), "-p".as_ref(), public(key).as_os_str()])
    };
    let Some(output) = check(&mine) else { return };
    assert!(output.status.success(), "{output:?}");
    assert!(!check(&other).unwrap().status.success());
    fs::write(&exported, text.replace("size: ", "size: 1")).unwrap();
    assert!(!check(&mine).unwrap().status.success());

    // And the other way round: a key of minisign's own signs for a peer.
    let (secret, public_half) = (cluster.folder().join("theirs"), cluster.folder().join("theirs.pub"));
    let made = minisign(
        &["-G", "-W", "-s"]
            .map(AsRef::as_ref)
            .into_iter()
            .chain([secret.as_os_str(), "-p".as_ref(), public_half.as_os_str()])
            .collect::<Vec<_>>(),
    );
    assert!(made.unwrap().status.success());
    share(&one, "B", &signed_by(&secret)).await.expect(0);
    let two = cluster.peer_with("two", trusting(&secret)).await;
    two.download("B").await;
}
