//! Direct server return (docs/dsr.md) at the engine, in both roles: the node that a client's packets come to, and the one that
//! has the backend. Invariants I1 and I2 at the end of every test.

mod common;

use common::drops;
use common::dsr::{At, FLAGS, NODE_PORT, set, set_with, targets, to, vip, world};
use common::tuples::{Place, Step, ip, send};
use fairway_dataplane::conntrack::{State, Tuple};
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::{proto, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{
    Backend, DropReason, Ip, Masquerade, NextHop, NextHopKind, Op, PortId, Prefix, Service, ServiceKey,
    Targets,
};

/// Every address and protocol under which a service is reached from outside: a load balancer's, and this node's own.
fn keys() -> Vec<ServiceKey> {
    let transports = [proto::TCP, proto::UDP, proto::SCTP];
    let addresses = [true, false]
        .into_iter()
        .flat_map(|is_v4| [(vip(is_v4), 80), (ip(addr::NODE, addr::NODE6, is_v4), NODE_PORT)]);
    addresses.flat_map(|(ip, port)| transports.map(|proto| ServiceKey::new(ip, port, proto))).collect()
}

#[test]
fn a_clients_packets_go_to_the_backends_node_as_they_are() {
    for key in keys() {
        let mut world = world();
        set(&mut world, key, &[At::There(1)]);
        for step in [Step::Open, Step::More, Step::More] {
            let tuple = to(key, 1, 4000);
            assert_eq!(send(&mut world, Place::Wire, &tuple, step), Some((Place::Node(1), tuple)), "{key:?}");
        }
        let found = world.worker.conntrack.lookup(&to(key, 1, 4000)).unwrap();
        assert_eq!(found.via.unwrap().addr, Ip::v4(addr::node(1)));
        assert_eq!(world.worker.counters.get(Counter::DsrForwarded), 1);
        assert_eq!(world.worker.counters.get(Counter::FlowHits), 2);
        world.finish();
    }
}

#[test]
fn a_backend_on_this_node_sees_the_client_and_answers_as_the_service() {
    for key in keys() {
        let mut world = world();
        set(&mut world, key, &[At::Here(2)]);
        let tuple = to(key, 1, 4000);
        let at_pod = Tuple { dst: At::Here(2).ip(key.ip.is_v4()), dport: 8080, ..tuple };
        assert_eq!(send(&mut world, Place::Wire, &tuple, Step::Open), Some((Place::Pod(2), at_pod)));
        let answer = send(&mut world, Place::Pod(2), &at_pod.reversed(), Step::Answer);
        assert_eq!(answer, Some((Place::Wire, tuple.reversed())));
        assert_eq!(world.worker.counters.get(Counter::DsrForwarded), 0);
        world.finish();
    }
}

#[test]
fn what_another_node_sends_so_is_translated_and_answered_here() {
    for key in keys() {
        let mut world = world();
        let is_v4 = key.ip.is_v4();
        // Node ports of node 1 are asked for at its address; this node finds them under its own processes' address.
        let (record, asked) = match key.port {
            NODE_PORT => {
                let own = if is_v4 { ServiceKey::NODE_PORTS } else { ServiceKey::NODE_PORTS6 };
                let asked = ServiceKey { ip: ip(addr::node(1), addr::node6(1), is_v4), ..key };
                (ServiceKey { ip: own, ..key }, asked)
            }
            _ => (key, key),
        };
        set(&mut world, record, &[At::Here(2), At::There(0), At::There(1), At::There(2)]);
        let tuple = to(asked, 1, 4000);
        let at_pod = Tuple { dst: At::Here(2).ip(is_v4), dport: 8080, ..tuple };
        for _ in 0..2 {
            let delivered = send(&mut world, Place::Node(1), &tuple, Step::Open);
            assert_eq!(delivered, Some((Place::Pod(2), at_pod)), "{key:?}");
            let answer = send(&mut world, Place::Pod(2), &at_pod.reversed(), Step::Answer);
            assert_eq!(answer, Some((Place::Wire, tuple.reversed())));
            let more = send(&mut world, Place::Node(1), &tuple, Step::More);
            assert_eq!(more, Some((Place::Pod(2), at_pod)));
        }
        assert_eq!(world.worker.counters.get(Counter::DsrDelivered), 1);
        let conn = world.worker.conntrack.lookup(&tuple).unwrap();
        assert_eq!((conn.via, conn.state), (None, State::Established));
        world.finish();
    }
}

#[test]
fn nothing_else_comes_through_a_tunnel_that_is_not_of_the_nodes_own_pods() {
    let mut world = world();
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    let plain = ServiceKey { port: 81, ..key };
    set(&mut world, key, &[At::Here(2)]);
    set(&mut world, ServiceKey { ip: ServiceKey::NODE_PORTS, port: NODE_PORT, ..key }, &[At::Here(2)]);
    world.set_service_record(
        plain,
        Service { id: 9, flags: Service::EXTERNAL | Service::MASQUERADE, affinity_timeout_s: 0 },
        &[(At::Here(2).ip(true), 8080)],
    );
    let good = to(key, 1, 4000);
    let node_port = |node: u8| Tuple { dst: Ip::v4(addr::node(node)), dport: NODE_PORT, ..good };
    let from = |src| Tuple { src: Ip::v4(src), ..good };
    for (tuple, what) in [
        (to(plain, 1, 4000), "a service without DSR"),
        (Tuple { dport: 82, ..good }, "a port that the service does not have"),
        (Tuple { dst: At::Here(2).ip(true), dport: 8080, ..good }, "a pod"),
        (node_port(2), "a node port of another node than the sender"),
        (Tuple { dst: Ip::v4(addr::NODE), dport: NODE_PORT, ..good }, "a node port of this node"),
        (from(addr::remote_pod(2, 9)), "a pod of a third node as client"),
        (from(addr::pod(0)), "a pod of this node as client"),
        (from(addr::NODE), "this node as client"),
        (from(addr::node(2)), "a third node as client"),
    ] {
        let before = drops(&world, DropReason::SpoofedSource);
        assert_eq!(send(&mut world, Place::Node(1), &tuple, Step::Open), None, "{what}");
        assert_eq!(drops(&world, DropReason::SpoofedSource), before + 1, "{what}");
    }
    assert!(send(&mut world, Place::Node(1), &good, Step::Open).is_some());
    assert!(send(&mut world, Place::Node(1), &node_port(1), Step::Open).is_some());
    let stranger = Place::Node(77);
    assert_eq!(send(&mut world, stranger, &to(key, 2, 4001), Step::Open), None);
    assert_eq!(drops(&world, DropReason::UnknownVtep), 1);
    world.finish();
}

#[test]
fn a_node_without_backends_of_its_own_drops_what_another_leaves_to_it_and_sends_nothing_on() {
    for key in keys().into_iter().filter(|key| key.port == 80) {
        let mut world = world();
        set(&mut world, key, &[At::There(2)]);
        assert_eq!(send(&mut world, Place::Node(1), &to(key, 1, 4000), Step::Open), None);
        assert_eq!(drops(&world, DropReason::NoLocalBackend), 1);
        // Nor does a connection that this node has left to a third.
        let tuple = to(key, 2, 4000);
        assert_eq!(send(&mut world, Place::Wire, &tuple, Step::Open), Some((Place::Node(2), tuple)));
        assert_eq!(send(&mut world, Place::Node(1), &tuple, Step::More), None);
        assert_eq!(drops(&world, DropReason::NoLocalBackend), 2);
        set(&mut world, key, &[At::Here(3), At::There(2)]);
        let (place, _) = send(&mut world, Place::Node(1), &tuple, Step::More).unwrap();
        assert_eq!(place, Place::Pod(3));
        world.finish();
    }
}

#[test]
fn each_backend_gets_its_share_whatever_the_nodes() {
    let mut world = World::new(WorldConfig { frames: 512, nodes: 2, ..WorldConfig::default() });
    world.open_outside();
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    let node = |n| At::There(n).way(NextHopKind::Tunnel);
    let backend = |ip| Backend { ip: Ip::v4(ip), port: 8080, flags: 0 };
    // Three backends on node 0, one on node 1, one here.
    let mut all: Vec<(Backend, NextHop)> =
        [7, 8, 9].map(|host| (backend(addr::remote_pod(0, host)), node(0))).to_vec();
    all.push((backend(addr::remote_pod(1, 7)), node(1)));
    all.push((backend(addr::pod(1)), At::Here(1).way(NextHopKind::Tunnel)));
    all.sort_unstable();
    let (cluster, ways): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let targets = Targets { cluster, ways, local: vec![backend(addr::pod(1))], source_ranges: vec![] };
    set_with(&mut world, key, FLAGS, 0, targets);
    let mut counts = [0; 3];
    for sport in 1000..3000 {
        match send(&mut world, Place::Wire, &to(key, 1, sport), Step::Open) {
            Some((Place::Node(n), _)) => counts[usize::from(n)] += 1,
            Some((Place::Pod(1), _)) => counts[2] += 1,
            other => panic!("{other:?}"),
        }
    }
    let near = |count: i32, share: i32| (count - share).abs() < 120;
    assert!(near(counts[0], 1200) && near(counts[1], 400) && near(counts[2], 400), "{counts:?}");
    world.finish();
}

#[test]
fn pods_and_nodes_as_clients_go_the_ordinary_way() {
    let mut world = world();
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    set(&mut world, key, &[At::There(1)]);
    let pools = [Prefix::new(Ip::v4([10, 99, 0, 0]), 16).unwrap()];
    let direct = Masquerade::new(Masquerade::V4, &pools).unwrap().with_pools(1);
    world.apply(Op::SetMasquerade(Box::new(direct)));
    let to_backend =
        |src, tuple: Tuple| Tuple { src: Ip::v4(src), dst: At::There(1).ip(true), dport: 8080, ..tuple };
    for (from, src, sport) in [
        (Place::Pod(0), addr::pod(0), 4000),
        (Place::Host, addr::ROUTER, 4001),
        (Place::Wire, addr::node(2), 4002),
        (Place::Wire, [10, 99, 1, 1], 4003),
    ] {
        let tuple = Tuple { src: Ip::v4(src), ..to(key, 1, sport) };
        let way = send(&mut world, from, &tuple, Step::Open);
        assert_eq!(way, Some((Place::Node(1), to_backend(addr::ROUTER, tuple))), "from {src:?}");
    }
    assert_eq!(world.worker.counters.get(Counter::DsrForwarded), 0);
    // A backend whose node cannot be reached so sees this node, as without DSR.
    let unreachable = |targets: Targets| {
        let ways = vec![NextHop::new(NextHopKind::Unreachable, Ip::UNSPECIFIED, PortId::NONE)];
        Targets { ways, ..targets }
    };
    set_with(&mut world, key, FLAGS, 0, unreachable(targets(&[At::There(1)], true, NextHopKind::Tunnel)));
    let tuple = to(key, 1, 5000);
    let way = send(&mut world, Place::Wire, &tuple, Step::Open);
    assert_eq!(way, Some((Place::Node(1), to_backend(addr::ROUTER, tuple))));
    world.finish();
}

#[test]
fn established_connections_stay_where_they_are_and_conversations_are_bound_anew() {
    for key in keys().into_iter().filter(|key| key.port == 80) {
        let mut world = world();
        set(&mut world, key, &[At::There(1)]);
        let tuple = to(key, 1, 4000);
        let other = Tuple { sport: 4001, ..tuple };
        for step in [Step::Open, Step::More] {
            assert_eq!(send(&mut world, Place::Wire, &tuple, step), Some((Place::Node(1), tuple)));
        }
        // Another node's backends in place of these; then none at all, then no DSR any more.
        set(&mut world, key, &[At::There(2)]);
        let stays = if key.proto == proto::TCP { 1 } else { 2 };
        assert_eq!(send(&mut world, Place::Wire, &tuple, Step::More), Some((Place::Node(stays), tuple)));
        assert_eq!(send(&mut world, Place::Wire, &other, Step::Open), Some((Place::Node(2), other)));
        if key.proto == proto::TCP {
            world.apply(Op::DelService(key));
            assert_eq!(send(&mut world, Place::Wire, &tuple, Step::More), None, "not steered here any more");
            let plain =
                Service { id: 6, flags: Service::EXTERNAL | Service::MASQUERADE, affinity_timeout_s: 0 };
            world.set_service_record(key, plain, &[(At::There(2).ip(key.ip.is_v4()), 8080)]);
            assert_eq!(send(&mut world, Place::Wire, &tuple, Step::More), Some((Place::Node(1), tuple)));
        }
        world.finish();
    }
}

#[test]
fn a_backends_node_keeps_what_it_knows_through_changes_of_the_service() {
    let mut world = world();
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    set(&mut world, key, &[At::Here(1)]);
    let tuple = to(key, 1, 4000);
    let at_pod = Tuple { dst: At::Here(1).ip(true), dport: 8080, ..tuple };
    assert_eq!(send(&mut world, Place::Node(1), &tuple, Step::Open), Some((Place::Pod(1), at_pod)));
    send(&mut world, Place::Pod(1), &at_pod.reversed(), Step::Answer).unwrap();
    let still = |world: &mut World| {
        assert_eq!(send(world, Place::Node(1), &tuple, Step::More), Some((Place::Pod(1), at_pod)));
        assert_eq!(
            send(world, Place::Node(2), &tuple, Step::More),
            Some((Place::Pod(1), at_pod)),
            "by another node"
        );
        let answer = send(world, Place::Pod(1), &at_pod.reversed(), Step::More);
        assert_eq!(answer, Some((Place::Wire, tuple.reversed())));
    };
    still(&mut world);
    set(&mut world, key, &[At::Here(2)]);
    still(&mut world);
    set(&mut world, key, &[]);
    still(&mut world);
    world.apply(Op::DelService(key));
    still(&mut world);
    world.finish();
}

#[test]
fn of_a_connection_left_to_another_node_timeouts_follow_the_clients_packets() {
    let mut world = world();
    let [tcp, udp] = [proto::TCP, proto::UDP].map(|proto| ServiceKey::new(vip(true), 80, proto));
    let expire = |world: &mut World, seconds: u32| {
        world.now.seconds += seconds;
        world.worker.conntrack.expire(&mut 0, 4096, world.now.seconds)
    };
    let state = |world: &World, tuple: &Tuple| world.worker.conntrack.lookup(tuple).map(|found| found.state);
    for key in [tcp, udp] {
        set(&mut world, key, &[At::There(1)]);
        let [silent, talks] = [4000, 4001].map(|sport| to(key, 1, sport));
        for tuple in [silent, talks] {
            send(&mut world, Place::Wire, &tuple, Step::Open).unwrap();
            assert_eq!(state(&world, &tuple), Some(State::New));
        }
        send(&mut world, Place::Wire, &talks, Step::More).unwrap();
        assert_eq!(state(&world, &talks), Some(State::Established));
        let opening_s = if key == tcp { 120 } else { 30 };
        assert_eq!(expire(&mut world, opening_s + 1), 1, "what nothing followed");
        assert_eq!((state(&world, &silent), state(&world, &talks)), (None, Some(State::Established)));
    }
    let conversations = expire(&mut world, 121);
    assert_eq!(conversations, 1, "a conversation; a TCP connection lasts");
    let talks = to(tcp, 1, 4001);
    let fin = addr::directly_from(0, addr::outside(1), [198, 51, 100, 1]);
    world.send(addr::UPLINK, &fin.tcp(4001, 80, tcp_flags::FIN | tcp_flags::ACK, &[])).unwrap();
    assert_eq!(state(&world, &talks), Some(State::FinWait));
    assert_eq!(expire(&mut world, 121), 1);
    world.finish();
}

#[test]
fn affinity_holds_at_both_nodes() {
    let mut world = world();
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    set_with(
        &mut world,
        key,
        FLAGS,
        600,
        targets(&[At::There(0), At::There(1), At::There(2)], true, NextHopKind::Tunnel),
    );
    let mut places = |key: ServiceKey, from: Place, sports: std::ops::Range<u16>| {
        let mut places: Vec<Place> = sports
            .filter_map(|sport| Some(send(&mut world, from, &to(key, 1, sport), Step::Open)?.0))
            .collect();
        places.dedup();
        places
    };
    assert_eq!(places(key, Place::Wire, 1000..1040).len(), 1);
    let own = ServiceKey { port: 81, ..key };
    let all = [At::Here(0), At::Here(1), At::Here(2), At::There(1)];
    set_with(&mut world, own, FLAGS, 600, targets(&all, true, NextHopKind::Tunnel));
    let mut places = |from: Place, sports: std::ops::Range<u16>| {
        let mut places: Vec<Place> = sports
            .filter_map(|sport| Some(send(&mut world, from, &to(own, 2, sport), Step::Open)?.0))
            .collect();
        places.dedup();
        places
    };
    let chosen = places(Place::Node(1), 1000..1040);
    assert!(chosen.len() == 1 && matches!(chosen[0], Place::Pod(_)), "{chosen:?}");
    world.finish();
}

#[test]
fn maglev_gives_a_delivered_flow_the_backend_that_the_first_node_chose() {
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    let all = [At::Here(0), At::Here(1), At::Here(2), At::There(1), At::There(2)];
    let chosen = |from: Place| {
        let mut world = world();
        set_with(&mut world, key, FLAGS | Service::MAGLEV, 0, targets(&all, true, NextHopKind::Tunnel));
        let places =
            (1000..1200).map(|sport| send(&mut world, from, &to(key, 1, sport), Step::Open).unwrap().0);
        let places: Vec<Place> = places.collect();
        world.finish();
        places
    };
    // What this node would choose for a client that came to it, and what for one that another node left to it.
    let (of_all, of_own) = (chosen(Place::Wire), chosen(Place::Node(1)));
    let mut same = 0;
    for (first, second) in of_all.iter().zip(&of_own) {
        assert!(matches!(second, Place::Pod(_)));
        if matches!(first, Place::Pod(_)) {
            assert_eq!(first, second);
            same += 1;
        }
    }
    assert!((80..160).contains(&same), "{same} of 200 chose a backend of this node");
}
