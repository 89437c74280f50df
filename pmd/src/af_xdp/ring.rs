//! The single-producer single-consumer rings that a socket shares with the kernel.
//!
//! Cursors are free-running 32-bit counters; an entry's place is the cursor masked by the ring's size, and all
//! arithmetic on them wraps. Each side stores its own cursor with Release after it wrote or read entries, and
//! loads the other's with Acquire before. Entries are atomic words too, accessed Relaxed, so that no reference
//! to plain memory is ever made into what the kernel writes.

// UNSAFETY: the places of a ring's words in its memory are vouched for here.
#![allow(unsafe_code)]

use super::area::Area;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Words of 64 bits in an entry of the fill and completion rings: the address.
pub(crate) const ADDRESS_WORDS: usize = 1;
/// Words of 64 bits in an entry of the rx and tx rings (`struct xdp_desc`): the address, then the length in
/// the first half of the second word and the options in its second half.
pub(crate) const DESCRIPTOR_WORDS: usize = 2;

/// Where the parts of one ring are in its mapping (`struct xdp_ring_offset`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    pub(crate) producer: u64,
    pub(crate) consumer: u64,
    pub(crate) flags: u64,
    pub(crate) desc: u64,
}

/// The places of a ring, whichever side of it is ours.
struct Ring<const WORDS: usize> {
    area: Area,
    producer: usize,
    consumer: usize,
    flags: usize,
    desc: usize,
    mask: u32,
}

impl<const WORDS: usize> Ring<WORDS> {
    /// `None` if the parts do not lie in the area, or the size is not a power of two.
    fn new(area: Area, offsets: Offsets, size: u32) -> Option<Ring<WORDS>> {
        let part = |offset: u64, bytes: usize, align: usize| {
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(bytes)?;
            (end <= area.bytes() && start.is_multiple_of(align)).then_some(start)
        };
        if !size.is_power_of_two() {
            return None;
        }
        Some(Ring {
            producer: part(offsets.producer, 4, 4)?,
            consumer: part(offsets.consumer, 4, 4)?,
            flags: part(offsets.flags, 4, 4)?,
            desc: part(offsets.desc, size as usize * WORDS * 8, 8)?,
            mask: size - 1,
            area,
        })
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `new` checked that the four bytes lie in the area, aligned.
        unsafe { self.area.word(offset) }
    }

