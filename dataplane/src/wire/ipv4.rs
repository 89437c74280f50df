//! IPv4 (RFC 791): a checked view and emission.

use super::{be16, checksum, raw32};
use fairway_tables::DropReason;

/// Length of a header without options.
pub const LEN: usize = 20;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SRC: usize = 12;
/// Offset of the destination address.
pub const DST: usize = 16;
/// Offset of the identification.
pub const IDENTIFICATION: usize = 4;
/// Offset of the fragment word: flags, and the offset in units of 8 bytes.
pub const FRAGMENT: usize = 6;
/// "Don't fragment" in the fragment word.
pub const DF: u16 = 0x4000;
/// "More fragments" in the fragment word.
pub const MF: u16 = 0x2000;
/// The offset in the fragment word.
pub const OFFSET: u16 = 0x1fff;

/// A header that [`Header::parse`] has checked: version, both lengths and the checksum are right.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    bytes: &'a [u8],
}

impl<'a> Header<'a> {
    /// Checks as RFC 1812 section 5.2.2 asks. `packet` starts with the IP header and may be longer than the
    /// packet (Ethernet padding), never shorter. After this no accessor panics.
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<Header<'a>, DropReason> {
        let Some(fixed) = packet.first_chunk::<LEN>() else { return Err(DropReason::Truncated) };
        let header_len = usize::from(fixed[0] & 0xf) * 4;
        let total = usize::from(be16(fixed, 2));
        if fixed[0] >> 4 != 4 || header_len < LEN || total < header_len {
            return Err(DropReason::BadIpHeader);
        }
        if total > packet.len() {
            return Err(DropReason::Truncated);
        }
        let ok = if header_len == LEN {
            checksum::ipv4_header_ok(fixed)
        } else {
            checksum::fold(checksum::sum(&packet[..header_len])) == 0xffff
        };
        if ok { Ok(Header { bytes: packet }) } else { Err(DropReason::BadIpChecksum) }
    }

    /// Length of the header in bytes, options included: 20 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes[0] & 0xf) * 4
    }

    /// Length of header and payload in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        usize::from(be16(self.bytes, 2))
    }

    /// Whether this is a fragment: offset not zero, or more to come.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        be16(self.bytes, FRAGMENT) & (MF | OFFSET) != 0
    }

    /// Whether this is a fragment other than the first, which holds no transport header.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        be16(self.bytes, FRAGMENT) & OFFSET != 0
    }

    /// Type of service: DSCP (RFC 2474), then ECN (RFC 3168) in the two low bits.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.bytes[1]
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.bytes[8]
    }

    /// IP protocol number of the payload.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.bytes[9]
    }

    /// Source address, raw.
    #[inline]
    pub fn src(&self) -> u32 {
        raw32(self.bytes, SRC)
    }

    /// Destination address, raw.
    #[inline]
    pub fn dst(&self) -> u32 {
        raw32(self.bytes, DST)
    }

    /// What follows the header, without Ethernet padding.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len()..self.total_len()]
    }
}

/// What is needed to emit a header without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// IP protocol number of the payload.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Bytes after the header.
    pub payload_len: u16,
    /// Set "don't fragment".
    pub dont_fragment: bool,
}

