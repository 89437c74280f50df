//! The memory that a ring lies in: mapped from the kernel, or the model checker's under `cfg(loom)`.

// UNSAFETY: the kernel's memory is reached through raw pointers.
#![allow(unsafe_code)]

use crate::sync::{AtomicU32, AtomicU64};

#[cfg(not(loom))]
mod mapped {
    use super::*;
    use std::ptr::NonNull;

    /// The memory of one ring; unmapped when dropped.
    pub(crate) struct Area {
        base: NonNull<u8>,
        bytes: usize,
        release: fn(NonNull<u8>, usize),
    }

    // SAFETY: an area is an address range; what is in it is reached through atomics.
    unsafe impl Send for Area {}

    impl Area {
        /// # Safety
        /// `base..base + bytes` must be readable and writable until `release` is called, which must give it
        /// up, and aligned to 8 bytes.
        pub(crate) unsafe fn new(base: NonNull<u8>, bytes: usize, release: fn(NonNull<u8>, usize)) -> Area {
            Area { base, bytes, release }
        }

        pub(crate) fn bytes(&self) -> usize {
            self.bytes
        }

        /// A cursor or the flags.
        ///
        /// # Safety
        /// The four bytes at `offset` must lie in the area, aligned.
        #[inline]
        pub(crate) unsafe fn word(&self, offset: usize) -> &AtomicU32 {
            // SAFETY: in the area by contract, which lives as long as `self`; the kernel accesses the word
            // atomically too.
            unsafe { self.base.add(offset).cast::<AtomicU32>().as_ref() }
        }

        /// A word of an entry.
        ///
        /// # Safety
        /// The eight bytes at `offset` must lie in the area, aligned.
        #[inline]
        pub(crate) unsafe fn entry(&self, offset: usize) -> &AtomicU64 {
            // SAFETY: as above.
            unsafe { self.base.add(offset).cast::<AtomicU64>().as_ref() }
        }
    }

    impl Drop for Area {
        fn drop(&mut self) {
            (self.release)(self.base, self.bytes);
        }
    }
}

#[cfg(not(loom))]
pub(crate) use mapped::Area;

/// Cursors and flags in the first three lines of 64 bytes, entries of one word behind them. Whoever accesses an
/// entry must own its place by the cursors, so each access counts as exclusive: the model checker then also
/// notices a place that is given away too early, although entries are atomic.
#[cfg(loom)]
#[derive(Clone)]
pub(crate) struct Area(loom::sync::Arc<Words>);

#[cfg(loom)]
struct Words {
    words: [AtomicU32; 3],
    entries: Vec<(AtomicU64, loom::cell::UnsafeCell<()>)>,
}

#[cfg(loom)]
impl Area {
    pub(crate) const ENTRIES: usize = 192;

    /// Room for `entries`, with both cursors at `start`.
    pub(crate) fn new(entries: usize, start: u32) -> Area {
        let entry = |_| (AtomicU64::new(u64::MAX), loom::cell::UnsafeCell::new(()));
        let words = [start, start, 0].map(AtomicU32::new);
        Area(loom::sync::Arc::new(Words { words, entries: (0..entries).map(entry).collect() }))
    }

    pub(crate) fn bytes(&self) -> usize {
        Area::ENTRIES + 8 * self.0.entries.len()
    }

    // SAFETY: asks nothing of callers; marked for its likeness outside the model.
    pub(crate) unsafe fn word(&self, offset: usize) -> &AtomicU32 {
        &self.0.words[offset / 64]
    }

    // SAFETY: as above.
    pub(crate) unsafe fn entry(&self, offset: usize) -> &AtomicU64 {
        let (word, owned) = &self.0.entries[(offset - Area::ENTRIES) / 8];
        owned.with_mut(|_| ());
        word
    }
}
