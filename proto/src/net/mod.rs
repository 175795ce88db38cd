//! Connections and servers: what every program of this project does alike on the network.
//!
//! | module | is |
//! |---|---|
//! | [`transport`] | the measured settings of every connection |
//! | [`cut`] | server connections that can be cut |
//! | [`meter`] | client connections whose bytes are counted as they come |
//! | [`health`] | asking a daemon whether it serves |
//! | [`reflection`] | gRPC reflection for grpcurl |
//! | [`shell`] | the runtime, the log, the ready line, signals and the end of a daemon |
//!
//! The last two come with the feature `daemon`.

pub mod cut;
pub mod health;
pub mod meter;
#[cfg(feature = "daemon")]
pub mod reflection;
#[cfg(feature = "daemon")]
pub mod shell;
pub mod transport;
