//! How packets get to another node's pods, and over which address family: decided from the two Node objects and the pools
//! alone, so that both ends come to the same.

use super::Index;
use super::pools::underlay_of;
use crate::encapsulation::{self, Encapsulation, Pool};
use crate::object::Node;
use fairway_tables::{Ip, Prefix};
use std::collections::BTreeSet;

/// How packets get to a range of pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WayTo {
    /// The pods.
    pub(super) range: Prefix,
    /// What is put around packets.
    pub(super) encapsulation: Encapsulation,
    /// Family of the outer header, or of the next hop.
    pub(super) is_v4: bool,
}

/// The family between two nodes: what the pool asks for, else that of the range itself, else the other one. `None` if one of
/// them has no address of it.
pub(super) fn family_between(pool: Option<&Pool>, range: &Prefix, one: &Node, other: &Node) -> Option<bool> {
    let have = |is_v4: &bool| [one, other].into_iter().all(|node| underlay_of(node, *is_v4).is_some());
    let own = range.addr().is_v4();
    match pool.and_then(|pool| pool.outer_is_v4) {
        Some(asked) => Some(asked).filter(have),
        None => [own, !own].into_iter().find(have),
    }
}

impl Index {
    /// How this node's packets reach the pods of a remote node.
    pub(super) fn ways_to(&self, node: &Node) -> Vec<WayTo> {
        let Some(local) = self.nodes.get(&self.config.node) else { return Vec::new() };
        self.ways_between(node, local, node)
    }

    /// How a remote node's packets should come to this node's pods.
    pub(super) fn ways_from(&self, node: &Node) -> Vec<WayTo> {
        let Some(local) = self.nodes.get(&self.config.node) else { return Vec::new() };
        self.ways_between(local, local, node)
    }

    /// The ways to the pods of `to`, which is one of both. IPv6 ranges that are in no pool go by VXLAN: by the network of
    /// the node's IPv4 pods, if these have one.
    fn ways_between(&self, to: &Node, local: &Node, remote: &Node) -> Vec<WayTo> {
        let mut ways: Vec<WayTo> = Vec::new();
        let (v4, v6): (Vec<&Prefix>, Vec<&Prefix>) =
            to.pod_cidrs.iter().partition(|cidr| cidr.addr().is_v4());
        for cidr in v4.into_iter().chain(v6) {
            let own = self.own_vxlan();
            let vxlan = ways.iter().map(|way| way.encapsulation).find(|way| way.vxlan(own).is_some());
            let unpooled = vxlan.filter(|_| !cidr.addr().is_v4()).unwrap_or(Encapsulation::Vxlan);
            for (range, pool) in encapsulation::parts(self.pools(), cidr) {
                let Some(is_v4) = family_between(pool, &range, local, remote) else { continue };
                let near = self.is_in_subnet(local, remote, is_v4);
                let encapsulation = pool.map_or(unpooled, |pool| pool.towards(near));
                ways.push(WayTo { range, encapsulation, is_v4 });
            }
        }
        ways
    }

    /// The families over which this node and a remote one reach each other's pods, and backends of Services with DSR.
    pub(super) fn families_with(&self, node: &Node) -> BTreeSet<bool> {
        let ways = self.ways_to(node).into_iter().chain(self.ways_from(node)).map(|way| way.is_v4);
        ways.chain(self.dsr_families(node)).collect()
    }

    /// A remote node's address of a family and, if the kernel has a route to it out of the uplink, the neighbour that leads
    /// there.
    pub(super) fn path_to(&self, node: &Node, is_v4: bool) -> Option<(Ip, Option<Ip>)> {
        let vtep = underlay_of(node, is_v4)?;
        let via = self.uplink.and_then(|uplink| self.facts.routes.next_hop_to(vtep, uplink));
        Some((vtep, via.map(|via| via.gateway.unwrap_or(vtep))))
    }

    /// The same for every family that is used, by the remote node's name: nothing for this node itself.
    pub(super) fn paths_to(&self, name: &str) -> Vec<(bool, Ip, Option<Ip>)> {
        let Some(node) = self.nodes.get(name).filter(|_| name != self.config.node) else { return Vec::new() };
        let families = self.families_with(node).into_iter();
        // IPv4 first.
        let path = |is_v4| self.path_to(node, is_v4).map(|(vtep, next_hop)| (is_v4, vtep, next_hop));
        families.rev().filter_map(path).collect()
    }

