//! The oracle of the tables' tests, plain maps without sharing or reclamation, and random batches. Used
//! by the property tests and by the crate's own crash tests.

use fairway_tables::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) settings: Option<Settings>,
    pub(crate) masquerade: Option<Masquerade>,
    pub(crate) ports: BTreeMap<PortId, Port>,
    pub(crate) endpoints: BTreeMap<Ip, Endpoint>,
    pub(crate) routes: BTreeMap<Prefix, Group>,
    pub(crate) neighbours: BTreeMap<NeighbourKey, Neighbour>,
    pub(crate) tunnels: BTreeMap<Ip, Tunnel>,
    pub(crate) services: BTreeMap<ServiceKey, (Service, Targets)>,
}

fn change<K: Ord + Copy, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: Option<&V>) {
    match value {
        Some(value) => map.insert(*key, value.clone()),
        None => map.remove(key),
    };
}

impl Model {
    pub(crate) fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::SetSettings(v) => self.settings = Some(*v),
                Op::SetMasquerade(v) => self.masquerade = Some(**v),
                Op::SetPort(k, v) => change(&mut self.ports, k, Some(v)),
                Op::DelPort(k) => change(&mut self.ports, k, None),
                Op::SetEndpoint(k, v) => change(&mut self.endpoints, k, Some(v)),
                Op::DelEndpoint(k) => change(&mut self.endpoints, k, None),
                Op::SetRoute(k, v) => change(&mut self.routes, k, Some(&Group::single(*v))),
                Op::SetPaths(k, v) => change(&mut self.routes, k, Some(v.as_ref())),
                Op::DelRoute(k) => change(&mut self.routes, k, None),
                Op::SetNeighbour(k, v) => change(&mut self.neighbours, k, Some(v)),
                Op::DelNeighbour(k) => change(&mut self.neighbours, k, None),
                Op::SetTunnel(k, v) => change(&mut self.tunnels, k, Some(v)),
                Op::DelTunnel(k) => change(&mut self.tunnels, k, None),
                Op::SetService(k, s, b) => change(&mut self.services, k, Some(&(*s, b.clone()))),
                Op::DelService(k) => change(&mut self.services, k, None),
            }
        }
    }

    pub(crate) fn of(view: View<'_>) -> Model {
        let (settings, masquerade) = (view.settings(), view.masquerade());
        Model {
            settings: (settings != bytemuck::Zeroable::zeroed()).then_some(settings),
            masquerade: (masquerade != Masquerade::NOTHING).then_some(masquerade),
            ports: view.ports().collect(),
            endpoints: view.endpoints().collect(),
            routes: view.routes().collect(),
            neighbours: view.neighbours().collect(),
            tunnels: view.tunnels().collect(),
            services: view.services().map(|(k, s)| (k, (s.service(), s.targets()))).collect(),
        }
    }

    /// Longest prefix match the slow way.
    pub(crate) fn route(&self, ip: Ip) -> Option<Group> {
        let matching = self.routes.iter().filter(|(prefix, _)| prefix.contains(ip));
        matching.max_by_key(|(prefix, _)| prefix.len()).map(|(_, paths)| *paths)
    }

    pub(crate) fn check(&self, view: View<'_>) {
        assert_eq!(*self, Model::of(view));
        for (k, v) in &self.ports {
            assert_eq!(view.port(*k), Some(*v));
        }
        for (k, v) in &self.endpoints {
            assert_eq!(view.endpoint(*k), Some(*v));
        }
        for (k, v) in &self.neighbours {
            assert_eq!(view.neighbour(k.ip, k.port), Some(*v));
        }
        for (k, v) in &self.tunnels {
            assert_eq!(view.tunnel(*k), Some(*v));
            let number = view.tunnel_number(*k).expect("a number for each tunnel");
            assert_eq!(view.numbered_tunnel(number), Some((*k, *v)));
        }
        for (k, v) in &self.services {
            let service = view.service(k).expect("present");
            assert_eq!((service.service(), service.targets()), *v);
            assert_eq!(service.cluster().get(v.1.cluster.len()), None);
            assert_eq!(service.local().get(v.1.local.len()), None);
        }
        for ip in probes(self.routes.keys()) {
            let paths = self.route(ip);
            assert_eq!(view.paths(ip), paths, "look-up of {ip}");
            let hash = u64::from(ip.0[15]);
            assert_eq!(view.route_for(ip, hash), paths.and_then(|paths| paths.choose(hash)));
        }
    }
}

