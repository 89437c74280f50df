//! The writer's side of the next hops that leaves name: each different one is held once, with its number and
//! its references.

use crate::lpm::Tries;
use crate::pool::Pool;
use crate::record::NextHop;
use crate::region::WriteRegion;
use std::collections::{HashMap, HashSet};

/// See the module.
pub(crate) struct NextHops {
    pub(crate) pool: Pool,
    ids: HashMap<NextHop, u32>,
    references: Vec<u32>,
    /// Numbers whose last reference went in this batch.
    unreferenced: Vec<u32>,
}

impl NextHops {
    /// None yet, of at most `count`.
    pub(crate) fn new(count: u32, mark: usize) -> NextHops {
        NextHops {
            pool: Pool::new(count, mark),
            ids: HashMap::new(),
            references: vec![0; count as usize],
            unreferenced: Vec::new(),
        }
    }

    /// Takes over a reference of a former writer; false if the number contradicts another reference.
    pub(crate) fn recover(&mut self, next_hop: NextHop, id: u32) -> bool {
        if *self.ids.entry(next_hop).or_insert(id) != id {
            return false;
        }
        self.references.get_mut(id as usize).map(|n| *n += 1).is_some()
    }

    /// Takes over, last step: what has no reference waits until readers have seen `generation`.
    pub(crate) fn recover_pool(&mut self, region: &WriteRegion, generation: u64) {
        let used: Vec<bool> = self.references.iter().map(|n| *n > 0).collect();
        self.pool.recover(region, &used, generation);
    }

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
