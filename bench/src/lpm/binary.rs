//! A plain binary trie: one bit per level, one node per bit. Slow and simple; the oracle for all others.

use super::Table;
use super::routes::Route;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    child: [u32; 2],
    value: u32,
}

/// See the module. Emptied nodes stay.
pub struct Binary {
    nodes: Vec<Node>,
}

impl Default for Binary {
    fn default() -> Self {
        Binary { nodes: vec![Node { child: [NONE; 2], value: NONE }] }
    }
}

fn bit(key: u128, depth: u32) -> usize {
    (key >> (127 - depth)) as usize & 1
}

impl Table for Binary {
    fn insert(&mut self, routes: &[Route]) {
        for route in routes {
            let mut at = 0;
            for depth in 0..route.len {
                let next = self.nodes[at].child[bit(route.key, depth)];
                at = if next == NONE {
                    let new = self.nodes.len();
                    self.nodes.push(Node { child: [NONE; 2], value: NONE });
                    self.nodes[at].child[bit(route.key, depth)] = new as u32;
                    new
                } else {
                    next as usize
                };
            }
            self.nodes[at].value = route.value;
        }
    }

    fn remove(&mut self, routes: &[Route]) -> bool {
        for route in routes {
            let mut at = 0;
            for depth in 0..route.len {
                match self.nodes[at].child[bit(route.key, depth)] {
                    NONE => return true,
                    next => at = next as usize,
                }
            }
            self.nodes[at].value = NONE;
        }
        true
    }

    fn look_up(&self, key: u128) -> Option<u32> {
        let (mut at, mut depth, mut best) = (0, 0, NONE);
        loop {
            let node = &self.nodes[at];
            if node.value != NONE {
                best = node.value;
            }
            let next = if depth < 128 { node.child[bit(key, depth)] } else { NONE };
            if next == NONE {
                return (best != NONE).then_some(best);
            }
            at = next as usize;
            depth += 1;
        }
    }
}
