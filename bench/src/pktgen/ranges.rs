//! Ranges of addresses and ports as a scenario file writes them.

use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Consecutive addresses: `10.0.0.1`, `10.0.0.1-10.0.0.9` or `10.0.0.0/24`, or the same in IPv6, where they differ in
/// the last 32 bits only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The first 96 bits of IPv6 addresses; `None` for IPv4.
    pub high: Option<[u8; 12]>,
    /// The (last 32 bits of the) first one, in host order.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

/// An address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    #[default]
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Consecutive ports: `80` or `1024-65535`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first one.
    pub first: u16,
    /// How many, at least one.
    pub count: u32,
}

/// A range that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not an address, range or prefix.
    #[error(
        "'{text}' is no range of addresses; write 10.0.0.1, 10.0.0.1-10.0.0.9 or 10.0.0.0/24, or the like in IPv6"
    )]
    Addresses {
        /// What was written.
        text: String,
    },
    /// Not a port or range of ports.
    #[error("'{text}' is no range of ports; write 80 or 1024-65535, from 1 to 65535")]
    Ports {
        /// What was written.
        text: String,
    },
}

impl Addresses {
    /// One IPv4 address.
    pub fn one(address: [u8; 4]) -> Addresses {
        Addresses::v4(u32::from_be_bytes(address), 1)
    }

    /// IPv4 addresses from `first` on.
    pub const fn v4(first: u32, count: u32) -> Addresses {
        Addresses { high: None, first, count }
    }

    /// IPv6 addresses from `first` on.
    pub fn v6(first: [u8; 16], count: u32) -> Addresses {
        let [high @ .., a, b, c, d] = first;
        Addresses { high: Some(high), first: u32::from_be_bytes([a, b, c, d]), count }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        if self.high.is_some() { Family::Ipv6 } else { Family::Ipv4 }
    }

    /// Address number `n`; the caller keeps below the count.
    #[inline]
    pub fn nth(&self, n: u32) -> u32 {
        self.first.wrapping_add(n)
    }
}

impl Ports {
    /// One port.
    pub fn one(port: u16) -> Ports {
        Ports { first: port, count: 1 }
    }

    /// Port number `n`; the caller keeps below the count.
    #[inline]
    pub fn nth(&self, n: u32) -> u16 {
        self.first.wrapping_add(n as u16)
    }
}

impl FromStr for Addresses {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Addresses, RangeError> {
        let error = || RangeError::Addresses { text: text.to_owned() };
        let address = |text: &str| match text.trim().parse().map_err(|_| error())? {
            IpAddr::V4(ip) => Ok(Addresses::v4(ip.into(), 1)),
            IpAddr::V6(ip) => Ok(Addresses::v6(ip.octets(), 1)),
        };
        if let Some((network, len)) = text.split_once('/') {
            let one = address(network)?;
            let len: u32 = len.trim().parse().map_err(|_| error())?;
            // Of an IPv6 prefix, the bits before the last 32 are all part of it.
            let len = if one.high.is_some() { len.wrapping_sub(96) } else { len };
            if len == 0 || len > 32 {
                return Err(error());
            }
            let mask = u32::MAX << (32 - len);
            return Ok(Addresses { first: one.first & mask, count: (1u64 << (32 - len)) as u32, ..one });
        }
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (address(first)?, address(last)?),
            None => (address(text)?, address(text)?),
        };
        match last.first.checked_sub(first.first).filter(|_| first.high == last.high) {
            Some(more) if more < 1 << 24 => Ok(Addresses { count: more + 1, ..first }),
            _ => Err(error()),
        }
    }
}

impl FromStr for Ports {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Ports, RangeError> {
        let error = || RangeError::Ports { text: text.to_owned() };
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(error);
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(error());
        }
        Ok(Ports { first, count: u32::from(last - first) + 1 })
    }
}

struct Text<T>(std::marker::PhantomData<T>, &'static str);

impl<T: FromStr<Err = RangeError>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Addresses, D::Error> {
        deserializer.deserialize_any(Text(std::marker::PhantomData, "addresses such as 10.0.0.0/24"))
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ports, D::Error> {
        deserializer.deserialize_any(Text(std::marker::PhantomData, "ports such as 1024-65535"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_written_or_refused_with_an_example() {
        let range = |text: &str| text.parse::<Addresses>();
        assert_eq!(range("10.0.0.1"), Ok(Addresses::one([10, 0, 0, 1])));
        assert_eq!(range("10.0.0.250-10.0.1.4"), Ok(Addresses::v4(0x0a00_00fa, 11)));
        assert_eq!(range("10.0.3.9/24"), Ok(Addresses::v4(0x0a00_0300, 256)));
        let six = |last: u8| {
            let mut ip = [0; 16];
            (ip[0], ip[1], ip[15]) = (0xfd, 0x10, last);
            ip
        };
        assert_eq!(range("fd10::7"), Ok(Addresses::v6(six(7), 1)));
        assert_eq!(range("fd10::1-fd10::9"), Ok(Addresses::v6(six(1), 9)));
        assert_eq!(range("fd10::ff/120"), Ok(Addresses::v6(six(0), 256)));
        assert_eq!(
            (range("10.0.0.1").unwrap().family(), range("::1").unwrap().family()),
            (Family::Ipv4, Family::Ipv6)
        );
        for bad in ["fd10::/64", "fd10::/96", "fd10::1-fd11::1", "10.0.0.1-fd10::9", "fd10::2-fd10::1"] {
            assert!(range(bad).is_err(), "{bad}");
        }
        for bad in ["", "10.0.0", "10.0.0.2-10.0.0.1", "10.0.0.0/0", "10.0.0.0/33", "1.0.0.0-9.0.0.0"] {
            let error = range(bad).unwrap_err().to_string();
            assert!(error.contains("10.0.0.1-10.0.0.9"), "{error}");
        }
        assert_eq!("80".parse(), Ok(Ports::one(80)));
        assert_eq!("1024-65535".parse(), Ok(Ports { first: 1024, count: 64_512 }));
        for bad in ["0", "9-8", "70000", "a"] {
            assert!(bad.parse::<Ports>().unwrap_err().to_string().contains("1024-65535"));
        }
    }
}
