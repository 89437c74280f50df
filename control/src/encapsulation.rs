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
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
    /// The bare packet in UDP, as Flannel's `udp` backend.
    Udp {
        /// UDP port.
        udp_port: u16,
    },
}

impl Encapsulation {
    /// What it adds to an IPv4 packet, in bytes.
    pub fn overhead(self) -> u32 {
        match self {
            Encapsulation::Direct => 0,
            Encapsulation::Ipip => 20,
            Encapsulation::Udp { .. } => 28,
            Encapsulation::Vxlan | Encapsulation::FlannelVxlan { .. } => crate::names::VXLAN_OVERHEAD,
        }
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

/// How packets reach the pods of a node's range: for the range as a whole, and for the parts of it that are pools of
/// their own. What is in no pool goes by VXLAN in the node's own layout, as where there are no pools at all.
pub fn ways<'a>(
    pools: impl Iterator<Item = &'a Pool> + Clone,
    range: &Prefix,
    same_subnet: bool,
) -> Vec<(Prefix, Encapsulation)> {
    let whole = pools.clone().find(|pool| pool.cidrs.iter().any(|cidr| holds(cidr, range)));
    let mut out = vec![(*range, whole.map_or(Encapsulation::Vxlan, |pool| pool.towards(same_subnet)))];
    if whole.is_none() {
        for pool in pools {
            let parts = pool.cidrs.iter().filter(|cidr| holds(range, cidr));
            out.extend(parts.map(|cidr| (*cidr, pool.towards(same_subnet))));
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
        let of = |range: &str| ways(pools.iter(), &range.parse().unwrap(), false);
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert_eq!(of("10.244.7.0/24"), [(prefix("10.244.7.0/24"), Encapsulation::Ipip)]);
        assert_eq!(
            of("10.245.2.0/24"),
            [
                (prefix("10.245.2.0/24"), Encapsulation::Vxlan),
                (prefix("10.245.2.0/25"), Encapsulation::Direct)
            ]
        );
        assert_eq!(of("10.246.0.0/24"), [(prefix("10.246.0.0/24"), Encapsulation::Vxlan)]);
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
