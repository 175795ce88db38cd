//! The settings of every connection, in one place. Where a figure stands, it was measured: see the
//! README's table of measured settings.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tower_service::Service;

use super::{
    accept::Incoming,
    ahead::{self, WriteAhead},
    crowd::Crowd,
    dial::Dialler,
    door::Door,
    guard::{Guarded, Policy},
    handshakes::Handshakes,
    line::{Line, Settings},
    meter::{Meter, MeteredConnector},
    pass::Pass,
    tls::{self, Credentials, Meant, Mode, Tls},
};
use crate::{Address, files, limits::MESSAGE_SIZE};

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

/// Bytes of one stream that a receiver lets a sender have on the way, and of one connection. A stream fills its window
/// once each round trip: 2 MiB at 10 ms are 200 MiB/s.
pub const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;

/// Streams of one connection at once, far above what a well-behaved peer uses.
const MAX_STREAMS: u32 = 1024;

/// Before a server has said how many streams it takes, what RFC 9113 asks it to take at least; and bytes of headers, what
/// hyper takes.
const STREAMS_AT_FIRST: usize = 100;
const MAX_HEADERS: u32 = 16 << 10;

// A u32 where hyper wants one. With room for the headers of gRPC and protobuf: without it every message
// would end in a second frame of a few bytes.
#[allow(clippy::cast_possible_truncation)]
const FRAME_SIZE: u32 = MESSAGE_SIZE as u32 + 1024;

/// How this program connects and accepts: made once, and the only maker of connections and servers.
#[derive(Debug, Clone, Default)]
pub struct Transport {
    /// Absent: without encryption and authentication.
    tls: Option<Arc<Tls>>,
    pass: Pass,
    handshakes: Handshakes,
}

/// Which connections a listener takes that show no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strangers {
    /// None, where TLS is required.
    Refused,
    /// Those that speak TLS: they may come to get an identity.
    Heard,
}

impl Transport {
    /// Plain TCP, without encryption or authentication.
    pub fn plaintext() -> Self {
        Self::default()
    }

    /// TCP secured by TLS.
    pub fn secured(tls: Arc<Tls>) -> Self {
        Self { tls: Some(tls), ..Self::default() }
    }

    /// TCP secured by TLS with these.
    pub fn with(credentials: &Credentials, mode: Mode) -> Result<Self, tls::Error> {
        Ok(Self::secured(Arc::new(Tls::new(credentials, mode)?)))
    }

    /// For a client that shows nothing, and believes a server whose chain leads to the certificate with this SHA-256.
    pub fn pinned(fingerprint: [u8; 32]) -> Result<Self, tls::Error> {
        Ok(Self::secured(Arc::new(Tls::pinned(fingerprint)?)))
    }

    /// For a program of this machine that asks a daemon how it is: believes those whom that authority certified, shows
    /// nothing, and does without TLS where the daemon does. Blocks on the disk; an error is a line for a person.
    pub fn that_only_asks(ca: &Path) -> Result<Self, String> {
        let name = ca.display().to_string();
        let pem = files::read(ca).map_err(|error| format!("cannot read {name}: {error}"))?;
        let credentials = Credentials::anonymous(&pem, &name).map_err(|error| error.to_string())?;
        Self::with(&credentials, Mode::Preferred).map_err(|error| error.to_string())
    }

