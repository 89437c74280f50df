//! What the tables say of translated sources (docs/nat.md): the addresses and ports that are given, the destinations that
//! see pods' own addresses, and the way of pods' packets to the outside.

use super::Index;
use super::compile::{Contribution, UPLINK_PORT};
use super::pools::underlay_of;
use super::routes::Hop;
use crate::masquerade::link_local;
use crate::model::{Key, Value};
use crate::names;
use crate::object::Node;
use fairway_tables::{Ip, Masquerade, NextHop, NextHopKind, Prefix, Settings};
use std::collections::BTreeSet;

/// Everything of a family.
pub(super) fn everything(is_v4: bool) -> Prefix {
    let any = if is_v4 { Ip::v4([0; 4]) } else { Ip::UNSPECIFIED };
    Prefix::new(any, 0).unwrap_or_else(|| Prefix::host(any))
}

/// The last address of a range.
fn last(cidr: &Prefix) -> Ip {
    let bits = if cidr.addr().is_v4() { 32 } else { 128 } - u32::from(cidr.len());
    let mask = if bits == 128 { u128::MAX } else { (1 << bits) - 1 };
    Ip((u128::from_be_bytes(cidr.addr().0) | mask).to_be_bytes())
}

impl Index {
    /// Completes the node's settings.
    pub(super) fn set_snat(&self, node: &Node, settings: &mut Settings) {
        let cidr = |is_v4| node.pod_cidrs.iter().find(|cidr| cidr.addr().is_v4() == is_v4);
        settings.outside_ip = underlay_of(node, true).unwrap_or(Ip::UNSPECIFIED);
        settings.outside_ip6 = underlay_of(node, false).unwrap_or(Ip::UNSPECIFIED);
        settings.host_ip = cidr(true).map_or(Ip::UNSPECIFIED, |_| names::GATEWAY_IP);
        settings.host_ip6 = cidr(false).map_or(Ip::UNSPECIFIED, last);
        settings.snat_first = self.config.nat.snat_ports.first;
        settings.snat_last = self.config.nat.snat_ports.last;
    }

    /// Whether the sources of this node's pods are translated towards the outside.
    pub(super) fn masquerades(&self, node: &Node, is_v4: bool) -> bool {
        let cidr = node.pod_cidrs.iter().find(|cidr| cidr.addr().is_v4() == is_v4);
        let Some(cidr) = cidr.filter(|_| !self.config.nat.no_masquerade) else { return false };
        let pool = self.pools().find(|pool| pool.cidrs.iter().any(|pool| pool.overlaps(cidr)));
        !self.masquerade_configs.is_empty() || pool.is_none_or(|pool| pool.nat_outgoing)
    }

    /// Ranges of pods' addresses. Disabled pools often stand for ranges outside.
    fn pools_of_pods(&self) -> BTreeSet<Prefix> {
        self.pools().filter(|pool| !pool.disabled).flat_map(|pool| pool.cidrs.iter()).copied().collect()
    }

    /// Destinations that see pods' own addresses, beside those that tunnels lead to.
    fn non_masquerade_cidrs(&self) -> BTreeSet<Prefix> {
        let pools = self.pools().flat_map(|pool| pool.cidrs.iter());
        let configs = self.masquerade_configs.values().flat_map(|config| config.cidrs.iter());
        let mut cidrs: BTreeSet<Prefix> = pools.chain(configs).copied().collect();
        cidrs.extend(&self.config.nat.non_masquerade_cidrs);
        if self.masquerade_configs.is_empty() {
            cidrs.extend(link_local());
        }
        cidrs
    }

    /// Whose sources are translated; and where there is a gateway on the uplink, that what no other route matches goes there.
    pub(super) fn compile_masquerade(&self, node: &Node, out: &mut Contribution) {
        let families = [(true, Masquerade::V4), (false, Masquerade::V6)];
        let families = families.into_iter().filter(|(is_v4, _)| self.masquerades(node, *is_v4));
        let families: u32 = families.map(|(_, bit)| bit).sum();
        let (all, pools) = (self.non_masquerade_cidrs(), self.pools_of_pods());
        let cidrs: Vec<Prefix> =
            pools.iter().chain(all.difference(&pools)).copied().take(Masquerade::MAX).collect();
        if let Some(record) = Masquerade::new(families, &cidrs) {
            let record = record.with_pools(pools.len() as u32);
            out.insert(Key::Masquerade, Value::Masquerade(Box::new(record)));
        }
        for is_v4 in [true, false] {
            if let Some(gateway) = self.exit(is_v4) {
                let hop = NextHop::new(NextHopKind::Gateway, gateway, UPLINK_PORT);
                out.insert(Key::Route(everything(is_v4)), Value::Route(hop));
            }
        }
    }

    /// The gateway to the outside: that of the kernel's default route, if it leads out of the uplink and pods' sources
    /// are translated.
    pub(super) fn exit(&self, is_v4: bool) -> Option<Ip> {
        let node = self.nodes.get(&self.config.node)?;
        self.default_hop(is_v4)?.gateway.filter(|_| self.masquerades(node, is_v4))
    }

    /// The kernel's default route, if it leads out of the uplink.
    pub(super) fn default_hop(&self, is_v4: bool) -> Option<Hop> {
        let best = self.facts.routes.of(everything(is_v4)).next()?.hops.first()?;
        Some(*best).filter(|best| Some(best.ifindex) == self.uplink)
    }

    pub(super) fn pending_masquerade(&self, push: &mut impl FnMut(String, String)) {
        let count = self.non_masquerade_cidrs().len();
        if count > Masquerade::MAX {
            push(
                "destinations that see pods' own addresses".into(),
                format!(
                    "there are {count}, of which {} count; join ranges in nonMasqueradeCIDRs or pools",
                    Masquerade::MAX
                ),
            );
        }
    }
}
