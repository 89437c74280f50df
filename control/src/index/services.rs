//! What a Service contributes to the tables: one record per address and port at which it is reached, each with the
//! endpoints of its slices that this node uses for it. kube-proxy is the reference for which those are; see also
//! [`selection`](crate::selection) and, for what a client makes of it, the engine's service stage.

use super::compile::{Contribution, is_link_local};
use super::{Index, Name, Source};
use crate::model::{Key, Value};
use crate::object::{EndpointSlice, Service, ServicePort, SliceEndpoint};
use crate::selection::{self, Candidate, Hint, Policies};
use fairway_tables as tables;
use fairway_tables::{Backend, Ip, NextHop, Prefix, ServiceKey, Targets};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// On which of the node's addresses node ports answer, as kube-proxy's `--nodeport-addresses` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NodePortAddresses {
    /// The node's first InternalIP of each family.
    #[default]
    Primary,
    /// All addresses of the node in these ranges, but for loopback and link-local ones.
    In(Vec<Prefix>),
}

/// What an address of a service is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frontend {
    Cluster,
    NodePort,
    External,
    LoadBalancer,
}

/// Where endpoints are seen from.
#[derive(Clone, Copy)]
struct Here<'a> {
    node: &'a str,
    zone: &'a str,
}

impl Here<'_> {
    fn sees(&self, endpoint: &SliceEndpoint) -> Candidate {
        Candidate {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: &*endpoint.node == self.node,
            node_hint: Hint::seen(&endpoint.for_nodes, self.node),
            zone_hint: Hint::seen(&endpoint.for_zones, self.zone),
        }
    }
}

/// The endpoints of a service port that this node uses, by the policy of the traffic.
struct Chosen {
    cluster: Vec<Backend>,
    /// The ways to the nodes of `cluster`, where the service uses DSR.
    ways: Vec<NextHop>,
    local: Vec<Backend>,
    /// Whether any could be used anywhere.
    anywhere: bool,
}

/// What is to be answered on a Service's `healthCheckNodePort`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// Namespace and name of the Service.
    pub service: (String, String),
    /// Ready endpoints on this node with an IPv4 address.
    pub local_v4: usize,
    /// The same with an IPv6 address. kube-proxy answers each family for itself.
    pub local_v6: usize,
}

impl Index {
    /// A service: one record per address and port.
    pub(super) fn compile_service(&mut self, key: &Name) -> Contribution {
        let mut out = Contribution::new();
        let Some(service) = self.services.get(key) else { return out };
        let zone = self.nodes.get(&self.config.node).map_or("", |node| node.zone.as_str());
        let here = Here { node: &self.config.node, zone };
        let slices: Vec<&EndpointSlice> = slices_of(&self.slices_by_service, &self.slices, key).collect();
        let policies = Policies {
            internal_local: service.internal_local,
            // Whoever gets packets of another node by DSR gives them to backends of its own.
            external_local: service.external_local || service.dsr,
            external: service.is_external(),
        };
        let sources = self.admitted(service);
        let dsr_ips = if service.uses_dsr() { self.dsr_node_ports() } else { BTreeSet::new() };
        // What is sent to other ports of a cluster address is refused.
        for (ip, port) in service.cluster_ips.iter().zip(service.ports.iter().cycle()) {
            let Some(id) = self.service_ids.claim(&ServiceKey::new(*ip, port.port, port.proto)) else {
                continue;
            };
            let record = tables::Service { id, flags: 0, affinity_timeout_s: 0 };
            out.insert(Key::Service(ServiceKey::no_port(*ip)), Value::Service(record, Targets::default()));
        }
        for port in &service.ports {
            for is_v4 in [true, false] {
                let family =
                    |ips: &[Ip]| ips.iter().copied().filter(|ip| ip.is_v4() == is_v4).collect::<Vec<_>>();
                let cluster_ips = family(&service.cluster_ips);
                // A family without a cluster address has no other either.
                let Some(first) = cluster_ips.first() else { continue };
                let first = ServiceKey::new(*first, port.port, port.proto);
                let (mut chosen, nodes) = choose(&slices, port, is_v4, here, policies);
                if service.uses_dsr() {
                    let backends = chosen.cluster.iter().zip(nodes);
                    chosen.ways = backends.map(|(backend, node)| self.dsr_way(node, backend.ip)).collect();
                }
                let mut put = |ip: Ip, number: u16, frontend: Frontend| {
                    let table_key = ServiceKey::new(ip, number, port.proto);
                    let owner = if frontend == Frontend::Cluster { table_key } else { first };
                    let Some(id) = self.service_ids.claim(&owner) else { return };
                    let dsr = service.uses_dsr() && (frontend != Frontend::NodePort || dsr_ips.contains(&ip));
                    let sources = sources.iter().filter(|range| range.addr().is_v4() == is_v4).copied();
                    let (flags, targets) = record(service, frontend, dsr, &chosen, sources.collect());
                    let record =
                        tables::Service { id, flags, affinity_timeout_s: service.affinity_timeout_s };
                    // Of two claims of one service to an address, the first in this order holds.
                    out.entry(Key::Service(table_key)).or_insert(Value::Service(record, targets));
                };
                cluster_ips.iter().for_each(|ip| put(*ip, port.port, Frontend::Cluster));
                if port.node_port != 0 {
                    let ips = self.node_port_ips.iter().filter(|ip| ip.is_v4() == is_v4);
                    let own = if is_v4 { ServiceKey::NODE_PORTS } else { ServiceKey::NODE_PORTS6 };
                    // For the node's own processes too, where there is such an address.
                    let own = ips.clone().next().map(|_| own);
                    ips.copied().chain(own).for_each(|ip| put(ip, port.node_port, Frontend::NodePort));
                }
                let balancer = family(&service.load_balancer_ips);
                balancer.into_iter().for_each(|ip| put(ip, port.port, Frontend::LoadBalancer));
                family(&service.external_ips)
                    .into_iter()
                    .for_each(|ip| put(ip, port.port, Frontend::External));
            }
        }
        out
    }

