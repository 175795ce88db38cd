//! The tracker: which peers are alive, which files they share, who holds which chunk.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | command line and environment |
//! | [`server`] | brings it up and down: `bind(config)` gives a handle |
//! | [`grpc`] | the gRPC face; the only place that knows wire messages |
//! | [`watch`] | the stream that pushes changes of a file's holders |
//! | [`registry`] | the decisions: catalogue and state brought together |
//! | [`catalogue`] | what must not be forgotten: names and manifests, on disk |
//! | [`state`] | what is told anew after a restart: leases and swarms, in memory |
//! | [`leases`] | which peers are alive |
//! | [`swarm`] | one file's holders and the log of their changes |
//! | [`staging`] | manifests that arrive in parts |
//! | [`error`] | what it says no to, and the gRPC status of each |
//!
//! The way down is `grpc` -> `registry` -> `catalogue` and `state` -> `leases`, `swarm`, `staging`; nothing
//! calls upwards. The last three are pure: no I/O, no clock.

pub mod catalogue;
pub mod config;
pub mod error;
pub mod grpc;
pub mod leases;
pub mod registry;
pub mod server;
pub mod staging;
pub mod state;
pub mod swarm;
pub mod watch;

pub use config::Config;
pub use server::{ServerError, Tracker, bind};
