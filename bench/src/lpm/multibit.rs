//! A multibit trie with prefixes expanded to its levels: a root of `ROOT` bits, then nodes of 2^`STRIDE` entries. With
//! (24, 8) it is DIR-24-8, with (16, 8) the classic 16-8-8. The shapes that Fairway could have, to choose by measuring.

use super::Table;
use super::routes::{Family, Route};

/// An entry is {1, node} or {0, prefix length + 1 in 8 bits, value in 23}; 0 is nothing.
const CHILD: u32 = 1 << 31;

/// See the module. Takes nothing out.
pub struct Multibit<const ROOT: u32, const STRIDE: u32> {
    width: u32,
    root: Vec<u32>,
    nodes: Vec<u32>,
    default: Option<u32>,
}

impl<const ROOT: u32, const STRIDE: u32> Multibit<ROOT, STRIDE> {
    /// Without routes.
    pub fn new(family: Family) -> Self {
        let width = if family == Family::V4 { 32 } else { 128 };
        Multibit { width, root: vec![0; 1 << ROOT], nodes: Vec::new(), default: None }
    }

    fn index(key: u128, depth: u32) -> usize {
        (key >> (128 - STRIDE - depth)) as usize & ((1 << STRIDE) - 1)
    }

    /// Writes a leaf over `count` entries from `at` on, and below them, wherever no longer prefix stands.
    fn fill(nodes: &mut [u32], at: usize, count: usize, leaf: u32) {
        for i in at..at + count {
            let entry = nodes[i];
            if entry & CHILD != 0 {
                Self::fill(nodes, ((entry & !CHILD) as usize) << STRIDE, 1 << STRIDE, leaf);
            } else if entry >> 23 <= leaf >> 23 {
                nodes[i] = leaf;
            }
        }
    }

    fn insert_one(&mut self, route: &Route) {
        let leaf = (route.len + 1) << 23 | route.value;
        if route.len == 0 {
            self.default = Some(route.value);
            return;
        }
        let top = (route.key >> (128 - ROOT)) as usize;
        if route.len <= ROOT {
            for at in top..top + (1 << (ROOT - route.len)) {
                let entry = self.root[at];
                if entry & CHILD != 0 {
                    Self::fill(&mut self.nodes, ((entry & !CHILD) as usize) << STRIDE, 1 << STRIDE, leaf);
                } else if entry >> 23 <= leaf >> 23 {
                    self.root[at] = leaf;
                }
            }
            return;
        }
        let (mut in_root, mut at, mut depth) = (true, top, ROOT);
        loop {
            let entry = if in_root { self.root[at] } else { self.nodes[at] };
            let node = if entry & CHILD != 0 {
                (entry & !CHILD) as usize
            } else {
                let node = self.nodes.len() >> STRIDE;
                self.nodes.resize(self.nodes.len() + (1 << STRIDE), entry);
                let place = if in_root { &mut self.root[at] } else { &mut self.nodes[at] };
                *place = CHILD | node as u32;
                node
            };
            (in_root, at) = (false, (node << STRIDE) + Self::index(route.key, depth));
            depth += STRIDE;
            if route.len <= depth {
                return Self::fill(&mut self.nodes, at, 1 << (depth - route.len), leaf);
            }
        }
    }
}

impl<const ROOT: u32, const STRIDE: u32> Table for Multibit<ROOT, STRIDE> {
    fn insert(&mut self, routes: &[Route]) {
        routes.iter().for_each(|route| self.insert_one(route));
        self.nodes.shrink_to_fit();
    }

    fn remove(&mut self, _: &[Route]) -> bool {
        false
    }

    #[inline]
    fn look_up(&self, key: u128) -> Option<u32> {
        let mut entry = self.root[(key >> (128 - ROOT)) as usize];
        let mut depth = ROOT;
        while entry & CHILD != 0 && depth < self.width {
            entry = self.nodes[((entry & !CHILD) as usize) << STRIDE | Self::index(key, depth)];
            depth += STRIDE;
        }
        if entry == 0 { self.default } else { Some(entry & ((1 << 23) - 1)) }
    }
}
