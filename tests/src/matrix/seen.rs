//! What a capture saw of a conversation: which addresses, inside what.

use crate::dual_stack::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;

const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
const IPIP: u8 = 4;
/// The same with IPv6 inside.
const IPV6_IN_IP: u8 = 41;
const TCP: u8 = 6;
const UDP: u8 = 17;
const VXLAN_PORT: u16 = 4789;
/// UDP 8, VXLAN 8, inner Ethernet 14.
const VXLAN_LEN: usize = 30;

/// An IP header of either family.
struct Header<'a> {
    family: Family,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

impl Header<'_> {
    fn parse(ip: &[u8]) -> Option<Header<'_>> {
        let first = *ip.first()?;
        let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
        let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
        let (family, src, dst, protocol, len) = match first >> 4 {
            4 => (Family::V4, v4(12)?, v4(16)?, *ip.get(9)?, usize::from(first & 15) * 4),
            6 => (Family::V6, v6(8)?, v6(24)?, *ip.get(6)?, IPV6_LEN),
            _ => return None,
        };
        Some(Header { family, src, dst, protocol, payload: ip.get(len..)? })
    }

    fn addresses(&self) -> String {
        format!("{}>{}", self.src, self.dst)
    }
}

/// A TCP packet as it is on a wire, with its own family: `10.244.1.10>10.244.2.12`, or that after
/// `vxlan 192.168.77.1>192.168.77.2: `.
fn describe(packet: &[u8]) -> Option<(Family, String)> {
    let outer = Header::parse(packet.get(ETHERNET_LEN..)?)?;
    let (around, inner) = match outer.protocol {
        TCP => return Some((outer.family, outer.addresses())),
        IPIP | IPV6_IN_IP => ("ipip", outer.payload),
        UDP if outer.payload.get(2..4)? == VXLAN_PORT.to_be_bytes() => {
            ("vxlan", outer.payload.get(VXLAN_LEN..)?)
        }
        _ => return None,
    };
    let inner = Header::parse(inner).filter(|inner| inner.protocol == TCP)?;
    Some((inner.family, format!("{around} {}: {}", outer.addresses(), inner.addresses())))
}

/// Every way in which TCP packets of a family appear in a capture.
pub(super) fn seen(packets: &[Vec<u8>], family: Family) -> BTreeSet<String> {
    let described = packets.iter().filter_map(|packet| describe(packet));
    described.filter(|(of, _)| *of == family).map(|(_, sight)| sight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(proto: u8, src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0];
        bytes.extend(src);
        bytes.extend(dst);
        bytes.extend(payload);
        bytes
    }

    fn ip6(next: u8, src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend(address(src));
        bytes.extend(address(dst));
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn packets_are_told_by_their_addresses_and_what_is_around_them() {
        let frame = |packet: Vec<u8>| [vec![0; ETHERNET_LEN], packet].concat();
        let inner = ip(TCP, [10, 244, 1, 10], [10, 244, 2, 12], &[0; 20]);
        let inner6 = ip6(TCP, "fd00:244:1::10", "fd00:244:2::12", &[0; 20]);
        let (a, b) = ([192, 168, 77, 1], [192, 168, 77, 2]);
        let vxlan = |inner: &[u8]| [&[0xc0, 0, 0x12, 0xb5][..], &[0; 26], inner].concat();
        let packets = [
            frame(inner.clone()),
            frame(ip(IPIP, a, b, &inner)),
            frame(ip(UDP, a, b, &vxlan(&inner))),
            frame(inner6.clone()),
            frame(ip(UDP, a, b, &vxlan(&inner6))),
            frame(ip6(UDP, "fd00:77::1", "fd00:77::2", &vxlan(&inner6))),
            frame(ip6(IPV6_IN_IP, "fd00:77::1", "fd00:77::2", &inner6)),
            frame(ip(UDP, a, b, &[0, 53, 0, 53, 0, 0, 0, 0])),
            frame(ip6(58, "fe80::1", "ff02::1", &[135, 0, 0, 0])),
            vec![0; 20],
        ];
        let (plain, plain6) = ("10.244.1.10>10.244.2.12", "fd00:244:1::10>fd00:244:2::12");
        let outer = "192.168.77.1>192.168.77.2";
        let all = [plain.to_owned(), format!("ipip {outer}: {plain}"), format!("vxlan {outer}: {plain}")];
        assert_eq!(seen(&packets, Family::V4), BTreeSet::from(all));
        let outer6 = "fd00:77::1>fd00:77::2";
        let all = [
            plain6.to_owned(),
            format!("vxlan {outer}: {plain6}"),
            format!("vxlan {outer6}: {plain6}"),
            format!("ipip {outer6}: {plain6}"),
        ];
        assert_eq!(seen(&packets, Family::V6), BTreeSet::from(all));
    }
}
