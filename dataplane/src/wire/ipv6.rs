//! IPv6 (RFC 8200): a checked view and emission.

use super::{be16, put16};
use fairway_tables::DropReason;

/// Length of the fixed header.
pub const LEN: usize = 40;
/// Offset of the hop limit.
pub const HOP_LIMIT: usize = 7;
/// Offset of the source address.
pub const SRC: usize = 8;
/// Offset of the destination address.
pub const DST: usize = 24;
/// Smallest MTU of any link (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;

/// Next Header values of extension headers (RFC 8200 section 4, RFC 4302).
mod next {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    /// Mobility (RFC 6275), host identity (RFC 7401), shim6 (RFC 5533): of the same form.
    pub(super) const OTHERS: [u8; 3] = [135, 139, 140];
}

/// Extension headers that are read; a packet with more is refused.
const MAX_EXTENSIONS: usize = 8;

/// Offset in the second word of a fragment header, in bytes.
pub const FRAGMENT_OFFSET: u16 = 0xfff8;
/// "More fragments" in the same word.
pub const MORE_FRAGMENTS: u16 = 1;
/// Length of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

/// Where a packet says that it is a fragment (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset of the fragment header from the IP header's start.
    pub at: u16,
    /// Whether this is not the first fragment: what follows the fragment header are no headers.
    pub is_later: bool,
}

/// A header that [`Header::parse`] has checked, extension headers included.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    bytes: &'a [u8; LEN],
    total: usize,
    chain: Chain,
}

/// What the extension headers lead to.
#[derive(Clone, Copy)]
struct Chain {
    proto: u8,
    l4: usize,
    fragment: Option<Fragment>,
}

impl<'a> Header<'a> {
    /// Checks version and lengths, and goes through the extension headers. `packet` starts with the IP header and may
    /// be longer than the packet (Ethernet padding). After this `packet[..total_len]` and `packet[l4..]` are there.
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<Header<'a>, DropReason> {
        let Some(bytes) = packet.first_chunk::<LEN>() else { return Err(DropReason::Truncated) };
        if bytes[0] >> 4 != 6 {
            return Err(DropReason::BadIpHeader);
        }
        let total = LEN + usize::from(be16(bytes, 4));
        if total > packet.len() {
            return Err(DropReason::Truncated);
        }
        // The longest packet that lengths of 16 bits can tell; jumbograms (RFC 2675) do not fit any frame here.
        if total > usize::from(u16::MAX) {
            return Err(DropReason::BadIpHeader);
        }
        let chain = match bytes[6] {
            // Nearly always.
            super::proto::TCP | super::proto::UDP | super::proto::ICMPV6 => {
                Chain { proto: bytes[6], l4: LEN, fragment: None }
            }
            first => through_extensions(&packet[..total], first)?,
        };
        Ok(Header { bytes, total, chain })
    }

    /// Length of header and payload in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.total
    }

    /// Offset of what follows the last extension header; in a later fragment, the fragment header.
    #[inline]
    pub fn l4(&self) -> usize {
        self.chain.l4
    }

    /// Protocol of what follows the last extension header. In a later fragment that is what the fragment header says,
    /// and may be an extension header's.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.chain.proto
    }

    /// Whether this is a fragment; an atomic one (RFC 6946) is none.
    #[inline]
    pub fn fragment(&self) -> Option<Fragment> {
        self.chain.fragment
    }

    /// Traffic class: DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.bytes[0] << 4 | self.bytes[1] >> 4
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.bytes[HOP_LIMIT]
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> [u8; 16] {
        address(self.bytes, SRC)
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> [u8; 16] {
        address(self.bytes, DST)
    }
}

#[inline(always)]
fn address(header: &[u8; LEN], at: usize) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&header[at..at + 16]);
    out
}

/// Protocol and offset of what follows the extension headers.
#[cold]
fn through_extensions(packet: &[u8], first: u8) -> Result<Chain, DropReason> {
    let (mut proto, mut at) = (first, LEN);
    let mut fragment = None;
    for _ in 0..MAX_EXTENSIONS {
        let len = match proto {
            next::HOP_BY_HOP if at != LEN => return Err(DropReason::BadIpHeader),
            next::HOP_BY_HOP | next::ROUTING | next::DESTINATION => {
                8 * (1 + usize::from(byte(packet, at + 1)?))
            }
            _ if next::OTHERS.contains(&proto) => 8 * (1 + usize::from(byte(packet, at + 1)?)),
            next::AUTHENTICATION => 4 * (2 + usize::from(byte(packet, at + 1)?)),
            next::FRAGMENT => {
                byte(packet, at + FRAGMENT_LEN - 1)?;
                let word = be16(packet, at + 2);
                let is_later = word & FRAGMENT_OFFSET != 0;
                if is_later || word & MORE_FRAGMENTS != 0 {
                    // No packet is a fragment of a fragment.
                    if fragment.replace(Fragment { at: at as u16, is_later }).is_some() {
                        return Err(DropReason::BadFragment);
                    }
                }
                if is_later {
                    return Ok(Chain { proto: byte(packet, at)?, l4: at + FRAGMENT_LEN, fragment });
                }
                FRAGMENT_LEN
            }
            _ => return Ok(Chain { proto, l4: at, fragment }),
        };
        proto = byte(packet, at)?;
        at += len;
        if at > packet.len() {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::BadIpHeader)
}

fn byte(packet: &[u8], at: usize) -> Result<u8, DropReason> {
    packet.get(at).copied().ok_or(DropReason::Truncated)
}

/// What is needed to emit a header without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Protocol of the payload.
    pub proto: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Bytes after the header.
    pub payload_len: u16,
}

