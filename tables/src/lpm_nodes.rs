//! The writer's side of a trie's nodes: putting one prefix's leaf into its place, taking it out again, and
//! taking over the nodes of a former writer.
//!
//! Entries of live nodes change in place, one store each: a look-up reads one entry per node, so it finds
//! either the old route or the new one. Where a node is missing, or a skip must be split, the new nodes are
//! complete before the one store that links them; that store alone changes no look-up, or only those of the new
//! prefix. Nodes that no longer branch are replaced the same way, and retired.

use crate::lpm::{BRANCH_ENTRIES, Entry, Kind, Nodes, STRIDE, Skip, Trie, index};
use crate::pool::Pool;
use crate::region::WriteRegion;
use crate::sync::Ordering;

/// A file's tries contradict its prefixes.
#[derive(Debug)]
pub(crate) struct BrokenTrie(pub(crate) &'static str);

/// The nodes of both tries.
pub(crate) struct NodeWriter {
    pub(crate) nodes: Nodes,
    pub(crate) pool: Pool,
    /// Which nodes are reachable. Recovery has seen that they form a tree, and only they are gone into,
    /// so that a damaged entry can't lead in circles.
    live: Vec<bool>,
}

/// The prefix that is being changed, and the new leaf.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) key: u128,
    pub(crate) len: u32,
}

/// A step on the way to a prefix: the offset of an entry, and its depth in bits.
type Step = (usize, u32);

/// The bits of an address from `depth` on.
fn rest(key: u128, depth: u32) -> u128 {
    key.checked_shl(depth).unwrap_or(0)
}

/// Bits that two ways share, in whole strides, up to `limit`.
fn common(a: u128, b: u128, limit: u32) -> u32 {
    ((a ^ b).leading_zeros() / STRIDE * STRIDE).min(limit)
}

impl NodeWriter {
    pub(crate) fn new(nodes: Nodes) -> NodeWriter {
        NodeWriter {
            nodes,
            pool: Pool::new(nodes.count, nodes.mark),
            live: vec![false; nodes.count as usize],
        }
    }

    fn load(&self, region: &WriteRegion, at: usize) -> Entry {
        Entry(region.load32(at, Ordering::Relaxed))
    }

    /// An entry; `NONE` where it leads to a node that is none of ours.
    fn load_live(&self, region: &WriteRegion, at: usize) -> Entry {
        let entry = self.load(region, at);
        match entry.node() {
            Some(node) if !self.live.get(node as usize).is_some_and(|live| *live) => Entry::NONE,
            _ => entry,
        }
    }

    fn publish(&self, region: &WriteRegion, at: usize, entry: Entry) {
        region.store32(at, entry.0, Ordering::Release);
    }

    fn take(&mut self, region: &WriteRegion) -> u32 {
        let node = self.pool.take(region);
        self.live[node as usize] = true;
        node
    }

    fn retire(&mut self, node: u32, generation: u64) {
        self.live[node as usize] = false;
        self.pool.retire(node, generation);
    }

    /// A branch whose entries are all `cover`.
    fn new_branch(&mut self, region: &WriteRegion, cover: Entry) -> u32 {
        let node = self.take(region);
        for i in 0..BRANCH_ENTRIES {
            self.set_entry(region, node, i, cover);
        }
        node
    }

    /// Stores an entry of a branch that is not linked yet.
    fn set_entry(&self, region: &WriteRegion, node: u32, i: u32, entry: Entry) {
        if let Some(at) = self.nodes.entry(node, i) {
            region.store32(at, entry.0, Ordering::Relaxed);
        }
    }

    fn new_skip(
        &mut self,
        region: &WriteRegion,
        bits: u128,
        count: u32,
        cover: Entry,
        below: Entry,
    ) -> Entry {
        let node = self.take(region);
        if let Some((at, words)) = self.nodes.skip_words(node, bits, count) {
            self.set_entry(region, node, 0, cover);
            self.set_entry(region, node, 1, below);
            region.store32(at[0], count, Ordering::Relaxed);
            region.store64(at[1], words[0], Ordering::Relaxed);
            region.store64(at[2], words[1], Ordering::Relaxed);
        }
        Entry::skip(node)
    }

