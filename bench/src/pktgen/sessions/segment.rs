//! TCP segments (RFC 9293 section 3.1) as bytes: written, read, answered.

use crate::pktgen::plan::Tuple;
use fairway_dataplane::wire::{
    ETH_LEN, ETHERTYPE_IPV4, TCP_LEN, be16, checksum, ipv4, proto, put_raw16, put16, raw32, tcp_flags,
};
use fairway_tables::Mac;

const L4: usize = ETH_LEN + ipv4::LEN;
/// Headers of a segment, Ethernet included.
const HEADERS_LEN: usize = L4 + TCP_LEN;
/// The responder's first sequence number.
const RESPONDER_ISN: u32 = 0x5eed_0000;

/// A segment's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Addresses and ports as it carries them.
    pub tuple: Tuple,
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Bytes of data.
    pub payload_len: u16,
}

impl Segment {
    /// Bytes of the frame without FCS, at least Ethernet's smallest.
    pub fn frame_len(&self) -> usize {
        (HEADERS_LEN + usize::from(self.payload_len)).max(60)
    }

    /// Reads a frame; `None` if it is no whole TCP segment without IP options.
    pub fn of(frame: &[u8]) -> Option<Segment> {
        let headers = frame.get(..HEADERS_LEN)?;
        if be16(headers, 12) != ETHERTYPE_IPV4
            || headers[ETH_LEN] != 0x45
            || headers[ETH_LEN + 9] != proto::TCP
        {
            return None;
        }
        let ip_len = usize::from(be16(headers, ETH_LEN + 2));
        let header_len = usize::from(headers[L4 + 12] >> 4) * 4;
        let payload_len = ip_len.checked_sub(ipv4::LEN + header_len)?;
        if header_len < TCP_LEN || ETH_LEN + ip_len > frame.len() {
            return None;
        }
        let be32 = |at: usize| u32::from_be(raw32(headers, at));
        Some(Segment {
            tuple: Tuple {
                src: be32(ETH_LEN + 12),
                dst: be32(ETH_LEN + 16),
                sport: be16(headers, L4),
                dport: be16(headers, L4 + 2),
            },
            flags: headers[L4 + 13],
            seq: be32(L4 + 4),
            ack: be32(L4 + 8),
            payload_len: payload_len as u16,
        })
    }

    /// Writes the segment into a frame of [`Segment::frame_len`] bytes; data are zeroes.
    pub fn write(&self, frame: &mut [u8], src_mac: Mac, dst_mac: Mac) {
        frame.fill(0);
        frame[..6].copy_from_slice(&dst_mac.0);
        frame[6..12].copy_from_slice(&src_mac.0);
        put16(frame, 12, ETHERTYPE_IPV4);
        let Tuple { src, dst, sport, dport } = self.tuple;
        let tcp_len = TCP_LEN + usize::from(self.payload_len);
        if let Some(header) = frame[ETH_LEN..].first_chunk_mut::<{ ipv4::LEN }>() {
            ipv4::Repr {
                src: src.to_be_bytes(),
                dst: dst.to_be_bytes(),
                proto: proto::TCP,
                ttl: 64,
                payload_len: tcp_len as u16,
                dont_fragment: true,
            }
            .emit(header);
        }
        let tcp = &mut frame[L4..L4 + tcp_len];
        put16(tcp, 0, sport);
        put16(tcp, 2, dport);
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = self.flags;
        put16(tcp, 14, 0xffff);
        let pseudo = checksum::pseudo_header_v4(src.to_be(), dst.to_be(), proto::TCP, tcp_len as u16);
        let sum = !checksum::fold(checksum::sum(tcp) + pseudo);
        put_raw16(tcp, 16, sum);
    }
}

/// The responder's answer to a segment, if it asks for one.
pub fn answer(segment: &Segment) -> Option<Segment> {
    let Segment { tuple, flags, seq, ack, payload_len } = *segment;
    let tuple = Tuple { src: tuple.dst, dst: tuple.src, sport: tuple.dport, dport: tuple.sport };
    let syn = flags & tcp_flags::SYN != 0;
    let fin = flags & tcp_flags::FIN != 0;
    if flags & tcp_flags::RST != 0 || !(syn || fin || payload_len > 0) {
        return None;
    }
    let control = if syn {
        tcp_flags::SYN
    } else if fin {
        tcp_flags::FIN
    } else {
        0
    };
    Some(Segment {
        tuple,
        flags: control | tcp_flags::ACK,
        seq: if syn { RESPONDER_ISN } else { ack },
        ack: seq.wrapping_add(u32::from(payload_len)).wrapping_add(u32::from(syn || fin)),
        payload_len: if syn || fin { 0 } else { payload_len },
    })
}
