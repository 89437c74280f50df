//! Stable small numbers: a name keeps its number as long as it is claimed, the lowest free number is
//! given next, and numbers found in the tables at start are held back until their owners had the chance
//! to claim them again.

use std::collections::{BTreeMap, BTreeSet};

/// Allocates numbers from `first` up.
#[derive(Clone, Debug)]
pub(super) struct Allocator<N: Ord + Clone> {
    limit: u32,
    /// Claimed or held back.
    numbers: BTreeMap<N, u32>,
    /// Every number from here up is free.
    next: u32,
    /// Free numbers below `next`.
    free: BTreeSet<u32>,
    /// Held back and not claimed yet.
    unclaimed: BTreeSet<N>,
}

impl<N: Ord + Clone> Allocator<N> {
    /// Numbers in `first..limit`. Of seeds that repeat a number or lie outside, the first wins.
    pub(super) fn new(first: u32, limit: u32, seeds: impl IntoIterator<Item = (N, u32)>) -> Allocator<N> {
        let mut numbers = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (name, number) in seeds {
            let usable = (first..limit).contains(&number) && !numbers.contains_key(&name);
            if usable && taken.insert(number) {
                numbers.insert(name, number);
            }
        }
        let next = taken.last().map_or(first, |last| last + 1);
        let free = (first..next).filter(|n| !taken.contains(n)).collect();
        let unclaimed = numbers.keys().cloned().collect();
        Allocator { limit, numbers, next, free, unclaimed }
    }

    /// The name's number, a new one if it has none; `None` if all are taken.
    pub(super) fn claim(&mut self, name: &N) -> Option<u32> {
        if let Some(number) = self.numbers.get(name) {
            self.unclaimed.remove(name);
            return Some(*number);
        }
        let number = match self.free.pop_first() {
            Some(number) => number,
            None if self.next < self.limit => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.numbers.insert(name.clone(), number);
        Some(number)
    }

    /// Gives the name's number back.
    pub(super) fn release(&mut self, name: &N) {
        if let Some(number) = self.numbers.remove(name) {
            self.free.insert(number);
            self.unclaimed.remove(name);
        }
    }

    /// Gives back what nobody claimed since the start.
    pub(super) fn release_unclaimed(&mut self) {
        for name in std::mem::take(&mut self.unclaimed) {
            self.release(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_stable_and_reused_only_after_release() {
        let mut alloc = Allocator::new(2, 5, []);
        assert_eq!(alloc.claim(&"a"), Some(2));
        assert_eq!(alloc.claim(&"b"), Some(3));
        assert_eq!(alloc.claim(&"a"), Some(2));
        assert_eq!(alloc.claim(&"c"), Some(4));
        assert_eq!(alloc.claim(&"d"), None);
        alloc.release(&"b");
        assert_eq!(alloc.claim(&"d"), Some(3));
    }

    #[test]
    fn seeds_are_held_for_their_owners_until_released() {
        let mut alloc = Allocator::new(2, 9, [("a", 4), ("gone", 2), ("bad", 1), ("again", 4)]);
        assert_eq!(alloc.claim(&"new"), Some(3));
        assert_eq!(alloc.claim(&"a"), Some(4));
        alloc.release_unclaimed();
        assert_eq!(alloc.claim(&"next"), Some(2));
        assert_eq!(alloc.claim(&"a"), Some(4));
    }
}
