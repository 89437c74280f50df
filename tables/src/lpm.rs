//! Longest prefix match: one trie code for both families, and the next hops that its leaves name.
//!
//! A root array is indexed by the first bits of the address (24 for IPv4, 16 for IPv6). Below it lie nodes
//! of one cache line each, of two kinds: a branch of 16 entries takes 4 bits; a skip stands for any number of
//! levels on which there is only one way on. An entry is one `u32`:
//! - 0: nothing longer than the default route;
//! - leaf: bit 31 clear, bit 30 tells a group of next hops from one, prefix length in bits 22–29, number of the
//!   next hop or group + 1 in bits 0–21;
//! - child: bit 31 set, bit 30 tells a skip from a branch, node number below.
//!
//! Prefixes are expanded: every entry in a prefix's range names its route, unless a longer prefix does.
//! The default route lies apart, so that it costs one store and not a whole root. An IPv4 look-up is one
//! load, or two or three where there is something longer than /24, then the next hop's slot.

use crate::group::Group;
use crate::record::NextHop;
use crate::region::{Region, words_len};
use crate::sync::Ordering;
use crate::{Ip, Prefix};
use std::marker::PhantomData;

/// Numbers of next hops and groups have 22 bits, and 0 is none.
pub(crate) const MAX_NEXT_HOPS: u32 = (1 << 22) - 1;
/// Set in the number of a group.
pub(crate) const GROUP: u32 = 1 << 30;
/// Node numbers could have 30 bits; this many take 4 GiB.
pub(crate) const MAX_NODES: u32 = 1 << 26;
/// Bits that a branch takes.
pub(crate) const STRIDE: u32 = 4;
/// Entries of a branch.
pub(crate) const BRANCH_ENTRIES: u32 = 1 << STRIDE;
const CHILD: u32 = 1 << 31;
const SKIP: u32 = 1 << 30;

/// An entry of a root or node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(pub(crate) u32);

/// What an entry leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Leaf,
    /// Number of a node.
    Branch(u32),
    /// Number of a node.
    Skip(u32),
}

impl Entry {
    pub(crate) const NONE: Entry = Entry(0);

    /// A leaf with the number of a next hop, or of a group with [`GROUP`] set.
    pub(crate) fn leaf(len: u8, number: u32) -> Entry {
        Entry(u32::from(len) << 22 | (number + 1))
    }

    pub(crate) fn branch(node: u32) -> Entry {
        Entry(CHILD | node)
    }

    pub(crate) fn skip(node: u32) -> Entry {
        Entry(CHILD | SKIP | node)
    }

    #[inline(always)]
    pub(crate) fn kind(self) -> Kind {
        match (self.0 & CHILD, self.0 & SKIP) {
            (0, _) => Kind::Leaf,
            (_, 0) => Kind::Branch(self.0 & !CHILD),
            (_, _) => Kind::Skip(self.0 & !(CHILD | SKIP)),
        }
    }

    #[inline(always)]
    pub(crate) fn is_leaf(self) -> bool {
        self.0 & CHILD == 0
    }

    /// The node below, if this is not a leaf.
    pub(crate) fn node(self) -> Option<u32> {
        match self.kind() {
            Kind::Leaf => None,
            Kind::Branch(node) | Kind::Skip(node) => Some(node),
        }
    }

    /// Length of the prefix that a leaf belongs to; 0 for none.
    pub(crate) fn prefix_len(self) -> u32 {
        self.0 >> 22 & 0xff
    }

    /// Number of a leaf's next hop or group; out of any range for none.
    #[inline(always)]
    fn number(self) -> u32 {
        (self.0 & MAX_NEXT_HOPS).wrapping_sub(1)
    }

    /// Whether a leaf names a group.
    #[inline(always)]
    fn is_group(self) -> bool {
        self.0 & GROUP != 0
    }
}

/// Both tries, their nodes and the next hops.
#[derive(Clone, Copy)]
pub(crate) struct Tries {
    pub(crate) v4: Trie4,
    pub(crate) v6: Trie6,
    pub(crate) nodes: Nodes,
    pub(crate) next_hops: Slots<NextHop>,
    pub(crate) groups: Slots<Group>,
}

/// Records that leaves name by number.
pub(crate) struct Slots<T> {
    offset: usize,
    pub(crate) count: u32,
    pub(crate) mark: usize,
    types: PhantomData<fn() -> T>,
}

impl<T> Clone for Slots<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slots<T> {}

impl<T> Slots<T> {
    /// Bytes from one to the next: a power of two up to a cache line, whole lines beyond.
    pub(crate) const STRIDE: usize = {
        let len = words_len::<T>();
        if len <= 64 { len.next_power_of_two() } else { len.next_multiple_of(64) }
    };

    /// Records behind the last one: never written, so that a number that there is not reads as zeros.
    pub(crate) const SPARE: usize = 1;

