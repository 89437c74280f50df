//! The compiler's promise: whatever happens in whatever order, the tables after applying every incremental
//! change equal those of an index that only ever saw the end state.

use fairway_control::encapsulation::{Encapsulation, Pool, When};
use fairway_control::enis::{Eni, NodeEnis};
use fairway_control::index::{
    Config, DirectRoutes, Event, Hop, Index, KernelEvent, KernelRoute, Link, NodePortAddresses, Place,
    RouteKind, UPLINK_PORT,
};
use fairway_control::model::{Key, Model, Value, apply};
use fairway_control::names;
use fairway_control::object::{
    EndpointSlice, Kind, Node, Object, ObjectKey, Pod, Service, ServicePort, SliceEndpoint, SlicePort,
};
use fairway_tables::{Ip, Mac, Prefix};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn config(uplink: Option<&str>, direct_routes: DirectRoutes) -> Config {
    Config {
        node: "n0".into(),
        uplink: uplink.map(Into::into),
        vni: 4096,
        vxlan_port: 4789,
        clamp_mss: false,
        service_cidrs: vec![],
        max_ports: 4,
        node_port_addresses: NodePortAddresses::Primary,
        nat: Default::default(),
        direct_routes,
    }
}

fn prefix(a: u8, len: u8) -> Prefix {
    Prefix::new(Ip::v4([10, 244, a, 0]), len).unwrap()
}

fn ip6(host: u8) -> Ip {
    format!("fd00::{host}").parse::<std::net::IpAddr>().unwrap().into()
}

fn zone() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("a".to_owned()), Just("b".to_owned())]
}

fn node() -> impl Strategy<Value = Object> {
    let families = (
        any::<bool>(),
        prop_oneof![4 => Just([true, false]), 3 => Just([true; 2]), 1 => Just([false, true])],
    );
    (0u8..4, 0u8..5, 1u8..5, prop_oneof![Just(24u8), Just(23)], families, zone()).prop_map(
        |(n, cidr, host, len, (v6, [over_ipv4, over_ipv6]), zone)| {
            let mut internal_ips = Vec::new();
            let mut pod_cidrs = vec![prefix(cidr, len)];
            if over_ipv4 {
                internal_ips.push(Ip::v4([192, 0, 2, host]));
            }
            if over_ipv6 {
                internal_ips.push(ip6(host));
            }
            if v6 {
                pod_cidrs.push("fd00:1::/64".parse().unwrap());
            }
            let hints = fairway_control::object::NodeHints::default();
            Object::Node(Node { name: format!("n{n}"), pod_cidrs, internal_ips, zone, hints })
        },
    )
}

fn pod() -> impl Strategy<Value = Object> {
    (0u8..8, 0u8..2, proptest::collection::vec(1u8..12, 0..3), any::<[bool; 4]>()).prop_map(
        |(p, n, ips, [host_network, a, finished, b])| {
            Object::Pod(Pod {
                namespace: "default".into(),
                name: format!("p{p}"),
                node: format!("n{n}"),
                ips: ips.into_iter().map(|i| Ip::v4([10, 244, 0, i])).collect(),
                host_network: host_network && a,
                finished: finished && b,
            })
        },
    )
}

fn service() -> impl Strategy<Value = Object> {
    let proto = || prop_oneof![Just(6u8), Just(17)];
    let ports = proptest::collection::btree_map(80u16..83, (proto(), 0u16..3), 0..3);
    // Some are this node's own address, or another service's.
    let external =
        || proptest::collection::vec(prop_oneof![Just([192, 0, 2, 1]), Just([203, 0, 113, 1])], 0..2);
    let addresses = (proptest::collection::vec(1u8..4, 0..3), external(), external());
    let range = prop_oneof![Just("192.0.2.0/24"), Just("10.0.0.0/8"), Just("fd00::/8")];
    let ranges = proptest::collection::vec(range, 0..2);
    (0u8..3, addresses, ports, 0u32..2, ranges, any::<[bool; 5]>()).prop_map(
        |(s, (ips, external_ips, balancer_ips), ports, affinity, ranges, [a, b, c, d, dsr])| {
            let v4 = |list: Vec<[u8; 4]>| list.into_iter().map(Ip::v4).collect();
            Object::Service(Service {
                namespace: "default".into(),
                name: format!("s{s}"),
                cluster_ips: ips.into_iter().map(|i| Ip::v4([10, 96, 0, i])).collect(),
                ports: ports
                    .into_iter()
                    .map(|(port, (proto, node_port))| {
                        let node_port = if node_port == 0 { 0 } else { 30_000 + node_port };
                        ServicePort { name: format!("p{}", port % 2), port, proto, node_port }
                    })
                    .collect(),
                affinity_timeout_s: affinity,
                internal_local: a,
                external_local: b,
                external_ips: v4(external_ips),
                load_balancer_ips: v4(balancer_ips),
                source_ranges: ranges.into_iter().map(|range| range.parse().unwrap()).collect(),
                health_check_node_port: if c { 32_000 } else { 0 },
                maglev: d,
                dsr,
            })
        },
    )
}

