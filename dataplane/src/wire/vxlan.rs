//! VXLAN over UDP over IPv4 (RFC 7348 section 5).

use super::{ETH_LEN, ETHERTYPE_IPV4, UDP_LEN, be16, ipv4, proto, put16};
use fairway_tables::{DropReason, Mac};

/// Length of the VXLAN header.
pub const LEN: usize = 8;
/// Bytes that encapsulation adds before the inner Ethernet header over IPv4.
pub const OVERHEAD: usize = ETH_LEN + ipv4::LEN + UDP_LEN + LEN;
/// Length of the whole header written by encapsulation: outer Ethernet up to the inner Ethernet header, one
/// cache line.
pub const HEADER_LEN: usize = OVERHEAD + ETH_LEN;
/// Offset of the outer UDP source port.
pub const SPORT: usize = ETH_LEN + ipv4::LEN;
/// Offset of the outer UDP length.
pub const UDP_LENGTH: usize = SPORT + 4;

/// Checks a VXLAN header: the I flag set, and which network it names. Other flags and reserved fields are
/// ignored on receipt, as the RFC asks.
#[inline]
pub fn vni(header: &[u8]) -> Result<u32, DropReason> {
    let Some(header) = header.first_chunk::<LEN>() else { return Err(DropReason::BadVxlan) };
    if header[0] & 0x08 == 0 {
        return Err(DropReason::BadVxlan);
    }
    Ok(u32::from_be_bytes([0, header[4], header[5], header[6]]))
}

/// Everything about an encapsulation that does not change from packet to packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    /// Outer Ethernet source and destination.
    pub outer_src_mac: Mac,
    /// The neighbour on the underlay.
    pub outer_dst_mac: Mac,
    /// This node's underlay address.
    pub local: [u8; 4],
    /// The remote node's underlay address.
    pub remote: [u8; 4],
    /// Outer UDP destination port.
    pub udp_port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Inner Ethernet source: this node's VTEP.
    pub inner_src_mac: Mac,
    /// Inner Ethernet destination: the remote node's VTEP.
    pub inner_dst_mac: Mac,
}

impl Encap {
    /// The header with both length fields, the type of service and the source port zero, for [`complete`]. The outer
    /// UDP checksum is zero, as RFC 7348 section 4.1 asks.
    pub fn template(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..6].copy_from_slice(&self.outer_dst_mac.0);
        out[6..12].copy_from_slice(&self.outer_src_mac.0);
        put16(&mut out, 12, ETHERTYPE_IPV4);
        out[14..34].copy_from_slice(&ipv4::outer_template(self.local, self.remote, proto::UDP));
        put16(&mut out, SPORT + 2, self.udp_port);
        out[42] = 0x08;
        out[46..49].copy_from_slice(&self.vni.to_be_bytes()[1..]);
        out[50..56].copy_from_slice(&self.inner_dst_mac.0);
        out[56..62].copy_from_slice(&self.inner_src_mac.0);
        put16(&mut out, 62, ETHERTYPE_IPV4);
        out
    }
}

/// The source port for a flow's hash: 49152–65535, as RFC 7348 section 5 recommends.
#[inline]
pub fn entropy_port(hash: u64) -> u16 {
    0xc000 | (hash >> 48) as u16 >> 2
}

/// Completes a template copied to the front of `frame` for an inner IP packet of `ip_len` bytes with this type of
/// service.
#[inline(always)]
pub fn complete(frame: &mut [u8; HEADER_LEN], ip_len: u16, tos: u8, entropy: u16) {
    let outer_ip_len = ip_len + (HEADER_LEN - ETH_LEN) as u16;
    ipv4::complete_outer(frame, ETH_LEN, outer_ip_len, tos);
    put16(frame, SPORT, entropy);
    put16(frame, UDP_LENGTH, outer_ip_len - ipv4::LEN as u16);
}

/// Offset of the outer IPv4 header's UDP destination port, for headers without options.
pub const DPORT: usize = SPORT + 2;

/// Reads the outer UDP destination port.
#[inline]
pub fn dport(frame: &[u8; HEADER_LEN]) -> u16 {
    be16(frame, DPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCAP: Encap = Encap {
        outer_src_mac: Mac([2, 0, 0, 0, 0, 1]),
        outer_dst_mac: Mac([2, 0, 0, 0, 0, 2]),
        local: [192, 168, 77, 1],
        remote: [192, 168, 77, 2],
        udp_port: 4789,
        vni: 4096,
        inner_src_mac: Mac([2, 0, 0, 0, 1, 1]),
        inner_dst_mac: Mac([2, 0, 0, 0, 1, 2]),
    };

    #[test]
    fn a_completed_template_is_a_valid_packet() {
        let mut frame = ENCAP.template();
        complete(&mut frame, 100, 0xba, entropy_port(u64::MAX));
        let mut packet = frame[14..].to_vec();
        packet.resize(150, 0);
        let header = ipv4::Header::parse(&packet).unwrap();
        assert_eq!(header.tos(), 0xba, "DSCP and ECN of the inner packet");
        assert_eq!((header.total_len(), header.proto(), header.ttl()), (150, proto::UDP, 64));
        assert_eq!(be16(&frame, SPORT), 65535);
        assert_eq!(dport(&frame), 4789);
        assert_eq!(be16(&frame, UDP_LENGTH), 130);
        assert_eq!(be16(&frame, UDP_LENGTH + 2), 0, "no UDP checksum");
        assert_eq!(vni(&frame[42..]), Ok(4096));
        assert_eq!(frame[62..], [0x08, 0x00]);
    }

    #[test]
    fn the_entropy_port_stays_in_the_dynamic_range() {
        for hash in [0, 1 << 63, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert!(entropy_port(hash) >= 49152);
        }
    }

    #[test]
    fn a_header_without_the_i_flag_is_refused() {
        assert_eq!(vni(&[0; 8]), Err(DropReason::BadVxlan));
        assert_eq!(vni(&[8, 0, 0]), Err(DropReason::BadVxlan));
        assert_eq!(vni(&[0xff, 1, 2, 3, 0, 0x10, 0, 9]), Ok(4096), "reserved bits are ignored");
    }
}
