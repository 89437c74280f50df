//! Services at the engine: which client gets which list of backends, source ranges, Maglev and session affinity. Invariants
//! I1 and I2 at the end of every test.

mod common;

use common::tuples::{Place, Step, association, frame, ip};
use common::{drops, look};
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::{icmp, proto, tcp_flags};
use fairway_tables::{Backend, DropReason, Ip, Op, PortId, Prefix, Service, ServiceKey, Targets};
use std::collections::BTreeSet;

const VIP: [u8; 4] = [10, 96, 0, 10];
const BALANCER: [u8; 4] = [203, 0, 113, 1];

fn backends(pods: &[u16]) -> Vec<Backend> {
    pods.iter().map(|n| Backend { ip: Ip::v4(addr::pod(*n)), port: 8080, flags: 0 }).collect()
}

fn set(world: &mut World, ip: [u8; 4], flags: u32, affinity_timeout_s: u32, targets: Targets) {
    for proto in [proto::TCP, proto::UDP, proto::SCTP] {
        let service = Service { id: u32::from(proto), flags, affinity_timeout_s };
        world.apply(Op::SetService(ServiceKey::new(Ip::v4(ip), 80, proto), service, targets.clone()));
    }
}

/// The pods that a pod's new connections reach, and how many reach none.
fn reached(
    world: &mut World,
    client: u16,
    vip: [u8; 4],
    ports: std::ops::Range<u16>,
) -> (BTreeSet<PortId>, usize) {
    let (mut pods, mut lost) = (BTreeSet::new(), 0);
    for sport in ports {
        let frame = addr::from_pod(client, vip).tcp(sport, 80, tcp_flags::SYN, &[]);
        match world.send(addr::pod_port(client), &frame) {
            Some((port, _)) => drop(pods.insert(port)),
            None => lost += 1,
        }
    }
    (pods, lost)
}

fn ports(pods: &[u16]) -> BTreeSet<PortId> {
    pods.iter().map(|n| addr::pod_port(*n)).collect()
}

#[test]
fn a_pod_uses_the_clusters_backends_of_a_local_service() {
    let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
    let targets = Targets { cluster: backends(&[1, 2]), local: backends(&[2]), ..Targets::default() };
    set(&mut world, BALANCER, Service::EXTERNAL | Service::LOCAL, 0, targets);
    assert_eq!(reached(&mut world, 0, BALANCER, 1000..1040), (ports(&[1, 2]), 0));
    world.finish();
}

#[test]
fn a_port_that_a_services_address_does_not_have_is_refused() {
    let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
    set(&mut world, VIP, 0, 0, backends(&[1]).into());
    let none = Service { id: 6, flags: 0, affinity_timeout_s: 0 };
    world.apply(Op::SetService(ServiceKey::no_port(Ip::v4(VIP)), none, Targets::default()));
    let headers = addr::from_pod(0, VIP);
    for (frame, answers) in [
        (headers.tcp(1000, 7, tcp_flags::SYN, &[]), true),
        (headers.udp(1000, 7, b"x"), true),
        (headers.around(47, b"GRE"), true),
        (headers.tcp(1000, 7, tcp_flags::RST, &[]), false),
    ] {
        match world.send(addr::pod_port(0), &frame) {
            Some((port, error)) => {
                let seen = look(&error);
                assert_eq!((port, seen.src, seen.dst), (addr::pod_port(0), addr::ROUTER, addr::pod(0)));
                assert!(answers && (error[34], error[35]) == (icmp::UNREACHABLE, 3), "port unreachable");
            }
            None => assert!(!answers),
        }
    }
    assert_eq!(drops(&world, DropReason::NoBackend), 3);
    assert_eq!(reached(&mut world, 0, VIP, 1000..1010), (ports(&[1]), 0), "its own port answers");
    world.finish();
}

#[test]
fn source_ranges_drop_clients_outside_them_and_say_so() {
    let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
    let [a, b] = [addr::pod(0), addr::pod(1)].map(|ip| format!("{}.{}.{}.{}/32", ip[0], ip[1], ip[2], ip[3]));
    let with = |ranges: &[&str]| Targets {
        source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        ..backends(&[2]).into()
    };
    let flags = Service::EXTERNAL | Service::SOURCE_RANGES;
    set(&mut world, BALANCER, flags, 0, with(&["192.0.2.0/24", &a]));
    assert_eq!(reached(&mut world, 0, BALANCER, 1000..1010), (ports(&[2]), 0));
    assert_eq!(reached(&mut world, 1, BALANCER, 1000..1010), (ports(&[]), 10));
    assert_eq!(drops(&world, DropReason::SourceRange), 10);
    // A running connection is not asked again; a new one is, as soon as the ranges change.
    set(&mut world, BALANCER, flags, 0, with(&[&b]));
    assert_eq!(reached(&mut world, 1, BALANCER, 2000..2010), (ports(&[2]), 0));
    assert_eq!(reached(&mut world, 0, BALANCER, 2000..2010), (ports(&[]), 10));
    // Without any endpoint anywhere those are refused whom the ranges admit.
    set(&mut world, BALANCER, flags, 0, Targets { cluster: vec![], ..with(&[&b]) });
    for (pod, reason) in [(0, DropReason::SourceRange), (1, DropReason::NoBackend)] {
        let before = drops(&world, reason);
        let _ = reached(&mut world, pod, BALANCER, 3000..3005);
        assert_eq!(drops(&world, reason) - before, 5, "{reason:?}");
    }
    world.finish();
}

