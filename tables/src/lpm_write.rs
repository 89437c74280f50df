//! The writer's side of longest prefix match: expanding prefixes into the tries, making and unmaking
//! nodes, and the next hops with their reference counts.
//!
//! Entries of live nodes change in place, one store each: a look-up reads one entry per level, so it
//! finds either the old route or the new one. A new node is complete before the one store that links it; a
//! node that no longer holds a longer prefix is unlinked by one store and retired. A change of one prefix
//! touches many entries, so the prefix is noted in the header's journal first, and the next writer does
//! it again if this one is killed.

use crate::Prefix;
use crate::layout::RouteValue;
use crate::lpm::{Entry, NODE_ENTRIES, Nodes, Trie, Tries, trie_prefix};
use crate::pool::Pool;
use crate::record::NextHop;
use crate::region::WriteRegion;
use crate::sync::Ordering;
use std::collections::{HashMap, HashSet};

/// See the module.
pub(crate) struct LpmWriter {
    tries: Tries,
    pub(crate) nodes: NodeWriter,
    pub(crate) next_hops: NextHops,
    /// Prefixes held, by family (IPv6, IPv4) and length: spares looking for lengths that nobody has.
    lengths: [[u32; 129]; 2],
}

/// The nodes of both tries.
pub(crate) struct NodeWriter {
    nodes: Nodes,
    pub(crate) pool: Pool,
    /// How many prefixes lie below each node; at zero it is unlinked.
    below: Vec<u32>,
}

/// The next hops that leaves name.
pub(crate) struct NextHops {
    pub(crate) pool: Pool,
    ids: HashMap<NextHop, u32>,
    references: Vec<u32>,
    /// Numbers whose last reference went in this batch.
    unreferenced: Vec<u32>,
}

