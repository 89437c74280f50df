//! Source translation through `process` (docs/nat.md), each rule by an example; invariants I1 and I2 at the end of every
//! test.

mod common;

use common::drops;
use common::tuples::{Place, Step, ip, send};
use fairway_dataplane::conntrack::{Conntrack, Direction, Timeouts, Tuple};
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::proto;
use fairway_tables::stats::Counter;
use fairway_tables::{
    DropReason, Ip, Masquerade, NextHop, NextHopKind, Op, PortId, Prefix, Service, ServiceKey,
};

const FAMILIES: [bool; 2] = [true, false];

fn world() -> World {
    let mut world = World::new(WorldConfig::default());
    world.open_outside();
    world
}

fn with_ports(first: u16, last: u16) -> World {
    let mut world = world();
    let settings = world.reader.view().settings();
    world.apply(Op::SetSettings(fairway_tables::Settings { snat_first: first, snat_last: last, ..settings }));
    world
}

fn vip(n: u8, is_v4: bool) -> Ip {
    ip([10, 96, 0, n], [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n], is_v4)
}

fn pod(n: u16, is_v4: bool) -> Ip {
    ip(addr::pod(n), addr::pod6(n), is_v4)
}

fn remote(n: u8, is_v4: bool) -> Ip {
    ip(addr::remote_pod(n, 7), addr::remote_pod6(n, 7), is_v4)
}

fn outside(n: u8, is_v4: bool) -> Ip {
    ip(addr::outside(n), addr::outside6(n), is_v4)
}

fn node(is_v4: bool) -> Ip {
    ip(addr::NODE, addr::NODE6, is_v4)
}

fn router(is_v4: bool) -> Ip {
    ip(addr::ROUTER, addr::ROUTER6, is_v4)
}

fn tuple(src: Ip, sport: u16, dst: Ip, dport: u16, proto: u8) -> Tuple {
    Tuple { src, dst, sport, dport, proto }
}

fn echo(src: Ip, dst: Ip, identifier: u16) -> Tuple {
    tuple(src, identifier, dst, identifier, if src.is_v4() { proto::ICMP } else { proto::ICMPV6 })
}

fn is_given(port: u16) -> bool {
    (addr::SNAT_PORTS.0..=addr::SNAT_PORTS.1).contains(&port)
}

/// Begins a connection, has it answered, and says how its packets leave.
fn exchange(world: &mut World, client: Place, arrives: &Tuple, server: Place) -> Tuple {
    let (place, leaves) = send(world, client, arrives, Step::Open).expect("forwarded");
    assert_eq!(place, server);
    answered(world, client, arrives, server, &leaves);
    leaves
}

/// An answer reaches the client as from whom it asked, and the connection goes on as it began.
fn answered(world: &mut World, client: Place, arrives: &Tuple, server: Place, leaves: &Tuple) {
    let answer = send(world, server, &leaves.reversed(), Step::Answer);
    assert_eq!(answer, Some((client, arrives.reversed())));
    assert_eq!(send(world, client, arrives, Step::More), Some((server, *leaves)));
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for (is_v4, protocol) in
        [(true, proto::TCP), (true, proto::UDP), (false, proto::TCP), (false, proto::UDP)]
    {
        let mut world = world();
        let key = ServiceKey::new(vip(1, is_v4), 80, protocol);
        world.set_service_at(key, 1, &[(pod(0, is_v4), 8080)]);
        let arrives = tuple(pod(0, is_v4), 40_000, key.ip, 80, protocol);
        let leaves = exchange(&mut world, Place::Pod(0), &arrives, Place::Pod(0));
        assert_eq!(leaves, tuple(router(is_v4), 40_000, pod(0, is_v4), 8080, protocol));
        world.finish();
    }
}

