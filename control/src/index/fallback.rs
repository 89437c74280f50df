//! What the kernel needs so that it carries pod-to-pod traffic by itself while the engine does not run
//! (docs/fallback.md).

use super::pools::{underlay_of, vtep_mac};
use super::{DirectRoutes, Index};
use crate::encapsulation::Encapsulation;
use crate::names::{self, FALLBACK_FLANNEL_IF, FALLBACK_VXLAN_IF};
use fairway_tables::{Ip, Mac, Prefix, Vxlan};
use std::collections::{BTreeMap, BTreeSet};

/// A VXLAN device of the kernel's: it speaks to the engines of other nodes as this node's engine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanPlan {
    /// Its name: one for each layout.
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
    /// Pod ranges of the other nodes that the kernel does not reach: by bare UDP, or by a next hop that nobody names.
    pub not_carried: BTreeSet<Prefix>,
    /// This node's pods by the kernel's number of the host end of their veths.
    pub pods: BTreeMap<u32, PodPlan>,
    /// Whether this node has a pod range of IPv6.
    pub ipv6: bool,
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
            ..FallbackPlan::default()
        };
        let (Some(node_ip), Some(_)) = (underlay_of(local, true), self.uplink) else { return Some(plan) };
        for (name, node) in self.nodes.iter().filter(|(name, _)| **name != self.config.node) {
            let Some((vtep, next_hop)) = self.tunnel_path(name).filter(|(vtep, _)| vtep.is_v4()) else {
                continue;
            };
            let ways = self.ways_to(node).into_iter();
            for (range, way) in ways.filter(|(range, _)| ipv6 || range.addr().is_v4()) {
                let way = match way {
                    Encapsulation::Direct => {
                        let way = self.direct_next_hop(range, next_hop).map(Way::Direct);
                        if way.is_none() {
                            plan.not_carried.insert(range);
                        }
                        way
                    }
                    Encapsulation::Ipip => Some(Way::Ipip(vtep)),
                    Encapsulation::Vxlan | Encapsulation::FlannelVxlan { .. } => {
                        let ifname = self.fallback_device(way);
                        let is_flannel = matches!(way, Encapsulation::FlannelVxlan { .. });
                        Some(Way::Vxlan { ifname, node: vtep, vtep_mac: vtep_mac(node, is_flannel) })
                    }
                    Encapsulation::Udp { .. } => {
                        plan.not_carried.insert(range);
                        None
                    }
                };
                plan.ranges.extend(way.map(|way| (range, way)));
            }
        }
        let is_used = |ifname| {
            plan.ranges.values().any(|way| matches!(way, Way::Vxlan { ifname: i, .. } if *i == ifname))
        };
        let networks = self.vxlan_networks(local);
        for (ifname, network) in [(FALLBACK_VXLAN_IF, networks.own), (FALLBACK_FLANNEL_IF, networks.second)] {
            // Without pools the node's own is there before the first other node is.
            if is_used(ifname) || (ifname == FALLBACK_VXLAN_IF && self.pools.is_empty()) {
                let Vxlan { vni, udp_port: port, vtep_mac: mac } = network;
                plan.vxlans.push(VxlanPlan { ifname, vni, port, local: node_ip, mac });
            }
        }
        let by_ipip = plan.ranges.values().any(|way| matches!(way, Way::Ipip(_)));
        plan.ipip = by_ipip.then_some(node_ip);
        Some(plan)
    }

    /// The neighbour that a range without encapsulation is behind, as the engine's own routes have it: what a routing
    /// daemon put into the main table stands before what follows from the Node object.
    fn direct_next_hop(&self, range: Prefix, of_node: Option<Ip>) -> Option<Ip> {
        let hops = self.facts.routes.of(range).next().map(|route| route.hops.as_slice()).unwrap_or_default();
        let daemons = hops.iter().find(|hop| Some(hop.ifindex) == self.uplink).and_then(|hop| hop.gateway);
        daemons.or(of_node.filter(|_| self.config.direct_routes == DirectRoutes::Nodes))
    }

    /// The device for a way by VXLAN: a layout that is the node's own needs no other.
    fn fallback_device(&self, way: Encapsulation) -> &'static str {
        let own = self.own_vxlan();
        if way.vxlan(own) == Some(own) { FALLBACK_VXLAN_IF } else { FALLBACK_FLANNEL_IF }
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
