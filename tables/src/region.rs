//! A stretch of memory made of atomic words: heap, a file mapped for reading, or one mapped for
//! writing. Every access is bounds-checked and atomic, so neither a hostile file nor a concurrent
//! writer can cause undefined behaviour.
//!
//! Each location is always used with one width (`u32` or `u64`). Only [`WriteRegion`] can store, and it
//! can't be made from a read-only mapping.

// UNSAFETY: turns mapped or allocated memory into references to atomics, and the words of a record into the record;
// nothing safe does that for memory which another process writes.
#![allow(unsafe_code)]

use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};
use bytemuck::Pod;
#[cfg(not(loom))]
use std::fs::File;
#[cfg(not(loom))]
use std::io;
use std::mem::MaybeUninit;

/// See the module.
#[cfg(not(loom))]
pub(crate) struct Region {
    base: *mut u8,
    len: usize,
    backing: Backing,
}

/// What keeps the memory alive.
#[cfg(not(loom))]
enum Backing {
    Heap(std::alloc::Layout),
    ReadOnly(#[allow(dead_code, reason = "held for its drop")] memmap2::MmapRaw),
    ReadWrite(#[allow(dead_code, reason = "held for its drop")] memmap2::MmapRaw),
}

// SAFETY: the memory is only ever accessed through references to atomics, and lives until drop.
#[cfg(not(loom))]
unsafe impl Send for Region {}
// SAFETY: as above; atomics may be shared between threads.
#[cfg(not(loom))]
unsafe impl Sync for Region {}

/// Page size that heap regions are aligned to, so that they lie like mappings.
#[cfg(not(loom))]
const PAGE: usize = 4096;

#[cfg(not(loom))]
impl Region {
    /// Zeroed memory; pages that are never touched cost nothing.
    pub(crate) fn heap(len: usize) -> Arc<Region> {
        let len = len.next_multiple_of(PAGE).max(PAGE);
        let layout = std::alloc::Layout::from_size_align(len, PAGE).expect("region fits the address space");
        // SAFETY: the layout's size is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Arc::new(Region { base, len, backing: Backing::Heap(layout) })
    }

    /// The whole of `file`, PROT_READ.
    pub(crate) fn map_read(file: &File) -> io::Result<Arc<Region>> {
        let map = memmap2::MmapOptions::new().map_raw_read_only(file)?;
        Ok(Arc::new(Region { base: map.as_mut_ptr(), len: map.len(), backing: Backing::ReadOnly(map) }))
    }

    /// The whole of `file`, readable and writable.
    pub(crate) fn map_write(file: &File) -> io::Result<Arc<Region>> {
        let map = memmap2::MmapOptions::new().map_raw(file)?;
        Ok(Arc::new(Region { base: map.as_mut_ptr(), len: map.len(), backing: Backing::ReadWrite(map) }))
    }

    fn writable(&self) -> bool {
        !matches!(self.backing, Backing::ReadOnly(_))
    }

    #[inline(always)]
    fn w64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < self.len && self.len - offset >= 8);
        // SAFETY: aligned (the base is page-aligned) and in bounds, as just checked; valid for as long as
        // self; an AtomicU64 accepts any bits, and everyone accesses this location atomically.
        unsafe { &*self.base.add(offset).cast::<AtomicU64>() }
    }

    /// The words of one record, by their offset in it; all are checked at once.
    #[inline(always)]
    fn words<T>(&self, offset: usize) -> impl Fn(usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < self.len && self.len - offset >= words_len::<T>());
        move |at| {
            debug_assert!(at.is_multiple_of(8) && at < words_len::<T>());
            // SAFETY: as in w64: the record lies in the region, as just checked, and the word in the record.
            let word = unsafe { &*self.base.add(offset + at).cast::<AtomicU64>() };
            word.load(Ordering::Relaxed)
        }
    }

    #[inline(always)]
    fn w32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < self.len && self.len - offset >= 4);
        // SAFETY: as in w64.
        unsafe { &*self.base.add(offset).cast::<AtomicU32>() }
    }
}

#[cfg(not(loom))]
impl Drop for Region {
    fn drop(&mut self) {
        if let Backing::Heap(layout) = self.backing {
            // SAFETY: allocated in `heap` with this very layout; nothing can refer to it any more.
            unsafe { std::alloc::dealloc(self.base, layout) }
        }
    }
}

/// The model checker's atomics have an identity of their own, so there they lie in vectors, one per width.
#[cfg(loom)]
pub(crate) struct Region {
    words64: Vec<AtomicU64>,
    words32: Vec<AtomicU32>,
}

#[cfg(loom)]
impl Region {
    pub(crate) fn heap(len: usize) -> Arc<Region> {
        Arc::new(Region {
            words64: (0..len / 8).map(|_| AtomicU64::new(0)).collect(),
            words32: (0..len / 4).map(|_| AtomicU32::new(0)).collect(),
        })
    }

    fn writable(&self) -> bool {
        true
    }

    fn w64(&self, offset: usize) -> &AtomicU64 {
        &self.words64[offset / 8]
    }

    fn words<T>(&self, offset: usize) -> impl Fn(usize) -> u64 {
        move |at| self.load64(offset + at, Ordering::Relaxed)
    }

    fn w32(&self, offset: usize) -> &AtomicU32 {
        &self.words32[offset / 4]
    }
}

