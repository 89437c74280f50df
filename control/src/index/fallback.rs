//! What the kernel needs so that it carries pod-to-pod traffic by itself while the engine does not run
//! (docs/fallback.md).

use super::pools::{underlay_of, vtep_mac};
use super::ways::WayTo;
use super::{DirectRoutes, Index};
use crate::encapsulation::Encapsulation;
use crate::names::{self, FALLBACK_FLANNEL_IF, FALLBACK_FLANNEL6_IF, FALLBACK_VXLAN_IF, FALLBACK_VXLAN6_IF};
use crate::object::Node;
use fairway_tables::{Ip, Mac, Prefix, Vxlan};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// A VXLAN device of the kernel's: it speaks to the engines of other nodes as this node's engine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanPlan {
    /// Its name: one for each layout and family.
    pub ifname: &'static str,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// This node's underlay address.
    pub local: Ip,
    /// This node's VTEP address.
    pub mac: Mac,
}

/// A pod of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPlan {
    /// Name of the host end of its veth.
    pub ifname: String,
    /// Its addresses.
    pub ips: Vec<Ip>,
    /// The pod's Ethernet address.
    pub mac: Mac,
}

/// How the kernel reaches a pod range of another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Through a VXLAN device.
    Vxlan {
        /// The device's name.
        ifname: &'static str,
        /// The other node's underlay address.
        node: Ip,
        /// Its VTEP address.
        vtep_mac: Mac,
    },
    /// Through the IPIP device, to the node with this underlay address.
    Ipip(Ip),
    /// Out of the uplink as it is, to this neighbour.
    Direct(Ip),
}

/// What of the packets to the node itself only the engine can tell: answers to translated connections, and node ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Guarded {
    /// The uplinks, by the kernel's numbers.
    pub links: BTreeSet<u32>,
    /// The node's addresses towards the outside, and those on which node ports answer.
    pub addresses: BTreeSet<Ip>,
    /// Translated source ports, and node ports.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// See the module's head.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FallbackPlan {
    /// The kernel's number of the uplink, once it is known.
    pub uplink: Option<u32>,
    /// The VXLAN devices through which nodes are reached.
    pub vxlans: Vec<VxlanPlan>,
    /// This node's underlay address, if a node is reached by IPIP.
    pub ipip: Option<Ip>,
    /// Largest packet that pods send, in bytes.
    pub mtu: u32,
    /// Pod ranges of the other nodes.
    pub ranges: BTreeMap<Prefix, Way>,
    /// Pod ranges of the other nodes that the kernel does not reach: by bare UDP, by IP in IP other than of IPv4 alone, without
    /// encapsulation over the other family, or by a next hop that nobody names.
    pub not_carried: BTreeSet<Prefix>,
    /// This node's pods by the kernel's number of the host end of their veths.
    pub pods: BTreeMap<u32, PodPlan>,
    /// Whether this node has a pod range of IPv6.
    pub ipv6: bool,
    /// What is kept from the node's own stack.
    pub guarded: Guarded,
}

impl Index {
    /// What the kernel needs; `None` as long as this node's object is not known.
    pub fn fallback_plan(&self) -> Option<FallbackPlan> {
        let local = self.nodes.get(&self.config.node)?;
        let ipv6 = local.pod_cidrs.iter().any(|cidr| !cidr.addr().is_v4());
        let mut plan = FallbackPlan {
            uplink: self.uplink,
            mtu: self.pod_mtu(),
            pods: self.fallback_pods(ipv6),
            ipv6,
            guarded: self.guarded(local),
            ..FallbackPlan::default()
        };
        if self.uplink.is_none() {
            return Some(plan);
        }
        for (_, node) in self.nodes.iter().filter(|(name, _)| **name != self.config.node) {
            let ways = self.ways_to(node).into_iter();
            for way in ways.filter(|way| ipv6 || way.range.addr().is_v4()) {
                match self.fallback_way(node, &way) {
                    Some(found) => drop(plan.ranges.insert(way.range, found)),
                    None => drop(plan.not_carried.insert(way.range)),
                }
            }
        }
        self.fallback_vxlans(local, &mut plan);
        let by_ipip = plan.ranges.values().any(|way| matches!(way, Way::Ipip(_)));
        plan.ipip = underlay_of(local, true).filter(|_| by_ipip);
        Some(plan)
    }

    fn guarded(&self, local: &Node) -> Guarded {
        let outside = [true, false].into_iter().filter_map(|is_v4| underlay_of(local, is_v4));
        let translated = &self.config.nat.snat_ports;
        let node_ports = self.services.values().flat_map(|service| &service.ports).map(|port| port.node_port);
        let node_ports = node_ports.filter(|port| *port != 0).map(|port| port..=port);
        Guarded {
            links: self.uplink.into_iter().chain(self.eni_ports.keys().copied()).collect(),
            addresses: outside.chain(self.node_port_ips()).collect(),
            ports: std::iter::once(translated.first..=translated.last).chain(node_ports).collect(),
        }
    }