fn slice_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let hints = || proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("n0")], 0..2);
    (1u8..6, any::<[bool; 3]>(), 0u8..2, hints(), hints()).prop_map(|(i, conditions, node, nodes, zones)| {
        SliceEndpoint {
            ready: conditions[0],
            serving: conditions[1],
            terminating: conditions[2],
            node: format!("n{node}").into(),
            for_nodes: nodes.into_iter().map(Box::from).collect(),
            for_zones: zones.into_iter().map(Box::from).collect(),
            ..SliceEndpoint::ready(Ip::v4([10, 244, 0, i]))
        }
    })
}

fn slice() -> impl Strategy<Value = Object> {
    let ports = proptest::collection::vec((0u8..2, 8080u16..8082, prop_oneof![Just(6u8), Just(17)]), 0..3);
    (0u8..4, 0u8..4, any::<bool>(), ports, proptest::collection::vec(slice_endpoint(), 0..4)).prop_map(
        |(name, s, is_v4, ports, endpoints)| {
            Object::EndpointSlice(EndpointSlice {
                namespace: "default".into(),
                name: format!("e{name}"),
                service: if s == 3 { String::new() } else { format!("s{s}") },
                is_v4: is_v4 || name < 3,
                ports: ports
                    .into_iter()
                    .map(|(n, port, proto)| SlicePort { name: format!("p{n}"), port, proto })
                    .collect(),
                endpoints,
            })
        },
    )
}

fn pool() -> impl Strategy<Value = Object> {
    let encapsulation = prop_oneof![
        Just(Encapsulation::Direct),
        Just(Encapsulation::Vxlan),
        Just(Encapsulation::Ipip),
        Just(Encapsulation::Udp { udp_port: 8285 }),
        Just(Encapsulation::FlannelVxlan { vni: 1, udp_port: 8472 }),
    ];
    let when = prop_oneof![Just(When::Always), Just(When::CrossSubnet)];
    let outer = prop_oneof![3 => Just(None), 1 => any::<bool>().prop_map(Some)];
    (0u8..3, encapsulation, when, prop_oneof![Just(22u8), Just(24), Just(25)], outer).prop_map(
        |(n, encapsulation, when, len, outer_is_v4)| {
            let mut cidrs = vec![Prefix::new(Ip::v4([10, 244, n * 4, 0]), len).unwrap()];
            if n == 2 {
                cidrs.push("fd00:1::/48".parse().unwrap());
            }
            Object::Pool(Pool {
                kind: Kind::IpPool,
                namespace: String::new(),
                name: format!("pool{n}"),
                cidrs,
                encapsulation,
                when,
                outer_is_v4,
                nat_outgoing: n == 1,
                disabled: n == 2,
                node_selector: None,
            })
        },
    )
}

/// ENIs whose Ethernet addresses some links have, with addresses that some pods have.
fn node_enis() -> impl Strategy<Value = Object> {
    let ips = proptest::collection::btree_set((1u8..12).prop_map(|i| Ip::v4([10, 244, 0, i])), 0..4);
    let enis = proptest::collection::btree_map(0u8..4, (ips, any::<bool>()), 0..3);
    (0u8..2, enis, proptest::bool::weighted(0.3)).prop_map(|(n, enis, exclusive)| {
        let eni = |(mac, (ips, subnet)): (u8, (BTreeSet<Ip>, bool))| Eni {
            id: format!("eni-{mac}"),
            mac: Mac([2, 0, 0, 0, 0, mac]),
            subnets: if subnet { vec![prefix(0, 24)] } else { vec![] },
            ips,
        };
        let enis = enis.into_iter().map(eni).collect();
        Object::NodeEnis(NodeEnis { node: format!("n{n}"), enis, exclusive })
    })
}

fn deletion() -> impl Strategy<Value = Event> {
    (0u8..6, 0u8..8).prop_map(|(kind, n)| {
        let (kind, namespace, name) = match kind {
            0 => (Kind::Node, "", format!("n{}", n % 4)),
            1 => (Kind::Pod, "default", format!("p{n}")),
            2 => (Kind::Service, "default", format!("s{}", n % 3)),
            3 => (Kind::IpPool, "", format!("pool{}", n % 3)),
            4 => (Kind::NodeEnis, "", format!("n{}", n % 2)),
            _ => (Kind::EndpointSlice, "default", format!("e{}", n % 4)),
        };
        Event::Delete(ObjectKey::new(kind, namespace, &name))
    })
}

