//! ICMP errors: those that the engine makes, each about the packet as its sender sent it, and those on their way
//! through translation. Invariants I1 and I2 at the end of every test.

mod common;

use common::{Seen, drops, look, look_inside};
use fairway_dataplane::icmp_error::Limiter;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{ETH_LEN, checksum, icmp, proto, put_raw16, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{
    DropReason, Ip, NextHop, NextHopKind, Op, Port, PortId, PortKind, Prefix, Service, ServiceKey, Targets,
};

const VIP: [u8; 4] = [10, 96, 0, 10];

/// The IPv4 packet that a frame holds.
fn packet_of(frame: &[u8]) -> &[u8] {
    &frame[ETH_LEN..]
}

/// Type, code, MTU field and quotation of the ICMP message in a frame whose checksums are right.
fn message(frame: &[u8]) -> (u8, u8, u16, Vec<u8>) {
    look(frame);
    let icmp = &packet_of(frame)[20..];
    (icmp[0], icmp[1], u16::from_be_bytes([icmp[6], icmp[7]]), icmp[8..].to_vec())
}

/// An ICMP error about `quoted`, an IPv4 packet.
fn error(headers: &packet::Headers, kind: u8, code: u8, mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let mut body = vec![0; icmp::LEN];
    body.extend_from_slice(quoted);
    icmp::write_error(&mut body, kind, code, mtu);
    headers.around(proto::ICMP, &body)
}

#[test]
fn a_ttl_that_runs_out_is_told_to_the_pod_with_the_packet_as_it_sent_it() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::UDP, 1, &[(addr::remote_pod(1, 7), 8080)]);
    let mut headers = addr::from_pod(0, VIP);
    headers.ttl = 1;
    let sent = headers.udp(1000, 80, b"who is there");
    // The first packet walks, the second hits; both are told.
    for _ in 0..2 {
        let (port, out) = world.send(addr::pod_port(0), &sent).unwrap();
        assert_eq!(port, addr::pod_port(0));
        let Seen { src, dst, dst_mac, src_mac, ttl, .. } = look(&out);
        assert_eq!((src, dst, ttl), (addr::ROUTER, addr::pod(0), 64));
        assert_eq!((dst_mac, src_mac), (addr::pod_mac(0).0, addr::GATEWAY_MAC.0));
        assert_eq!(message(&out), (icmp::TIME_EXCEEDED, 0, 0, packet_of(&sent).to_vec()));
    }
    assert_eq!(
        (drops(&world, DropReason::TtlExceeded), world.worker.counters.get(Counter::GeneratedPackets)),
        (2, 2)
    );
    world.finish();
}

#[test]
fn a_ttl_that_runs_out_behind_a_tunnel_is_told_through_the_tunnel() {
    let mut world = World::new(WorldConfig::default());
    let mut headers = addr::from_remote(addr::remote_pod(2, 9), addr::pod(0));
    headers.ttl = 1;
    let sent = headers.udp(33434, 33435, b"traceroute");
    let wrapped = packet::encapsulate(&addr::encap_from(2), &sent, 50000);
    let (port, out) = world.send(addr::UPLINK, &wrapped).unwrap();
    assert_eq!(port, addr::UPLINK);
    let inner = look_inside(&out, 2);
    assert_eq!((inner.src, inner.dst, inner.ttl), (addr::ROUTER, addr::remote_pod(2, 9), 64));
    assert_eq!(inner.payload, packet_of(&sent));
    world.finish();
}

#[test]
fn what_the_host_sends_is_answered_to_the_host() {
    let mut world = World::new(WorldConfig::default());
    let sent = packet::Headers {
        dst_mac: addr::GATEWAY_MAC,
        src_mac: addr::HOST_MAC,
        src: addr::ROUTER,
        dst: addr::pod(99),
        ttl: 64,
    }
    .udp(1000, 2000, b"");
    world.apply(Op::SetRoute(
        Prefix::host(Ip::v4(addr::ROUTER)),
        NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE),
    ));
    let (port, out) = world.send(addr::HOST, &sent).unwrap();
    assert_eq!((port, look(&out).dst), (addr::HOST, addr::ROUTER));
    assert_eq!(message(&out), (icmp::UNREACHABLE, icmp::unreachable::HOST, 0, packet_of(&sent).to_vec()));
    world.finish();
}

