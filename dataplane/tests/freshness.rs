//! Which flows are walked again when the tables change: those that the change concerns, and no others.

use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::proto;
use fairway_tables::stats::Counter;
use fairway_tables::{Ip, Mac, Neighbour, NeighbourKey, Op, ServiceKey};

const OWN: [u8; 4] = [10, 96, 0, 10];
const OTHER: [u8; 4] = [10, 96, 0, 11];

fn world() -> World {
    let mut world =
        World::new(WorldConfig { pods: 4, nodes: 4, flows: 1024, connections: 1024, frames: 256 });
    world.set_service(OWN, 80, proto::UDP, 7, &[(addr::remote_pod(1, 5), 8080)]);
    world.set_service(OTHER, 80, proto::UDP, 8, &[(addr::remote_pod(2, 5), 8080)]);
    world
}

/// Sends one packet of pod 0 to the service; which node it went to, if it went anywhere.
fn send(world: &mut World) -> Option<u8> {
    let frame = addr::from_pod(0, OWN).udp(4000, 80, b"x");
    world.send(addr::pod_port(0), &frame).map(|(_, out)| out[14 + 19])
}

fn walks(world: &World) -> u64 {
    world.worker.counters.get(Counter::TableWalks)
}

fn node_octet(n: u8) -> u8 {
    addr::node(n)[3]
}

#[test]
fn a_change_of_another_service_leaves_a_flow_a_hit() {
    let mut world = world();
    assert_eq!(send(&mut world), Some(node_octet(1)));
    for round in 0..8200 {
        world.set_service(OTHER, 80, proto::UDP, 8, &[(addr::remote_pod(round as u8 % 4, 9), 8080)]);
        assert_eq!(send(&mut world), Some(node_octet(1)));
    }
    assert_eq!((walks(&world), world.worker.counters.get(Counter::FlowMisses)), (0, 1));
    world.finish();
}

#[test]
fn a_change_of_its_own_service_or_of_the_way_walks_a_flow_once() {
    let mut world = world();
    send(&mut world);
    let two = [(addr::remote_pod(1, 5), 8080), (addr::remote_pod(2, 5), 8080)];
    world.set_service(OWN, 80, proto::UDP, 7, &two);
    (0..3).for_each(|_| assert_eq!(send(&mut world), Some(node_octet(1))));
    assert_eq!(walks(&world), 1);
    let key = NeighbourKey { ip: Ip::v4(addr::node(1)), port: addr::UPLINK, reserved: 0 };
    let mac = Mac([2, 9, 9, 9, 9, 9]);
    world.apply(Op::SetNeighbour(key, Neighbour { mac, reserved: 0 }));
    let frame = addr::from_pod(0, OWN).udp(4000, 80, b"x");
    let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
    assert_eq!(out[..6], mac.0);
    assert_eq!(walks(&world), 2);
    world.finish();
}

#[test]
fn a_flow_whose_backend_left_is_bound_anew_also_over_a_time_without_the_service() {
    let mut world = world();
    send(&mut world);
    world.set_service(OWN, 80, proto::UDP, 7, &[(addr::remote_pod(3, 5), 8080)]);
    assert_eq!(send(&mut world), Some(node_octet(3)));
    world.apply(Op::DelService(ServiceKey::new(Ip::v4(OWN), 80, proto::UDP)));
    assert_eq!(send(&mut world), Some(node_octet(3)), "a known conversation goes on");
    world.set_service(OWN, 80, proto::UDP, 99, &[(addr::remote_pod(2, 5), 8080)]);
    assert_eq!(send(&mut world), Some(node_octet(2)), "the service that came back has no such backend");
    world.finish();
}

#[test]
fn a_worker_that_missed_too_many_changes_walks_everything() {
    let mut world = world();
    send(&mut world);
    for round in 0..8200 {
        world.set_service(OTHER, 80, proto::UDP, 8, &[(addr::remote_pod(round as u8 % 4, 9), 8080)]);
    }
    assert_eq!(send(&mut world), Some(node_octet(1)));
    assert_eq!(walks(&world), 1);
    world.finish();
}