#[test]
fn a_service_that_masquerades_shows_its_backends_an_address_that_they_answer_to() {
    for is_v4 in FAMILIES {
        let mut world = world();
        let external = |n: u16| ServiceKey::new(node(is_v4), 30_000 + n, proto::TCP);
        let service = |id| Service { id, flags: Service::MASQUERADE, affinity_timeout_s: 0 };
        let backends = [(pod(1, is_v4), 80), (remote(2, is_v4), 80), (outside(9, is_v4), 80)];
        for (n, backend) in backends.into_iter().enumerate() {
            world.set_service_record(external(n as u16), service(n as u32), &[backend]);
        }
        let places = [Place::Pod(1), Place::Node(2), Place::Wire];
        for (n, (place, (backend, port))) in places.into_iter().zip(backends).enumerate() {
            let arrives = tuple(outside(1, is_v4), 50_000, node(is_v4), 30_000 + n as u16, proto::TCP);
            let leaves = exchange(&mut world, Place::Wire, &arrives, place);
            assert_eq!((leaves.dst, leaves.dport), (backend, port));
            if place == Place::Wire {
                assert_eq!(leaves.src, node(is_v4), "outside the cluster it is the node that asks");
                assert!(is_given(leaves.sport), "a port that comes back to the engine");
            } else {
                assert_eq!((leaves.src, leaves.sport), (router(is_v4), 50_000), "every pod finds back there");
            }
        }
        world.finish();
    }
}

#[test]
fn what_the_nodes_own_stack_serves_is_reached_through_services() {
    for is_v4 in FAMILIES {
        let mut world = world();
        let key = ServiceKey::new(vip(1, is_v4), 443, proto::TCP);
        world.set_service_at(key, 1, &[(node(is_v4), 6443)]);
        // From the node itself, whose stack would answer itself.
        let arrives = tuple(router(is_v4), 40_000, key.ip, 443, proto::TCP);
        let leaves = exchange(&mut world, Place::Host, &arrives, Place::Host);
        let own = ip(addr::GATEWAY, addr::HOST6, is_v4);
        assert_eq!(leaves, tuple(own, 40_000, node(is_v4), 6443, proto::TCP));
        // From pods of this node and of others, which the stack answers through the engine.
        for (client, src) in [(Place::Pod(0), pod(0, is_v4)), (Place::Node(1), remote(1, is_v4))] {
            let arrives = tuple(src, 40_001, key.ip, 443, proto::TCP);
            let leaves = exchange(&mut world, client, &arrives, Place::Host);
            assert_eq!(leaves, tuple(src, 40_001, node(is_v4), 6443, proto::TCP));
        }
        world.finish();
    }
}

#[test]
fn pods_reach_stations_outside_with_the_nodes_address() {
    for (is_v4, protocol) in
        [(true, proto::TCP), (true, proto::UDP), (false, proto::TCP), (false, proto::UDP)]
    {
        let mut world = world();
        let arrives = tuple(pod(0, is_v4), 40_000, outside(1, is_v4), 443, protocol);
        let leaves = exchange(&mut world, Place::Pod(0), &arrives, Place::Wire);
        assert_eq!((leaves.src, leaves.dst, leaves.dport), (node(is_v4), outside(1, is_v4), 443));
        assert!(is_given(leaves.sport));
        // Another pod with the same port is told from it.
        let other = tuple(pod(1, is_v4), 40_000, outside(1, is_v4), 443, protocol);
        assert_ne!(exchange(&mut world, Place::Pod(1), &other, Place::Wire), leaves);
        world.finish();
    }
}

#[test]
fn stations_on_the_uplinks_link_see_the_nodes_address_and_answer_to_it() {
    for is_v4 in FAMILIES {
        let mut world = world();
        // The stack delivers to them, since it alone knows their Ethernet addresses.
        let link = Prefix::new(outside(0, is_v4), if is_v4 { 24 } else { 64 }).unwrap();
        let by_the_stack = |port| NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, port);
        world.apply(Op::SetRoute(link, by_the_stack(addr::UPLINK)));
        let key = ServiceKey::new(vip(1, is_v4), 80, proto::TCP);
        world.set_service_at(key, 1, &[(outside(1, is_v4), 8080)]);
        let clients = [(Place::Pod(0), pod(0, is_v4)), (Place::Host, router(is_v4))];
        let direct = (clients[0], outside(1, is_v4), 8080, 40_000);
        for ((client, src), dst, port, sport) in
            [direct, (clients[0], key.ip, 80, 40_001), (clients[1], key.ip, 80, 40_002)]
        {
            let arrives = tuple(src, sport, dst, port, proto::TCP);
            let (place, leaves) = send(&mut world, client, &arrives, Step::Open).expect("forwarded");
            assert_eq!((place, leaves.src), (Place::Host, node(is_v4)), "{arrives:?}");
            assert_eq!((leaves.dst, leaves.dport), (outside(1, is_v4), 8080));
            assert!(is_given(leaves.sport), "a port that comes back to the engine");
            let answer = send(&mut world, Place::Wire, &leaves.reversed(), Step::Answer);
            assert_eq!(answer, Some((client, arrives.reversed())));
            assert_eq!(send(&mut world, client, &arrives, Step::More), Some((Place::Host, leaves)));
        }
        // What the stack delivers elsewhere keeps the pod's address.
        world.apply(Op::SetRoute(link, by_the_stack(PortId::NONE)));
        let arrives = tuple(pod(1, is_v4), 40_003, outside(2, is_v4), 8080, proto::TCP);
        assert_eq!(send(&mut world, Place::Pod(1), &arrives, Step::Open), Some((Place::Host, arrives)));
        world.finish();
    }
}