    pub(crate) fn lay_out(end: &mut usize, count: u32, mark: usize) -> Self {
        let offset = end.next_multiple_of(64);
        *end = offset + Self::STRIDE * (count as usize + Self::SPARE);
        Slots { offset, count, mark, types: PhantomData }
    }

    /// Offset of a record; `None` if there is none of that number.
    #[inline(always)]
    pub(crate) fn at(&self, id: u32) -> Option<usize> {
        (id < self.count).then(|| self.offset + Self::STRIDE * id as usize)
    }

    /// Offset of a record, or of one that is all zero if there is none of that number.
    #[inline(always)]
    fn at_or_zero(&self, id: u32) -> usize {
        self.offset + Self::STRIDE * id.min(self.count) as usize
    }
}

/// The nodes that both tries share.
#[derive(Clone, Copy)]
pub(crate) struct Nodes {
    offset: usize,
    pub(crate) count: u32,
    pub(crate) mark: usize,
}

impl Nodes {
    /// Bytes of a node.
    pub(crate) const STRIDE: usize = 64;
    /// Offsets in a skip. What stands on the way that is not taken, and below the way that is, are
    /// entries and may change; the bits and their number never do.
    const COVER: usize = 0;
    const BELOW: usize = 4;
    const COUNT: usize = 8;
    const BITS: usize = 16;

    pub(crate) fn new(offset: usize, count: u32, mark: usize) -> Nodes {
        Nodes { offset, count, mark }
    }

    #[inline(always)]
    fn at(&self, node: u32) -> Option<usize> {
        (node < self.count).then(|| self.offset + Self::STRIDE * node as usize)
    }

    /// Offset of an entry of a branch; `None` if there is no such node.
    #[inline(always)]
    pub(crate) fn entry(&self, node: u32, index: u32) -> Option<usize> {
        self.at(node).map(|at| at + 4 * (index % BRANCH_ENTRIES) as usize)
    }

    /// A skip; `None` if there is no such node, or if it takes no bits or more than `room`.
    #[inline(always)]
    pub(crate) fn skip(&self, region: &Region, node: u32, room: u32) -> Option<Skip> {
        let at = self.at(node)?;
        let count = region.load32(at + Self::COUNT, Ordering::Relaxed);
        let high = region.load64(at + Self::BITS, Ordering::Relaxed);
        let low = region.load64(at + Self::BITS + 8, Ordering::Relaxed);
        let bits = u128::from(high) << 64 | u128::from(low);
        let sound = count > 0 && count <= room && count.is_multiple_of(STRIDE);
        sound.then_some(Skip { bits, count, cover: at + Self::COVER, below: at + Self::BELOW })
    }

    /// Offsets and contents of a skip to be stored in `node`: two entries, the count, and the bits.
    pub(crate) fn skip_words(&self, node: u32, bits: u128, count: u32) -> Option<([usize; 3], [u64; 2])> {
        let at = self.at(node)?;
        let bits = bits & (u128::MAX << (128 - count.clamp(1, 127)));
        Some(([at + Self::COUNT, at + Self::BITS, at + Self::BITS + 8], [(bits >> 64) as u64, bits as u64]))
    }
}

/// A node that stands for levels with one way on.
#[derive(Clone, Copy)]
pub(crate) struct Skip {
    /// The bits of the way on, from the top.
    pub(crate) bits: u128,
    /// How many.
    pub(crate) count: u32,
    /// Offset of the entry for all that goes another way: a leaf.
    pub(crate) cover: usize,
    /// Offset of the entry for what goes this way.
    pub(crate) below: usize,
}