/// Addresses at both edges of each prefix, and one beyond.
pub(crate) fn probes<'a>(prefixes: impl Iterator<Item = &'a Prefix>) -> Vec<Ip> {
    let mut ips = vec![Ip::v4([0, 0, 0, 0]), Ip::v4([255; 4]), Ip([0xff; 16]), Ip([0; 16])];
    for prefix in prefixes {
        let first = u128::from_be_bytes(prefix.addr().0);
        let host_bits = if prefix.addr().is_v4() { 32 } else { 128 } - u32::from(prefix.len());
        let last = first | if host_bits == 0 { 0 } else { u128::MAX >> (128 - host_bits) };
        for n in [first, last, first.wrapping_sub(1), last.wrapping_add(1), first ^ 1 << (host_bits / 2)] {
            ips.push(Ip(n.to_be_bytes()));
        }
    }
    ips
}

/// Addresses from a few corners, so that prefixes nest and keys meet again.
fn any_ip() -> impl Strategy<Value = Ip> {
    prop_oneof![
        (0u8..2, 0u8..3, 0u8..3, any::<u8>()).prop_map(|(a, b, c, d)| Ip::v4([10 + a, b, c, d])),
        any::<[u8; 4]>().prop_map(Ip::v4),
        (0u8..2, 0u8..3, 0u8..3, any::<u8>()).prop_map(|(a, b, c, d)| {
            let mut ip = [0; 16];
            (ip[0], ip[1], ip[6], ip[11], ip[15]) = (0xfd, a, b, c, d);
            Ip(ip)
        }),
        any::<[u8; 16]>().prop_map(Ip),
    ]
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    let len = prop_oneof![
        2 => any::<u8>(),
        1 => Just(0),
        2 => prop::sample::select(vec![8u8, 15, 16, 17, 23, 24, 25, 31, 32, 48, 64, 127, 128]),
    ];
    (any_ip(), len).prop_map(|(ip, len)| {
        let width = if ip.is_v4() { 33 } else { 129 };
        Prefix::new(ip, (u16::from(len) % width) as u8).expect("length fits the family")
    })
}

fn any_next_hop() -> impl Strategy<Value = NextHop> {
    (0u8..6, 0u16..3)
        .prop_map(|(n, port)| NextHop::new(NextHopKind::Tunnel, Ip::v4([192, 0, 2, n]), PortId(port)))
}

fn any_group() -> impl Strategy<Value = Group> {
    prop::collection::vec((any_next_hop(), 1u32..4), 1..5)
        .prop_map(|paths| Group::new(paths).expect("few paths of little weight"))
}

fn any_mac() -> impl Strategy<Value = Mac> {
    any::<u8>().prop_map(|n| Mac([2, 0, 0, 0, 0, n]))
}

