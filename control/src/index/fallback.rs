//! What the kernel needs so that it carries pod-to-pod traffic by itself while the engine does not run
//! (docs/fallback.md).

use super::Index;
use super::pools::{underlay_of, vtep_mac};
use crate::encapsulation::Encapsulation;
use crate::names;
use fairway_tables::{Ip, Mac, Prefix};
use std::collections::{BTreeMap, BTreeSet};

/// The kernel's VXLAN device: it speaks to the engines of other nodes as this node's engine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanPlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// This node's underlay address.
    pub local: Ip,
    /// This node's VTEP address.
    pub mac: Mac,
    /// Largest packet that pods send, in bytes.
    pub mtu: u32,
}

/// A pod of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPlan {
    /// Name of the host end of its veth.
    pub ifname: String,
    /// The kernel's number of that device.
    pub ifindex: u32,
    /// The pod's Ethernet address.
    pub mac: Mac,
}

/// How the kernel reaches a pod range of another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Through the VXLAN device, to the node with this underlay address.
    Vxlan(Ip),
    /// Out of the uplink as it is, to this neighbour.
    Direct(Ip),
}

/// See the module's head. IPv4 today.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FallbackPlan {
    /// The kernel's number of the uplink, once it is known.
    pub uplink: Option<u32>,
    /// The VXLAN device, if a node is reached by VXLAN.
    pub vxlan: Option<VxlanPlan>,
    /// VTEP addresses of the other nodes by their underlay addresses.
    pub remotes: BTreeMap<Ip, Mac>,
    /// Pod ranges of the other nodes.
    pub ranges: BTreeMap<Prefix, Way>,
    /// Pod ranges of the other nodes that the kernel does not reach: by IPIP, UDP, or a second VXLAN network.
    pub not_carried: BTreeSet<Prefix>,
    /// This node's pods by address.
    pub pods: BTreeMap<Ip, PodPlan>,
}

impl Index {
    /// What the kernel needs; `None` as long as this node's object is not known.
    pub fn fallback_plan(&self) -> Option<FallbackPlan> {
        let local = self.nodes.get(&self.config.node)?;
        let mut plan =
            FallbackPlan { uplink: self.uplink, pods: self.fallback_pods(), ..FallbackPlan::default() };
        let (Some(node_ip), Some(_)) = (underlay_of(local, true), self.uplink) else { return Some(plan) };
        // The device is in one network: the first that leads to a node; without pools it is the node's own anyway.
        let mut network = self.pools.is_empty().then(|| self.own_vxlan());
        for (name, node) in self.nodes.iter().filter(|(name, _)| **name != self.config.node) {
            let Some((vtep, next_hop)) = self.tunnel_path(name).filter(|(vtep, _)| vtep.is_v4()) else {
                continue;
            };
            for (range, way) in self.ways_to(node).into_iter().filter(|(range, _)| range.addr().is_v4()) {
                let vxlan = way.vxlan(self.own_vxlan());
                network = network.or(vxlan);
                if way == Encapsulation::Direct {
                    plan.ranges.extend(next_hop.map(|hop| (range, Way::Direct(hop))));
                } else if vxlan.is_some() && vxlan == network {
                    plan.ranges.insert(range, Way::Vxlan(vtep));
                    let is_flannel = matches!(way, Encapsulation::FlannelVxlan { .. });
                    plan.remotes.insert(vtep, vtep_mac(node, is_flannel));
                } else {
                    plan.not_carried.insert(range);
                }
            }
        }
        let networks = self.vxlan_networks(local);
        let own = (networks.own.vni, networks.own.udp_port);
        plan.vxlan = network.map(|(vni, port)| {
            let mac = if (vni, port) == own { networks.own.vtep_mac } else { networks.second.vtep_mac };
            VxlanPlan { vni, port, local: node_ip, mac, mtu: self.pod_mtu() }
        });
        Some(plan)
    }

    fn fallback_pods(&self) -> BTreeMap<Ip, PodPlan> {
        let mut out = BTreeMap::new();
        for link in self.facts.links.values() {
            // The veth of two pods of one name, one on its way out, has the one that comes first.
            let Some(key) = self.pods_by_veth.get(&link.name).and_then(|pods| pods.first()) else { continue };
            let Some(pod) = self.pods.get(key).filter(|pod| self.is_local(pod)) else { continue };
            let Some(first) = pod.ips.first() else { continue };
            let mac = names::pod_mac(*first);
            for ip in pod.ips.iter().filter(|ip| ip.is_v4()) {
                let plan = PodPlan { ifname: link.name.clone(), ifindex: link.ifindex, mac };
                out.insert(*ip, plan);
            }
        }
        out
    }
}
