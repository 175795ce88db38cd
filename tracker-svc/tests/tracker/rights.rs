//! Who gets in, and what it may do: over real sockets, with the tracker's own authority.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use drizzle_proto::{
    Address, PeerId, PeerInfo,
    announcement::FileOutcome,
    client::{ClientError, KnownRights, TrackerClient, enrol},
    net::{
        tls::{
            Mode, Tls,
            enrol::{Key, credentials},
            options::Choice,
        },
        transport::Transport,
    },
    ticket::Ticket,
    token::Token,
    wire::{self, rights_client::RightsClient},
};
use prost::Message;
use tokio_stream::StreamExt;
use tonic::{Code, transport::Channel};
use tracker_svc::{Config, Tracker, Trust, bind};

use crate::common::{self, LIMIT, LONG, all, client, manifest, name};

fn config(directory: &Path, life: Duration) -> Config {
    let tls = Choice::Auto(Mode::Required);
    let audit_log = Some(directory.join("audit.jsonl"));
    let trust = Trust { tls, certificate_life: life, audit_log, ..Trust::everybody() };
    Config { trust, ..common::config(directory, LONG) }
}

async fn start(directory: &Path) -> Tracker {
    bind(config(directory, Duration::from_secs(3600))).await.unwrap()
}

/// The operator of the tracker with this data folder.
async fn operator(directory: &Path) -> RightsClient<Channel> {
    RightsClient::new(Transport::plaintext().connect_local(directory.join("operator/socket")).await.unwrap())
}

fn grant(role: &str, scope: &str) -> wire::RightsGrant {
    wire::RightsGrant { role: role.to_owned(), scope: scope.to_owned() }
}

async fn token(directory: &Path, uses: u32, life_seconds: u64, grants: Vec<wire::RightsGrant>) -> Token {
    let request = wire::CreateTokenRequest { life_seconds, uses, grants };
    operator(directory).await.create_token(request).await.unwrap().into_inner().token.parse().unwrap()
}

/// A machine that may join.
struct Machine {
    id: PeerId,
    key: Key,
}

impl Machine {
    fn new(number: u8) -> Self {
        Self { id: PeerId::from_bytes([number; 16]), key: Key::generate().unwrap() }
    }

    /// Joins, or is certified anew.
    async fn join(&self, tracker: &Tracker, token: Option<&Token>, pin: [u8; 32]) -> Result<Transport, ClientError> {
        let pinned = Transport::secured(Arc::new(Tls::pinned(pin).unwrap()));
        let chain = enrol(&pinned, &tracker.address().into(), self.id, &self.key, token).await?;
        let tls = Tls::new(&credentials(&self.key, &chain).unwrap(), Mode::Required).unwrap();
        Ok(Transport::secured(Arc::new(tls)))
    }
}

struct Member {
    id: PeerId,
    tracker: TrackerClient,
    lease: u64,
}

/// A peer of this number that joined with a token for these rights, and holds a lease.
async fn member(tracker: &Tracker, directory: &Path, number: u8, grants: Vec<wire::RightsGrant>) -> Member {
    let (machine, token) = (Machine::new(number), token(directory, 1, 60, grants).await);
    let transport = machine.join(tracker, Some(&token), token.authority).await.unwrap();
    let mut client = TrackerClient::new(&transport, &tracker.address().into()).unwrap();
    let lease = client.register_peer(&info(machine.id)).await.unwrap();
    Member { id: machine.id, tracker: client, lease: lease.id }
}

fn info(id: PeerId) -> PeerInfo {
    PeerInfo::new(id, Address::new("10.0.0.1:7401").unwrap(), Default::default())
}

impl Member {
    async fn announce(&mut self, text: &str) -> FileOutcome {
        let entry = all(text, &manifest(1, 2));
        self.tracker.register_chunk(self.lease, &[entry]).await.unwrap().remove(0)
    }

