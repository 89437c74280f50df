//! What the fuzzers run: one function per target, so that `cargo fuzz` and the seeded run in `make test` do
//! the same. A case that breaks a rule panics.

use super::{World, WorldConfig, addr, packet, packet6};
use crate::parse::{Class, Ingress, Parsed, Part, parse, parse_unusual, parse_usual};
use crate::parse6::{Class6, parse6};
use crate::wire::{ETH_LEN, ecn, icmp, ipv4, ipv6, proto, tcp_flags, vxlan};
use fairway_pmd::{Burst, MAX_BURST};
use fairway_tables::{Endpoint, Ip, NextHopKind, Op, PortId, ServiceKey};

const VIP6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

/// How packets may go to another node.
const WAYS: [NextHopKind; 4] =
    [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel, NextHopKind::Gateway];

/// Parsers: any bytes, as received on each kind of port. What parses must be safe to rewrite: its offsets
/// lie in the frame.
pub fn parsers(ingresses: &[Ingress], data: &[u8]) {
    for ingress in ingresses {
        let mut parsed = Parsed::default();
        let class = parse(data, ingress, &mut parsed);
        let mut usual = Parsed::default();
        if let Some(key) = parse_usual(data, ingress, &mut usual) {
            let mut unusual = Parsed::default();
            let long_way = parse_unusual(data, ingress, &mut unusual);
            assert_eq!((long_way, unusual), (Class::Flow, usual), "the short way and the long agree");
            assert_eq!(key, usual.key);
        }
        if class == Class::Marked {
            let mut unmarked = data.to_vec();
            if ecn::carry_over(&mut unmarked, usize::from(parsed.l2) + ETH_LEN).is_ok() {
                let class = parse(&unmarked, ingress, &mut parsed);
                assert_ne!(class, Class::Marked, "a mark is carried over once");
            }
        }
        if matches!(class, Class::Flow | Class::Single | Class::Fragment) {
            let start = usize::from(parsed.l2) + ETH_LEN;
            let end = start + usize::from(parsed.ip_len);
            assert!(end <= data.len(), "the packet lies in the frame");
            assert!(usize::from(parsed.ip_header_len) >= ipv4::LEN);
            assert!(parsed.ip_header_len <= parsed.ip_len);
            let l4 = usize::from(parsed.ip_len - parsed.ip_header_len);
            match parsed.key.proto() {
                // Its transport header is not touched.
                _ if parsed.part == Part::Later => {}
                proto::TCP => assert!(l4 >= 20),
                proto::UDP => assert!(l4 >= 8),
                proto::ICMP => assert!(l4 >= icmp::LEN),
                _ => {}
            }
        }
    }
    for l2 in [0, 50] {
        let class = parse6(data, l2, 0, 0);
        if let Class6::Flow(parsed)
        | Class6::Single(parsed)
        | Class6::Link(parsed)
        | Class6::Fragment(parsed) = class
        {
            assert!(usize::from(l2) + ETH_LEN + usize::from(parsed.ip_len) <= data.len());
            assert!(parsed.l4 >= ipv6::LEN as u16 && parsed.l4 <= parsed.ip_len);
            let l4 = usize::from(parsed.ip_len - parsed.l4);
            assert!(parsed.part == Part::Whole || parsed.fragment + 8 <= parsed.l4);
            match parsed.key.proto() {
                _ if parsed.part == Part::Later => {}
                proto::TCP => assert!(l4 >= 20),
                proto::UDP | proto::ICMPV6 => assert!(l4 >= 8),
                _ => {}
            }
        }
    }
    let _ = crate::wire::arp::parse_request(data);
    let _ = vxlan::vni(data);
    let _ = ipv4::Header::parse(data);
}

/// The ports that [`parsers`] receives on.
pub fn ingresses(world: &World) -> Vec<Ingress> {
    let view = world.reader.view();
    let settings = view.settings();
    view.ports().filter_map(|(id, port)| Ingress::new(id, &port, &settings)).collect()
}

/// A world for [`packets`]: small tables, so that they fill up.
pub fn world() -> World {
    let mut world = World::new(WorldConfig { pods: 4, nodes: 3, flows: 32, connections: 64, frames: 512 });
    reset(&mut world);
    world
}

