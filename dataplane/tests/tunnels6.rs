//! Every encapsulation that has IPv6 inside or outside: each family in each, in each direction, and what is refused. Seen by
//! an independent parser (etherparse), with invariants I1 and I2 at the end of every test. IPv4 in IPv4 is in
//! `encapsulation.rs`.

mod common;

use common::{drops, look, six};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet, packet6};
use fairway_dataplane::wire::{ETH_LEN, ecn, ipv6, over_ipv6, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip, NextHop, NextHopKind, Op, PortId, Prefix, Settings};

const N: u8 = 1;

/// An encapsulation, and the families inside and outside.
#[derive(Clone, Copy, Debug)]
struct Way {
    kind: NextHopKind,
    inner_is_v4: bool,
    outer_is_v4: bool,
    /// Bytes that it adds to an IP packet.
    overhead: usize,
}

const fn way(kind: NextHopKind, inner_is_v4: bool, outer_is_v4: bool, overhead: usize) -> Way {
    Way { kind, inner_is_v4, outer_is_v4, overhead }
}

const WAYS: [Way; 9] = [
    way(NextHopKind::Tunnel, true, false, 70),
    way(NextHopKind::Tunnel, false, false, 70),
    way(NextHopKind::Tunnel, false, true, 50),
    way(NextHopKind::Ipip, true, false, 40),
    way(NextHopKind::Ipip, false, false, 40),
    way(NextHopKind::Ipip, false, true, 20),
    way(NextHopKind::UdpTunnel, true, false, 48),
    way(NextHopKind::UdpTunnel, false, false, 48),
    way(NextHopKind::UdpTunnel, false, true, 28),
];

fn over_ipv6() -> impl Iterator<Item = Way> {
    WAYS.into_iter().filter(|way| !way.outer_is_v4)
}

/// What is looked at in a packet of either family.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    src: Ip,
    dst: Ip,
    ports: (u16, u16),
    ttl: u8,
    payload: Vec<u8>,
}

fn look_at(frame: &[u8]) -> Seen {
    if frame[12..14] == [0x86, 0xdd] {
        let seen = six::look(frame);
        let ports = (seen.sport, seen.dport);
        return Seen {
            src: Ip(seen.src),
            dst: Ip(seen.dst),
            ports,
            ttl: seen.hop_limit,
            payload: seen.payload,
        };
    }
    let seen = look(frame);
    let ports = (seen.sport, seen.dport);
    Seen { src: Ip::v4(seen.src), dst: Ip::v4(seen.dst), ports, ttl: seen.ttl, payload: seen.payload }
}

impl Way {
    fn world(self) -> World {
        let mut world = World::new(WorldConfig::default());
        world.set_way_over(N, self.kind, self.inner_is_v4, self.outer_is_v4);
        world
    }

    fn pods(self) -> (Ip, Ip) {
        match self.inner_is_v4 {
            true => (Ip::v4(addr::pod(0)), Ip::v4(addr::remote_pod(N, 9))),
            false => (Ip(addr::pod6(0)), Ip(addr::remote_pod6(N, 9))),
        }
    }

    /// From pod 0 to the remote pod.
    fn there(self, make: impl Fn(&dyn Transport) -> Vec<u8>) -> Vec<u8> {
        match self.inner_is_v4 {
            true => make(&addr::from_pod(0, addr::remote_pod(N, 9))),
            false => make(&addr::from_pod6(0, addr::remote_pod6(N, 9))),
        }
    }

    /// From the remote pod to pod 0, as it is inside a tunnel.
    fn back(self, make: impl Fn(&dyn Transport) -> Vec<u8>) -> Vec<u8> {
        match self.inner_is_v4 {
            true => make(&addr::from_remote(addr::remote_pod(N, 9), addr::pod(0))),
            false => make(&addr::from_remote6(addr::remote_pod6(N, 9), addr::pod6(0))),
        }
    }

    /// What node `n` sends around the IP packet of `inner`.
    fn wrap_from(self, n: u8, inner: &[u8]) -> Vec<u8> {
        match (self.kind, self.outer_is_v4) {
            (NextHopKind::Tunnel, true) => packet::encapsulate(&addr::encap_from(n), inner, 50_000),
            (NextHopKind::Ipip, true) => packet::into_ipip(&addr::outer_from(n), inner),
            (_, true) => packet::into_udp(&addr::outer_from(n), 8285, inner, 50_000),
            (NextHopKind::Tunnel, false) => {
                packet::into_vxlan6(&addr::outer6_from(n), &addr::vxlan6_from(n), inner)
            }
            (NextHopKind::Ipip, false) => packet::into_ipv6(&addr::outer6_from(n), inner),
            (_, false) => packet::into_udp6(&addr::outer6_from(n), 8285, inner),
        }
    }