    /// `loadBalancerSourceRanges`. If they hold this node, then also the load balancer's own address: a node that has it as an
    /// address of its own sends from it. The engine judges this node by its InternalIP.
    fn admitted(&self, service: &Service) -> BTreeSet<Prefix> {
        let mut out: BTreeSet<Prefix> = service.source_ranges.iter().copied().collect();
        if let Some(node) = self.nodes.get(&self.config.node) {
            for ip in &node.internal_ips {
                if service.source_ranges.iter().any(|range| range.contains(*ip)) {
                    let same = |other: &&Ip| other.is_v4() == ip.is_v4();
                    out.extend(service.load_balancer_ips.iter().filter(same).map(|ip| Prefix::host(*ip)));
                }
            }
        }
        out
    }

    /// The addresses on which node ports are to answer.
    pub(super) fn find_node_port_ips(&self) -> BTreeSet<Ip> {
        match &self.config.node_port_addresses {
            NodePortAddresses::Primary => {
                let ips = self.nodes.get(&self.config.node).map(|node| &node.internal_ips);
                let first = |is_v4| ips.into_iter().flatten().copied().find(|ip: &Ip| ip.is_v4() == is_v4);
                first(true).into_iter().chain(first(false)).collect()
            }
            NodePortAddresses::In(ranges) => {
                let own =
                    self.facts.addresses.iter().map(|(_, ip)| *ip).filter(|ip| !is_private_to_host(*ip));
                own.filter(|ip| ranges.iter().any(|range| range.contains(*ip))).collect()
            }
        }
    }

    /// The addresses on which node ports answer.
    pub fn node_port_ips(&self) -> impl Iterator<Item = Ip> + '_ {
        self.node_port_ips.iter().copied()
    }

    /// Marks the services that depend on this node's addresses, if these changed.
    pub(super) fn node_ports_touched(&mut self, dirty: &mut BTreeSet<Source>) {
        let ips = self.find_node_port_ips();
        if ips != self.node_port_ips {
            self.node_port_ips = ips;
            let with_ports = self
                .services
                .iter()
                .filter(|(_, service)| service.ports.iter().any(|port| port.node_port != 0));
            dirty.extend(
                with_ports.map(|((namespace, name), _)| Source::Service(namespace.clone(), name.clone())),
            );
        }
    }

    /// The health checks to answer, by port.
    pub fn health_checks(&self) -> BTreeMap<u16, HealthCheck> {
        let checked = self.services.iter().filter(|(_, service)| service.health_check_node_port != 0);
        let check = |(name, service): (&Name, &Service)| {
            let local: BTreeSet<Ip> = slices_of(&self.slices_by_service, &self.slices, name)
                .flat_map(|slice| &slice.endpoints)
                .filter(|endpoint| endpoint.ready && *endpoint.node == *self.config.node)
                .map(|endpoint| endpoint.ip)
                .collect();
            let local_v4 = local.iter().filter(|ip| ip.is_v4()).count();
            let local_v6 = local.len() - local_v4;
            let check = HealthCheck { service: name.clone(), local_v4, local_v6 };
            (service.health_check_node_port, check)
        };
        // Of two services with one port, the first by name has it.
        checked.rev().map(check).collect()
    }
}

