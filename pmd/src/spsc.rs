//! A bounded single-producer single-consumer ring.
//!
//! Its ends are two values that can be moved to two threads; each keeps its own cursor and a copy of the
//! other's, and looks at the shared one only when the copy says full or empty. Cursors run freely and wrap.
//!
//! The receiving end can be closed before the sending end: what is left in the ring is then the sender's
//! (see [`Sender::reclaim`]), so that nothing is lost whichever end goes first.

// UNSAFETY: slots are written by one end and read by the other, handed over by the cursors.
#![allow(unsafe_code)]

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell};
use arrayvec::ArrayVec;
use crossbeam_utils::CachePadded;
use std::mem::MaybeUninit;

struct Shared<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    mask: usize,
    /// Entries sent so far.
    tail: CachePadded<AtomicUsize>,
    /// Entries received so far.
    head: CachePadded<AtomicUsize>,
    /// Whether the receiver has promised to receive no more.
    closed: AtomicBool,
}

// SAFETY: a slot is accessed by the end whose cursor covers it alone, so the ring only moves `T`s across.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.load(Ordering::Acquire);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: slots from `head` to `tail` are filled, and both ends are gone.
            self.slots[head & self.mask].with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The sending end.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    head_seen: usize,
}

/// The receiving end. Closed when dropped.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    tail_seen: usize,
}

/// Makes a ring with room for at least `capacity` entries (rounded up to a power of two).
pub fn ring<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    ring_at(capacity, 0)
}

pub(crate) fn ring_at<T>(capacity: usize, start: usize) -> (Sender<T>, Receiver<T>) {
    let size = capacity.max(1).next_power_of_two();
    let shared = Arc::new(Shared {
        slots: (0..size).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        mask: size - 1,
        tail: CachePadded::new(AtomicUsize::new(start)),
        head: CachePadded::new(AtomicUsize::new(start)),
        closed: AtomicBool::new(false),
    });
    let sender = Sender { shared: Arc::clone(&shared), tail: start, head_seen: start };
    (sender, Receiver { shared, head: start, tail_seen: start })
}

impl<T> Sender<T> {
    /// Entries that can be sent now; looks at the receiver's cursor only if fewer than `wanted` are known
    /// of. None once the receiver is closed.
    #[inline]
    pub fn free(&mut self, wanted: usize) -> usize {
        if self.shared.closed.load(Ordering::Relaxed) {
            return 0;
        }
        let size = self.shared.mask + 1;
        if size - self.tail.wrapping_sub(self.head_seen) < wanted {
            self.head_seen = self.shared.head.load(Ordering::Acquire);
        }
        size - self.tail.wrapping_sub(self.head_seen)
    }

    /// Sends from the front of `entries` what there is room for, and returns how many. `entries` must say its
    /// length exactly; what does not fit stays in it.
    #[inline]
    pub fn send_all(&mut self, entries: &mut impl ExactSizeIterator<Item = T>) -> usize {
        let wanted = entries.len();
        let count = self.free(wanted).min(wanted);
        self.publish(entries.take(count))
    }

    /// Sends from the front of `entries` what there is room for, after `look` at each, and returns how many.
    #[inline]
    pub fn send_front<const N: usize>(
        &mut self,
        entries: &mut ArrayVec<T, N>,
        look: impl FnMut(&T),
    ) -> usize {
        let count = self.free(entries.len()).min(entries.len());
        // As in `send`, the ring is not asked again: what a drain does not hand on is dropped.
        self.publish(entries.drain(..count).inspect(look))
    }

    /// Sends entries for which there is room.
    #[inline]
    fn publish(&mut self, entries: impl Iterator<Item = T>) -> usize {
        let mut sent = 0;
        for entry in entries {
            let slot = &self.shared.slots[self.tail.wrapping_add(sent) & self.shared.mask];
            // SAFETY: the callers saw room for so many entries behind `tail`, where the receiver does not look.
            slot.with_mut(|slot| unsafe { (*slot).write(entry) });
            sent += 1;
        }
        self.tail = self.tail.wrapping_add(sent);
        self.shared.tail.store(self.tail, Ordering::Release);
        sent
    }

    /// Sends one entry, or hands it back if the ring is full or its receiver closed.
    #[inline]
    pub fn send(&mut self, entry: T) -> Result<(), T> {
        if self.free(1) == 0 {
            return Err(entry);
        }
        // The ring is not asked again: were it closed meanwhile, the entry would be in nobody's hands.
        self.publish(std::iter::once(entry));
        Ok(())
    }

    /// Entries sent that are still in the ring.
    pub fn len(&self) -> usize {
        self.tail.wrapping_sub(self.shared.head.load(Ordering::Acquire))
    }

