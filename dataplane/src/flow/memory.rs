//! Zeroed memory on 2 MiB pages where the kernel gives them: a table of a million cache lines read at random
//! costs a TLB miss per look-up on 4 KiB pages.

// UNSAFETY: an anonymous mapping is turned into a slice here, and nowhere else in this crate's flow code.
#![allow(unsafe_code)]

use bytemuck::Pod;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A fixed-size slice of plain old data, all zero at first.
pub struct HugeSlice<T: Pod> {
    data: NonNull<T>,
    len: usize,
    bytes: usize,
}

// SAFETY: the slice owns its memory exclusively, like a `Box<[T]>`.
unsafe impl<T: Pod + Send> Send for HugeSlice<T> {}

const HUGE: usize = 2 << 20;

impl<T: Pod> HugeSlice<T> {
    /// Maps memory for `len` entries.
    ///
    /// # Panics
    /// If the memory is not to be had; sizes come from configuration and are claimed at start.
    pub fn zeroed(len: usize) -> HugeSlice<T> {
        let bytes = (len * size_of::<T>()).max(1).next_multiple_of(HUGE);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes + HUGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(base != libc::MAP_FAILED, "no memory for a table of {bytes} bytes");
        let start = base as usize;
        let aligned = start.next_multiple_of(HUGE);
        // SAFETY: both ranges lie in the mapping made above, before and after the aligned part; they are
        // given back so that only whole huge pages remain. The advice changes no contents.
        let data = unsafe {
            if aligned > start {
                libc::munmap(base, aligned - start);
            }
            let tail = start + bytes + HUGE - (aligned + bytes);
            if tail > 0 {
                libc::munmap(base.byte_add(aligned - start + bytes), tail);
            }
            let data = base.byte_add(aligned - start);
            libc::madvise(data, bytes, libc::MADV_HUGEPAGE);
            data
        };
        let data = NonNull::new(data.cast::<T>()).expect("mmap does not return null");
        HugeSlice { data, len, bytes }
    }
}

impl<T: Pod> Deref for HugeSlice<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` entries are mapped and aligned to 2 MiB; zero bytes and whatever was written through
        // `deref_mut` are valid (`T: Pod`); the memory is owned.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for HugeSlice<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Pod> HugeSlice<T> {
    /// Asks the CPU to fetch an entry's cache line; an index past the end fetches nothing of use.
    #[inline(always)]
    pub fn prefetch(&self, index: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no architectural effect, wherever the address leads.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.data.as_ptr().wrapping_add(index).cast());
        }
    }
}

impl<T: Pod> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `zeroed` kept, to which no borrow is left.
        unsafe { libc::munmap(self.data.as_ptr().cast(), self.bytes) };
    }
}
