//! The settings of every connection, in one place. Where a figure stands, it was measured: see the
//! README's table of measured settings.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

use super::{
    cut::Connection,
    meter::{Meter, MeteredConnector},
};
use crate::{Address, limits::MESSAGE_SIZE};

/// A connection attempt may take this long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A control-plane call may take this long.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection on which nothing moves is probed by TCP after so long, then this often, and so many times in vain.
/// TCP's probes and acknowledgements wait behind no data, so that a congested connection is never cut by them.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;

/// A connection of whose data nothing is acknowledged for so long is dead.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// HTTP/2 probes, which find a process that hangs on a machine that lives. Their answers wait behind all the data
/// that is on its way: seconds to a minute on a slow link.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a server writes ahead of the network, per connection: the rest waits in the program, where a stream that is
/// given up costs nothing. A kernel's buffer of several MiB would take a slow link half a minute.
const WRITE_AHEAD: u32 = 256 << 10;

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
        Ok(self.connect_metered(address)?.0)
    }

    /// Like [`Transport::connect_lazy`], with the bytes that come over it.
    pub fn connect_metered(&self, address: &Address) -> Result<(Channel, Meter), tonic::transport::Error> {
        let meter = Meter::default();
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(PROBE_AFTER));
        tcp.set_keepalive_interval(Some(PROBE_EVERY));
        tcp.set_keepalive_retries(Some(PROBES));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let connector = MeteredConnector::new(tcp, meter.clone());
        Ok((self.endpoint(address)?.connect_with_connector_lazy(connector), meter))
    }

    /// A connection that is made now, so that an address where nothing listens is an error at once.
    pub async fn connect(&self, address: &Address) -> Result<Channel, tonic::transport::Error> {
        self.endpoint(address)?.connect().await
    }

    /// A server. The receiver's frame size governs what the sender sends, so it is set on both sides.
    pub fn server(&self) -> Server {
        Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS)
            .max_frame_size(FRAME_SIZE)
    }

    /// A bound listener's connections, with Nagle's algorithm off: with it on, throughput falls to a
    /// twentieth, and tonic does not turn it off on listeners that it did not bind. Cancelling `cut` closes
    /// them all, whatever they are doing.
    pub fn incoming(
        &self,
        listener: TcpListener,
        cut: CancellationToken,
    ) -> impl Stream<Item = std::io::Result<Connection>> + use<> {
        let accepted = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(PROBE_AFTER))
            .with_keepalive_interval(Some(PROBE_EVERY))
            .with_keepalive_retries(Some(PROBES));
        accepted.map(move |stream| {
            let stream = stream?;
            // Only Linux has it; elsewhere a slow link is served less well.
            #[cfg(target_os = "linux")]
            {
                let socket = socket2::SockRef::from(&stream);
                socket.set_tcp_notsent_lowat(WRITE_AHEAD)?;
                socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
            }
            Ok(Connection::new(stream, cut.clone()))
        })
    }

    fn endpoint(&self, address: &Address) -> Result<Endpoint, tonic::transport::Error> {
        Ok(Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .tcp_keepalive(Some(PROBE_AFTER))
            .tcp_keepalive_interval(Some(PROBE_EVERY))
            .tcp_keepalive_retries(Some(PROBES))
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