    /// Changes a leaf, or every leaf below an entry, as `change` says.
    fn overwrite(&self, region: &WriteRegion, at: usize, change: &impl Fn(Entry) -> Option<Entry>) {
        let mut entry = self.load_live(region, at);
        match entry.kind() {
            Kind::Leaf => {}
            Kind::Branch(node) => {
                let entries = (0..BRANCH_ENTRIES).filter_map(|i| self.nodes.entry(node, i));
                return entries.for_each(|at| self.overwrite(region, at, change));
            }
            Kind::Skip(node) => match self.nodes.skip(region, node, 128) {
                Some(skip) => {
                    self.overwrite(region, skip.cover, change);
                    return self.overwrite(region, skip.below, change);
                }
                None => entry = Entry::NONE,
            },
        }
        if let Some(new) = change(entry)
            && new != self.load(region, at)
        {
            self.publish(region, at, new);
        }
    }

    /// Replaces a skip by the same with a branch after its first `at_bit` bits, for the one way on that it has.
    fn split(&mut self, region: &WriteRegion, at: usize, skip: &Skip, at_bit: u32, generation: u64) {
        let old = self.load(region, at);
        let (cover, below) = (self.load(region, skip.cover), self.load(region, skip.below));
        let behind = at_bit + STRIDE;
        let way_on = match skip.count.checked_sub(behind) {
            None | Some(0) => below,
            Some(count) => self.new_skip(region, rest(skip.bits, behind), count, cover, below),
        };
        let branch = self.new_branch(region, cover);
        self.set_entry(region, branch, index(rest(skip.bits, at_bit)), way_on);
        let new = match at_bit {
            0 => Entry::branch(branch),
            _ => self.new_skip(region, skip.bits, at_bit, cover, Entry::branch(branch)),
        };
        self.publish(region, at, new);
        old.node().into_iter().for_each(|node| self.retire(node, generation));
    }

    /// Replaces a skip by two, the first of `count` bits, so that the second has a cover of its own.
    fn divide(&mut self, region: &WriteRegion, at: usize, skip: &Skip, count: u32, generation: u64) {
        let old = self.load(region, at);
        let (cover, below) = (self.load(region, skip.cover), self.load(region, skip.below));
        let second = self.new_skip(region, rest(skip.bits, count), skip.count - count, cover, below);
        let first = self.new_skip(region, skip.bits, count, cover, second);
        self.publish(region, at, first);
        old.node().into_iter().for_each(|node| self.retire(node, generation));
    }

    /// Replaces a node that does not branch any more. Does nothing where there is no node for that: then it
    /// stays until there is.
    fn simplify(&mut self, region: &WriteRegion, (at, depth): Step, generation: u64) {
        let entry = self.load_live(region, at);
        let (cover, bits, count, below) = match entry.kind() {
            Kind::Leaf => return,
            Kind::Branch(node) => match self.only_way(region, node, depth) {
                Way::Many => return,
                Way::None(cover) => {
                    self.publish(region, at, cover);
                    return self.retire(node, generation);
                }
                Way::One(i, cover, below) => (cover, u128::from(i) << (128 - STRIDE), STRIDE, below),
            },
            Kind::Skip(node) => {
                let Some(skip) = self.nodes.skip(region, node, 128) else { return };
                (self.load(region, skip.cover), skip.bits, skip.count, self.load_live(region, skip.below))
            }
        };
        let second = match below.kind() {
            // A prefix that ends where a skip does stands below it.
            Kind::Leaf if below.prefix_len() > depth => return,
            Kind::Leaf => {
                self.publish(region, at, cover);
                return entry.node().into_iter().for_each(|node| self.retire(node, generation));
            }
            // Two skips become one, unless some prefix ends between them.
            Kind::Skip(node) => self.nodes.skip(region, node, 128).filter(|second| {
                let cover = self.load(region, second.cover);
                cover.prefix_len() <= depth && count + second.count < 128
            }),
            Kind::Branch(_) => None,
        };
        let is_branch = matches!(entry.kind(), Kind::Branch(_));
        if !(is_branch || second.is_some()) || self.pool.available() == 0 {
            return;
        }
        let new = match second {
            None => self.new_skip(region, bits, count, cover, below),
            Some(second) => {
                let bits = bits | second.bits >> count;
                let last = self.load(region, second.below);
                let new = self.new_skip(region, bits, count + second.count, cover, last);
                below.node().into_iter().for_each(|node| self.retire(node, generation));
                new
            }
        };
        self.publish(region, at, new);
        entry.node().into_iter().for_each(|node| self.retire(node, generation));
    }

