//! The writer's book of the backend arena: a buddy allocator whose blocks are powers of two, so that
//! neighbours freed one by one become large blocks again. Private to the writer, rebuilt at recovery.

use std::collections::{BTreeSet, VecDeque};

/// A block: its first backend and log2 of its length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Block {
    pub(crate) first: u32,
    pub(crate) order: u32,
}

impl Block {
    /// The block that holds `count` backends from `first` on; `None` if there are none.
    pub(crate) fn of(first: u32, count: u32) -> Option<Block> {
        (count > 0).then(|| Block { first, order: count.next_power_of_two().trailing_zeros() })
    }

    /// First backend behind the block.
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.first) + (1 << self.order)
    }
}

/// See the module.
pub(crate) struct Blocks {
    /// Free blocks by order, lowest first.
    free: Vec<BTreeSet<u32>>,
    retired: VecDeque<(u64, Block)>,
}

impl Blocks {
    /// An arena of 2^order backends, all free.
    pub(crate) fn new(order: u32) -> Blocks {
        let mut free = vec![BTreeSet::new(); order as usize + 1];
        free[order as usize].insert(0);
        Blocks { free, retired: VecDeque::new() }
    }

    /// Takes over from a former writer: `used` is what services refer to, in any order; what else lies
    /// below `high_water` may still be read until `generation` has been seen. `None` if blocks overlap or
    /// lie where no allocator puts them.
    pub(crate) fn recover(
        order: u32,
        mut used: Vec<Block>,
        high_water: u64,
        generation: u64,
    ) -> Option<Blocks> {
        let whole = Block { first: 0, order };
        let mut blocks = Blocks { free: vec![BTreeSet::new(); order as usize + 1], retired: VecDeque::new() };
        used.sort_unstable();
        let fits =
            |b: &Block| b.order <= order && b.end() <= whole.end() && b.first.trailing_zeros() >= b.order;
        let apart = used.windows(2).all(|w| w[0].end() <= u64::from(w[1].first));
        if !apart || !used.iter().all(fits) {
            return None;
        }
        blocks.carve(whole, &used, high_water, generation);
        Some(blocks)
    }

    /// Files what of `range` is not in `used` (sorted, aligned, apart, all within the range).
    fn carve(&mut self, range: Block, used: &[Block], high_water: u64, generation: u64) {
        if used.is_empty() && u64::from(range.first) >= high_water {
            self.free[range.order as usize].insert(range.first);
        } else if used.is_empty() && (range.end() <= high_water || range.order == 0) {
            self.retired.push_back((generation, range));
        } else if used.first() != Some(&range) {
            let order = range.order - 1;
            let middle = range.first + (1 << order);
            let (low, high) = used.split_at(used.partition_point(|b| b.first < middle));
            self.carve(Block { first: range.first, order }, low, high_water, generation);
            self.carve(Block { first: middle, order }, high, high_water, generation);
        }
    }

    /// A block of 2^order, or `None` if there is none that large.
    pub(crate) fn take(&mut self, order: u32) -> Option<Block> {
        let from = (order as usize..self.free.len()).find(|o| !self.free[*o].is_empty())?;
        let first = self.free[from].pop_first()?;
        for half in (order as usize..from).rev() {
            self.free[half].insert(first + (1 << half));
        }
        Some(Block { first, order })
    }

    /// Gives a block back that no reader can have seen or still see.
    pub(crate) fn give(&mut self, block: Block) {
        let Block { mut first, mut order } = block;
        while (order as usize) < self.free.len() - 1
            && self.free[order as usize].remove(&(first ^ 1 << order))
        {
            first &= !(1 << order);
            order += 1;
        }
        self.free[order as usize].insert(first);
    }

    /// Gives back a block that readers who have not seen `generation` may still read.
    pub(crate) fn retire(&mut self, block: Block, generation: u64) {
        self.retired.push_back((generation, block));
    }

    /// Frees what every reader has moved on from.
    pub(crate) fn reclaim(&mut self, seen_by_all: u64) {
        while let Some((generation, block)) = self.retired.front().copied() {
            if generation > seen_by_all {
                break;
            }
            self.retired.pop_front();
            self.give(block);
        }
    }

    /// Backends in blocks that wait for readers.
    pub(crate) fn retired(&self) -> usize {
        self.retired.iter().map(|(_, b)| 1 << b.order).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_given_back_become_whole_again() {
        let mut blocks = Blocks::new(6);
        let taken: Vec<_> = [3, 0, 2, 4, 1, 0].iter().map(|o| blocks.take(*o).unwrap()).collect();
        assert_eq!(blocks.take(6), None);
        taken.into_iter().for_each(|b| blocks.give(b));
        assert_eq!(blocks.take(6), Some(Block { first: 0, order: 6 }));
    }

    #[test]
    fn recovery_keeps_used_blocks_and_holds_back_only_what_was_ever_used() {
        let used = vec![Block { first: 8, order: 2 }, Block { first: 1, order: 0 }];
        let mut blocks = Blocks::recover(6, used, 20, 7).unwrap();
        assert_eq!(blocks.retired(), 20 - 4 - 1);
        assert_eq!(blocks.take(5), Some(Block { first: 32, order: 5 }));
        blocks.reclaim(6);
        assert_eq!(blocks.retired(), 15);
        blocks.reclaim(7);
        assert_eq!(blocks.take(2), Some(Block { first: 4, order: 2 }));
    }

    #[test]
    fn overlapping_or_misplaced_blocks_are_refused() {
        let b = |first, order| Block { first, order };
        assert!(Blocks::recover(4, vec![b(0, 2), b(2, 1)], 16, 1).is_none());
        assert!(Blocks::recover(4, vec![b(1, 1)], 16, 1).is_none());
        assert!(Blocks::recover(4, vec![b(16, 0)], 16, 1).is_none());
        assert!(Blocks::recover(4, vec![b(0, 5)], 16, 1).is_none());
        assert!(Blocks::recover(4, vec![b(0, 0), b(0, 0)], 16, 1).is_none());
    }
}