impl Repr {
    /// Writes every byte of the header; traffic class and flow label are zero.
    pub fn emit(&self, out: &mut [u8; LEN]) {
        out[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        put16(out, 4, self.payload_len);
        out[6] = self.proto;
        out[HOP_LIMIT] = self.hop_limit;
        out[SRC..SRC + 16].copy_from_slice(&self.src);
        out[DST..DST + 16].copy_from_slice(&self.dst);
    }
}

/// Whether an address means something on its own link only (RFC 4291 section 2.5.6).
pub fn is_link_local(ip: &[u8; 16]) -> bool {
    ip[0] == 0xfe && ip[1] & 0xc0 == 0x80
}

/// Whether an address names a group (RFC 4291 section 2.7).
pub fn is_multicast(ip: &[u8; 16]) -> bool {
    ip[0] == 0xff
}

/// Whether no packet to forward may have this source or destination (RFC 4291): unspecified, loopback, link-local, and
/// multicast, which is not routed.
pub fn is_martian(ip: &[u8; 16]) -> bool {
    u128::from_be_bytes(*ip) <= 1 || is_link_local(ip) || is_multicast(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto;

    const SRC_IP: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const DST_IP: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    fn packet(proto: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = [0xa5; LEN];
        let payload_len = payload.len() as u16;
        Repr { src: SRC_IP, dst: DST_IP, proto, hop_limit: 64, payload_len }.emit(&mut header);
        [&header[..], payload].concat()
    }

    #[test]
    fn an_emitted_header_has_these_bytes_and_parses_back() {
        let bytes = packet(proto::UDP, &[7; 12]);
        assert_eq!(bytes[..8], [0x60, 0, 0, 0, 0, 12, 17, 64]);
        assert_eq!((&bytes[8..24], &bytes[24..40]), (&SRC_IP[..], &DST_IP[..]));
        let header = Header::parse(&bytes).unwrap();
        assert_eq!((header.total_len(), header.l4(), header.proto(), header.hop_limit()), (52, 40, 17, 64));
        assert_eq!((header.src(), header.dst()), (SRC_IP, DST_IP));
    }

    #[test]
    fn extension_headers_are_gone_through() {
        // Hop-by-hop of 8 bytes, destination options of 16, an atomic fragment, then UDP.
        let mut payload = vec![60, 0, 1, 4, 0, 0, 0, 0];
        payload.extend([44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([17, 0, 0, 0, 1, 2, 3, 4]);
        payload.extend([0; 8]);
        let bytes = packet(0, &payload);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!((header.proto(), header.l4()), (proto::UDP, 72));
    }

    #[test]
    fn fragments_are_told_from_whole_packets() {
        let parse = |payload: &[u8]| {
            let bytes = packet(60, &[&[44, 0, 1, 4, 0, 0, 0, 0], payload].concat());
            let header = Header::parse(&bytes).unwrap();
            (header.fragment(), header.proto(), header.l4())
        };
        let first = [60, 0, 0, 1, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(parse(&first), (Some(Fragment { at: 48, is_later: false }), 17, 64));
        let later = [60, 0, 0, 8, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(parse(&later), (Some(Fragment { at: 48, is_later: true }), 60, 56), "not gone into");
    }

    #[test]
    fn each_broken_packet_has_its_reason() {
        let reason = |proto, payload: &[u8]| Header::parse(&packet(proto, payload)).err();
        assert_eq!(Header::parse(&[0x60; 39]).err(), Some(DropReason::Truncated));
        assert_eq!(Header::parse(&packet(17, &[0; 8])[..47]).err(), Some(DropReason::Truncated));
        let mut old = packet(17, &[0; 8]);
        old[0] = 0x45;
        assert_eq!(Header::parse(&old).err(), Some(DropReason::BadIpHeader));
        assert_eq!(
            reason(44, &[44, 0, 0, 1, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0]),
            Some(DropReason::BadFragment),
            "a fragment of a fragment"
        );
        assert_eq!(reason(44, &[17, 0, 0, 1, 0, 0, 0]), Some(DropReason::Truncated));
        assert_eq!(reason(60, &[17, 9, 0, 0, 0, 0, 0, 0]), Some(DropReason::Truncated));
        assert_eq!(reason(60, &[17]), Some(DropReason::Truncated));
        assert_eq!(
            reason(60, &[0, 0, 1, 4, 0, 0, 0, 0]),
            Some(DropReason::BadIpHeader),
            "hop-by-hop not first"
        );
        assert_eq!(
            reason(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(20)),
            Some(DropReason::BadIpHeader),
            "too many"
        );
        assert_eq!(Header::parse(&packet(59, b"")).map(|h| h.proto()).ok(), Some(59), "no next header");
    }

    #[test]
    fn martians_are_known() {
        let ip = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        for text in ["::", "::1", "fe80::1", "febf::1", "ff02::1"] {
            assert!(is_martian(&ip(text)), "{text}");
        }
        for text in ["::2", "2001:db8::1", "fd00::1", "fec0::1", "64:ff9b::1"] {
            assert!(!is_martian(&ip(text)), "{text}");
        }
    }
}