    /// How the kernel reaches a range of another node; `None` if it does not.
    fn fallback_way(&self, node: &Node, way: &WayTo) -> Option<Way> {
        let WayTo { range, encapsulation, is_v4 } = *way;
        let (vtep, next_hop) = self.path_to(node, is_v4)?;
        match encapsulation {
            Encapsulation::Direct => {
                let next_hop = self.direct_next_hop(range, next_hop);
                // A route's gateway is of its own family.
                next_hop.filter(|ip| ip.is_v4() == range.addr().is_v4()).map(Way::Direct)
            }
            Encapsulation::Ipip => (is_v4 && range.addr().is_v4()).then_some(Way::Ipip(vtep)),
            Encapsulation::Vxlan | Encapsulation::FlannelVxlan { .. } => {
                let ifname = self.fallback_device(encapsulation, is_v4);
                let is_flannel = matches!(encapsulation, Encapsulation::FlannelVxlan { .. });
                Some(Way::Vxlan { ifname, node: vtep, vtep_mac: vtep_mac(node, is_flannel, is_v4) })
            }
            Encapsulation::Udp { .. } => None,
        }
    }

    /// The VXLAN devices that ways lead through.
    fn fallback_vxlans(&self, local: &Node, plan: &mut FallbackPlan) {
        let networks = self.vxlan_networks(local);
        let over_ipv6 = |network: Vxlan, vtep_mac| Vxlan { vtep_mac, ..network };
        // Without pools the node's own is there before the first other node is.
        let own = self.pools.is_empty();
        for (ifname, network, is_v4, is_there) in [
            (FALLBACK_VXLAN_IF, networks.own, true, own),
            (FALLBACK_FLANNEL_IF, networks.second, true, false),
            (FALLBACK_VXLAN6_IF, over_ipv6(networks.own, networks.macs6[0]), false, false),
            (FALLBACK_FLANNEL6_IF, over_ipv6(networks.second, networks.macs6[1]), false, false),
        ] {
            let Some(node_ip) = underlay_of(local, is_v4) else { continue };
            let leads = |way: &Way| matches!(way, Way::Vxlan { ifname: i, .. } if *i == ifname);
            if is_there || plan.ranges.values().any(leads) {
                let Vxlan { vni, udp_port: port, vtep_mac: mac } = network;
                plan.vxlans.push(VxlanPlan { ifname, vni, port, local: node_ip, mac });
            }
        }
    }

    /// The neighbour that a range without encapsulation is behind, as the engine's own routes have it: what a routing
    /// daemon put into the main table stands before what follows from the Node object.
    fn direct_next_hop(&self, range: Prefix, of_node: Option<Ip>) -> Option<Ip> {
        let hops = self.facts.routes.of(range).next().map(|route| route.hops.as_slice()).unwrap_or_default();
        let daemons = hops.iter().find(|hop| Some(hop.ifindex) == self.uplink).and_then(|hop| hop.gateway);
        daemons.or(of_node.filter(|_| self.config.direct_routes == DirectRoutes::Nodes))
    }

    /// The device for a way by VXLAN: a layout that is the node's own needs no other.
    fn fallback_device(&self, way: Encapsulation, is_v4: bool) -> &'static str {
        let own = self.own_vxlan();
        match (way.vxlan(own) == Some(own), is_v4) {
            (true, true) => FALLBACK_VXLAN_IF,
            (false, true) => FALLBACK_FLANNEL_IF,
            (true, false) => FALLBACK_VXLAN6_IF,
            (false, false) => FALLBACK_FLANNEL6_IF,
        }
    }

    fn fallback_pods(&self, ipv6: bool) -> BTreeMap<u32, PodPlan> {
        let mut out = BTreeMap::new();
        for link in self.facts.links.values() {
            // The veth of two pods of one name, one on its way out, has the one that comes first.
            let Some(key) = self.pods_by_veth.get(&link.name).and_then(|pods| pods.first()) else { continue };
            let Some(pod) = self.pods.get(key).filter(|pod| self.is_local(pod)) else { continue };
            let Some(first) = pod.ips.first() else { continue };
            let mac = names::pod_mac(*first);
            let ips = pod.ips.iter().copied().filter(|ip| ipv6 || ip.is_v4()).collect();
            out.insert(link.ifindex, PodPlan { ifname: link.name.clone(), ips, mac });
        }
        out
    }
}