    /// What a branch at `depth` still tells apart.
    fn only_way(&self, region: &WriteRegion, node: u32, depth: u32) -> Way {
        let (mut cover, mut child) = (Entry::NONE, None);
        for i in 0..BRANCH_ENTRIES {
            let Some(at) = self.nodes.entry(node, i) else { return Way::Many };
            let entry = self.load_live(region, at);
            match (entry.is_leaf(), child) {
                (true, _) if entry.prefix_len() > depth => return Way::Many,
                (true, _) => cover = entry,
                (false, None) => child = Some((i, entry)),
                (false, Some(_)) => return Way::Many,
            }
        }
        match child {
            None => Way::None(cover),
            Some((i, below)) => Way::One(i, cover, below),
        }
    }

    /// Takes over from a former writer, first step: goes into the nodes below one root entry.
    fn visit(&mut self, region: &WriteRegion, at: usize, depth: u32, width: u32) -> Result<(), BrokenTrie> {
        let Some(node) = self.load(region, at).node() else { return Ok(()) };
        if depth >= width {
            return Err(BrokenTrie("a node below the last bit"));
        }
        match self.live.get_mut(node as usize) {
            None => return Err(BrokenTrie("a node number out of range")),
            Some(true) => return Err(BrokenTrie("a node that is linked twice")),
            Some(live) => *live = true,
        }
        if let Kind::Branch(_) = self.load(region, at).kind() {
            let nodes = self.nodes;
            return (0..BRANCH_ENTRIES)
                .filter_map(|i| nodes.entry(node, i))
                .try_for_each(|at| self.visit(region, at, depth + STRIDE, width));
        }
        let Some(skip) = self.nodes.skip(region, node, width - depth) else {
            return Err(BrokenTrie("a skip of an impossible length"));
        };
        if !self.load(region, skip.cover).is_leaf() {
            return Err(BrokenTrie("a skip that leads two ways"));
        }
        self.visit(region, skip.below, depth + skip.count, width)
    }

    /// Takes over, last step: what was not visited waits until readers have seen `generation`.
    pub(crate) fn recover_pool(&mut self, region: &WriteRegion, generation: u64) {
        self.pool.recover(region, &self.live, generation);
    }
}

/// What is left of a branch.
enum Way {
    /// Only what covers it.
    None(Entry),
    /// One child, and for all else what covers it.
    One(u32, Entry, Entry),
    /// More.
    Many,
}

impl<const ROOT: u32, const WIDTH: u32> Trie<ROOT, WIDTH> {
    pub(crate) fn root_bits(&self) -> u32 {
        ROOT
    }

    /// Depth of the branch that a prefix longer than the root's bits ends in.
    fn last_depth(len: u32) -> u32 {
        ROOT + (len - ROOT - 1) / STRIDE * STRIDE
    }

    /// Whether a prefix can be one of this trie.
    fn holds(len: u32) -> bool {
        (1..=WIDTH).contains(&len)
    }

