//! Tunnels over IPv6: the outer headers of IP in IP (RFC 2473), VXLAN and bare IP in UDP. What is inside is the same as over
//! IPv4.
//!
//! The flow label bears the flow's entropy (RFC 6438), so that routers spread IP in IP too. The UDP checksum is computed:
//! a zero one is allowed for tunnels (RFC 6935), but Linux drops it unless the device was told otherwise.

use super::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, UDP_LEN, checksum, ipv6, proto, put_raw16, put16, vxlan,
};
use fairway_tables::Mac;

/// Length of Ethernet and outer IPv6: the whole of what IP in IP writes.
pub const IP_HEADER_LEN: usize = ETH_LEN + ipv6::LEN;
/// The same up to and with the UDP header: the whole of what bare IP in UDP writes.
pub const UDP_HEADER_LEN: usize = IP_HEADER_LEN + UDP_LEN;
/// The same up to and with the inner Ethernet header.
pub const VXLAN_HEADER_LEN: usize = UDP_HEADER_LEN + vxlan::LEN + ETH_LEN;
/// Where the inner packet's EtherType is in VXLAN.
pub const INNER_ETHERTYPE: usize = VXLAN_HEADER_LEN - 2;
/// Where the outer header says what follows.
pub const NEXT_HEADER: usize = ETH_LEN + 6;

/// Hop limit of outer headers, as over IPv4.
const HOP_LIMIT: u8 = 64;
const UDP_CHECKSUM: usize = IP_HEADER_LEN + 6;

/// Where an encapsulated packet goes on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer6 {
    /// Ethernet source.
    pub src_mac: Mac,
    /// The neighbour on the underlay.
    pub dst_mac: Mac,
    /// This node's underlay address.
    pub local: [u8; 16],
    /// The remote node's underlay address.
    pub remote: [u8; 16],
}

/// A VXLAN network, and who speaks in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Outer UDP destination port.
    pub udp_port: u16,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Inner Ethernet source: this node's VTEP.
    pub inner_src_mac: Mac,
    /// Inner Ethernet destination: the remote node's VTEP.
    pub inner_dst_mac: Mac,
}

impl Outer6 {
    fn emit(&self, next: u8) -> [u8; IP_HEADER_LEN] {
        let mut out = [0; IP_HEADER_LEN];
        out[..6].copy_from_slice(&self.dst_mac.0);
        out[6..12].copy_from_slice(&self.src_mac.0);
        put16(&mut out, 12, ETHERTYPE_IPV6);
        let (src, dst) = (self.local, self.remote);
        let mut ip = [0; ipv6::LEN];
        ipv6::Repr { src, dst, proto: next, hop_limit: HOP_LIMIT, payload_len: 0 }.emit(&mut ip);
        out[ETH_LEN..].copy_from_slice(&ip);
        out
    }

    /// IPv4 in IPv6, for [`complete`].
    pub fn ip_in_ip(&self) -> [u8; IP_HEADER_LEN] {
        self.emit(proto::IPIP)
    }

    /// Bare IP in UDP to this port, for [`complete_udp`].
    pub fn udp(&self, udp_port: u16) -> [u8; UDP_HEADER_LEN] {
        let mut out = [0; UDP_HEADER_LEN];
        out[..IP_HEADER_LEN].copy_from_slice(&self.emit(proto::UDP));
        put16(&mut out, IP_HEADER_LEN + 2, udp_port);
        out
    }

    /// VXLAN around IPv4, for [`complete_udp`].
    pub fn vxlan(&self, network: &Vxlan) -> [u8; VXLAN_HEADER_LEN] {
        let mut out = [0; VXLAN_HEADER_LEN];
        out[..UDP_HEADER_LEN].copy_from_slice(&self.udp(network.udp_port));
        let inner = &mut out[UDP_HEADER_LEN..];
        inner[0] = 0x08;
        inner[4..7].copy_from_slice(&network.vni.to_be_bytes()[1..]);
        inner[8..14].copy_from_slice(&network.inner_dst_mac.0);
        inner[14..20].copy_from_slice(&network.inner_src_mac.0);
        put16(inner, 20, ETHERTYPE_IPV4);
        out
    }
}

/// The flow label for a flow's entropy port: 20 bits, never zero, which would say that there is none (RFC 6437 section 2).
#[inline]
pub fn flow_label(entropy: u16) -> u32 {
    (u32::from(entropy).wrapping_mul(0x9e37_79b1) >> 12).max(1)
}

