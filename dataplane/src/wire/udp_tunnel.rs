//! A bare IP packet in UDP: what Flannel's `udp` backend puts on the wire. There is no header between UDP and the inner
//! IP header, and no RFC. The UDP checksum is zero (RFC 768); the source port is the flow's entropy, as for VXLAN, which
//! that backend does not look at.

use super::{ETH_LEN, UDP_LEN, ipip::Outer, ipv4, proto, put16};

/// Bytes that encapsulation adds before the inner IP header.
pub const OVERHEAD: usize = ipv4::LEN + UDP_LEN;
/// Length of the whole header written by encapsulation: Ethernet, outer IPv4 and UDP.
pub const HEADER_LEN: usize = ETH_LEN + OVERHEAD;
const UDP: usize = ETH_LEN + ipv4::LEN;

/// The header with both lengths, the type of service and the source port zero, for [`complete`].
pub fn template(outer: &Outer, udp_port: u16) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..UDP].copy_from_slice(&outer.emit(proto::UDP));
    put16(&mut out, UDP + 2, udp_port);
    out
}

/// Completes a template copied to the front of a frame for an inner packet of `ip_len` bytes with this type of service.
#[inline(always)]
pub fn complete(frame: &mut [u8; HEADER_LEN], ip_len: u16, tos: u8, entropy: u16) {
    ipv4::complete_outer(frame, ETH_LEN, ip_len + OVERHEAD as u16, tos);
    put16(frame, UDP, entropy);
    put16(frame, UDP + 4, ip_len + UDP_LEN as u16);
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_tables::Mac;

    #[test]
    fn a_completed_template_is_udp_around_the_bare_packet() {
        let outer = Outer {
            src_mac: Mac([2; 6]),
            dst_mac: Mac([4; 6]),
            local: [192, 168, 0, 1],
            remote: [192, 168, 0, 199],
        };
        let mut frame = template(&outer, 8285);
        complete(&mut frame, 84, 0, 0xc001);
        let expected = [
            4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 0x08, 0x00, // Ethernet
            0x45, 0x00, 0x00, 0x70, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x64, 192, 168, 0, 1, 192, 168,
            0, 199, 0xc0, 0x01, 0x20, 0x5d, 0x00, 0x5c, 0x00, 0x00, // UDP
        ];
        assert_eq!(frame, expected);
    }
}