#[test]
fn echoes_leave_with_an_identifier_of_their_own() {
    for is_v4 in FAMILIES {
        let mut world = world();
        let mut seen = Vec::new();
        for n in 0..3 {
            // All pods have the same identifier.
            let arrives = echo(pod(n, is_v4), outside(1, is_v4), 7);
            let leaves = exchange(&mut world, Place::Pod(n), &arrives, Place::Wire);
            assert_eq!((leaves.src, leaves.dst), (node(is_v4), outside(1, is_v4)));
            assert!(leaves.sport == leaves.dport && is_given(leaves.sport) && !seen.contains(&leaves.sport));
            seen.push(leaves.sport);
        }
        world.finish();
    }
}

#[test]
fn destinations_in_the_cluster_or_listed_see_the_pods_own_address() {
    for is_v4 in FAMILIES {
        let mut world = world();
        let arrives = tuple(pod(0, is_v4), 40_000, remote(1, is_v4), 80, proto::TCP);
        assert_eq!(exchange(&mut world, Place::Pod(0), &arrives, Place::Node(1)), arrives);
        // Without a route of its own it goes to the same router, but it is listed.
        let listed = ip([10, 250, 0, 1], [0xfd, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], is_v4);
        let arrives = tuple(pod(0, is_v4), 40_000, listed, 80, proto::TCP);
        assert_eq!(exchange(&mut world, Place::Pod(0), &arrives, Place::Wire), arrives);
        world.finish();
    }
    let mut world = world();
    world.apply(Op::SetMasquerade(Box::new(Masquerade::new(Masquerade::V6, &[]).unwrap())));
    for is_v4 in FAMILIES {
        let arrives = tuple(pod(0, is_v4), 40_000, outside(1, is_v4), 80, proto::TCP);
        let (_, leaves) = send(&mut world, Place::Pod(0), &arrives, Step::Open).unwrap();
        assert_eq!(leaves == arrives, is_v4, "only the families that are asked for");
    }
    world.finish();
}

#[test]
fn connections_whose_replies_would_look_alike_are_told_apart_by_their_source_port() {
    for is_v4 in FAMILIES {
        let mut world = world();
        let backend = remote(1, is_v4);
        let keys = [1, 2].map(|n| ServiceKey::new(vip(n, is_v4), 80, proto::TCP));
        for (n, key) in keys.into_iter().enumerate() {
            world.set_service_at(key, n as u32, &[(backend, 8080)]);
        }
        let direct = tuple(pod(0, is_v4), 40_000, backend, 8080, proto::TCP);
        let through = keys.map(|key| tuple(pod(0, is_v4), 40_000, key.ip, 80, proto::TCP));
        let mut taken = Vec::new();
        for arrives in [through[0], direct, through[1]] {
            let leaves = exchange(&mut world, Place::Pod(0), &arrives, Place::Node(1));
            assert_eq!((leaves.src, leaves.dst, leaves.dport), (pod(0, is_v4), backend, 8080));
            assert_eq!(leaves.sport == 40_000, taken.is_empty(), "the first keeps its port");
            assert!(!taken.contains(&leaves));
            taken.push(leaves);
        }
        // All of them go on.
        for (arrives, leaves) in [through[0], direct, through[1]].iter().zip(&taken) {
            answered(&mut world, Place::Pod(0), arrives, Place::Node(1), leaves);
        }
        world.finish();
    }
}