    async fn sees(&mut self) -> Vec<String> {
        let (files, more) = self.tracker.list_files(wire::ListFilesRequest::default()).await.unwrap();
        assert_eq!(more, None);
        files.into_iter().map(|file| file.file.name.to_string()).collect()
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (Code, String) {
    let error = result.unwrap_err();
    (error.code(), error.to_string())
}

#[tokio::test]
async fn a_token_lets_in_as_many_as_it_says_and_nobody_gets_in_without() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let join = token(dir.path(), 1, 60, vec![grant("reader", "*")]).await;
    let (one, other) = (Machine::new(1), Machine::new(2));
    let refused = |result: Result<Transport, ClientError>| code(result.map(|_| ()));
    assert_eq!(refused(one.join(&tracker, None, join.authority).await).0, Code::Unauthenticated);
    let forged = Token::generate(join.authority).unwrap();
    let (refusal, text) = refused(one.join(&tracker, Some(&forged), join.authority).await);
    assert!(refusal == Code::Unauthenticated && text.contains("not known"), "{text}");
    assert!(refused(one.join(&tracker, Some(&join), [0; 32]).await).1.contains("authority"), "another tracker's pin");
    one.join(&tracker, Some(&join), join.authority).await.unwrap();
    let (_, text) = refused(other.join(&tracker, Some(&join), join.authority).await);
    assert!(text.contains("used as often"), "{text}");
    one.join(&tracker, None, join.authority).await.expect("the key is known");
    let thief = Machine { id: one.id, key: Key::generate().unwrap() };
    let fresh = token(dir.path(), 1, 60, vec![grant("reader", "*")]).await;
    let (refusal, text) = refused(thief.join(&tracker, Some(&fresh), fresh.authority).await);
    assert!(refusal == Code::PermissionDenied && text.contains("Delete the state folder"), "{text}");
    let log = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    for part in ["\"event\":\"token create\"", "\"event\":\"enrol\"", "\"event\":\"refused\"", "\"from\":\"127.0.0.1\""]
    {
        assert!(log.contains(part), "{part} in {log}");
    }
    assert!(!log.contains(&join.to_string()), "a token is a secret");
}

#[tokio::test]
async fn whoever_shows_no_certificate_may_do_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let pin = token(dir.path(), 1, 60, vec![]).await.authority;
    let stranger = Transport::secured(Arc::new(Tls::pinned(pin).unwrap()));
    let mut stranger = TrackerClient::new(&stranger, &tracker.address().into()).unwrap();
    let mut plain = client(&tracker);
    for client in [&mut stranger, &mut plain] {
        let request = wire::ListFilesRequest::default();
        let refusals = [
            code(client.list_files(request).await),
            code(client.register_peer(&info(PeerId::from_bytes([1; 16]))).await),
            code(client.holders(&name("a")).await),
            code(client.watch_file(&name("a"), None).await.map(|_| ())),
            code(client.register_chunk(1, &[]).await),
            code(client.withdraw_file(1, &name("a")).await),
            code(client.renew_lease(1, KnownRights::default()).await),
            code(client.leave(1).await),
        ];
        for (refusal, text) in refusals {
            assert!(matches!(refusal, Code::Unauthenticated | Code::PermissionDenied), "{refusal}: {text}");
        }
    }
}

#[tokio::test]
async fn each_sees_and_does_what_it_was_granted() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut publisher = member(&tracker, dir.path(), 1, vec![grant("publisher", "models/")]).await;
    let mut reader = member(&tracker, dir.path(), 2, vec![grant("reader", "models/")]).await;
    let mut other = member(&tracker, dir.path(), 3, vec![grant("publisher", "other/")]).await;
    assert_eq!(publisher.announce("models/a").await, FileOutcome::Registered);
    assert_eq!(other.announce("other/b").await, FileOutcome::Registered);
    assert!(matches!(publisher.announce("other/c").await, FileOutcome::Invalid(_)));
    assert!(matches!(reader.announce("models/new").await, FileOutcome::Invalid(_)), "a reader registers nothing");
    assert_eq!(reader.announce("models/a").await, FileOutcome::Registered, "but holds what it reads");
    assert_eq!(publisher.sees().await, ["models/a"]);
    assert_eq!(reader.sees().await, ["models/a"]);
    assert_eq!(other.sees().await, ["other/b"]);
    reader.tracker.holders(&name("models/a")).await.unwrap();
    let (refusal, text) = code(other.tracker.holders(&name("models/a")).await);
    assert!(refusal == Code::PermissionDenied && text.contains("tracker-svc grant"), "{text}");
    assert_eq!(code(other.tracker.holders(&name("models/none")).await).0, Code::PermissionDenied, "told alike");
    assert_eq!(code(other.tracker.watch_file(&name("models/a"), None).await.map(|_| ())).0, Code::PermissionDenied);
    assert!(!reader.tracker.withdraw_file(reader.lease, &name("models/a")).await.unwrap(), "it lets go, no more");
    assert!(publisher.tracker.withdraw_file(publisher.lease, &name("models/a")).await.unwrap());
}