impl Skip {
    /// Whether an address goes this way, given its bits from the skip's depth on.
    #[inline(always)]
    pub(crate) fn takes(&self, rest: u128) -> bool {
        (rest ^ self.bits) >> (128 - self.count) == 0
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

/// Which entry of a branch the next bits select.
#[inline(always)]
pub(crate) fn index(rest: u128) -> u32 {
    (rest >> (128 - STRIDE)) as u32
}

impl<const ROOT: u32, const WIDTH: u32> Trie<ROOT, WIDTH> {
    pub(crate) const ROOT_BITS: u32 = ROOT;

    pub(crate) fn lay_out(end: &mut usize, default: usize) -> Self {
        let root = end.next_multiple_of(4096);
        *end = root + (4 << ROOT);
        Trie { root, default }
    }

    /// Offset of the root entry of an address.
    #[inline(always)]
    pub(crate) fn root_of(&self, key: u128) -> usize {
        self.root + 4 * (key >> (128 - ROOT)) as usize
    }

    #[inline(always)]
    pub(crate) fn lookup(&self, region: &Region, nodes: &Nodes, key: u128) -> Entry {
        let mut entry = Entry(region.load32(self.root_of(key), Ordering::Acquire));
        // Loaded in any case: whether an address has a route is a branch that nobody can foretell, and one that was
        // guessed wrong would keep the look-ups of a burst from overlapping.
        let default = Entry(region.load32(self.default, Ordering::Acquire));
        let (mut rest, mut depth) = (key << ROOT, ROOT);
        // Every turn takes bits, so a broken file can't lead in circles.
        while !entry.is_leaf() {
            if depth >= WIDTH {
                return Entry::NONE;
            }
            match entry.kind() {
                Kind::Leaf => break,
                Kind::Branch(node) => {
                    let Some(at) = nodes.entry(node, index(rest)) else { return Entry::NONE };
                    entry = Entry(region.load32(at, Ordering::Acquire));
                    (rest, depth) = (rest << STRIDE, depth + STRIDE);
                }
                Kind::Skip(node) => {
                    let Some(skip) = nodes.skip(region, node, WIDTH - depth) else { return Entry::NONE };
                    if !skip.takes(rest) {
                        entry = Entry(region.load32(skip.cover, Ordering::Acquire));
                        break;
                    }
                    entry = Entry(region.load32(skip.below, Ordering::Acquire));
                    (rest, depth) = (rest << skip.count, depth + skip.count);
                }
            }
        }
        if entry == Entry::NONE { default } else { entry }
    }
}

impl Tries {
    /// Lays out next hops, groups, nodes and roots. Of each of the first three: how many, and the offset of the
    /// high-water mark.
    pub(crate) fn lay_out(
        end: &mut usize,
        (next_hop_count, next_hop_mark): (u32, usize),
        (group_count, group_mark): (u32, usize),
        (node_count, node_mark): (u32, usize),
    ) -> Tries {
        use crate::layout::header::{DEFAULT_V4, DEFAULT_V6};
        let next_hops = Slots::lay_out(end, next_hop_count, next_hop_mark);
        let groups = Slots::lay_out(end, group_count, group_mark);
        let nodes = Nodes::new(end.next_multiple_of(4096), node_count, node_mark);
        *end = nodes.offset + Nodes::STRIDE * node_count as usize;
        let v6 = Trie::lay_out(end, DEFAULT_V6);
        let v4 = Trie::lay_out(end, DEFAULT_V4);
        Tries { v4, v6, nodes, next_hops, groups }
    }

    /// Fetches what a look-up of `ip` loads first.
    #[inline(always)]
    pub(crate) fn prefetch(&self, region: &Region, ip: Ip) {
        region.prefetch(match ip.as_v4() {
            Some(octets) => self.v4.root_of(key_v4(octets)),
            None => self.v6.root_of(u128::from_be_bytes(ip.0)),
        });
    }

    #[inline(always)]
    fn entry(&self, region: &Region, ip: Ip) -> Entry {
        match ip.as_v4() {
            Some(octets) => self.v4.lookup(region, &self.nodes, key_v4(octets)),
            None => self.v6.lookup(region, &self.nodes, u128::from_be_bytes(ip.0)),
        }
    }

    /// The next hop of the longest prefix that holds `ip`; where that has several, the one for a flow's hash.
    #[inline(always)]
    pub(crate) fn lookup(&self, region: &Region, ip: Ip, hash: u64) -> Option<NextHop> {
        let entry = self.entry(region, ip);
        if entry.is_group() {
            return self.choose(region, entry.number(), hash);
        }
        // Read in any case, for the reason that the default is: only who asked need know which it is.
        let next_hop: NextHop = region.read(self.next_hops.at_or_zero(entry.number()));
        next_hop.is_some().then_some(next_hop)
    }

    #[cold]
    fn choose(&self, region: &Region, group: u32, hash: u64) -> Option<NextHop> {
        region.read::<Group>(self.groups.at(group)?).choose(hash)
    }

    /// All next hops of the longest prefix that holds `ip`.
    pub(crate) fn paths(&self, region: &Region, ip: Ip) -> Option<Group> {
        let entry = self.entry(region, ip);
        self.group(region, entry.number() | entry.0 & GROUP)
    }

    /// The next hops under a number, which has [`GROUP`] set for a group.
    pub(crate) fn group(&self, region: &Region, number: u32) -> Option<Group> {
        match number & GROUP {
            0 => self.next_hops.at(number).map(|at| Group::single(region.read(at))),
            _ => self.groups.at(number & !GROUP).map(|at| region.read(at)),
        }
    }
}

/// A prefix as the tries take it: is it IPv4, address, length.
pub(crate) fn trie_prefix(prefix: &Prefix) -> (bool, u128, u32) {
    match prefix.addr().as_v4() {
        Some(octets) => (true, key_v4(octets), u32::from(prefix.len())),
        None => (false, u128::from_be_bytes(prefix.addr().0), u32::from(prefix.len())),
    }
}