/// A pod whose own port takes more than what fits through the tunnel.
fn with_large_port(mut world: World) -> World {
    let mac = fairway_tables::Mac([2, 0, 0, 1, 0, 0]);
    let port = Port::new("fwpod0", PortKind::Pod, 1500, mac, fairway_tables::Mac::ZERO).unwrap();
    world.apply(Op::SetPort(addr::pod_port(0), port));
    world
}

#[test]
fn a_packet_too_large_for_its_tunnel_is_answered_with_the_mtu_that_fits() {
    let mut world = with_large_port(World::new(WorldConfig::default()));
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::remote_pod(1, 7), 8080)]);
    let sent = addr::from_pod(0, VIP).tcp(1000, 80, tcp_flags::SYN, &[7; 1420]);
    let (port, out) = world.send(addr::pod_port(0), &sent).unwrap();
    assert_eq!(port, addr::pod_port(0));
    let (kind, code, mtu, quoted) = message(&out);
    assert_eq!((kind, code, mtu), (icmp::UNREACHABLE, icmp::unreachable::FRAGMENTATION_NEEDED, 1450));
    assert_eq!(quoted.len(), 576 - 28, "RFC 1812 section 4.3.2.3");
    assert_eq!(quoted, packet_of(&sent)[..548], "as it was sent: not translated, TTL and all");
    // What fits goes through.
    assert_eq!(
        world.send(addr::pod_port(0), &addr::from_pod(0, VIP).tcp(1000, 80, 0, &[7; 1410])).unwrap().0,
        addr::UPLINK
    );
    assert_eq!(drops(&world, DropReason::TooBig), 1);
    world.finish();
}

#[test]
fn a_service_without_endpoints_refuses_and_one_with_endpoints_elsewhere_is_silent() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[]);
    let sent = addr::from_pod(0, VIP).tcp(1000, 80, tcp_flags::SYN, b"");
    let (port, out) = world.send(addr::pod_port(0), &sent).unwrap();
    assert_eq!(port, addr::pod_port(0));
    assert_eq!(message(&out), (icmp::UNREACHABLE, icmp::unreachable::PORT, 0, packet_of(&sent).to_vec()));
    let service = Service { id: 1, flags: Service::ENDPOINTS_ELSEWHERE, affinity_timeout_s: 0 };
    world.apply(Op::SetService(ServiceKey::new(Ip::v4(VIP), 80, proto::TCP), service, Targets::default()));
    assert_eq!(world.send(addr::pod_port(0), &sent), None);
    assert_eq!((drops(&world, DropReason::NoBackend), drops(&world, DropReason::NoLocalBackend)), (1, 1));
    world.finish();
}

#[test]
fn an_unreachable_route_is_told_as_an_unknown_host_and_a_blackhole_is_silent() {
    let mut world = World::new(WorldConfig::default());
    let route = |kind| {
        let prefix = Prefix::new(Ip::v4([10, 77, 0, 0]), 16).unwrap();
        Op::SetRoute(prefix, NextHop::new(kind, Ip::UNSPECIFIED, PortId::NONE))
    };
    let sent = addr::from_pod(0, [10, 77, 0, 1]).udp(1000, 53, b"anybody there");
    world.apply(route(NextHopKind::Unreachable));
    let (port, out) = world.send(addr::pod_port(0), &sent).unwrap();
    assert_eq!(port, addr::pod_port(0));
    let wanted = (icmp::UNREACHABLE, icmp::unreachable::HOST, 0, packet_of(&sent).to_vec());
    assert_eq!(message(&out), wanted);
    world.apply(route(NextHopKind::Blackhole));
    assert!(world.send(addr::pod_port(0), &sent).is_none());
    assert_eq!((drops(&world, DropReason::Unreachable), drops(&world, DropReason::Blackhole)), (1, 1));
    world.finish();
}

