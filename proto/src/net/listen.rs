//! Listening, on both address families where that is meant.
//!
//! What holds: `[::]` means every address of the machine, IPv4 and IPv6, whatever the system's
//! `net.ipv6.bindv6only` says, and IPv4 alone on a machine without IPv6; `0.0.0.0` means IPv4 alone; anything else
//! means that one address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen as listen_on, socket_with, sockopt},
};
use tokio::net::TcpListener;

use crate::Families;

/// Connections that wait to be accepted; what tokio asks for as well.
const BACKLOG: i32 = 1024;

/// A bound listener.
#[derive(Debug)]
pub struct Listening {
    /// For [`super::transport::Transport::incoming`].
    pub listener: TcpListener,
    /// Where it listens, with the real port.
    pub address: SocketAddr,
    /// Which families it takes connections from.
    pub families: Families,
}

/// Listens at this address; port 0 takes a free one.
pub fn listen(address: SocketAddr) -> io::Result<Listening> {
    let (listener, families) = with_fallback(address, socket_at)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok(Listening { listener, address, families })
}

/// `[::]`, or all of IPv4 if that cannot be had because the machine has no IPv6.
fn with_fallback<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<(T, Families)> {
    let every = address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let families = if every { Families::Both } else { Families::of(address.ip()) };
    match bind(address) {
        Err(error) if every && has_no_ipv6(&error) => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            Ok((bind(v4)?, Families::V4))
        }
        bound => Ok((bound?, families)),
    }
}

/// No such family in the kernel, or none of its addresses, not even the unspecified one.
fn has_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

fn socket_at(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    // A restarted daemon gets its port back although old connections linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen_on(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn every_address_means_both_families() {
        let listening = listen(at("[::]:0")).unwrap();
        // Without IPv6 it is IPv4 alone, which the connection below reaches as well.
        TcpStream::connect((Ipv4Addr::LOCALHOST, listening.address.port())).unwrap();
        if listening.families == Families::Both && TcpStream::connect(listening.address).is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, listening.address.port())).unwrap();
        }
        assert_eq!(listen(listening.address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn an_ipv4_address_means_ipv4_alone() {
        for address in ["0.0.0.0:0", "127.0.0.1:0"] {
            let listening = listen(at(address)).unwrap();
            assert_eq!(listening.families, Families::V4);
            TcpStream::connect((Ipv4Addr::LOCALHOST, listening.address.port())).unwrap();
            assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, listening.address.port())).is_err());
        }
    }

    #[test]
    fn a_machine_without_ipv6_listens_on_ipv4_and_other_refusals_stay_refusals() {
        let without = |code: Errno| {
            move |address: SocketAddr| match address.is_ipv6() {
                true => Err(io::Error::from(code)),
                false => Ok(address),
            }
        };
        for code in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(with_fallback(at("[::]:7"), without(code)).unwrap(), (at("0.0.0.0:7"), Families::V4));
            assert!(with_fallback(at("[::1]:7"), without(code)).is_err(), "one address is that address");
        }
        assert!(with_fallback(at("[::]:7"), without(Errno::ADDRINUSE)).is_err());
    }
}