    /// Word `word` (below `WORDS`) of the entry under `cursor`.
    #[inline]
    fn entry(&self, cursor: u32, word: usize) -> &AtomicU64 {
        debug_assert!(word < WORDS);
        let index = (cursor & self.mask) as usize * WORDS + word;
        // SAFETY: the mask keeps the entry in the part that `new` checked, aligned to 8 bytes.
        unsafe { self.area.entry(self.desc + index * 8) }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// Our side of a ring that we fill (fill, tx).
pub(crate) struct Producer<const WORDS: usize> {
    ring: Ring<WORDS>,
    /// Where the next entry goes; published by `submit`.
    next: u32,
    /// The kernel's cursor as last read.
    seen: u32,
}

impl<const WORDS: usize> Producer<WORDS> {
    pub(crate) fn new(area: Area, offsets: Offsets, size: u32) -> Option<Producer<WORDS>> {
        let ring = Ring::new(area, offsets, size)?;
        let next = ring.word(ring.producer).load(Ordering::Relaxed);
        let seen = ring.word(ring.consumer).load(Ordering::Acquire);
        Some(Producer { ring, next, seen })
    }

    /// Entries that fit.
    pub(crate) fn size(&self) -> u32 {
        self.ring.mask + 1
    }

    /// Entries that can be pushed; looks at the kernel's cursor only if fewer than `wanted` are known of.
    #[inline]
    pub(crate) fn free(&mut self, wanted: u32) -> u32 {
        if self.known_free() < wanted {
            self.seen = self.ring.word(self.ring.consumer).load(Ordering::Acquire);
        }
        self.known_free()
    }

    #[inline]
    fn known_free(&self) -> u32 {
        // Saturating: a kernel cursor that makes no sense reads as a full ring.
        (self.ring.mask + 1).saturating_sub(self.next.wrapping_sub(self.seen))
    }

    /// Entries submitted that the kernel has not consumed.
    #[inline]
    pub(crate) fn pending(&mut self) -> u32 {
        self.seen = self.ring.word(self.ring.consumer).load(Ordering::Acquire);
        self.next.wrapping_sub(self.seen)
    }

    /// Writes an entry. The caller has checked `free`.
    #[inline]
    pub(crate) fn push(&mut self, words: [u64; WORDS]) {
        for (index, word) in words.into_iter().enumerate() {
            self.ring.entry(self.next, index).store(word, Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel all that was pushed.
    #[inline]
    pub(crate) fn submit(&mut self) {
        self.ring.word(self.ring.producer).store(self.next, Ordering::Release);
    }

    /// Whether the kernel asks for a system call to go on.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// Our side of a ring that the kernel fills (rx, completion).
pub(crate) struct Consumer<const WORDS: usize> {
    ring: Ring<WORDS>,
    next: u32,
}

impl<const WORDS: usize> Consumer<WORDS> {
    pub(crate) fn new(area: Area, offsets: Offsets, size: u32) -> Option<Consumer<WORDS>> {
        let ring = Ring::new(area, offsets, size)?;
        let next = ring.word(ring.consumer).load(Ordering::Relaxed);
        Some(Consumer { ring, next })
    }

    /// Entries that fit.
    pub(crate) fn size(&self) -> u32 {
        self.ring.mask + 1
    }

    /// Entries that can be read.
    #[inline]
    pub(crate) fn available(&self) -> u32 {
        let produced = self.ring.word(self.ring.producer).load(Ordering::Acquire);
        produced.wrapping_sub(self.next).min(self.ring.mask + 1)
    }

    /// Reads the next entry. The caller has checked `available`.
    #[inline]
    pub(crate) fn pop(&mut self) -> [u64; WORDS] {
        let words = std::array::from_fn(|index| self.ring.entry(self.next, index).load(Ordering::Relaxed));
        self.next = self.next.wrapping_add(1);
        words
    }

    /// Gives the kernel the places of all that was popped.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.ring.word(self.ring.consumer).store(self.next, Ordering::Release);
    }
}

/// Address, length and options of an rx or tx descriptor.
#[inline]
pub(crate) fn unpack(words: [u64; DESCRIPTOR_WORDS]) -> (u64, u32, u32) {
    let [low, high] = halves(words[1]);
    (words[0], low, high)
}

/// The descriptor of one packet in one chunk.
#[inline]
pub(crate) fn pack(addr: u64, len: u32) -> [u64; DESCRIPTOR_WORDS] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    [addr, u64::from_ne_bytes(bytes)]
}

#[inline]
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::ptr::NonNull;

    const SIZE: u32 = 8;
    const OFFSETS: Offsets = Offsets { producer: 0, consumer: 64, flags: 128, desc: 192 };
    const BYTES: usize = 192 + SIZE as usize * 16;

    fn heap() -> NonNull<u8> {
        let words = Box::leak(vec![0u64; BYTES / 8].into_boxed_slice());
        NonNull::from(words).cast()
    }

    fn free_heap(base: NonNull<u8>, bytes: usize) {
        let words = std::ptr::slice_from_raw_parts_mut(base.cast::<u64>().as_ptr(), bytes / 8);
        // SAFETY: leaked by `heap`, and freed once, by the area that owns it.
        drop(unsafe { Box::from_raw(words) });
    }

    fn leave(_: NonNull<u8>, _: usize) {}

    /// Two handles on the same heap ring, both cursors at `start`: ours owns the memory, the kernel's not.
    fn areas(start: u32) -> (Area, Area) {
        let base = heap();
        for offset in [0, 64] {
            // SAFETY: in the block, aligned.
            unsafe { base.add(offset).cast::<u32>().write(start) };
        }
        // SAFETY: the block is as long as said, and freed by the first area only; tests drop that one last.
        unsafe { (Area::new(base, BYTES, free_heap), Area::new(base, BYTES, leave)) }
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_popped_once_in_order_from_any_starting_cursor(
            start in prop_oneof![any::<u32>(), (u32::MAX - 20)..=u32::MAX],
            steps in prop::collection::vec((any::<bool>(), 0u32..12), 1..200),
        ) {
            let (ours, kernels) = areas(start);
            let mut producer = Producer::<2>::new(ours, OFFSETS, SIZE).unwrap();
            let mut consumer = Consumer::<2>::new(kernels, OFFSETS, SIZE).unwrap();
            let mut model = VecDeque::new();
            let mut serial = 0u64;
            for (push, n) in steps {
                if push {
                    let room = producer.free(n);
                    prop_assert!(room as usize <= SIZE as usize - model.len());
                    if n <= SIZE {
                        prop_assert_eq!(room.min(n) as usize, (SIZE as usize - model.len()).min(n as usize));
                    }
                    for _ in 0..n.min(room) {
                        producer.push(pack(serial, serial as u32 ^ 0x5555));
                        model.push_back(serial);
                        serial += 1;
                    }
                    producer.submit();
                } else {
                    prop_assert_eq!(consumer.available() as usize, model.len());
                    for _ in 0..n.min(consumer.available()) {
                        let (addr, len, options) = unpack(consumer.pop());
                        prop_assert_eq!(Some(addr), model.pop_front());
                        prop_assert_eq!((len, options), (addr as u32 ^ 0x5555, 0));
                    }
                    consumer.release();
                }
                prop_assert_eq!(producer.pending() as usize, model.len());
            }
            drop(consumer);
        }

        #[test]
        fn cursors_that_make_no_sense_never_lead_out_of_a_ring(
            start in any::<u32>(),
            steps in prop::collection::vec((any::<u32>(), 0..2 * SIZE), 1..50),
        ) {
            let (ours, kernels) = areas(start);
            let mut producer = Producer::<2>::new(ours, OFFSETS, SIZE).unwrap();
            for (cursor, n) in &steps {
                // SAFETY: the consumer's cursor, in the block and aligned.
                unsafe { kernels.word(64) }.store(*cursor, Ordering::Relaxed);
                let room = producer.free(*n);
                prop_assert!(room <= SIZE);
                for _ in 0..room.min(*n) {
                    // The place is in the block: its memory ends right behind the last entry.
                    producer.push(pack(7, 7));
                }
                producer.submit();
            }
            drop(producer);

            let (ours, kernels) = areas(start);
            let mut consumer = Consumer::<2>::new(ours, OFFSETS, SIZE).unwrap();
            for (cursor, n) in steps {
                // SAFETY: the producer's cursor, in the block and aligned.
                unsafe { kernels.word(0) }.store(cursor, Ordering::Relaxed);
                let available = consumer.available();
                prop_assert!(available <= SIZE);
                for _ in 0..available.min(n) {
                    prop_assert_eq!(consumer.pop(), [0, 0]);
                }
                consumer.release();
            }
        }
    }

    #[test]
    fn a_ring_whose_parts_leave_the_mapping_is_refused() {
        for offsets in [
            Offsets { desc: 200, ..OFFSETS },
            Offsets { producer: BYTES as u64, ..OFFSETS },
            Offsets { flags: u64::MAX, ..OFFSETS },
            Offsets { consumer: 65, ..OFFSETS },
        ] {
            let (ours, _) = areas(0);
            assert!(Producer::<2>::new(ours, offsets, SIZE).is_none(), "{offsets:?}");
        }
        let (ours, _) = areas(0);
        assert!(Consumer::<2>::new(ours, OFFSETS, 7).is_none());
    }

    #[test]
    fn a_kernel_cursor_that_makes_no_sense_reads_as_a_full_ring() {
        let (ours, kernels) = areas(100);
        let mut producer = Producer::<1>::new(ours, OFFSETS, SIZE).unwrap();
        // SAFETY: the consumer's cursor, in the block and aligned.
        unsafe { kernels.word(64) }.store(5000, Ordering::Relaxed);
        assert_eq!(producer.free(SIZE + 1), 0);
    }

    #[test]
    fn a_descriptor_has_the_layout_of_struct_xdp_desc() {
        let words = pack(0x1122, 77);
        // SAFETY: both are 16 bytes without padding, and any bits are a valid xdp_desc.
        let desc = unsafe { std::mem::transmute::<[u64; 2], libc::xdp_desc>(words) };
        assert_eq!((desc.addr, desc.len, desc.options), (0x1122, 77, 0));
        assert_eq!(unpack(words), (0x1122, 77, 0));
    }
}