fn link_name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("eth0".to_owned()),
        Just("eth1".to_owned()),
        Just(names::HOST_KERNEL_IF.to_owned()),
        Just(names::HOST_ENGINE_IF.to_owned()),
        (0u8..8).prop_map(|p| names::host_veth("default", &format!("p{p}"))),
    ]
}

/// Prefixes of the kernel's table: around nodes, around and inside pods' ranges and pools, outside all, and the default.
fn kernel_prefix() -> impl Strategy<Value = Prefix> {
    let texts = [
        "0.0.0.0/0",
        "192.0.2.0/24",
        "192.0.2.0/30",
        "192.0.9.0/24",
        "192.0.9.7/32",
        "10.244.0.0/16",
        "10.244.0.0/22",
        "10.244.1.0/24",
        "10.244.2.0/24",
        "10.244.2.128/25",
        "10.244.4.64/26",
        "fd00:1::/64",
        "fd00::/64",
        "fd00::/126",
        "fd00:9::/64",
        "fd00:9::1/128",
    ];
    proptest::sample::select(texts.map(|text| text.parse().unwrap()).to_vec())
}

fn kernel_route() -> impl Strategy<Value = KernelRoute> {
    let gateway =
        prop_oneof![3 => (1u8..6).prop_map(|i| Ip::v4([192, 0, 2, i])), 1 => (1u8..6).prop_map(ip6)];
    let gateway = proptest::option::weighted(0.8, gateway);
    let hop =
        (1u32..4, gateway, 1u32..4).prop_map(|(ifindex, gateway, weight)| Hop { ifindex, gateway, weight });
    let kind = prop_oneof![
        6 => Just(RouteKind::Unicast),
        1 => Just(RouteKind::Blackhole),
        1 => Just(RouteKind::Unreachable)
    ];
    let protocol = prop_oneof![4 => Just(12u8), 1 => Just(2), 1 => Just(70)];
    (kind, protocol, proptest::collection::vec(hop, 1..4)).prop_map(|(kind, protocol, mut hops)| {
        if kind != RouteKind::Unicast {
            hops.clear();
        }
        KernelRoute { kind, protocol, hops }
    })
}

fn kernel() -> impl Strategy<Value = KernelEvent> {
    let ip = prop_oneof![3 => (1u8..6).prop_map(|i| Ip::v4([192, 0, 2, i])), 1 => (1u8..6).prop_map(ip6)];
    let place = prop_oneof![Just(Place::First), Just(Place::Last), Just(Place::Instead)];
    prop_oneof![
        4 => (1u32..12, link_name(), 0u8..3, any::<bool>(), proptest::bool::weighted(0.9)).prop_map(
            |(ifindex, name, mac, large, up)| KernelEvent::Link(Link {
                ifindex,
                name,
                mac: Mac([2, 0, 0, 0, 0, mac]),
                mtu: if large { 9000 } else { 1500 },
                up,
            })
        ),
        2 => (1u32..12).prop_map(KernelEvent::LinkGone),
        2 => (1u32..4, ip.clone()).prop_map(|(i, ip)| KernelEvent::Address(i, ip)),
        1 => (1u32..4, ip.clone()).prop_map(|(i, ip)| KernelEvent::AddressGone(i, ip)),
        4 => (kernel_prefix(), 0u32..2, kernel_route(), place).prop_map(
            |(prefix, metric, route, place)| KernelEvent::Route(prefix, metric, route, place)
        ),
        2 => (kernel_prefix(), 0u32..2, kernel_route()).prop_map(
            |(prefix, metric, route)| KernelEvent::RouteGone(prefix, metric, route)
        ),
        2 => (kernel_prefix(), 0u32..2, proptest::collection::vec(kernel_route(), 0..2)).prop_map(
            |(prefix, metric, routes)| KernelEvent::Routes(prefix, metric, routes)
        ),
        3 => (1u32..4, ip, proptest::option::weighted(0.7, 0u8..3)).prop_map(
            |(i, ip, mac)| KernelEvent::Neighbour(i, ip, mac.map(|m| Mac([2, 0, 0, 0, 1, m])))
        ),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => node().prop_map(Event::Upsert),
        4 => pod().prop_map(Event::Upsert),
        2 => service().prop_map(Event::Upsert),
        2 => slice().prop_map(Event::Upsert),
        1 => pool().prop_map(Event::Upsert),
        1 => node_enis().prop_map(Event::Upsert),
        3 => deletion(),
        8 => kernel().prop_map(Event::Kernel),
    ]
}