pub(crate) fn any_op() -> impl Strategy<Value = Op> {
    let small_ip = || (0u8..40).prop_map(|n| Ip::v4([10, 0, 0, n]));
    let port_id = || (0u16..12).prop_map(PortId);
    let neighbour = || (small_ip(), port_id()).prop_map(|(ip, port)| NeighbourKey { ip, port, reserved: 0 });
    let service = || (small_ip(), 80u16..83, 6u8..8).prop_map(|(ip, p, proto)| ServiceKey::new(ip, p, proto));
    let backend = || (any_ip(), any::<u16>()).prop_map(|(ip, port)| Backend { ip, port, flags: 0 });
    let list = move || prop::collection::vec(backend(), 0..5);
    let targets = move || {
        (list(), list(), prop::collection::vec(any_prefix(), 0..3)).prop_map(
            |(cluster, local, source_ranges)| Targets { cluster, local, source_ranges, ways: vec![] },
        )
    };
    prop_oneof![
        1 => (any::<u32>(), any_mac()).prop_map(|(vni, mac)| Op::SetSettings(Settings {
            node_ip: Ip::v4([192, 0, 2, 1]), gateway_ip: Ip::v4([169, 254, 1, 1]), router_ip: Ip::v4([10, 1, 0, 1]),
            gateway_ip6: Ip::UNSPECIFIED, router_ip6: Ip::UNSPECIFIED, vni, pod_mtu: 1450,
            vxlan_port: 4789, uplink: PortId(0), host: PortId::NONE, gateway_mac: mac, vtep_mac: mac,
            ..bytemuck::Zeroable::zeroed()
        })),
        1 => (1u32..4, prop::collection::vec(any_prefix(), 0..5)).prop_map(|(families, cluster)| {
            Op::SetMasquerade(Box::new(Masquerade::new(families, &cluster).expect("not too many")))
        }),
        2 => (port_id(), any_mac()).prop_map(|(id, mac)| {
            Op::SetPort(id, Port::new("veth0", PortKind::Pod, 1500, mac, Mac::ZERO).expect("a good name"))
        }),
        1 => port_id().prop_map(Op::DelPort),
        3 => (small_ip(), port_id(), any_mac())
            .prop_map(|(ip, port, mac)| Op::SetEndpoint(ip, Endpoint::new(port, mac))),
        2 => small_ip().prop_map(Op::DelEndpoint),
        9 => (any_prefix(), any_next_hop()).prop_map(|(p, n)| Op::SetRoute(p, n)),
        4 => (any_prefix(), any_group()).prop_map(|(p, g)| Op::SetPaths(p, Box::new(g))),
        8 => any_prefix().prop_map(Op::DelRoute),
        3 => (neighbour(), any_mac())
            .prop_map(|(k, mac)| Op::SetNeighbour(k, Neighbour { mac, reserved: 0 })),
        2 => neighbour().prop_map(Op::DelNeighbour),
        3 => (small_ip(), any_ip(), any_mac()).prop_map(|(remote, next_hop, mac)| Op::SetTunnel(remote, Tunnel {
            local: Ip::v4([192, 0, 2, 1]), node: remote, next_hop, vni: 42, udp_port: 4789, port: PortId(0),
            remote_mac: mac, local_mac: mac, node_ports: next_hop, node_ports6: Ip::UNSPECIFIED,
        })),
        2 => small_ip().prop_map(Op::DelTunnel),
        4 => (service(), any::<u32>(), targets()).prop_map(|(k, id, targets)| {
            Op::SetService(k, Service { id, flags: 0, affinity_timeout_s: 0 }, targets)
        }),
        2 => (service(), any::<u32>(), targets(), any_next_hop()).prop_map(|(k, id, targets, way)| {
            let ways = vec![way; targets.cluster.len()];
            Op::SetService(k, Service { id, flags: Service::DSR, affinity_timeout_s: 0 }, Targets { ways, ..targets })
        }),
        2 => service().prop_map(Op::DelService),
    ]
}

pub(crate) fn capacities() -> Capacities {
    Capacities {
        ports: 16,
        endpoints: 64,
        routes: 1024,
        next_hops: 64,
        route_groups: 512,
        lpm_nodes: 8192,
        neighbours: 512,
        tunnels: 64,
        services: 256,
        backends: 2048,
    }
}

/// Deletes of what is there, so that removal is tested as much as insertion.
pub(crate) fn deletes_of(model: &Model, every: usize) -> Vec<Op> {
    let mut ops: Vec<Op> = model.routes.keys().map(|k| Op::DelRoute(*k)).collect();
    ops.extend(model.services.keys().map(|k| Op::DelService(*k)));
    ops.extend(model.endpoints.keys().map(|k| Op::DelEndpoint(*k)));
    ops.into_iter().step_by(every).collect()
}

pub(crate) fn used(writer: &Writer) -> BTreeMap<&'static str, u64> {
    writer.usage().into_iter().map(|u| (u.table, u.used)).collect()
}