    fn wrap(self, inner: &[u8]) -> Vec<u8> {
        self.wrap_from(N, inner)
    }

    /// The packet inside a frame to node `N` as a frame, after its outer headers were found right.
    fn unwrap(self, frame: &[u8]) -> Vec<u8> {
        let at = ETH_LEN + self.overhead;
        let ether_type: [u8; 2] = if self.inner_is_v4 { [8, 0] } else { [0x86, 0xdd] };
        let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
        let Some(etherparse::LinkSlice::Ethernet2(eth)) = &sliced.link else { panic!("no Ethernet header") };
        assert_eq!((eth.source(), eth.destination()), (addr::UPLINK_MAC.0, addr::node_mac(N).0));
        let inner_proto = match self.kind {
            NextHopKind::Ipip if self.inner_is_v4 => 4,
            NextHopKind::Ipip => 41,
            _ => 17,
        };
        match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                assert!(self.outer_is_v4 && header.header_checksum == header.calc_header_checksum());
                assert_eq!((header.source, header.destination), (addr::NODE, addr::node(N)));
                assert_eq!((header.time_to_live, header.protocol.0), (64, inner_proto));
                assert_eq!(usize::from(header.total_len), frame.len() - ETH_LEN);
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header().to_header();
                assert!(!self.outer_is_v4);
                assert_eq!((header.source, header.destination), (addr::NODE6, addr::node6(N)));
                assert_eq!((header.hop_limit, header.next_header.0), (64, inner_proto));
                assert_ne!(header.flow_label.value(), 0, "entropy for those who look at no ports");
                assert_eq!(usize::from(header.payload_length), frame.len() - ETH_LEN - 40);
                if let Some(TransportSlice::Udp(udp)) = &sliced.transport {
                    let right = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), right, "over IPv6 the outer UDP checksum is right");
                }
            }
            other => panic!("no IP header: {other:?}"),
        }
        if let Some(TransportSlice::Udp(udp)) = &sliced.transport {
            let port = if self.kind == NextHopKind::Tunnel { 4789 } else { 8285 };
            assert!(udp.destination_port() == port && udp.source_port() >= 49152, "{self:?}");
        }
        if self.kind == NextHopKind::Tunnel {
            let (local, remote) = match self.outer_is_v4 {
                true => (addr::VTEP, addr::node_vtep(N)),
                false => (addr::VTEP6, addr::node_vtep6(N)),
            };
            assert_eq!(frame[at - 14..at], [&remote.0[..], &local.0, &ether_type].concat());
            assert_eq!(frame[at - 22..at - 14], [8, 0, 0, 0, 0, 0x10, 0, 0]);
        }
        [&[0; 12][..], &ether_type, &frame[at..]].concat()
    }
}

/// Packets of either family.
trait Transport {
    fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8>;
    fn tcp(&self, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8>;
}

impl Transport for packet::Headers {
    fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        packet::Headers::udp(self, sport, dport, payload)
    }
    fn tcp(&self, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        packet::Headers::tcp(self, sport, dport, flags, payload)
    }
}

impl Transport for packet6::Headers6 {
    fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        packet6::Headers6::udp(self, sport, dport, payload)
    }
    fn tcp(&self, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        packet6::Headers6::tcp(self, sport, dport, flags, payload)
    }
}

/// DSCP and ECN of the IP header at `at`, whatever its family.
fn tos_at(frame: &[u8], at: usize) -> u8 {
    if frame[at] >> 4 == 6 { frame[at] << 4 | frame[at + 1] >> 4 } else { frame[at + 1] }
}

fn set_tos_at(frame: &mut [u8], at: usize, tos: u8) {
    if frame[at] >> 4 == 6 {
        packet::set_traffic_class(frame, at, tos);
    } else {
        packet::set_tos(frame, at, tos);
    }
}

