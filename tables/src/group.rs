//! Several next hops for one route (ECMP), and which of them a flow takes.
//!
//! The choice is weighted rendezvous hashing: each path draws a score from the flow's hash and its own identity, and
//! the best one wins. So the choice depends on nothing but the flow and the paths; a path that goes moves only its
//! own flows, one that comes takes its share from all others and moves nothing else, and a restart moves nothing.
//! (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; RFC 2992 compares the
//! disruption that other methods cause.)

use crate::record::NextHop;
use bytemuck::{Pod, Zeroable};

/// Most paths of one route.
pub const MAX_PATHS: usize = 16;
/// Largest weight of a path: the kernel's, whose `rtnh_hops` is one byte that holds the weight less one.
pub const MAX_WEIGHT: u32 = 256;

/// One way of a route that has several.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
pub struct Path {
    /// Where it leads.
    pub next_hop: NextHop,
    /// Its share of the flows, relative to the other paths': 1 to [`MAX_WEIGHT`].
    pub weight: u32,
}

/// The next hops of a route, in an order of their own, each once.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct Group {
    count: u32,
    reserved: u32,
    paths: [Path; MAX_PATHS],
}

/// Why paths can't be a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No path at all.
    #[error("a route needs at least one next hop")]
    Empty,
    /// More than [`MAX_PATHS`].
    #[error("a route takes at most {MAX_PATHS} different next hops, not {0}")]
    TooMany(usize),
    /// A weight of 0 or beyond [`MAX_WEIGHT`].
    #[error("a next hop's weight is 1 to {MAX_WEIGHT}, not {0}")]
    Weight(u32),
}