#[test]
fn a_senders_port_is_the_same_wherever_it_sends_to() {
    let mut world = world();
    for protocol in [proto::UDP, proto::TCP] {
        let mut ports = Vec::new();
        for n in 1..=200 {
            let arrives = tuple(pod(0, true), 40_000, outside(n, true), 53, protocol);
            ports.push(exchange(&mut world, Place::Pod(0), &arrives, Place::Wire).sport);
        }
        assert!(ports.iter().all(|port| *port == ports[0]), "RFC 4787 REQ-1, RFC 5382 REQ-1: {ports:?}");
    }
    world.finish();
}

#[test]
fn ports_that_run_out_are_counted_and_only_towards_one_destination() {
    let mut world = with_ports(61_000, 61_007);
    let to = |sport, n| tuple(pod(0, true), sport, outside(n, true), 443, proto::UDP);
    let mut ports: Vec<u16> =
        (0..8).map(|n| exchange(&mut world, Place::Pod(0), &to(40_000 + n, 1), Place::Wire).sport).collect();
    ports.sort_unstable();
    assert_eq!(ports, (61_000..=61_007).collect::<Vec<_>>(), "every port is found");
    assert_eq!(send(&mut world, Place::Pod(0), &to(50_000, 1), Step::Open), None);
    assert_eq!(drops(&world, DropReason::SnatPortsExhausted), 1);
    exchange(&mut world, Place::Pod(0), &to(50_000, 2), Place::Wire);
    // As soon as a connection is forgotten its port serves another one.
    world.now.seconds += Timeouts::default().udp_stream_s + 1;
    world.worker.conntrack.expire(&mut 0, 100_000, world.now.seconds);
    exchange(&mut world, Place::Pod(0), &to(50_000, 1), Place::Wire);
    world.finish();
}

#[test]
fn a_port_of_a_connection_that_is_over_is_given_again_when_no_other_is_left() {
    let mut world = with_ports(61_000, 61_000);
    let first = tuple(pod(0, true), 40_000, outside(1, true), 443, proto::TCP);
    let leaves = exchange(&mut world, Place::Pod(0), &first, Place::Wire);
    let second = tuple(pod(1, true), 40_000, outside(1, true), 443, proto::TCP);
    assert_eq!(send(&mut world, Place::Pod(1), &second, Step::Open), None, "it lives");
    let found = world.worker.conntrack.lookup(&first).unwrap();
    let reset = fairway_dataplane::wire::tcp_flags::RST;
    world.worker.conntrack.update(found.conn, proto::TCP, found.direction, reset, world.now.seconds);
    assert_eq!(exchange(&mut world, Place::Pod(1), &second, Place::Wire), leaves);
    assert_eq!(world.worker.conntrack.lookup(&first), None);
    world.finish();
}

#[test]
fn a_server_does_not_meet_a_tuple_again_that_it_may_remember_even_from_the_same_client() {
    let mut world = world();
    for n in [1, 2] {
        world.set_service_at(
            ServiceKey::new(vip(n, true), 80, proto::TCP),
            n.into(),
            &[(pod(1, true), 8080)],
        );
    }
    let first = tuple(pod(0, true), 40_000, vip(1, true), 80, proto::TCP);
    let second = Tuple { dst: vip(2, true), ..first };
    let leaves = exchange(&mut world, Place::Pod(0), &first, Place::Pod(1));
    assert_eq!((leaves.src, leaves.sport), (pod(0, true), 40_000));
    for direction in [Direction::Reply, Direction::Original] {
        let conn = world.worker.conntrack.lookup(&first).unwrap().conn;
        let fin = fairway_dataplane::wire::tcp_flags::FIN;
        world.worker.conntrack.update(conn, proto::TCP, direction, fin, world.now.seconds);
    }
    // Through another address: the server still waits for what the first may have left behind.
    let other = exchange(&mut world, Place::Pod(0), &second, Place::Pod(1));
    assert!(is_given(other.sport), "{other:?}");
    // The client itself may begin again: it knows what it sent.
    world.worker.flows.clear();
    assert_eq!(exchange(&mut world, Place::Pod(0), &first, Place::Pod(1)), leaves);
    world.finish();
}