/// A file's tries contradict its prefixes.
#[derive(Debug)]
pub(crate) struct BrokenTrie(pub(crate) &'static str);

/// Does the same for whichever family the prefix is of.
macro_rules! on_trie {
    ($self:ident, $is_v4:expr, $trie:ident => $body:expr) => {
        if $is_v4 {
            let $trie = $self.tries.v4;
            $body
        } else {
            let $trie = $self.tries.v6;
            $body
        }
    };
}

impl LpmWriter {
    pub(crate) fn new(tries: Tries) -> LpmWriter {
        LpmWriter {
            tries,
            nodes: NodeWriter {
                nodes: tries.nodes,
                pool: Pool::new(tries.nodes.count, tries.nodes.mark),
                below: vec![0; tries.nodes.count as usize],
            },
            next_hops: NextHops {
                pool: Pool::new(tries.next_hop_count, tries.next_hop_mark),
                ids: HashMap::new(),
                references: vec![0; tries.next_hop_count as usize],
                unreferenced: Vec::new(),
            },
            lengths: [[0; 129]; 2],
        }
    }

    /// How many nodes it takes to hold `prefixes` as well; `planned` gathers what is counted already.
    pub(crate) fn missing_nodes<'a>(
        &self,
        region: &WriteRegion,
        prefixes: impl Iterator<Item = &'a Prefix>,
    ) -> usize {
        let mut planned: HashSet<(bool, u32, u128)> = HashSet::new();
        for prefix in prefixes {
            let (is_v4, key, len) = trie_prefix(prefix);
            let (mut depth, found) = on_trie!(self, is_v4, trie => (trie.root_bits(), trie.path(region, &self.nodes.nodes, key, len).len()));
            depth += 8 * found as u32;
            while depth < len {
                planned.insert((is_v4, depth, key >> (128 - depth)));
                depth += 8;
            }
        }
        planned.len()
    }

    /// Puts a prefix into its trie. `replaces` tells whether it was there before, maybe with another
    /// next hop. Doing it twice changes nothing.
    pub(crate) fn set(&mut self, region: &WriteRegion, prefix: &Prefix, id: u32, replaces: bool) {
        let (is_v4, key, len) = trie_prefix(prefix);
        if !replaces {
            self.lengths[usize::from(is_v4)][len as usize] += 1;
        }
        let leaf = Entry::leaf(len as u8, id);
        on_trie!(self, is_v4, trie => {
            trie.set(region, &mut self.nodes, key, len, leaf);
            if !replaces {
                for (_, node) in trie.path(region, &self.nodes.nodes, key, len) {
                    self.nodes.below[node as usize] += 1;
                }
            }
        });
    }

    /// Takes a prefix out of its trie, after it left the prefix table. `held` tells whether it was
    /// counted before; `get` reads the prefix table. Doing it twice changes nothing.
    pub(crate) fn delete(
        &mut self,
        region: &WriteRegion,
        prefix: &Prefix,
        held: bool,
        generation: u64,
        get: impl Fn(&Prefix) -> Option<RouteValue>,
    ) {
        let (is_v4, key, len) = trie_prefix(prefix);
        let lengths = &mut self.lengths[usize::from(is_v4)];
        if held {
            lengths[len as usize] -= 1;
        }
        // What now covers the range; not the default route, which lies apart.
        let cover = (1..len)
            .rev()
            .filter(|shorter| lengths[*shorter as usize] > 0)
            .find_map(|shorter| {
                let value = get(&Prefix::new(prefix.addr(), shorter as u8)?)?;
                Some(Entry::leaf(shorter as u8, value.id))
            })
            .unwrap_or(Entry::NONE);
        on_trie!(self, is_v4, trie => {
            let path = trie.path(region, &self.nodes.nodes, key, len);
            if held {
                path.iter().for_each(|(_, node)| self.nodes.below[*node as usize] -= 1);
            }
            match path.iter().position(|(_, node)| self.nodes.below[*node as usize] == 0) {
                Some(first) => {
                    // No longer prefix is left below: one store unlinks all these nodes.
                    region.store32(path[first].0, cover.0, Ordering::Release);
                    for (_, node) in &path[first..] {
                        self.nodes.pool.retire(*node, generation);
                    }
                }
                None => trie.clear(region, &self.nodes, key, len, cover),
            }
        });
    }

    /// Takes over from a former writer, first step: counts every prefix of the table except the one in
    /// the journal, which [`set`](Self::set) or [`delete`](Self::delete) counts when it is done again.
    pub(crate) fn recover<'a>(
        &mut self,
        region: &WriteRegion,
        routes: impl Iterator<Item = &'a (Prefix, RouteValue)>,
        journal: Option<Prefix>,
        generation: u64,
    ) -> Result<(), BrokenTrie> {
        let mut node_of: HashMap<u32, (bool, u32, u128)> = HashMap::new();
        let mut note = |is_v4, first, key: u128, path: &[(usize, u32)]| {
            let mut depth = first;
            path.iter().all(|(_, node)| {
                let place = (is_v4, depth, key >> (128 - depth));
                depth += 8;
                *node_of.entry(*node).or_insert(place) == place
            })
        };
        let nodes = self.nodes.nodes;
        let mut ids = vec![false; self.tries.next_hop_count as usize];
        for (prefix, value) in routes {
            let (is_v4, key, len) = trie_prefix(prefix);
            if Prefix::new(prefix.addr(), len.min(255) as u8) != Some(*prefix) {
                return Err(BrokenTrie("a malformed prefix"));
            }
            let at = self.tries.next_hop(value.id).ok_or(BrokenTrie("a next-hop number out of range"))?;
            if region.read::<NextHop>(at) != value.next_hop
                || *self.next_hops.ids.entry(value.next_hop).or_insert(value.id) != value.id
            {
                return Err(BrokenTrie("a route that disagrees with its next hop"));
            }
            ids[value.id as usize] = true;
            self.next_hops.references[value.id as usize] += 1;
            if journal == Some(*prefix) {
                continue;
            }
            self.lengths[usize::from(is_v4)][len as usize] += 1;
            let (root, path) =
                on_trie!(self, is_v4, trie => (trie.root_bits(), trie.path(region, &nodes, key, len)));
            if path.len() as u32 != len.saturating_sub(root).div_ceil(8) || !note(is_v4, root, key, &path) {
                return Err(BrokenTrie("a prefix whose nodes are missing or shared"));
            }
            path.iter().for_each(|(_, node)| self.nodes.below[*node as usize] += 1);
        }
        if let Some(prefix) = journal {
            let (is_v4, key, len) = trie_prefix(&prefix);
            let (root, path) =
                on_trie!(self, is_v4, trie => (trie.root_bits(), trie.path(region, &nodes, key, len)));
            if !note(is_v4, root, key, &path) {
                return Err(BrokenTrie("a journalled prefix whose nodes are shared"));
            }
        }
        if !node_of.iter().all(|(node, place)| self.nodes.children_belong(region, *node, *place, &node_of)) {
            return Err(BrokenTrie("a node that belongs to no prefix"));
        }
        let mut used = vec![false; nodes.count as usize];
        node_of.keys().for_each(|node| used[*node as usize] = true);
        self.nodes.pool.recover(region, &used, generation);
        self.next_hops.pool.recover(region, &ids, generation);
        Ok(())
    }
}