/// Puts everything back that [`packets`] changes, so that a case depends on nothing before it.
fn reset(world: &mut World) {
    world.now.seconds = 1000;
    world.worker.flows.clear();
    world.worker.flows6.clear();
    world.worker.forget_fragments(&mut world.cache);
    let connections: Vec<_> = world.worker.conntrack.iter().collect();
    for connection in connections {
        world.worker.conntrack.remove(connection.conn);
    }
    let endpoint = Endpoint::new(addr::pod_port(1), addr::pod_mac(1));
    world.apply(Op::SetEndpoint(Ip::v4(addr::pod(1)), endpoint));
    for n in 0..3 {
        world.set_way_over(n, NextHopKind::Tunnel, true, true);
        world.set_way_over(n, NextHopKind::Tunnel, false, n != 2);
    }
    for (index, protocol) in [proto::TCP, proto::UDP].into_iter().enumerate() {
        let backends = [(addr::pod(1), 8080), (addr::remote_pod(0, 7), 8080), (addr::remote_pod(1, 7), 8080)];
        world.set_service([10, 96, 0, 10], 80, protocol, index as u32, &backends);
        world.set_service([10, 96, 0, 11], 80, protocol, 2 + index as u32, &[]);
        let backends = [(Ip(addr::pod6(1)), 8080), (Ip(addr::remote_pod6(0, 7)), 8080)];
        world.set_service_at(ServiceKey::new(Ip(VIP6), 80, protocol), 4 + index as u32, &backends);
    }
}

/// The whole engine: `data` is a script of bursts. Each step takes a few bytes for what to send (a packet
/// made to be valid, then damaged, or raw bytes), from which port, and what happens in between (time passes,
/// tables change, flows are forgotten). After each burst every frame and packet must be accounted for.
pub fn packets(world: &mut World, data: &[u8]) {
    reset(world);
    let mut script = Script { data };
    while let Some(step) = script.byte() {
        between(world, step, &mut script);
        let port = PortId(u16::from(script.byte().unwrap_or(0) % 8));
        let count = 1 + usize::from(script.byte().unwrap_or(0)) % MAX_BURST;
        let mut rx = Burst::new();
        for _ in 0..count {
            let bytes = packet(&mut script, port);
            let mut frame = world.frame(&bytes);
            frame.set_port(port.0);
            rx.push(frame);
            if script.data.is_empty() {
                break;
            }
        }
        crate::process(
            &mut rx,
            port,
            world.reader.view(),
            &mut world.worker,
            world.now,
            &mut world.cache,
            &mut world.tx,
        );
        assert!(rx.is_empty());
        world.reader.quiescent();
        settle(world);
    }
}

/// Frees what leaves, and checks that nothing is lost.
fn settle(world: &mut World) {
    let World { worker, cache, tx, .. } = world;
    tx.flush(|port, burst| {
        let bytes = burst.iter().map(|frame| frame.len() as u64).sum();
        worker.counters.sent(port, port == addr::HOST.0, burst.len() as u64, bytes);
        for frame in burst.iter() {
            assert!(frame.len() >= ETH_LEN, "what leaves is a frame");
        }
        cache.free_burst(burst);
    });
    assert_eq!(world.packets_out(), 0, "I2");
    assert_eq!(world.frames_out(), 0, "I1");
}

fn between(world: &mut World, step: u8, script: &mut Script<'_>) {
    match step % 16 {
        0 => world.now.seconds += u32::from(script.byte().unwrap_or(0)) * 4,
        1 => world.worker.flows.clear(),
        2 => {
            world.worker.housekeep(world.now, 16);
            world.worker.expire_fragments(world.now, &mut world.cache);
        }
        3 => world.apply(Op::DelEndpoint(Ip::v4(addr::pod(1)))),
        4 => {
            let endpoint = Endpoint::new(addr::pod_port(u16::from(step >> 6)), addr::pod_mac(1));
            world.apply(Op::SetEndpoint(Ip::v4(addr::pod(1)), endpoint));
        }
        5 => world.set_service([10, 96, 0, 10], 80, proto::TCP, 0, &[(addr::remote_pod(step >> 7, 7), 8080)]),
        6 => world.set_way((step >> 4) % 3, WAYS[usize::from(step >> 6)]),
        7 => {
            let families = script.byte().unwrap_or(0);
            let (inner_is_v4, outer_is_v4) = (families & 1 == 0, families & 2 == 0);
            world.set_way_over((step >> 4) % 3, WAYS[usize::from(step >> 6)], inner_is_v4, outer_is_v4);
        }
        _ => {}
    }
}

