//! How other peers reach this one: the address that the tracker is told.
//!
//! Which of this machine's addresses it is, is decided by [`drizzle_engine::advertise`]; here the ways to the tracker
//! are looked up. Looked up anew each time: a laptop moves, a container gets its network late.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use drizzle_engine::advertise::{Choice, Way, choose, is_of_one_link};
use drizzle_proto::{Address, Families};
use tokio::net::TcpStream;

/// Of several ways to the tracker, each may take this long to show that it is one.
const TRY: Duration = Duration::from_secs(1);

const ONLY_HERE: &str = "only peers on this machine can reach that address; give the right one with --advertise";

/// Addresses that no machine has (RFC 5737, RFC 3849): the way to them is the way out of this network.
const OUTSIDE: [([u16; 8], Families); 2] =
    [([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201], Families::V4), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], Families::V6)];

/// How to be reached.
#[derive(Debug, Clone)]
pub(crate) enum Advertise {
    /// As told with `--advertise`, or the one address that is listened on.
    Fixed(Told),
    /// The local address that routes to the tracker.
    Routed(Routed),
}

/// What the local address depends on.
#[derive(Debug, Clone)]
pub(crate) struct Routed {
    /// The tracker.
    pub(crate) tracker: Address,
    /// What is listened on: the port is told, and no address of another family.
    pub(crate) listens: SocketAddr,
    pub(crate) families: Families,
}

/// An address to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) address: Address,
    /// Why other peers may not reach it there, for a person.
    pub(crate) doubt: Option<String>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdvertiseError {
    /// The tracker's name means nothing.
    #[error("cannot look up the tracker {tracker}: {source}")]
    Unknown { tracker: Address, source: io::Error },
    /// The machine is in no network, or in another one.
    #[error("no route to the tracker {tracker}: {source}")]
    NoRoute { tracker: Address, source: io::Error },
    /// All ways are of a family that is not listened on.
    #[error(
        "the tracker {tracker} is reached over {reached} only, and --listen {listens} takes {listened} only: give --listen [::]:{} for both, or --advertise HOST:PORT with an address at which other peers reach this one",
        .listens.port()
    )]
    NotListened { tracker: Address, reached: Families, listens: SocketAddr, listened: Families },
}

/// An address at which no other machine can reach this one.
#[derive(Debug, thiserror::Error)]
#[error("--advertise {address}: {reason}; give HOST:PORT, at which other peers reach this one, or leave it out")]
pub(crate) struct Unusable {
    address: Address,
    reason: String,
}

/// The address of `--advertise`, which some machine may have.
#[derive(Debug)]
pub(crate) struct Given {
    address: Address,
    ips: Vec<IpAddr>,
}

impl Given {
    /// Refused if no machine can be reached there, whatever the network.
    pub(crate) async fn check(address: Address) -> Result<Self, Unusable> {
        let unusable = |reason: String| Unusable { address: address.clone(), reason };
        let ips: Vec<IpAddr> = match address.ip() {
            Some(ip) => vec![ip.to_canonical()],
            None => {
                let found = tokio::net::lookup_host(address.as_str()).await;
                let found = found.map_err(|error| unusable(format!("the name cannot be looked up ({error})")))?;
                found.map(|address| address.ip()).collect()
            }
        };
        match ips.iter().find_map(|ip| fault(*ip)) {
            Some(fault) => Err(unusable(fault.to_owned())),
            None => Ok(Self { address, ips }),
        }
    }

    /// With a doubt if nothing listens there, or only this machine can reach it.
    pub(crate) fn told(self, families: Families, tracker: &Address) -> Told {
        let Self { address, ips } = self;
        let is_forwarded = ips.iter().all(|ip| !families.cover(*ip));
        let doubt = is_forwarded.then(|| {
            format!("--listen takes {families} only, so something else must take connections to that address and pass them on")
        });
        Told { doubt: doubt.or_else(|| loopback_doubt(&address, tracker)), address }
    }
}

impl Advertise {
    /// The one address that is listened on.
    pub(crate) fn listened(address: Address, tracker: &Address) -> Self {
        Self::Fixed(Told { doubt: loopback_doubt(&address, tracker), address })
    }

    /// The address to tell other peers. `told` is the one that was told last: it stays while it is good.
    pub(crate) async fn address(&self, told: Option<&Address>) -> Result<Told, AdvertiseError> {
        match self {
            Self::Fixed(told) => Ok(told.clone()),
            Self::Routed(routed) => routed.address(told).await,
        }
    }
}

