//! Each encapsulation in each direction, congestion marks, fragments, and what is refused at the uplink; seen by an
//! independent parser (etherparse), with invariants I1 and I2 at the end of every test.

mod common;

use common::{Seen, drops, look, look_inside};
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{ETH_LEN, ecn, icmp, ipip, proto, tcp_flags, udp_tunnel, vxlan};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip, Mac, NextHop, NextHopKind, Op, PortId, Prefix, Settings};

const KINDS: [NextHopKind; 4] =
    [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel, NextHopKind::Gateway];
const N: u8 = 1;

fn world(kind: NextHopKind) -> World {
    let mut world = World::new(WorldConfig::default());
    world.set_way(N, kind);
    world
}

/// Bytes before the inner IP header.
fn headers_len(kind: NextHopKind) -> usize {
    match kind {
        NextHopKind::Tunnel => vxlan::HEADER_LEN,
        NextHopKind::Ipip => ipip::HEADER_LEN,
        NextHopKind::UdpTunnel => udp_tunnel::HEADER_LEN,
        _ => ETH_LEN,
    }
}

/// A frame that node `N` sends, around the IP packet of `inner`.
fn wrap(kind: NextHopKind, inner: &[u8]) -> Vec<u8> {
    match kind {
        NextHopKind::Tunnel => packet::encapsulate(&addr::encap_from(N), inner, 50_000),
        NextHopKind::Ipip => packet::into_ipip(&addr::outer_from(N), inner),
        NextHopKind::UdpTunnel => packet::into_udp(&addr::outer_from(N), 8285, inner, 50_000),
        _ => {
            let mut frame = inner.to_vec();
            frame[..6].copy_from_slice(&addr::UPLINK_MAC.0);
            frame
        }
    }
}

/// The packet inside a frame to node `N`, after its outer headers were found right.
fn unwrap(kind: NextHopKind, frame: &[u8]) -> Seen {
    let bare = |at: usize| look(&[&frame[..ETH_LEN], &frame[at..]].concat());
    let outer = look(frame);
    assert_eq!((outer.src_mac, outer.dst_mac), (addr::UPLINK_MAC.0, addr::node_mac(N).0));
    if kind == NextHopKind::Gateway {
        return outer;
    }
    assert_eq!((outer.src, outer.dst, outer.ttl), (addr::NODE, addr::node(N), 64));
    assert_eq!(frame[ETH_LEN + 6..ETH_LEN + 8], [0x40, 0], "outer packets are not to be fragmented");
    match kind {
        NextHopKind::Tunnel => look_inside(frame, N),
        NextHopKind::Ipip => {
            assert_eq!(frame[ETH_LEN + 9], proto::IPIP);
            bare(ipip::HEADER_LEN)
        }
        _ => {
            assert_eq!((outer.dport, outer.sport >= 49152), (8285, true));
            bare(udp_tunnel::HEADER_LEN)
        }
    }
}

#[test]
fn each_encapsulation_carries_a_connection_in_both_directions() {
    for kind in KINDS {
        let mut world = world(kind);
        let there = addr::from_pod(0, addr::remote_pod(N, 9)).tcp(5000, 80, tcp_flags::SYN, b"there");
        for _ in 0..2 {
            let (port, out) = world.send(addr::pod_port(0), &there).unwrap();
            assert_eq!(port, addr::UPLINK);
            let inner = unwrap(kind, &out);
            assert_eq!((inner.src, inner.dst, inner.ttl), (addr::pod(0), addr::remote_pod(N, 9), 63));
            assert_eq!((inner.sport, inner.dport, &inner.payload[..]), (5000, 80, &b"there"[..]));
        }
        let flags = tcp_flags::SYN | tcp_flags::ACK;
        let back = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).tcp(80, 5000, flags, b"back");
        for _ in 0..2 {
            // Padding behind the packet is not part of it.
            let padded = [wrap(kind, &back), vec![0xa5; 7]].concat();
            let (port, out) = world.send(addr::UPLINK, &padded).unwrap();
            assert_eq!(port, addr::pod_port(0), "{kind:?}");
            let seen = look(&out);
            assert_eq!((seen.src, seen.dst, seen.ttl), (addr::remote_pod(N, 9), addr::pod(0), 62));
            assert_eq!(seen.payload, b"back");
        }
        assert_eq!(world.worker.counters.all_drops(), 0);
        world.finish();
    }
}

