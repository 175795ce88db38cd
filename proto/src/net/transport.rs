//! The settings of every connection, in one place. Where a figure stands, it was measured: see the
//! README's table of measured settings.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};

use super::cut::Connection;
use crate::limits::MESSAGE_SIZE;

/// A connection attempt may take this long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A control-plane call may take this long.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A silent connection is probed this often, and given up when a probe is not answered in as long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Streams of one connection at once, far above what a well-behaved peer uses.
const MAX_STREAMS: u32 = 1024;

// A u32 where hyper wants one. With room for the headers of gRPC and protobuf: without it every message
// would end in a second frame of a few bytes.
#[allow(clippy::cast_possible_truncation)]
const FRAME_SIZE: u32 = MESSAGE_SIZE as u32 + 1024;

/// How to reach `url` (`http://HOST:PORT`). The receiver's frame size governs what the sender sends,
/// so it is set on both sides.
pub fn endpoint(url: String) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_frame_size(FRAME_SIZE))
}

/// A server with the same settings.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(FRAME_SIZE)
}

/// A bound listener's connections, with Nagle's algorithm off: with it on, throughput falls to a
/// twentieth, and tonic does not turn it off on listeners that it did not bind. Cancelling `cut` closes
/// them all, whatever they are doing.
pub fn incoming(listener: TcpListener, cut: CancellationToken) -> impl Stream<Item = std::io::Result<Connection>> {
    let accepted = TcpIncoming::from(listener).with_nodelay(Some(true));
    accepted.map(move |stream| Ok(Connection::new(stream?, cut.clone())))
}
