//! What the pools make of this node and of the ways to others.

use super::{Index, is_link_local};
use crate::encapsulation::{self, Encapsulation, Pool};
use crate::names;
use crate::object::Node;
use fairway_tables::{Ip, Mac, Settings, Vxlan};

/// Smallest MTU of any link of IPv6.
const MIN_IPV6_MTU: u32 = 1280;

/// A node's address between the nodes, of this family.
pub(super) fn underlay_of(node: &Node, is_v4: bool) -> Option<Ip> {
    node.underlay().find(|ip| ip.is_v4() == is_v4)
}

/// A node's VTEP address over a family, in Flannel's network or in its own: as that plugin noted it, else from its name.
pub(super) fn vtep_mac(node: &Node, is_flannel: bool, is_v4: bool) -> Mac {
    let noted = match (is_flannel, is_v4) {
        (true, true) => node.hints.flannel_vtep_mac,
        (true, false) => node.hints.flannel_vtep_mac6,
        (false, true) => node.hints.calico_vtep_mac,
        (false, false) => node.hints.calico_vtep_mac6,
    };
    noted.unwrap_or_else(|| names::vtep_mac(&node.name))
}

/// The VXLAN networks that this node is part of.
pub(super) struct Networks {
    /// That of its own layout.
    pub(super) own: Vxlan,
    /// Flannel's, where it is another.
    pub(super) second: Vxlan,
    /// The node's VTEP addresses in both over IPv6.
    pub(super) macs6: [Mac; 2],
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
        let mut own = Vxlan { vni, udp_port, vtep_mac: vtep_mac(local, false, true) };
        let mut second = Vxlan { vni: 0, udp_port: 0, vtep_mac: Mac::ZERO };
        let mut macs6 = [vtep_mac(local, false, false), Mac::ZERO];
        for pool in self.pools() {
            if let Encapsulation::FlannelVxlan { vni, udp_port } = pool.encapsulation {
                let flannel = Vxlan { vni, udp_port, vtep_mac: vtep_mac(local, true, true) };
                let same = (flannel.vni, flannel.udp_port) == (own.vni, own.udp_port);
                *(if same { &mut own } else { &mut second }) = flannel;
                macs6[usize::from(!same)] = vtep_mac(local, true, false);
            }
        }
        Networks { own, second, macs6 }
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
    pub(super) fn takes(&self, local: &Node) -> u32 {
        let ways = self.possible_ways(local).into_iter();
        let ipip = ways.filter(|(encapsulation, ..)| *encapsulation == Encapsulation::Ipip);
        let ipip = ipip.fold(0, |bits, (_, inner, outer)| bits | Settings::takes_ip_in_ip(inner, outer));
        let direct = self.has_enis() || self.pools().any(Pool::is_sometimes_direct);
        let clamp = u32::from(self.config.clamp_mss) * Settings::CLAMP_MSS;
        ipip + u32::from(direct) * Settings::TAKES_DIRECT + clamp
    }

    /// What encapsulation adds at most, in bytes.
    pub(super) fn largest_overhead(&self) -> u32 {
        let local = self.nodes.get(&self.config.node);
        let ways = local.map(|local| self.possible_ways(local)).unwrap_or_default().into_iter();
        let overheads = ways.map(|(encapsulation, _, outer_is_v4)| encapsulation.overhead(outer_is_v4));
        overheads.max().unwrap_or(names::VXLAN_OVERHEAD)
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
            let ways = self.ways_to(node);
            let is_twofold = [true, false].into_iter().any(|family| {
                let ways = ways.iter().filter(|way| way.is_v4 == family);
                let networks = ways.filter_map(|way| way.encapsulation.vxlan(self.own_vxlan()));
                networks.collect::<std::collections::BTreeSet<_>>().len() > 1
            });
            if is_twofold {
                let reason =
                    "its pod ranges are in pools of two VXLAN networks; give them one, since a node has one";
                push(format!("tunnel to Node {}", node.name), reason.into());
            }
        }
    }

    fn pending_uplink_address(&self, push: &mut impl FnMut(String, String)) {
        let Some(local) = self.nodes.get(&self.config.node) else { return };
        let Some((ifindex, name)) = self.uplink() else { return };
        let ways = self.possible_ways(local);
        let is_used = |is_v4: &bool| ways.iter().any(|(_, _, outer_is_v4)| outer_is_v4 == is_v4);
        let held: Vec<Ip> =
            self.facts.addresses.iter().filter(|(i, _)| *i == ifindex).map(|(_, ip)| *ip).collect();
        for wanted in [true, false].into_iter().filter(is_used).filter_map(|is_v4| underlay_of(local, is_v4))
        {
            let is_told = held.iter().any(|ip| !is_link_local(*ip));
            if !is_told {
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
        let has_ipv6 = local.pod_cidrs.iter().any(|cidr| !cidr.addr().is_v4());
        if has_ipv6 && self.pod_mtu() < MIN_IPV6_MTU {
            let reason = format!(
                "it leaves {} bytes for pods' packets, and IPv6 needs {MIN_IPV6_MTU} (RFC 8200 section 5); enlarge its MTU",
                self.pod_mtu()
            );
            push(format!("uplink {name}"), reason);
        }
    }
}
