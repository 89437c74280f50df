//! Pods whose addresses belong to an uplink of their own (ENI): what they send leaves there, whatever the routes say.

mod common;

use common::{drops, look};
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::proto;
use fairway_tables::{
    DropReason, Endpoint, Ip, Mac, Masquerade, Neighbour, NeighbourKey, NextHop, NextHopKind, Op, Port,
    PortId, PortKind, Prefix, Service, ServiceKey,
};

const VIP: [u8; 4] = [10, 96, 0, 10];
const OUTSIDE: [u8; 4] = [172, 16, 9, 9];

/// Port, own Ethernet address, gateway and the gateway's Ethernet address of ENI `n`.
fn eni(n: u16) -> (PortId, Mac, Ip, Mac) {
    let mac = |last| Mac([2, 0, 0, 9, n as u8, last]);
    (addr::pod_port(6 + n), mac(1), Ip::v4([172, 16, n as u8, 253]), mac(2))
}

/// Pods 0 and 1 on ENI 0, pod 2 on ENI 1, pod 3 on none.
fn world() -> World {
    let mut world = World::new(WorldConfig { pods: 8, ..WorldConfig::default() });
    for n in 0..2 {
        let (port, mac, gateway, gateway_mac) = eni(n);
        let record = Port::new(&format!("eni{n}"), PortKind::Uplink, 8500, mac, Mac::ZERO).unwrap();
        world.apply(Op::SetPort(port, Port { gateway, ..record }));
        let key = NeighbourKey { ip: gateway, port, reserved: 0 };
        world.apply(Op::SetNeighbour(key, Neighbour { mac: gateway_mac, reserved: 0 }));
    }
    for (pod, n) in [(0, 0), (1, 0), (2, 1)] {
        let endpoint =
            Endpoint { uplink: eni(n).0, ..Endpoint::new(addr::pod_port(pod), addr::pod_mac(pod)) };
        world.apply(Op::SetEndpoint(Ip::v4(addr::pod(pod)), endpoint));
    }
    world
}

/// Insists that what pod `from` sends to `dst` leaves by ENI `n`, to its gateway, with the pod's address.
fn leaves_by(world: &mut World, from: u16, dst: [u8; 4], n: u16) {
    let (eni_port, mac, _, gateway_mac) = eni(n);
    let sent = addr::from_pod(from, dst).udp(1000, 53, b"which way");
    let (port, out) = world.send(addr::pod_port(from), &sent).expect("it leaves");
    let seen = look(&out);
    assert_eq!((port, seen.src_mac, seen.dst_mac), (eni_port, mac.0, gateway_mac.0));
    assert_eq!((seen.src, seen.dst), (addr::pod(from), dst));
}

#[test]
fn the_way_out_follows_from_the_source() {
    let mut world = world();
    leaves_by(&mut world, 0, OUTSIDE, 0);
    leaves_by(&mut world, 1, OUTSIDE, 0);
    leaves_by(&mut world, 2, OUTSIDE, 1);
    // A pod on no ENI goes where routes lead: to the node's stack.
    let sent = addr::from_pod(3, OUTSIDE).udp(1000, 53, b"which way");
    assert_eq!(world.send(addr::pod_port(3), &sent).unwrap().0, addr::HOST);
    // A route through another uplink does not count for a pod on an ENI.
    let prefix = Prefix::new(Ip::v4(OUTSIDE), 24).unwrap();
    let hop = NextHop::new(NextHopKind::Gateway, Ip::v4(addr::node(0)), addr::UPLINK);
    world.apply(Op::SetRoute(prefix, hop));
    leaves_by(&mut world, 0, OUTSIDE, 0);
    assert_eq!(world.send(addr::pod_port(3), &sent).unwrap().0, addr::UPLINK);
    world.finish();
}

#[test]
fn the_node_its_pods_and_tunnels_are_reached_as_by_any_pod() {
    let mut world = world();
    for (dst, out) in [
        (addr::pod(1), addr::pod_port(1)),
        (addr::pod(2), addr::pod_port(2)),
        (addr::pod(3), addr::pod_port(3)),
        (addr::NODE, addr::HOST),
        ([169, 254, 20, 10], addr::HOST),
        (addr::remote_pod(1, 7), addr::UPLINK),
    ] {
        let sent = addr::from_pod(0, dst).udp(1000, 53, b"which way");
        assert_eq!(world.send(addr::pod_port(0), &sent).map(|(port, _)| port), Some(out), "{dst:?}");
    }
    let prefix = Prefix::new(Ip::v4(OUTSIDE), 24).unwrap();
    world.apply(Op::SetRoute(prefix, NextHop::new(NextHopKind::Blackhole, Ip::UNSPECIFIED, PortId::NONE)));
    assert!(world.send(addr::pod_port(0), &addr::from_pod(0, OUTSIDE).udp(1, 2, b"")).is_none());
    assert_eq!(drops(&world, DropReason::Blackhole), 1);
    world.finish();
}