#[test]
fn a_service_is_translated_through_each_encapsulation() {
    const VIP: [u8; 4] = [10, 96, 0, 10];
    for kind in KINDS {
        let mut world = world(kind);
        world.set_service(VIP, 80, proto::UDP, 1, &[(addr::remote_pod(N, 7), 8080)]);
        let (_, out) =
            world.send(addr::pod_port(0), &addr::from_pod(0, VIP).udp(40000, 80, b"question")).unwrap();
        let inner = unwrap(kind, &out);
        assert_eq!((inner.dst, inner.dport), (addr::remote_pod(N, 7), 8080));
        let reply = addr::from_remote(addr::remote_pod(N, 7), addr::pod(0)).udp(8080, 40000, b"answer");
        let (_, out) = world.send(addr::UPLINK, &wrap(kind, &reply)).unwrap();
        let seen = look(&out);
        assert_eq!((seen.src, seen.sport, seen.dport), (VIP, 80, 40000));
        world.finish();
    }
}

#[test]
fn the_largest_packet_is_what_the_encapsulation_leaves_of_the_uplinks_mtu() {
    for (kind, largest) in KINDS.into_iter().zip([1450, 1480, 1472, 1500]) {
        let mut world = world(kind);
        let to = addr::from_pod(0, addr::remote_pod(N, 9));
        let frame = to.udp(1, 2, &vec![7; largest - 28]);
        let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
        assert_eq!(out.len(), ETH_LEN + 1500);
        unwrap(kind, &out);
        let (port, told) = world.send(addr::pod_port(0), &to.udp(1, 2, &vec![7; largest - 27])).unwrap();
        assert_eq!((port, drops(&world, DropReason::TooBig)), (addr::pod_port(0), 1));
        assert_eq!(told[ETH_LEN + 20..ETH_LEN + 22], [3, 4], "fragmentation needed");
        assert_eq!(usize::from(u16::from_be_bytes([told[ETH_LEN + 26], told[ETH_LEN + 27]])), largest);
        world.finish();
    }
}

#[test]
fn dscp_and_ecn_of_the_packet_are_those_of_its_outer_header() {
    for kind in KINDS {
        let mut world = world(kind);
        for tos in [0, 0xb8, 0xba, ecn::ECT1, ecn::CE] {
            let mut frame = addr::from_pod(0, addr::remote_pod(N, 9)).udp(1, 2, b"");
            packet::set_tos(&mut frame, ETH_LEN, tos);
            let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
            unwrap(kind, &out);
            assert_eq!((out[ETH_LEN + 1], out[headers_len(kind) + 1]), (tos, tos), "{kind:?}");
        }
        world.finish();
    }
}

#[test]
fn a_congestion_mark_of_the_underlay_reaches_the_pod_or_drops_what_cannot_carry_it() {
    let fields = [ecn::NOT_ECT, ecn::ECT0, ecn::ECT1, ecn::CE];
    for kind in [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel] {
        let mut world = world(kind);
        for (inner, outer) in fields.into_iter().flat_map(|inner| fields.map(|outer| (inner, outer))) {
            let mut reply = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(1, 2, b"marked");
            packet::set_tos(&mut reply, ETH_LEN, 0x28 | inner);
            let mut frame = wrap(kind, &reply);
            packet::set_tos(&mut frame, ETH_LEN, 0xb8 | outer);
            let dropped = drops(&world, DropReason::EcnLost);
            match ecn::leaving(inner, outer) {
                Ok(expected) => {
                    let (_, out) = world.send(addr::UPLINK, &frame).unwrap();
                    assert_eq!(look(&out).payload, b"marked");
                    assert_eq!(out[ETH_LEN + 1], 0x28 | expected, "{kind:?}: inner {inner}, outer {outer}");
                }
                Err(_) => {
                    assert_eq!(world.send(addr::UPLINK, &frame), None);
                    assert_eq!(drops(&world, DropReason::EcnLost), dropped + 1);
                }
            }
        }
        world.finish();
    }
}

#[test]
fn fragments_between_pods_pass_in_both_directions_as_one_flow() {
    for kind in KINDS {
        let mut world = world(kind);
        let datagram: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
        let there = addr::from_pod(0, addr::remote_pod(N, 9)).udp(1, 2, &datagram);
        let parts = packet::fragments(&there, 1400);
        let sent: Vec<u8> = parts
            .iter()
            .flat_map(|part| {
                let (port, out) = world.send(addr::pod_port(0), part).unwrap();
                assert_eq!(port, addr::UPLINK);
                let at = headers_len(kind);
                assert_eq!(out[at + 6..at + 8], part[ETH_LEN + 6..ETH_LEN + 8], "offset and flags stay");
                out[at + 20..].to_vec()
            })
            .collect();
        assert_eq!(sent, there[ETH_LEN + 20..]);
        let back = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(2, 1, &datagram);
        let received: Vec<u8> = packet::fragments(&back, 1400)
            .iter()
            .flat_map(|part| {
                let (port, out) = world.send(addr::UPLINK, &wrap(kind, part)).unwrap();
                assert_eq!(port, addr::pod_port(0));
                out[ETH_LEN + 20..].to_vec()
            })
            .collect();
        assert_eq!(received, back[ETH_LEN + 20..]);
        assert_eq!(world.worker.counters.get(Counter::FlowMisses), 2, "all fragments are of one flow");
        assert_eq!(world.worker.conntrack.iter().count(), 1);
        world.finish();
    }
}

