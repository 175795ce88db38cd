//! The tracker as its clients see it, in this process: bound to a free port, called over gRPC.

mod common;

mod catalogue;
mod liveness;
mod order;
mod wire;
