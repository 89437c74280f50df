//! What the pools make of this node and of the ways to others.

use super::Index;
use crate::encapsulation::{self, Encapsulation, Pool};
use crate::names;
use crate::object::Node;
use fairway_tables::{Ip, Mac, Prefix, Settings, Vxlan};

/// A node's address between the nodes, of this family.
pub(super) fn underlay_of(node: &Node, is_v4: bool) -> Option<Ip> {
    node.underlay().find(|ip| ip.is_v4() == is_v4)
}

/// A node's VTEP address in Flannel's network, or in its own: as that plugin noted it, else from its name.
pub(super) fn vtep_mac(node: &Node, is_flannel: bool) -> Mac {
    let noted = if is_flannel { node.hints.flannel_vtep_mac } else { node.hints.calico_vtep_mac };
    noted.unwrap_or_else(|| names::vtep_mac(&node.name))
}

/// The VXLAN networks that this node is part of.
pub(super) struct Networks {
    /// That of its own layout.
    pub(super) own: Vxlan,
    /// Flannel's, where it is another.
    pub(super) second: Vxlan,
}

impl Index {
    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> + Clone {
        self.pools.values()
    }

    /// VXLAN as this node was told on its command line.
    pub(super) fn own_vxlan(&self) -> (u32, u16) {
        (self.config.vni, self.config.vxlan_port)
    }

    pub(super) fn vxlan_networks(&self, local: &Node) -> Networks {
        let (vni, udp_port) = self.own_vxlan();
        let mut own = Vxlan { vni, udp_port, vtep_mac: vtep_mac(local, false) };
        let mut second = Vxlan { vni: 0, udp_port: 0, vtep_mac: Mac::ZERO };
        for pool in self.pools() {
            if let Encapsulation::FlannelVxlan { vni, udp_port } = pool.encapsulation {
                let flannel = Vxlan { vni, udp_port, vtep_mac: vtep_mac(local, true) };
                let same = (flannel.vni, flannel.udp_port) == (own.vni, own.udp_port);
                *(if same { &mut own } else { &mut second }) = flannel;
            }
        }
        Networks { own, second }
    }

    /// UDP port of bare IP packets; 0 if no pool uses them.
    pub(super) fn udp_tunnel_port(&self) -> u16 {
        let port = |pool: &Pool| match pool.encapsulation {
            Encapsulation::Udp { udp_port } => Some(udp_port),
            _ => None,
        };
        self.pools().find_map(port).unwrap_or(0)
    }

    /// What uplinks take beside VXLAN and UDP: bits of [`Settings`].
    pub(super) fn takes(&self) -> u32 {
        let ipip = self.pools().any(|pool| pool.encapsulation == Encapsulation::Ipip);
        let direct = self.has_enis() || self.pools().any(Pool::is_sometimes_direct);
        let clamp = u32::from(self.config.clamp_mss) * Settings::CLAMP_MSS;
        u32::from(ipip) * Settings::TAKES_IPIP + u32::from(direct) * Settings::TAKES_DIRECT + clamp
    }

    /// What encapsulation adds at most, in bytes.
    pub(super) fn largest_overhead(&self) -> u32 {
        let overheads = self.pools().map(|pool| pool.encapsulation.overhead());
        overheads.max().unwrap_or(names::VXLAN_OVERHEAD)
    }

    /// How packets reach the pods of a remote node. IPv6 ranges that are in no pool go by VXLAN: by the network of the
    /// node's IPv4 pods, if these have one.
    pub(super) fn ways_to(&self, node: &Node) -> Vec<(Prefix, Encapsulation)> {
        let same_subnet = self.is_in_subnet(node);
        let (v4, v6): (Vec<&Prefix>, Vec<&Prefix>) =
            node.pod_cidrs.iter().partition(|cidr| cidr.addr().is_v4());
        let mut ways: Vec<_> =
            v4.iter().flat_map(|cidr| encapsulation::ways(self.pools(), cidr, same_subnet)).collect();
        let vxlan = ways.iter().map(|(_, way)| *way).find(|way| way.vxlan(self.own_vxlan()).is_some());
        for cidr in v6 {
            if self.pools().any(|pool| pool.cidrs.iter().any(|pooled| pooled.overlaps(cidr))) {
                ways.extend(encapsulation::ways(self.pools(), cidr, same_subnet));
            } else {
                ways.push((*cidr, vxlan.unwrap_or(Encapsulation::Vxlan)));
            }
        }
        ways
    }

    /// Whether a node is in this node's subnet: in the one that Calico noted of this node, else if the kernel reaches
    /// it without a gateway.
    fn is_in_subnet(&self, node: &Node) -> bool {
        let Some(local) = self.nodes.get(&self.config.node) else { return false };
        let Some(remote) = underlay_of(node, local.internal_ips[0].is_v4()) else { return false };
        match local.hints.subnet {
            Some((_, subnet)) => subnet.contains(remote),
            None => {
                let via = self.uplink.and_then(|uplink| self.facts.routes.next_hop_to(remote, uplink));
                via.is_some_and(|via| via.gateway.is_none())
            }
        }
    }

    pub(super) fn pending_pools(&self, push: &mut impl FnMut(String, String)) {
        for pool in self.pools() {
            if let Some(selector) = &pool.node_selector {
                push(
                    pool.key().to_string(),
                    format!("nodeSelector '{selector}' is not looked at: all nodes use the pool"),
                );
            }
        }
        if !self.pools.is_empty() {
            self.pending_ranges(push);
        }
        self.pending_uplink_address(push);
    }

    fn pending_ranges(&self, push: &mut impl FnMut(String, String)) {
        for node in self.nodes.values() {
            for cidr in node.pod_cidrs.iter().filter(|cidr| cidr.addr().is_v4()) {
                if !encapsulation::is_covered(self.pools(), cidr) {
                    let reason = format!(
                        "{cidr} is not wholly in a pool; what is outside goes by VXLAN. Add an IPPool that holds it"
                    );
                    push(format!("pod range of Node {}", node.name), reason);
                }
            }
            let networks = self.ways_to(node).into_iter().filter_map(|(_, way)| way.vxlan(self.own_vxlan()));
            let networks: std::collections::BTreeSet<_> = networks.collect();
            if networks.len() > 1 {
                let reason =
                    "its pod ranges are in pools of two VXLAN networks; give them one, since a node has one";
                push(format!("tunnel to Node {}", node.name), reason.into());
            }
        }
    }

    fn pending_uplink_address(&self, push: &mut impl FnMut(String, String)) {
        let Some(local) = self.nodes.get(&self.config.node) else { return };
        let Some((ifindex, name)) = self.uplink() else { return };
        let Some(wanted) = underlay_of(local, local.internal_ips[0].is_v4()) else { return };
        let held: Vec<Ip> =
            self.facts.addresses.iter().filter(|(i, _)| *i == ifindex).map(|(_, ip)| *ip).collect();
        if held.is_empty() {
            push(format!("uplink {name}"), format!("it has no address; assign the node's, {wanted}"));
        } else if !held.contains(&wanted) {
            push(
                format!("uplink {name}"),
                format!(
                    "it does not have the node's address {wanted}; assign it, or correct the Node object"
                ),
            );
        }
    }
}