#[test]
fn fragments_of_outer_packets_are_dropped() {
    for kind in [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel] {
        let mut world = world(kind);
        let reply = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(1, 2, &[7; 2000]);
        for part in packet::fragments(&wrap(kind, &reply), 1400) {
            assert_eq!(world.send(addr::UPLINK, &part), None);
        }
        assert_eq!(drops(&world, DropReason::Fragment), 2);
        world.finish();
    }
}

#[test]
fn tunnels_of_unknown_nodes_and_for_others_pods_are_dropped() {
    for kind in [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel] {
        let mut world = world(kind);
        let inner = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(1, 2, b"");
        let at = ETH_LEN + 12;
        let forged = |node: [u8; 4]| {
            let mut frame = wrap(kind, &inner);
            frame[at..at + 4].copy_from_slice(&node);
            packet::set_tos(&mut frame, ETH_LEN, 0);
            frame
        };
        assert_eq!(world.send(addr::UPLINK, &forged([203, 0, 113, 5])), None);
        assert_eq!(drops(&world, DropReason::UnknownVtep), 1, "{kind:?}");
        // Node 2 does not have node 1's pods.
        assert_eq!(world.send(addr::UPLINK, &forged(addr::node(2))), None);
        assert_eq!(drops(&world, DropReason::SpoofedSource), 1);
        // The same flow from its own node, then again from another: an entry vouches for its node alone.
        assert!(world.send(addr::UPLINK, &wrap(kind, &inner)).is_some());
        assert_eq!(world.send(addr::UPLINK, &forged(addr::node(2))), None);
        // Of a packet inside, every header is checked.
        let mut broken = wrap(kind, &inner);
        let at = headers_len(kind);
        broken[at + 10] ^= 1;
        assert_eq!(world.send(addr::UPLINK, &broken), None);
        assert_eq!(drops(&world, DropReason::BadIpChecksum), 1);
        broken[at] = 0x60;
        assert_eq!(world.send(addr::UPLINK, &broken), None);
        world.finish();
    }
}

#[test]
fn an_inner_packet_longer_than_its_outer_one_is_truncated() {
    for kind in [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel] {
        let mut world = world(kind);
        let inner = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(1, 2, &[7; 100]);
        let mut frame = wrap(kind, &inner);
        let outer_len = u16::from_be_bytes([frame[ETH_LEN + 2], frame[ETH_LEN + 3]]) - 50;
        frame[ETH_LEN + 2..ETH_LEN + 4].copy_from_slice(&outer_len.to_be_bytes());
        packet::set_tos(&mut frame, ETH_LEN, 0);
        assert_eq!(world.send(addr::UPLINK, &frame), None, "the rest is but padding");
        assert_eq!(drops(&world, DropReason::Truncated), 1);
        world.finish();
    }
}

#[test]
fn two_vxlan_networks_are_told_apart_by_port_and_number() {
    let mut world = world(NextHopKind::Tunnel);
    let second = addr::SECOND_VXLAN;
    let inner = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(1, 2, b"flannel");
    let frame = |vni, udp_port, inner_dst_mac| {
        let encap = vxlan::Encap { vni, udp_port, inner_dst_mac, ..addr::encap_from(N) };
        packet::encapsulate(&encap, &inner, 50_000)
    };
    let (port, out) = world.send(addr::UPLINK, &frame(1, 8472, second.vtep_mac)).unwrap();
    assert_eq!((port, look(&out).payload), (addr::pod_port(0), b"flannel".to_vec()));
    for (vni, udp_port) in [(addr::VNI, 8472), (1, 4789), (0, 4789)] {
        assert_eq!(world.send(addr::UPLINK, &frame(vni, udp_port, second.vtep_mac)), None);
    }
    assert_eq!(drops(&world, DropReason::WrongVni), 3);
    assert_eq!(world.send(addr::UPLINK, &frame(1, 8472, addr::VTEP)), None, "the other network's VTEP");
    assert_eq!(drops(&world, DropReason::NotForUs), 1);
    let (port, _) = world.send(addr::UPLINK, &frame(0, 0, Mac::ZERO)).unwrap();
    assert_eq!(port, addr::HOST, "no network's port: not the engine's");
    world.finish();
}

