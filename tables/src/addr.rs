//! Addresses as they lie in shared memory: fixed size, no padding, any bit pattern valid.

use bytemuck::{Pod, Zeroable};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address in network byte order; IPv4 is held as an IPv4-mapped IPv6 address
/// (RFC 4291 section 2.5.5.2), so that one key type serves both families.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Ip(pub [u8; 16]);

impl Ip {
    /// `::`, which also stands for "no address".
    pub const UNSPECIFIED: Ip = Ip([0; 16]);

    /// The IPv4-mapped form of an IPv4 address given in network byte order.
    #[inline]
    pub const fn v4(octets: [u8; 4]) -> Ip {
        Ip((0xffff << 32 | u32::from_be_bytes(octets) as u128).to_be_bytes())
    }

    /// Whether this is an IPv4 address.
    #[inline]
    pub fn is_v4(&self) -> bool {
        u128::from_be_bytes(self.0) >> 32 == 0xffff
    }

    /// The four octets of an IPv4 address, or `None` for IPv6.
    #[inline]
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        self.is_v4().then(|| (u128::from_be_bytes(self.0) as u32).to_be_bytes())
    }
}

impl From<IpAddr> for Ip {
    fn from(addr: IpAddr) -> Ip {
        match addr {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => a.into(),
        }
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(addr: Ipv4Addr) -> Ip {
        Ip::v4(addr.octets())
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(addr: Ipv6Addr) -> Ip {
        Ip(addr.octets())
    }
}

impl From<Ip> for IpAddr {
    fn from(addr: Ip) -> IpAddr {
        match addr.as_v4() {
            Some(octets) => IpAddr::V4(octets.into()),
            None => IpAddr::V6(addr.0.into()),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address prefix. `bits` counts from the start of the 16-byte form, so an IPv4 /24 has 120.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Prefix {
    addr: Ip,
    bits: u32,
}

impl Prefix {
    /// `::/0`.
    pub(crate) const ZERO: Prefix = Prefix { addr: Ip::UNSPECIFIED, bits: 0 };

    /// The prefix that holds `addr`, of `len` bits in the address's own family; bits beyond `len` are
    /// cleared. `None` if `len` is over 32 (IPv4) or 128 (IPv6).
    pub fn new(addr: Ip, len: u8) -> Option<Prefix> {
        let v4 = addr.is_v4();
        if len > if v4 { 32 } else { 128 } {
            return None;
        }
        let bits = u32::from(len) + if v4 { 96 } else { 0 };
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
        Some(Prefix { addr: Ip((u128::from_be_bytes(addr.0) & mask).to_be_bytes()), bits })
    }

    /// The prefix that holds only this address.
    pub fn host(addr: Ip) -> Prefix {
        Prefix { addr, bits: 128 }
    }

    /// The lowest address of the prefix.
    pub fn addr(&self) -> Ip {
        self.addr
    }

    /// Length in bits in the prefix's own family: 0–32 for IPv4, 0–128 for IPv6.
    pub fn len(&self) -> u8 {
        (if self.addr.is_v4() && self.bits >= 96 { self.bits - 96 } else { self.bits }) as u8
    }

    /// Whether this is a default route (`0.0.0.0/0` or `::/0`).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `addr` lies in this prefix.
    pub fn contains(&self, addr: Ip) -> bool {
        let bits = self.bits.min(128);
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
        addr.is_v4() == self.addr.is_v4()
            && u128::from_be_bytes(addr.0) & mask == u128::from_be_bytes(self.addr.0) & mask
    }

    /// Whether the two prefixes share an address.
    pub fn overlaps(&self, other: &Prefix) -> bool {
        self.contains(other.addr) || other.contains(self.addr)
    }
}

impl std::str::FromStr for Prefix {
    type Err = PrefixParseError;

    /// Parses `address/length`, or a bare address as a host prefix.
    fn from_str(text: &str) -> Result<Prefix, PrefixParseError> {
        let error = || PrefixParseError(text.to_owned());
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len.parse::<u8>().map_err(|_| error())?)),
            None => (text, None),
        };
        let addr = Ip::from(addr.parse::<IpAddr>().map_err(|_| error())?);
        match len {
            Some(len) => Prefix::new(addr, len).ok_or_else(error),
            None => Ok(Prefix::host(addr)),
        }
    }
}

/// A text is not an address prefix such as `10.1.0.0/24` or `fd00::/64`.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an address prefix; write it as 10.1.0.0/24 or fd00::/64")]
pub struct PrefixParseError(String);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `00:00:00:00:00:00`, which stands for "not known".
    pub const ZERO: Mac = Mac([0; 6]);
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set (broadcast or multicast).
    #[inline]
    pub fn is_group(&self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl std::str::FromStr for Mac {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Mac, MacParseError> {
        let error = || MacParseError(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Mac(mac)) }
    }
}

/// A text is not an Ethernet address such as `02:00:00:00:00:01`.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an Ethernet address; write it as 02:00:00:00:00:01")]
pub struct MacParseError(String);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
