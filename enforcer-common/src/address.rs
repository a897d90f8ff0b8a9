//! The one form of an IP address in every map: 16 bytes, IPv4 as v4-mapped IPv6 (RFC 4291, section 2.5.5.2).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address, 16 bytes in network byte order; IPv4 is `::ffff:a.b.c.d`.
///
/// Writers and readers of maps go through the constructors here, so that the two spellings of one IPv4 address
/// cannot be two keys.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Address {
    /// The bytes.
    pub bytes: [u8; 16],
}

impl Address {
    /// The prefix that marks a v4-mapped address.
    const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// From the four bytes of an IPv4 address as they stand in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = bytes;
        Self { bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] }
    }

    /// From the sixteen bytes of an IPv6 address as they stand in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_v6(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }

    /// True for `::ffff:0:0/96`.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.bytes.starts_with(&Self::V4_PREFIX)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            let [.., a, b, c, d] = address.bytes;
            Self::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            Self::V6(Ipv6Addr::from(address.bytes))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn both_spellings_of_an_ipv4_address_are_one_key() {
        let plain: IpAddr = "10.1.2.3".parse().expect("an address");
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().expect("an address");
        assert_eq!(Address::from(plain), Address::from(mapped));
        assert_eq!(Address::from(plain).to_string(), "10.1.2.3");
    }

    #[test]
    fn ipv6_round_trips() {
        let ip: IpAddr = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff".parse().expect("an address");
        assert_eq!(IpAddr::from(Address::from(ip)), ip);
        assert!(!Address::from(ip).is_v4());
    }
}