#[test]
fn each_family_in_each_carries_a_connection_in_both_directions() {
    for way in WAYS {
        let mut world = way.world();
        let (pod, remote) = way.pods();
        for flags in [tcp_flags::SYN, tcp_flags::ACK] {
            let there = way.there(|from| from.tcp(5000, 80, flags, b"there"));
            let (port, out) = world.send(addr::pod_port(0), &there).unwrap_or_else(|| panic!("{way:?}"));
            assert_eq!((port, out.len()), (addr::UPLINK, there.len() + way.overhead));
            let inner = look_at(&way.unwrap(&out));
            assert_eq!((inner.src, inner.dst, inner.ttl), (pod, remote, 63));
            assert_eq!((inner.ports, &inner.payload[..]), ((5000, 80), &b"there"[..]));
        }
        let flags = tcp_flags::SYN | tcp_flags::ACK;
        let back = way.back(|from| from.tcp(80, 5000, flags, b"back"));
        for _ in 0..2 {
            // Padding behind the packet is not part of it.
            let padded = [way.wrap(&back), vec![0xa5; 7]].concat();
            let (port, out) = world.send(addr::UPLINK, &padded).unwrap_or_else(|| panic!("{way:?}"));
            assert_eq!(port, addr::pod_port(0), "{way:?}");
            let seen = look_at(&out);
            assert_eq!((seen.src, seen.dst, seen.ttl), (remote, pod, 62));
            assert_eq!((seen.ports, &seen.payload[..]), ((80, 5000), &b"back"[..]));
        }
        assert_eq!(world.worker.counters.get(Counter::FlowMisses), 2, "{way:?}");
        assert_eq!(world.worker.counters.all_drops(), 0);
        world.finish();
    }
}

#[test]
fn the_largest_packet_is_what_the_encapsulation_leaves_and_the_sender_is_told_so() {
    for way in WAYS {
        let mut world = way.world();
        let largest = 1500 - way.overhead;
        let headers = if way.inner_is_v4 { 28 } else { 48 };
        let frame = way.there(|from| from.udp(1, 2, &vec![7; largest - headers]));
        let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
        assert_eq!(out.len(), ETH_LEN + 1500);
        way.unwrap(&out);
        let frame = way.there(|from| from.udp(1, 2, &vec![7; largest - headers + 1]));
        let (port, told) = world.send(addr::pod_port(0), &frame).unwrap();
        assert_eq!((port, drops(&world, DropReason::TooBig)), (addr::pod_port(0), 1));
        let (kind, mtu) = match way.inner_is_v4 {
            true => (told[34..36].to_vec(), u32::from(u16::from_be_bytes([told[40], told[41]]))),
            false => (told[54..56].to_vec(), u32::from_be_bytes([told[58], told[59], told[60], told[61]])),
        };
        assert_eq!(kind, if way.inner_is_v4 { [3, 4] } else { [2, 0] }, "{way:?}");
        assert_eq!(mtu as usize, largest, "{way:?}");
        world.finish();
    }
}

#[test]
fn ipv4_that_may_be_fragmented_is_cut_before_it_goes_over_ipv6() {
    for way in over_ipv6().filter(|way| way.inner_is_v4) {
        let mut world = way.world();
        let mut frame = way.there(|from| from.udp(1, 2, &[7; 1472]));
        packet::allow_fragments(&mut frame);
        let sent = world.burst(addr::pod_port(0), &[frame.clone()]);
        assert_eq!(sent.len(), 2, "{way:?}");
        let parts = sent.iter().map(|(_, out)| {
            assert!(out.len() <= ETH_LEN + 1500);
            way.unwrap(out)[ETH_LEN + 20..].to_vec()
        });
        assert_eq!(parts.flatten().collect::<Vec<u8>>(), frame[ETH_LEN + 20..]);
        assert_eq!(world.worker.counters.get(Counter::FragmentedPackets), 1);
        world.finish();
    }
}

#[test]
fn dscp_and_ecn_go_outwards_whatever_the_families() {
    for way in WAYS {
        let mut world = way.world();
        for tos in [0, 0xb8, 0xba, ecn::ECT1, ecn::CE] {
            let mut frame = way.there(|from| from.udp(1, 2, b""));
            set_tos_at(&mut frame, ETH_LEN, tos);
            let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
            way.unwrap(&out);
            assert_eq!((tos_at(&out, ETH_LEN), tos_at(&out, ETH_LEN + way.overhead)), (tos, tos), "{way:?}");
        }
        world.finish();
    }
}