#[test]
fn no_error_is_sent_about_an_error_nor_to_a_source_that_is_not_believed() {
    let mut world = World::new(WorldConfig::default());
    let lost = addr::from_pod(1, addr::pod(0)).udp(1, 2, b"");
    let mut headers = addr::from_pod(0, addr::pod(1));
    headers.ttl = 1;
    let about = error(&headers, icmp::UNREACHABLE, 3, 0, packet_of(&lost));
    assert_eq!(world.send(addr::pod_port(0), &about), None);
    assert_eq!(drops(&world, DropReason::TtlExceeded), 1);
    headers.src = addr::pod(2);
    assert_eq!(world.send(addr::pod_port(0), &headers.udp(1, 2, b"")), None);
    assert_eq!(drops(&world, DropReason::SpoofedSource), 1);
    // An echo request is no error, and its sender (traceroute -I) wants to know.
    headers.src = addr::pod(0);
    assert!(world.send(addr::pod_port(0), &headers.echo(icmp::ECHO_REQUEST, 5, 1, b"")).is_some());
    world.finish();
}

#[test]
fn errors_per_pod_are_limited_and_others_keep_their_share() {
    let mut world = World::new(WorldConfig::default());
    let expired = |n: u16| {
        let mut headers = addr::from_pod(n, addr::pod(3));
        headers.ttl = 1;
        headers.udp(1, 2, b"")
    };
    let answered = |world: &mut World, n: u16, count: usize| {
        (0..count).filter(|_| world.send(addr::pod_port(n), &expired(n)).is_some()).count()
    };
    let limit = usize::from(Limiter::PER_POD);
    assert_eq!(answered(&mut world, 0, 3 * limit), limit);
    assert_eq!(answered(&mut world, 1, 5), 5);
    assert_eq!(world.worker.counters.get(Counter::IcmpLimited), 2 * limit as u64);
    world.now.seconds += 1;
    assert_eq!(answered(&mut world, 0, 3 * limit), limit);
    world.finish();
}

/// A conversation of pod 0 with a service whose backend is a remote pod; what the client sent and what the backend got.
fn translated(world: &mut World, protocol: u8) -> (Vec<u8>, Vec<u8>) {
    world.set_service(VIP, 80, protocol, 1, &[(addr::remote_pod(1, 7), 8080)]);
    let headers = addr::from_pod(0, VIP);
    let sent = match protocol {
        proto::TCP => headers.tcp(1000, 80, tcp_flags::SYN, b"payload"),
        _ => headers.udp(1000, 80, b"payload"),
    };
    let (_, out) = world.send(addr::pod_port(0), &sent).unwrap();
    let inner = out[50..].to_vec();
    assert_eq!(look(&inner).dst, addr::remote_pod(1, 7));
    (sent, inner)
}

/// What the client finds quoted is what it sent but for the TTL, which the way has used up, and the sums over it.
fn same_but_for_ttl(quoted: &[u8], sent: &[u8]) {
    let mut sent = sent[..quoted.len()].to_vec();
    sent[8] = quoted[8];
    put_raw16(&mut sent, 10, 0);
    let sum = checksum::checksum(&sent[..20]);
    put_raw16(&mut sent, 10, sum);
    assert_eq!(quoted, sent);
}

#[test]
fn an_error_from_the_backend_reaches_the_client_as_from_the_service_about_its_own_packet() {
    for protocol in [proto::TCP, proto::UDP] {
        let mut world = World::new(WorldConfig::default());
        let (sent, got) = translated(&mut world, protocol);
        // As little as RFC 792 asks for, and as much as RFC 1812 allows.
        for len in [28, packet_of(&got).len()] {
            let headers = addr::from_remote(addr::remote_pod(1, 7), addr::pod(0));
            let refusal = error(&headers, icmp::UNREACHABLE, 3, 0, &packet_of(&got)[..len]);
            let wrapped = packet::encapsulate(&addr::encap_from(1), &refusal, 50000);
            let (port, out) = world.send(addr::UPLINK, &wrapped).unwrap();
            assert_eq!((port, look(&out).src, look(&out).dst), (addr::pod_port(0), VIP, addr::pod(0)));
            let (kind, code, _, quoted) = message(&out);
            assert_eq!((kind, code), (icmp::UNREACHABLE, 3));
            same_but_for_ttl(&quoted, packet_of(&sent));
        }
        assert_eq!(world.worker.counters.get(Counter::IcmpTranslated), 2);
        world.finish();
    }
}