/// Why an address cannot be a machine's.
fn fault(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("this means every address of a machine, and other peers need one")
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("this means many machines, and not this one")
    } else if is_of_one_link(ip) {
        Some("an address of one link needs a zone, which is called otherwise on each machine")
    } else {
        None
    }
}

/// Beside a tracker elsewhere, a loopback address is hardly meant.
fn loopback_doubt(address: &Address, tracker: &Address) -> Option<String> {
    (address.is_loopback() && !tracker.is_loopback()).then(|| ONLY_HERE.to_owned())
}

impl Routed {
    async fn address(&self, told: Option<&Address>) -> Result<Told, AdvertiseError> {
        let unknown = |source| AdvertiseError::Unknown { tracker: self.tracker.clone(), source };
        let remotes: Vec<SocketAddr> = tokio::net::lookup_host(self.tracker.as_str()).await.map_err(unknown)?.collect();
        let ways = self.ways(&remotes, local_address_towards)?;
        match choose(&ways, self.families, told.and_then(Address::ip)) {
            Choice::Tell(ip) => Ok(self.sure(ip)),
            Choice::Try(ways) => Ok(self.sure(first_that_leads(&ways).await)),
            Choice::NotListened(reached) => self.outside(reached, local_address_towards),
        }
    }

    fn sure(&self, ip: IpAddr) -> Told {
        let address: Address = SocketAddr::new(ip, self.listens.port()).into();
        let doubt = address.is_loopback().then(|| ONLY_HERE.to_owned());
        Told { address, doubt }
    }

    fn ways(
        &self,
        remotes: &[SocketAddr],
        towards: impl Fn(SocketAddr) -> io::Result<IpAddr>,
    ) -> Result<Vec<Way>, AdvertiseError> {
        let mut ways = Vec::new();
        let mut why = io::Error::other("it has no address");
        for &tracker in remotes {
            match towards(tracker) {
                Ok(local) => ways.push(Way { tracker, local }),
                Err(error) => why = error,
            }
        }
        if ways.is_empty() {
            Err(AdvertiseError::NoRoute { tracker: self.tracker.clone(), source: why })
        } else {
            Ok(ways)
        }
    }

    /// The tracker is reached in another family than the one that is listened on: this machine's address towards the
    /// rest of the world is the best guess.
    fn outside(
        &self,
        reached: Option<Families>,
        towards: impl Fn(SocketAddr) -> io::Result<IpAddr>,
    ) -> Result<Told, AdvertiseError> {
        let reached = reached.unwrap_or(Families::Both);
        let guess = OUTSIDE.into_iter().filter(|(_, family)| *family == self.families).find_map(|(outside, _)| {
            let ip = IpAddr::from(outside).to_canonical();
            towards(SocketAddr::new(ip, self.listens.port())).ok()
        });
        let (tracker, listens, listened) = (self.tracker.clone(), self.listens, self.families);
        match guess {
            Some(ip) => Ok(Told {
                address: SocketAddr::new(ip, listens.port()).into(),
                doubt: Some(format!(
                    "the tracker is reached over {reached}, and --listen {listens} takes {listened} only; if other peers cannot reach that address, give --listen [::]:{} or --advertise",
                    listens.port()
                )),
            }),
            None => Err(AdvertiseError::NotListened { tracker, reached, listens, listened }),
        }
    }
}

