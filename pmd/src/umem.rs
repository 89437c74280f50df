//! The UMEM: one block of memory cut into equal chunks, each with its one frame.

// UNSAFETY: maps memory, and turns chunk numbers into the frames that own them.
#![allow(unsafe_code)]

use crate::frame::{Frame, HEADROOM};
use crate::pool::{FrameCache, FramePool, MAGAZINE, Store};
use std::ptr::NonNull;
use std::sync::Arc;

/// How to lay out a UMEM.
#[derive(Clone, Copy, Debug)]
pub struct UmemConfig {
    /// Number of frames.
    pub frames: u32,
    /// Bytes per chunk: 2048 or 4096 (the kernel's aligned mode).
    pub frame_size: u32,
    /// Ask for 2 MiB pages: explicit hugepages if some are reserved, transparent ones otherwise.
    pub huge_pages: bool,
}

impl Default for UmemConfig {
    fn default() -> UmemConfig {
        UmemConfig { frames: 16384, frame_size: 2048, huge_pages: true }
    }
}

/// Why a UMEM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// The layout is not one that the kernel takes.
    #[error(
        "UMEM of {frames} frames of {frame_size} bytes: the size must be 2048 or 4096, the number at least {MAGAZINE} and the whole under 4 GiB"
    )]
    Layout {
        /// Frames asked for.
        frames: u32,
        /// Chunk size asked for.
        frame_size: u32,
    },
    /// The memory could not be mapped.
    #[error("mapping {bytes} bytes of UMEM: {source}; lower the number of frames or free memory")]
    Map {
        /// Size asked for.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// One mapping cut into chunks, and the pool of the frames in it. Cheap to clone (shared).
#[derive(Clone)]
pub struct Umem {
    inner: Arc<Mapping>,
}

struct Mapping {
    base: NonNull<u8>,
    /// Bytes mapped.
    bytes: usize,
    /// Bytes cut into chunks.
    used: usize,
    /// log2 of the chunk size.
    shift: u32,
    huge_pages: bool,
    store: Store,
}

// SAFETY: the mapping itself is only an address range; its bytes are reached through frames alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Umem {
    /// Maps memory and makes every frame, all home in the pool.
    pub fn new(config: UmemConfig) -> Result<Umem, UmemError> {
        let UmemConfig { frames, frame_size, huge_pages } = config;
        let bytes = u64::from(frames) * u64::from(frame_size);
        if !matches!(frame_size, 2048 | 4096) || (frames as usize) < MAGAZINE || bytes >= 1 << 32 {
            return Err(UmemError::Layout { frames, frame_size });
        }
        let used = bytes as usize;
        let (base, bytes, huge_pages) = map(used, huge_pages)?;
        let store = Store::new(frames as usize);
        let shift = frame_size.trailing_zeros();
        let umem = Umem { inner: Arc::new(Mapping { base, bytes, used, shift, huge_pages, store }) };
        let mut cache = umem.cache();
        for index in 0..u64::from(frames) {
            // SAFETY: each chunk gets its one frame here.
            let frame = unsafe { umem.frame_from_descriptor(index << shift | HEADROOM as u64, 0) };
            cache.free(frame.unwrap_or_else(|| unreachable!("the chunk is in the UMEM")));
        }
        drop(cache);
        Ok(umem)
    }

    /// The pool of frames that are home.
    pub fn pool(&self) -> FramePool {
        FramePool::new(self.clone())
    }

    /// A worker's cache of frames.
    pub fn cache(&self) -> FrameCache {
        FrameCache::new(self.clone())
    }

    /// Address and size in bytes of the whole mapping, for registration with the kernel.
    pub fn region(&self) -> (*mut u8, usize) {
        (self.inner.base.as_ptr(), self.inner.used)
    }

    /// Bytes per chunk.
    pub fn frame_size(&self) -> usize {
        1 << self.inner.shift
    }

    /// Number of chunks.
    pub fn frames(&self) -> usize {
        self.inner.used >> self.inner.shift
    }

    /// Whether 2 MiB pages were had explicitly (transparent ones are up to the kernel).
    pub fn has_huge_pages(&self) -> bool {
        self.inner.huge_pages
    }

    /// Whether the frame's chunk is in this UMEM.
    #[inline]
    pub fn owns(&self, frame: &Frame) -> bool {
        frame.address().wrapping_sub(self.inner.base.as_ptr() as usize) < self.inner.used
    }

    /// Offset of the packet's first byte from the start of the UMEM: the address in a descriptor.
    /// Meaningless for a frame of another UMEM (see [`Umem::owns`]).
    #[inline]
    pub fn offset_of(&self, frame: &Frame) -> u64 {
        frame.address().wrapping_sub(self.inner.base.as_ptr() as usize) as u64
    }

    /// Number of the chunk at this descriptor address, if the address is in the UMEM.
    #[inline]
    pub(crate) fn chunk_of(&self, addr: u64) -> Option<usize> {
        (addr < self.inner.used as u64).then_some(addr as usize >> self.inner.shift)
    }

    /// The frame that a descriptor from the kernel names, or `None` if the descriptor points outside the
    /// UMEM or its packet crosses its chunk.
    ///
    /// # Safety
    /// The chunk's frame must have been given up with [`Umem::forget`], and not been taken back since.
    #[inline]
    pub unsafe fn frame_from_descriptor(&self, addr: u64, len: u32) -> Option<Frame> {
        let size = 1usize << self.inner.shift;
        let headroom = addr as usize & (size - 1);
        if addr >= self.inner.used as u64 || headroom + len as usize > size {
            return None;
        }
        // SAFETY: `addr` is in the mapping by the check above.
        let data = unsafe { self.inner.base.add(addr as usize) };
        // SAFETY: `headroom` and `size` delimit the chunk around `data`, `len` ends before it does, and the
        // caller vouches for uniqueness. The mapping stays until every frame is home (`Mapping::drop`).
        Some(unsafe { Frame::from_parts(data, len as u16, headroom as u16, (size - headroom) as u16) })
    }

    /// Gives a frame up to a kernel ring and returns its descriptor address.
    #[inline]
    pub fn forget(&self, frame: Frame) -> u64 {
        self.offset_of(&frame)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Umem {{ frames: {}, frame_size: {} }}", self.frames(), self.frame_size())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.store.home() == self.used >> self.shift {
            // SAFETY: every frame is home (only frames of this UMEM get there, see `FrameCache::free`), so
            // no handle on the mapping is left.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        }
        // Otherwise some frame may still be used: the mapping stays until the process ends.
    }
}

fn map(bytes: usize, huge_pages: bool) -> Result<(NonNull<u8>, usize, bool), UmemError> {
    const HUGE: usize = 2 << 20;
    let attempt = |bytes: usize, flags: i32| {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast::<u8>()) }
    };
    let advise = |base: NonNull<u8>, bytes: usize, advice: i32| {
        // SAFETY: advice on a mapping of our own; failure only means that it is not followed.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, advice) };
    };
    // A child made by fork() must not turn the UMEM into copy-on-write pages under the kernel's pins: hence
    // DONTFORK in both cases.
    if huge_pages {
        let rounded = bytes.next_multiple_of(HUGE);
        if let Some(base) = attempt(rounded, libc::MAP_HUGETLB | libc::MAP_POPULATE) {
            advise(base, rounded, libc::MADV_DONTFORK);
            return Ok((base, rounded, true));
        }
    }
    let base =
        attempt(bytes, 0).ok_or_else(|| UmemError::Map { bytes, source: std::io::Error::last_os_error() })?;
    advise(base, bytes, libc::MADV_DONTFORK);
    if huge_pages {
        advise(base, bytes, libc::MADV_HUGEPAGE);
    }
    Ok((base, bytes, false))
}