impl Region {
    /// Asks the CPU to fetch the cache line of a word.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize) {
        #[cfg(all(target_arch = "x86_64", not(loom)))]
        // SAFETY: a prefetch has no architectural effect, wherever the address leads.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.base.wrapping_add(offset).cast());
        }
        #[cfg(not(all(target_arch = "x86_64", not(loom))))]
        let _ = offset;
    }

    #[inline(always)]
    pub(crate) fn load64(&self, offset: usize, order: Ordering) -> u64 {
        self.w64(offset).load(order)
    }

    #[inline(always)]
    pub(crate) fn load32(&self, offset: usize, order: Ordering) -> u32 {
        self.w32(offset).load(order)
    }

    /// Copies a record out, word by word. The caller reached it over an acquiring load.
    #[inline(always)]
    pub(crate) fn read<T: Pod>(&self, offset: usize) -> T {
        let word = self.words::<T>(offset);
        let mut value = MaybeUninit::<T>::uninit();
        let bytes = value.as_mut_ptr().cast::<u8>();
        let pairs = size_of::<T>() / 16 * 16;
        for at in (0..pairs).step_by(16) {
            // SAFETY: 16 bytes from `at` on lie in the value.
            unsafe { put_pair(bytes.add(at), word(at), word(at + 8)) };
        }
        for at in (pairs..size_of::<T>()).step_by(8) {
            let part = word(at).to_ne_bytes();
            // SAFETY: at most what is left of the value.
            unsafe { part.as_ptr().copy_to_nonoverlapping(bytes.add(at), (size_of::<T>() - at).min(8)) };
        }
        // SAFETY: every byte was written, and any bytes are a `T`.
        unsafe { value.assume_init() }
    }
}

/// Stores two words as one: whoever moves the value on loads 16 bytes at a time, and such a load has to wait for the memory if
/// it takes what two stores have just put there.
///
/// # Safety
/// `to` is good for 16 bytes.
#[inline(always)]
unsafe fn put_pair(to: *mut u8, low: u64, high: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of the architecture, the store needs no alignment, and the caller vouches for the place.
    unsafe {
        use std::arch::x86_64::{_mm_set_epi64x, _mm_storeu_si128};
        _mm_storeu_si128(to.cast(), _mm_set_epi64x(high as i64, low as i64));
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller vouches for the place.
    unsafe {
        to.cast::<[u64; 2]>().write_unaligned([low, high]);
    }
}

/// Length of a record in memory: whole 64-bit words.
pub(crate) const fn words_len<T>() -> usize {
    size_of::<T>().next_multiple_of(8)
}

/// A region that may be stored to.
#[derive(Clone)]
pub(crate) struct WriteRegion {
    region: Arc<Region>,
    #[cfg(any(test, feature = "fault-injection"))]
    stores_left: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

/// What a writer unwinds with when the fault hook stops it.
#[cfg(any(test, feature = "fault-injection"))]
#[derive(Debug)]
pub struct FaultStop;

impl WriteRegion {
    /// # Panics
    /// If the region is a read-only mapping, where a store would be a fault.
    pub(crate) fn new(region: Arc<Region>) -> WriteRegion {
        assert!(region.writable(), "a read-only mapping can't be written");
        WriteRegion {
            region,
            #[cfg(any(test, feature = "fault-injection"))]
            stores_left: std::sync::Arc::new(u64::MAX.into()),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Region> {
        &self.region
    }

    /// Makes the store after the next `stores` unwind instead, as if the process had been killed there.
    #[cfg(any(test, feature = "fault-injection"))]
    pub(crate) fn stop_after(&self, stores: u64) {
        self.stores_left.store(stores, std::sync::atomic::Ordering::Relaxed);
    }

    #[inline]
    fn count_store(&self) {
        #[cfg(any(test, feature = "fault-injection"))]
        match self.stores_left.load(std::sync::atomic::Ordering::Relaxed) {
            u64::MAX => {}
            0 => std::panic::resume_unwind(Box::new(FaultStop)),
            n => self.stores_left.store(n - 1, std::sync::atomic::Ordering::Relaxed),
        }
    }

    #[inline]
    pub(crate) fn store64(&self, offset: usize, value: u64, order: Ordering) {
        self.count_store();
        self.region.w64(offset).store(value, order);
    }

    #[inline]
    pub(crate) fn store32(&self, offset: usize, value: u32, order: Ordering) {
        self.count_store();
        self.region.w32(offset).store(value, order);
    }

    /// Claims a word that holds 0. Only registration of readers uses it, never a look-up.
    pub(crate) fn claim64(&self, offset: usize, value: u64) -> bool {
        self.region.w64(offset).compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Copies a record in, word by word, padding with zero. A releasing store must publish it.
    pub(crate) fn write<T: Pod>(&self, offset: usize, value: &T) {
        for (i, chunk) in bytemuck::bytes_of(value).chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store64(offset + 8 * i, u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }
}

impl std::ops::Deref for WriteRegion {
    type Target = Region;

    #[inline(always)]
    fn deref(&self) -> &Region {
        &self.region
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn comes_back<T: Pod + PartialEq + std::fmt::Debug>() {
        let mut value = T::zeroed();
        (1..).zip(bytemuck::bytes_of_mut(&mut value)).for_each(|(n, byte)| *byte = n);
        let region = WriteRegion::new(Region::heap(PAGE));
        for offset in [0, 8, 56, PAGE - words_len::<T>()] {
            region.write(offset, &value);
            assert_eq!(region.read::<T>(offset), value, "{} bytes at {offset}", size_of::<T>());
        }
    }

    #[test]
    fn a_record_of_any_length_is_read_as_it_was_written() {
        comes_back::<u32>();
        comes_back::<u64>();
        comes_back::<[u8; 12]>();
        comes_back::<[u8; 16]>();
        comes_back::<[u8; 20]>();
        comes_back::<[u8; 24]>();
        comes_back::<[u8; 30]>();
        comes_back::<[u8; 32]>();
        comes_back::<[u64; 9]>();
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn a_record_that_ends_behind_the_region_is_not_read() {
        Region::heap(PAGE).read::<[u8; 20]>(PAGE - 16);
    }
}
