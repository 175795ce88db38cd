//! Two ends over real sockets.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{Certified, Credentials, Meant, Mode, Tls, authority::Authority, enrol};
use crate::{
    Address, PeerId,
    net::{
        caller::Caller,
        guard::IN_TIME,
        health,
        transport::{Strangers, Transport},
    },
};

const HOLDER: PeerId = PeerId::from_bytes([1; 16]);
const OTHER: PeerId = PeerId::from_bytes([2; 16]);
const HOUR: Duration = Duration::from_secs(3600);

fn authority() -> Authority {
    let (certificate, key) = Authority::generate(SystemTime::now()).unwrap();
    Authority::from_pem(&certificate, &key).unwrap()
}

fn credentials(authority: &Authority, bearer: Certified, from: SystemTime, life: Duration) -> Credentials {
    let (key, chain) = authority.issue(bearer, &["localhost".to_owned()], from, life).unwrap();
    enrol::credentials(&key, &chain).unwrap()
}

fn transport(authority: &Authority, bearer: Certified, mode: Mode) -> Transport {
    let credentials = credentials(authority, bearer, SystemTime::now(), HOUR);
    Transport::secured(Arc::new(Tls::new(&credentials, mode).unwrap()))
}

/// A server with a health service, and where it is. It serves until the sender is dropped.
async fn serving(transport: &Transport, strangers: Strangers) -> (Address, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let incoming = transport.incoming(listener, strangers, CancellationToken::new());
    let (until, ended) = oneshot::channel::<()>();
    let (_, health) = tonic_health::server::health_reporter();
    let server = transport.server().add_service(health);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, async {
        let _ = ended.await;
    }));
    (address, until)
}

async fn ask(transport: &Transport, address: &Address, meant: Meant) -> Result<(), String> {
    health::check(transport, address, meant).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let authority = authority();
    let holder = transport(&authority, Certified::Peer(HOLDER), Mode::Required);
    let other = transport(&authority, Certified::Peer(OTHER), Mode::Required);
    let (address, _until) = serving(&holder, Strangers::Refused).await;
    ask(&other, &address, Meant::Peer(HOLDER)).await.unwrap();
    ask(&other, &address, Meant::AnyPeer).await.unwrap();
    let mistaken = ask(&other, &address, Meant::Peer(OTHER)).await.unwrap_err();
    assert!(mistaken.contains(&format!("spiffe://drizzle/peer/{HOLDER}, not the peer {OTHER}")), "{mistaken}");
    let mistaken = ask(&other, &address, Meant::Tracker).await.unwrap_err();
    assert!(mistaken.contains("not a tracker"), "a peer's certificate is for no tracker: {mistaken}");
    let tracker = transport(&authority, Certified::Tracker, Mode::Required);
    let (address, _until) = serving(&tracker, Strangers::Heard).await;
    ask(&other, &address, Meant::Tracker).await.unwrap();
    ask(&other, &address, Meant::Peer(HOLDER)).await.unwrap_err();
}

#[tokio::test]
async fn strangers_get_in_nowhere_but_where_identities_are_had() {
    let (ours, theirs) = (authority(), authority());
    let holder = transport(&ours, Certified::Peer(HOLDER), Mode::Required);
    let tracker = transport(&ours, Certified::Tracker, Mode::Required);
    let (peer_at, _peer) = serving(&holder, Strangers::Refused).await;
    let (tracker_at, _tracker) = serving(&tracker, Strangers::Heard).await;
    let foreign = transport(&theirs, Certified::Peer(OTHER), Mode::Required);
    for (at, meant) in [(&peer_at, Meant::AnyPeer), (&tracker_at, Meant::Tracker)] {
        let refused = ask(&foreign, at, meant).await.unwrap_err();
        assert!(refused.contains("authority"), "they do not trust ours: {refused}");
        let plain = ask(&Transport::plaintext(), at, meant).await.unwrap_err();
        assert!(plain.contains("TLS only"), "{plain}");
    }
    // One that believes everything, and shows nothing.
    let pinned = Transport::secured(Arc::new(Tls::pinned(ours.fingerprint()).unwrap()));
    ask(&pinned, &peer_at, Meant::AnyPeer).await.unwrap_err();
    ask(&pinned, &tracker_at, Meant::Tracker).await.unwrap();
    let elsewhere = Transport::secured(Arc::new(Tls::pinned(theirs.fingerprint()).unwrap()));
    ask(&elsewhere, &tracker_at, Meant::Tracker).await.unwrap_err();
}