#[test]
fn source_ranges_know_this_node_by_its_own_address_not_by_that_among_the_pods() {
    let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
    for is_v4 in [true, false] {
        let (balancer, router) = (ip(BALANCER, [0x20; 16], is_v4), ip(addr::ROUTER, addr::ROUTER6, is_v4));
        let own = ip(addr::NODE, addr::NODE6, is_v4);
        let list = vec![Backend { ip: ip(addr::pod(2), addr::pod6(2), is_v4), port: 8080, flags: 0 }];
        let tuple = |sport| Tuple { src: router, dst: balancer, sport, dport: 80, proto: proto::TCP };
        for (sport, range, is_admitted) in [(1000, router, false), (1001, own, true)] {
            let service =
                Service { id: 1, flags: Service::EXTERNAL | Service::SOURCE_RANGES, affinity_timeout_s: 0 };
            let source_ranges = vec![Prefix::host(range)];
            let targets = Targets { cluster: list.clone(), source_ranges, ..Targets::default() };
            world.apply(Op::SetService(ServiceKey::new(balancer, 80, proto::TCP), service, targets));
            let before = drops(&world, DropReason::SourceRange);
            let sent = world.send(addr::HOST, &frame(Place::Host, &tuple(sport), Step::Open));
            let port = sent.map(|(port, _)| port);
            assert_eq!(port, is_admitted.then_some(addr::pod_port(2)), "{range}");
            assert_eq!(drops(&world, DropReason::SourceRange) - before, u64::from(!is_admitted));
        }
    }
    world.finish();
}

#[test]
fn maglev_gives_a_flow_the_same_backend_on_every_node_and_after_every_start() {
    let choices = || {
        let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
        set(&mut world, VIP, Service::MAGLEV, 0, backends(&[1, 2, 3]).into());
        let chosen: Vec<_> =
            (1000..1100).map(|sport| reached(&mut world, 0, VIP, sport..sport + 1).0).collect();
        world.finish();
        chosen
    };
    let first = choices();
    assert_eq!(first, choices());
    assert_eq!(first.iter().flatten().copied().collect::<BTreeSet<_>>(), ports(&[1, 2, 3]));
}

#[test]
fn a_client_keeps_its_backend_over_connections_and_changes_until_its_time_is_over() {
    let mut world = World::new(WorldConfig { frames: 512, ..WorldConfig::default() });
    set(&mut world, VIP, 0, 60, backends(&[1, 2, 3]).into());
    let (first, lost) = reached(&mut world, 0, VIP, 1000..1050);
    assert_eq!((first.len(), lost), (1, 0), "every connection of the client goes one way");
    let chosen = first.first().unwrap().0 - addr::pod_port(0).0;
    let others: Vec<u16> = (1..=3).filter(|n| *n != chosen).collect();

    // Others come and go.
    set(&mut world, VIP, 0, 60, backends(&[chosen]).into());
    set(&mut world, VIP, 0, 60, backends(&[1, 2, 3]).into());
    world.now.seconds += 59;
    assert_eq!(reached(&mut world, 0, VIP, 2000..2050).0, first);
    // The clock began anew with those connections.
    world.now.seconds += 59;
    assert_eq!(reached(&mut world, 0, VIP, 3000..3001).0, first);
    // Its own goes: another is chosen, and kept when the first comes back.
    set(&mut world, VIP, 0, 60, backends(&others).into());
    let second = reached(&mut world, 0, VIP, 4000..4050).0;
    assert!(second.len() == 1 && second != first, "{second:?}");
    set(&mut world, VIP, 0, 60, backends(&[1, 2, 3]).into());
    assert_eq!(reached(&mut world, 0, VIP, 5000..5050).0, second);
    world.now.seconds += 60;
    let mut met = BTreeSet::new();
    for sport in 6000..6040 {
        world.now.seconds += 60;
        met.extend(reached(&mut world, 0, VIP, sport..sport + 1).0);
    }
    assert_eq!(met, ports(&[1, 2, 3]), "too late each time");
    world.finish();
}

#[test]
fn clients_are_remembered_apart_and_so_are_services() {
    let mut world = World::new(WorldConfig { pods: 42, frames: 512, ..WorldConfig::default() });
    set(&mut world, VIP, 0, 60, backends(&[40, 41]).into());
    let mut met = BTreeSet::new();
    for client in 0..40 {
        let (pods, lost) = reached(&mut world, client, VIP, 1000..1010);
        assert_eq!((pods.len(), lost), (1, 0));
        met.extend(pods);
    }
    assert_eq!(met, ports(&[40, 41]), "forty coins fall on one side once in 10^11 runs");
    world.finish();
}

#[test]
fn sctp_is_translated_with_a_right_checksum_both_ways() {
    let mut world = World::new(WorldConfig::default());
    set(&mut world, VIP, 0, 0, backends(&[1]).into());
    let packet = association;
    let frame = addr::from_pod(0, VIP).around(proto::SCTP, &packet(5000, 80));
    for _ in 0..2 {
        let (port, out) = world.send(addr::pod_port(0), &frame).expect("forwarded");
        assert_eq!((port, look(&out).dst), (addr::pod_port(1), addr::pod(1)));
        assert_eq!(&out[34..], packet(5000, 8080), "ports and checksum");
    }
    let back = addr::from_pod(1, addr::pod(0)).around(proto::SCTP, &packet(8080, 5000));
    let (port, out) = world.send(addr::pod_port(1), &back).expect("the reply");
    assert_eq!((port, look(&out).src), (addr::pod_port(0), VIP));
    assert_eq!(&out[34..], packet(80, 5000));
    world.finish();
}