#[test]
fn congestion_marks_come_inwards_whatever_the_families() {
    let fields = [ecn::NOT_ECT, ecn::ECT0, ecn::ECT1, ecn::CE];
    for way in WAYS {
        let mut world = way.world();
        for (inner, outer) in fields.into_iter().flat_map(|inner| fields.map(|outer| (inner, outer))) {
            let mut reply = way.back(|from| from.udp(1, 2, b"marked"));
            set_tos_at(&mut reply, ETH_LEN, 0x28 | inner);
            let mut frame = way.wrap(&reply);
            set_tos_at(&mut frame, ETH_LEN, 0xb8 | outer);
            let dropped = drops(&world, DropReason::EcnLost);
            match ecn::leaving(inner, outer) {
                Ok(expected) => {
                    let (_, out) = world.send(addr::UPLINK, &frame).unwrap_or_else(|| panic!("{way:?}"));
                    assert_eq!(look_at(&out).payload, b"marked");
                    assert_eq!(tos_at(&out, ETH_LEN), 0x28 | expected, "{way:?}: {inner} in {outer}");
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
fn the_encapsulation_limit_that_linux_sends_is_gone_over() {
    for way in over_ipv6().filter(|way| way.kind == NextHopKind::Ipip) {
        let mut world = way.world();
        let reply = way.back(|from| from.udp(1, 2, b"limited"));
        let frame = packet::into_ipv6_with_limit(&addr::outer6_from(N), &reply);
        let (port, out) = world.send(addr::UPLINK, &frame).unwrap();
        assert_eq!((port, look_at(&out).payload), (addr::pod_port(0), b"limited".to_vec()));
        world.finish();
    }
}

#[test]
fn tunnels_of_unknown_nodes_and_for_others_pods_are_dropped() {
    for way in WAYS {
        let mut world = way.world();
        let inner = way.back(|from| from.udp(1, 2, b""));
        // There are three nodes.
        assert_eq!(world.send(addr::UPLINK, &way.wrap_from(100, &inner)), None);
        assert_eq!(drops(&world, DropReason::UnknownVtep), 1, "{way:?}");
        assert_eq!(
            world.send(addr::UPLINK, &way.wrap_from(2, &inner)),
            None,
            "node 2 does not have node 1's"
        );
        assert_eq!(drops(&world, DropReason::SpoofedSource), 1, "{way:?}");
        // The same flow from its own node, then again from another: an entry vouches for its node alone.
        assert!(world.send(addr::UPLINK, &way.wrap(&inner)).is_some());
        assert_eq!(world.send(addr::UPLINK, &way.wrap_from(2, &inner)), None);
        assert_eq!(drops(&world, DropReason::SpoofedSource), 2, "{way:?}");
        // Of a node whose tunnel is gone, nothing is taken any more; its flow's entry does not help.
        let node = if way.outer_is_v4 { Ip::v4(addr::node(N)) } else { Ip(addr::node6(N)) };
        world.apply(Op::DelTunnel(node));
        assert_eq!(world.send(addr::UPLINK, &way.wrap(&inner)), None);
        assert_eq!(drops(&world, DropReason::UnknownVtep), 2, "{way:?}");
        world.finish();
    }
}

#[test]
fn a_node_may_send_over_the_family_by_which_it_is_not_reached() {
    for way in WAYS {
        let mut world = way.world();
        // Both tunnels are known for one node's.
        for ip in [Ip::v4(addr::node(N)), Ip(addr::node6(N))] {
            let tunnel = world.reader.view().tunnel(ip).unwrap();
            let tunnel = fairway_tables::Tunnel { node: Ip::v4(addr::node(N)), ..tunnel };
            world.apply(Op::SetTunnel(ip, tunnel));
        }
        let inner = way.back(|from| from.udp(1, 2, b""));
        let crossed = Way { outer_is_v4: !way.outer_is_v4, ..way };
        assert!(world.send(addr::UPLINK, &crossed.wrap(&inner)).is_some(), "{way:?}");
        assert_eq!(world.send(addr::UPLINK, &crossed.wrap_from(2, &inner)), None);
        world.finish();
    }
}

#[test]
fn vxlan_over_ipv6_is_checked_as_over_ipv4() {
    let way = WAYS[0];
    let mut world = way.world();
    let inner = way.back(|from| from.udp(1, 2, b""));
    let outer = addr::outer6_from(N);
    let wrap = |network| packet::into_vxlan6(&outer, &network, &inner);
    let good = addr::vxlan6_from(N);
    assert_eq!(world.send(addr::UPLINK, &wrap(over_ipv6::Vxlan { vni: 4097, ..good })), None);
    assert_eq!(world.send(addr::UPLINK, &wrap(over_ipv6::Vxlan { udp_port: 8472, ..good })), None);
    assert_eq!(drops(&world, DropReason::WrongVni), 2);
    let other = over_ipv6::Vxlan { inner_dst_mac: addr::VTEP, ..good };
    assert_eq!(world.send(addr::UPLINK, &wrap(other)), None, "the VTEP over IPv4");
    assert_eq!(drops(&world, DropReason::NotForUs), 1);
    let second = over_ipv6::Vxlan { udp_port: 8472, vni: 1, inner_dst_mac: addr::SECOND_VTEP6, ..good };
    assert!(world.send(addr::UPLINK, &wrap(second)).is_some(), "the second network");
    // RFC 7348 section 4.1: a checksum may go unlooked at, and be zero.
    let mut zero = wrap(good);
    zero[over_ipv6::IP_HEADER_LEN + 6..over_ipv6::IP_HEADER_LEN + 8].fill(0);
    assert!(world.send(addr::UPLINK, &zero).is_some());
    world.finish();
}

#[test]
fn fragments_of_outer_packets_do_not_come_in() {
    for way in over_ipv6() {
        let mut world = way.world();
        let inner = way.back(|from| from.udp(1, 2, &[7; 400]));
        let parts = packet6::fragments(&way.wrap(&inner), 256, 77);
        assert!(world.send(addr::UPLINK, &parts[0]).is_none());
        assert_eq!(drops(&world, DropReason::Fragment), 1, "{way:?}");
        for part in &parts[1..] {
            assert!(world.send(addr::UPLINK, part).is_none());
        }
        world.finish();
    }
}

#[test]
fn an_inner_packet_longer_than_its_outer_one_is_truncated() {
    for way in WAYS {
        let mut world = way.world();
        let mut frame = way.wrap(&way.back(|from| from.udp(1, 2, &[7; 100])));
        if way.outer_is_v4 {
            let len = u16::from_be_bytes([frame[16], frame[17]]) - 50;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            packet::set_tos(&mut frame, ETH_LEN, 0);
        } else {
            let len = u16::from_be_bytes([frame[18], frame[19]]) - 50;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
        }
        assert_eq!(world.send(addr::UPLINK, &frame), None, "the rest is but padding");
        assert_eq!(drops(&world, DropReason::Truncated), 1, "{way:?}");
        world.finish();
    }
}

#[test]
fn what_the_settings_do_not_name_is_not_taken() {
    for way in WAYS.into_iter().filter(|way| way.kind == NextHopKind::Ipip) {
        let mut world = way.world();
        let settings = world.reader.view().settings();
        let bit = Settings::takes_ip_in_ip(way.inner_is_v4, way.outer_is_v4);
        world.apply(Op::SetSettings(Settings { takes: settings.takes & !bit, ..settings }));
        // The node's own, as it came.
        let host = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE);
        let node = if way.outer_is_v4 { Ip::v4(addr::NODE) } else { Ip(addr::NODE6) };
        world.apply(Op::SetRoute(Prefix::host(node), host));
        world.apply(Op::SetRoute(Prefix::new(Ip::UNSPECIFIED, 0).unwrap(), host));
        let frame = way.wrap(&way.back(|from| from.udp(1, 2, b"")));
        let (port, out) = world.send(addr::UPLINK, &frame).unwrap_or_else(|| panic!("{way:?}"));
        assert_eq!(port, addr::HOST, "{way:?}");
        let ip_len = if way.outer_is_v4 { 20 } else { ipv6::LEN };
        assert_eq!(out[ETH_LEN + ip_len..], frame[ETH_LEN + ip_len..]);
        world.finish();
    }
}

#[test]
fn without_a_node_address_of_a_family_no_tunnel_comes_by_it() {
    for way in over_ipv6() {
        let mut world = way.world();
        let settings = world.reader.view().settings();
        world.apply(Op::SetSettings(Settings { node_ip6: Ip::UNSPECIFIED, ..settings }));
        let mut frame = way.wrap(&way.back(|from| from.udp(1, 2, b"")));
        let sent = world.send(addr::UPLINK, &frame);
        assert!(sent.is_none_or(|(port, _)| port == addr::HOST), "{way:?}");
        frame[ETH_LEN + ipv6::DST..ETH_LEN + ipv6::LEN].fill(0);
        assert_eq!(world.send(addr::UPLINK, &frame), None);
        assert_eq!(drops(&world, DropReason::Martian), 1);
        world.finish();
    }
}
