//! IPv6 beside IPv4, for testbeds that want it: namespaces start without.

use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::testbed::Pod;
use fairway_control::names;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Whether it is IPv4.
    pub fn is_v4(self) -> bool {
        self == Family::V4
    }

    /// The address of this family of whom has `ip`.
    pub fn of(self, ip: Ipv4Addr) -> IpAddr {
        match self {
            Family::V4 => ip.into(),
            Family::V6 => ipv6_of(ip).into(),
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_v4() { "IPv4" } else { "IPv6" })
    }
}

/// The IPv6 address beside an IPv4 one: fd00 and its last three numbers, with the same digits. 10.244.1.10 becomes
/// fd00:244:1::10; a /16 becomes a /32, a /24 a /48 or a /64.
pub fn ipv6_of(ip: Ipv4Addr) -> Ipv6Addr {
    let digits = |octet: u8| {
        let octet = u16::from(octet);
        octet / 100 * 0x100 + octet / 10 % 10 * 0x10 + octet % 10
    };
    let [_, b, c, d] = ip.octets().map(digits);
    Ipv6Addr::new(0xfd00, b, c, 0, 0, 0, 0, d)
}

/// Turns IPv6 on for these devices of a namespace.
pub fn allow_ipv6(netns: &Netns, devices: &[&str]) -> Result<()> {
    let devices: Vec<String> = devices.iter().map(|device| (*device).to_owned()).collect();
    netns.inside(move || {
        for device in devices.iter().map(String::as_str).chain(["all"]) {
            // Nobody else is on the link: an address need not wait for others' objections.
            for setting in ["accept_dad", "disable_ipv6"] {
                let path = format!("/proc/sys/net/ipv6/conf/{device}/{setting}");
                std::fs::write(&path, "0").map_err(Error::io(format!("set {path}")))?;
            }
        }
        Ok(())
    })?
}

/// Gives a pod an IPv6 address, and the gateway that every pod has.
pub fn add_address(pod: &Pod, ip: Ipv6Addr) -> Result<()> {
    let netns = pod.netns();
    allow_ipv6(netns, &["lo", "eth0"])?;
    netns.ip(["addr", "add", &format!("{ip}/128"), "dev", "eth0", "nodad"])?;
    let gateway = names::GATEWAY_IP6.to_string();
    netns.ip(["route", "add", "default", "via", &gateway, "dev", "eth0"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ipv6_address_beside_an_ipv4_one_has_its_digits() {
        let six = |text: &str| ipv6_of(text.parse().expect("an address")).to_string();
        assert_eq!(six("10.244.1.10"), "fd00:244:1::10");
        assert_eq!(six("192.168.77.254"), "fd00:168:77::254");
        assert_eq!(six("10.96.0.80"), "fd00:96::80");
    }
}