    /// How many nodes [`set`](Self::set) takes for a prefix, at most.
    pub(crate) fn missing(&self, region: &WriteRegion, writer: &NodeWriter, target: Target) -> usize {
        let Target { key, len } = target;
        if len <= ROOT || !Self::holds(len) {
            return 0;
        }
        let (mut at, mut depth, last) = (self.root_of(key), ROOT, Self::last_depth(len));
        let new = |depth| if depth == last { 1 } else { 2 };
        loop {
            match writer.load_live(region, at).kind() {
                Kind::Leaf => return new(depth),
                Kind::Branch(_) if depth == last => return 0,
                Kind::Branch(node) => match writer.nodes.entry(node, index(rest(key, depth))) {
                    Some(entry) => (at, depth) = (entry, depth + STRIDE),
                    None => return 0,
                },
                Kind::Skip(node) => {
                    let Some(skip) = writer.nodes.skip(region, node, WIDTH - depth) else {
                        return new(depth);
                    };
                    let shared = common(rest(key, depth), skip.bits, skip.count);
                    if shared == skip.count && depth + shared <= last {
                        (at, depth) = (skip.below, depth + shared);
                    } else if depth + shared >= len && (len - depth).is_multiple_of(STRIDE) {
                        return if len - depth == skip.count { 0 } else { 2 };
                    } else {
                        let at_bit = shared.min(last - depth);
                        let behind = depth + at_bit + STRIDE;
                        return 1
                            + usize::from(at_bit > 0)
                            + usize::from(at_bit + STRIDE < skip.count)
                            + if behind > last { 0 } else { new(behind) };
                    }
                }
            }
            if depth > last {
                return 0;
            }
        }
    }

    /// Changes all leaves that lie below a prefix no longer than the root's bits.
    fn overwrite_roots(
        &self,
        region: &WriteRegion,
        writer: &NodeWriter,
        target: Target,
        change: &impl Fn(Entry) -> Option<Entry>,
    ) {
        let first = self.root_of(target.key);
        let entries = (0..1usize << (ROOT - target.len)).map(|i| first + 4 * i);
        entries.for_each(|at| writer.overwrite(region, at, change));
    }

    /// Puts a leaf into all places of a prefix that no longer prefix has. Doing it twice changes nothing. The
    /// caller has checked that the nodes are there.
    pub(crate) fn set(
        &self,
        region: &WriteRegion,
        writer: &mut NodeWriter,
        target: Target,
        leaf: Entry,
        generation: u64,
    ) {
        let Target { key, len } = target;
        let change = |entry: Entry| (entry.prefix_len() <= len).then_some(leaf);
        if len == 0 {
            return region.store32(self.default, leaf.0, Ordering::Release);
        }
        if !Self::holds(len) {
            return;
        }
        if len <= ROOT {
            return self.overwrite_roots(region, writer, target, &change);
        }
        let (mut at, mut depth, last) = (self.root_of(key), ROOT, Self::last_depth(len));
        while depth <= last {
            let entry = writer.load_live(region, at);
            let skip = match entry.kind() {
                Kind::Branch(node) if depth == last => {
                    return self
                        .range(writer, node, target, depth, |at| writer.overwrite(region, at, &change));
                }
                Kind::Branch(node) => {
                    let Some(next) = writer.nodes.entry(node, index(rest(key, depth))) else { return };
                    (at, depth) = (next, depth + STRIDE);
                    continue;
                }
                Kind::Skip(node) => writer.nodes.skip(region, node, WIDTH - depth),
                Kind::Leaf => None,
            };
            let Some(skip) = skip else {
                let new = self.build(region, writer, target, leaf, entry, depth);
                return writer.publish(region, at, new);
            };
            let shared = common(rest(key, depth), skip.bits, skip.count);
            if shared == skip.count && depth + shared <= last {
                (at, depth) = (skip.below, depth + shared);
            } else if depth + shared >= len && (len - depth).is_multiple_of(STRIDE) {
                // It ends on this way, between two branches.
                if len - depth == skip.count {
                    return writer.overwrite(region, skip.below, &change);
                }
                writer.divide(region, at, &skip, len - depth, generation);
            } else {
                writer.split(region, at, &skip, shared.min(last - depth), generation);
            }
        }
    }

