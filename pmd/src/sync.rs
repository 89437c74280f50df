//! The one place where the crate takes what threads share from: the standard library's and crossbeam's, or the
//! model checker's under `cfg(loom)`. What the models do not cover is listed in docs/proofs.md.

#[cfg(not(loom))]
pub(crate) use crossbeam_queue::ArrayQueue;
#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;
#[cfg(loom)]
pub(crate) use loom::sync::Arc;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::Arc;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// Memory that one thread at a time may touch; the model checker notices when two do.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// In the model, crossbeam's queue is one step that succeeds or fails as a whole: its inside is its authors' to
/// prove.
#[cfg(loom)]
pub(crate) struct ArrayQueue<T> {
    places: usize,
    entries: loom::sync::Mutex<std::collections::VecDeque<T>>,
}

#[cfg(loom)]
impl<T> ArrayQueue<T> {
    pub(crate) fn new(places: usize) -> ArrayQueue<T> {
        ArrayQueue { places, entries: loom::sync::Mutex::default() }
    }

    fn entries(&self) -> loom::sync::MutexGuard<'_, std::collections::VecDeque<T>> {
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn push(&self, entry: T) -> Result<(), T> {
        let mut entries = self.entries();
        if entries.len() == self.places {
            return Err(entry);
        }
        entries.push_back(entry);
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.entries().pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries().len()
    }
}