/// Connecting a UDP socket sends nothing; it only asks the routing table.
fn local_address_towards(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if remote.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// A route is no proof: the tracker may listen in one family only. Without any, the first: what is wrong will be told
/// when the tracker is called.
async fn first_that_leads(ways: &[Way]) -> IpAddr {
    for way in ways {
        if let Ok(Ok(_)) = tokio::time::timeout(TRY, TcpStream::connect(way.tracker)).await {
            return way.local;
        }
    }
    ways[0].local
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(tracker: &str, listens: &str, families: Families) -> Routed {
        Routed { tracker: Address::new(tracker).unwrap(), listens: listens.parse().unwrap(), families }
    }

    fn told(address: &str) -> Told {
        Told { address: Address::new(address).unwrap(), doubt: None }
    }

    async fn told_by_option(address: &str, families: Families) -> Result<Told, String> {
        let (address, tracker) = (Address::new(address).unwrap(), Address::new("tracker:7400").unwrap());
        let given = Given::check(address).await.map_err(|error| error.to_string())?;
        Ok(given.told(families, &tracker))
    }

    #[tokio::test]
    async fn an_address_that_is_no_machines_is_refused_and_the_reason_told() {
        for (address, reason) in [
            ("0.0.0.0:7401", "every address"),
            ("[::]:7401", "every address"),
            ("[::ffff:0.0.0.0]:7401", "every address"),
            ("224.0.0.1:7401", "many machines"),
            ("255.255.255.255:7401", "many machines"),
            ("[ff02::1]:7401", "many machines"),
            ("[fe80::1]:7401", "a zone"),
            ("no-such-host.invalid:7401", "cannot be looked up"),
        ] {
            let error = told_by_option(address, Families::Both).await.unwrap_err();
            assert!(error.starts_with(&format!("--advertise {address}: ")), "{error}");
            assert!(error.contains(reason) && error.contains("give HOST:PORT"), "{error}");
        }
        for address in ["10.0.0.1:7401", "[2001:db8::1]:7401"] {
            assert_eq!(told_by_option(address, Families::Both).await, Ok(told(address)));
        }
    }

    #[tokio::test]
    async fn an_address_that_may_be_meant_is_told_with_a_doubt() {
        let doubt = async |address, families| told_by_option(address, families).await.unwrap().doubt.unwrap();
        assert!(doubt("[2001:db8::1]:7401", Families::V4).await.contains("takes IPv4 only"));
        assert!(doubt("localhost:7401", Families::Both).await.contains("only peers on this machine"));
        let (address, far, near) = ("127.0.0.1:7401", "tracker:7400", "127.0.0.1:7400");
        let (address, [far, near]) = (Address::new(address).unwrap(), [far, near].map(|a| Address::new(a).unwrap()));
        for (tracker, doubted) in [(far, true), (near, false)] {
            let told = Advertise::listened(address.clone(), &tracker).address(None).await.unwrap();
            assert_eq!(told.doubt.is_some(), doubted);
        }
    }

    #[tokio::test]
    async fn the_routed_address_is_the_one_towards_the_tracker() {
        let advertise = Advertise::Routed(routed("127.0.0.3:7400", "[::]:99", Families::Both));
        let told = advertise.address(None).await.unwrap();
        assert_eq!(told.address.as_str(), "127.0.0.1:99");
        assert!(told.doubt.unwrap().contains("--advertise"), "no other machine can reach it");
    }

    #[tokio::test]
    async fn of_several_ways_the_one_that_leads_to_the_tracker_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let (one, two) = ("10.0.0.2".parse().unwrap(), "10.1.0.2".parse().unwrap());
        let deaf = Way { tracker: "127.0.0.1:1".parse().unwrap(), local: one };
        assert_eq!(first_that_leads(&[deaf, Way { tracker: there, local: two }]).await, two);
        assert_eq!(first_that_leads(&[deaf, Way { local: two, ..deaf }]).await, one);
    }

    #[test]
    fn a_tracker_in_another_family_makes_a_guess_with_a_doubt_or_an_error_that_says_what_to_do() {
        let routed = routed("tr:7400", "0.0.0.0:7401", Families::V4);
        let guess = routed.outside(Some(Families::V6), |remote| {
            assert_eq!(remote.ip(), IpAddr::from([192, 0, 2, 1]));
            Ok([10, 0, 0, 5].into())
        });
        let guess = guess.unwrap();
        assert_eq!(guess.address, told("10.0.0.5:7401").address);
        assert!(guess.doubt.unwrap().contains("over IPv6, and --listen 0.0.0.0:7401 takes IPv4 only"));

        let none = routed.outside(Some(Families::V6), |_| Err(io::ErrorKind::NetworkUnreachable.into()));
        let text = none.unwrap_err().to_string();
        for part in ["tr:7400 is reached over IPv6 only", "--listen [::]:7401", "--advertise HOST:PORT"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_tracker_without_a_route_is_named() {
        let routed = routed("tr:7400", "[::]:7401", Families::Both);
        let remotes = ["10.0.0.1:7400".parse().unwrap()];
        let error = routed.ways(&remotes, |_| Err(io::ErrorKind::NetworkUnreachable.into())).unwrap_err();
        assert!(error.to_string().starts_with("no route to the tracker tr:7400: "), "{error}");
        assert!(matches!(routed.ways(&[], |_| unreachable!()), Err(AdvertiseError::NoRoute { .. })));
    }
}
