//! The compose file as people use it: a tracker, a seed and four peers.

use std::{
    path::{Path, PathBuf},
    process::{self, Command, Output},
    time::Instant,
};

use bollard::query_parameters::ListContainersOptionsBuilder;
use drizzle_tests::until;

use crate::{MIB, lab, node::Node, share::Share};

/// A project of compose files in deploy; taken down when dropped.
struct Project {
    name: String,
    files: Vec<PathBuf>,
    share: Share,
}

impl Project {
    fn up(name: &str, files: &[&str], peers: usize, share: Share) -> Self {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let files = files.iter().map(|file| deploy.join(file)).collect();
        let project = Self { name: format!("drizzle-test-{}-{name}", process::id()), files, share };
        let output = project.compose(&["up", "--detach", "--no-build", "--scale", &format!("peer={peers}")]);
        assert!(output.status.success(), "compose up: {}", String::from_utf8_lossy(&output.stderr));
        project
    }

    fn compose(&self, args: &[&str]) -> Output {
        // Version 2 is a plugin of the docker command, version 1 a program.
        let plugin = Command::new("docker").args(["compose", "version"]).output();
        let mut command = if plugin.is_ok_and(|output| output.status.success()) {
            let mut docker = Command::new("docker");
            docker.arg("compose");
            docker
        } else {
            Command::new("docker-compose")
        };
        let files = self.files.iter().flat_map(|file| ["-f".as_ref(), file.as_os_str()]);
        let command = command.arg("-p").arg(&self.name).args(files).args(args);
        // No host port means a free one.
        let command = command.env("DRIZZLE_SHARE", self.share.path()).env("DRIZZLE_PUBLISH", "127.0.0.1:");
        command.output().expect("compose is installed")
    }

    async fn nodes(&self, service: &str) -> Vec<Node> {
        let docker = lab::engine().await;
        let labels =
            [format!("com.docker.compose.project={}", self.name), format!("com.docker.compose.service={service}")];
        let filters = [("label".to_owned(), labels.to_vec())].into();
        let options = ListContainersOptionsBuilder::new().filters(&filters).build();
        let containers = docker.list_containers(Some(options)).await.expect("containers can be listed");
        let ids = containers.into_iter().filter_map(|container| container.id).enumerate();
        ids.map(|(i, id)| Node::new(docker.clone(), id, format!("{service} {i}"))).collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.compose(&["logs", "--no-color", "--tail", "40"]);
            lab::note(&String::from_utf8_lossy(&logs.stdout));
        }
        let output = self.compose(&["down", "--volumes", "--timeout", "1"]);
        if !output.status.success() {
            lab::note(&String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[tokio::test]
async fn four_peers_download_at_once_and_the_seed_sends_less_than_two_copies() {
    const SIZE: u64 = 256 * MIB;
    let share = Share::with("foo", SIZE);
    let digest = share.digest("foo");

    let begun = Instant::now();
    let project = Project::up("fleet", &["compose.yaml"], 4, share);
    let (seed, peers) = (project.nodes("seed").await.remove(0), project.nodes("peer").await);
    assert_eq!(peers.len(), 4);
    for peer in &peers {
        peer.until_healthy().await;
    }
    lab::note(&format!("a tracker, a seed and four peers were healthy after {:.1} s", begun.elapsed().as_secs_f64()));
    peers[0].until_held("foo", 1).await;

    let downloads: Vec<_> = peers.iter().map(|peer| peer.download("foo")).collect();
    for download in downloads {
        assert_eq!(download.ended().await.expect(0).fetched(), SIZE);
    }
    for peer in &peers {
        assert_eq!(peer.digest("/data/foo").await, digest);
    }
    let sent = seed.uploaded().await;
    lab::note(&format!("the seed sent {:.2} copies", sent as f64 / SIZE as f64));
    assert!(sent < 2 * SIZE, "the seed sent {sent} bytes");
}

#[tokio::test]
async fn with_the_second_file_every_connection_is_mutual_tls() {
    const SIZE: u64 = 16 * MIB;
    let share = Share::with("foo", SIZE);
    let digest = share.digest("foo");
    let project = Project::up("tls", &["compose.yaml", "compose.tls.yaml"], 1, share);
    let (tracker, peer) = (project.nodes("tracker").await.remove(0), project.nodes("peer").await.remove(0));
    peer.until_healthy().await;
    until("foo", async || peer.answer(&["peer-cli", "files"]).await.contains("foo").then_some(())).await;
    assert_eq!(peer.download("foo").ended().await.expect(0).fetched(), SIZE);
    assert_eq!(peer.digest("/data/foo").await, digest);
    // Whoever shows no certificate gets nowhere, and an operator sees who has one.
    let identities = tracker.answer(&["tracker-svc", "identities"]).await;
    assert_eq!(identities.matches("publisher of *").count(), 2, "{identities}");
}