    /// Calls `each` with the offset of every entry of a branch that a prefix which ends there covers.
    fn range(&self, writer: &NodeWriter, node: u32, target: Target, depth: u32, each: impl FnMut(usize)) {
        let first = index(rest(target.key, depth));
        let count = 1 << (depth + STRIDE).saturating_sub(target.len).min(STRIDE);
        (first..first + count).filter_map(|i| writer.nodes.entry(node, i)).for_each(each);
    }

    /// Makes the branch that a prefix ends in, and the skip that leads there from `depth`.
    fn build(
        &self,
        region: &WriteRegion,
        writer: &mut NodeWriter,
        target: Target,
        leaf: Entry,
        cover: Entry,
        depth: u32,
    ) -> Entry {
        let cover = if cover.is_leaf() { cover } else { Entry::NONE };
        let last = Self::last_depth(target.len);
        let branch = writer.new_branch(region, cover);
        self.range(writer, branch, target, last, |at| region.store32(at, leaf.0, Ordering::Relaxed));
        match last - depth {
            0 => Entry::branch(branch),
            count => writer.new_skip(region, rest(target.key, depth), count, cover, Entry::branch(branch)),
        }
    }

    /// Replaces a prefix's leaves by what covers it, then the nodes that this made needless. Doing it twice
    /// changes nothing.
    pub(crate) fn clear(
        &self,
        region: &WriteRegion,
        writer: &mut NodeWriter,
        target: Target,
        cover: Entry,
        generation: u64,
    ) {
        let Target { key, len } = target;
        let change = |entry: Entry| (entry.prefix_len() == len).then_some(cover);
        if len == 0 {
            return region.store32(self.default, 0, Ordering::Release);
        }
        if !Self::holds(len) {
            return;
        }
        if len <= ROOT {
            return self.overwrite_roots(region, writer, target, &change);
        }
        let (mut at, mut depth, last) = (self.root_of(key), ROOT, Self::last_depth(len));
        let mut path: Vec<Step> = Vec::with_capacity(8);
        while depth <= last {
            path.push((at, depth));
            match writer.load_live(region, at).kind() {
                Kind::Leaf => break,
                Kind::Branch(node) if depth == last => {
                    self.range(writer, node, target, depth, |at| writer.overwrite(region, at, &change));
                    break;
                }
                Kind::Branch(node) => {
                    let Some(next) = writer.nodes.entry(node, index(rest(key, depth))) else { break };
                    (at, depth) = (next, depth + STRIDE);
                }
                Kind::Skip(node) => {
                    let Some(skip) = writer.nodes.skip(region, node, WIDTH - depth) else { break };
                    if !(depth + skip.count <= len && skip.takes(rest(key, depth))) {
                        break;
                    }
                    (at, depth) = (skip.below, depth + skip.count);
                    if depth == len {
                        writer.overwrite(region, at, &change);
                    }
                }
            }
        }
        path.iter().rev().for_each(|step| writer.simplify(region, *step, generation));
    }

    /// Whether the branch that a prefix ends in is there, or the way that it ends on.
    pub(crate) fn is_complete(&self, region: &WriteRegion, writer: &NodeWriter, target: Target) -> bool {
        self.missing(region, writer, target) == 0
    }

    /// See [`NodeWriter::visit`].
    pub(crate) fn visit(
        &self,
        region: &WriteRegion,
        writer: &mut NodeWriter,
        root: u128,
    ) -> Result<(), BrokenTrie> {
        writer.visit(region, self.root_of(root), ROOT, WIDTH)
    }
}