#[tokio::test]
async fn what_ran_out_is_not_believed_and_what_replaces_it_is() {
    let (authority, now) = (authority(), SystemTime::now());
    let old = credentials(&authority, Certified::Peer(HOLDER), now - 2 * HOUR, HOUR);
    let tls = Arc::new(Tls::new(&old, Mode::Required).unwrap());
    let holder = Transport::secured(tls.clone());
    let other = transport(&authority, Certified::Peer(OTHER), Mode::Required);
    let (address, _until) = serving(&holder, Strangers::Refused).await;
    let refused = ask(&other, &address, Meant::Peer(HOLDER)).await.unwrap_err();
    assert!(refused.contains("has run out"), "{refused}");
    tls.replace(&credentials(&authority, Certified::Peer(HOLDER), now, HOUR)).unwrap();
    ask(&other, &address, Meant::Peer(HOLDER)).await.unwrap();
}

#[tokio::test]
async fn while_a_fleet_moves_both_kinds_meet() {
    let authority = authority();
    let prefers = transport(&authority, Certified::Peer(HOLDER), Mode::Preferred);
    let plain = Transport::plaintext();
    let (new, _new) = serving(&prefers, Strangers::Refused).await;
    let (old, _old) = serving(&plain, Strangers::Refused).await;
    for (from, to) in [(&prefers, &old), (&plain, &new), (&prefers, &new)] {
        ask(from, to, Meant::Peer(HOLDER)).await.unwrap();
    }
    // But not where another one answers than was meant.
    ask(&prefers, &new, Meant::Peer(OTHER)).await.unwrap_err();
    let required = transport(&authority, Certified::Peer(OTHER), Mode::Required);
    ask(&required, &new, Meant::Peer(HOLDER)).await.unwrap();
    let refused = ask(&required, &old, Meant::Peer(HOLDER)).await.unwrap_err();
    assert!(refused.contains("does not speak TLS"), "{refused}");
}

#[tokio::test]
async fn requests_bear_what_the_connection_proved() {
    let authority = authority();
    let holder = transport(&authority, Certified::Peer(HOLDER), Mode::Preferred);
    let other = transport(&authority, Certified::Peer(OTHER), Mode::Required);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = listener.local_addr().unwrap().into();
    let mut incoming = holder.incoming(listener, Strangers::Heard, CancellationToken::new());
    for (transport, is) in [(other, Caller::Certified(Certified::Peer(OTHER))), (Transport::plaintext(), Caller::Plain)]
    {
        let to = address.clone();
        let client = tokio::spawn(async move { transport.connect(&to, Meant::Peer(HOLDER)).await.map(|_| ()) });
        let mut connection = incoming.next().await.unwrap().unwrap();
        let accepted = connection.connect_info();
        assert_eq!(accepted.caller(), Caller::Unknown, "nothing is proved yet");
        let mut preface = [0; 3];
        connection.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI");
        assert_eq!(accepted.caller(), is);
        assert!(accepted.source().unwrap().is_loopback());
        client.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_drips_is_gone_in_time() {
    let authority = authority();
    let holder = transport(&authority, Certified::Peer(HOLDER), Mode::Required);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = holder.incoming(listener, Strangers::Refused, CancellationToken::new());
    for first in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(first).await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        let begun = tokio::time::Instant::now();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        assert!(begun.elapsed() >= IN_TIME && begun.elapsed() < 2 * IN_TIME);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_drips_instead_of_speaking_http2_is_gone_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = Transport::plaintext().incoming(listener, Strangers::Refused, CancellationToken::new());
    for first in [&b"P"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(first).await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        let begun = tokio::time::Instant::now();
        connection.read_exact(&mut vec![0; first.len()]).await.unwrap();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        assert!(begun.elapsed() < 2 * IN_TIME);
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&[0; 33]).await.unwrap();
    let mut connection = incoming.next().await.unwrap().unwrap();
    connection.read_exact(&mut [0; 33]).await.unwrap();
    tokio::time::advance(2 * IN_TIME).await;
    client.write_all(&[7]).await.unwrap();
    assert_eq!(connection.read_u8().await.unwrap(), 7, "whoever has begun may be silent");
}

#[tokio::test]
async fn the_certificates_of_an_authority_certify_nobody() {
    let authority = authority();
    let now = SystemTime::now();
    let (key, chain) = authority.issue(Certified::Peer(OTHER), &[], now, HOUR).unwrap();
    // A peer that plays authority with its own certificate.
    let Ok(false_authority) = Authority::from_pem(&enrol::pem(&chain.0[0]), &key.to_pem()) else { return };
    let (key, mut forged) = false_authority.issue(Certified::Tracker, &[], now, HOUR).unwrap();
    forged.0.push(chain.0[1].clone());
    let tls = Tls::new(&enrol::credentials(&key, &forged).unwrap(), Mode::Required).unwrap();
    let (address, _until) = serving(&Transport::secured(Arc::new(tls)), Strangers::Heard).await;
    let other = transport(&authority, Certified::Peer(OTHER), Mode::Required);
    ask(&other, &address, Meant::Tracker).await.unwrap_err();
}
