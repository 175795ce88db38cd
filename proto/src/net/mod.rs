//! Connections and servers: what every program of this project does alike on the network.
//!
//! | module | is |
//! |---|---|
//! | [`transport`] | the measured settings of every connection |
//! | [`ahead`] | how much a server's connection writes ahead of the network |
//! | [`accept`] | accepting, and what becomes of it when that fails |
//! | [`control_at`] | where a peer is controlled: an address, or a socket in a folder |
//! | [`listen`] | listening on both address families |
//! | [`cut`] | server connections that can be cut |
//! | [`tls`] | mutual TLS: what is shown, what is believed |
//! | [`door`] | how many connections one address may begin |
//! | [`crowd`] | how many connections one identity has |
//! | [`guard`] | the server's end of a connection: its handshake, and what that proves |
//! | `dial` | the client's end |
//! | [`pass`] | the ticket that is shown to holders |
//! | [`caller`] | which identity is behind a request |
//! | [`meter`] | client connections whose bytes are counted as they come |
//! | [`line`](mod@line) | a connection over which calls are made by hand |
//! | [`chunk_message`] | how the messages of a chunk lie on the wire |
//! | `wary` | answers of programs that may be hostile |
//! | [`health`] | asking a daemon whether it serves |
//! | [`open_files`] | the limit of open files |
//! | [`reflection`] | gRPC reflection for grpcurl |
//! | [`shell`] | the runtime, the log, the ready line, signals and the end of a daemon |
//! | [`stderr`] | stderr that neither fails nor hangs, for the log |
//!
//! The last three come with the feature `daemon`.

pub mod accept;
pub mod ahead;
pub mod caller;
pub mod chunk_message;
pub mod control_at;
pub mod crowd;
pub mod cut;
mod dial;
pub mod door;
pub mod guard;
pub mod handshakes;
pub mod health;
pub mod line;
pub mod listen;
pub mod meter;
#[cfg(feature = "daemon")]
pub mod open_files;
pub mod pass;
#[cfg(feature = "daemon")]
pub mod reflection;
#[cfg(feature = "daemon")]
pub mod shell;
#[cfg(feature = "daemon")]
pub mod stderr;
pub mod tls;
pub mod transport;
pub mod wary;

/// The last link of an error's chain says what happened; those above it, of a transport, only where.
pub fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}
