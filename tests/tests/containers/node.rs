//! One container: commands in it, its life and death.

use std::sync::{Arc, Mutex};

use bollard::{
    Docker,
    container::LogOutput,
    exec::StartExecResults,
    models::{ContainerInspectResponse, ExecConfig, HealthStatusEnum},
    query_parameters::{
        InspectContainerOptions, KillContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions,
        StopContainerOptionsBuilder,
    },
};
use drizzle_tests::{Run, until};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use crate::link;

/// A container of a daemon.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    docker: Docker,
    id: String,
    alias: String,
}

/// A `peer-cli download` inside a container.
#[derive(Debug)]
pub(crate) struct Download {
    stdout: Arc<Mutex<String>>,
    run: JoinHandle<Run>,
}

impl Node {
    /// A container that exists.
    pub(crate) fn new(docker: Docker, id: String, alias: String) -> Self {
        Self { docker, id, alias }
    }

    /// Its id, for the engine.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Waits until its own health check says that it serves.
    pub(crate) async fn until_healthy(&self) {
        until(&format!("{} is healthy", self.alias), async || {
            let state = self.inspect().await.state.expect("a container has a state");
            let running = state.running == Some(true);
            assert!(running, "{} ended with {:?} before it was healthy", self.alias, state.exit_code);
            (state.health?.status? == HealthStatusEnum::HEALTHY).then_some(())
        })
        .await;
    }

    /// What the engine knows about it.
    pub(crate) async fn inspect(&self) -> ContainerInspectResponse {
        let inspected = self.docker.inspect_container(&self.id, None::<InspectContainerOptions>).await;
        inspected.unwrap_or_else(|error| panic!("{}: {error}", self.alias))
    }

    /// Runs a command in it to its end.
    pub(crate) async fn exec(&self, command: &[&str]) -> (i32, String, String) {
        let stdout = Arc::default();
        let (code, stderr) = exec(&self.docker, &self.id, command, &stdout).await;
        let stdout = stdout.lock().expect("not poisoned").clone();
        (code, stdout, stderr)
    }

    /// What a command in it prints, which must succeed.
    pub(crate) async fn answer(&self, command: &[&str]) -> String {
        let (code, stdout, stderr) = self.exec(command).await;
        assert_eq!(code, 0, "{command:?} in {}: {stdout}{stderr}", self.alias);
        stdout
    }

    /// `peer-cli --json ARGS` in it, to its end.
    pub(crate) async fn cli(&self, args: &[&str]) -> Run {
        let (code, stdout, stderr) = self.exec(&[&["peer-cli", "--json"], args].concat()).await;
        Run { code, events: documents(&stdout), stderr }
    }

    /// `peer-cli --json download NAME` in it, in the background.
    pub(crate) fn download(&self, name: &str) -> Download {
        let (docker, id, name) = (self.docker.clone(), self.id.clone(), name.to_owned());
        let stdout = Arc::default();
        let written = Arc::clone(&stdout);
        let run = tokio::spawn(async move {
            let (code, stderr) = exec(&docker, &id, &["peer-cli", "--json", "download", &name], &written).await;
            let events = documents(&written.lock().expect("not poisoned"));
            Run { code, events, stderr }
        });
        Download { stdout, run }
    }

    /// SHA-256 of a file in it, in hex.
    pub(crate) async fn digest(&self, path: &str) -> String {
        let line = self.answer(&["sha256sum", path]).await;
        line.split(' ').next().expect("a digest").to_owned()
    }

    /// `peer-cli --json status`.
    pub(crate) async fn status(&self) -> Value {
        self.cli(&["status"]).await.expect(0).events.remove(0)
    }

    /// Bytes that it sent since its daemon started.
    pub(crate) async fn uploaded(&self) -> u64 {
        self.status().await["uploaded_bytes"].as_u64().expect("a number of bytes")
    }

    /// Whether this peer, by its id, is said to hold some of a file, in the view of the one asked.
    pub(crate) async fn sees(&self, name: &str, peer_id: &str) -> bool {
        let locations = self.cli(&["locations", name]).await.expect(0);
        locations.events.iter().any(|document| document.to_string().contains(peer_id))
    }

    /// Waits until the tracker lists at least this many full holders.
    pub(crate) async fn until_held(&self, name: &str, holders: u64) {
        until(&format!("{holders} full holders of {name}"), async || {
            let (code, stdout, _) = self.exec(&["peer-cli", "--json", "files", name]).await;
            let files = documents(&stdout).into_iter().find(|file| file["name"] == name);
            let full = files.filter(|_| code == 0)?["full_holders"].as_u64()?;
            (full >= holders).then_some(())
        })
        .await;
    }

