//! Clusters of real containers, started and broken on purpose.
//!
//! Needs a Docker engine, the images that deploy/Dockerfile builds and root (links are slowed down with
//! `tc`), so it is behind the feature `containers`; the script `tests/containers` prepares all of that.
//!
//! | module | gives |
//! |---|---|
//! | [`lab`] | one network of its own for each test, and its cleaning up |
//! | [`node`] | one container: commands in it, its life and death |
//! | [`link`] | how fast a container's link is |
//! | [`share`] | folders with random files, for seeds to share |
//!
//! Invariants: nothing is assumed after a while, everything is waited for; "in mid-download" is made
//! certain by a slow link that is opened once the deed is done; what a test started is gone when it
//! ends, and what a killed run left behind is gone when the next one begins.

mod lab;
mod link;
mod node;
mod share;

mod compose;
mod cut_off;
mod limits;
mod reflection;
mod restarts;
mod tracker_loss;

/// Binary megabytes.
const MIB: u64 = 1 << 20;
