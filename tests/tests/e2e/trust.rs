//! Nobody gets in, and each does what it was granted: with real daemons that have certificates.

use std::{fs, sync::Arc};

use ct_codecs::{Base64, Decoder};

use drizzle_proto::{
    Address, FileId, PeerId,
    net::{
        tls::{Certified, Credentials, Meant, Mode, Tls},
        transport::Transport,
    },
    ticket::HEADER,
    wire::{self, RegisterPeerResponse, peer_client::PeerClient, tracker_client::TrackerClient},
};
use drizzle_tests::{
    Cluster, Content, Place, Secured,
    cluster::Options,
    false_cluster::FalseCluster,
    host::Host,
    process::{Ended, Process},
    said, until,
};
use prost::Message;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

/// What `peer-cli files` lists.
async fn listed(peer: &drizzle_tests::Peer) -> Vec<String> {
    let run = peer.cli(["files"]).await.expect(0);
    run.events.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn peers_that_joined_exchange_files_and_come_back_without_their_tokens() {
    let secured = Secured::start(&[]).await;
    let mut one = secured.peer("one", "publisher", &[]).await;
    let two = secured.peer("two", "publisher", &[]).await;
    let mut three = secured.peer("three", "reader", &[]).await;
    let (a, b) = (Content::small_chunks("A", 1, 9), Content::small_chunks("B", 2, 9));
    one.share(&a).await;
    two.share(&b).await;
    for peer in [&one, &two, &three] {
        for content in [&a, &b] {
            peer.download(content.name.as_str()).await;
            assert_eq!(fs::read(peer.path(content.name.as_str())).unwrap(), content.bytes);
        }
    }
    // Each token was for one machine, and is still among the arguments.
    one.restart().await;
    three.restart().await;
    let c = Content::small_chunks("C", 3, 9);
    one.share(&c).await;
    three.download("C").await;
}

#[tokio::test]
async fn a_reader_reads_what_it_was_granted_and_nothing_else() {
    let secured = Secured::start(&[]).await;
    let publisher = secured.peer("publisher", "publisher", &["models/", "other/"]).await;
    let reader = secured.peer("reader", "reader", &["models/"]).await;
    let (model, other) = (Content::small_chunks("models/m", 1, 3), Content::small_chunks("other/o", 2, 3));
    publisher.share(&model).await;
    publisher.share(&other).await;
    reader.download("models/m").await;
    assert_eq!(listed(&reader).await, ["models/m"]);
    let refused = reader.cli(["download", "other/o"]).await.expect(8);
    assert!(
        said(&refused).contains("may not read") && said(&refused).contains("tracker-svc grant"),
        "{}",
        said(&refused)
    );
    // A holder does not give it either, whatever the tracker is asked.
    fs::write(reader.path("mine"), b"mine").unwrap();
    let refused = reader.cli([std::ffi::OsStr::new("share"), reader.path("mine").as_os_str()]).await;
    assert_ne!(refused.code, 0);
    assert!(said(&refused).contains("may not register"), "{}", said(&refused));
    let identity = reader.id().to_string();
    let granted = secured.operator(&["grant", &identity, "--role", "reader", "--prefix", "other/"]).await;
    assert!(granted.contains("reader of models/, reader of other/"), "{granted}");
    // The holder learns of it from the reader's next ticket.
    until("the new right", async || (reader.cli(["download", "other/o"]).await.code == 0).then_some(())).await;
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_in() {
    let secured = Secured::start(&[]).await;
    let holder = secured.peer("holder", "publisher", &[]).await;
    let content = Content::small_chunks("A", 1, 3);
    holder.share(&content).await;
    let logs = secured.cluster.folder().join("logs");
    let plain = Transport::plaintext();
    let at = holder.address().into();
    let channel = plain.connect(&at, Meant::AnyPeer).await.unwrap();
    let mut stranger = drizzle_proto::wire::peer_client::PeerClient::new(channel);
    let request =
        drizzle_proto::wire::FetchChunkRequest { file_id: content.manifest.id().to_string(), ..Default::default() };
    assert!(stranger.fetch_chunk(request).await.is_err(), "a plain connection brings nothing");
    assert!(secured.cluster.tracker.client().list_files(Default::default()).await.is_err());
    let dir = secured.cluster.folder().join("stranger");
    let start = |join: &'static [&'static str]| {
        let mut args: Vec<String> =
            ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--dir"].map(Into::into).into();
        args.push(dir.to_str().unwrap().to_owned());
        args.extend(["--tracker".to_owned(), secured.cluster.tracker.url()]);
        args.extend(join.iter().map(|arg| (*arg).to_owned()));
        args
    };
    for (join, says) in
        [(&["--tls", "auto"][..], "tracker-svc token create"), (&["--join", "drizzle-join-00"], "not a join token")]
    {
        let Ended { code, stderr, .. } = Process::ran("peer-svc", &start(join), &logs).await;
        assert!(code == 1 && stderr.contains(says), "{join:?}: {stderr}");
    }
    let elsewhere = Secured::start(&[]).await;
    let token = elsewhere.token("reader", &[]).await;
    let mut args = start(&[]);
    args.extend(["--join".to_owned(), token]);
    let Ended { code, stderr, .. } = Process::ran("peer-svc", &args, &logs).await;
    assert!(code == 1 && stderr.contains("authority that is trusted"), "another tracker's token: {stderr}");
}

#[tokio::test]
async fn a_daemon_that_others_reach_is_not_started_without_tls_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let (data, folder) = (dir.path().join("data"), dir.path().join("folder"));
    let [data, folder] = [&data, &folder].map(|path| path.to_str().unwrap());
    let peer = ["--tracker", "127.0.0.1:1", "--dir", folder];
    for (program, args) in [
        ("tracker-svc", vec!["--data-dir", data, "--listen", "0.0.0.0:0"]),
        ("peer-svc", [&peer[..], &["--listen", "[::]:0", "--control", "127.0.0.1:0"]].concat()),
        ("peer-svc", [&peer[..], &["--listen", "127.0.0.1:0", "--control", "0.0.0.0:0"]].concat()),
        ("tracker-svc", vec!["--data-dir", data, "--listen", "0.0.0.0:0", "--tls", "off"]),
    ] {
        let args: Vec<_> = args.iter().map(Into::into).collect();
        let mut run = Process::start_by(&["env", "-u", "DRIZZLE_INSECURE"], program, program, &args, dir.path());
        let code = run.ended().await;
        let says = run.stderr();
        assert!(code == 1 && says.contains("--insecure") && says.contains("127.0.0.1"), "{program}: {code} {says}");
    }
    assert!(!dir.path().join("data/access.redb").exists(), "nothing was made");
}

