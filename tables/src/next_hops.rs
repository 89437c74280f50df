//! The writer's side of the next hops and groups that leaves name: each different one is held once, with its number
//! and its references.

use crate::lpm::Slots;
use crate::pool::Pool;
use crate::region::WriteRegion;
use bytemuck::Pod;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// See the module.
pub(crate) struct Interned<T> {
    slots: Slots<T>,
    pub(crate) pool: Pool,
    ids: HashMap<T, u32>,
    references: Vec<u32>,
    /// Numbers whose last reference went in this batch.
    unreferenced: Vec<u32>,
}

impl<T: Pod + Eq + Hash> Interned<T> {
    /// None yet.
    pub(crate) fn new(slots: Slots<T>) -> Self {
        Interned {
            slots,
            pool: Pool::new(slots.count, slots.mark),
            ids: HashMap::new(),
            references: vec![0; slots.count as usize],
            unreferenced: Vec::new(),
        }
    }

    /// Takes over a reference of a former writer; false if the number contradicts another reference.
    pub(crate) fn recover(&mut self, value: T, id: u32) -> bool {
        if *self.ids.entry(value).or_insert(id) != id {
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
    pub(crate) fn missing<'a>(&self, values: impl Iterator<Item = &'a T>) -> usize
    where
        T: 'a,
    {
        values.filter(|n| !self.ids.contains_key(n)).collect::<HashSet<_>>().len()
    }

    /// The number of a value, with one more reference.
    pub(crate) fn acquire(&mut self, region: &WriteRegion, value: &T) -> u32 {
        let id = match self.ids.get(value) {
            Some(id) => *id,
            None => {
                let id = self.pool.take(region);
                if let Some(at) = self.slots.at(id) {
                    region.write(at, value);
                }
                self.ids.insert(*value, id);
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
    pub(crate) fn retire_unreferenced(&mut self, region: &WriteRegion, generation: u64) {
        for id in std::mem::take(&mut self.unreferenced) {
            let Some(at) = self.slots.at(id) else { continue };
            let value = region.read::<T>(at);
            if self.references[id as usize] == 0 && self.ids.get(&value) == Some(&id) {
                self.ids.remove(&value);
                self.pool.retire(id, generation);
            }
        }
    }
}