struct Script<'a> {
    data: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.data.split_first()?;
        self.data = rest;
        Some(*first)
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.data.split_at(len.min(self.data.len()));
        self.data = rest;
        taken.to_vec()
    }
}

fn packet(script: &mut Script<'_>, port: PortId) -> Vec<u8> {
    let kind = script.byte().unwrap_or(0);
    let (a, b) = (script.byte().unwrap_or(0), script.byte().unwrap_or(0));
    if kind < 32 {
        return script.take(usize::from(a) + 8 * usize::from(b % 8));
    }
    let targets = [
        addr::pod(u16::from(b % 5)),
        addr::remote_pod(b % 4, 7),
        [10, 96, 0, 10],
        [10, 96, 0, 11],
        addr::GATEWAY,
        addr::NODE,
        [8, 8, 8, 8],
        [224, 0, 0, 1],
    ];
    if kind & 24 == 24 {
        return six(script, port, kind, a, b);
    }
    let dst = targets[usize::from(a % 8)];
    let src = u16::from(b >> 5);
    let mut headers = if port == addr::UPLINK {
        addr::from_remote(addr::remote_pod(b % 4, 7), addr::pod(src % 4))
    } else {
        addr::from_pod(port.0.saturating_sub(2), dst)
    };
    headers.ttl = if kind & 1 == 0 { 64 } else { a };
    // Up to what a chunk takes beside headers and headroom.
    let payload = vec![b; (usize::from(a) * usize::from(kind & 7)).min(1600)];
    let (sport, dport) = if port == addr::UPLINK { (8080, u16::from(a)) } else { (u16::from(b), 80) };
    let flags = [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK, tcp_flags::RST];
    let mut frame = match kind % 5 {
        0 | 1 => headers.tcp(sport, dport, flags[usize::from(a >> 6)], &payload),
        2 => headers.udp(sport, dport, &payload),
        3 => headers.echo(b & 8, u16::from(a), 1, &payload),
        _ if kind & 64 != 0 => packet::arp_request(headers.src_mac, headers.src, dst),
        _ if kind & 16 != 0 => icmp_error(&headers, a, b, script),
        _ => headers.around(a, &payload),
    };
    frame = part_of(frame, b);
    if port == addr::UPLINK {
        frame = from_node(frame, kind >> 6, b);
    }
    if kind & 32 != 0 {
        damage(&mut frame, script);
    }
    frame
}

/// An IPv6 packet, made to be valid, then perhaps damaged.
fn six(script: &mut Script<'_>, port: PortId, kind: u8, a: u8, b: u8) -> Vec<u8> {
    let targets = [
        addr::pod6(u16::from(b % 5)),
        addr::remote_pod6(b % 4, 7),
        VIP6,
        addr::GATEWAY6,
        [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1],
    ];
    let mut headers = if port == addr::UPLINK {
        addr::from_remote6(addr::remote_pod6(b % 4, 7), addr::pod6(u16::from(b >> 5) % 4))
    } else {
        addr::from_pod6(port.0.saturating_sub(2), targets[usize::from(a % 6)])
    };
    headers.hop_limit = [64, 255, 1, a][usize::from(kind & 3)];
    let payload = vec![b; (usize::from(a) * usize::from(kind & 7)).min(1600)];
    let (sport, dport) = if port == addr::UPLINK { (8080, u16::from(a)) } else { (u16::from(b), 80) };
    let mut frame = match a >> 5 {
        0 | 1 => headers.tcp(sport, dport, [tcp_flags::SYN, tcp_flags::ACK][usize::from(b & 1)], &payload),
        2 | 3 => headers.udp(sport, dport, &payload),
        4 => headers.echo(128 + (b & 1), u16::from(a), 1, &payload),
        5 => headers.solicitation(targets[usize::from(b % 6)]),
        6 => {
            let quoted = if b & 1 == 0 {
                let about = packet6::Headers6 { src: headers.dst, dst: headers.src, ..headers };
                about.udp(80, u16::from(a), b"")[ETH_LEN..].to_vec()
            } else {
                script.take(usize::from(b))
            };
            headers.icmp(1 + (b & 3), a & 7, [0, 0, 5, b], &quoted)
        }
        _ => headers.around(a, &script.take(usize::from(b))),
    };
    frame = part_of(frame, b);
    if port == addr::UPLINK {
        frame = from_node(frame, kind >> 6, b);
    }
    if kind & 32 != 0 {
        damage(&mut frame, script);
    }
    frame
}