    /// What it is secured by, if it is.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// Its TLS handshakes so far.
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// What its calls for chunks show.
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// Whether every connection over a network proves who is at its other end.
    pub fn is_secured(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode() == Mode::Required)
    }

    /// A connection that is made when it is first used, and again whenever it is lost.
    pub fn connect_lazy(&self, address: &Address, meant: Meant) -> Result<Channel, tonic::transport::Error> {
        Ok(self.endpoint(address)?.connect_with_connector_lazy(self.dialler(address, meant)))
    }

    /// Likewise, for calls that are made by hand, with the same settings. The bytes that come over it are counted.
    pub fn line(&self, address: &Address, meant: Meant) -> Result<Line, tonic::transport::Error> {
        let mut http2 = h2::client::Builder::new();
        http2
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .max_header_list_size(MAX_HEADERS)
            .enable_push(false);
        let settings = Settings {
            http2,
            connect_timeout: CONNECT_TIMEOUT,
            probe_after: KEEP_ALIVE,
            probe_timeout: KEEP_ALIVE_TIMEOUT,
        };
        let meter = Meter::default();
        let connector = MeteredConnector::new(self.dialler(address, meant), meter.clone());
        Ok(Line::new(self.endpoint(address)?.uri().clone(), connector, meter, settings, self.pass.clone()))
    }

    /// A connection that is made now, so that an address where nothing listens is an error at once.
    pub async fn connect(&self, address: &Address, meant: Meant) -> Result<Channel, tonic::transport::Error> {
        self.endpoint(address)?.connect_with_connector(self.dialler(address, meant)).await
    }

    fn dialler(&self, address: &Address, meant: Meant) -> Dialler {
        Dialler::new(tcp_connector(), self.tls.clone().map(|tls| (tls, meant.name(address))), self.handshakes.clone())
    }

    /// A server. The receiver's frame size governs what the sender sends, so it is set on both sides.
    pub fn server(&self) -> Server {
        Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS)
            .max_frame_size(FRAME_SIZE)
    }

    /// A bound listener's connections. Cancelling `cut` closes them all, whatever they are doing.
    pub fn incoming(&self, listener: TcpListener, strangers: Strangers, cut: CancellationToken) -> Incoming {
        let (tls, handshakes) = (self.tls.clone(), self.handshakes.clone());
        let (door, crowd) = (Mutex::new(Door::default()), Crowd::default());
        let take = move |stream: TcpStream| {
            let Some(tls) = &tls else {
                return accepted(
                    stream,
                    Policy { tls: None, plain: true, crowd: crowd.clone(), handshakes: handshakes.clone() },
                );
            };
            if let Ok(from) = stream.peer_addr()
                && !door.lock().unwrap_or_else(PoisonError::into_inner).admits(from.ip(), Instant::now())
            {
                tracing::debug!(%from, "too many connections begin from there at once; this one is closed");
                return None;
            }
            let configs = tls.configs();
            let config = match strangers {
                Strangers::Refused => configs.server.clone(),
                Strangers::Heard => configs.open_server.clone(),
            };
            accepted(
                stream,
                Policy {
                    tls: config,
                    plain: tls.mode() == Mode::Preferred,
                    crowd: crowd.clone(),
                    handshakes: handshakes.clone(),
                },
            )
        };
        Incoming::new(listener, cut, take)
    }

    /// As [`Transport::incoming`], of a socket in a folder of this machine. The folder's rights say which programs reach it.
    pub fn incoming_local(
        &self,
        listener: UnixListener,
        cut: CancellationToken,
    ) -> Incoming<UnixListener, Guarded<UnixStream>> {
        Incoming::new(listener, cut, |stream| Some(Guarded::local(stream)))
    }

    /// A connection to such a socket, made now.
    pub async fn connect_local(&self, socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
        // The address is a word for logs; the connector knows where to go.
        Endpoint::from_static("http://local").connect_with_connector(LocalConnector(socket)).await
    }

    fn endpoint(&self, address: &Address) -> Result<Endpoint, tonic::transport::Error> {
        Ok(Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE))
    }
}

/// Makes a client's TCP connections.
fn tcp_connector() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp
}

/// Connects to a socket in a folder, whatever the address.
struct LocalConnector(PathBuf);

impl Service<Uri> for LocalConnector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(socket).await?)) })
    }
}

/// A connection that a server has accepted, set up.
fn accepted(stream: TcpStream, policy: Policy) -> Option<Guarded> {
    // Where this fails the connection is gone, which its reader will find.
    let _ = set_up_accepted(&stream);
    Some(Guarded::new(stream, policy))
}

/// Sets up a connection that a server has accepted.
fn set_up_accepted(stream: &TcpStream) -> io::Result<()> {
    // Nagle's algorithm costs nineteen twentieths of the throughput, and tonic turns it off only on listeners that it
    // bound.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    // Only Linux has these; elsewhere a slow link is served less well.
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_notsent_lowat(ahead::LEAST)?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    }
    Ok(())
}

impl WriteAhead for TcpStream {
    fn write_ahead(&self, bytes: u32) {
        // Only Linux has it. A connection on which it fails writes ahead what it did before.
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(self).set_tcp_notsent_lowat(bytes);
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
    }
}

/// What is written to another program of this machine is there at once.
impl WriteAhead for UnixStream {
    fn write_ahead(&self, _: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn an_accepted_connection_finds_a_dead_peer_and_buffers_little() {
        use tokio_stream::StreamExt;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Transport::plaintext().incoming(listener, Strangers::Refused, CancellationToken::new());
        let (client, accepted) = tokio::join!(TcpStream::connect(address), incoming.next());
        let (_client, accepted) = (client.unwrap(), accepted.unwrap().unwrap());
        let socket = SockRef::from(accepted.stream().stream());
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), ahead::LEAST);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }

    #[test]
    fn every_kind_of_address_can_be_dialled() {
        for text in ["localhost:1", "a_b-c.d:65535", "10.0.0.1:7401", "[::1]:7401"] {
            let address = Address::new(text).unwrap();
            Transport::plaintext().endpoint(&address).unwrap();
        }
    }
}