    /// Its identity in the swarm.
    pub(crate) async fn peer_id(&self) -> String {
        self.status().await["peer_id"].as_str().expect("a peer has an id").to_owned()
    }

    /// Slows down what flows towards it. Gone once it is restarted.
    pub(crate) async fn slow_down(&self, megabits: u32) {
        link::slow_down(self.pid().await, megabits);
    }

    /// Lets everything flow towards it again.
    pub(crate) async fn open_up(&self) {
        link::open_up(self.pid().await);
    }

    /// `docker kill`.
    pub(crate) async fn kill(&self) {
        self.docker.kill_container(&self.id, None::<KillContainerOptions>).await.expect("it can be killed");
    }

    /// `docker start`, until healthy.
    pub(crate) async fn start(&self) {
        self.docker.start_container(&self.id, None::<StartContainerOptions>).await.expect("it can be started");
        self.until_healthy().await;
    }

    /// `docker stop`; killed if it has not ended after `seconds`. Answers its exit code.
    pub(crate) async fn stop(&self, seconds: i32) -> i64 {
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        self.docker.stop_container(&self.id, Some(options)).await.expect("it can be stopped");
        self.inspect().await.state.and_then(|state| state.exit_code).expect("it has ended")
    }

    /// `docker rm -v -f`: its anonymous volumes go with it.
    pub(crate) async fn remove(self) {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        self.docker.remove_container(&self.id, Some(options)).await.expect("it can be removed");
    }

    async fn pid(&self) -> i64 {
        self.inspect().await.state.and_then(|state| state.pid).expect("it runs")
    }
}

impl Download {
    /// Waits until this many bytes are verified and stored, and fails if it ends before.
    pub(crate) async fn until_stored(&self, bytes: u64) {
        until(&format!("{bytes} bytes stored"), async || {
            let stored = self.stored();
            assert!(!self.run.is_finished(), "it ended with {stored} bytes stored: {}", self.last());
            (stored >= bytes).then_some(())
        })
        .await;
    }

    /// Bytes verified and stored, as it last told.
    pub(crate) fn stored(&self) -> u64 {
        let stdout = self.stdout.lock().expect("not poisoned");
        let progress = stdout.lines().rev().find(|line| line.starts_with(r#"{"event":"progress""#));
        progress
            .and_then(|line| serde_json::from_str::<Value>(line).ok())
            .and_then(|event| event["bytes"].as_u64())
            .unwrap_or(0)
    }

    /// Whether it still runs.
    pub(crate) fn runs(&self) -> bool {
        !self.run.is_finished()
    }

    /// Its end.
    pub(crate) async fn ended(self) -> Run {
        self.run.await.expect("the task does not panic")
    }

    fn last(&self) -> String {
        self.stdout.lock().expect("not poisoned").lines().last().unwrap_or_default().to_owned()
    }
}

/// Runs a command in a container to its end; what it prints on stdout can be looked at meanwhile.
async fn exec(docker: &Docker, id: &str, command: &[&str], stdout: &Mutex<String>) -> (i32, String) {
    let config = ExecConfig {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.iter().map(ToString::to_string).collect()),
        ..Default::default()
    };
    let made = docker.create_exec(id, config).await;
    let exec = made.unwrap_or_else(|error| panic!("{command:?} in {id}: {error}")).id;
    let mut stderr = String::new();
    match docker.start_exec(&exec, None).await.unwrap_or_else(|error| panic!("{command:?} in {id}: {error}")) {
        StartExecResults::Attached { mut output, .. } => {
            // It ends, with or without an error, when the container does.
            while let Some(Ok(piece)) = output.next().await {
                match piece {
                    LogOutput::StdErr { message } => stderr += &String::from_utf8_lossy(&message),
                    piece => stdout.lock().expect("not poisoned").push_str(&piece.to_string()),
                }
            }
        }
        StartExecResults::Detached => unreachable!("it was asked to be attached"),
    }
    let code = docker.inspect_exec(&exec).await.ok().and_then(|exec| exec.exit_code).unwrap_or(-1);
    (i32::try_from(code).expect("an exit code"), stderr)
}

/// Complete JSON documents, one a line. A killed program may leave the last one unfinished.
fn documents(stdout: &str) -> Vec<Value> {
    let complete = stdout.rfind('\n').map_or("", |end| &stdout[..end]);
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
    complete.lines().map(parse).collect()
}
