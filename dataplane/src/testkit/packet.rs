//! Packets as bytes, with right checksums.

use crate::wire::{
    self, ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, TCP_LEN, UDP_LEN, checksum, icmp, ipip, ipv4, over_ipv6,
    proto, put16, udp_tunnel, vxlan,
};
use fairway_tables::Mac;

/// Ethernet and IPv4 of a packet to build.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// Ethernet destination.
    pub dst_mac: Mac,
    /// Ethernet source.
    pub src_mac: Mac,
    /// IPv4 source.
    pub src: [u8; 4],
    /// IPv4 destination.
    pub dst: [u8; 4],
    /// Time to live.
    pub ttl: u8,
}

/// What a TCP header says beside its ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// Window.
    pub window: u16,
    /// The shift that the option of RFC 7323 announces, if it is there.
    pub shift: Option<u8>,
}

impl Segment {
    /// The TCP message, without checksum.
    pub(super) fn message(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        let options = self.shift.map_or(Vec::new(), |shift| vec![1, 3, 3, shift]);
        let mut tcp = vec![0; TCP_LEN];
        put16(&mut tcp, 0, sport);
        put16(&mut tcp, 2, dport);
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = ((TCP_LEN + options.len()) as u8 / 4) << 4;
        tcp[13] = self.flags;
        put16(&mut tcp, 14, self.window);
        tcp.extend_from_slice(&options);
        tcp.extend_from_slice(payload);
        tcp
    }
}

impl Headers {
    /// Puts the headers in front of a transport message.
    pub fn around(&self, protocol: u8, l4: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETH_LEN + ipv4::LEN];
        frame[..6].copy_from_slice(&self.dst_mac.0);
        frame[6..12].copy_from_slice(&self.src_mac.0);
        put16(&mut frame, 12, ETHERTYPE_IPV4);
        let mut ip = [0; ipv4::LEN];
        ipv4::Repr {
            src: self.src,
            dst: self.dst,
            proto: protocol,
            ttl: self.ttl,
            payload_len: l4.len() as u16,
            dont_fragment: true,
        }
        .emit(&mut ip);
        frame[ETH_LEN..].copy_from_slice(&ip);
        frame.extend_from_slice(l4);
        frame
    }

    fn pseudo(&self, protocol: u8, len: usize) -> u64 {
        let (src, dst) = (u32::from_ne_bytes(self.src), u32::from_ne_bytes(self.dst));
        checksum::pseudo_header_v4(src, dst, protocol, len as u16)
    }

    /// A UDP packet.
    pub fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        let mut udp = vec![0; UDP_LEN];
        put16(&mut udp, 0, sport);
        put16(&mut udp, 2, dport);
        put16(&mut udp, 4, (UDP_LEN + payload.len()) as u16);
        udp.extend_from_slice(payload);
        let sum = !checksum::fold(checksum::sum(&udp) + self.pseudo(proto::UDP, udp.len()));
        wire::put_raw16(&mut udp, 6, if sum == 0 { 0xffff } else { sum });
        self.around(proto::UDP, &udp)
    }

    /// A TCP segment with the given control bits.
    pub fn tcp(&self, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        self.segment(sport, dport, &Segment { flags, window: 0xffff, ..Segment::default() }, payload)
    }

    /// A TCP segment.
    pub fn segment(&self, sport: u16, dport: u16, segment: &Segment, payload: &[u8]) -> Vec<u8> {
        let mut tcp = segment.message(sport, dport, payload);
        let sum = !checksum::fold(checksum::sum(&tcp) + self.pseudo(proto::TCP, tcp.len()));
        wire::put_raw16(&mut tcp, 16, sum);
        self.around(proto::TCP, &tcp)
    }

    /// An ICMP echo request or reply.
    pub fn echo(&self, kind: u8, identifier: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
        let mut message = vec![0; icmp::LEN];
        message[0] = kind;
        put16(&mut message, 4, identifier);
        put16(&mut message, 6, sequence);
        message.extend_from_slice(data);
        let sum = checksum::checksum(&message);
        wire::put_raw16(&mut message, 2, sum);
        self.around(proto::ICMP, &message)
    }
}

/// Encapsulates a whole inner frame, Ethernet header included, whose MAC addresses are replaced.
pub fn encapsulate(encap: &vxlan::Encap, inner: &[u8], entropy: u16) -> Vec<u8> {
    let mut frame = encap.template().to_vec();
    frame.extend_from_slice(&inner[ETH_LEN..]);
    // Of whatever family.
    frame[vxlan::HEADER_LEN - 2..vxlan::HEADER_LEN].copy_from_slice(&inner[ETH_LEN - 2..ETH_LEN]);
    if let Some(header) = frame.first_chunk_mut() {
        vxlan::complete(header, (inner.len() - ETH_LEN) as u16, inner[ETH_LEN + 1], entropy);
    }
    frame
}

/// Type of service or traffic class of the IP packet in a frame, of whatever family.
fn tos(frame: &[u8]) -> u8 {
    let [first, second] = [frame[ETH_LEN], frame[ETH_LEN + 1]];
    if first >> 4 == 6 { first << 4 | second >> 4 } else { second }
}

/// Puts the IP packet of a frame, of either family, into IPv4.
pub fn into_ipip(outer: &ipip::Outer, inner: &[u8]) -> Vec<u8> {
    let mut header = outer.template();
    if inner[ETH_LEN] >> 4 == 6 {
        ipip::set_proto(&mut header, proto::IPV6);
    }
    ipip::complete(&mut header, (inner.len() - ETH_LEN) as u16, tos(inner));
    [&header, &inner[ETH_LEN..]].concat()
}

