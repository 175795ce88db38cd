//! Runs of `peer-cli --json`: their events as they come, and how they ended.

use std::{collections::BTreeMap, ffi::OsString, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::{process::Process, until, wait::DEADLINE};

/// A `peer-cli` that may still run.
#[derive(Debug)]
pub struct Running {
    process: Process,
    what: String,
}

/// A `peer-cli` that has ended.
#[derive(Debug)]
pub struct Run {
    /// Its exit code.
    pub code: i32,
    /// The JSON documents on its stdout, in order.
    pub events: Vec<Value>,
    /// What it said on stderr.
    pub stderr: String,
}

/// What one source gave in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Verified bytes of it.
    pub bytes: u64,
    /// Verified chunks.
    pub chunks: u64,
}

impl Running {
    /// Starts `peer-cli --json --peer CONTROL ARGS`.
    pub fn start(control: &str, args: &[OsString], logs: &Path) -> Self {
        Self::start_by(&[], control, args, logs)
    }

    /// [`Running::start`] by way of a command that becomes `peer-cli`.
    pub fn start_by(starter: &[&str], control: &str, args: &[OsString], logs: &Path) -> Self {
        let mut all: Vec<OsString> = vec!["--json".into()];
        // Nowhere means that it finds the daemon by itself.
        if !control.is_empty() {
            let scheme = if control.starts_with("unix:") { "" } else { "http://" };
            all.extend(["--peer".into(), format!("{scheme}{control}").into()]);
        }
        all.extend_from_slice(args);
        let shown: Vec<_> = args.iter().map(|arg| arg.to_string_lossy().chars().take(80).collect::<String>()).collect();
        let what = format!("peer-cli {}", shown.join(" "));
        Self { process: Process::start_by(starter, &what, "peer-cli", &all, logs), what }
    }

    /// The events so far. A line that is still being written is left out.
    pub fn events(&self) -> Vec<Value> {
        let text = self.process.stdout();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        parse(complete)
    }

    /// How many chunk events with this step there were so far.
    pub fn count(&self, step: &str) -> usize {
        steps(&self.events()).filter(|chunk| chunk.step == step).count()
    }

    /// Waits until `enough` says so of the events.
    ///
    /// # Panics
    /// If the run ends before, or the deadline passes.
    pub async fn until(&mut self, what: &str, mut enough: impl FnMut(&[Value]) -> bool) {
        let what = format!("{what} in {}", self.what);
        until(&what.clone(), async || {
            let ended = self.process.exit_code();
            if enough(&self.events()) {
                return Some(());
            }
            assert!(ended.is_none(), "ended with {ended:?} before {what}: {}", self.process.stderr());
            None
        })
        .await;
    }

    /// Waits until at least this many chunks are stored.
    pub async fn until_stored(&mut self, chunks: usize) {
        let what = format!("{chunks} stored chunks");
        self.until(&what, |events| steps(events).filter(|chunk| chunk.step == "stored").count() >= chunks).await;
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.exit_code().is_some()
    }

    /// Waits for the end.
    pub async fn ended(self) -> Run {
        self.ended_within(DEADLINE).await
    }

    /// The same, for a command that may take so long.
    pub async fn ended_within(mut self, deadline: Duration) -> Run {
        let code = self.process.ended_within(deadline).await;
        Run { code, events: parse(&self.process.stdout()), stderr: self.process.stderr() }
    }

    /// Sends a signal: INT is Ctrl-C.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// `kill -9` of the CLI alone.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// One step of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `requested`, `stored` or `failed`.
    pub step: String,
    /// Index of the chunk.
    pub chunk: u64,
    /// `HOST:PORT` of the source.
    pub peer: String,
}

fn steps(events: &[Value]) -> impl Iterator<Item = Step> + '_ {
    events.iter().filter(|event| event["event"] == "chunk").map(|event| Step {
        step: text(&event["step"]),
        chunk: event["chunk"].as_u64().expect("a chunk event has a chunk"),
        peer: text(&event["peer"]),
    })
}

fn parse(stdout: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
    stdout.lines().map(parse).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn numbers(value: &Value) -> Vec<u64> {
    let list = value.as_array().unwrap_or_else(|| panic!("not a list: {value}"));
    list.iter().map(|number| number.as_u64().expect("a number")).collect()
}

impl Run {
    /// The run, if it ended well.
    ///
    /// # Panics
    /// If its exit code is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code; last: {:?}; stderr:\n{}", self.events.last(), self.stderr);
        self
    }

    /// The last event, which must be of this kind.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn last(&self, kind: &str) -> &Value {
        let last = self.events.last().unwrap_or_else(|| panic!("no event at all; stderr:\n{}", self.stderr));
        assert_eq!(last["event"], kind, "{last}");
        last
    }

    /// Bytes fetched in this run.
    ///
    /// # Panics
    /// If the download was not done.
    #[track_caller]
    pub fn fetched(&self) -> u64 {
        self.last("done")["bytes"].as_u64().expect("a number of bytes")
    }

    /// Bytes that an earlier run had stored.
    ///
    /// # Panics
    /// If the download never started.
    pub fn resumed(&self) -> u64 {
        let started = self.events.iter().find(|event| event["event"] == "started").expect("the download started");
        started["resumed"].as_u64().expect("a number of bytes")
    }

    /// What each source gave, by `HOST:PORT`.
    ///
    /// # Panics
    /// If the download was not done.
    #[track_caller]
    pub fn sources(&self) -> BTreeMap<String, Given> {
        let sources = self.last("done")["sources"].as_array().expect("a list of sources");
        let given = |source: &Value| Given {
            bytes: source["bytes"].as_u64().expect("a number of bytes"),
            chunks: source["chunks"].as_u64().expect("a number of chunks"),
        };
        sources.iter().map(|source| (text(&source["peer"]), given(source))).collect()
    }

    /// Offences in the last event: `HOST:PORT`, offence, chunks.
    ///
    /// # Panics
    /// If there was no event.
    pub fn blamed(&self) -> Vec<(String, String, Vec<u64>)> {
        let last = self.events.last().expect("an event");
        let blamed = last["blamed"].as_array().map(Vec::as_slice).unwrap_or_default();
        blamed.iter().map(|blame| (text(&blame["peer"]), text(&blame["offence"]), numbers(&blame["chunks"]))).collect()
    }

    /// Chunks that a failed download lacks.
    ///
    /// # Panics
    /// If the download did not fail.
    #[track_caller]
    pub fn lacking(&self) -> Vec<u64> {
        numbers(&self.last("failed")["chunks"])
    }

    /// Why a download failed.
    ///
    /// # Panics
    /// If it did not fail.
    #[track_caller]
    pub fn reason(&self) -> String {
        text(&self.last("failed")["reason"])
    }

    /// Every step of every chunk, in order.
    pub fn steps(&self) -> Vec<Step> {
        steps(&self.events).collect()
    }
}

/// All that a run of `peer-cli` said, on stdout and stderr.
pub fn said(run: &Run) -> String {
    let events: Vec<String> = run.events.iter().map(Value::to_string).collect();
    format!("{}{}", events.join("\n"), run.stderr)
}
