//! A well-kept crate: `prefix-trie`.

use super::Table;
use super::routes::{Family, Route};
use ipnet::{Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Its map from prefixes to values, one per family.
pub enum PrefixTrie {
    /// IPv4.
    V4(PrefixMap<Ipv4Net, u32>),
    /// IPv6.
    V6(PrefixMap<Ipv6Net, u32>),
}

fn v4(key: u128, len: u32) -> Ipv4Net {
    Ipv4Net::new_assert(((key >> 96) as u32).into(), len as u8)
}

fn v6(key: u128, len: u32) -> Ipv6Net {
    Ipv6Net::new_assert(key.into(), len as u8)
}

impl PrefixTrie {
    /// Without routes.
    pub fn new(family: Family) -> PrefixTrie {
        match family {
            Family::V4 => PrefixTrie::V4(PrefixMap::new()),
            Family::V6 => PrefixTrie::V6(PrefixMap::new()),
        }
    }
}

impl Table for PrefixTrie {
    fn insert(&mut self, routes: &[Route]) {
        for route in routes {
            match self {
                PrefixTrie::V4(map) => map.insert(v4(route.key, route.len), route.value),
                PrefixTrie::V6(map) => map.insert(v6(route.key, route.len), route.value),
            };
        }
    }

    fn remove(&mut self, routes: &[Route]) -> bool {
        for route in routes {
            match self {
                PrefixTrie::V4(map) => map.remove(&v4(route.key, route.len)),
                PrefixTrie::V6(map) => map.remove(&v6(route.key, route.len)),
            };
        }
        true
    }

    #[inline]
    fn look_up(&self, key: u128) -> Option<u32> {
        match self {
            PrefixTrie::V4(map) => map.get_lpm(&v4(key, 32)).map(|(_, value)| *value),
            PrefixTrie::V6(map) => map.get_lpm(&v6(key, 128)).map(|(_, value)| *value),
        }
    }
}
