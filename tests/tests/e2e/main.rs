//! The end-to-end tests: whole swarms of the real binaries on this machine, each test with a tracker, folders
//! and ports of its own.
//!
//! One module a theme, and one binary for all of them: each binary would be linked with everything again,
//! and the last slow test of each would hold up the next.

mod absurd;
mod addresses;
mod bad_peers;
mod callers;
mod control_socket;
mod crash;
mod elsewhere;
mod exits;
mod figures;
mod folder;
mod full_disk;
mod health;
mod hostile;
mod limits;
mod links;
mod listeners;
mod lying_tracker;
mod many;
mod metrics;
mod names;
mod neighbours;
mod operator;
mod readme;
mod reasons;
mod refusals;
mod replace;
mod resources;
mod scenarios;
mod shutdown;
mod signing;
mod silent;
mod sizes;
mod state;
mod swarm;
mod trust;
mod trust_ends;
mod unwritable;