/// The slices of a service.
pub(super) fn slices_of<'a>(
    by_service: &'a BTreeMap<Name, BTreeSet<String>>,
    slices: &'a BTreeMap<Name, EndpointSlice>,
    service: &'a Name,
) -> impl Iterator<Item = &'a EndpointSlice> {
    let names = by_service.get(service).into_iter().flatten();
    names.filter_map(|name| slices.get(&(service.0.clone(), name.clone())))
}

/// Whether an address is of no use to anybody else.
fn is_private_to_host(ip: Ip) -> bool {
    std::net::IpAddr::from(ip).is_loopback()
        || is_link_local(ip)
        || ip.as_v4().is_some_and(|octets| octets[..2] == [169, 254])
}

/// Flags and targets of one address of a service, which uses DSR there or does not.
fn record(
    service: &Service,
    frontend: Frontend,
    dsr: bool,
    chosen: &Chosen,
    sources: Vec<Prefix>,
) -> (u32, Targets) {
    use tables::Service as Record;
    let mut targets = Targets { cluster: chosen.cluster.clone(), ..Targets::default() };
    let mut flags = match frontend {
        Frontend::Cluster if service.internal_local => {
            targets.cluster.clone_from(&chosen.local);
            0
        }
        Frontend::Cluster => 0,
        _ if service.external_local => {
            targets.local.clone_from(&chosen.local);
            Record::EXTERNAL | Record::LOCAL
        }
        _ if dsr => {
            targets.local.clone_from(&chosen.local);
            targets.ways.clone_from(&chosen.ways);
            Record::EXTERNAL | Record::MASQUERADE | Record::DSR
        }
        _ => Record::EXTERNAL | Record::MASQUERADE,
    };
    let has_own = flags & (Record::LOCAL | Record::DSR) != 0;
    let lacks = targets.cluster.is_empty() || (has_own && targets.local.is_empty());
    if lacks && chosen.anywhere {
        flags |= Record::ENDPOINTS_ELSEWHERE;
    }
    if frontend == Frontend::LoadBalancer && !sources.is_empty() {
        flags |= Record::SOURCE_RANGES;
        targets.source_ranges = sources;
    }
    if service.maglev {
        flags |= Record::MAGLEV;
    }
    (flags, targets)
}

/// The endpoints that answer one port of a service: of slices of the address family and ports of the same name and
/// protocol, those that this node uses, sorted, without repeats; and the nodes of those for any client.
fn choose<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    is_v4: bool,
    here: Here<'_>,
    policies: Policies,
) -> (Chosen, Vec<&'a str>) {
    let mut seen: BTreeMap<Backend, (Candidate, &str)> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.is_v4 == is_v4) {
        for target in slice.ports.iter().filter(|p| p.name == port.name && p.proto == port.proto) {
            for endpoint in &slice.endpoints {
                let backend = Backend { ip: endpoint.ip, port: target.port, flags: 0 };
                let candidate = (here.sees(endpoint), &*endpoint.node);
                // Two slices may have one address: an endpoint moves from one to the other, or a pod has got the
                // address of one that is still terminating. What does not terminate counts, as with kube-proxy.
                match seen.entry(backend) {
                    Entry::Vacant(place) => {
                        place.insert(candidate);
                    }
                    Entry::Occupied(mut place) if place.get().0.terminating && !candidate.0.terminating => {
                        place.insert(candidate);
                    }
                    Entry::Occupied(_) => {}
                }
            }
        }
    }
    let (backends, seen): (Vec<Backend>, Vec<(Candidate, &str)>) = seen.into_iter().unzip();
    let (candidates, nodes): (Vec<Candidate>, Vec<&str>) = seen.into_iter().unzip();
    let selection = selection::select(&candidates, policies);
    let of = |places: Vec<usize>| places.into_iter().map(|place| backends[place]).collect();
    let nodes = selection.cluster.iter().map(|place| nodes[*place]).collect();
    let (cluster, local) = (of(selection.cluster), of(selection.local));
    (Chosen { cluster, ways: Vec::new(), local, anywhere: selection.anywhere }, nodes)
}