/// A packet as it is, or one that may be fragmented, or a fragment of it.
fn part_of(mut frame: Vec<u8>, b: u8) -> Vec<u8> {
    if b & 24 != 24 || frame.len() < ETH_LEN + ipv6::LEN {
        return frame;
    }
    let (payload_len, number) = (8 * (1 + usize::from(b >> 5)), usize::from(b & 3));
    let parts = match frame[12..14] {
        [8, 0] if number == 3 => {
            packet::allow_fragments(&mut frame);
            return frame;
        }
        [8, 0] => packet::fragments(&frame, payload_len),
        [0x86, 0xdd] => packet6::fragments(&frame, payload_len, u32::from(b)),
        _ => return frame,
    };
    parts.into_iter().nth(number).unwrap_or(frame)
}

/// What a node sends around a packet, in any encapsulation or none and over either family, at times with ECN marks.
fn from_node(mut inner: Vec<u8>, kind: u8, b: u8) -> Vec<u8> {
    let (node, outer) = (b % 4, addr::outer_from(b % 4));
    if kind != 3 && b & 32 != 0 {
        return over_ipv6(&inner, kind, b);
    }
    let mut frame = match kind {
        0 => packet::encapsulate(&addr::encap_from(node), &inner, 50_000),
        1 => packet::into_ipip(&outer, &inner),
        2 => packet::into_udp(&outer, addr::UDP_TUNNEL_PORT, &inner, 50_000),
        _ => {
            inner[..6].copy_from_slice(&addr::UPLINK_MAC.0);
            return inner;
        }
    };
    if b & 4 != 0 {
        packet::set_tos(&mut frame, ETH_LEN, b >> 4);
    }
    frame
}

fn over_ipv6(inner: &[u8], kind: u8, b: u8) -> Vec<u8> {
    let outer = addr::outer6_from(b % 4);
    let mut frame = match kind {
        0 => packet::into_vxlan6(&outer, &addr::vxlan6_from(b % 4), inner),
        1 if b & 16 != 0 => packet::into_ipv6_with_limit(&outer, inner),
        1 => packet::into_ipv6(&outer, inner),
        _ => packet::into_udp6(&outer, addr::UDP_TUNNEL_PORT, inner),
    };
    if b & 4 != 0 {
        packet::set_traffic_class(&mut frame, ETH_LEN, b >> 4);
    }
    if b & 192 == 192 {
        let parts = packet6::fragments(&frame, 64, u32::from(b));
        frame = parts.into_iter().nth(usize::from(b & 1)).unwrap_or(frame);
    }
    frame
}

/// An ICMP error about a packet that may have been seen before, or about any bytes.
fn icmp_error(headers: &packet::Headers, a: u8, b: u8, script: &mut Script<'_>) -> Vec<u8> {
    let mut message = vec![0; icmp::LEN];
    if b & 1 == 0 {
        let about = packet::Headers { src: headers.dst, dst: headers.src, ..*headers };
        let quoted =
            if b & 2 == 0 { about.udp(80, u16::from(a), b"") } else { about.tcp(8080, u16::from(a), 0, b"") };
        message.extend_from_slice(&quoted[ETH_LEN..]);
        message.truncate(icmp::LEN + 20 + usize::from(b >> 2));
    } else {
        message.extend(script.take(usize::from(b)));
    }
    icmp::write_error(&mut message, [3, 4, 11, 12][usize::from(a % 4)], a >> 4, u16::from(b));
    headers.around(proto::ICMP, &message)
}

fn damage(frame: &mut Vec<u8>, script: &mut Script<'_>) {
    let (at, value) = (script.byte().unwrap_or(0), script.byte().unwrap_or(0));
    if at > 240 {
        frame.truncate(usize::from(value));
    } else if let Some(byte) = frame.get_mut(usize::from(at)) {
        *byte ^= value;
    }
}
