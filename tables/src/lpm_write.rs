//! The writer's side of longest prefix match: prefixes of both families into and out of their tries
//! (`lpm_nodes.rs`), and what recovery needs.
//!
//! A change of one prefix may touch many entries, so the prefix is noted in the header's journal first, and the
//! next writer does it again if this one is killed.

use crate::Prefix;
use crate::group::Group;
use crate::layout::RouteValue;
use crate::lpm::{Entry, GROUP, Tries, trie_prefix};
use crate::lpm_nodes::{BrokenTrie, NodeWriter, Target};
use crate::next_hops::Interned;
use crate::record::NextHop;
use crate::region::WriteRegion;
use std::collections::{HashMap, HashSet};

/// Nodes that a new prefix takes at most: three to split a skip, two to lead from there to its last bits.
const MOST_NODES: usize = 5;
/// Nodes that all new prefixes with the same last branch take at most: one of them may end between two skips (two
/// nodes) before another makes the branch.
const MOST_NODES_TOGETHER: usize = 7;

/// See the module.
pub(crate) struct LpmWriter {
    tries: Tries,
    pub(crate) nodes: NodeWriter,
    pub(crate) next_hops: Interned<NextHop>,
    pub(crate) groups: Interned<Group>,
    /// Prefixes held, by family (IPv6, IPv4) and length: spares looking for lengths that nobody has.
    lengths: [[u32; 129]; 2],
}

/// What a route leads to.
#[derive(Clone, Copy)]
pub(crate) enum RouteTarget<'a> {
    One(NextHop),
    Several(&'a Group),
}

