//! Listeners that fail under a running daemon.

use drizzle_proto::{
    Address,
    net::{health, tls::Meant, transport::Transport},
};
use drizzle_tests::{Cluster, cluster::Daemon, process::break_listener, until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::TcpStream;

/// Breaks one of its listeners and reads how it ends.
async fn ends_when_broken(daemon: &mut Daemon, listener: &str, part: &str) {
    let address = daemon.ready[listener].parse().unwrap();
    break_listener(daemon.process.pid(), address);
    assert_eq!(daemon.process.ended().await, 1);
    let log = daemon.process.stderr();
    let last = log.lines().last().unwrap();
    assert!(last.contains(&format!("the {part} cannot accept connections any more: ")), "{log}");
}

#[tokio::test]
async fn a_tracker_whose_listener_broke_ends_with_an_error() {
    let mut cluster = Cluster::start().await;
    ends_when_broken(&mut cluster.tracker.daemon, "tracker", "tracker service").await;
}

#[tokio::test]
async fn a_peer_whose_listener_broke_ends_with_an_error() {
    let cluster = Cluster::start().await;
    let mut peer = cluster.peer("peer").await;
    ends_when_broken(&mut peer.daemon, "peer", "peer service").await;
}

#[tokio::test]
async fn a_peer_whose_control_listener_broke_ends_with_an_error() {
    let cluster = Cluster::start().await;
    let mut peer = cluster.peer("peer").await;
    ends_when_broken(&mut peer.daemon, "control", "control service").await;
}

/// Takes all descriptors from a daemon, connects, gives them back, and is answered.
async fn waits_out_a_shortage(daemon: &Daemon, listener: &str) {
    let pid = Pid::from_raw(i32::try_from(daemon.process.pid()).unwrap());
    let none = Rlimit { current: Some(0), maximum: getrlimit(Resource::Nofile).maximum };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    let address: Address = daemon.ready[listener].parse().unwrap();
    // The kernel connects it, and it waits to be accepted.
    let _waiting = TcpStream::connect(address.as_str()).await.unwrap();
    let said = || daemon.process.stderr().matches("cannot accept connections for now").count();
    until("a word on the shortage", async || (said() > 0).then_some(())).await;
    prlimit(pid, Resource::Nofile, before).unwrap();
    until("an answer", async || health::check(&Transport::plaintext(), &address, Meant::AnyPeer).await.ok()).await;
    assert_eq!(said(), 1, "{}", daemon.process.stderr());
}

#[tokio::test]
async fn daemons_without_descriptors_say_so_once_and_go_on_when_there_are_some() {
    let cluster = Cluster::start().await;
    let peer = cluster.peer("peer").await;
    waits_out_a_shortage(&cluster.tracker.daemon, "tracker").await;
    waits_out_a_shortage(&peer.daemon, "control").await;
}
