//! Frames that left, seen by an independent parser (etherparse).
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod dsr;
pub(crate) mod rig;
pub(crate) mod six;
pub(crate) mod tuples;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairway_dataplane::testkit::{World, addr};
use fairway_dataplane::wire::{icmp, proto};
use fairway_tables::{DropReason, PortId};

/// What a test looks at in an IPv4 packet, after every checksum was found right.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Seen {
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src_mac: [u8; 6],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) ttl: u8,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn look(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let Some(etherparse::LinkSlice::Ethernet2(eth)) = &sliced.link else { panic!("no Ethernet header") };
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4 header") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 checksum");
    let (sport, dport, payload) = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            if udp.checksum() != 0 {
                let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                assert_eq!(udp.checksum(), right, "UDP checksum");
            }
            (udp.source_port(), udp.destination_port(), udp.payload().to_vec())
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let right = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
            assert_eq!(tcp.checksum(), right, "TCP checksum");
            (tcp.source_port(), tcp.destination_port(), tcp.payload().to_vec())
        }
        Some(TransportSlice::Icmpv4(message)) => {
            assert!(icmp::checksum_ok(ip.payload().payload), "ICMP checksum");
            (0, 0, message.payload().to_vec())
        }
        _ => (0, 0, ip.payload().payload.to_vec()),
    };
    Seen {
        dst_mac: eth.destination(),
        src_mac: eth.source(),
        src: header.source,
        dst: header.destination,
        sport,
        dport,
        ttl: header.time_to_live,
        payload,
    }
}

/// Looks into a VXLAN packet from this node to remote node `n`; returns the inner packet.
pub(crate) fn look_inside(frame: &[u8], n: u8) -> Seen {
    let outer = look(frame);
    assert_eq!((outer.src_mac, outer.dst_mac), (addr::UPLINK_MAC.0, addr::node_mac(n).0));
    assert_eq!((outer.src, outer.dst, outer.dport), (addr::NODE, addr::node(n), 4789));
    assert!(outer.sport >= 49152, "RFC 7348 entropy port");
    assert_eq!(outer.payload[0], 8);
    assert_eq!(outer.payload[4..7], [0, 0x10, 0]);
    let inner = look(&outer.payload[8..]);
    assert_eq!((inner.src_mac, inner.dst_mac), (addr::VTEP.0, addr::node_vtep(n).0));
    inner
}

/// Packets dropped for a reason.
pub(crate) fn drops(world: &World, reason: DropReason) -> u64 {
    world.worker.counters.drops(reason)
}

/// Sends a packet that must not be forwarded: nothing leaves, or an ICMP error to where it came from.
pub(crate) fn send_in_vain(world: &mut World, port: PortId, frame: &[u8]) {
    if let Some((back, error)) = world.send(port, frame) {
        assert_eq!(back, port);
        assert_eq!(look(&error).src, addr::ROUTER, "the engine itself speaks");
        assert!(error[14 + 9] == proto::ICMP && icmp::is_error(error[14 + 20]));
    }
}