#[test]
fn a_service_is_translated_first_and_its_address_stays_on_the_node() {
    let mut world = world();
    world.set_service(VIP, 80, proto::UDP, 1, &[(OUTSIDE, 8080)]);
    let (eni_port, eni_mac, _, gateway_mac) = eni(1);
    let (port, out) = world.send(addr::pod_port(2), &addr::from_pod(2, VIP).udp(1000, 80, b"ask")).unwrap();
    assert_eq!((port, look(&out).src, look(&out).dst), (eni_port, addr::pod(2), OUTSIDE));
    let reply =
        packet::Headers { dst_mac: eni_mac, src_mac: gateway_mac, src: OUTSIDE, dst: addr::pod(2), ttl: 60 };
    let (port, out) = world.send(eni_port, &reply.udp(8080, 1000, b"answer")).unwrap();
    assert_eq!((port, look(&out).src, look(&out).dst), (addr::pod_port(2), VIP, addr::pod(2)));
    world.finish();
}

#[test]
fn a_pod_on_an_eni_keeps_its_address_where_others_get_the_nodes() {
    let mut world = world();
    world.open_outside();
    // With a default route through the node's uplink, too.
    leaves_by(&mut world, 0, OUTSIDE, 0);
    let sent = addr::from_pod(3, OUTSIDE).udp(1000, 53, b"which way");
    let (port, out) = world.send(addr::pod_port(3), &sent).unwrap();
    assert_eq!((port, look(&out).src), (addr::UPLINK, addr::NODE));
    // Answers come by the ENI although the route back to the station leads elsewhere.
    let (port, dst_mac, _, src_mac) = eni(0);
    let back = packet::Headers { dst_mac, src_mac, src: OUTSIDE, dst: addr::pod(0), ttl: 60 };
    assert_eq!(world.send(port, &back.udp(53, 1000, b"back")).unwrap().0, addr::pod_port(0));
    // A service that masquerades its clients.
    let service = Service { id: 1, flags: Service::MASQUERADE | Service::EXTERNAL, affinity_timeout_s: 0 };
    for (id, backend) in [(1, OUTSIDE), (2, addr::pod(1))] {
        let key = ServiceKey::new(Ip::v4(VIP), 80 + id, proto::UDP);
        world.set_service_record(key, Service { id: id.into(), ..service }, &[(Ip::v4(backend), 8080)]);
        let ask = |pod| addr::from_pod(pod, VIP).udp(1000, 80 + id, b"ask");
        let (_, out) = world.send(addr::pod_port(0), &ask(0)).unwrap();
        assert_eq!((look(&out).src, look(&out).dst), (addr::pod(0), backend));
        let (_, out) = world.send(addr::pod_port(3), &ask(3)).unwrap();
        assert!([addr::NODE, addr::ROUTER].contains(&look(&out).src), "{:?}", look(&out).src);
    }
    // Itself it reaches by another address, or it would answer itself.
    let (port, out) = world.send(addr::pod_port(1), &addr::from_pod(1, VIP).udp(1000, 82, b"self")).unwrap();
    assert_eq!((port, look(&out).src), (addr::pod_port(1), addr::ROUTER));
    world.finish();
}

#[test]
fn a_pod_with_a_nic_of_its_own_meets_services_with_the_nodes_address() {
    let mut world = world();
    world.open_outside();
    for pod in [4, 5] {
        let endpoint =
            Endpoint { uplink: Endpoint::OWN_NIC, ..Endpoint::new(addr::pod_port(pod), addr::pod_mac(pod)) };
        world.apply(Op::SetEndpoint(Ip::v4(addr::pod(pod)), endpoint));
    }
    let in_cluster = Prefix::new(Ip::v4(addr::pod(0)), 16).unwrap();
    let record =
        Masquerade::new(Masquerade::V4, &[in_cluster, Prefix::new(Ip::v4(OUTSIDE), 24).unwrap()]).unwrap();
    world.apply(Op::SetMasquerade(Box::new(record)));
    // To a pod that the network knows, though masquerading leaves such addresses alone; and to one of this node.
    for (id, backend, (out_port, src)) in [
        (1, OUTSIDE, (addr::UPLINK, addr::NODE)),
        (2, addr::pod(5), (addr::pod_port(5), addr::ROUTER)),
        (3, addr::pod(4), (addr::pod_port(4), addr::ROUTER)),
    ] {
        world.set_service(VIP, 80 + id, proto::UDP, id.into(), &[(backend, 8080)]);
        let ask = addr::from_pod(4, VIP).udp(1000, 80 + id, b"ask");
        let (port, out) = world.send(addr::pod_port(4), &ask).unwrap();
        assert_eq!((port, look(&out).src, look(&out).dst), (out_port, src, backend), "{backend:?}");
    }
    // A client from outside whose address a service leaves alone, but for a backend that would answer past the engine.
    let service = Service { id: 9, flags: Service::EXTERNAL, affinity_timeout_s: 0 };
    for (port, backend, src) in [(90, addr::pod(3), OUTSIDE), (91, addr::pod(5), addr::ROUTER)] {
        let key = ServiceKey::new(Ip::v4(VIP), port, proto::UDP);
        world.set_service_record(key, Service { id: port.into(), ..service }, &[(Ip::v4(backend), 8080)]);
        let (dst_mac, src_mac) = (addr::UPLINK_MAC, addr::EXIT_MAC);
        let ask = packet::Headers { dst_mac, src_mac, src: OUTSIDE, dst: VIP, ttl: 60 };
        let (_, out) = world.send(addr::UPLINK, &ask.udp(1000, port, b"ask")).unwrap();
        assert_eq!((look(&out).src, look(&out).dst), (src, backend));
    }
    world.finish();
}

