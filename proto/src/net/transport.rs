//! The settings of every connection, in one place. Where a figure stands, it was measured: see the
//! README's table of measured settings.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};

use super::accept::Incoming;
use crate::{Address, limits::MESSAGE_SIZE};

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

/// How this program connects and accepts: made once, and the only maker of connections and servers.
#[derive(Debug, Clone, Default)]
pub struct Transport {}

impl Transport {
    /// Plain TCP, without encryption or authentication.
    pub fn plaintext() -> Self {
        Self {}
    }

    /// A connection that is made when it is first used, and again whenever it is lost.
    pub fn connect_lazy(&self, address: &Address) -> Result<Channel, tonic::transport::Error> {
        Ok(self.endpoint(address)?.connect_lazy())
    }

    /// A connection that is made now, so that an address where nothing listens is an error at once.
    pub async fn connect(&self, address: &Address) -> Result<Channel, tonic::transport::Error> {
        self.endpoint(address)?.connect().await
    }

    /// A server. The receiver's frame size governs what the sender sends, so it is set on both sides.
    pub fn server(&self) -> Server {
        Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .max_concurrent_streams(MAX_STREAMS)
            .max_frame_size(FRAME_SIZE)
    }

    /// A bound listener's connections. Cancelling `cut` closes them all, whatever they are doing.
    pub fn incoming(&self, listener: TcpListener, cut: CancellationToken) -> Incoming {
        Incoming::new(listener, cut)
    }

    fn endpoint(&self, address: &Address) -> Result<Endpoint, tonic::transport::Error> {
        Ok(Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_frame_size(FRAME_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address_can_be_dialled() {
        for text in ["localhost:1", "a_b-c.d:65535", "10.0.0.1:7401", "[::1]:7401"] {
            let address = Address::new(text).unwrap();
            Transport::plaintext().endpoint(&address).unwrap();
        }
    }
}
