//! Who a peer is, and where it is reached. The two are apart: a peer that moves stays the same peer.
//! [`PeerInfo`] is both, with its labels.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use crate::Labels;

/// Longest address: a 255-byte host, a colon, five digits.
pub const MAX_ADDRESS: usize = 261;

/// A peer's lasting identity: 16 random bytes, written as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 16]);

/// The text is not 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id: expected 32 lower-case hex digits")]
pub struct PeerIdError;

impl PeerId {
    /// Wraps 16 random bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(PeerIdError);
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| PeerIdError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names one run of a peer's process: 16 random bytes, written as 32 lower-case hex digits. Tells a peer from a copy of
/// its state that was started elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(PeerId);

impl Session {
    /// Wraps 16 random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(PeerId(bytes))
    }
}

impl FromStr for Session {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What a process shows to get a lease for its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerClaim {
    /// The peer that it says it is.
    pub peer: PeerInfo,
    /// Which run of the process it is; older programs do not tell.
    pub session: Option<Session>,
    /// The last lease that it held.
    pub last_lease: Option<u64>,
}

impl From<&PeerInfo> for PeerClaim {
    fn from(peer: &PeerInfo) -> Self {
        Self { peer: peer.clone(), session: None, last_lease: None }
    }
}

/// Where a peer is reached: `HOST:PORT`, the host a name, an IPv4 address or a bracketed IPv6
/// address, the port not 0. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST:PORT (a name, an IPv4 or a bracketed IPv6 address, and a port from 1 to 65535)")]
pub struct AddressError(String);

impl Address {
    /// Checks an address.
    pub fn new(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.chars().take(MAX_ADDRESS).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let host_is_fine = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            // The same letters that a URL's host takes without escaping, so that no address can
            // smuggle a path, a user name or another port into a URL.
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        let port_is_fine = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
        if text.len() > MAX_ADDRESS || !host_is_fine || !port_is_fine {
            return Err(error());
        }
        Ok(Self(text.into()))
    }

    /// `HOST:PORT`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it can only mean the machine itself.
    pub fn is_loopback(&self) -> bool {
        let is_localhost = || self.0.rsplit_once(':').is_some_and(|(host, _)| host == "localhost");
        self.ip().map_or_else(is_localhost, |ip| ip.is_loopback())
    }

    /// The IP address, unless the host is a name.
    pub fn ip(&self) -> Option<IpAddr> {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    /// Where a listener at this address is asked on its own machine: at loopback if it listens on every address.
    /// IPv4 even for `[::]`, which takes it as well, because a machine may have no IPv6.
    pub fn asked_locally(&self) -> Self {
        match (self.ip().is_some_and(|ip| ip.is_unspecified()), self.0.rsplit_once(':')) {
            (true, Some((_, port))) => Self(format!("127.0.0.1:{port}").into()),
            _ => self.clone(),
        }
    }

    /// From what a person writes: `HOST:PORT`, or the same behind `http://`.
    pub fn from_url(text: &str) -> Result<Self, AddressError> {
        Self::new(text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/'))
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::new(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<std::net::SocketAddr> for Address {
    /// The port must not be 0: take it from a bound socket. An IPv6 scope is dropped: it means something on one
    /// machine only.
    fn from(address: std::net::SocketAddr) -> Self {
        Self(std::net::SocketAddr::new(address.ip(), address.port()).to_string().into())
    }
}

/// A peer as others know it: its id, where it is reached, what it says of itself. One shared value from the
/// registration to the scheduler; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerInfo(Arc<Known>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Known {
    id: PeerId,
    address: Address,
    labels: Labels,
}

impl PeerInfo {
    /// Brings the parts together.
    pub fn new(id: PeerId, address: Address, labels: Labels) -> Self {
        Self(Arc::new(Known { id, address, labels }))
    }

    /// Its lasting identity.
    pub fn id(&self) -> PeerId {
        self.0.id
    }

    /// Where its Peer service is reached.
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// What it says of where it is.
    pub fn labels(&self) -> &Labels {
        &self.0.labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:1", "[::1]:7401", "peer-1.rack_2.example:65535"] {
            assert_eq!(Address::from_url(&format!("http://{good}/")), Address::new(good));
        }
        let long = format!("{}:1", "h".repeat(300));
        for bad in [
            "",
            ":1",
            "host",
            "host:0",
            "host:65536",
            "host:+1",
            "host:",
            "::1:80",
            "[::1:80",
            "[zz]:1",
            "a/b:1",
            "u@h:1",
            "h:1/x",
            "h h:1",
            "h:1:2",
            &long,
        ] {
            assert!(Address::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_address_of_a_socket_is_an_address() {
        let scoped = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 7401, 0, 3);
        assert_eq!(Address::from(std::net::SocketAddr::from(scoped)), Address::new("[fe80::1]:7401").unwrap());
    }

    #[test]
    fn loopback_addresses() {
        let is_loopback = |text| Address::new(text).unwrap().is_loopback();
        assert!(["127.0.0.1:1", "127.0.1.1:1", "[::1]:1", "localhost:1"].into_iter().all(is_loopback));
        assert!(!["10.0.0.1:1", "[fe80::1]:1", "host:1"].into_iter().any(is_loopback));
    }

    #[test]
    fn a_listener_on_every_address_is_asked_at_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[::1]:1", "[::1]:1"),
            ("host:1", "host:1"),
        ] {
            assert_eq!(Address::new(listens).unwrap().asked_locally().as_str(), asked);
        }
    }

    #[test]
    fn peer_ids() {
        let id = PeerId::from_bytes([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", &"AB".repeat(16), &"ab".repeat(17)] {
            assert!(bad.parse::<PeerId>().is_err(), "{bad}");
        }
    }
}
