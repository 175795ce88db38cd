//! Connections and servers: what every program of this project does alike on the network.
//!
//! | module | is |
//! |---|---|
//! | [`transport`] | the measured settings of every connection |
//! | [`listen`] | listening on both address families |
//! | [`cut`] | server connections that can be cut |
//! | [`health`] | asking a daemon whether it serves |
//! | [`reflection`] | gRPC reflection for grpcurl |
//! | [`shell`] | the runtime, the log, the ready line, signals and the end of a daemon |
//!
//! The last two come with the feature `daemon`.

pub mod cut;
pub mod health;
pub mod listen;
#[cfg(feature = "daemon")]
pub mod reflection;
#[cfg(feature = "daemon")]
pub mod shell;
pub mod transport;
