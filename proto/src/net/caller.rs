//! Which identity is behind a request, as far as its connection proves it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use tonic::Extensions;

use super::tls::{Certificate, Certified};
use crate::PeerId;

/// What a connection proves of the program at its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A program of this machine that may open the socket.
    Local,
    /// Anybody: the connection is not secured.
    Plain,
    /// Anybody that speaks TLS: it showed no certificate, or one without an identity.
    Unknown,
    /// What its certificate says.
    Certified(Certified),
}

impl Caller {
    /// Of a request that came over a connection of [`transport`](super::transport).
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Accepted>().map_or(Self::Plain, Accepted::caller)
    }

    /// The peer that it is, if that is proved.
    pub fn peer(self) -> Option<PeerId> {
        match self {
            Self::Certified(certified) => certified.peer(),
            _ => None,
        }
    }
}

/// What is known of an accepted connection; its requests bear it.
#[derive(Debug, Clone)]
pub struct Accepted {
    remote: Option<SocketAddr>,
    /// Empty until the handshake is over, before which there are no requests.
    caller: Arc<OnceLock<Caller>>,
}

impl Accepted {
    pub(super) fn new(remote: Option<SocketAddr>) -> Self {
        Self { remote, caller: Arc::default() }
    }

    pub(super) fn is(&self, caller: Caller) {
        // Each connection has one handshake.
        let _ = self.caller.set(caller);
    }

    pub(super) fn showed(&self, certificate: &Certificate) {
        self.is(certificate.says.map_or(Caller::Unknown, Caller::Certified));
    }

    /// What it proved.
    pub fn caller(&self) -> Caller {
        self.caller.get().copied().unwrap_or(Caller::Unknown)
    }

    /// The other end of the connection, if it came from the network.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// Where it came from, if from the network.
    pub fn source(&self) -> Option<IpAddr> {
        self.remote.map(|address| address.ip().to_canonical())
    }
}
