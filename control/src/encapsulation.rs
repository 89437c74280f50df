//! How packets between nodes are encapsulated: by the pool of addresses that the destination belongs to. Pools are
//! Calico's `IPPool` objects and Flannel's network; [`ways`] says what they mean for the pods of one node. Pure.

use crate::object::{Kind, ObjectKey};
use fairway_tables::Prefix;

/// What is put around a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Encapsulation {
    /// Nothing: the pod's own packet on the network between the nodes.
    Direct,
    /// VXLAN in the node's own layout (`--vni`, `--vxlan-port`), as Calico.
    Vxlan,
    /// VXLAN in Flannel's layout.
    FlannelVxlan {
        /// Network identifier, 24 bits.
        vni: u32,
        /// UDP port.
        udp_port: u16,
    },
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213).
    Ipip,
    /// The bare packet in UDP, as Flannel's `udp` backend.
    Udp {
        /// UDP port.
        udp_port: u16,
    },
}

impl Encapsulation {
    /// What it adds to an IP packet, in bytes, with an outer header of IPv4 or IPv6.
    pub fn overhead(self, over_ipv4: bool) -> u32 {
        let over_ipv4_bytes = match self {
            Encapsulation::Direct => return 0,
            Encapsulation::Ipip => 20,
            Encapsulation::Udp { .. } => 28,
            Encapsulation::Vxlan | Encapsulation::FlannelVxlan { .. } => crate::names::VXLAN_OVERHEAD,
        };
        if over_ipv4 { over_ipv4_bytes } else { over_ipv4_bytes + 20 }
    }

    /// Whether it is VXLAN, in whatever layout.
    pub fn is_vxlan(self) -> bool {
        matches!(self, Encapsulation::Vxlan | Encapsulation::FlannelVxlan { .. })
    }

    /// The network identifier and UDP port of VXLAN, where `own` are the node's.
    pub fn vxlan(self, own: (u32, u16)) -> Option<(u32, u16)> {
        match self {
            Encapsulation::Vxlan => Some(own),
            Encapsulation::FlannelVxlan { vni, udp_port } => Some((vni, udp_port)),
            _ => None,
        }
    }
}

/// To which nodes packets are encapsulated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum When {
    /// To all.
    Always,
    /// To those outside this node's subnet; within it packets go directly.
    CrossSubnet,
}

/// A range of pod addresses, and how packets reach them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Whether it is an IPPool or Flannel's network.
    pub kind: Kind,
    /// `metadata.namespace`; empty for an IPPool.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The addresses.
    pub cidrs: Vec<Prefix>,
    /// What packets are put into.
    pub encapsulation: Encapsulation,
    /// To which nodes.
    pub when: When,
    /// Annotation `fairway.io/outer-family`: the family between nodes, where it shall not follow from the addresses.
    pub outer_is_v4: Option<bool>,
    /// `spec.natOutgoing`.
    pub nat_outgoing: bool,
    /// `spec.disabled`: no new addresses are given out of it. Such pools often stand for ranges outside the cluster, to
    /// which `natOutgoing` shall not apply.
    pub disabled: bool,
    /// `spec.nodeSelector`, where it does not select all nodes.
    pub node_selector: Option<String>,
}

impl Pool {
    /// The pool's identity.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind, &self.namespace, &self.name)
    }

    /// How packets reach a node in this node's subnet, or beyond it.
    pub fn towards(&self, same_subnet: bool) -> Encapsulation {
        match self.when {
            When::CrossSubnet if same_subnet => Encapsulation::Direct,
            _ => self.encapsulation,
        }
    }

    /// Whether some packets go without encapsulation.
    pub fn is_sometimes_direct(&self) -> bool {
        self.when == When::CrossSubnet || self.encapsulation == Encapsulation::Direct
    }
}

/// Whether `outer` holds all of `inner`.
pub fn holds(outer: &Prefix, inner: &Prefix) -> bool {
    outer.len() <= inner.len() && outer.contains(inner.addr())
}