/// Mixes all bits into all others (the finalizer of SplitMix64).
#[inline(always)]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A number that goes with a next hop for ever, whatever slot it lies in.
#[inline(always)]
fn identity(next_hop: &NextHop) -> u64 {
    let (high, low) = next_hop.addr.0.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
    let rest = u64::from(next_hop.kind) << 16 | u64::from(next_hop.port.0);
    mix(mix(word(high) ^ rest.wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ word(low))
}

/// -log2((n + 1) / 2^64) in units of 2^-32, to within 0.01 of one bit; falls as n rises.
#[inline(always)]
fn minus_log2(n: u64) -> u64 {
    let zeros = u64::from(n.leading_zeros()).min(63);
    // The 32 bits behind the leading one are a fraction f; log2(1 + f) is close to f + 0.34375 f (1 - f).
    let fraction = (n << zeros << 1) >> 32;
    let bend = (((fraction * ((1 << 32) - fraction)) >> 32) * 11) >> 5;
    ((zeros + 1) << 32) - fraction - bend
}

impl Group {
    /// A group of these next hops and weights; the order does not matter, and the weights of equal next hops add up.
    pub fn new(paths: impl IntoIterator<Item = (NextHop, u32)>) -> Result<Group, GroupError> {
        let mut sorted: Vec<Path> =
            paths.into_iter().map(|(next_hop, weight)| Path { next_hop, weight }).collect();
        sorted.sort_unstable();
        sorted.dedup_by(|next, kept| {
            let same = next.next_hop == kept.next_hop;
            if same {
                kept.weight = kept.weight.saturating_add(next.weight);
            }
            same
        });
        if let Some(path) = sorted.iter().find(|path| !(1..=MAX_WEIGHT).contains(&path.weight)) {
            return Err(GroupError::Weight(path.weight));
        }
        let mut group = Group { count: sorted.len() as u32, ..Group::zeroed() };
        match group.paths.get_mut(..sorted.len()) {
            None => Err(GroupError::TooMany(sorted.len())),
            Some([]) => Err(GroupError::Empty),
            // Alone, its weight says nothing.
            Some([only]) => {
                *only = Path { weight: 1, ..sorted[0] };
                Ok(group)
            }
            Some(places) => {
                places.copy_from_slice(&sorted);
                Ok(group)
            }
        }
    }

    /// A group of one.
    pub fn single(next_hop: NextHop) -> Group {
        let mut group = Group { count: 1, ..Group::zeroed() };
        group.paths[0] = Path { next_hop, weight: 1 };
        group
    }

    /// Its paths, ordered by next hop.
    #[inline]
    pub fn paths(&self) -> &[Path] {
        &self.paths[..(self.count as usize).min(MAX_PATHS)]
    }

    /// The only next hop, if there is no other.
    #[inline]
    pub fn only(&self) -> Option<NextHop> {
        match self.paths() {
            [path] => Some(path.next_hop),
            _ => None,
        }
    }

    /// The path of the flow with this hash. `None` only if the group is empty, which one that was made is not.
    #[inline]
    pub fn choose(&self, hash: u64) -> Option<NextHop> {
        let score = |path: &Path| {
            // An exponential variate of rate `weight`: the smallest of several is this one's with probability
            // weight / sum of weights.
            minus_log2(mix(hash ^ identity(&path.next_hop))) * 256
                / u64::from(path.weight.clamp(1, MAX_WEIGHT))
        };
        self.paths().iter().min_by_key(|path| score(path)).map(|path| path.next_hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ip, NextHopKind, PortId};

    fn hop(n: u8) -> NextHop {
        NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, n]), PortId(0))
    }

    fn shares(group: &Group) -> Vec<(u8, u32)> {
        let mut counts = [0; 256];
        (0..100_000).for_each(|flow| counts[usize::from(group.choose(flow).unwrap().addr.0[15])] += 1);
        counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, n)| (i as u8, *n)).collect()
    }

    #[test]
    fn flows_spread_by_weight() {
        let even = Group::new((1..=16).map(|n| (hop(n), 7))).unwrap();
        assert_eq!(shares(&even).len(), 16);
        assert!(shares(&even).iter().all(|(_, n)| (5800..6700).contains(n)), "{:?}", shares(&even));
        let uneven = Group::new([(hop(1), 1), (hop(2), 2), (hop(3), 5)]).unwrap();
        let wanted = [(1, 12_500), (2, 25_000), (3, 62_500)];
        for ((path, n), (same, wanted)) in shares(&uneven).into_iter().zip(wanted) {
            assert!(path == same && n.abs_diff(wanted) < wanted / 25, "{path}: {n} of {wanted}");
        }
        let extreme = Group::new([(hop(1), 1), (hop(2), 256)]).unwrap();
        assert!((250..550).contains(&shares(&extreme)[0].1), "{:?}", shares(&extreme));
    }

    #[test]
    fn a_path_that_goes_moves_only_its_own_flows_and_one_that_comes_only_to_itself() {
        let weight = |n: u8| 1 + u32::from(n % 3);
        let all = Group::new((1..=8).map(|n| (hop(n), weight(n)))).unwrap();
        let fewer = Group::new((1..=8).filter(|n| *n != 3).rev().map(|n| (hop(n), weight(n)))).unwrap();
        let mut moved = 0;
        for flow in 0..20_000 {
            let (before, after) = (all.choose(flow).unwrap(), fewer.choose(flow).unwrap());
            assert!(before == after || before == hop(3), "flow {flow} moved from {before:?} to {after:?}");
            moved += u32::from(before != after);
        }
        assert!(moved > 500);
    }

    #[test]
    fn order_and_repetition_make_no_difference() {
        let one = Group::new([(hop(2), 1), (hop(1), 3), (hop(2), 1)]).unwrap();
        let other = Group::new([(hop(1), 3), (hop(2), 2)]).unwrap();
        assert_eq!(one, other);
        assert_eq!(Group::new([(hop(9), 1)]).unwrap(), Group::single(hop(9)));
    }

    #[test]
    fn impossible_groups_are_refused() {
        assert_eq!(Group::new([]), Err(GroupError::Empty));
        assert_eq!(Group::new([(hop(1), 0)]), Err(GroupError::Weight(0)));
        assert_eq!(Group::new([(hop(1), 200), (hop(1), 200)]), Err(GroupError::Weight(400)));
        assert_eq!(Group::new((0..17).map(|n| (hop(n), 1))), Err(GroupError::TooMany(17)));
    }

    #[test]
    fn a_damaged_group_still_chooses_or_says_none() {
        let mut group = Group { count: u32::MAX, ..Group::zeroed() };
        assert!(group.choose(7).is_some());
        group.count = 0;
        assert_eq!(group.choose(7), None);
    }

    #[test]
    fn the_logarithm_is_close_and_never_turns_back() {
        let mut last = u64::MAX;
        for shift in 0..64u32 {
            for part in 0..64 {
                let n = (1u64 << shift) + ((u128::from(part as u64) << shift) >> 6) as u64;
                let exact = 64.0 - ((n as f64) + 1.0).log2();
                let found = minus_log2(n) as f64 / f64::from(1u32 << 16).powi(2);
                assert!((exact - found).abs() < 0.011 || n < 65_536, "{n}: {found} for {exact}");
                assert!(minus_log2(n) <= last);
                last = minus_log2(n);
            }
        }
    }
}
