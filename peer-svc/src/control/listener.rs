//! Where the Control service listens: at a port, or at a socket.

use std::{io, pin::Pin};

use drizzle_proto::net::{
    control_at::ControlAt,
    listen,
    transport::{Strangers, Transport},
};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

use super::socket::{self, Socket, SocketError};

/// A bound listener.
#[derive(Debug)]
pub(crate) enum Listener {
    /// At a port.
    Tcp(TcpListener),
    /// At a socket.
    Unix(UnixListener),
}

/// The Control service, until it is stopped.
pub(crate) type Server = Pin<Box<dyn Future<Output = Result<(), tonic::transport::Error>> + Send>>;
/// As of [`drizzle_proto::net::accept::Incoming::broken`].
pub(crate) type Broken = Pin<Box<dyn Future<Output = Option<io::Error>> + Send>>;

/// Listens there; where that really is, and for a socket what removes it in the end.
pub(crate) fn listen(at: &ControlAt) -> Result<(Listener, ControlAt, Option<Socket>), SocketError> {
    Ok(match at {
        ControlAt::Tcp(address) => {
            let listening = listen::listen(*address).map_err(SocketError::Port)?;
            (Listener::Tcp(listening.listener), ControlAt::Tcp(listening.address), None)
        }
        ControlAt::Unix(path) => {
            let (listener, socket) = socket::bind(path)?;
            (Listener::Unix(listener), at.clone(), Some(socket))
        }
    })
}

impl Listener {
    /// Serves until `stop`; connections that are left then until `cut`. And what ends if the listener breaks.
    pub(crate) fn serve(
        self,
        transport: &Transport,
        router: Router,
        stop: CancellationToken,
        cut: CancellationToken,
    ) -> (Server, Broken) {
        let stop = stop.cancelled_owned();
        match self {
            Self::Tcp(listener) => {
                let mut incoming = transport.incoming(listener, Strangers::Heard, cut);
                let broken = Box::pin(incoming.broken());
                (Box::pin(router.serve_with_incoming_shutdown(incoming, stop)), broken)
            }
            Self::Unix(listener) => {
                let mut incoming = transport.incoming_local(listener, cut);
                let broken = Box::pin(incoming.broken());
                (Box::pin(router.serve_with_incoming_shutdown(incoming, stop)), broken)
            }
        }
    }
}
