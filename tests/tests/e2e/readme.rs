//! The README's `grpcurl` commands: each is run as it stands, by the real grpcurl, against a live tracker.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use drizzle_tests::{Cluster, Content, Secured, cluster::Options, content::random, process::Process, skipped, until};
use serde_json::{Deserializer, Value};

/// A Python beside which grpcurl is installed; tests/run sets it, and tests/python-env prints it.
const PYTHON: &str = "DRIZZLE_TEST_PYTHON";

/// Where the README's tracker listens.
const ADDRESS: &str = "127.0.0.1:7400";

/// The names that the README's commands ask for.
const NAMES: [&str; 2] = ["models/weights.bin", "foo"];

/// The folder with grpcurl; none if the test cannot run here, which is an error in CI.
fn folder() -> Option<PathBuf> {
    if let Some(python) = env::var_os(PYTHON) {
        return Some(Path::new(&python).parent().expect("Python lies in a folder").to_owned());
    }
    assert!(env::var_os("CI").is_none(), "{PYTHON} is not set: run tests/run");
    skipped(format_args!("{PYTHON} is not set; run tests/run, or set it to what tests/python-env prints"));
    None
}

/// The README's commands, a line each.
fn commands() -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).expect("there is a README");
    readme.lines().filter(|line| line.starts_with("grpcurl ")).map(str::to_owned).collect()
}

/// A command whose output is kept in a file; it is killed when dropped.
struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    fn start(command: &str, folder: &Path, output: PathBuf) -> Self {
        let mut path = vec![folder.to_owned()];
        path.extend(env::split_paths(&env::var_os("PATH").expect("there is a PATH")));
        let file = fs::File::create(&output).expect("a file can be made");
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .env("PATH", env::join_paths(path).expect("folders without a colon"))
            .stdin(Stdio::null())
            .stderr(file.try_clone().expect("a file can be used twice"))
            .stdout(file)
            .spawn()
            .expect("sh starts");
        Self { child, output }
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("the output is text")
    }

    /// How it ended, once it has.
    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first JSON document of an output, once it is complete.
fn document(output: &str) -> Option<Value> {
    Deserializer::from_str(output).into_iter().next()?.ok()
}

#[tokio::test]
async fn every_grpcurl_command_of_the_readme_is_answered() {
    let Some(folder) = folder() else { return };
    let cluster = Cluster::start().await;
    let options = NAMES.iter().fold(Options::default(), |options, name| options.file(name, &random(1, 300_000)));
    let peer = cluster.peer_with("one", options).await;
    for name in NAMES {
        cluster.until_held(name, 1).await;
    }
    let tracker = cluster.tracker.url().replace("http://", "");
    let commands: Vec<String> = commands().into_iter().filter(|command| !command.contains("-cacert")).collect();
    assert!(commands.len() > NAMES.len(), "the README shows how to ask the tracker");
    for command in commands {
        assert!(command.contains(ADDRESS), "{command}: the README's tracker is at {ADDRESS}");
        let output = cluster.folder().join("grpcurl.out");
        let mut run = Running::start(&command.replace(ADDRESS, &tracker), &folder, output);
        let method = command.rsplit('/').next().unwrap_or_default();
        // A watch goes on until its client or the tracker ends it.
        if method == "WatchFile" {
            until(&command, async || document(&run.output())).await;
            assert_eq!(run.status(), None, "{command} ended: {}", run.output());
        } else {
            let code = until(&command, async || run.status()).await.code();
            assert_eq!(code, Some(0), "{command}: {}", run.output());
        }
        let output = run.output();
        if command.ends_with(" list") {
            assert!(output.lines().any(|service| service == "drizzle.v1.Tracker"), "{command}: {output}");
            continue;
        }
        let answer = document(&output).unwrap_or_else(|| panic!("{command} is not answered in JSON: {output}"));
        let holder = match method {
            "Check" => {
                assert_eq!(answer["status"], "SERVING", "{command}");
                continue;
            }
            "ListFiles" => {
                let file = &answer["files"][0];
                assert_eq!(file["fullHolders"], 1, "{command}: {answer}");
                assert!(command.contains("models/") && file["file"]["name"] == NAMES[0], "{command}: {answer}");
                continue;
            }
            "FileLocations" => {
                let name = answer["file"]["name"].as_str().expect("the file has a name");
                assert!(command.contains(&format!("\"{name}\"")), "{command}: {answer}");
                &answer["holders"][0]
            }
            "WatchFile" => &answer["changes"][0],
            _ => panic!("{command}: say here what a sensible answer is"),
        };
        assert_eq!(holder["peerId"], peer.id().to_string(), "{command}: {answer}");
    }
}

#[tokio::test]
async fn a_person_who_joined_asks_a_secured_tracker_with_grpcurl() {
    let Some(folder) = folder() else { return };
    let secured = Secured::start(&[]).await;
    let peer = secured.peer("one", "publisher", &[]).await;
    peer.share(&Content::small_chunks("models/weights.bin", 1, 3)).await;
    let token = secured.token("reader", &["models/"]).await;
    let (me, tracker) = (secured.cluster.folder().join("me"), secured.cluster.tracker.url().replace("http://", ""));
    let join = ["join", "--tracker", &tracker, "--to", me.to_str().unwrap(), &token];
    let joined = Process::ran("peer-cli", &join, secured.cluster.folder()).await;
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    let commands: Vec<String> = commands().into_iter().filter(|command| command.contains("-cacert")).collect();
    assert!(!commands.is_empty(), "the README shows how");
    for command in commands {
        let command = command.replace(ADDRESS, &tracker).replace("tour/me", me.to_str().unwrap());
        let mut run = Running::start(&command, &folder, secured.cluster.folder().join("grpcurl.out"));
        let code = until(&command, async || run.status()).await.code();
        assert_eq!(code, Some(0), "{command}: {}", run.output());
        let answer = document(&run.output()).unwrap();
        assert_eq!(answer["files"][0]["file"]["name"], "models/weights.bin", "{answer}");
        // Nobody else is answered.
        let plain = format!("grpcurl -plaintext {tracker} drizzle.v1.Tracker/ListFiles");
        let mut run = Running::start(&plain, &folder, secured.cluster.folder().join("plain.out"));
        assert_ne!(until(&plain, async || run.status()).await.code(), Some(0), "{}", run.output());
    }
}