#[tokio::test]
async fn a_copied_state_folder_is_told_apart_and_the_second_hears_what_to_delete() {
    let secured = Secured::start(&[]).await;
    let one = secured.peer("one", "publisher", &[]).await;
    let copy = secured.cluster.folder().join("copy");
    fs::create_dir(&copy).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(one.path(".drizzle")).arg(&copy).status().unwrap();
    assert!(copied.success());
    let second = secured.cluster.peer_with("second", Options::default().dir(&copy)).await;
    assert_eq!(second.id(), one.id());
    let says = until("what to delete", async || {
        let concerns = second.status().await.warnings;
        concerns.into_iter().find(|text| text.contains("delete its state folder"))
    })
    .await;
    assert!(says.contains("--join") && says.contains("copy/.drizzle"), "{says}");
    let content = Content::small_chunks("A", 1, 3);
    one.share(&content).await;
}

#[tokio::test]
async fn files_of_another_authority_do_as_well_and_are_read_again_when_they_change() {
    use drizzle_proto::{
        PeerId,
        net::tls::{Certified, authority::Authority},
    };
    use std::time::{Duration, SystemTime};
    let dir = tempfile::tempdir().unwrap();
    let (root, key) = Authority::generate(SystemTime::now()).unwrap();
    let authority = Authority::from_pem(&root, &key).unwrap();
    let issue = |name: &str, bearer: Certified, life: u64| {
        let life = Duration::from_secs(life);
        let (key, chain) = authority.issue(bearer, &[], SystemTime::now(), life).unwrap();
        let (shown, root) = chain.to_pem().unwrap();
        let paths = ["cert", "key", "ca"].map(|part| dir.path().join(format!("{name}-{part}.pem")));
        for (path, content) in paths.iter().zip([shown, key.to_pem(), root]) {
            fs::write(path, content).unwrap();
        }
        let paths = paths.map(|path| path.to_str().unwrap().to_owned());
        let options = ["--tls-cert", "--tls-key", "--tls-ca"];
        options.into_iter().map(str::to_owned).zip(paths).flat_map(|(option, path)| [option, path]).collect::<Vec<_>>()
    };
    let tracker = issue("tracker", Certified::Tracker, 3600);
    let cluster = Cluster::with_tracker_args(tracker.into_iter().chain(["--lease".into(), "2s".into()])).await;
    let secured = Secured { cluster };
    secured.operator(&["grant", "any", "--role", "publisher"]).await;
    let [one, two] = [1, 2].map(|n| PeerId::from_bytes([n; 16]));
    let first = issue("one", Certified::Peer(one), 3600);
    let one_peer = secured.cluster.peer_with("one", Options::default().args(first)).await;
    assert_eq!(one_peer.id(), one, "the id is the certificate's");
    let second = issue("two", Certified::Peer(two), 3600);
    let two_peer = secured.cluster.peer_with("two", Options::default().args(second)).await;
    until("leases", async || {
        let both = one_peer.status().await.tracker_connected && two_peer.status().await.tracker_connected;
        both.then_some(())
    })
    .await;
    let content = Content::small_chunks("A", 1, 3);
    one_peer.share(&content).await;
    two_peer.download("A").await;
    issue("two", Certified::Peer(two), 7200);
    until("the new certificate", async || two_peer.daemon.process.stderr().contains("was replaced").then_some(()))
        .await;
    let other = issue("two", Certified::Peer(one), 7200);
    until("the refusal of another identity", async || {
        two_peer.daemon.process.stderr().contains("names another identity").then_some(())
    })
    .await;
    let dir = secured.cluster.folder().join("two");
    let mut args: Vec<String> = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--dir"].map(Into::into).into();
    args.extend([dir.to_str().unwrap().to_owned(), "--tracker".to_owned(), secured.cluster.tracker.url()]);
    drop(two_peer);
    args.extend(other);
    let Ended { code, stderr, .. } = Process::ran("peer-svc", &args, secured.cluster.folder()).await;
    assert!(code == 1 && stderr.contains("the certificate is for"), "{stderr}");
}

