//! How many connections one address may begin, before anything is known of it.
//!
//! A handshake costs both ends about as much, so one machine can keep another one busy. What holds (each line has a test):
//! - an address may begin [`BURST`] at once, and [`RATE`] each second over time; the others are not affected;
//! - addresses of one IPv6 network of 64 bits are one;
//! - what is remembered is bounded, and what is forgotten first is what was refused nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use crate::bucket::Bucket;

/// Handshakes a second of one address, over time.
pub const RATE: u32 = 200;
/// And at once.
pub const BURST: u32 = 1000;
/// Addresses that are remembered.
const MOST: usize = 16 << 10;

/// Lets connections in.
#[derive(Debug, Default)]
pub struct Door {
    of: HashMap<IpAddr, Bucket>,
}

impl Door {
    /// Whether a connection from there may begin its handshake.
    pub fn admits(&mut self, address: IpAddr, now: Instant) -> bool {
        let each = Duration::from_secs(1) / RATE;
        if self.of.len() >= MOST {
            self.of.retain(|_, bucket| !bucket.is_full(now));
            // As many attackers at once: then all are let in, and the bound on what runs at once holds.
            if self.of.len() >= MOST {
                return true;
            }
        }
        let bucket = self.of.entry(network(address)).or_insert_with(|| Bucket::full(now));
        // One of those that may begin at once finds nothing used.
        bucket.take(each, each * (BURST - 1), now).is_ok()
    }
}

/// What one machine's owner has as many of as he likes counts as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_slowed_down_and_others_are_not() {
        let (mut door, now) = (Door::default(), Instant::now());
        let [noisy, quiet] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!((0..2 * BURST).filter(|_| door.admits(noisy, now)).count(), BURST as usize);
        assert!(door.admits(quiet, now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..2 * BURST).filter(|_| door.admits(noisy, later)).count(), RATE as usize);
        let [one, other, further] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!((0..2 * BURST).filter(|_| door.admits(one, now)).count(), BURST as usize);
        assert!(!door.admits(other, now) && door.admits(further, now));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut door, now) = (Door::default(), Instant::now());
        for n in 0..2 * u32::try_from(MOST).unwrap() {
            assert!(door.admits(IpAddr::from(n.to_be_bytes()), now));
            assert!(door.of.len() <= MOST);
        }
        let later = now + Duration::from_secs(1);
        assert!(door.admits(IpAddr::from([1, 2, 3, 4]), later));
        assert_eq!(door.of.len(), 1, "who waits for nothing is forgotten");
    }
}
