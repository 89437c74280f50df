//! The bytes of a packet: headers with right checksums, and the stamp at the end by which the sink knows it.

use crate::pktgen::plan::{PlannedStream, Tuple};
use crate::pktgen::ranges::Addresses;
use crate::pktgen::scenario::Protocol;
use fairway_dataplane::wire::{
    ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP_LEN, UDP_LEN, checksum, ipv4, ipv6, proto, put_raw16, put16,
    tcp_flags,
};

/// Bytes of a stamp: magic 2, trial 1, flow 3, sequence number 4, time 8, all big-endian.
pub const STAMP_LEN: usize = 18;
const MAGIC: u16 = 0xfa1d;
/// Longest headers.
const HEADERS_LEN: usize = ETH_LEN + ipv6::LEN + TCP_LEN;

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which trial it belongs to, modulo 256.
    pub trial: u8,
    /// Number of its flow, below 2²⁴.
    pub flow: u32,
    /// Its number among the flow's packets, from 0.
    pub sequence: u32,
    /// When it was sent, in clocks of the TSC.
    pub clocks: u64,
}

impl Stamp {
    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; STAMP_LEN] {
        let mut bytes = [0; STAMP_LEN];
        bytes[..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2..6].copy_from_slice(&(u32::from(self.trial) << 24 | self.flow & 0xff_ffff).to_be_bytes());
        bytes[6..10].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[10..].copy_from_slice(&self.clocks.to_be_bytes());
        bytes
    }

    /// The stamp at the end of a frame, if it has one.
    #[inline]
    pub fn of(frame: &[u8]) -> Option<Stamp> {
        let bytes = frame.get(place(frame.len())?..)?.first_chunk::<STAMP_LEN>()?;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u16::from_be_bytes([bytes[0], bytes[1]]) != MAGIC {
            return None;
        }
        Some(Stamp {
            trial: bytes[2],
            flow: word(2) & 0xff_ffff,
            sequence: word(6),
            clocks: u64::from(word(10)) << 32 | u64::from(word(14)),
        })
    }
}

/// Where a frame of this length has its stamp: as far back as possible at an even offset, so that its
/// words are words of the checksum. Encapsulation adds an even number of bytes.
#[inline]
fn place(len: usize) -> Option<usize> {
    Some(len.checked_sub(STAMP_LEN)? & !1)
}

/// A stream's headers with all that is the same in every packet, and the sums over it.
#[derive(Clone, Debug)]
pub struct Template {
    headers: [u8; HEADERS_LEN],
    headers_len: usize,
    is_v4: bool,
    protocol: u8,
    /// Sum over the IPv4 header's constant words.
    ip_sum: u64,
    /// Sum over the transport header's constant words and the pseudo-header's.
    l4_sum: u64,
}

impl Template {
    /// A stream's template.
    pub fn new(stream: &PlannedStream) -> Template {
        let mut headers = [0; HEADERS_LEN];
        headers[..6].copy_from_slice(&stream.route.dst_mac.0);
        headers[6..12].copy_from_slice(&stream.route.src_mac.0);
        let protocol = match stream.protocol {
            Protocol::Udp => proto::UDP,
            Protocol::Tcp => proto::TCP,
        };
        let is_v4 = put_ip(&mut headers, &stream.route.sources, &stream.route.destinations, protocol);
        let l4 = if is_v4 { ETH_LEN + ipv4::LEN } else { ETH_LEN + ipv6::LEN };
        let headers_len = match stream.protocol {
            Protocol::Udp => l4 + UDP_LEN,
            Protocol::Tcp => {
                headers[l4 + 12] = 5 << 4;
                headers[l4 + 13] = tcp_flags::ACK;
                put16(&mut headers, l4 + 14, 0xffff);
                l4 + TCP_LEN
            }
        };
        // What addresses have in common; the rest of them is zero here.
        let pseudo = if is_v4 { 0 } else { checksum::sum(&headers[ETH_LEN + 8..l4]) };
        Template {
            ip_sum: checksum::sum(&headers[ETH_LEN..l4]),
            l4_sum: pseudo
                + checksum::sum(&headers[l4..headers_len])
                + u64::from(u16::from_ne_bytes([0, protocol])),
            headers,
            headers_len,
            is_v4,
            protocol,
        }
    }

