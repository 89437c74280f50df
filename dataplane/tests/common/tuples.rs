//! Packets of both families made from tuples, and read back into tuples by an independent parser (etherparse).

use super::look;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::packet::Headers;
use fairway_dataplane::testkit::packet6::Headers6;
use fairway_dataplane::testkit::{World, addr, packet};
use fairway_dataplane::wire::{ETHERTYPE_IPV6, be16, icmp, icmpv6, proto, sctp, tcp_flags};
use fairway_tables::{Ip, Mac, PortId};

/// Which packet of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// SYN, echo request.
    Open,
    /// SYN-ACK, echo reply.
    Answer,
    /// ACK, echo request.
    More,
}

/// Where packets come from and go to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    /// Local pod.
    Pod(u16),
    /// The node's own network stack.
    Host,
    /// The uplink, without encapsulation.
    Wire,
    /// A remote node, by VXLAN.
    Node(u8),
}

impl Place {
    pub(crate) fn port(self) -> PortId {
        match self {
            Place::Pod(n) => addr::pod_port(n),
            Place::Host => addr::HOST,
            Place::Wire | Place::Node(_) => addr::UPLINK,
        }
    }
}

/// An address of either family.
pub(crate) fn ip(v4: [u8; 4], v6: [u8; 16], is_v4: bool) -> Ip {
    if is_v4 { Ip::v4(v4) } else { Ip(v6) }
}

fn plain(to: Mac, tuple: &Tuple, step: Step) -> Vec<u8> {
    let flags = match step {
        Step::Open => tcp_flags::SYN,
        Step::Answer => tcp_flags::SYN | tcp_flags::ACK,
        Step::More => tcp_flags::ACK,
    };
    let Tuple { src, dst, sport, dport, .. } = *tuple;
    let src_mac = Mac([2, 9, 9, 9, 9, 9]);
    match (src.as_v4(), dst.as_v4()) {
        (Some(src), Some(dst)) => {
            let headers = Headers { dst_mac: to, src_mac, src, dst, ttl: 64 };
            let kind = if step == Step::Answer { icmp::ECHO_REPLY } else { icmp::ECHO_REQUEST };
            match tuple.proto {
                proto::TCP => headers.tcp(sport, dport, flags, b"x"),
                proto::UDP => headers.udp(sport, dport, b"x"),
                proto::SCTP => headers.around(proto::SCTP, &association(sport, dport)),
                _ => headers.echo(kind, sport, 1, b"x"),
            }
        }
        _ => {
            let headers = Headers6 { dst_mac: to, src_mac, src: src.0, dst: dst.0, hop_limit: 64 };
            let kind = if step == Step::Answer { icmpv6::ECHO_REPLY } else { icmpv6::ECHO_REQUEST };
            match tuple.proto {
                proto::TCP => headers.tcp(sport, dport, flags, b"x"),
                proto::UDP => headers.udp(sport, dport, b"x"),
                proto::SCTP => headers.around(proto::SCTP, &association(sport, dport)),
                _ => headers.echo(kind, sport, 1, b"x"),
            }
        }
    }
}

/// An SCTP packet of one chunk.
pub(crate) fn association(sport: u16, dport: u16) -> Vec<u8> {
    let mut packet = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[7; 4], &[0; 4], &[1; 37]].concat();
    let sum = sctp::checksum(&packet);
    packet[sctp::CHECKSUM..sctp::LEN].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// A packet as it comes from a place.
pub(crate) fn frame(from: Place, tuple: &Tuple, step: Step) -> Vec<u8> {
    match from {
        Place::Pod(_) | Place::Host => plain(addr::GATEWAY_MAC, tuple, step),
        Place::Wire => plain(addr::UPLINK_MAC, tuple, step),
        Place::Node(n) => packet::encapsulate(&addr::encap_from(n), &plain(addr::VTEP, tuple, step), 50_000),
    }
}

/// Where a sent frame goes, and the tuple of its packet, whose checksums are right.
pub(crate) fn sent(port: PortId, frame: &[u8]) -> (Place, Tuple) {
    if port == addr::HOST {
        return (Place::Host, tuple(frame));
    }
    if port != addr::UPLINK {
        return (Place::Pod(port.0 - 2), tuple(frame));
    }
    let is_tunnel =
        be16(frame, 12) != ETHERTYPE_IPV6 && frame[14 + 9] == proto::UDP && be16(frame, 36) == 4789;
    if !is_tunnel {
        return (Place::Wire, tuple(frame));
    }
    let outer = look(frame);
    (Place::Node(outer.dst[3] - 2), tuple(&outer.payload[8..]))
}

fn tuple(frame: &[u8]) -> Tuple {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let (src, dst) = match &sliced.net {
        Some(NetSlice::Ipv4(_)) => {
            let seen = look(frame);
            (Ip::v4(seen.src), Ip::v4(seen.dst))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            let right = match &sliced.transport {
                Some(TransportSlice::Udp(udp)) => {
                    udp.checksum() == udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap()
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    tcp.checksum() == tcp.calc_checksum_ipv6(header.source, header.destination).unwrap()
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    icmp.is_checksum_valid(header.source, header.destination)
                }
                _ => header.next_header.0 == proto::SCTP,
            };
            assert!(right, "checksum");
            (Ip(header.source), Ip(header.destination))
        }
        _ => panic!("no IP packet"),
    };
    let (protocol, sport, dport) = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => (proto::UDP, udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (proto::TCP, tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let id = be16(icmp.slice(), 4);
            (proto::ICMP, id, id)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let id = be16(icmp.slice(), 4);
            (proto::ICMPV6, id, id)
        }
        _ => {
            let packet = match &sliced.net {
                Some(NetSlice::Ipv4(ip)) => ip.payload(),
                Some(NetSlice::Ipv6(ip)) => ip.payload(),
                _ => panic!("no IP packet"),
            };
            assert_eq!(packet.ip_number.0, proto::SCTP, "no transport");
            let packet = packet.payload;
            assert_eq!(packet[sctp::CHECKSUM..sctp::LEN], sctp::checksum(packet).to_le_bytes());
            (proto::SCTP, be16(packet, 0), be16(packet, 2))
        }
    };
    Tuple { src, dst, sport, dport, proto: protocol }
}

/// Sends one packet; where it goes and with what tuple, if it does.
pub(crate) fn send(world: &mut World, from: Place, tuple: &Tuple, step: Step) -> Option<(Place, Tuple)> {
    let (port, out) = world.send(from.port(), &frame(from, tuple, step))?;
    Some(sent(port, &out))
}