/// Completes the outer IPv6 header of a frame that begins with a copied template and ends with the inner packet, whose
/// type of service or traffic class is given: DSCP and ECN are copied outwards (RFC 6040 section 4.1).
#[inline]
pub fn complete(frame: &mut [u8], tos: u8, entropy: u16) {
    let word = 0x6000_0000 | u32::from(tos) << 20 | flow_label(entropy);
    let payload_len = (frame.len() - IP_HEADER_LEN) as u16;
    frame[ETH_LEN..ETH_LEN + 4].copy_from_slice(&word.to_be_bytes());
    put16(frame, ETH_LEN + 4, payload_len);
}

/// The same with a UDP header behind it.
#[inline]
pub fn complete_udp(frame: &mut [u8], tos: u8, entropy: u16) {
    complete(frame, tos, entropy);
    let payload_len = (frame.len() - IP_HEADER_LEN) as u16;
    put16(frame, IP_HEADER_LEN, entropy);
    put16(frame, IP_HEADER_LEN + 4, payload_len);
    // Both addresses stand side by side.
    let addresses = checksum::sum(&frame[ETH_LEN + ipv6::SRC..IP_HEADER_LEN]);
    let pseudo = addresses + u64::from(u16::from_ne_bytes([0, proto::UDP])) + u64::from(payload_len.to_be());
    let sum = !checksum::fold(pseudo + checksum::sum(&frame[IP_HEADER_LEN..]));
    put_raw16(frame, UDP_CHECKSUM, if sum == 0 { 0xffff } else { sum });
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTER: Outer6 = Outer6 {
        src_mac: Mac([2, 0, 0, 0, 0, 1]),
        dst_mac: Mac([2, 0, 0, 0, 0, 2]),
        local: [0xfd, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        remote: [0xfd, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    };
    const NETWORK: Vxlan = Vxlan {
        udp_port: 4789,
        vni: 4096,
        inner_src_mac: Mac([2, 0, 0, 0, 1, 1]),
        inner_dst_mac: Mac([2, 0, 0, 0, 1, 2]),
    };

    #[test]
    fn ip_in_ip_is_an_outer_header_and_nothing_between() {
        let mut frame = [&OUTER.ip_in_ip()[..], &[7; 84]].concat();
        complete(&mut frame, 0xba, 0xc001);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
        assert_eq!(frame[14..16], [0x6b, 0xa0 | (flow_label(0xc001) >> 16) as u8]);
        assert_eq!(frame[18..22], [0, 84, 4, 64], "length, next header, hop limit");
        let header = ipv6::Header::parse(&frame[ETH_LEN..]).unwrap();
        assert_eq!((header.src(), header.dst(), header.total_len()), (OUTER.local, OUTER.remote, 124));
    }

    #[test]
    fn vxlan_has_a_udp_checksum_that_is_right_whatever_is_inside() {
        for inner in [&[7; 84][..], &[0xff; 1431], &[]] {
            let mut frame = [&OUTER.vxlan(&NETWORK)[..], inner].concat();
            complete_udp(&mut frame, 0, 0xffff);
            let udp = &frame[IP_HEADER_LEN..];
            let pseudo =
                checksum::pseudo_header_v6(&OUTER.local, &OUTER.remote, proto::UDP, udp.len() as u16);
            assert_eq!(checksum::fold(checksum::sum(udp) + pseudo), 0xffff);
            assert_ne!(udp[6..8], [0, 0]);
            assert_eq!(udp[..4], [0xff, 0xff, 0x12, 0xb5], "4789");
            assert_eq!(vxlan::vni(&udp[8..]), Ok(4096));
            assert_eq!(
                frame[VXLAN_HEADER_LEN - 14..VXLAN_HEADER_LEN],
                [2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 8, 0]
            );
        }
    }

    #[test]
    fn flow_labels_spread_and_are_never_none() {
        let labels: std::collections::BTreeSet<u32> = (0xc000..=0xffff).map(flow_label).collect();
        assert!(labels.iter().all(|label| (1..1 << 20).contains(label)));
        assert_eq!(labels.len(), 1 << 14, "as many as there are entropy ports");
        for bit in 0..20 {
            let set = labels.iter().filter(|label| *label >> bit & 1 == 1).count();
            assert!((7 << 10..9 << 10).contains(&set), "bit {bit} is set in {set} of {}", labels.len());
        }
    }
}