    /// Whether a node is in this node's subnet of a family: in the one that Calico noted of this node, else if the kernel
    /// reaches it without a gateway.
    fn is_in_subnet(&self, local: &Node, node: &Node, is_v4: bool) -> bool {
        let Some(remote) = underlay_of(node, is_v4) else { return false };
        let noted = if is_v4 { local.hints.subnet } else { local.hints.subnet6 };
        match noted {
            Some((_, subnet)) => subnet.contains(remote),
            None => {
                let via = self.uplink.and_then(|uplink| self.facts.routes.next_hop_to(remote, uplink));
                via.is_some_and(|via| via.gateway.is_none())
            }
        }
    }

    /// The families over which packets to a range may go, whichever nodes there are: the other than is natural only
    /// where some node lacks that.
    fn possible_families(&self, pool: Option<&Pool>, range: &Prefix, local: &Node) -> Vec<bool> {
        let has = |is_v4: &bool| underlay_of(local, *is_v4).is_some();
        let own = range.addr().is_v4();
        let mut families = match pool.and_then(|pool| pool.outer_is_v4) {
            Some(asked) => vec![asked],
            None => vec![own],
        };
        let crosses = pool.is_none_or(|pool| pool.outer_is_v4.is_none());
        if crosses && (!has(&own) || self.lacking[usize::from(own)] > 0) {
            families.push(!own);
        }
        families.retain(has);
        families
    }

    /// Everything that may be put around packets: encapsulation, family inside, family outside.
    pub(super) fn possible_ways(&self, local: &Node) -> Vec<(Encapsulation, bool, bool)> {
        let mut out = Vec::new();
        let mut add = |pool: Option<&Pool>, range: &Prefix| {
            let encapsulation = pool.map_or(Encapsulation::Vxlan, |pool| pool.encapsulation);
            let families = self.possible_families(pool, range, local);
            out.extend(families.into_iter().map(|is_v4| (encapsulation, range.addr().is_v4(), is_v4)));
        };
        for pool in self.pools() {
            pool.cidrs.iter().for_each(|cidr| add(Some(pool), cidr));
        }
        let is_pooled = |cidr: &Prefix| self.pools().any(|pool| pool.cidrs.iter().any(|c| c.overlaps(cidr)));
        local.pod_cidrs.iter().filter(|cidr| !is_pooled(cidr)).for_each(|cidr| add(None, cidr));
        out
    }

    /// Keeps count of the nodes without an address of a family. Whether that changes what this node must be ready for.
    pub(super) fn count_lacking(&mut self, old: Option<&Node>, new: Option<&Node>) -> bool {
        let before = self.lacking.map(|count| count > 0);
        for (node, is_new) in old.map(|node| (node, false)).into_iter().chain(new.map(|node| (node, true))) {
            for is_v4 in [false, true].into_iter().filter(|is_v4| underlay_of(node, *is_v4).is_none()) {
                let count = &mut self.lacking[usize::from(is_v4)];
                *count = if is_new { *count + 1 } else { count.saturating_sub(1) };
            }
        }
        self.lacking.map(|count| count > 0) != before
    }

    /// Names pools that ask for a family which a node lacks.
    pub(super) fn pending_families(&self, name: &str, push: &mut impl FnMut(String, String)) {
        let (Some(node), Some(local)) = (self.nodes.get(name), self.nodes.get(&self.config.node)) else {
            return;
        };
        for cidr in &node.pod_cidrs {
            for (range, pool) in encapsulation::parts(self.pools(), cidr) {
                let asked = pool.and_then(|pool| Some((pool.key(), pool.outer_is_v4?)));
                let Some((key, is_v4)) = asked else { continue };
                if family_between(pool, &range, local, node).is_some() {
                    continue;
                }
                let lacking = if underlay_of(local, is_v4).is_none() { &local.name } else { &node.name };
                let family = if is_v4 { "IPv4" } else { "IPv6" };
                let reason = format!(
                    "{key} asks for {family} between nodes, and Node {lacking} has no {family} address; give it one, \
                     or change the annotation fairway.io/outer-family of the pool"
                );
                push(format!("{range} of Node {name}"), reason);
            }
        }
    }
}
