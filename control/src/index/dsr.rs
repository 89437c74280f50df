//! Direct server return (docs/dsr.md): how the backends of such Services are reached on other nodes, and what of it is not
//! possible.

use super::pools::underlay_of;
use super::ways::family_between;
use super::{Index, Name, Source};
use crate::encapsulation::{self, Encapsulation, Pool};
use crate::object::{Kind, Node, ObjectKey, Service};
use fairway_tables::{Ip, NextHop, NextHopKind, PortId, Prefix, ServiceKey};
use std::collections::{BTreeMap, BTreeSet};

/// Where nothing leads to a backend's node: its packets are translated as without DSR.
const NO_WAY: NextHopKind = NextHopKind::Unreachable;

/// The address at which a node's node ports are reached, as far as other nodes know.
pub(super) fn node_ports_at(node: &Node, is_v4: bool) -> Option<Ip> {
    node.internal_ips.iter().copied().find(|ip| ip.is_v4() == is_v4)
}

impl Index {
    fn dsr_services(&self) -> impl Iterator<Item = &Service> {
        self.dsr_services.iter().filter_map(|name| self.services.get(name))
    }

    /// Whether any Service needs a tunnel to every node.
    pub(super) fn uses_dsr(&self) -> bool {
        !self.dsr_services.is_empty()
    }

    /// Notes whether a Service uses DSR. The first that does, and the end of the last, concern the tunnels to all nodes.
    pub(super) fn track_dsr(&mut self, name: &Name, dirty: &mut BTreeSet<Source>) {
        let before = self.uses_dsr();
        if self.services.get(name).is_some_and(Service::uses_dsr) {
            self.dsr_services.insert(name.clone());
        } else {
            self.dsr_services.remove(name);
        }
        if before != self.uses_dsr() {
            self.everything_on_the_uplink(dirty);
        }
    }

    /// Marks the Services whose ways lead to nodes.
    pub(super) fn dsr_touched(&self, dirty: &mut BTreeSet<Source>) {
        let names = self.dsr_services.iter().cloned();
        dirty.extend(names.map(|(namespace, name)| Source::Service(namespace, name)));
    }

    /// The addresses at which other nodes know this node's node ports, and those for its own processes.
    pub(super) fn dsr_node_ports(&self) -> BTreeSet<Ip> {
        let node = self.nodes.get(&self.config.node);
        let own = [true, false].into_iter().filter_map(|is_v4| node_ports_at(node?, is_v4));
        own.chain([ServiceKey::NODE_PORTS, ServiceKey::NODE_PORTS6]).collect()
    }

    /// The way to the node of a backend.
    pub(super) fn dsr_way(&self, node: &str, backend: Ip) -> NextHop {
        if node == self.config.node {
            return NextHop::new(NextHopKind::Local, Ip::UNSPECIFIED, PortId::NONE);
        }
        let Ok((node, vtep)) = self.dsr_node(node, backend) else {
            return NextHop::new(NO_WAY, Ip::UNSPECIFIED, PortId::NONE);
        };
        let kind = match self.pool_of(node, backend).map(|pool| pool.encapsulation) {
            Some(Encapsulation::Ipip) => NextHopKind::Ipip,
            Some(Encapsulation::Udp { .. }) => NextHopKind::UdpTunnel,
            // Where its pool uses nothing, or it is in none: the VXLAN network of the node.
            _ => NextHopKind::Tunnel,
        };
        NextHop::new(kind, vtep, PortId::NONE)
    }

    /// The pool that a backend of a node is in.
    fn pool_of(&self, node: &Node, backend: Ip) -> Option<&Pool> {
        let parts = node.pod_cidrs.iter().flat_map(|cidr| encapsulation::parts(self.pools(), cidr));
        let around = parts.filter(|(range, _)| range.contains(backend));
        around.max_by_key(|(range, _)| range.len()).and_then(|(_, pool)| pool)
    }

    /// A remote node and its VTEP, of the family over which its pods are reached, or why it has none.
    fn dsr_node(&self, name: &str, backend: Ip) -> Result<(&Node, Ip), &'static str> {
        if name.is_empty() {
            return Err("have no nodeName");
        }
        let node = self.nodes.get(name).ok_or("are on nodes that are not known")?;
        let local = self.nodes.get(&self.config.node).ok_or("wait for this node's own Node object")?;
        let family = family_between(self.pool_of(node, backend), &Prefix::host(backend), local, node);
        let vtep = family.and_then(|is_v4| underlay_of(node, is_v4));
        vtep.map(|vtep| (node, vtep))
            .ok_or("are on nodes without an InternalIP of this node's address family")
    }

    /// The families over which a remote node must be reached for the sake of DSR, since its backends need not be in a range
    /// of pods: all that both have.
    pub(super) fn dsr_families(&self, node: &Node) -> impl Iterator<Item = bool> {
        let local = self.nodes.get(&self.config.node).filter(|_| self.uses_dsr());
        let has = |node: &Node, is_v4: bool| underlay_of(node, is_v4).is_some();
        let both = |is_v4: &bool| local.is_some_and(|local| has(local, *is_v4)) && has(node, *is_v4);
        let families = [true, false].map(|is_v4| Some(is_v4).filter(both));
        families.into_iter().flatten()
    }

    /// The VXLAN network in which a node is reached that pods' packets go to without.
    pub(super) fn dsr_vxlan(&self, node: &Node) -> Encapsulation {
        let parts = node.pod_cidrs.iter().flat_map(|cidr| encapsulation::parts(self.pools(), cidr));
        let mut ways = parts.map(|(_, pool)| pool.map_or(Encapsulation::Vxlan, |pool| pool.encapsulation));
        ways.find(|way| way.is_vxlan()).unwrap_or(Encapsulation::Vxlan)
    }

    /// Which endpoints of which Services are reached without DSR, and why.
    pub(super) fn pending_dsr(&self, push: &mut impl FnMut(String, String)) {
        let known = self.dsr_node_ports();
        let other = self.node_port_ips().find(|ip| !known.contains(ip));
        for service in self.dsr_services() {
            let key = (service.namespace.clone(), service.name.clone());
            let mut without: BTreeMap<&str, usize> = BTreeMap::new();
            let slices = super::services::slices_of(&self.slices_by_service, &self.slices, &key);
            for endpoint in slices.flat_map(|slice| &slice.endpoints) {
                if *endpoint.node != self.config.node
                    && let Err(why) = self.dsr_node(&endpoint.node, endpoint.ip)
                {
                    *without.entry(why).or_default() += 1;
                }
            }
            let has_node_port = service.ports.iter().any(|port| port.node_port != 0);
            let what = ObjectKey::new(Kind::Service, &service.namespace, &service.name).to_string();
            for (why, count) in without {
                let reason = format!(
                    "{count} endpoints {why}: they see this node's address, not the client's (no DSR)"
                );
                push(what.clone(), reason);
            }
            if let Some(ip) = other.filter(|_| has_node_port) {
                let reason = format!(
                    "node ports at {ip} are without DSR: other nodes know a node's first InternalIP only"
                );
                push(what, reason);
            }
        }
    }
}
