//! A set of places of the table that several threads change, and that is searched in bounded time.
//!
//! One bit per place, and one bit per 64 of these that says "perhaps not empty". It is private to the process.
//! A search reads one word of the second kind for every 4096 places, whatever the set holds.

use super::sync::{AtomicU64, Ordering};

const BITS: usize = 64;

pub(super) struct Places {
    leaves: Box<[AtomicU64]>,
    marks: Box<[AtomicU64]>,
}

impl Places {
    pub(super) fn new(capacity: usize) -> Places {
        let leaves = capacity.div_ceil(BITS).max(1);
        let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Places { leaves: words(leaves), marks: words(leaves.div_ceil(BITS)) }
    }

    /// Adds a place.
    pub(super) fn insert(&self, place: u32) {
        let leaf = place as usize / BITS;
        self.leaves[leaf].fetch_or(bit(place as usize), Ordering::AcqRel);
        self.mark(leaf);
    }

    /// Always a read-modify-write, even where the mark is set: it stands in one order with the removal of the
    /// mark in [`Places::remove`], so that one of both sees the other.
    fn mark(&self, leaf: usize) {
        self.marks[leaf / BITS].fetch_or(bit(leaf), Ordering::AcqRel);
    }

    /// Takes a place out; whether it was in.
    pub(super) fn remove(&self, place: u32) -> bool {
        let leaf = place as usize / BITS;
        let before = self.leaves[leaf].fetch_and(!bit(place as usize), Ordering::AcqRel);
        if before == bit(place as usize) {
            self.marks[leaf / BITS].fetch_and(!bit(leaf), Ordering::AcqRel);
            if self.leaves[leaf].load(Ordering::Acquire) != 0 {
                self.mark(leaf);
            }
        }
        before & bit(place as usize) != 0
    }

    /// Adds all places from `start` to before `end`, while no other thread uses the set.
    pub(super) fn fill(&self, start: usize, end: usize) {
        let mut place = start;
        while place < end {
            if place.is_multiple_of(BITS) && place + BITS <= end {
                self.leaves[place / BITS].store(!0, Ordering::Relaxed);
                self.mark(place / BITS);
                place += BITS;
            } else {
                self.insert(place as u32);
                place += 1;
            }
        }
    }

    /// The first place in the set at or behind `from`, or else the first of all.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let from = from as usize % (self.leaves.len() * BITS);
        self.at_or_behind(from).or_else(|| if from > 0 { self.at_or_behind(0) } else { None })
    }

    fn at_or_behind(&self, from: usize) -> Option<u32> {
        let leaf = from / BITS;
        let rest = self.leaves[leaf].load(Ordering::Acquire) & (!0 << (from % BITS));
        if rest != 0 {
            return Some(place(leaf, rest));
        }
        let start = leaf + 1;
        for word in start / BITS..self.marks.len() {
            let skip = if word == start / BITS { start % BITS } else { 0 };
            let mut marked = self.marks[word].load(Ordering::Acquire) & (!0 << skip);
            while marked != 0 {
                let leaf = word * BITS + marked.trailing_zeros() as usize;
                let bits = self.leaves[leaf].load(Ordering::Acquire);
                if bits != 0 {
                    return Some(place(leaf, bits));
                }
                marked &= marked - 1;
            }
        }
        None
    }
}

fn bit(place: usize) -> u64 {
    1 << (place % BITS)
}

fn place(leaf: usize, bits: u64) -> u32 {
    (leaf * BITS) as u32 + bits.trailing_zeros()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_sorted_set(
            capacity in 1usize..20_000,
            filled: (usize, usize),
            ops in proptest::collection::vec((any::<u32>(), any::<bool>(), any::<u32>()), 0..200),
        ) {
            let places = Places::new(capacity);
            let (start, end) = (filled.0 % capacity, filled.1 % (capacity + 1));
            places.fill(start, end);
            let mut model: BTreeSet<u32> = (start as u32..end.max(start) as u32).collect();
            for (place, insert, from) in ops {
                let place = place % capacity as u32;
                if insert {
                    places.insert(place);
                    model.insert(place);
                } else {
                    prop_assert_eq!(places.remove(place), model.remove(&place));
                }
                let from = from % capacity as u32;
                let expected = model.range(from..).next().or(model.first()).copied();
                prop_assert_eq!(places.next(from), expected);
            }
        }
    }
}