    /// Writes a packet that fills `frame`, which has room for headers and stamp.
    #[inline]
    pub fn write(&self, frame: &mut [u8], tuple: Tuple, stamp: Stamp) {
        let len = frame.len();
        let stamp_at = (len - STAMP_LEN) & !1;
        frame[..self.headers_len].copy_from_slice(&self.headers[..self.headers_len]);
        frame[self.headers_len..].fill(0);
        let stamp_bytes = stamp.to_bytes();
        frame[stamp_at..stamp_at + STAMP_LEN].copy_from_slice(&stamp_bytes);

        let addresses = u64::from(tuple.src.to_be()) + u64::from(tuple.dst.to_be());
        let (l4, l4_bytes) = if self.is_v4 {
            let ip_len = (len - ETH_LEN) as u16;
            put16(frame, ETH_LEN + 2, ip_len);
            frame[ETH_LEN + 12..ETH_LEN + 16].copy_from_slice(&tuple.src.to_be_bytes());
            frame[ETH_LEN + 16..ETH_LEN + 20].copy_from_slice(&tuple.dst.to_be_bytes());
            let sum = !checksum::fold(self.ip_sum + addresses + u64::from(ip_len.to_be()));
            put_raw16(frame, ETH_LEN + ipv4::CHECKSUM, sum);
            (ETH_LEN + ipv4::LEN, ip_len - ipv4::LEN as u16)
        } else {
            let payload_len = (len - ETH_LEN - ipv6::LEN) as u16;
            put16(frame, ETH_LEN + 4, payload_len);
            frame[ETH_LEN + 20..ETH_LEN + 24].copy_from_slice(&tuple.src.to_be_bytes());
            frame[ETH_LEN + 36..ETH_LEN + 40].copy_from_slice(&tuple.dst.to_be_bytes());
            (ETH_LEN + ipv6::LEN, payload_len)
        };
        put16(frame, l4, tuple.sport);
        put16(frame, l4 + 2, tuple.dport);
        let l4_len = u64::from(l4_bytes.to_be());
        let mut sum =
            self.l4_sum + addresses + u64::from(tuple.sport.to_be()) + u64::from(tuple.dport.to_be());
        // The length is in the pseudo-header, and in UDP once more.
        sum += l4_len + checksum::sum(&stamp_bytes);
        if self.protocol == proto::UDP {
            put16(frame, l4 + 4, l4_bytes);
            let sum = !checksum::fold(sum + l4_len);
            put_raw16(frame, l4 + 6, if sum == 0 { 0xffff } else { sum });
        } else {
            frame[l4 + 4..l4 + 8].copy_from_slice(&stamp.sequence.to_be_bytes());
            sum += u64::from(stamp.sequence.to_be());
            put_raw16(frame, l4 + 16, !checksum::fold(sum));
        }
    }
}

/// The IP header without lengths, checksum and the last 32 bits of addresses; whether it is IPv4's.
fn put_ip(headers: &mut [u8], sources: &Addresses, destinations: &Addresses, protocol: u8) -> bool {
    match (sources.high, destinations.high) {
        (Some(src), Some(dst)) => {
            put16(headers, 12, ETHERTYPE_IPV6);
            headers[ETH_LEN] = 0x60;
            headers[ETH_LEN + 6] = protocol;
            headers[ETH_LEN + 7] = 64;
            headers[ETH_LEN + 8..ETH_LEN + 20].copy_from_slice(&src);
            headers[ETH_LEN + 24..ETH_LEN + 36].copy_from_slice(&dst);
            false
        }
        _ => {
            put16(headers, 12, ETHERTYPE_IPV4);
            headers[ETH_LEN] = 0x45;
            headers[ETH_LEN + 6] = 0x40; // don't fragment
            headers[ETH_LEN + 8] = 64;
            headers[ETH_LEN + 9] = protocol;
            true
        }
    }
}