    /// Whether everything sent has been received.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the receiver is closed.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Takes back the oldest entry that a closed receiver left, if any.
    pub fn reclaim(&mut self) -> Option<T> {
        // Acquire pairs with the receiver's last act, closing: its cursor is final and ours to move.
        if !self.shared.closed.load(Ordering::Acquire) {
            return None;
        }
        let head = self.shared.head.load(Ordering::Relaxed);
        if head == self.tail {
            return None;
        }
        let slot = &self.shared.slots[head & self.shared.mask];
        // SAFETY: the slot is filled, and the receiver, being closed, does not read it.
        let entry = slot.with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.shared.head.store(head.wrapping_add(1), Ordering::Relaxed);
        Some(entry)
    }
}

impl<T> Receiver<T> {
    /// Entries that can be received now.
    #[inline]
    pub fn available(&mut self) -> usize {
        self.tail_seen = self.shared.tail.load(Ordering::Acquire);
        self.len_seen()
    }

    #[inline]
    fn len_seen(&self) -> usize {
        self.tail_seen.wrapping_sub(self.head)
    }

    /// Receives at most `limit` entries, handing each to `take`, and returns how many.
    #[inline]
    pub fn receive(&mut self, limit: usize, mut take: impl FnMut(T)) -> usize {
        if self.shared.closed.load(Ordering::Relaxed) {
            return 0;
        }
        if self.len_seen() < limit {
            self.available();
        }
        let count = self.len_seen().min(limit);
        for _ in 0..count {
            let slot = &self.shared.slots[self.head & self.shared.mask];
            // SAFETY: the sender filled the slots up to `tail_seen`, and does not reuse this one before the
            // cursor passes it.
            let entry = slot.with_mut(|slot| unsafe { (*slot).assume_init_read() });
            self.head = self.head.wrapping_add(1);
            // Stored per entry, so that an entry is never seen twice if `take` panics.
            self.shared.head.store(self.head, Ordering::Release);
            take(entry);
        }
        count
    }

    /// Receives one entry.
    #[inline]
    pub fn recv(&mut self) -> Option<T> {
        let mut entry = None;
        self.receive(1, |one| entry = Some(one));
        entry
    }

    /// Receives no more, for good: what is in the ring is the sender's to take back.
    pub fn close(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn entries_arrive_once_and_in_order_from_any_starting_cursor(
            start in prop_oneof![any::<usize>(), (usize::MAX - 20)..=usize::MAX],
            capacity in 1usize..10,
            steps in prop::collection::vec((any::<bool>(), 0usize..12), 1..200),
        ) {
            let (mut sender, mut receiver) = ring_at::<Box<u64>>(capacity, start);
            let size = capacity.next_power_of_two();
            let mut model = VecDeque::new();
            let mut serial = 0;
            for (send, n) in steps {
                if send {
                    let batch: Vec<_> = (0..n as u64).map(|i| Box::new(serial + i)).collect();
                    let sent = sender.send_all(&mut batch.into_iter());
                    prop_assert_eq!(sent, n.min(size - model.len()));
                    model.extend(serial..serial + sent as u64);
                    serial += sent as u64;
                } else {
                    let mut got = Vec::new();
                    let received = receiver.receive(n, |entry| got.push(*entry));
                    prop_assert_eq!(received, n.min(model.len()));
                    let expected: Vec<_> = model.drain(..received).collect();
                    prop_assert_eq!(got, expected);
                }
                prop_assert_eq!(sender.len(), model.len());
            }
            receiver.close();
            prop_assert!(receiver.recv().is_none());
            while let Some(entry) = sender.reclaim() {
                prop_assert_eq!(Some(*entry), model.pop_front());
            }
            prop_assert!(model.is_empty());
        }
    }

    #[test]
    fn entries_cross_threads_complete_and_in_order() {
        const COUNT: u64 = 200_000;
        let (mut sender, mut receiver) = ring(64);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < COUNT {
                    let mut batch = next..COUNT.min(next + 17);
                    // Entries not sent are made anew in the next round.
                    next += sender.send_all(&mut ExactRange(&mut batch)) as u64;
                    std::thread::yield_now();
                }
            });
            let mut expected = 0;
            while expected < COUNT {
                receiver.receive(32, |entry: u64| {
                    assert_eq!(entry, expected);
                    expected += 1;
                });
            }
        });
    }

    struct ExactRange<'a>(&'a mut std::ops::Range<u64>);

    impl Iterator for ExactRange<'_> {
        type Item = u64;
        fn next(&mut self) -> Option<u64> {
            self.0.next()
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            let len = (self.0.end - self.0.start) as usize;
            (len, Some(len))
        }
    }

    impl ExactSizeIterator for ExactRange<'_> {}

    #[test]
    fn what_is_left_in_a_ring_is_dropped_with_it() {
        let witness = Arc::new(());
        let (mut sender, receiver) = ring(8);
        for _ in 0..5 {
            sender.send(Arc::clone(&witness)).unwrap();
        }
        drop(receiver);
        assert!(sender.is_closed());
        assert!(sender.send(Arc::clone(&witness)).is_err());
        drop(sender);
        assert_eq!(Arc::strong_count(&witness), 1);
    }
}
