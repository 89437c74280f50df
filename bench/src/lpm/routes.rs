//! Routes and destinations to measure with: random, but in the shape of real tables.

use fairway_tables::{Ip, Prefix};
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// The address whose bits stand at the top of `key`.
    #[inline(always)]
    pub fn ip(self, key: u128) -> Ip {
        match self {
            Family::V4 => Ip::v4(((key >> 96) as u32).to_be_bytes()),
            Family::V6 => Ip(key.to_be_bytes()),
        }
    }
}

/// A route as every structure takes it.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its family.
    pub family: Family,
    /// The prefix's bits from the top, zero behind them.
    pub key: u128,
    /// Length of the prefix in bits.
    pub len: u32,
    /// Which next hop: below [`NEXT_HOPS`].
    pub value: u32,
}

impl Route {
    /// The prefix as Fairway's tables take it.
    ///
    /// # Panics
    /// If the length is beyond the family's.
    pub fn prefix(&self) -> Prefix {
        Prefix::new(self.family.ip(self.key), self.len as u8).expect("a length of its family")
    }
}

/// Next hops among the routes.
pub const NEXT_HOPS: u64 = 256;

/// IPv4 prefixes by length, as counted in the Internet table of 2008-05-01 (270,849 prefixes).
const V4_LENGTHS: [(u32, u32); 25] = [
    (8, 20),
    (9, 9),
    (10, 16),
    (11, 43),
    (12, 140),
    (13, 285),
    (14, 512),
    (15, 1007),
    (16, 10_004),
    (17, 4459),
    (18, 7428),
    (19, 15_731),
    (20, 18_900),
    (21, 17_524),
    (22, 22_119),
    (23, 23_140),
    (24, 139_017),
    (25, 1003),
    (26, 1120),
    (27, 656),
    (28, 989),
    (29, 1938),
    (30, 1707),
    (31, 1),
    (32, 3081),
];

/// IPv6 prefixes by length, in percent: provider blocks, sites, and an operator's own links and hosts.
const V6_LENGTHS: [(u32, u32); 11] =
    [(29, 4), (32, 20), (33, 2), (36, 4), (40, 8), (44, 8), (46, 4), (48, 36), (56, 3), (64, 7), (128, 4)];

/// First 16 bits of the blocks that IPv6 routes lie in: 2001::, and 16 of each registry's.
fn v6_block(random: &mut Random) -> u128 {
    const BLOCKS: [u128; 5] = [0x2400, 0x2600, 0x2800, 0x2a00, 0x2c00];
    match random.below(81) {
        80 => 0x2001,
        n => BLOCKS[n as usize / 16] + u128::from(n % 16),
    }
}

/// SplitMix64: small, and the same on every machine.
pub struct Random(u64);

impl Random {
    /// Numbers that `seed` determines.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next one.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    fn next_u128(&mut self) -> u128 {
        u128::from(self.next_u64()) << 64 | u128::from(self.next_u64())
    }

    fn weighted(&mut self, weights: &[(u32, u32)]) -> u32 {
        let total: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = self.below(total);
        for (value, weight) in weights {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return *value,
            }
        }
        0
    }
}

/// The bits of a prefix of `len` bits.
pub fn mask(len: u32) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

/// `count` different routes in random order. IPv4: lengths as in a real table, addresses anywhere in unicast space.
/// IPv6: a fifth as many /32 blocks as routes, and the longer prefixes inside them.
pub fn random(family: Family, count: usize, seed: u64) -> Vec<Route> {
    let mut random = Random::new(seed);
    let blocks: Vec<u128> = (0..count / 5 + 1)
        .map(|_| v6_block(&mut random) << 112 | u128::from(random.next_u64() as u16) << 96)
        .collect();
    let mut seen = HashSet::with_capacity(count);
    let mut routes = Vec::with_capacity(count);
    while routes.len() < count {
        let (key, len) = match family {
            Family::V4 => {
                let address = (1 << 24) + random.below(223 << 24) as u32;
                (u128::from(address) << 96, random.weighted(&V4_LENGTHS))
            }
            Family::V6 => {
                let block = blocks[random.below(blocks.len() as u64) as usize];
                (block | random.next_u128() >> 32, random.weighted(&V6_LENGTHS))
            }
        };
        let key = key & mask(len);
        if seen.insert((key, len)) {
            routes.push(Route { family, key, len, value: random.below(NEXT_HOPS) as u32 });
        }
    }
    routes
}

/// The routes of the vectors folder's Internet table, if it is there.
pub fn internet(vectors: &Path) -> Option<Vec<Route>> {
    let file = std::fs::File::open(vectors.join("v4_20080501.routes.tsv.gz")).ok()?;
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
    let mut routes = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let (prefix, origin) = line.split_once('\t')?;
        let prefix: Prefix = prefix.parse().ok()?;
        let key = u128::from(u32::from_be_bytes(prefix.addr().as_v4()?)) << 96;
        let value = (origin.trim().parse::<u64>().ok()? % NEXT_HOPS) as u32;
        routes.push(Route { family: Family::V4, key, len: u32::from(prefix.len()), value });
    }
    Some(routes)
}

/// Addresses to ask for: half of them inside some route each, half anywhere (IPv6: anywhere below 2000::/3).
pub fn destinations(family: Family, routes: &[Route], count: usize, seed: u64) -> Vec<u128> {
    let mut random = Random::new(seed);
    let width = if family == Family::V4 { mask(32) } else { u128::MAX };
    (0..count)
        .map(|i| {
            let bits = random.next_u128() & width;
            match (i % 2, family) {
                (0, _) => {
                    let route = routes[random.below(routes.len() as u64) as usize];
                    route.key | bits & !mask(route.len)
                }
                (_, Family::V4) => bits,
                (_, Family::V6) => bits >> 3 | 1 << 125,
            }
        })
        .collect()
}
