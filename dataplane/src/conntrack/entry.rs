//! One connection as it lies in shared memory: 32 words, every one an atomic.

use super::tuple::Tuple;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// See the module's head. Two cache lines.
#[repr(C, align(128))]
pub(super) struct Entry {
    /// Even: stable. Odd: being written, or a writer died here. Each reuse adds 2.
    pub(super) sequence: AtomicU32,
    /// [`State`](super::State) and flags; zero is free.
    pub(super) state: AtomicU32,
    /// Seconds of `CLOCK_MONOTONIC` of the last packet known.
    pub(super) last_seen_s: AtomicU32,
    /// Seconds of `CLOCK_MONOTONIC` of the first packet.
    pub(super) created_s: AtomicU32,
    /// `Service::id` plus one, or zero.
    pub(super) service: AtomicU32,
    /// Zero; for what later versions keep per connection.
    reserved: [AtomicU32; 7],
    tuples: [[AtomicU32; 10]; 2],
}

const _: () = assert!(size_of::<Entry>() == 128);

impl Entry {
    /// Takes the right to write: the sequence number goes odd. Only the holder of a free place does this.
    pub(super) fn begin_write(&self) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Ends writing: the next even number. Returns it.
    pub(super) fn end_write(&self) -> u32 {
        let sequence = (self.sequence.load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.sequence.store(sequence, Ordering::Release);
        sequence
    }

    pub(super) fn write_tuples(&self, tuples: &[Tuple; 2]) {
        for (words, tuple) in self.tuples.iter().zip(tuples) {
            for (word, value) in words.iter().zip(tuple.to_words()) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Both tuples and the sequence number under which they were read; `None` if they are being written.
    pub(super) fn read_tuples(&self) -> Option<([Tuple; 2], u32)> {
        let before = self.sequence.load(Ordering::Acquire);
        if before & 1 == 1 {
            return None;
        }
        let read = |which: usize| {
            Tuple::from_words(std::array::from_fn(|i| self.tuples[which][i].load(Ordering::Relaxed)))
        };
        let tuples = [read(0), read(1)];
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == before).then_some((tuples, before))
    }
}
