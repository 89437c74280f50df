//! The ways of IPv6 packets through `process`, checked by an independent parser (etherparse); invariants I1 and I2 at the
//! end of every test.

mod common;

use common::drops;
use common::six::{Seen, look};
use fairway_dataplane::testkit::packet6::Headers6;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet, packet6};
use fairway_dataplane::wire::{ETH_LEN, icmpv6, proto, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip, Mac, NextHop, NextHopKind, Op, Port, PortKind, Prefix, ServiceKey};

const VIP: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

/// The IPv6 frame inside a VXLAN packet from this node to remote node `n`.
fn inside(frame: &[u8], n: u8) -> Seen {
    let outer = common::look(frame);
    assert_eq!((outer.src, outer.dst, outer.dport), (addr::NODE, addr::node(n), 4789));
    let inner = look(&outer.payload[8..]);
    assert_eq!((inner.src_mac, inner.dst_mac), (addr::VTEP.0, addr::node_vtep(n).0));
    inner
}

fn wrapped(n: u8, inner: &[u8]) -> Vec<u8> {
    packet::encapsulate(&addr::encap_from(n), inner, 50000)
}

#[test]
fn pod_to_pod_on_the_same_node() {
    let mut world = World::new(WorldConfig::default());
    let frame = addr::from_pod6(0, addr::pod6(1)).udp(1111, 2222, b"hello");
    for hits in 0..3 {
        let (port, out) = world.send(addr::pod_port(0), &frame).unwrap();
        assert_eq!(port, addr::pod_port(1));
        let expected = Seen {
            dst_mac: addr::pod_mac(1).0,
            src_mac: addr::GATEWAY_MAC.0,
            src: addr::pod6(0),
            dst: addr::pod6(1),
            sport: 1111,
            dport: 2222,
            hop_limit: 63,
            payload: b"hello".to_vec(),
        };
        assert_eq!(look(&out), expected);
        assert_eq!(world.worker.counters.get(Counter::FlowHits), hits, "the first walks, the rest hit");
    }
    world.finish();
}

#[test]
fn a_remote_service_is_translated_both_ways_and_keeps_its_backend() {
    for protocol in [proto::TCP, proto::UDP] {
        let mut world = World::new(WorldConfig::default());
        let key = ServiceKey::new(Ip(VIP), 80, protocol);
        let backends: Vec<_> = (0..3).map(|n| (Ip(addr::remote_pod6(n, 7)), 8080)).collect();
        world.set_service_at(key, 1, &backends);
        let make = |headers: &Headers6, sport, dport, flags| match protocol {
            proto::TCP => headers.tcp(sport, dport, flags, b"data"),
            _ => headers.udp(sport, dport, b"data"),
        };
        let there = make(&addr::from_pod6(0, VIP), 40000, 80, tcp_flags::SYN);
        let (port, out) = world.send(addr::pod_port(0), &there).unwrap();
        assert_eq!(port, addr::UPLINK);
        let node = common::look(&out).dst[3] - addr::node(0)[3];
        let inner = inside(&out, node);
        assert_eq!((inner.src, inner.dst), (addr::pod6(0), addr::remote_pod6(node, 7)));
        assert_eq!((inner.sport, inner.dport, inner.payload.as_slice()), (40000, 8080, &b"data"[..]));
        // The backend leaves the service; the connection stays where it is.
        if protocol == proto::TCP {
            world.set_service_at(key, 1, &[(Ip(addr::remote_pod6((node + 1) % 3, 7)), 8080)]);
            let more = make(&addr::from_pod6(0, VIP), 40000, 80, tcp_flags::ACK);
            let (_, out) = world.send(addr::pod_port(0), &more).unwrap();
            assert_eq!(inside(&out, node).dst, addr::remote_pod6(node, 7));
        }
        let back = addr::from_remote6(addr::remote_pod6(node, 7), addr::pod6(0));
        let reply = make(&back, 8080, 40000, tcp_flags::SYN | tcp_flags::ACK);
        let (port, out) = world.send(addr::UPLINK, &wrapped(node, &reply)).unwrap();
        let seen = look(&out);
        assert_eq!((port, seen.src, seen.dst), (addr::pod_port(0), VIP, addr::pod6(0)));
        assert_eq!((seen.sport, seen.dport, seen.hop_limit), (80, 40000, 62));
        world.finish();
    }
}

