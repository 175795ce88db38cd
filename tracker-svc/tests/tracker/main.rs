//! The tracker as its clients see it, in this process: bound to a free port, called over gRPC.

#![allow(clippy::disallowed_methods, reason = "the tests turn the clock")]

mod common;

mod catalogue;
mod liveness;
mod manifests;
mod neighbours;
mod order;
mod rights;
mod wire;