#[tokio::test]
async fn a_daemon_takes_commands_over_the_network_from_admins_alone() {
    let Some(host) = Host::new(&["127.0.0.1 tr"]) else { return };
    let place = Place::new();
    let _tracker = place.tracker(&host, &["--tls", "auto", "--lease", "2s"]).await;
    let data = place.path("tracker");
    let operator = async |command: &[&str]| {
        let Ended { code, stdout, stderr } =
            Process::ran("tracker-svc", &[&["--data-dir", &data], command].concat(), &place.logs()).await;
        assert_eq!(code, 0, "{stderr}");
        stdout.trim().to_owned()
    };
    let token = operator(&["token", "create", "--uses", "3", "--role", "publisher"]).await;
    let joins = ["--tracker", "tr:7400", "--control", "0.0.0.0:7402", "--join", &token];
    let _peer = place.peer(&host, "one", &joins).await;
    let me = place.path("me");
    let run = async |program: &str, args: &[&str]| {
        let mut run = host.start(program, args, &place.logs());
        let code = run.ended().await;
        (code, format!("{}{}", run.stdout(), run.stderr()))
    };
    let (code, said) = run("peer-cli", &["join", "--tracker", "tr:7400", "--to", &me, &token]).await;
    assert_eq!(code, 0, "{said}");
    let id = said.split(' ').nth(2).unwrap().trim_end_matches(';').to_owned();
    let [cert, key, ca] = ["cert", "key", "ca"].map(|part| format!("{me}/{part}.pem"));
    let shows = ["--peer", "tr:7402", "--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca, "status"];
    let (code, said) = run("peer-cli", &shows).await;
    assert!(code == 8 && said.contains("is no admin") && said.contains("tracker-svc grant"), "{code}: {said}");
    let (code, said) = run("peer-cli", &["--peer", "tr:7402", "status"]).await;
    assert!(code != 0 && said.contains("TLS only"), "without a certificate: {code}: {said}");
    operator(&["grant", &id, "--role", "admin"]).await;
    until("the right", async || (run("peer-cli", &shows).await.0 == 0).then_some(())).await;
    // Whether it is well it tells whoever believes its authority.
    let root = place.path("one/.drizzle/tls/ca.pem");
    let (code, said) = run("peer-svc", &["healthcheck", "--address", "tr:7402", "--tls-ca", &root]).await;
    assert_eq!(code, 0, "{said}");
}

#[tokio::test]
async fn peers_wait_for_a_token_that_the_tracker_puts_into_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let file = file.to_str().unwrap();
    let mut secured = Secured::start(&["--join-file", file]).await;
    let token = fs::read_to_string(file).unwrap();
    fs::remove_file(file).unwrap();
    let late = async {
        let options = Options::default().args(["--tls", "auto", "--join-file", file]);
        secured.cluster.peer_with("late", options).await
    };
    let puts = async {
        let waits = || {
            fs::read_dir(secured.cluster.folder().join("logs")).unwrap().any(|log| {
                fs::read_to_string(log.unwrap().path()).is_ok_and(|text| text.contains("waiting for a join token"))
            })
        };
        until("a peer that waits", async || waits().then_some(())).await;
        fs::write(file, &token).unwrap();
    };
    let (peer, ()) = tokio::join!(late, puts);
    until("a lease", async || peer.status().await.tracker_connected.then_some(())).await;
    secured.cluster.tracker.daemon.restart().await;
    assert_eq!(fs::read_to_string(file).unwrap(), token, "it is good still");
}

