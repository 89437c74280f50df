//! IPv6 packets as bytes, with right checksums.

use super::packet::Segment;
use crate::wire::{ETH_LEN, ETHERTYPE_IPV6, UDP_LEN, checksum, icmpv6, ipv6, proto, put_raw16, put16};
use fairway_tables::Mac;

/// Ethernet and IPv6 of a packet to build.
#[derive(Clone, Copy, Debug)]
pub struct Headers6 {
    /// Ethernet destination.
    pub dst_mac: Mac,
    /// Ethernet source.
    pub src_mac: Mac,
    /// IPv6 source.
    pub src: [u8; 16],
    /// IPv6 destination.
    pub dst: [u8; 16],
    /// Hop limit.
    pub hop_limit: u8,
}

impl Headers6 {
    /// Puts the headers in front of what follows the fixed header, which begins with a header of type `next`.
    pub fn around(&self, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETH_LEN];
        frame[..6].copy_from_slice(&self.dst_mac.0);
        frame[6..12].copy_from_slice(&self.src_mac.0);
        put16(&mut frame, 12, ETHERTYPE_IPV6);
        let mut ip = [0; ipv6::LEN];
        let (src, dst, hop_limit) = (self.src, self.dst, self.hop_limit);
        ipv6::Repr { src, dst, proto: next, hop_limit, payload_len: payload.len() as u16 }.emit(&mut ip);
        frame.extend(ip);
        frame.extend_from_slice(payload);
        frame
    }

    fn checksum(&self, protocol: u8, message: &[u8]) -> u16 {
        let pseudo = checksum::pseudo_header_v6(&self.src, &self.dst, protocol, message.len() as u16);
        !checksum::fold(checksum::sum(message) + pseudo)
    }

    /// A UDP message with its checksum.
    pub fn udp_message(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        let mut udp = vec![0; UDP_LEN];
        put16(&mut udp, 0, sport);
        put16(&mut udp, 2, dport);
        put16(&mut udp, 4, (UDP_LEN + payload.len()) as u16);
        udp.extend_from_slice(payload);
        let sum = self.checksum(proto::UDP, &udp);
        put_raw16(&mut udp, 6, if sum == 0 { 0xffff } else { sum });
        udp
    }

    /// A UDP packet.
    pub fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        self.around(proto::UDP, &self.udp_message(sport, dport, payload))
    }

    /// A TCP segment with the given control bits.
    pub fn tcp(&self, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        self.segment(sport, dport, &Segment { flags, window: 0xffff, ..Segment::default() }, payload)
    }

    /// A TCP segment.
    pub fn segment(&self, sport: u16, dport: u16, segment: &Segment, payload: &[u8]) -> Vec<u8> {
        let mut tcp = segment.message(sport, dport, payload);
        let sum = self.checksum(proto::TCP, &tcp);
        put_raw16(&mut tcp, 16, sum);
        self.around(proto::TCP, &tcp)
    }

    /// An ICMPv6 message: type, code, the four bytes after the checksum, and what follows.
    pub fn icmp(&self, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(rest);
        message.extend_from_slice(body);
        icmpv6::finish(&self.src, &self.dst, &mut message);
        self.around(proto::ICMPV6, &message)
    }

    /// An echo request or reply.
    pub fn echo(&self, kind: u8, identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
        let [a, b] = identifier.to_be_bytes();
        let [c, d] = sequence.to_be_bytes();
        self.icmp(kind, 0, [a, b, c, d], data)
    }

    /// A neighbour solicitation for `target`, with the sender's Ethernet address.
    pub fn solicitation(&self, target: [u8; 16]) -> Vec<u8> {
        let mut body = target.to_vec();
        body.extend([1, 1]);
        body.extend(self.src_mac.0);
        self.icmp(icmpv6::NEIGHBOUR_SOLICITATION, 0, [0; 4], &body)
    }
}

/// Cuts the IPv6 packet of a frame into fragments with at most this many bytes of data each, a multiple of 8 (RFC 8200
/// section 4.5). What follows the fixed header is all to be fragmented.
pub fn fragments(frame: &[u8], data_len: usize, id: u32) -> Vec<Vec<u8>> {
    let (headers, data) = frame.split_at(ETH_LEN + ipv6::LEN);
    let parts = data.chunks(data_len).enumerate().map(|(index, part)| {
        let at = index * data_len;
        let more = u16::from(at + part.len() < data.len());
        let mut fragment = [0; ipv6::FRAGMENT_LEN];
        fragment[0] = headers[ETH_LEN + 6];
        put16(&mut fragment, 2, at as u16 | more);
        fragment[4..].copy_from_slice(&id.to_be_bytes());
        let mut out = [headers, &fragment, part].concat();
        out[ETH_LEN + 6] = 44;
        put16(&mut out, ETH_LEN + 4, (ipv6::FRAGMENT_LEN + part.len()) as u16);
        out
    });
    parts.collect()
}