impl Repr {
    /// Writes every byte of the header.
    pub fn emit(&self, out: &mut [u8; LEN]) {
        out[0] = 0x45;
        out[1] = 0;
        out[2..4].copy_from_slice(&(LEN as u16 + self.payload_len).to_be_bytes());
        out[4..6].fill(0);
        out[6..8].copy_from_slice(&(if self.dont_fragment { DF } else { 0 }).to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.proto;
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.src);
        out[16..20].copy_from_slice(&self.dst);
        let sum = checksum::checksum(out);
        out[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
}

/// The outer header of a tunnel, without what differs from packet to packet: length and type of service are zero, and
/// the checksum is computed so that [`complete_outer`] has but to add them. TTL 64, and never fragmented: the engine
/// checks what fits before it encapsulates (RFC 2003 section 3.1, RFC 7348 section 4.3); so the identification may
/// stay zero (RFC 6864 section 4.1).
pub fn outer_template(src: [u8; 4], dst: [u8; 4], proto: u8) -> [u8; LEN] {
    let mut out = [0; LEN];
    Repr { src, dst, proto, ttl: 64, payload_len: 0, dont_fragment: true }.emit(&mut out);
    out[2..4].fill(0);
    out[CHECKSUM..CHECKSUM + 2].fill(0);
    let sum = checksum::checksum(&out);
    out[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
    out
}

/// Completes an outer header that begins at `at` of a copied template: total length in bytes, and the inner packet's
/// type of service, both DSCP (RFC 2003 section 3.1) and ECN (RFC 6040 section 4.1, normal mode).
#[inline(always)]
pub fn complete_outer(header: &mut [u8], at: usize, total_len: u16, tos: u8) {
    header[at + 1] = tos;
    super::put16(header, at + 2, total_len);
    let (length, service) = (total_len.to_be(), u16::from_ne_bytes([0, tos]));
    let sum = checksum::update2(super::raw16(header, at + CHECKSUM), length, service);
    super::put_raw16(header, at + CHECKSUM, sum);
}

/// Whether no packet to forward may have this raw source or destination (RFC 1812 section 5.3.7, RFC 6890): `0/8`, loopback,
/// multicast, which is not routed, reserved and broadcast. As in Linux, the networks for documentation (`192.0.2/24`,
/// `198.51.100/24`, `203.0.113/24`) pass, for laboratories use them.
#[inline]
pub fn is_martian(raw: u32) -> bool {
    let first = raw.to_ne_bytes()[0];
    first == 0 || first == 127 || first >= 224
}

/// Whether a raw address means something on its own link only (RFC 3927 section 2.6.2).
#[inline]
pub fn is_link_local(raw: u32) -> bool {
    raw.to_ne_bytes()[..2] == [169, 254]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet's header from RFC-conformant stacks: 192.168.0.1 → 192.168.0.199, 115 bytes.
    const EXAMPLE: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7,
    ];

    fn padded(header: &[u8; 20]) -> Vec<u8> {
        let mut packet = header.to_vec();
        packet.resize(115, 0);
        packet
    }

    #[test]
    fn literal_header_parses_and_emits_to_the_same_bytes() {
        let packet = padded(&EXAMPLE);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(
            (header.header_len(), header.total_len(), header.ttl(), header.proto()),
            (20, 115, 64, 17)
        );
        assert!(!header.is_fragment());
        let mut out = [0xa5; 20];
        Repr {
            src: [192, 168, 0, 1],
            dst: [192, 168, 0, 199],
            proto: 17,
            ttl: 64,
            payload_len: 95,
            dont_fragment: true,
        }
        .emit(&mut out);
        assert_eq!(out, EXAMPLE);
    }

    #[test]
    fn martians_are_known() {
        for martian in [
            [0, 0, 0, 0],
            [0, 9, 9, 9],
            [127, 1, 2, 3],
            [224, 0, 0, 1],
            [239, 9, 9, 9],
            [240, 0, 0, 1],
            [255; 4],
        ] {
            assert!(is_martian(u32::from_ne_bytes(martian)), "{martian:?}");
        }
        for other in
            [[1, 0, 0, 1], [10, 0, 0, 1], [100, 64, 0, 1], [126, 9, 9, 9], [169, 254, 1, 1], [223, 9, 9, 9]]
        {
            assert!(!is_martian(u32::from_ne_bytes(other)), "{other:?}");
        }
        assert!(is_link_local(u32::from_ne_bytes([169, 254, 20, 10])));
        assert!(!is_link_local(u32::from_ne_bytes([169, 255, 20, 10])));
    }

    #[test]
    fn each_broken_field_has_its_reason() {
        let broken = |at: usize, value: u8| {
            let mut packet = padded(&EXAMPLE);
            packet[at] = value;
            Header::parse(&packet).err()
        };
        assert_eq!(broken(0, 0x65), Some(DropReason::BadIpHeader));
        assert_eq!(broken(0, 0x44), Some(DropReason::BadIpHeader));
        assert_eq!(broken(3, 19), Some(DropReason::BadIpHeader));
        assert_eq!(broken(2, 1), Some(DropReason::Truncated));
        assert_eq!(broken(10, 0), Some(DropReason::BadIpChecksum));
        assert_eq!(Header::parse(&EXAMPLE[..19]).err(), Some(DropReason::Truncated));
    }

    #[test]
    fn a_header_with_options_is_checked_over_its_whole_length() {
        let mut packet = padded(&EXAMPLE);
        packet[0] = 0x46;
        packet[10..12].fill(0);
        packet[20..24].copy_from_slice(&[1, 1, 1, 0]);
        let sum = checksum::checksum(&packet[..24]);
        packet[10..12].copy_from_slice(&sum.to_ne_bytes());
        assert_eq!(Header::parse(&packet).unwrap().header_len(), 24);
        packet[21] = 7;
        assert_eq!(Header::parse(&packet).err(), Some(DropReason::BadIpChecksum));
    }
}
