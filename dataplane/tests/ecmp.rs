//! Routes with several next hops: flows spread over them, and keep theirs when another goes.

mod common;

use common::look;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::ETH_LEN;
use fairway_tables::{Group, Ip, Mac, Neighbour, NeighbourKey, NextHop, NextHopKind, Op, PortId, Prefix};
use std::collections::BTreeMap;

const FLOWS: u16 = 600;

fn prefix() -> Prefix {
    Prefix::new(Ip::v4([10, 77, 0, 0]), 16).expect("a prefix")
}

fn paths(kind: NextHopKind, addrs: &[([u8; 4], u32)], port: PortId) -> Op {
    let hops = addrs.iter().map(|(addr, weight)| (NextHop::new(kind, Ip::v4(*addr), port), *weight));
    Op::SetPaths(prefix(), Box::new(Group::new(hops).expect("few paths")))
}

/// Sends a packet of every flow; `way` tells from the frame which way it took.
fn ways<K>(world: &mut World, way: impl Fn(&[u8]) -> K) -> Vec<K> {
    (0..FLOWS)
        .map(|flow| {
            let sent = addr::from_pod(0, [10, 77, 3, (flow % 200) as u8]).udp(1000 + flow, 53, b"which way");
            let (port, out) = world.send(addr::pod_port(0), &sent).expect("every way is open");
            assert_eq!(port, addr::UPLINK);
            way(&out)
        })
        .collect()
}

fn counts<K: Ord + Copy>(ways: &[K]) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    ways.iter().for_each(|way| *counts.entry(*way).or_default() += 1);
    counts
}

/// Destination of the outer packet.
fn outer_dst(frame: &[u8]) -> [u8; 4] {
    [frame[ETH_LEN + 16], frame[ETH_LEN + 17], frame[ETH_LEN + 18], frame[ETH_LEN + 19]]
}

#[test]
fn flows_spread_over_tunnels_by_weight_and_only_those_of_one_that_goes_move() {
    let mut world = World::new(WorldConfig::default());
    let nodes = [(addr::node(0), 1), (addr::node(1), 1), (addr::node(2), 2)];
    world.apply(paths(NextHopKind::Tunnel, &nodes, PortId::NONE));
    let before = ways(&mut world, outer_dst);
    let shares = counts(&before);
    assert_eq!(shares.len(), 3);
    for (node, weight) in nodes {
        let wanted = usize::from(FLOWS) * weight as usize / 4;
        assert!(shares[&node].abs_diff(wanted) < wanted / 3, "{shares:?}");
    }
    assert_eq!(ways(&mut world, outer_dst), before, "a flow keeps its way");

    world.apply(paths(NextHopKind::Tunnel, &[nodes[0], nodes[2]], PortId::NONE));
    let after = ways(&mut world, outer_dst);
    for (before, after) in before.iter().zip(&after) {
        assert!(*after != addr::node(1) && (before == after || *before == addr::node(1)));
    }
    assert_eq!(counts(&after).len(), 2);
    world.apply(paths(NextHopKind::Tunnel, &nodes, PortId::NONE));
    assert_eq!(ways(&mut world, outer_dst), before, "they come back with it");
    world.finish();
}

#[test]
fn flows_spread_over_gateways() {
    let mut world = World::new(WorldConfig::default());
    let gateways = [[192, 0, 2, 251], [192, 0, 2, 252]];
    for gateway in gateways {
        let key = NeighbourKey { ip: Ip::v4(gateway), port: addr::UPLINK, reserved: 0 };
        let mac = Mac([2, 0, 0, 9, 9, gateway[3]]);
        world.apply(Op::SetNeighbour(key, Neighbour { mac, reserved: 0 }));
    }
    world.apply(paths(NextHopKind::Gateway, &gateways.map(|gateway| (gateway, 1)), addr::UPLINK));
    let ways = counts(&ways(&mut world, |frame| look(frame).dst_mac));
    assert_eq!(ways.len(), 2);
    assert!(ways.values().all(|n| *n > usize::from(FLOWS) / 3), "{ways:?}");
    world.finish();
}

#[test]
fn every_node_that_a_source_is_behind_may_send_for_it_and_no_other() {
    let mut world = World::new(WorldConfig::default());
    let nodes = [(addr::node(0), 1), (addr::node(1), 1)];
    world.apply(paths(NextHopKind::Tunnel, &nodes, PortId::NONE));
    let sent = addr::from_remote([10, 77, 3, 4], addr::pod(0)).udp(53, 1000, b"hello");
    let mut send =
        |node| world.send(addr::UPLINK, &packet::encapsulate(&addr::encap_from(node), &sent, 50_000));
    assert_eq!(send(0).map(|(port, _)| port), Some(addr::pod_port(0)));
    assert_eq!(send(1).map(|(port, _)| port), Some(addr::pod_port(0)));
    assert_eq!(send(2), None);
    world.finish();
}