#[test]
fn an_error_from_a_router_on_the_way_keeps_the_routers_address_and_its_mtu() {
    let mut world = World::new(WorldConfig::default());
    let (sent, got) = translated(&mut world, proto::TCP);
    // The other node's own address among its pods, as this engine would use.
    let headers = addr::from_remote(addr::remote_pod(1, 1), addr::pod(0));
    let refusal = error(&headers, icmp::UNREACHABLE, 4, 1280, packet_of(&got));
    let wrapped = packet::encapsulate(&addr::encap_from(1), &refusal, 50000);
    let (_, out) = world.send(addr::UPLINK, &wrapped).unwrap();
    assert_eq!((look(&out).src, look(&out).dst), (addr::remote_pod(1, 1), addr::pod(0)));
    let (kind, code, mtu, quoted) = message(&out);
    assert_eq!((kind, code, mtu), (icmp::UNREACHABLE, 4, 1280));
    same_but_for_ttl(&quoted, packet_of(&sent));
    world.finish();
}

#[test]
fn an_error_from_the_client_reaches_the_backend_about_the_backends_own_packet() {
    let mut world = World::new(WorldConfig::default());
    translated(&mut world, proto::UDP);
    let reply = addr::from_remote(addr::remote_pod(1, 7), addr::pod(0)).udp(8080, 1000, b"answer");
    let wrapped = packet::encapsulate(&addr::encap_from(1), &reply, 50000);
    let (_, at_client) = world.send(addr::UPLINK, &wrapped).unwrap();
    assert_eq!(look(&at_client).src, VIP);
    let refusal = error(&addr::from_pod(0, VIP), icmp::UNREACHABLE, 3, 0, packet_of(&at_client));
    let (port, out) = world.send(addr::pod_port(0), &refusal).unwrap();
    assert_eq!(port, addr::UPLINK);
    let inner = look_inside(&out, 1);
    assert_eq!((inner.src, inner.dst), (addr::pod(0), addr::remote_pod(1, 7)));
    same_but_for_ttl(&inner.payload, packet_of(&reply));
    world.finish();
}

#[test]
fn errors_about_untranslated_packets_pass_as_they_are_and_broken_ones_do_not() {
    let mut world = World::new(WorldConfig::default());
    let there = addr::from_pod(0, addr::pod(1)).udp(1000, 2000, b"x");
    let (_, got) = world.send(addr::pod_port(0), &there).unwrap();
    let refusal = error(&addr::from_pod(1, addr::pod(0)), icmp::UNREACHABLE, 3, 0, packet_of(&got));
    let (port, out) = world.send(addr::pod_port(1), &refusal).unwrap();
    assert_eq!(port, addr::pod_port(0));
    assert_eq!(message(&out).3, packet_of(&got));
    let mut broken = refusal.clone();
    broken[ETH_LEN + 40] ^= 1;
    assert_eq!(world.send(addr::pod_port(1), &broken), None);
    assert_eq!(drops(&world, DropReason::BadIcmp), 1);
    // Quotations too short to name a flow, or of a later fragment, name none.
    for quoted in [&packet_of(&got)[..27], &[0x45; 28]] {
        let vague = error(&addr::from_pod(1, addr::pod(0)), icmp::UNREACHABLE, 3, 0, quoted);
        assert_eq!(message(&world.send(addr::pod_port(1), &vague).unwrap().1).3, quoted);
    }
    assert_eq!(world.worker.counters.get(Counter::IcmpTranslated), 0);
    world.finish();
}
