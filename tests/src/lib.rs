//! What the end-to-end tests stand on: the real binaries, started on free ports in a temporary folder,
//! beside counterparts that misbehave on purpose.
//!
//! | module | gives |
//! |---|---|
//! | [`binaries`] | the path of `tracker-svc`, `peer-svc` and `peer-cli`, built from the present sources |
//! | [`process`] | a child process whose output is kept, and shown when a test fails |
//! | [`cluster`] | a tracker and peers: start, kill, restart in place |
//! | [`cli`] | runs of `peer-cli --json`: events and exit code |
//! | [`content`] | reproducible random files and their manifests |
//! | [`fake_peer`] | an in-process peer that lies, stalls, vanishes, or serves chunk by chunk |
//! | [`lying_tracker`] | a real tracker, seen through one that lies about signatures |
//! | [`inside`] | what a peer in the test's own process is started with |
//! | [`hostile`] | a client that breaks HTTP/2 on purpose |
//! | [`false_tracker`] | an in-process tracker that lies to its peers |
//! | [`gate`] | a proxy that lets a real peer's bytes through when the test says so |
//! | [`wait`] | waiting for a condition, with a deadline |
//! | [`host`] | machines of their own: network namespaces |
//! | [`line`](mod@line) | a long line to such a machine, with a delay and losses |
//! | [`false_cluster`] | the API of a Kubernetes cluster, for a tracker that runs in a pod |
//! | [`place`] | a folder for the daemons on such machines |
//! | [`dead_disk`] | a file system that never answers |
//! | [`small_disk`] | a file system that is soon full |
//! | [`monitor`] | what monitors do: scrapes, and the real Prometheus |
//! | [`skip`] | saying that a test cannot run here |
//! | [`fuzz`] | what is fuzzed, and what is known of it |
//! | [`sim`] | the simulator: a fleet under a virtual clock, no daemons |
//!
//! Invariants: every port is 0 at first; nothing here waits for a time, only for conditions; no process
//! outlives the value that started it; the daemons are known by their contract alone (flags, ready
//! lines, gRPC, exit codes), never by their insides. The simulator and the fuzz targets alone are built from the insides.

pub mod binaries;
pub mod cli;
pub mod cluster;
pub mod content;
pub mod dead_disk;
pub mod fake_peer;
pub mod false_cluster;
pub mod false_tracker;
pub mod fuzz;
pub mod gate;
pub mod host;
pub mod hostile;
pub mod inside;
pub mod line;
pub mod lying_tracker;
pub mod monitor;
pub mod place;
pub mod process;
pub mod secured;
pub mod sim;
pub mod skip;
pub mod small_disk;
pub mod wait;

pub use cli::{Run, Running, said};
pub use cluster::{Cluster, Peer, Tracker};
pub use content::Content;
pub use fake_peer::{FakePeer, Manner};
pub use false_tracker::FalseTracker;
pub use gate::Gate;
pub use lying_tracker::LyingTracker;
pub use place::Place;
pub use secured::Secured;
pub use skip::skipped;
pub use wait::until;
