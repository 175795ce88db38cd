//! The tracker: which peers are alive, which files they share, which peer holds which chunk.
//!
//! | module | holds |
//! |---|---|
//! | `config` | command line and environment |
//! | `server` | brings it up and down: `bind(config)` gives a handle |
//! | `gather` | how much of requests is gathered at once |
//! | `grpc` | the gRPC face; the only place that knows wire messages |
//! | `access` | who may do what: the gate before every method, identities, tokens, stops, quotas, the audit log |
//! | `trusting` | from options to how connections are secured and callers judged |
//! | `enrolment`, `join_token` | how peers get their identities |
//! | `kubernetes` | the little that is asked of a cluster: one Secret |
//! | `rights` | what an operator does with rights |
//! | `operator` | what an operator does with a running tracker, on a socket of its own |
//! | [`commands`] | what an operator types: the other end of that socket |
//! | `watch` | the stream that pushes changes of a file's holders |
//! | [`registry`] | the decisions: catalogue and state brought together |
//! | [`catalogue`] | what must not be forgotten: names and manifests, on disk |
//! | `metrics` | what a monitor reads |
//! | [`census`] | everything that a monitor may ask |
//! | `readiness` | whether the catalogue answers, for health checks |
//! | `verdict` | what becomes of a claim to a name |
//! | [`live`] | what is told anew after a restart: leases, swarms, manifests in parts; in memory, pure |
//! | [`limits`] | the bounds of what one tracker takes on |
//! | [`error`] | what it says no to, and the gRPC status of each |
//! | `fuzzing` | a door for hostile bytes, for tests alone |
//!
//! What is public beside the daemon itself is what a simulation of a fleet needs: the registry, and the pure half
//! below it, driven by a clock of its own.
//!
//! `live`, `registry` and `verdict` read no clock and draw from no global random source; `clippy.toml` says what that
//! bans, and the rest of the crate is allowed it.
//!
//! The way down is `grpc` -> `registry` -> `catalogue` and `live`; nothing calls upwards.

#![allow(clippy::disallowed_methods, reason = "denied below, where decisions are made")]

mod access;
pub mod catalogue;
pub mod census;
pub mod commands;
mod config;
mod enrolment;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod grpc;
mod join_token;
mod kubernetes;
pub mod limits;
#[deny(clippy::disallowed_methods)]
pub mod live;
mod metrics;
mod operator;
mod readiness;
#[deny(clippy::disallowed_methods)]
pub mod registry;
mod rights;
mod server;
mod trusting;
#[deny(clippy::disallowed_methods)]
mod verdict;
mod watch;

pub use access::denied::Denied;
pub use config::{Cli, Command, Config, Trust};
pub use server::{ServerError, Tracker, bind};
