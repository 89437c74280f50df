//! A worker's private flow table, one per address family: open addressing, one entry of whole cache lines per flow.
//!
//! An entry lies at most [`WINDOW`] − 1 slots behind its home slot. Filled to at most half, most are found at
//! home, and most of the rest on the next line. When a window is full the
//! entry longest untouched makes room: this is a cache, whose truth is the connection table.

use super::{Flow, HugeSlice};

/// Slots that a look-up reads at most.
pub const WINDOW: usize = 16;

/// See the module's head.
pub struct FlowTable<F: Flow> {
    /// A power of two of homes, and `WINDOW` more slots so that a window never wraps.
    slots: HugeSlice<F>,
    mask: usize,
    used: usize,
    seed: u64,
    sweep: usize,
}

impl<F: Flow> FlowTable<F> {
    /// A table that serves `flows` at half load; memory is two entries per flow, touched as it is used.
    pub fn new(flows: usize, seed: u64) -> FlowTable<F> {
        let homes = (flows.max(WINDOW) * 2).next_power_of_two();
        FlowTable { slots: HugeSlice::zeroed(homes + WINDOW), mask: homes - 1, used: 0, seed, sweep: 0 }
    }

    /// The seed for [`Flow::hash`].
    #[inline(always)]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Flows held.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether no flow is held.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Fetches the home line of a hash and the one after it: at half load every third flow is not at home, and most of
    /// those are on the next line, which the processor does not fetch by itself.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        let home = hash as usize & self.mask;
        self.slots.prefetch(home);
        self.slots.prefetch(home + 1);
    }

    /// The slot of a flow, fresh or stale.
    #[inline(always)]
    pub fn find(&self, hash: u64, key: &F::Key) -> Option<usize> {
        let home = hash as usize & self.mask;
        // Most flows are at home.
        if self.slots.get(home)?.key() == key {
            return Some(home);
        }
        let window = self.slots.get(home..home + WINDOW)?;
        for (offset, slot) in window.iter().enumerate() {
            if slot.key() == key {
                return Some(home + offset);
            }
            if slot.is_empty() {
                return None;
            }
        }
        None
    }

    /// The entry in a slot that [`FlowTable::find`] or [`FlowTable::insert`] returned.
    #[inline(always)]
    pub fn entry(&self, slot: usize) -> &F {
        &self.slots[slot]
    }

    /// As [`FlowTable::entry`], to be changed in anything but its key.
    #[inline(always)]
    pub fn entry_mut(&mut self, slot: usize) -> &mut F {
        &mut self.slots[slot]
    }

    /// Puts an entry in, replacing the same flow's or, in a full window, the longest untouched one.
    pub fn insert(&mut self, entry: F) -> usize {
        let home = F::hash(entry.key(), self.seed) as usize & self.mask;
        let mut oldest = home;
        for slot in home..home + WINDOW {
            let held = &self.slots[slot];
            if held.is_empty() {
                self.used += 1;
                self.slots[slot] = entry;
                return slot;
            }
            if held.key() == entry.key() {
                self.slots[slot] = entry;
                return slot;
            }
            if (held.binding().touched.wrapping_sub(self.slots[oldest].binding().touched) as i32) < 0 {
                oldest = slot;
            }
        }
        self.slots[oldest] = entry;
        oldest
    }

    /// Takes a flow out, and moves back what then would not be found behind the gap.
    pub fn remove(&mut self, slot: usize) {
        if self.slots[slot].is_empty() {
            return;
        }
        let mut gap = slot;
        let mut next = slot + 1;
        // An entry lies less than a window behind its home, so further ones cannot belong into the gap.
        while next < self.slots.len() && next - gap < WINDOW && !self.slots[next].is_empty() {
            let home = F::hash(self.slots[next].key(), self.seed) as usize & self.mask;
            if home <= gap {
                self.slots[gap] = self.slots[next];
                gap = next;
            }
            next += 1;
        }
        self.slots[gap] = F::zeroed();
        self.used -= 1;
    }

    /// Looks at the next `count` slots and takes out flows not touched for `idle_ticks`; a full round is made
    /// over many calls.
    pub fn sweep(&mut self, count: usize, tick: u32, idle_ticks: u32) {
        for _ in 0..count.min(self.slots.len()) {
            let slot = self.sweep;
            let entry = &self.slots[slot];
            if !entry.is_empty() && tick.wrapping_sub(entry.binding().touched) as i32 > idle_ticks as i32 {
                // Another entry may have moved here: look again next.
                self.remove(slot);
                continue;
            }
            self.sweep = if slot + 1 == self.slots.len() { 0 } else { slot + 1 };
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.slots.fill(F::zeroed());
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FlowEntry, FlowKey};
    use super::*;
    use bytemuck::Zeroable;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(n: u32, touched: u32) -> FlowEntry {
        let mut entry = FlowEntry::zeroed();
        entry.key = FlowKey::new(n, n ^ 7, n.rotate_left(9), 6, 3, 0);
        entry.new_src = n;
        entry.binding.touched = touched;
        entry
    }

    fn find(table: &FlowTable<FlowEntry>, n: u32) -> Option<u32> {
        let key = entry(n, 0).key;
        table.find(key.hash(table.seed()), &key).map(|slot| table.entry(slot).new_src)
    }

    #[test]
    fn at_half_load_every_flow_is_found() {
        let mut table = FlowTable::new(10_000, 0x1234_5678_9abc_def0);
        (0..10_000).for_each(|n| {
            table.insert(entry(n, 0));
        });
        let found = (0..10_000).filter(|n| find(&table, *n) == Some(*n)).count();
        assert!(found >= 9_999, "{found} of 10000: windows overflowed");
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_while_no_window_overflows(
            seed: u64,
            ops in proptest::collection::vec((0u32..60, any::<bool>()), 1..400),
        ) {
            let mut table = FlowTable::new(256, seed);
            let mut model = BTreeMap::new();
            for (n, insert) in ops {
                if insert {
                    table.insert(entry(n, 0));
                    model.insert(n, ());
                } else {
                    let key = entry(n, 0).key;
                    if let Some(slot) = table.find(key.hash(seed), &key) {
                        table.remove(slot);
                    }
                    model.remove(&n);
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for n in 0..60 {
                prop_assert_eq!(find(&table, n).is_some(), model.contains_key(&n));
            }
        }

        #[test]
        fn sweeping_takes_out_the_idle_and_only_them(seed: u64, touched in proptest::collection::vec(0u32..100, 1..200)) {
            let mut table = FlowTable::new(256, seed);
            for (n, tick) in touched.iter().enumerate() {
                table.insert(entry(n as u32, *tick));
            }
            for _ in 0..8 {
                table.sweep(200, 100, 50);
            }
            for (n, tick) in touched.iter().enumerate() {
                prop_assert_eq!(find(&table, n as u32).is_some(), *tick >= 50);
            }
        }
    }

    #[test]
    fn a_full_window_gives_up_the_longest_untouched() {
        let mut table = FlowTable::new(16, 5);
        for n in 0..200 {
            table.insert(entry(n, n));
            assert_eq!(find(&table, n), Some(n), "the newest flow is always there");
        }
        assert!(table.len() <= 32 + WINDOW);
    }
}