/// The base for Kubernetes needs no other command than the one that applies it.
#[tokio::test]
async fn a_tracker_in_a_pod_puts_a_token_into_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = FalseCluster::start(folder.path()).await;
    cluster.forbids(true);
    let (host, port) = (cluster.address.ip().to_string(), cluster.address.port().to_string());
    let mut args = vec!["--join-secret", "drizzle-join", "--service-account", cluster.account.to_str().unwrap()];
    args.extend(["--cluster-host", &host, "--cluster-port", &port]);
    let mut secured = Secured::start(&args).await;
    // A cluster that refuses stops nothing, and is asked again.
    until("the refusal in the log", async || {
        secured.cluster.tracker.daemon.process.stderr().contains("the account may not get it").then_some(())
    })
    .await;
    cluster.forbids(false);
    let token = async |known: Option<&str>| {
        until("a token", async || {
            let secret = cluster.secret("drizzle-join")?;
            let token = String::from_utf8(Base64::decode_to_vec(secret["data"]["token"].as_str()?, None).ok()?).ok()?;
            (known != Some(&*token)).then_some(token)
        })
        .await
    };
    let first = token(None).await;
    let joins = Options::default().args(["--join", first.trim()]);
    let peer = secured.cluster.peer_with("one", joins).await;
    until("a lease", async || peer.status().await.tracker_connected.then_some(())).await;
    let tokens = secured.operator(&["token", "list"]).await;
    secured.cluster.tracker.daemon.restart().await;
    until("the tracker's look", async || peer.status().await.tracker_connected.then_some(())).await;
    assert_eq!(token(None).await, first, "it is good still");
    assert_eq!(secured.operator(&["token", "list"]).await, tokens, "those that nobody got are not kept");
    // Deleted: there is another one after the next start.
    cluster.forbids(false);
    secured.cluster.tracker.daemon.restart().await;
    token(Some(&first)).await;
}

#[tokio::test]
async fn a_token_for_a_secret_is_refused_where_there_is_no_cluster() {
    let cluster = Cluster::start().await;
    let data = cluster.folder().join("elsewhere").to_str().unwrap().to_owned();
    let args = ["--data-dir", &data, "--listen", "127.0.0.1:0", "--tls", "auto", "--join-secret", "drizzle-join"];
    let Ended { code, stderr, .. } = Process::ran("tracker-svc", &args, &cluster.folder().join("logs")).await;
    assert!(code == 1 && stderr.contains("does not run in a pod of Kubernetes"), "{code}: {stderr}");
}

/// An identity of its own, as `peer-cli join` gets it, and connections that are secured by it.
struct Member {
    id: PeerId,
    transport: Transport,
}

impl Member {
    async fn new(secured: &Secured, name: &str, scopes: &[&str]) -> Self {
        let token = secured.token("reader", scopes).await;
        let folder = secured.cluster.folder().join(name);
        let tracker = secured.cluster.tracker.url();
        let args = ["join", "--tracker", &tracker, "--to", folder.to_str().unwrap(), &token];
        let Ended { code, stderr, .. } = Process::ran("peer-cli", &args, &secured.cluster.folder().join("logs")).await;
        assert_eq!(code, 0, "{stderr}");
        let [cert, key, ca] = ["cert", "key", "ca"].map(|part| fs::read(folder.join(format!("{part}.pem"))).unwrap());
        let credentials = Credentials::from_pem(&cert, &key, &ca, ["cert", "key", "ca"]).unwrap();
        let id = credentials.says().and_then(Certified::peer).unwrap();
        Self { id, transport: Transport::secured(Arc::new(Tls::new(&credentials, Mode::Required).unwrap())) }
    }