#[tokio::test]
async fn nobody_speaks_for_another_peer() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut one = member(&tracker, dir.path(), 1, vec![grant("publisher", "*")]).await;
    let mut other = member(&tracker, dir.path(), 2, vec![grant("publisher", "*")]).await;
    let (refusal, text) = code(other.tracker.register_peer(&info(one.id)).await);
    assert!(refusal == Code::PermissionDenied && text.contains("certificate is for"), "{text}");
    for refusal in [
        code(other.tracker.renew_lease(one.lease, KnownRights::default()).await),
        code(other.tracker.register_chunk(one.lease, &[]).await),
        code(other.tracker.withdraw_file(one.lease, &name("a")).await),
        code(other.tracker.leave(one.lease).await),
    ] {
        assert_eq!(refusal.0, Code::PermissionDenied, "{}", refusal.1);
    }
    one.tracker.renew_lease(one.lease, KnownRights::default()).await.unwrap();
}

#[tokio::test]
async fn tickets_say_what_may_be_read_and_outlive_a_restart_of_the_tracker() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut reader = member(&tracker, dir.path(), 1, vec![grant("reader", "models/")]).await;
    let known = KnownRights { access_version: 0, wants_ticket: true };
    let rights = reader.tracker.renew_lease(reader.lease, known).await.unwrap().rights;
    let (ticket, access) = (rights.ticket.unwrap().encode_to_vec(), rights.access.unwrap());
    assert!(access.enforced);
    let check = |keys: &[[u8; 32]]| Ticket::check(&ticket, reader.id, keys, SystemTime::now());
    assert!(check(&access.ticket_keys).unwrap().covers(&name("models/a")));
    assert!(!check(&access.ticket_keys).unwrap().covers(&name("other")));
    let known = KnownRights { access_version: access.version, wants_ticket: false };
    assert_eq!(reader.tracker.renew_lease(reader.lease, known).await.unwrap().rights, Default::default(), "known");
    tracker.shutdown().await;
    let tracker = start(dir.path()).await;
    let other = member(&tracker, dir.path(), 2, vec![grant("reader", "*")]).await;
    let keys = {
        let mut client = other.tracker.clone();
        client.renew_lease(other.lease, KnownRights::default()).await.unwrap().rights.access.unwrap().ticket_keys
    };
    check(&keys).expect("signed before the restart");
}

#[tokio::test]
async fn what_is_revoked_or_stopped_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tracker = start(dir.path()).await;
    let mut publisher = member(&tracker, dir.path(), 1, vec![grant("publisher", "*")]).await;
    let mut reader = member(&tracker, dir.path(), 2, vec![grant("reader", "*")]).await;
    publisher.announce("models/a").await;
    publisher.announce("b").await;
    let mut watches = Vec::new();
    for (member, text) in [(&mut publisher, "models/a"), (&mut reader, "b")] {
        let mut watch = member.tracker.watch_file(&name(text), None).await.unwrap();
        watch.next().await.unwrap().unwrap();
        watches.push(watch);
    }
    let mut operator = operator(dir.path()).await;
    operator.stop(wire::StopRequest { scope: "models/".to_owned() }).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, watches[0].next()).await.unwrap().unwrap();
    assert!(code(ended).1.contains("stopped"));
    assert!(code(reader.tracker.holders(&name("models/a")).await).1.contains("stopped"));
    reader.tracker.holders(&name("b")).await.unwrap();
    operator.resume(wire::ResumeRequest { scope: "models/".to_owned() }).await.unwrap();
    reader.tracker.holders(&name("models/a")).await.unwrap();
    let unknown = operator.resume(wire::ResumeRequest { scope: "models/".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    operator.revoke(wire::RevokeRequest { identity: reader.id.to_string() }).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, watches[1].next()).await.unwrap().unwrap();
    assert!(code(ended).1.contains("revoked"));
    assert!(code(reader.tracker.renew_lease(reader.lease, KnownRights::default()).await).1.contains("revoked"));
    let told = publisher.tracker.renew_lease(publisher.lease, KnownRights::default()).await.unwrap().rights;
    assert_eq!(told.access.unwrap().revoked, [reader.id].into());
    tracker.shutdown().await;
    let tracker = start(dir.path()).await;
    let mut still = TrackerClient::new(&Transport::plaintext(), &tracker.address().into()).unwrap();
    assert!(still.leave(1).await.is_err());
}