#[test]
fn a_pod_with_a_nic_of_its_own_reaches_far_backends_by_the_stack_where_nobody_else_is_masqueraded() {
    let mut world = world();
    world.open_outside();
    world.apply(Op::SetMasquerade(Box::new(Masquerade::new(0, &[]).unwrap())));
    let everything = Prefix::new(Ip::v4([0; 4]), 0).unwrap();
    let by_the_stack = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, addr::UPLINK);
    world.apply(Op::SetRoute(everything, by_the_stack));
    let endpoint =
        Endpoint { uplink: Endpoint::OWN_NIC, ..Endpoint::new(addr::pod_port(4), addr::pod_mac(4)) };
    world.apply(Op::SetEndpoint(Ip::v4(addr::pod(4)), endpoint));
    world.set_service(VIP, 80, proto::UDP, 1, &[(OUTSIDE, 8080)]);
    let (port, out) = world.send(addr::pod_port(4), &addr::from_pod(4, VIP).udp(1000, 80, b"ask")).unwrap();
    let asked = look(&out);
    assert_eq!((port, asked.src, asked.dst), (addr::HOST, addr::NODE, OUTSIDE));
    let back = packet::Headers {
        dst_mac: addr::UPLINK_MAC,
        src_mac: addr::EXIT_MAC,
        src: OUTSIDE,
        dst: addr::NODE,
        ttl: 60,
    };
    let (port, out) = world.send(addr::UPLINK, &back.udp(8080, asked.sport, b"answer")).unwrap();
    assert_eq!((port, look(&out).src, look(&out).dst), (addr::pod_port(4), VIP, addr::pod(4)));
    // Other pods keep their address, as they are told.
    let (port, out) = world.send(addr::pod_port(3), &addr::from_pod(3, OUTSIDE).udp(1, 2, b"")).unwrap();
    assert_eq!((port, look(&out).src), (addr::HOST, addr::pod(3)));
    world.finish();
}

#[test]
fn an_address_is_taken_from_its_own_uplink_only() {
    let mut world = world();
    let from = |n: u16, pod| {
        let (_, dst_mac, _, src_mac) = eni(n);
        let headers = packet::Headers { dst_mac, src_mac, src: OUTSIDE, dst: addr::pod(pod), ttl: 60 };
        headers.udp(8080, 1000, b"hello")
    };
    assert_eq!(world.send(eni(0).0, &from(0, 1)).unwrap().0, addr::pod_port(1));
    assert!(world.send(eni(1).0, &from(1, 1)).is_none());
    assert_eq!(drops(&world, DropReason::NotForUs), 1);
    // A pod on no ENI is reached from each.
    assert_eq!(world.send(eni(1).0, &from(1, 3)).unwrap().0, addr::pod_port(3));
    world.finish();
}

#[test]
fn without_its_uplink_or_gateway_nothing_leaves_elsewhere() {
    let mut world = world();
    let (port, _, gateway, _) = eni(0);
    let sent = addr::from_pod(0, OUTSIDE).udp(1000, 53, b"which way");
    world.apply(Op::DelNeighbour(NeighbourKey { ip: gateway, port, reserved: 0 }));
    assert!(world.send(addr::pod_port(0), &sent).is_none());
    world.apply(Op::DelPort(port));
    assert!(world.send(addr::pod_port(0), &sent).is_none());
    assert_eq!((drops(&world, DropReason::NoNeighbour), drops(&world, DropReason::PortDown)), (1, 1));
    leaves_by(&mut world, 2, OUTSIDE, 1);
    world.finish();
}