/// The pools that a node's range belongs to: the range as a whole, and the parts of it that are pools of their own. What is
/// in no pool goes by VXLAN in the node's own layout, as where there are no pools at all.
pub fn parts<'a>(
    pools: impl Iterator<Item = &'a Pool> + Clone,
    range: &Prefix,
) -> Vec<(Prefix, Option<&'a Pool>)> {
    let whole = pools.clone().find(|pool| pool.cidrs.iter().any(|cidr| holds(cidr, range)));
    let mut out = vec![(*range, whole)];
    if whole.is_none() {
        for pool in pools {
            let parts = pool.cidrs.iter().filter(|cidr| holds(range, cidr));
            out.extend(parts.map(|cidr| (*cidr, Some(pool))));
        }
    }
    out
}

/// Whether every address of a range is in some pool. The pools do not overlap.
pub fn is_covered<'a>(pools: impl Iterator<Item = &'a Pool> + Clone, range: &Prefix) -> bool {
    let cidrs = pools.flat_map(|pool| &pool.cidrs);
    if cidrs.clone().any(|cidr| holds(cidr, range)) {
        return true;
    }
    // Parts of a range of 2^k addresses are whole powers of two; counted in the smallest unit they fill it or not.
    let bits = |prefix: &Prefix| u32::from(prefix.len()) - u32::from(range.len());
    let parts: Vec<u32> = cidrs.filter(|cidr| holds(range, cidr)).map(bits).collect();
    let unit = parts.iter().copied().max().unwrap_or(0).min(63);
    let filled: u64 = parts.iter().filter(|bits| **bits <= unit).map(|bits| 1u64 << (unit - bits)).sum();
    !parts.is_empty() && filled >= 1 << unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, encapsulation: Encapsulation, when: When) -> Pool {
        Pool {
            kind: Kind::IpPool,
            namespace: String::new(),
            name: cidr.to_owned(),
            cidrs: vec![cidr.parse().unwrap()],
            encapsulation,
            when,
            outer_is_v4: None,
            nat_outgoing: false,
            disabled: false,
            node_selector: None,
        }
    }

    #[test]
    fn cross_subnet_encapsulates_beyond_the_subnet_only() {
        let pool = pool("10.244.0.0/16", Encapsulation::Ipip, When::CrossSubnet);
        assert_eq!(pool.towards(true), Encapsulation::Direct);
        assert_eq!(pool.towards(false), Encapsulation::Ipip);
        assert!(pool.is_sometimes_direct());
    }

    #[test]
    fn a_range_goes_the_way_of_its_pool_and_parts_of_it_go_their_own() {
        let pools = [
            pool("10.244.0.0/16", Encapsulation::Ipip, When::Always),
            pool("10.245.2.0/25", Encapsulation::Direct, When::Always),
        ];
        let of = |range: &str| parts(pools.iter(), &range.parse().unwrap());
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert_eq!(of("10.244.7.0/24"), [(prefix("10.244.7.0/24"), Some(&pools[0]))]);
        assert_eq!(
            of("10.245.2.0/24"),
            [(prefix("10.245.2.0/24"), None), (prefix("10.245.2.0/25"), Some(&pools[1]))]
        );
        assert_eq!(of("10.246.0.0/24"), [(prefix("10.246.0.0/24"), None)]);
    }

    #[test]
    fn a_range_is_covered_if_pools_fill_it_without_a_gap() {
        let direct = |cidr| pool(cidr, Encapsulation::Direct, When::Always);
        let covered = |cidrs: &[&'static str], range: &str| {
            let pools: Vec<Pool> = cidrs.iter().map(|cidr| direct(cidr)).collect();
            is_covered(pools.iter(), &range.parse().unwrap())
        };
        assert!(covered(&["10.0.0.0/8"], "10.244.1.0/24"));
        assert!(covered(&["10.244.1.0/25", "10.244.1.128/26", "10.244.1.192/26"], "10.244.1.0/24"));
        assert!(!covered(&["10.244.1.0/25", "10.244.1.192/26"], "10.244.1.0/24"));
        assert!(!covered(&["10.244.2.0/24"], "10.244.1.0/24"));
        assert!(!covered(&[], "10.244.1.0/24"));
    }
}