/// Objects that survive a sequence of events.
fn survivors(events: &[Event]) -> Vec<Object> {
    let mut alive = std::collections::BTreeMap::new();
    for event in events {
        match event {
            Event::Upsert(object) => drop(alive.insert(object.key(), object.clone())),
            Event::Delete(key) => drop(alive.remove(key)),
            Event::Kernel(_) => {}
        }
    }
    alive.into_values().collect()
}

fn shuffled<T>(mut items: Vec<T>, seed: u64) -> Vec<T> {
    let mut state = seed | 1;
    for i in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(i, (state >> 33) as usize % (i + 1));
    }
    items
}

/// Every value is of its key's kind, backends are sorted and port numbers belong to one device each.
fn check(model: &Model) {
    let mut devices = std::collections::BTreeSet::new();
    for (key, value) in model {
        match (key, value) {
            // A device that holds the node's address is the uplink whatever its name.
            (Key::Port(UPLINK_PORT), _) => {}
            (Key::Port(_), Value::Port(port)) => {
                assert!(devices.insert(port.ifname), "two ports, one device")
            }
            (Key::Service(_), Value::Service(_, targets)) => {
                for list in [&targets.cluster, &targets.local] {
                    assert!(list.is_sorted_by(|a, b| a < b));
                }
            }
            (Key::Endpoint(_), Value::Endpoint(e)) => assert!(model.contains_key(&Key::Port(e.port))),
            (Key::Neighbour(_), Value::Neighbour(_))
            | (Key::Tunnel(_), Value::Tunnel(_))
            | (Key::Settings, Value::Settings(_))
            | (Key::Masquerade, Value::Masquerade(_))
            | (Key::Route(_), Value::Route(_) | Value::Paths(_)) => {}
            other => panic!("key and value of different kinds: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn incremental_changes_add_up_to_a_compilation_from_scratch(
        events in proptest::collection::vec(event(), 1..90),
        named_uplink in any::<bool>(),
        direct_routes in prop_oneof![Just(DirectRoutes::Nodes), Just(DirectRoutes::Kernel)],
        seed in any::<u64>(),
    ) {
        let config = config(named_uplink.then_some("eth1"), direct_routes);
        let mut index = Index::new(config.clone(), &Model::new());
        let mut tables = Model::new();
        for event in &events {
            let changes = index.apply(event.clone());
            for (key, value) in &changes {
                prop_assert_ne!(tables.get(key), value.as_ref(), "a change that changes nothing");
            }
            apply(&mut tables, &changes);
        }
        prop_assert_eq!(&tables, index.model());
        check(&tables);

        // The same end state, told once and in another order, to an index that finds the tables as they are.
        let facts = index.facts();
        let mut story: Vec<Event> = survivors(&events).into_iter().map(Event::Upsert).collect();
        story.extend(fairway_control::index::Facts::default().events_to(facts).into_iter().map(Event::Kernel));
        let mut fresh = Index::new(config, &tables);
        for event in shuffled(story, seed) {
            fresh.apply(event);
        }
        let changes = fresh.release_unclaimed();
        prop_assert_eq!(changes, vec![]);
        prop_assert_eq!(fresh.model(), &tables);
        prop_assert_eq!(fresh.pending(), index.pending());
        prop_assert_eq!(fresh.host_plan(&[]), index.host_plan(&[]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_refuses_yields_no_object(
        parts in proptest::collection::vec(prop_oneof![
            Just("---".to_owned()), Just("\n".to_owned()), Just("kind: List\nitems:\n".to_owned()),
            Just("apiVersion: v1\nkind: Service\nmetadata: {name: s}\n".to_owned()),
            Just("spec: {ports: [{port: 70000}], clusterIP: None}\n".to_owned()),
            Just("apiVersion: v1\nkind: PodList\nitems: [1, {}, null]\n".to_owned()),
            Just("&a [*a, *a]".to_owned()), Just("metadata: 7\n".to_owned()), Just("...".to_owned()),
            ".{0,12}",
        ], 0..12),
    ) {
        let text = parts.concat();
        if let Err(errors) = fairway_control::manifests::parse("f.yaml", &text) {
            prop_assert!(!errors.is_empty());
            // YAML 1.1 breaks lines at more than newlines.
            let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
            // One line more than breaks, and the end may be told as the line after the last.
            let lines = text.matches(breaks).count() + 2;
            prop_assert!(errors.iter().all(|e| e.document > 0 && e.line.is_some_and(|l| 0 < l && l <= lines)));
        }
    }
}