impl NodeWriter {
    /// Changes the leaf at an entry, or every leaf below it, as `change` says. Goes only into nodes that
    /// recovery has seen to form a tree, so that a damaged entry can't lead in circles.
    fn overwrite(&self, region: &WriteRegion, at: usize, change: &impl Fn(Entry) -> Option<Entry>) {
        let mut entry = Entry(region.load32(at, Ordering::Relaxed));
        if let Some(node) = entry.node() {
            if self.below.get(node as usize).is_some_and(|below| *below > 0) {
                for i in 0..NODE_ENTRIES {
                    if let Some(below) = self.nodes.entry(node, i) {
                        self.overwrite(region, below, change);
                    }
                }
                return;
            }
            entry = Entry::NONE;
        }
        if let Some(new) = change(entry)
            && new != entry
        {
            region.store32(at, new.0, Ordering::Release);
        }
    }

    /// Whether the children of a node are the nodes that belong there.
    fn children_belong(
        &self,
        region: &WriteRegion,
        node: u32,
        (is_v4, depth, path): (bool, u32, u128),
        node_of: &HashMap<u32, (bool, u32, u128)>,
    ) -> bool {
        (0..NODE_ENTRIES).all(|i| {
            let Some(at) = self.nodes.entry(node, i) else { return false };
            match Entry(region.load32(at, Ordering::Relaxed)).node() {
                None => true,
                Some(child) => node_of.get(&child) == Some(&(is_v4, depth + 8, path << 8 | u128::from(i))),
            }
        })
    }
}

impl NextHops {
    /// How many of these are not there yet.
    pub(crate) fn missing<'a>(&self, next_hops: impl Iterator<Item = &'a NextHop>) -> usize {
        next_hops.filter(|n| !self.ids.contains_key(n)).collect::<HashSet<_>>().len()
    }

    /// The number of a next hop, with one more reference.
    pub(crate) fn acquire(&mut self, region: &WriteRegion, tries: &Tries, next_hop: &NextHop) -> u32 {
        let id = match self.ids.get(next_hop) {
            Some(id) => *id,
            None => {
                let id = self.pool.take(region);
                if let Some(at) = tries.next_hop(id) {
                    region.write(at, next_hop);
                }
                self.ids.insert(*next_hop, id);
                id
            }
        };
        self.references[id as usize] += 1;
        id
    }

    /// One reference less.
    pub(crate) fn release(&mut self, id: u32) {
        self.references[id as usize] -= 1;
        if self.references[id as usize] == 0 {
            self.unreferenced.push(id);
        }
    }

    /// Retires what lost its last reference in this batch and found no new one.
    pub(crate) fn retire_unreferenced(&mut self, region: &WriteRegion, tries: &Tries, generation: u64) {
        for id in std::mem::take(&mut self.unreferenced) {
            let next_hop = tries
                .next_hop(id)
                .map(|at| region.read::<NextHop>(at))
                .unwrap_or_else(bytemuck::Zeroable::zeroed);
            if self.references[id as usize] == 0 && self.ids.get(&next_hop) == Some(&id) {
                self.ids.remove(&next_hop);
                self.pool.retire(id, generation);
            }
        }
    }
}

