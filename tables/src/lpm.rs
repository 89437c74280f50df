//! Longest prefix match: one trie code for both families, and the next hops that its leaves name.
//!
//! A root array is indexed by the first bits of the address (24 for IPv4, which makes it DIR-24-8; 16 for
//! IPv6); below it nodes of 256 entries take 8 bits each. An entry is one `u32`:
//! - 0: nothing longer than the default route;
//! - leaf: bit 31 clear, prefix length in bits 22–29, next-hop number + 1 in bits 0–21;
//! - child: bit 31 set, node number below.
//!
//! Prefixes are expanded: every entry in a prefix's range names its route, unless a longer prefix does.
//! The default route lies apart, so that it costs one store and not a whole root. An IPv4 look-up is one
//! or two dependent loads, then the next hop's slot.

use crate::record::NextHop;
use crate::region::{Region, words_len};
use crate::sync::Ordering;
use crate::{Ip, Prefix};

/// Next-hop numbers have 22 bits, and 0 is none.
pub(crate) const MAX_NEXT_HOPS: u32 = (1 << 22) - 1;
/// Entries per node.
pub(crate) const NODE_ENTRIES: u32 = 256;
const CHILD: u32 = 1 << 31;

/// An entry of a root or node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(pub(crate) u32);

impl Entry {
    pub(crate) const NONE: Entry = Entry(0);

    pub(crate) fn leaf(len: u8, next_hop: u32) -> Entry {
        Entry(u32::from(len) << 22 | (next_hop + 1))
    }

    pub(crate) fn child(node: u32) -> Entry {
        Entry(CHILD | node)
    }

    /// The node below, if this is not a leaf.
    #[inline(always)]
    pub(crate) fn node(self) -> Option<u32> {
        (self.0 & CHILD != 0).then_some(self.0 & !CHILD)
    }

    /// Length of the prefix that a leaf belongs to; 0 for none.
    pub(crate) fn prefix_len(self) -> u32 {
        self.0 >> 22 & 0xff
    }

    /// Next-hop number of a leaf; out of any range for none.
    #[inline(always)]
    fn next_hop(self) -> u32 {
        (self.0 & MAX_NEXT_HOPS).wrapping_sub(1)
    }
}

/// Both tries, their nodes and the next hops.
#[derive(Clone, Copy)]
pub(crate) struct Tries {
    pub(crate) v4: Trie4,
    pub(crate) v6: Trie6,
    pub(crate) nodes: Nodes,
    next_hops: usize,
    pub(crate) next_hop_count: u32,
    pub(crate) next_hop_mark: usize,
}

/// The nodes that both tries share.
#[derive(Clone, Copy)]
pub(crate) struct Nodes {
    offset: usize,
    pub(crate) count: u32,
    pub(crate) mark: usize,
}

impl Nodes {
    /// Offset of an entry; `None` if there is no such node.
    #[inline(always)]
    pub(crate) fn entry(&self, node: u32, index: u32) -> Option<usize> {
        (node < self.count).then(|| self.offset + 4 * (NODE_ENTRIES * node + index) as usize)
    }
}

/// The trie of one family; addresses are held left-aligned in 128 bits.
#[derive(Clone, Copy)]
pub(crate) struct Trie<const ROOT: u32, const WIDTH: u32> {
    root: usize,
    pub(crate) default: usize,
}

/// IPv4.
pub(crate) type Trie4 = Trie<24, 32>;
/// IPv6.
pub(crate) type Trie6 = Trie<16, 128>;

/// An address as both tries take it.
#[inline(always)]
pub(crate) fn key_v4(octets: [u8; 4]) -> u128 {
    u128::from(u32::from_be_bytes(octets)) << 96
}

impl<const ROOT: u32, const WIDTH: u32> Trie<ROOT, WIDTH> {
    pub(crate) const ROOT_BITS: u32 = ROOT;

    fn lay_out(end: &mut usize, default: usize) -> Self {
        let root = end.next_multiple_of(4096);
        *end = root + (4 << ROOT);
        Trie { root, default }
    }

    /// Offset of a root entry, below 2^ROOT.
    #[inline(always)]
    pub(crate) fn root_entry(&self, index: u32) -> usize {
        self.root + 4 * index as usize
    }

    /// Offset of the root entry of an address.
    #[inline(always)]
    pub(crate) fn root_of(&self, key: u128) -> usize {
        self.root_entry((key >> (128 - ROOT)) as u32)
    }

    /// Which entry of a node at `depth` bits an address selects.
    #[inline(always)]
    pub(crate) fn index(key: u128, depth: u32) -> u32 {
        (key >> (120 - depth)) as u32 & 0xff
    }

    #[inline(always)]
    fn lookup(&self, region: &Region, nodes: &Nodes, key: u128) -> Entry {
        let mut entry = Entry(region.load32(self.root_of(key), Ordering::Acquire));
        let mut depth = ROOT;
        while let Some(node) = entry.node() {
            // A broken file may have children below the last bit, or nodes that do not exist.
            if depth >= WIDTH {
                return Entry::NONE;
            }
            let Some(at) = nodes.entry(node, Self::index(key, depth)) else { return Entry::NONE };
            entry = Entry(region.load32(at, Ordering::Acquire));
            depth += 8;
        }
        if entry == Entry::NONE { Entry(region.load32(self.default, Ordering::Acquire)) } else { entry }
    }
}

impl Tries {
    pub(crate) fn lay_out(
        end: &mut usize,
        next_hop_count: u32,
        node_count: u32,
        next_hop_mark: usize,
        node_mark: usize,
    ) -> Tries {
        use crate::layout::header::{DEFAULT_V4, DEFAULT_V6};
        let next_hops = end.next_multiple_of(64);
        *end = next_hops + Self::NEXT_HOP_STRIDE * next_hop_count as usize;
        let offset = end.next_multiple_of(4096);
        *end = offset + 4 * NODE_ENTRIES as usize * node_count as usize;
        let v6 = Trie::lay_out(end, DEFAULT_V6);
        let v4 = Trie::lay_out(end, DEFAULT_V4);
        let nodes = Nodes { offset, count: node_count, mark: node_mark };
        Tries { v4, v6, nodes, next_hops, next_hop_count, next_hop_mark }
    }

    const NEXT_HOP_STRIDE: usize = words_len::<NextHop>().next_power_of_two();

    /// Offset of a next hop; `None` if there is none of that number.
    #[inline(always)]
    pub(crate) fn next_hop(&self, id: u32) -> Option<usize> {
        (id < self.next_hop_count).then(|| self.next_hops + Self::NEXT_HOP_STRIDE * id as usize)
    }

    /// The next hop of the longest prefix that holds `ip`.
    #[inline(always)]
    pub(crate) fn lookup(&self, region: &Region, ip: Ip) -> Option<NextHop> {
        let entry = match ip.as_v4() {
            Some(octets) => self.v4.lookup(region, &self.nodes, key_v4(octets)),
            None => self.v6.lookup(region, &self.nodes, u128::from_be_bytes(ip.0)),
        };
        self.next_hop(entry.next_hop()).map(|at| region.read(at))
    }
}

/// A prefix as the tries take it: is it IPv4, address, length.
pub(crate) fn trie_prefix(prefix: &Prefix) -> (bool, u128, u32) {
    match prefix.addr().as_v4() {
        Some(octets) => (true, key_v4(octets), u32::from(prefix.len())),
        None => (false, u128::from_be_bytes(prefix.addr().0), u32::from(prefix.len())),
    }
}