    async fn tracker(&self, secured: &Secured) -> TrackerClient<Channel> {
        let tracker = Address::from_url(&secured.cluster.tracker.url()).unwrap();
        TrackerClient::new(self.transport.connect(&tracker, Meant::Tracker).await.unwrap())
    }

    /// Registers as a peer that listens nowhere.
    async fn registered(&self, secured: &Secured) -> RegisterPeerResponse {
        let (peer_id, address) = (self.id.to_string(), "127.0.0.1:9".to_owned());
        let request = wire::RegisterPeerRequest { peer_id, address, ..Default::default() };
        self.tracker(secured).await.register_peer(request).await.unwrap().into_inner()
    }

    /// Whether a holder gives the first chunk of a file for a ticket.
    async fn fetches(&self, holder: &drizzle_tests::Peer, file: FileId, ticket: Option<&[u8]>) -> Result<(), Status> {
        let address = holder.address().to_string().parse().unwrap();
        let mut client = PeerClient::new(self.transport.connect(&address, Meant::AnyPeer).await.unwrap());
        let message = wire::FetchChunkRequest { file_id: file.to_string(), ..Default::default() };
        let mut request = Request::new(message);
        if let Some(ticket) = ticket {
            request.metadata_mut().insert_bin(HEADER, MetadataValue::from_bytes(ticket));
        }
        let mut chunk = client.fetch_chunk(request).await?.into_inner();
        while chunk.message().await?.is_some() {}
        Ok(())
    }
}

#[tokio::test]
async fn tickets_and_leases_of_others_are_of_no_use_to_whoever_stole_them() {
    let secured = Secured::start(&[]).await;
    let source = secured.peer("source", "publisher", &[]).await;
    let content = Content::small_chunks("models/a", 1, 3);
    source.share(&content).await;
    let file = content.manifest.id();
    let reader = Member::new(&secured, "reader", &["models/"]).await;
    let thief = Member::new(&secured, "thief", &["other/"]).await;
    let (lease, own) = (reader.registered(&secured).await, thief.registered(&secured).await);
    let [ticket, own_ticket] = [lease.ticket.unwrap(), own.ticket.unwrap()];
    let stolen = ticket.encode_to_vec();
    // Holders hear of what the tracker grants with their next renewal at the latest.
    reader.fetches(&source, file, Some(&stolen)).await.unwrap();

    let refused = async |ticket: Option<&[u8]>, code: Code, why: &str| {
        let status = thief.fetches(&source, file, ticket).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(why), "{why}: {status:?}");
    };
    refused(Some(&stolen), Code::Unauthenticated, "another peer's").await;
    refused(None, Code::Unauthenticated, "a ticket from the tracker is needed").await;
    refused(Some(b"?"), Code::Unauthenticated, "malformed").await;
    refused(Some(&own_ticket.encode_to_vec()), Code::PermissionDenied, "may not read this file").await;
    // With the other's name in it, or its scopes, it is not the one that was signed.
    let forged = wire::Ticket { signature: own_ticket.signature.clone(), ..ticket };
    refused(Some(&forged.encode_to_vec()), Code::Unauthenticated, "not signed by this swarm's tracker").await;

    let mut tracker = thief.tracker(&secured).await;
    let lease_id = lease.lease_id;
    let not_its = |what: &str, status: Option<Status>| {
        let status = status.unwrap_or_else(|| panic!("{what} was done"));
        assert!(status.code() == Code::PermissionDenied && status.message().contains("not this peer's"), "{status:?}");
    };
    let renewal = wire::RenewLeaseRequest { lease_id, wants_ticket: true, ..Default::default() };
    not_its("a renewal", tracker.renew_lease(renewal).await.err());
    not_its("a departure", tracker.leave(wire::LeaveRequest { lease_id }).await.err());
    let announcement = wire::RegisterChunkRequest { lease_id, files: Vec::new() };
    not_its("an announcement", tracker.register_chunk(announcement).await.err());
    let withdrawal = wire::WithdrawFileRequest { lease_id, name: "models/a".into() };
    not_its("a withdrawal", tracker.withdraw_file(withdrawal).await.err());
    // And nothing of it disturbed whoever they belong to.
    reader.fetches(&source, file, Some(&stolen)).await.unwrap();
}
