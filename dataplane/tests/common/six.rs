//! IPv6 packets that left, seen by an independent parser.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// What a test looks at in an IPv6 packet whose transport checksum is right.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Seen {
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src_mac: [u8; 6],
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn look(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let Some(etherparse::LinkSlice::Ethernet2(eth)) = &sliced.link else { panic!("no Ethernet header") };
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("no IPv6 header") };
    let header = ip.header().to_header();
    let (src, dst) = (header.source, header.destination);
    let (sport, dport, payload) = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            let right = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), right, "UDP checksum");
            (udp.source_port(), udp.destination_port(), udp.payload().to_vec())
        }
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).unwrap(), "TCP checksum");
            (tcp.source_port(), tcp.destination_port(), tcp.payload().to_vec())
        }
        Some(TransportSlice::Icmpv6(message)) => {
            assert!(message.is_checksum_valid(src, dst), "ICMPv6 checksum");
            (0, 0, message.slice().to_vec())
        }
        _ => panic!("no transport"),
    };
    let (dst_mac, src_mac) = (eth.destination(), eth.source());
    Seen { dst_mac, src_mac, src, dst, sport, dport, hop_limit: header.hop_limit, payload }
}