#[test]
fn what_belongs_to_no_connection_is_the_hosts_and_leaves_no_trace() {
    let mut world = world();
    let arrives = tuple(pod(0, true), 40_000, outside(1, true), 53, proto::UDP);
    let (_, leaves) = send(&mut world, Place::Pod(0), &arrives, Step::Open).unwrap();
    let found = world.worker.conntrack.lookup(&arrives).unwrap();
    assert!(world.worker.conntrack.remove(found.conn));
    world.worker.flows.clear();
    for protocol in [proto::UDP, proto::TCP] {
        let stray = Tuple { proto: protocol, ..leaves.reversed() };
        for step in [Step::Open, Step::Answer, Step::More] {
            assert_eq!(send(&mut world, Place::Wire, &stray, step), Some((Place::Host, stray)));
        }
    }
    let stray = echo(outside(1, true), node(true), 62_000);
    assert_eq!(send(&mut world, Place::Wire, &stray, Step::Answer), Some((Place::Host, stray)));
    assert_eq!(world.worker.conntrack.summary().used, 0, "the host keeps its own account");
    // The same pod gets the same port again, and now its answers come to it at once.
    assert_eq!(exchange(&mut world, Place::Pod(0), &arrives, Place::Wire), leaves);
    world.finish();
}

#[test]
fn fragments_leave_with_the_source_of_their_datagram_in_any_order() {
    let mut world = world();
    let node = world.reader.view().settings().outside_ip.as_v4().unwrap();
    let large = addr::from_pod(0, addr::outside(1)).udp(40_000, 53, &[7; 3000]);
    let parts = packet::fragments(&large, 1000);
    let last_first: Vec<_> = parts.iter().rev().cloned().collect();
    for order in [parts, last_first] {
        let out = world.burst(addr::pod_port(0), &order);
        assert_eq!(out.len(), order.len());
        for (_, frame) in out {
            assert_eq!((&frame[26..30], &frame[30..34]), (&node[..], &addr::outside(1)[..]));
        }
    }
    let inside = addr::from_pod(0, addr::pod(1)).udp(40_000, 53, &[7; 3000]);
    for part in packet::fragments(&inside, 1000) {
        assert_eq!(world.send(addr::pod_port(0), &part).map(|(port, _)| port), Some(addr::pod_port(1)));
    }
    world.finish();
}

#[test]
fn an_address_that_the_node_lost_is_not_used_any_further() {
    let mut world = world();
    let arrives = tuple(pod(0, true), 40_000, outside(1, true), 53, proto::UDP);
    exchange(&mut world, Place::Pod(0), &arrives, Place::Wire);
    let settings = world.reader.view().settings();
    let other = Ip::v4([192, 168, 77, 99]);
    world.apply(Op::SetSettings(fairway_tables::Settings { outside_ip: other, ..settings }));
    assert_eq!(exchange(&mut world, Place::Pod(0), &arrives, Place::Wire).src, other);
    world.apply(Op::SetSettings(fairway_tables::Settings { outside_ip: Ip::UNSPECIFIED, ..settings }));
    assert_eq!(send(&mut world, Place::Pod(0), &arrives, Step::More), None);
    assert_eq!(drops(&world, DropReason::SnatNoAddress), 1);
    world.finish();
}

#[test]
fn the_next_process_goes_on_with_the_translations_of_the_former_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("conntrack");
    let open = || Conntrack::open(&file, 1024, Timeouts::default()).unwrap();
    let to = |n, host| tuple(pod(n, true), 40_000, outside(host, true), 443, proto::TCP);
    let mut world = world();
    world.worker.conntrack = open();
    let first = exchange(&mut world, Place::Pod(0), &to(0, 1), Place::Wire);
    // Another process: its memory is fresh, the file is not.
    world.worker.conntrack = Conntrack::heap(64, Timeouts::default()).unwrap();
    world.worker.conntrack = open();
    world.worker.flows.clear();
    answered(&mut world, Place::Pod(0), &to(0, 1), Place::Wire, &first);
    assert_eq!(world.worker.counters.get(Counter::ConntrackNew), 1);
    // Its port is taken, and would be given to the same sender again.
    assert_ne!(exchange(&mut world, Place::Pod(1), &to(1, 1), Place::Wire).sport, first.sport);
    assert_eq!(exchange(&mut world, Place::Pod(0), &to(0, 2), Place::Wire).sport, first.sport);
    world.finish();
}