/// Puts the IP packet of a frame, of either family, into IPv6.
pub fn into_ipv6(outer: &over_ipv6::Outer6, inner: &[u8]) -> Vec<u8> {
    let mut frame = [&outer.ip_in_ip(), &inner[ETH_LEN..]].concat();
    if inner[ETH_LEN] >> 4 == 6 {
        frame[over_ipv6::NEXT_HEADER] = proto::IPV6;
    }
    over_ipv6::complete(&mut frame, tos(inner), 50_000);
    frame
}

/// The same with an encapsulation limit in between, as Linux's ip6tnl sends it (RFC 2473 section 4.1.1).
pub fn into_ipv6_with_limit(outer: &over_ipv6::Outer6, inner: &[u8]) -> Vec<u8> {
    let mut frame = into_ipv6(outer, inner);
    let next = std::mem::replace(&mut frame[over_ipv6::NEXT_HEADER], 60);
    let at = over_ipv6::IP_HEADER_LEN;
    frame.splice(at..at, [next, 0, 4, 1, 4, 1, 0, 0]);
    let payload_len = (frame.len() - at) as u16;
    put16(&mut frame, ETH_LEN + 4, payload_len);
    frame
}

/// Encapsulates a whole inner frame of either family in VXLAN over IPv6.
pub fn into_vxlan6(outer: &over_ipv6::Outer6, network: &over_ipv6::Vxlan, inner: &[u8]) -> Vec<u8> {
    let mut frame = [&outer.vxlan(network), &inner[ETH_LEN..]].concat();
    frame[over_ipv6::INNER_ETHERTYPE..over_ipv6::VXLAN_HEADER_LEN]
        .copy_from_slice(&inner[ETH_LEN - 2..ETH_LEN]);
    over_ipv6::complete_udp(&mut frame, tos(inner), 50_000);
    frame
}

/// Puts the IP packet of a frame into UDP over IPv6 without further header.
pub fn into_udp6(outer: &over_ipv6::Outer6, udp_port: u16, inner: &[u8]) -> Vec<u8> {
    let mut frame = [&outer.udp(udp_port), &inner[ETH_LEN..]].concat();
    over_ipv6::complete_udp(&mut frame, tos(inner), 50_000);
    frame
}

/// Sets the traffic class of the IPv6 header that begins at `at` of a frame.
pub fn set_traffic_class(frame: &mut [u8], at: usize, class: u8) {
    frame[at] = 0x60 | class >> 4;
    frame[at + 1] = frame[at + 1] & 0x0f | class << 4;
}

/// Puts the IP packet of a frame into UDP without further header.
pub fn into_udp(outer: &ipip::Outer, udp_port: u16, inner: &[u8], entropy: u16) -> Vec<u8> {
    let mut header = udp_tunnel::template(outer, udp_port);
    udp_tunnel::complete(&mut header, (inner.len() - ETH_LEN) as u16, inner[ETH_LEN + 1], entropy);
    [&header, &inner[ETH_LEN..]].concat()
}

/// Cuts the IP packet of a frame into fragments with at most this many bytes of payload each, a multiple of 8.
pub fn fragments(frame: &[u8], payload_len: usize) -> Vec<Vec<u8>> {
    let (headers, payload) = frame.split_at(ETH_LEN + ipv4::LEN);
    let parts = payload.chunks(payload_len).enumerate().map(|(index, part)| {
        let at = index * payload_len;
        let more = if at + part.len() < payload.len() { 0x2000 } else { 0 };
        let mut out = [headers, part].concat();
        put16(&mut out, ETH_LEN + 2, (ipv4::LEN + part.len()) as u16);
        put16(&mut out, ETH_LEN + 6, more | (at / 8) as u16);
        mend_ip_checksum(&mut out);
        out
    });
    parts.collect()
}

/// Clears "don't fragment" in the IPv4 header of a frame.
pub fn allow_fragments(frame: &mut [u8]) {
    frame[ETH_LEN + ipv4::FRAGMENT] &= !((ipv4::DF >> 8) as u8);
    mend_ip_checksum(frame);
}

/// Gives the IPv4 packet of a frame options, of a multiple of four bytes, after its header without any.
pub fn add_options(frame: &mut Vec<u8>, options: &[u8]) {
    let at = ETH_LEN + ipv4::LEN;
    frame.splice(at..at, options.iter().copied());
    frame[ETH_LEN] += (options.len() / 4) as u8;
    let total_len = (frame.len() - ETH_LEN) as u16;
    put16(frame, ETH_LEN + 2, total_len);
    mend_ip_checksum(frame);
}

/// Sets the type of service (DSCP and ECN) of the IPv4 header that begins at `at` of a frame.
pub fn set_tos(frame: &mut [u8], at: usize, tos: u8) {
    frame[at + 1] = tos;
    mend_ip_checksum(&mut frame[at - ETH_LEN..]);
}

/// Makes the header checksum of the IPv4 packet in a frame right again.
pub fn mend_ip_checksum(frame: &mut [u8]) {
    let header_len = usize::from(frame[ETH_LEN] & 0xf) * 4;
    let ip = &mut frame[ETH_LEN..ETH_LEN + header_len];
    wire::put_raw16(ip, ipv4::CHECKSUM, 0);
    let sum = checksum::checksum(ip);
    wire::put_raw16(ip, ipv4::CHECKSUM, sum);
}

/// An ARP request, broadcast.
pub fn arp_request(sender_mac: Mac, sender_ip: [u8; 4], target_ip: [u8; 4]) -> Vec<u8> {
    let mut frame = Mac::BROADCAST.0.to_vec();
    frame.extend(sender_mac.0);
    frame.extend(ETHERTYPE_ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender_mac.0);
    frame.extend(sender_ip);
    frame.extend([0; 6]);
    frame.extend(target_ip);
    frame
}
