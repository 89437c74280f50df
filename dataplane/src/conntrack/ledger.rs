//! Which places are free, which hold connections of what worth, and how many openings each source has under
//! way. Private to the process, rebuilt at start.
//!
//! Every change of an entry's word has one author, who wrote it by compare-and-swap; that one tells the ledger.
//! Tellings of different threads may arrive in another order than the changes: then a set holds a place that
//! belongs into another. So whoever searches a set looks at the entry itself, and whoever takes a place out of a
//! set looks at the entry once more afterwards; a place is never missing from the set that it belongs to, but for
//! the moment between a change and its telling.

use super::places::Places;
use super::sync::{AtomicI32, AtomicU32, Ordering, seed};
use super::value::Value;
use crate::hash::fold_multiply;
use fairway_tables::Ip;

/// Sources share a count where their hashes meet.
#[cfg(not(loom))]
const SOURCES: usize = 65_536;
#[cfg(loom)]
const SOURCES: usize = 1;
/// One source may hold the table's capacity divided by this in openings,
const SHARE: u32 = 8;
/// or so many, where that is more.
const SHARE_AT_LEAST: u32 = 16;

/// A counter of openings: that of one source, or of several whose hashes meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source(usize);

pub(super) struct Ledger {
    sets: [Places; Value::COUNT],
    /// Where the next search in each set begins.
    hands: [AtomicU32; Value::COUNT],
    openings: Box<[AtomicI32]>,
    share: i32,
    used: AtomicU32,
    seed: u64,
}

impl Ledger {
    pub(super) fn new(capacity: usize) -> Ledger {
        let share = (capacity as u32 / SHARE).max(SHARE_AT_LEAST).min(capacity as u32);
        Ledger {
            sets: std::array::from_fn(|_| Places::new(capacity)),
            hands: std::array::from_fn(|_| AtomicU32::new(0)),
            openings: (0..SOURCES).map(|_| AtomicI32::new(0)).collect(),
            share: share as i32,
            used: AtomicU32::new(0),
            seed: seed(),
        }
    }

    pub(super) fn source(&self, ip: &Ip) -> Source {
        let word = |at: usize| u64::from_ne_bytes(ip.0[at..at + 8].try_into().unwrap_or_default());
        let hash = fold_multiply(word(0) ^ self.seed, word(8) ^ 0xa076_1d64_78bd_642f);
        Source(hash as usize % SOURCES)
    }

    /// Connections held.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
    }

    /// Openings that a source has under way.
    pub(super) fn openings(&self, source: Source) -> i32 {
        self.openings[source.0].load(Ordering::Relaxed)
    }

    /// Whether a source has as many openings under way as it may.
    pub(super) fn has_its_share(&self, source: Source) -> bool {
        self.openings(source) >= self.share
    }

    /// All places from `start` to before `end` are free. Only before the table is shared.
    pub(super) fn free_range(&self, start: usize, end: usize) {
        self.sets[Value::Free as usize].fill(start, end);
    }

    /// Takes a free place, of low number where there are several: so a table that was once full does not
    /// for ever touch all its memory.
    pub(super) fn claim_free(&self) -> Option<u32> {
        let free = &self.sets[Value::Free as usize];
        let hand = &self.hands[Value::Free as usize];
        loop {
            let place = free.next(hand.load(Ordering::Relaxed))?;
            hand.store(place, Ordering::Relaxed);
            if free.remove(place) {
                return Some(place);
            }
        }
    }

    /// Gives a place back that the caller has claimed, or freed.
    pub(super) fn give_back(&self, place: u32) {
        self.sets[Value::Free as usize].insert(place);
        self.hands[Value::Free as usize].fetch_min(place, Ordering::Relaxed);
    }

    /// A claimed place holds a connection now.
    pub(super) fn began(&self, place: u32, value: Value, source: Source) {
        self.found(1);
        self.list(place, value, source);
    }

    /// So many connections more are held.
    pub(super) fn found(&self, connections: usize) {
        self.used.fetch_add(connections as u32, Ordering::Relaxed);
    }

    /// A place holds a connection of this worth.
    pub(super) fn list(&self, place: u32, value: Value, source: Source) {
        self.sets[value as usize].insert(place);
        self.count(value, 1, source);
    }

    /// A connection has ended; its place is not free before [`Ledger::give_back`] says so.
    pub(super) fn ended(&self, place: u32, value: Value, source: Source) {
        self.used.fetch_sub(1, Ordering::Relaxed);
        self.sets[value as usize].remove(place);
        self.count(value, -1, source);
    }

    /// A connection is worth something else now. `is` says what the place is worth at that moment.
    pub(super) fn changed(
        &self,
        place: u32,
        from: Value,
        to: Value,
        source: Source,
        is: impl FnOnce() -> Value,
    ) {
        if from == to {
            return;
        }
        self.sets[to as usize].insert(place);
        self.count(to, 1, source);
        self.count(from, -1, source);
        self.misplaced(place, from, is);
    }

    /// Takes a place out of a set that it does not belong to, unless it does by now.
    pub(super) fn misplaced(&self, place: u32, from: Value, is: impl FnOnce() -> Value) {
        let set = &self.sets[from as usize];
        if set.remove(place) && is() == from {
            set.insert(place);
        }
    }

    fn count(&self, value: Value, by: i32, source: Source) {
        if value == Value::Opening {
            self.openings[source.0].fetch_add(by, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn holds(&self, value: Value, place: u32) -> bool {
        self.sets[value as usize].next(place) == Some(place)
    }

    /// Whether no place is in this set.
    pub(super) fn is_empty(&self, value: Value) -> bool {
        self.sets[value as usize].next(0).is_none()
    }

    /// The next `count` places of a set in turn, as far as there are so many; `look` says when to stop.
    pub(super) fn in_turn(&self, value: Value, count: usize, mut look: impl FnMut(u32) -> bool) {
        let (set, hand) = (&self.sets[value as usize], &self.hands[value as usize]);
        let mut first = None;
        for _ in 0..count {
            let Some(place) = set.next(hand.load(Ordering::Relaxed)) else { return };
            if first == Some(place) {
                return;
            }
            first.get_or_insert(place);
            hand.store(place.wrapping_add(1), Ordering::Relaxed);
            if look(place) {
                return;
            }
        }
    }
}
