//! The writer's book of the slots of one array: which are free, which are retired and wait for
//! readers. Private to the writer; only the high-water mark lies in the header, so that the next writer
//! knows which slots no reader can ever have seen.

use crate::region::WriteRegion;
use crate::sync::Ordering;
use std::collections::VecDeque;

/// See the module.
pub(crate) struct Pool {
    capacity: u32,
    high_water: u32,
    high_water_offset: usize,
    free: Vec<u32>,
    /// (generation that every reader must have seen, slot), oldest first.
    retired: VecDeque<(u64, u32)>,
}

impl Pool {
    /// Nothing in use.
    pub(crate) fn new(capacity: u32, high_water_offset: usize) -> Pool {
        Pool { capacity, high_water: 0, high_water_offset, free: Vec::new(), retired: VecDeque::new() }
    }

    /// Takes over from a former writer: slots below the high-water mark that are not `in_use` may still
    /// be read by someone until `generation` has been seen.
    pub(crate) fn recover(&mut self, region: &WriteRegion, in_use: &[bool], generation: u64) {
        let mark = region.load64(self.high_water_offset, Ordering::Acquire);
        let reached = in_use.iter().rposition(|used| *used).map_or(0, |i| i as u32 + 1);
        self.high_water = (mark.min(u64::from(self.capacity)) as u32).max(reached);
        self.free.clear();
        self.retired = (0..self.high_water)
            .filter(|i| !in_use.get(*i as usize).copied().unwrap_or(false))
            .map(|i| (generation, i))
            .collect();
    }

    /// Slots that can be taken now.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + (self.capacity - self.high_water) as usize
    }

    /// Slots that wait for readers.
    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Slots that hold something reachable.
    pub(crate) fn in_use(&self) -> usize {
        self.capacity as usize - self.available() - self.retired()
    }

    /// Takes a slot; the caller has checked `available`.
    ///
    /// # Panics
    /// If nothing is available, which is an error in the caller's planning.
    pub(crate) fn take(&mut self, region: &WriteRegion) -> u32 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        assert!(self.high_water < self.capacity, "a batch takes no more slots than were planned");
        let slot = self.high_water;
        self.high_water += 1;
        region.store64(self.high_water_offset, u64::from(self.high_water), Ordering::Release);
        slot
    }

    /// Gives back a slot that readers who have not seen `generation` may still read.
    pub(crate) fn retire(&mut self, slot: u32, generation: u64) {
        self.retired.push_back((generation, slot));
    }

    /// Frees what every reader has moved on from.
    pub(crate) fn reclaim(&mut self, seen_by_all: u64) {
        while let Some((generation, slot)) = self.retired.front().copied() {
            if generation > seen_by_all {
                break;
            }
            self.retired.pop_front();
            self.free.push(slot);
        }
    }
}