#[test]
fn echo_is_one_conversation_and_its_checksum_follows_no_translation_of_ports() {
    let mut world = World::new(WorldConfig::default());
    let request = addr::from_pod6(0, addr::remote_pod6(1, 9)).echo(icmpv6::ECHO_REQUEST, 77, 1, b"ping");
    let (_, out) = world.send(addr::pod_port(0), &request).unwrap();
    assert_eq!(inside(&out, 1).dst, addr::remote_pod6(1, 9));
    let reply = addr::from_remote6(addr::remote_pod6(1, 9), addr::pod6(0));
    let (port, _) =
        world.send(addr::UPLINK, &wrapped(1, &reply.echo(icmpv6::ECHO_REPLY, 77, 1, b"ping"))).unwrap();
    assert_eq!(port, addr::pod_port(0));
    assert_eq!(world.worker.conntrack.summary().used, 1);
    world.finish();
}

#[test]
fn the_gateway_answers_solicitations_for_any_address_and_echo() {
    let mut world = World::new(WorldConfig::default());
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xee, 0xee, 0xee];
    for (src, target) in [
        (link_local, addr::GATEWAY6),
        (addr::pod6(0), addr::pod6(1)),
        (addr::pod6(0), addr::remote_pod6(2, 2)),
    ] {
        let headers = Headers6 {
            dst_mac: Mac([0x33, 0x33, 0xff, 0xee, 0xee, 0xee]),
            src_mac: addr::pod_mac(0),
            src,
            dst: group,
            hop_limit: 255,
        };
        let (port, out) = world.send(addr::pod_port(0), &headers.solicitation(target)).unwrap();
        let seen = look(&out);
        assert_eq!(
            (port, seen.dst_mac, seen.src_mac),
            (addr::pod_port(0), addr::pod_mac(0).0, addr::GATEWAY_MAC.0)
        );
        assert_eq!((seen.src, seen.dst, seen.hop_limit), (target, src, 255));
        assert_eq!((seen.payload[0], &seen.payload[8..24]), (icmpv6::NEIGHBOUR_ADVERTISEMENT, &target[..]));
        assert_eq!(seen.payload[24..], [2, 1, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
        // From behind a router, for itself, or from nobody (duplicate address detection): no answer.
        let far = Headers6 { hop_limit: 254, ..headers };
        assert_eq!(world.send(addr::pod_port(0), &far.solicitation(target)), None);
        assert_eq!(world.send(addr::pod_port(0), &headers.solicitation(src)), None);
        let nobody = Headers6 { src: [0; 16], ..headers };
        assert_eq!(world.send(addr::pod_port(0), &nobody.solicitation(target)), None);
    }
    assert_eq!(drops(&world, DropReason::LinkIgnored), 9);
    let mut headers = addr::from_pod6(0, addr::GATEWAY6);
    for src in [addr::pod6(0), link_local] {
        headers.src = src;
        let (port, out) =
            world.send(addr::pod_port(0), &headers.echo(icmpv6::ECHO_REQUEST, 3, 4, b"you?")).unwrap();
        let seen = look(&out);
        assert_eq!((port, seen.src, seen.dst), (addr::pod_port(0), addr::GATEWAY6, src));
        assert_eq!((seen.payload[0], &seen.payload[8..]), (icmpv6::ECHO_REPLY, &b"you?"[..]));
    }
    world.finish();
}

#[test]
fn each_bad_packet_has_its_reason() {
    let mut world = World::new(WorldConfig::default());
    let pod = addr::pod_port(0);
    let good = addr::from_pod6(0, addr::pod6(1)).udp(1, 2, b"");
    let spoofed = Headers6 { src: addr::pod6(2), ..addr::from_pod6(0, addr::pod6(1)) };
    let disguised = {
        let mut v4 = [0; 16];
        v4[10..12].fill(0xff);
        v4[12..].copy_from_slice(&addr::pod(0));
        Headers6 { src: v4, ..addr::from_pod6(0, addr::pod6(1)) }
    };
    let echo = addr::from_pod6(0, addr::pod6(1)).icmp(icmpv6::PACKET_TOO_BIG, 0, [0; 4], &[7; 100]);
    let fragment = packet6::fragments(&echo, 64, 1)[0].clone();
    let multicast = addr::from_pod6(0, [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut other_mac = good.clone();
    other_mac[0] = 2;
    let remote = |n, src| wrapped(n, &addr::from_remote6(src, addr::pod6(0)).udp(1, 2, b""));
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let cases = [
        (pod, good[..50].to_vec(), DropReason::Truncated),
        (pod, other_mac, DropReason::NotForUs),
        (pod, spoofed.udp(1, 2, b""), DropReason::SpoofedSource),
        (pod, disguised.udp(1, 2, b""), DropReason::Martian),
        (pod, fragment, DropReason::Fragment),
        (pod, multicast.udp(1, 2, b""), DropReason::LinkIgnored),
        (addr::UPLINK, remote(0, addr::remote_pod6(1, 5)), DropReason::SpoofedSource),
        (addr::UPLINK, remote(9, addr::remote_pod6(0, 5)), DropReason::UnknownVtep),
        (addr::UPLINK, remote(0, link_local), DropReason::Martian),
    ];
    for (port, frame, reason) in cases {
        let before = drops(&world, reason);
        assert_eq!(world.send(port, &frame), None, "{reason}");
        assert_eq!(drops(&world, reason), before + 1, "{reason}");
    }
    world.finish();
}

#[test]
fn extension_headers_and_padding_are_passed_rightly() {
    let mut world = World::new(WorldConfig::default());
    let headers = addr::from_pod6(0, addr::pod6(1));
    let mut payload = vec![proto::UDP, 0, 1, 4, 0, 0, 0, 0];
    payload.extend(headers.udp_message(5, 6, b"behind options"));
    let mut frame = headers.around(60, &payload);
    let len = frame.len();
    frame.extend([0; 9]);
    let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
    assert_eq!(out.len(), len);
    let seen = look(&out);
    assert_eq!((seen.sport, seen.dport, seen.payload.as_slice()), (5, 6, &b"behind options"[..]));
    world.finish();
}

/// Type, code, MTU and quotation of an ICMPv6 error.
fn message(seen: &Seen) -> (u8, u8, u32, Vec<u8>) {
    let p = &seen.payload;
    (p[0], p[1], u32::from_be_bytes([p[4], p[5], p[6], p[7]]), p[8..].to_vec())
}

#[test]
fn drops_are_told_to_the_sender_with_the_packet_as_it_sent_it() {
    let mut world = World::new(WorldConfig::default());
    world.set_service_at(ServiceKey::new(Ip(VIP), 80, proto::TCP), 1, &[(Ip(addr::remote_pod6(1, 7)), 8080)]);
    world.set_service_at(ServiceKey::new(Ip(VIP), 81, proto::TCP), 2, &[]);
    let port = Port::new("fwpod0", PortKind::Pod, 1500, Mac([2, 0, 0, 1, 0, 0]), Mac::ZERO).unwrap();
    world.apply(Op::SetPort(addr::pod_port(0), port));
    let headers = addr::from_pod6(0, VIP);
    let dying = Headers6 { hop_limit: 1, ..headers };
    let nowhere = addr::from_pod6(0, [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let cases = [
        (dying.tcp(1, 80, tcp_flags::SYN, b""), icmpv6::TIME_EXCEEDED, 0, 0),
        (headers.tcp(2, 80, tcp_flags::SYN, &[7; 1400]), icmpv6::PACKET_TOO_BIG, 0, 1450),
        (headers.tcp(3, 81, tcp_flags::SYN, b""), icmpv6::UNREACHABLE, icmpv6::unreachable::PORT, 0),
        (
            addr::from_pod6(0, addr::pod6(99)).udp(1, 2, b""),
            icmpv6::UNREACHABLE,
            icmpv6::unreachable::ADDRESS,
            0,
        ),
        (nowhere.udp(1, 2, b""), icmpv6::UNREACHABLE, icmpv6::unreachable::NO_ROUTE, 0),
    ];
    for (sent, kind, code, mtu) in cases {
        let (port, out) = world.send(addr::pod_port(0), &sent).unwrap();
        let seen = look(&out);
        assert_eq!((port, seen.src, seen.dst), (addr::pod_port(0), addr::ROUTER6, addr::pod6(0)));
        let quoted = &sent[ETH_LEN..][..(sent.len() - ETH_LEN).min(1280 - 48)];
        assert_eq!(message(&seen), (kind, code, mtu, quoted.to_vec()));
        assert!(out.len() - ETH_LEN <= 1280, "RFC 4443 section 3.1");
    }
    assert_eq!(world.worker.counters.get(Counter::GeneratedPackets), 5);
    world.finish();
}

#[test]
fn errors_about_translated_packets_are_translated_back() {
    for protocol in [proto::TCP, proto::UDP] {
        let mut world = World::new(WorldConfig::default());
        world.set_service_at(
            ServiceKey::new(Ip(VIP), 80, protocol),
            1,
            &[(Ip(addr::remote_pod6(1, 7)), 8080)],
        );
        let headers = addr::from_pod6(0, VIP);
        let sent = match protocol {
            proto::TCP => headers.tcp(1000, 80, tcp_flags::SYN, b"payload"),
            _ => headers.udp(1000, 80, b"payload"),
        };
        let (_, out) = world.send(addr::pod_port(0), &sent).unwrap();
        let got = out[50 + ETH_LEN..].to_vec();
        for (from, expected_src, len) in [
            (addr::remote_pod6(1, 7), VIP, got.len()),
            (addr::remote_pod6(1, 7), VIP, 48),
            (addr::remote_pod6(1, 1), addr::remote_pod6(1, 1), got.len()),
        ] {
            let error = addr::from_remote6(from, addr::pod6(0)).icmp(
                icmpv6::PACKET_TOO_BIG,
                0,
                [0, 0, 5, 0],
                &got[..len],
            );
            let (port, out) = world.send(addr::UPLINK, &wrapped(1, &error)).unwrap();
            let seen = look(&out);
            assert_eq!((port, seen.src, seen.dst), (addr::pod_port(0), expected_src, addr::pod6(0)));
            let (kind, code, mtu, mut quoted) = message(&seen);
            assert_eq!((kind, code, mtu), (icmpv6::PACKET_TOO_BIG, 0, 1280));
            // But for the hop limit, which the way has used up, it is what the client sent.
            quoted[7] = sent[ETH_LEN + 7];
            assert_eq!(quoted, sent[ETH_LEN..][..len]);
        }
        assert_eq!(world.worker.counters.get(Counter::IcmpTranslated), 3);
        let mut broken = addr::from_remote6(addr::remote_pod6(1, 7), addr::pod6(0)).icmp(1, 4, [0; 4], &got);
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(world.send(addr::UPLINK, &wrapped(1, &broken)), None);
        assert_eq!(drops(&world, DropReason::BadIcmp), 1);
        world.finish();
    }
}

#[test]
fn both_families_mix_in_one_burst() {
    let mut world = World::new(WorldConfig::default());
    let four = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"four");
    let six = addr::from_pod6(0, addr::pod6(1)).udp(1, 2, b"six");
    let frames: Vec<Vec<u8>> = (0..32).map(|n| if n % 3 == 0 { six.clone() } else { four.clone() }).collect();
    let out = world.burst(addr::pod_port(0), &frames);
    assert_eq!(out.len(), 32);
    for (n, (port, frame)) in out.iter().enumerate() {
        assert_eq!(*port, addr::pod_port(1));
        if n % 3 == 0 {
            assert_eq!(look(frame).payload, b"six");
        } else {
            assert_eq!(common::look(frame).payload, b"four");
        }
    }
    world.finish();
}

#[test]
fn without_encapsulation_ipv6_goes_by_an_ipv4_neighbour_and_comes_from_pods_that_are_reached_so() {
    let mut world = World::new(WorldConfig::default());
    let (remote, range) = (addr::remote_pod6(1, 7), Prefix::new(Ip(addr::remote_pod6(1, 0)), 64).unwrap());
    let hop = NextHop::new(NextHopKind::Gateway, Ip::v4(addr::node(1)), addr::UPLINK);
    world.apply(Op::SetRoute(range, hop));
    let (port, out) = world.send(addr::pod_port(0), &addr::from_pod6(0, remote).udp(1, 2, b"bare")).unwrap();
    let seen = look(&out);
    assert_eq!((port, seen.src, seen.dst), (addr::UPLINK, addr::pod6(0), remote));
    assert_eq!((seen.src_mac, seen.dst_mac), (addr::UPLINK_MAC.0, addr::node_mac(1).0));

    let from = |src, dst| {
        let (dst_mac, src_mac) = (addr::UPLINK_MAC, addr::node_mac(1));
        Headers6 { dst_mac, src_mac, src, dst, hop_limit: 63 }.udp(2, 1, b"back")
    };
    let (port, out) = world.send(addr::UPLINK, &from(remote, addr::pod6(0))).unwrap();
    assert_eq!((port, look(&out).src, look(&out).payload), (addr::pod_port(0), remote, b"back".to_vec()));
    // Pods that are reached by a tunnel, and this node's own, do not come so; nor does what is for others.
    for (src, dst, reason) in [
        (addr::remote_pod6(2, 7), addr::pod6(0), DropReason::SpoofedSource),
        (addr::pod6(1), addr::pod6(0), DropReason::SpoofedSource),
        (remote, addr::remote_pod6(2, 7), DropReason::NotForUs),
    ] {
        assert!(world.send(addr::UPLINK, &from(src, dst)).is_none());
        assert!(drops(&world, reason) > 0, "{reason}");
    }
    world.finish();
}