impl<const ROOT: u32, const WIDTH: u32> Trie<ROOT, WIDTH> {
    fn root_bits(&self) -> u32 {
        ROOT
    }

    /// The nodes on the way to a prefix, each with the offset of the entry that links it.
    fn path(&self, region: &WriteRegion, nodes: &Nodes, key: u128, len: u32) -> Vec<(usize, u32)> {
        let mut path = Vec::new();
        if len > WIDTH {
            return path;
        }
        let mut at = self.root_of(key);
        let mut depth = ROOT;
        while depth < len {
            let Some(node) = Entry(region.load32(at, Ordering::Relaxed)).node() else { break };
            let Some(next) = nodes.entry(node, Self::index(key, depth)) else { break };
            path.push((at, node));
            at = next;
            depth += 8;
        }
        path
    }

    /// Offsets of the entries that a prefix ends in, at the level whose node is `node` (`None` is the root).
    fn range(&self, nodes: &Nodes, node: Option<u32>, depth: u32, key: u128, len: u32) -> (usize, u32) {
        match node {
            None if len <= ROOT => (self.root_of(key), 1 << (ROOT - len)),
            Some(node) => {
                let at = nodes.entry(node, Self::index(key, depth)).unwrap_or(self.default);
                (at, 1 << (depth + 8 - len))
            }
            None => (self.default, 0),
        }
    }

    fn set(&self, region: &WriteRegion, writer: &mut NodeWriter, key: u128, len: u32, leaf: Entry) {
        if len == 0 {
            return region.store32(self.default, leaf.0, Ordering::Release);
        }
        let path = self.path(region, &writer.nodes, key, len);
        let depth = ROOT + 8 * path.len() as u32;
        if len <= depth {
            let (at, count) =
                self.range(&writer.nodes, path.last().map(|p| p.1), depth.wrapping_sub(8), key, len);
            for i in 0..count {
                writer.overwrite(region, at + 4 * i as usize, &|e| (e.prefix_len() <= len).then_some(leaf));
            }
            return;
        }
        // Nodes are missing: make them, deepest last, and publish the first.
        let at = match path.last() {
            None => self.root_of(key),
            Some((_, node)) => writer.nodes.entry(*node, Self::index(key, depth - 8)).unwrap_or(self.default),
        };
        let cover = Entry(region.load32(at, Ordering::Relaxed));
        let first = self.build(region, writer, key, len, leaf, cover, depth);
        region.store32(at, Entry::child(first).0, Ordering::Release);
    }

    /// Makes the node at `depth` and those below it on the way to the prefix.
    #[expect(clippy::too_many_arguments, reason = "recursion over the same prefix")]
    fn build(
        &self,
        region: &WriteRegion,
        writer: &mut NodeWriter,
        key: u128,
        len: u32,
        leaf: Entry,
        cover: Entry,
        depth: u32,
    ) -> u32 {
        let node = writer.pool.take(region);
        writer.below[node as usize] = 0;
        let start = Self::index(key, depth);
        let (count, entry) = if len <= depth + 8 {
            (1 << (depth + 8 - len), leaf)
        } else {
            (1, Entry::child(self.build(region, writer, key, len, leaf, cover, depth + 8)))
        };
        for i in 0..NODE_ENTRIES {
            let value = if (start..start + count).contains(&i) { entry } else { cover };
            if let Some(at) = writer.nodes.entry(node, i) {
                region.store32(at, value.0, Ordering::Relaxed);
            }
        }
        node
    }

    /// Replaces a prefix's entries by what covers it.
    fn clear(&self, region: &WriteRegion, writer: &NodeWriter, key: u128, len: u32, cover: Entry) {
        if len == 0 {
            return region.store32(self.default, 0, Ordering::Release);
        }
        let path = self.path(region, &writer.nodes, key, len);
        let depth = ROOT + 8 * path.len() as u32;
        if len > depth {
            return; // Its nodes are gone already.
        }
        let (at, count) =
            self.range(&writer.nodes, path.last().map(|p| p.1), depth.wrapping_sub(8), key, len);
        for i in 0..count {
            writer.overwrite(region, at + 4 * i as usize, &|e| (e.prefix_len() == len).then_some(cover));
        }
    }
}
