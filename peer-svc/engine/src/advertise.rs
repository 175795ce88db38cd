//! At which of its own addresses a peer is to be reached: what it tells the tracker.
//!
//! The caller finds the ways: for each address of the tracker, the local address that the machine would use to
//! reach it. What holds:
//! - an address of a family that the listener does not take is never told, nor one that means something on one link
//!   only;
//! - the address that was told last stays as long as it is among the ways, so that a tracker with several addresses,
//!   which come in another order at each look-up, does not make a peer move to and fro;
//! - otherwise the ways are told apart only by their order.

use std::net::{IpAddr, SocketAddr};

use drizzle_proto::Families;

/// A way to the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// An address of the tracker.
    pub tracker: SocketAddr,
    /// The local address towards it.
    pub local: IpAddr,
}

/// What to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This address, on which the daemon listens and by which the tracker is reached.
    Tell(IpAddr),
    /// The first of these, each with another local address, by which the tracker is really reached.
    Try(Vec<Way>),
    /// The listener takes none of them; the families in which the tracker is reached, if it is reached at all.
    NotListened(Option<Families>),
}

/// Chooses among the ways for a listener of these families; `told` is the address that was told last.
pub fn choose(ways: &[Way], listened: Families, told: Option<IpAddr>) -> Choice {
    let mut fit: Vec<Way> = Vec::new();
    for way in ways.iter().filter(|way| listened.cover(way.local) && !is_of_one_link(way.local)) {
        if told == Some(way.local) {
            return Choice::Tell(way.local);
        }
        if fit.iter().all(|known| known.local != way.local) {
            fit.push(*way);
        }
    }
    match fit[..] {
        [] => Choice::NotListened(
            ways.iter().map(|way| Families::of(way.local)).reduce(
                |one, other| {
                    if one == other { one } else { Families::Both }
                },
            ),
        ),
        [only] => Choice::Tell(only.local),
        _ => Choice::Try(fit),
    }
}

/// Such an address needs a zone, which is called otherwise on each machine.
pub fn is_of_one_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn way(tracker: &str, local: &str) -> Way {
        Way { tracker: SocketAddr::new(tracker.parse().unwrap(), 7400), local: local.parse().unwrap() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_listened_on_is_told() {
        let ways = [way("2001:db8::1", "2001:db8::2"), way("10.0.0.1", "10.0.0.2")];
        assert_eq!(choose(&ways, Families::V4, None), Choice::Tell(ip("10.0.0.2")));
        assert_eq!(choose(&ways, Families::V6, None), Choice::Tell(ip("2001:db8::2")));
        assert_eq!(choose(&ways, Families::Both, None), Choice::Try(ways.to_vec()));
        assert_eq!(choose(&ways[..1], Families::V4, None), Choice::NotListened(Some(Families::V6)));
        assert_eq!(choose(&[], Families::V4, None), Choice::NotListened(None));
        assert_eq!(choose(&[way("fe80::1", "fe80::2")], Families::Both, None), Choice::NotListened(Some(Families::V6)));
    }

    #[test]
    fn an_address_that_is_still_good_stays() {
        let (one, two) = (way("10.0.0.1", "10.0.0.2"), way("10.1.0.1", "10.1.0.2"));
        for ways in [[one, two], [two, one]] {
            assert_eq!(choose(&ways, Families::Both, Some(ip("10.1.0.2"))), Choice::Tell(ip("10.1.0.2")));
        }
        assert_eq!(choose(&[one], Families::Both, Some(ip("10.1.0.2"))), Choice::Tell(ip("10.0.0.2")), "it moved");
    }

    fn local() -> impl Strategy<Value = IpAddr> {
        (0u8..4, 0u8..3).prop_map(|(n, kind)| match kind {
            0 => ip(&format!("10.0.0.{n}")),
            1 => ip(&format!("2001:db8::{n}")),
            _ => ip(&format!("fe80::{n}")),
        })
    }

    proptest! {
        #[test]
        fn whatever_is_told_is_listened_on_and_is_a_way(
            locals in proptest::collection::vec(local(), 0..6),
            listened in prop_oneof![Just(Families::V4), Just(Families::V6), Just(Families::Both)],
            told in proptest::option::of(local()),
        ) {
            let ways: Vec<Way> = locals.iter().map(|&local| Way { local, ..way("10.9.9.9", "10.9.9.9") }).collect();
            let may_be_told = |ip: &IpAddr| listened.cover(*ip) && !is_of_one_link(*ip) && locals.contains(ip);
            let chosen = choose(&ways, listened, told);
            match &chosen {
                Choice::Tell(ip) => prop_assert!(may_be_told(ip)),
                Choice::Try(ways) => prop_assert!(ways.len() > 1 && ways.iter().all(|way| may_be_told(&way.local))),
                Choice::NotListened(_) => prop_assert!(!locals.iter().any(may_be_told)),
            }
            if let Some(told) = told.filter(may_be_told) {
                prop_assert_eq!(chosen, Choice::Tell(told));
            }
        }
    }
}