#[test]
fn what_the_settings_do_not_name_is_not_taken() {
    let mut world = world(NextHopKind::Ipip);
    let settings = Settings {
        takes: 0,
        udp_tunnel_port: 0,
        second_vxlan: bytemuck::Zeroable::zeroed(),
        ..world.reader.view().settings()
    };
    world.apply(Op::SetSettings(settings));
    let inner = addr::from_remote(addr::remote_pod(N, 9), addr::pod(0)).udp(1, 2, b"");
    let zero = packet::into_udp(&addr::outer_from(N), 0, &inner, 50_000);
    let vxlan_zero = vxlan::Encap { vni: 0, udp_port: 0, inner_dst_mac: Mac::ZERO, ..addr::encap_from(N) };
    let frames = [
        wrap(NextHopKind::Ipip, &inner),
        wrap(NextHopKind::UdpTunnel, &inner),
        zero,
        packet::encapsulate(&vxlan_zero, &inner, 50_000),
    ];
    for frame in &frames {
        let (port, out) = world.send(addr::UPLINK, frame).unwrap();
        assert_eq!(port, addr::HOST, "to the node, as it came");
        assert_eq!(out[34..], frame[34..]);
    }
    assert_eq!(world.send(addr::UPLINK, &wrap(NextHopKind::Gateway, &inner)), None);
    assert_eq!(drops(&world, DropReason::NotForUs), 1);
    world.finish();
}

#[test]
fn without_encapsulation_only_what_may_come_so_comes_in() {
    let mut world = world(NextHopKind::Gateway);
    let from = |src, dst| addr::directly_from(N, src, dst).udp(1, 2, b"");
    let outside = [203, 0, 113, 9];
    for src in [addr::remote_pod(N, 9), outside] {
        let (port, _) = world.send(addr::UPLINK, &from(src, addr::pod(0))).unwrap();
        assert_eq!(port, addr::pod_port(0));
    }
    // A pod behind a tunnel, one of this node, the node itself, and the gateway's address.
    for src in [addr::remote_pod(2, 9), addr::pod(1), addr::NODE, addr::ROUTER] {
        assert_eq!(world.send(addr::UPLINK, &from(src, addr::pod(0))), None, "from {src:?}");
    }
    assert_eq!(drops(&world, DropReason::SpoofedSource), 4);
    assert_eq!(world.send(addr::UPLINK, &from(outside, addr::remote_pod(2, 9))), None, "no transit");
    assert_eq!(world.send(addr::UPLINK, &from(outside, addr::remote_pod(N, 9))), None, "nor back");
    assert_eq!(world.send(addr::UPLINK, &from(outside, addr::node(2))), None, "nor to a node");
    let gateway = addr::directly_from(N, outside, addr::GATEWAY).echo(icmp::ECHO_REQUEST, 1, 1, b"");
    assert_eq!(world.send(addr::UPLINK, &gateway), None, "the gateway is for pods");
    assert_eq!((drops(&world, DropReason::NotForUs), drops(&world, DropReason::Martian)), (3, 1));
    // The node's own address among its pods' is the kernel's.
    let host = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE);
    world.apply(Op::SetRoute(Prefix::host(Ip::v4(addr::ROUTER)), host));
    let (port, _) = world.send(addr::UPLINK, &from(addr::remote_pod(N, 9), addr::ROUTER)).unwrap();
    assert_eq!(port, addr::HOST);
    world.finish();
}

#[test]
fn one_node_may_have_ranges_of_different_encapsulation() {
    let mut world = world(NextHopKind::Tunnel);
    let upper = Prefix::new(Ip::v4(addr::remote_pod(N, 128)), 25).unwrap();
    let hop = NextHop::new(NextHopKind::Ipip, Ip::v4(addr::node(N)), PortId::NONE);
    world.apply(Op::SetRoute(upper, hop));
    for (last, kind) in [(9, NextHopKind::Tunnel), (200, NextHopKind::Ipip), (10, NextHopKind::Tunnel)] {
        let frame = addr::from_pod(0, addr::remote_pod(N, last)).udp(1, 2, b"");
        let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
        assert_eq!(unwrap(kind, &out).dst, addr::remote_pod(N, last));
    }
    world.finish();
}
