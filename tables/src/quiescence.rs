//! Quiescent states: one cache line per reader, on which it notes the generation that it has seen, and
//! by which the writer knows what memory may be used again.
//!
//! A reader *registers*, and from then on may hold references into the tables. When it holds none it
//! stores the generation it reads at that moment. What was retired under generation g was unreachable
//! before g was published, so once every registered reader has seen g or later, nobody can be reading it.
//!
//! Registration against the writer's scan: both sides store, then fence, then load. Either the writer sees the
//! reader registered (with nothing seen, which holds everything back), or the reader sees every unlink that
//! came before the writer's scan, and so can't reach what the writer is about to reuse. Nothing more is
//! needed, in particular it does not matter which of a line's other words the scan sees meanwhile.

use crate::layout::header;
use crate::region::{Region, WriteRegion};
use crate::sync::{Ordering, fence};

/// Bytes per reader.
pub(crate) const LINE: usize = 64;

const ACTIVE: usize = 0;
const SEEN: usize = 8;
const INSTANCE: usize = 16;
const PID: usize = 24;
const START_TIME: usize = 32;
const NAME: usize = 40;
/// Bytes of a reader's name that are kept.
const NAME_LEN: usize = 24;

/// Who a reader is, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Tells a process from a later one with the same pid.
    pub(crate) start_time: u64,
    name: [u8; NAME_LEN],
}

impl Identity {
    pub(crate) fn new(pid: u32, start_time: u64, name: &str) -> Identity {
        let mut bytes = [0; NAME_LEN];
        let mut end = name.len().min(NAME_LEN);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
        Identity { pid, start_time, name: bytes }
    }

    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).trim_end_matches('\0').to_owned()
    }
}

/// How far the readers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Every registered reader has seen this generation; `u64::MAX` if there are none.
    pub(crate) seen_by_all: u64,
    /// The slot of the one furthest behind.
    pub(crate) last: Option<u32>,
}

/// The memory that readers note their progress in.
#[derive(Clone)]
pub(crate) struct Quiescence {
    region: WriteRegion,
    pub(crate) slots: u32,
    /// Which tables file this is about.
    instance: u64,
}

impl Quiescence {
    pub(crate) fn new(region: WriteRegion, slots: u32, instance: u64) -> Quiescence {
        Quiescence { region, slots, instance }
    }

    /// The same lines, about another tables file.
    pub(crate) fn of_instance(&self, instance: u64) -> Quiescence {
        Quiescence { instance, ..self.clone() }
    }

    /// Bytes for so many readers: a line for the header comes first.
    pub(crate) const fn len(slots: u32) -> usize {
        LINE * (1 + slots as usize)
    }

    /// Offset of a reader's line.
    #[inline(always)]
    pub(crate) fn line(slot: u32) -> usize {
        LINE * (1 + slot as usize)
    }

    /// Finds a slot by compare and swap, where there are no file locks to tell who owns which.
    pub(crate) fn claim(&self) -> Option<u32> {
        (0..self.slots).find(|slot| self.region.claim64(Self::line(*slot) + ACTIVE, 1))
    }

    /// Registers the owner of `slot`; from here on it may read.
    pub(crate) fn register(&self, slot: u32, tables: &Region, who: &Identity) {
        let line = Self::line(slot);
        self.region.store64(line + SEEN, 0, Ordering::Relaxed);
        self.region.store64(line + INSTANCE, self.instance, Ordering::Relaxed);
        self.region.store64(line + PID, u64::from(who.pid), Ordering::Relaxed);
        self.region.store64(line + START_TIME, who.start_time, Ordering::Relaxed);
        self.region.write(line + NAME, &who.name);
        self.region.store64(line + ACTIVE, 1, Ordering::Release);
        fence(Ordering::SeqCst);
        self.quiescent(slot, tables);
    }

    /// The reader in `slot` holds no reference into the tables at this moment.
    #[inline(always)]
    pub(crate) fn quiescent(&self, slot: u32, tables: &Region) {
        let generation = tables.load64(header::GENERATION, Ordering::Acquire);
        self.region.store64(Self::line(slot) + SEEN, generation, Ordering::Release);
    }

    /// The reader in `slot` will not read any more.
    pub(crate) fn leave(&self, slot: u32) {
        self.region.store64(Self::line(slot) + ACTIVE, 0, Ordering::Release);
    }

    /// How far the readers are. Whatever was unlinked before the call and is not held back by the answer
    /// can be reused.
    pub(crate) fn progress(&self) -> Progress {
        fence(Ordering::SeqCst);
        let mut progress = Progress { seen_by_all: u64::MAX, last: None };
        for (slot, seen) in self.active() {
            if seen < progress.seen_by_all {
                progress = Progress { seen_by_all: seen, last: Some(slot) };
            }
        }
        progress
    }

    /// The registered readers of these tables and what they have seen.
    pub(crate) fn active(&self) -> impl Iterator<Item = (u32, u64)> {
        (0..self.slots).filter_map(|slot| {
            let line = Self::line(slot);
            let active = self.region.load64(line + ACTIVE, Ordering::Acquire) != 0;
            let ours = self.region.load64(line + INSTANCE, Ordering::Relaxed) == self.instance;
            (active && ours).then(|| (slot, self.region.load64(line + SEEN, Ordering::Acquire)))
        })
    }

    /// Who the reader in `slot` says it is.
    pub(crate) fn identity(&self, slot: u32) -> Identity {
        let line = Self::line(slot);
        Identity {
            pid: self.region.load64(line + PID, Ordering::Relaxed) as u32,
            start_time: self.region.load64(line + START_TIME, Ordering::Relaxed),
            name: self.region.read(line + NAME),
        }
    }
}