impl RouteTarget<'_> {
    /// As its slot holds it, under a number.
    pub(crate) fn value(self, id: u32) -> RouteValue {
        match self {
            RouteTarget::One(next_hop) => RouteValue { next_hop, id },
            RouteTarget::Several(_) => RouteValue { id, ..bytemuck::Zeroable::zeroed() },
        }
    }

    fn group(self) -> Group {
        match self {
            RouteTarget::One(next_hop) => Group::single(next_hop),
            RouteTarget::Several(group) => *group,
        }
    }

    /// Whether a route that is there leads to the same.
    pub(crate) fn is(self, paths: Option<Group>) -> bool {
        paths == Some(self.group())
    }
}

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
            nodes: NodeWriter::new(tries.nodes),
            next_hops: Interned::new(tries.next_hops),
            groups: Interned::new(tries.groups),
            lengths: [[0; 129]; 2],
        }
    }

    /// How many nodes it takes to hold `prefixes` as well: exact for one, an upper bound for several, which may
    /// get in each other's way.
    pub(crate) fn missing_nodes<'a>(
        &self,
        region: &WriteRegion,
        prefixes: impl Iterator<Item = &'a Prefix>,
    ) -> usize {
        let mut planned: HashMap<(bool, u32, u128), usize> = HashMap::new();
        let (mut count, mut exact) = (0, 0);
        for prefix in prefixes {
            let (is_v4, key, len) = trie_prefix(prefix);
            let target = Target { key, len };
            let missing = on_trie!(self, is_v4, trie => trie.missing(region, &self.nodes, target));
            if missing > 0 {
                (count, exact) = (count + 1, missing);
                // The bits before the last branch tell which branch that is.
                let before = (len - 1) / crate::lpm::STRIDE * crate::lpm::STRIDE;
                *planned.entry((is_v4, before, key >> (128 - before))).or_default() += 1;
            }
        }
        match count {
            0 | 1 => exact,
            _ => planned.values().map(|n| (MOST_NODES * n).min(MOST_NODES_TOGETHER)).sum(),
        }
    }

    /// The number of what a route leads to, with one more reference.
    pub(crate) fn acquire(&mut self, region: &WriteRegion, target: RouteTarget<'_>) -> u32 {
        match target {
            RouteTarget::One(next_hop) => self.next_hops.acquire(region, &next_hop),
            RouteTarget::Several(group) => GROUP | self.groups.acquire(region, group),
        }
    }

    /// One reference less.
    pub(crate) fn release(&mut self, id: u32) {
        match id & GROUP {
            0 => self.next_hops.release(id),
            _ => self.groups.release(id & !GROUP),
        }
    }

    /// Retires what lost its last reference in this batch and found no new one.
    pub(crate) fn retire_unreferenced(&mut self, region: &WriteRegion, generation: u64) {
        self.next_hops.retire_unreferenced(region, generation);
        self.groups.retire_unreferenced(region, generation);
    }

    /// Takes over a route's reference; false if the route contradicts what it leads to, or another route.
    fn recover_reference(&mut self, region: &WriteRegion, value: &RouteValue) -> bool {
        if value.id & GROUP != 0 {
            let id = value.id & !GROUP;
            let group = self.tries.groups.at(id).map(|at| region.read::<Group>(at));
            return group.is_some_and(|group| self.groups.recover(group, id));
        }
        let next_hop = self.tries.next_hops.at(value.id).map(|at| region.read::<NextHop>(at));
        next_hop == Some(value.next_hop) && self.next_hops.recover(value.next_hop, value.id)
    }

    /// Puts a prefix into its trie. `replaces` tells whether it was there before, maybe with another
    /// next hop. Doing it twice changes nothing.
    pub(crate) fn set(
        &mut self,
        region: &WriteRegion,
        prefix: &Prefix,
        id: u32,
        replaces: bool,
        generation: u64,
    ) {
        let (is_v4, key, len) = trie_prefix(prefix);
        if !replaces {
            self.lengths[usize::from(is_v4)][len as usize] += 1;
        }
        let (target, leaf) = (Target { key, len }, Entry::leaf(len as u8, id));
        on_trie!(self, is_v4, trie => trie.set(region, &mut self.nodes, target, leaf, generation));
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
        let target = Target { key, len };
        on_trie!(self, is_v4, trie => trie.clear(region, &mut self.nodes, target, cover, generation));
    }

    /// Takes over from a former writer, first step: counts every prefix of the table except the one in
    /// the journal, which [`set`](Self::set) or [`delete`](Self::delete) counts when it is done again, and
    /// goes into the nodes below each.
    pub(crate) fn recover<'a>(
        &mut self,
        region: &WriteRegion,
        routes: impl Iterator<Item = &'a (Prefix, RouteValue)>,
        journal: Option<Prefix>,
        generation: u64,
    ) -> Result<(), BrokenTrie> {
        let mut visited = HashSet::new();
        let mut counted = Vec::new();
        for (prefix, value) in routes {
            let (is_v4, _, len) = trie_prefix(prefix);
            if Prefix::new(prefix.addr(), len.min(255) as u8) != Some(*prefix) {
                return Err(BrokenTrie("a malformed prefix"));
            }
            if !self.recover_reference(region, value) {
                return Err(BrokenTrie("a route that disagrees with its next hop"));
            }
            self.visit(region, prefix, &mut visited)?;
            if journal != Some(*prefix) {
                self.lengths[usize::from(is_v4)][len as usize] += 1;
                counted.push(*prefix);
            }
        }
        if let Some(prefix) = journal {
            self.visit(region, &prefix, &mut visited)?;
        }
        for prefix in counted {
            let (is_v4, key, len) = trie_prefix(&prefix);
            let target = Target { key, len };
            if !on_trie!(self, is_v4, trie => trie.is_complete(region, &self.nodes, target)) {
                return Err(BrokenTrie("a prefix whose nodes are missing"));
            }
        }
        self.nodes.recover_pool(region, generation);
        self.next_hops.recover_pool(region, generation);
        self.groups.recover_pool(region, generation);
        Ok(())
    }

    /// Goes into the nodes below a prefix's root entry, unless that was done.
    fn visit(
        &mut self,
        region: &WriteRegion,
        prefix: &Prefix,
        visited: &mut HashSet<usize>,
    ) -> Result<(), BrokenTrie> {
        let (is_v4, key, len) = trie_prefix(prefix);
        on_trie!(self, is_v4, trie => {
            if len > trie.root_bits() && visited.insert(trie.root_of(key)) {
                return trie.visit(region, &mut self.nodes, key);
            }
        });
        Ok(())
    }
}
