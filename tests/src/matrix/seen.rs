//! What a capture saw of a conversation: which addresses, inside what.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const ETHERNET_LEN: usize = 14;
const IPIP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const VXLAN_PORT: u16 = 4789;
/// UDP 8, VXLAN 8, inner Ethernet 14.
const VXLAN_LEN: usize = 30;

/// An IPv4 packet of TCP as it is on a wire: `10.244.1.10>10.244.2.12`, or that after `vxlan 192.168.77.1>192.168.77.2: `.
fn describe(packet: &[u8]) -> Option<String> {
    if packet.get(12..14)? == [0x86, 0xdd] {
        return None;
    }
    let ip = packet.get(ETHERNET_LEN..)?;
    let header_len = usize::from(*ip.first()? & 15) * 4;
    let payload = ip.get(header_len..)?;
    match *ip.get(9)? {
        TCP => addresses(ip),
        IPIP => Some(format!("ipip {}: {}", addresses(ip)?, of_tcp(payload)?)),
        UDP if payload.get(2..4)? == VXLAN_PORT.to_be_bytes() => {
            Some(format!("vxlan {}: {}", addresses(ip)?, of_tcp(payload.get(VXLAN_LEN..)?)?))
        }
        _ => None,
    }
}

fn of_tcp(ip: &[u8]) -> Option<String> {
    if *ip.get(9)? == TCP { addresses(ip) } else { None }
}

fn addresses(ip: &[u8]) -> Option<String> {
    let address = |at: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    Some(format!("{}>{}", address(12)?, address(16)?))
}

/// Every way in which TCP packets appear in a capture.
pub(super) fn seen(packets: &[Vec<u8>]) -> BTreeSet<String> {
    packets.iter().filter_map(|packet| describe(packet)).collect()
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

    #[test]
    fn packets_are_told_by_their_addresses_and_what_is_around_them() {
        let frame = |packet: Vec<u8>| [vec![0; ETHERNET_LEN], packet].concat();
        let inner = ip(TCP, [10, 244, 1, 10], [10, 244, 2, 12], &[0; 20]);
        let (a, b) = ([192, 168, 77, 1], [192, 168, 77, 2]);
        let mut vxlan = vec![0xc0, 0, 0x12, 0xb5];
        vxlan.extend([0; 26]);
        vxlan.extend(&inner);
        let packets = [
            frame(inner.clone()),
            frame(ip(IPIP, a, b, &inner)),
            frame(ip(UDP, a, b, &vxlan)),
            frame(ip(UDP, a, b, &[0, 53, 0, 53, 0, 0, 0, 0])),
            vec![0; 20],
        ];
        let plain = "10.244.1.10>10.244.2.12";
        let outer = "192.168.77.1>192.168.77.2";
        let all = [plain.to_owned(), format!("ipip {outer}: {plain}"), format!("vxlan {outer}: {plain}")];
        assert_eq!(seen(&packets), BTreeSet::from(all));
    }
}
