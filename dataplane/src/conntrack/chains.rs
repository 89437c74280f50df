//! Hash chains that find a connection by either of its tuples: private to the process, rebuilt at start.
//! Walking a chain takes no lock; changing it takes its lock.

use super::entry::Entry;
use super::sync::{AtomicBool, AtomicU32, Ordering, Wait, seed};
use super::tuple::Tuple;

#[cfg(not(loom))]
const LOCKS: usize = 1024;
#[cfg(loom)]
const LOCKS: usize = 2;
const END: u32 = 0;
/// Links followed at most. A chain that changes under a look-up may lead elsewhere; a miss is made good
/// under the lock.
const WALK: usize = 256;

pub(super) struct Chains {
    /// First link of each chain: `(index << 1 | direction) + 1`, or [`END`].
    heads: Box<[AtomicU32]>,
    /// Next link of each entry's two chains.
    links: Box<[[AtomicU32; 2]]>,
    locks: Box<[AtomicBool]>,
    seed: u64,
}

impl Chains {
    pub(super) fn new(capacity: usize) -> Chains {
        let chains = (capacity * 2).next_power_of_two().max(LOCKS);
        let end = || AtomicU32::new(END);
        Chains {
            heads: (0..chains).map(|_| end()).collect(),
            links: (0..capacity).map(|_| [end(), end()]).collect(),
            locks: (0..LOCKS).map(|_| AtomicBool::new(false)).collect(),
            seed: seed(),
        }
    }

    /// The chain that a tuple is in.
    pub(super) fn of(&self, tuple: &Tuple) -> usize {
        tuple.hash(self.seed) as usize & (self.heads.len() - 1)
    }

    /// The place that a chain begins with.
    pub(super) fn first(&self, chain: usize) -> Option<u32> {
        let link = self.heads[chain].load(Ordering::Acquire);
        (link != END).then(|| (link - 1) >> 1)
    }

    /// Walks a chain: the first place, and which of its tuples is meant, for which `wanted` gives something.
    pub(super) fn find<T>(&self, chain: usize, mut wanted: impl FnMut(u32, usize) -> Option<T>) -> Option<T> {
        let mut link = self.heads[chain].load(Ordering::Acquire);
        for _ in 0..WALK {
            if link == END {
                return None;
            }
            let (index, which) = ((link - 1) >> 1, (link - 1) as usize & 1);
            if let Some(found) = wanted(index, which) {
                return Some(found);
            }
            link = self.links.get(index as usize)?[which].load(Ordering::Acquire);
        }
        None
    }

    /// Puts a place into the chains of both its tuples, whose locks the caller holds.
    pub(super) fn link(&self, index: u32, tuples: &[Tuple; 2]) {
        for (which, tuple) in tuples.iter().enumerate() {
            let head = &self.heads[self.of(tuple)];
            self.links[index as usize][which].store(head.load(Ordering::Relaxed), Ordering::Relaxed);
            head.store((index << 1 | which as u32) + 1, Ordering::Release);
        }
    }

    /// Takes a place out of the chains of both its tuples, whose locks the caller holds.
    pub(super) fn unlink(&self, index: u32, tuples: &[Tuple; 2]) {
        for (which, tuple) in tuples.iter().enumerate() {
            self.unlink_one(self.of(tuple), (index << 1 | which as u32) + 1);
        }
    }

    fn unlink_one(&self, chain: usize, target: u32) {
        let mut place = &self.heads[chain];
        loop {
            let link = place.load(Ordering::Relaxed);
            if link == END {
                return;
            }
            let (index, which) = ((link - 1) >> 1, (link - 1) as usize & 1);
            let next = &self.links[index as usize][which];
            if link == target {
                place.store(next.load(Ordering::Relaxed), Ordering::Release);
                return;
            }
            place = next;
        }
    }

    /// Takes the locks of both tuples' chains, always in the same order.
    pub(super) fn lock(&self, tuples: &[Tuple; 2]) -> Locked<'_> {
        let (a, b) = (self.of(&tuples[0]) % LOCKS, self.of(&tuples[1]) % LOCKS);
        let (low, high) = (a.min(b), a.max(b));
        self.acquire(low);
        if high != low {
            self.acquire(high);
        }
        Locked { chains: self, low, high }
    }

    fn acquire(&self, lock: usize) {
        let wait = Wait::new();
        while self.locks[lock].compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            wait.once();
        }
    }
}

/// Two chains' locks, given back on drop.
pub(super) struct Locked<'a> {
    chains: &'a Chains,
    low: usize,
    high: usize,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.chains.locks[self.low].store(false, Ordering::Release);
        if self.high != self.low {
            self.chains.locks[self.high].store(false, Ordering::Release);
        }
    }
}

/// Whether an entry's tuple is this one, and with what else it was read.
pub(super) fn holds(entry: &Entry, which: usize, tuple: &Tuple) -> Option<([Tuple; 2], u32)> {
    entry.read_tuples().filter(|(tuples, _)| tuples[which] == *tuple)
}
