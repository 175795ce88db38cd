//! A cluster whose daemons know each other: a tracker with an authority, and peers that joined with its tokens.

use std::ffi::OsString;

use crate::{
    Cluster, Peer,
    cluster::Options,
    process::{Ended, Output, Process},
    until,
};

/// The cluster.
#[derive(Debug)]
pub struct Secured {
    /// What it is without that.
    pub cluster: Cluster,
}

impl Secured {
    /// Starts a tracker with `--tls auto`, leases of two seconds, and these arguments.
    pub async fn start(args: &[&str]) -> Self {
        let all = ["--tls", "auto", "--lease", "2s"].iter().chain(args).map(OsString::from);
        Self { cluster: Cluster::with_tracker(all, Output::Kept).await }
    }

    /// Runs an operator's command to its end.
    pub async fn operate(&self, command: &[&str]) -> Ended {
        let mut args = vec![OsString::from("--data-dir"), self.cluster.folder().join("tracker").into()];
        args.extend(command.iter().map(OsString::from));
        Process::ran("tracker-svc", &args, &self.cluster.folder().join("logs")).await
    }

    /// An operator's command that must do what it is to do; what it printed.
    ///
    /// # Panics
    /// If it does not.
    pub async fn operator(&self, command: &[&str]) -> String {
        let Ended { code, stdout, stderr } = self.operate(command).await;
        assert_eq!((code, stderr.as_str()), (0, ""), "{command:?}");
        stdout
    }

    /// A new token for one machine with this role over these names.
    pub async fn token(&self, role: &str, scopes: &[&str]) -> String {
        let mut command = vec!["token", "create", "--role", role];
        command.extend(scopes.iter().flat_map(|scope| ["--prefix", scope]));
        self.operator(&command).await.trim().to_owned()
    }

    /// Starts a peer that joins with this role over these names.
    pub async fn peer(&self, name: &str, role: &str, scopes: &[&str]) -> Peer {
        self.peer_with(name, role, scopes, Options::default()).await
    }

    /// Starts one that is not ordinary.
    pub async fn peer_with(&self, name: &str, role: &str, scopes: &[&str], options: Options) -> Peer {
        let token = self.token(role, scopes).await;
        let peer = self.cluster.peer_with(name, options.args(["--join", &token])).await;
        until("a lease", async || peer.status().await.tracker_connected.then_some(())).await;
        peer
    }

    /// What the tracker has noted for the auditors.
    ///
    /// # Panics
    /// If it was not started with `--audit-log audit.jsonl` in the folder, or a line is no JSON.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.cluster.folder().join("audit.jsonl")).expect("an audit log");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}
