//! Which packets of pods leave with the node's address (docs/nat.md): one record for the whole node, apart from its
//! settings because it is long and seldom needed.

use crate::{Ip, Prefix};
use bytemuck::{Pod, Zeroable};

/// Where the addresses of the cluster's pods mean something: pods' packets to anywhere else leave by the uplink with the
/// node's address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Masquerade {
    /// Bits: [`Masquerade::V4`], [`Masquerade::V6`].
    pub families: u32,
    /// How many of `cluster` count.
    pub count: u32,
    /// How many of these, the first ones, are pools of pods' addresses.
    pub pools: u32,
    /// Destinations that see pods' own addresses: the pools of the cluster's pods, and what the operator adds
    /// (ip-masq-agent's `nonMasqueradeCIDRs`).
    pub cluster: [Prefix; Masquerade::MAX],
}

impl Masquerade {
    /// Most prefixes, as many as ip-masq-agent takes.
    pub const MAX: usize = 64;
    /// Pods' IPv4 sources are translated.
    pub const V4: u32 = 1;
    /// Pods' IPv6 sources are translated.
    pub const V6: u32 = 2;

    /// No pods' sources are translated.
    pub const NOTHING: Masquerade =
        Masquerade { families: 0, count: 0, pools: 0, cluster: [Prefix::ZERO; Self::MAX] };

    /// Translates the families of these bits except towards `cluster`; `None` if that is more than
    /// [`MAX`](Self::MAX) prefixes.
    pub fn new(families: u32, cluster: &[Prefix]) -> Option<Masquerade> {
        let mut record = Masquerade { families, count: cluster.len() as u32, ..Self::NOTHING };
        record.cluster.get_mut(..cluster.len())?.copy_from_slice(cluster);
        Some(record)
    }

    /// The same where the first `pools` prefixes are pools of pods' addresses.
    pub fn with_pools(self, pools: u32) -> Masquerade {
        Masquerade { pools: pools.min(self.count), ..self }
    }

    /// Whether `ip` is an address of a pool of pods.
    pub fn is_in_pool(&self, ip: Ip) -> bool {
        let pools = self.pools.min(self.count) as usize;
        self.cluster.iter().take(pools).any(|prefix| prefix.contains(ip))
    }

    /// Whether `ip` is one of the destinations that see pods' own addresses.
    pub fn is_in_cluster(&self, ip: Ip) -> bool {
        self.cluster.iter().take(self.count as usize).any(|prefix| prefix.contains(ip))
    }

    /// Whether pods' packets to `ip`, if they leave by the uplink, leave with the node's address.
    pub fn translates(&self, ip: Ip) -> bool {
        self.families & if ip.is_v4() { Self::V4 } else { Self::V6 } != 0 && !self.is_in_cluster(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_listed_nor_of_another_family_is_translated() {
        let cluster: [Prefix; 2] = ["10.244.0.0/16", "fd00::/48"].map(|text| text.parse().unwrap());
        let ip = |text: &str| Ip::from(text.parse::<std::net::IpAddr>().unwrap());
        let record = Masquerade::new(Masquerade::V4, &cluster).unwrap();
        assert!(record.translates(ip("203.0.113.1")) && !record.translates(ip("10.244.7.7")));
        assert!(!record.translates(ip("2001:db8::1")), "only IPv4 is asked for");
        assert!(record.is_in_cluster(ip("fd00::7")) && !record.is_in_cluster(ip("fd01::7")));
        assert!(!record.is_in_pool(ip("10.244.7.7")));
        let record = record.with_pools(1);
        assert!(record.is_in_pool(ip("10.244.7.7")) && !record.is_in_pool(ip("fd00::7")));
        assert_eq!(Masquerade::new(3, &[cluster[0]; Masquerade::MAX + 1]), None);
        assert!(!Masquerade::NOTHING.translates(ip("203.0.113.1")), "nothing set, nothing done");
    }
}
