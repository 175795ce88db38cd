//! Connections and servers: what every program of this project does alike on the network.
//!
//! | module | is |
//! |---|---|
//! | [`transport`] | the measured settings of every connection |
//! | [`cut`] | server connections that can be cut |
//! | [`health`] | asking a daemon whether it serves |

pub mod cut;
pub mod health;
pub mod transport;
