//! The one form of an IP address in every map: 16 bytes, IPv4 as v4-mapped IPv6 (RFC 4291, section 2.5.5.2).
//!
//! A link-local address (RFC 4291, section 2.5.6) is unique on its link only, and no status of a pod names it. Where it is a pod's,
//! the maps hold it with the link in its second 32 bits, which are zero on the wire, as the KAME stack did:
//! `fe80:0:IIII:IIII:…`, in network byte order. A packet that carries such an address belongs to no pod.

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
    /// The first 32 bits of a link-local address.
    const LINK_LOCAL: u64 = 0xfe80_0000;
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

    /// True for `fe80::/64`: a link-local address as it stands in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(&self) -> bool {
        self.prefix() == Self::LINK_LOCAL << 32
    }

    /// The first half, as a number.
    #[inline(always)]
    const fn prefix(&self) -> u64 {
        match self.bytes.first_chunk() {
            Some(first) => u64::from_be_bytes(*first),
            None => 0,
        }
    }

    /// A link-local address on this link: the index of the pod's host-side interface, or the stamp of its network namespace
    /// where the pod is enforced at its own device.
    #[inline(always)]
    #[must_use]
    pub const fn on_link(mut self, link: u32) -> Self {
        self.set_link(link);
        self
    }

    /// Puts a link-local address on this link; 0: on none, as it stands in packets.
    #[inline(always)]
    pub const fn set_link(&mut self, link: u32) {
        let [e, f, g, h] = link.to_be_bytes();
        let [_, _, _, _, first, second, third, fourth, ..] = &mut self.bytes;
        (*first, *second, *third, *fourth) = (e, f, g, h);
    }

    /// Stands for every link-local address of the pod on this link: the agent knows their policy by it, which is in `LINKS`.
    #[inline(always)]
    #[must_use]
    pub const fn link(link: u32) -> Self {
        Self { bytes: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }.on_link(link)
    }

    /// The link of a link-local address that has one.
    #[inline(always)]
    #[must_use]
    pub const fn link_of(&self) -> Option<u32> {
        let prefix = self.prefix();
        let link = (prefix & 0xffff_ffff) as u32;
        if prefix >> 32 == Self::LINK_LOCAL && link != 0 { Some(link) } else { None }
    }

    /// Under which the agent knows the policy of this address: itself, or its link.
    #[must_use]
    pub const fn listed(&self) -> Self {
        match self.link_of() {
            Some(link) => Self::link(link),
            None => *self,
        }
    }

    /// As it stands in packets: without its link.
    #[inline(always)]
    #[must_use]
    pub const fn on_wire(self) -> Self {
        if self.link_of().is_some() { self.on_link(0) } else { self }
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

/// As it stands in packets.
impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let address = address.on_wire();
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
    fn a_link_local_address_is_one_on_its_link() {
        let wire = Address::from("fe80::42:acff:fe11:2".parse::<IpAddr>().expect("an address"));
        let other = Address::from("fe80:0:0:7::1".parse::<IpAddr>().expect("an address"));
        assert!(wire.is_link_local() && !other.is_link_local() && !wire.on_link(7).is_link_local());
        assert_ne!(wire.on_link(7), wire.on_link(8));
        assert_eq!((wire.link_of(), wire.on_link(7).link_of()), (None, Some(7)));
        assert_eq!(wire.on_link(7).on_wire(), wire);
        assert_eq!(wire.on_link(7).listed(), Address::link(7));
        assert_eq!(Address::link(7).listed(), Address::link(7));
        assert_eq!(wire.on_link(7).to_string(), "fe80::42:acff:fe11:2");
        for text in ["10.1.2.3", "fd00::1", "fe80:1::1"] {
            let address = Address::from(text.parse::<IpAddr>().expect("an address"));
            assert_eq!(
                (address.is_link_local(), address.listed(), address.on_wire()),
                (false, address, address)
            );
        }
    }

    #[test]
    fn ipv6_round_trips() {
        let ip: IpAddr = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff".parse().expect("an address");
        assert_eq!(IpAddr::from(Address::from(ip)), ip);
        assert!(!Address::from(ip).is_v4());
    }
}
