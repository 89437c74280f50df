//! The objects that change from round to round. All that a round writes follows from its number, so that an
//! object put together from two rounds, or from reused memory, shows.

use fairway_control::names::{HOST_ENGINE_IF, host_veth, pod_mac};
use fairway_tables::{Ip, NextHop, NextHopKind, ServiceKey, View};
use fairway_tests::node::UPLINK;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Services of the changing file; the first [`LASTING`] are in every round.
const SERVICES: u8 = 60;
pub(crate) const LASTING: u8 = 40;
/// Other nodes, by the last byte of their address and the first of their pods'. Prefixes as wide as this take
/// 65,536 stores each, which makes a commit last.
const NODES: std::ops::Range<u8> = 20..36;
pub(crate) const NAMESPACE: &str = "kills";
pub(crate) const PODS: u8 = 4;

pub(crate) fn pod_name(pod: u8) -> String {
    format!("pod-{pod}")
}

pub(crate) fn pod_ip(pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 10 + pod)
}

/// Whether a pod's manifest is there in a round.
pub(crate) fn has_pod(round: u16, pod: u8) -> bool {
    !(round + u16::from(pod)).is_multiple_of(3)
}

fn has_service(round: u16, service: u8) -> bool {
    service < LASTING || !(round + u16::from(service)).is_multiple_of(3)
}

fn has_node(round: u16, node: u8) -> bool {
    !(round + u16::from(node)).is_multiple_of(4)
}

fn key(service: u8) -> ServiceKey {
    ServiceKey::new(Ip::v4([10, 96, 1, service]), 80, 6)
}

fn backends(round: u16, service: u8) -> u8 {
    ((u32::from(round) * 7 + u32::from(service)) % 6 + 1) as u8
}

fn target_port(round: u16, service: u8) -> u16 {
    (1024 + (u32::from(round) * 131 + u32::from(service) * 7) % 60_000) as u16
}

/// The changing file of a round.
pub(crate) fn manifest(round: u16) -> String {
    let [high, low] = round.to_be_bytes();
    let mut yaml = String::new();
    for i in (0..SERVICES).filter(|i| has_service(round, *i)) {
        let port = target_port(round, i);
        let addresses: Vec<String> =
            (0..backends(round, i)).map(|k| format!("{{addresses: [10.{}.{high}.{low}]}}", 64 + k)).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            yaml,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: {NAMESPACE}}}\nspec:\n  \
             clusterIP: 10.96.1.{i}\n  ports: [{{name: p, port: 80, targetPort: {port}}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{i}-1\n  namespace: \
             {NAMESPACE}\n  labels: {{kubernetes.io/service-name: s{i}}}\naddressType: IPv4\nports: [{{name: \
             p, port: {port}}}]\nendpoints: [{}]\n---\n",
            addresses.join(", ")
        );
    }
    for n in NODES.filter(|n| has_node(round, *n)) {
        let _ = write!(
            yaml,
            "apiVersion: v1\nkind: Node\nmetadata: {{name: other-{n}}}\nspec: {{podCIDR: {n}.0.0.0/8}}\n\
             status:\n  addresses: [{{type: InternalIP, address: 192.168.77.{n}}}]\n---\n"
        );
    }
    yaml
}

/// The round of a service, which all of its backends must agree on.
fn round_of(view: View<'_>, service: u8) -> Option<u16> {
    let entry = view.service(&key(service))?;
    let all: Vec<_> = entry.backends().collect();
    let Some(first) = all.first() else { panic!("service {service} has no backend") };
    let octets = |ip: Ip| ip.as_v4().unwrap_or_else(|| panic!("service {service}: {ip} is no backend"));
    let [_, _, high, low] = octets(first.ip);
    let round = u16::from_be_bytes([high, low]);
    assert_eq!(all.len(), usize::from(backends(round, service)), "service {service} in round {round}");
    for (k, backend) in all.iter().enumerate() {
        assert_eq!(octets(backend.ip), [10, 64 + k as u8, high, low], "service {service}: two rounds in one");
        assert_eq!(backend.port, target_port(round, service), "service {service} in round {round}");
    }
    Some(round)
}

