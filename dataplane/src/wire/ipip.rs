//! IP in IPv4 (RFC 2003; with IPv6 inside RFC 4213): an outer header and nothing between. Linux's `ipip` and `sit` devices
//! and Calico's `tunl0` speak the same.

use super::{ETH_LEN, ETHERTYPE_IPV4, checksum, ipv4, proto, put_raw16, put16, raw16};
use fairway_tables::Mac;

/// Bytes that encapsulation adds before the inner IP header.
pub const OVERHEAD: usize = ipv4::LEN;
/// Length of the whole header written by encapsulation: Ethernet and outer IPv4.
pub const HEADER_LEN: usize = ETH_LEN + OVERHEAD;

/// Where an encapsulated packet goes on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Ethernet source.
    pub src_mac: Mac,
    /// The neighbour on the underlay.
    pub dst_mac: Mac,
    /// This node's underlay address.
    pub local: [u8; 4],
    /// The remote node's underlay address.
    pub remote: [u8; 4],
}

impl Outer {
    /// Ethernet and an outer header for [`ipv4::complete_outer`].
    pub(super) fn emit(&self, proto: u8) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..6].copy_from_slice(&self.dst_mac.0);
        out[6..12].copy_from_slice(&self.src_mac.0);
        put16(&mut out, 12, ETHERTYPE_IPV4);
        out[ETH_LEN..].copy_from_slice(&ipv4::outer_template(self.local, self.remote, proto));
        out
    }

    /// The header of IPv4 in IPv4, for [`complete`].
    pub fn template(&self) -> [u8; HEADER_LEN] {
        self.emit(proto::IPIP)
    }
}

/// Changes what the outer header of a template says of the packet inside.
pub fn set_proto(template: &mut [u8], new: u8) {
    const PROTO: usize = ETH_LEN + 9;
    let old = std::mem::replace(&mut template[PROTO], new);
    let word = |proto| u64::from(u16::from_ne_bytes([0, proto]));
    let delta = checksum::fold(u64::from(!(word(old) as u16)) + word(new));
    let sum = raw16(template, ETH_LEN + ipv4::CHECKSUM);
    put_raw16(template, ETH_LEN + ipv4::CHECKSUM, checksum::update(sum, delta));
}

/// Completes a template copied to the front of a frame for an inner packet of `ip_len` bytes with this type of service.
#[inline(always)]
pub fn complete(frame: &mut [u8; HEADER_LEN], ip_len: u16, tos: u8) {
    ipv4::complete_outer(frame, ETH_LEN, ip_len + OVERHEAD as u16, tos);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_template_is_the_packet_that_linux_sends() {
        let outer = Outer {
            src_mac: Mac([2, 0, 0, 0, 0, 1]),
            dst_mac: Mac([2, 0, 0, 0, 0, 2]),
            local: [192, 168, 0, 1],
            remote: [192, 168, 0, 199],
        };
        let mut frame = outer.template();
        // 84 bytes inside, DSCP EF with ECT(0).
        complete(&mut frame, 84, 0xba);
        let expected = [
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, // Ethernet
            0x45, 0xba, 0x00, 0x68, 0x00, 0x00, 0x40, 0x00, 0x40, 0x04, 0xb7, 0xbf, 192, 168, 0, 1, 192, 168,
            0, 199,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn with_ipv6_inside_the_header_says_so_and_stays_right() {
        let outer = Outer {
            src_mac: Mac([2; 6]),
            dst_mac: Mac([4; 6]),
            local: [192, 168, 0, 1],
            remote: [192, 168, 0, 199],
        };
        let mut frame = outer.template();
        set_proto(&mut frame, proto::IPV6);
        complete(&mut frame, 84, 0x12);
        let packet = [&frame[ETH_LEN..], &[0; 84]].concat();
        let header = ipv4::Header::parse(&packet).unwrap();
        assert_eq!((header.proto(), header.tos(), header.total_len()), (41, 0x12, 104));
    }
}