/// The way to the pods of another node; without it, the way to the node's kernel is found, or none.
fn tunnel_to(view: View<'_>, node: u8) -> Option<NextHop> {
    view.route(Ip::v4([node, 77, 77, 5])).filter(|hop| hop.kind() == Some(NextHopKind::Tunnel))
}

/// How many of the lasting services are at `round`.
pub(crate) fn arrived(view: View<'_>, round: u16) -> u8 {
    (0..LASTING).filter(|i| round_of(view, *i) == Some(round)).count() as u8
}

/// Whether the batch that brings `round` is only partly in the tables. What it deletes does not count: that may go
/// in a batch of its own.
pub(crate) fn is_partly_in(view: View<'_>, round: u16) -> bool {
    let services = arrived(view, round);
    let nodes = NODES.filter(|n| has_node(round, *n)).all(|n| tunnel_to(view, n).is_some());
    services > 0 && (services < LASTING || !nodes)
}

/// Whether the tables hold what round `round` asks for, as far as readers can tell.
pub(crate) fn in_force(view: View<'_>, round: u16) -> bool {
    let services = (0..SERVICES).all(|i| round_of(view, i) == has_service(round, i).then_some(round));
    let mut nodes = NODES;
    let nodes = nodes.all(|n| tunnel_to(view, n).is_some() == has_node(round, n));
    let pods = (0..PODS).all(|p| view.endpoint(pod_ip(p).into()).is_some() == has_pod(round, p));
    services && nodes && pods
}

/// Checks every object it sees, for as long as it lives.
#[derive(Default)]
pub(crate) struct Checker {
    ids: BTreeMap<u8, u32>,
    pub(crate) checked: u64,
}

impl Checker {
    pub(crate) fn check(&mut self, view: View<'_>) {
        (0..SERVICES).for_each(|service| self.service(view, service));
        NODES.for_each(|node| self.node(view, node));
        (0..PODS).for_each(|pod| self.pod(view, pod));
        for (id, port) in view.ports() {
            let ours = (0..PODS).any(|pod| port.ifname() == host_veth(NAMESPACE, &pod_name(pod)));
            let fixed = [UPLINK, HOST_ENGINE_IF].contains(&port.ifname());
            assert!(ours || fixed, "port {id:?} is {port:?}");
            assert!(port.kind().is_some(), "port {id:?} is {port:?}");
            self.checked += 1;
        }
    }

    fn service(&mut self, view: View<'_>, service: u8) {
        if round_of(view, service).is_none() {
            // Before the first round is in force there is none yet.
            assert!(service >= LASTING || !self.ids.contains_key(&service), "service {service} vanished");
            return;
        }
        self.checked += 1;
        if service < LASTING
            && let Some(entry) = view.service(&key(service))
        {
            let id = entry.service().id;
            assert_eq!(*self.ids.entry(service).or_insert(id), id, "service {service} changed its number");
        }
    }

    fn node(&mut self, view: View<'_>, node: u8) {
        let Some(hop) = tunnel_to(view, node) else { return };
        let remote = Ip::v4([192, 168, 77, node]);
        assert_eq!(hop.addr, remote, "route to node {node}");
        match view.tunnel(remote) {
            Some(tunnel) => assert_eq!(tunnel.local, Ip::v4([192, 168, 77, 1]), "{tunnel:?}"),
            // Taken down between the two look-ups, if at all: routes go first.
            None => assert!(tunnel_to(view, node).is_none(), "a route leads into no tunnel: {hop:?}"),
        }
        self.checked += 2;
    }

    fn pod(&mut self, view: View<'_>, pod: u8) {
        let ip = pod_ip(pod).into();
        let Some(endpoint) = view.endpoint(ip) else { return };
        assert_eq!(endpoint.mac, pod_mac(ip), "{ip}");
        let port = view.port(endpoint.port);
        if view.endpoint(ip) == Some(endpoint) {
            let port = port.unwrap_or_else(|| panic!("{ip} is behind no port: {endpoint:?}"));
            assert_eq!(port.ifname(), host_veth(NAMESPACE, &pod_name(pod)), "{ip}");
        }
        self.checked += 1;
    }
}
