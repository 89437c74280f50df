//! UMEM, frames and the frame pool.
//!
//! A [`Umem`] is one block of memory cut into equal chunks. Each chunk has exactly one [`Frame`], made when
//! the UMEM is made; frames move, and are never copied. Workers keep frames in a [`FrameCache`] and exchange
//! them with the shared [`FramePool`] by the magazine, so that the pool's atomics are paid once per
//! [`MAGAZINE`] frames.

// UNSAFETY: a frame is a raw pointer into a mapping that the kernel writes too; this module is the one that
// turns it into slices, and argues for it where it does.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use std::ptr::NonNull;
use std::sync::Arc;

/// Most frames in one burst.
pub const MAX_BURST: usize = 64;
/// Frames that move between a cache and the pool at once.
pub const MAGAZINE: usize = 64;

/// Frames in flight, in order.
pub type Burst = ArrayVec<Frame, MAX_BURST>;

/// The only handle on one chunk of a UMEM, holding a packet of [`Frame::len`] bytes.
///
/// Dropping a frame loses its chunk until the process ends, so frames are given back to a [`FrameCache`];
/// [`FramePool::missing`] shows what is out.
#[derive(Debug)]
#[must_use = "a dropped frame is lost to the pool"]
pub struct Frame {
    /// First byte of the packet.
    data: NonNull<u8>,
    len: u16,
    /// Bytes free before `data` in this chunk.
    headroom: u16,
    /// Bytes from `data` to the end of the chunk.
    capacity: u16,
    /// Ingress port.
    port: u16,
}

// SAFETY: a frame is the only handle on its chunk, and the chunk's mapping outlives it (see `Umem::drop`).
unsafe impl Send for Frame {}

impl Frame {
    /// The packet's bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `data..data + len` lies in this frame's chunk (`len <= capacity` always), the chunk is
        // mapped as long as a frame is out, and nobody else holds a handle on it.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }

    /// The packet's bytes, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
    }

    /// Length of the packet in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that can be prepended.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.headroom as usize
    }

    /// Longest packet that fits from the current start.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// The port on which the packet came in.
    #[inline]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Notes the port on which the packet came in.
    #[inline]
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Makes the packet `n` bytes longer at its front; the new bytes hold whatever was there. Returns
    /// `false`, and changes nothing, if there is no room.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> bool {
        if n > self.headroom as usize {
            return false;
        }
        // SAFETY: `n <= headroom`, so the result stays in this frame's chunk.
        self.data = unsafe { self.data.sub(n) };
        let n = n as u16;
        self.headroom -= n;
        self.capacity += n;
        self.len += n;
        true
    }

    /// Makes the packet `n` bytes shorter at its front. Returns `false`, and changes nothing, if it is
    /// shorter than that.
    #[inline]
    pub fn trim_front(&mut self, n: usize) -> bool {
        if n > self.len as usize {
            return false;
        }
        // SAFETY: `n <= len <= capacity`, so the result stays in this frame's chunk.
        self.data = unsafe { self.data.add(n) };
        let n = n as u16;
        self.headroom += n;
        self.capacity -= n;
        self.len -= n;
        true
    }

    /// Sets the length; bytes beyond the old one hold whatever was there. Returns `false`, and changes
    /// nothing, if the chunk ends before.
    #[inline]
    pub fn set_len(&mut self, len: usize) -> bool {
        if len > self.capacity as usize {
            return false;
        }
        self.len = len as u16;
        true
    }

    /// Replaces the packet by a copy of `bytes`, placed after the UMEM's usual headroom. Returns `false`,
    /// and changes nothing, if they do not fit.
    pub fn copy_from(&mut self, bytes: &[u8]) -> bool {
        let chunk = self.headroom as usize + self.capacity as usize;
        if bytes.len() + HEADROOM > chunk {
            return false;
        }
        // SAFETY: `HEADROOM <= chunk`, and `data - headroom` is the chunk's start.
        self.data = unsafe { self.data.sub(self.headroom as usize).add(HEADROOM) };
        self.headroom = HEADROOM as u16;
        self.capacity = (chunk - HEADROOM) as u16;
        self.len = bytes.len() as u16;
        self.bytes_mut().copy_from_slice(bytes);
        true
    }

    /// Asks the CPU to fetch the packet's first cache line.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no architectural effect; the address is in a mapping anyway.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.data.as_ptr().cast());
        }
    }
}

/// Bytes kept free before a received packet: XDP's own 256 (`XDP_PACKET_HEADROOM`), which leaves room for
/// any encapsulation.
pub const HEADROOM: usize = 256;

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
    #[error("UMEM of {frames} frames of {frame_size} bytes: the size must be 2048 or 4096, the number at least {MAGAZINE} and the whole under 4 GiB")]
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
    bytes: usize,
    frame_size: usize,
    frames: usize,
    huge_pages: bool,
    pool: ArrayQueue<Magazine>,
}

type Magazine = ArrayVec<Frame, MAGAZINE>;

// SAFETY: the mapping itself is only an address range; its bytes are reached through frames alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Umem {
    /// Maps memory and makes every frame, all home in the pool.
    pub fn new(config: UmemConfig) -> Result<Umem, UmemError> {
        let UmemConfig { frames, frame_size, huge_pages } = config;
        let bytes = frames as u64 * u64::from(frame_size);
        if !matches!(frame_size, 2048 | 4096) || (frames as usize) < MAGAZINE || bytes >= 1 << 32 {
            return Err(UmemError::Layout { frames, frame_size });
        }
        let (base, bytes, huge_pages) = map(bytes as usize, huge_pages)?;
        let magazines = frames as usize / MAGAZINE * 2 + 64;
        let mapping = Mapping {
            base,
            bytes,
            frame_size: frame_size as usize,
            frames: frames as usize,
            huge_pages,
            pool: ArrayQueue::new(magazines),
        };
        let umem = Umem { inner: Arc::new(mapping) };
        let mut magazine = Magazine::new();
        for index in 0..frames as usize {
            // SAFETY: each chunk gets its one frame here.
            magazine.push(unsafe { umem.frame_unchecked(index * frame_size as usize + HEADROOM, 0) });
            if magazine.is_full() || index + 1 == frames as usize {
                let full = std::mem::take(&mut magazine);
                umem.inner.pool.push(full).unwrap_or_else(|_| unreachable!("the pool has room for all"));
            }
        }
        Ok(umem)
    }

    /// The pool of frames that are home.
    pub fn pool(&self) -> FramePool {
        FramePool { umem: self.clone() }
    }

    /// A worker's cache of frames.
    pub fn cache(&self) -> FrameCache {
        FrameCache { umem: self.clone(), local: ArrayVec::new() }
    }

    /// Address and size in bytes of the whole mapping, for registration with the kernel.
    pub fn region(&self) -> (*mut u8, usize) {
        (self.inner.base.as_ptr(), self.inner.frames * self.inner.frame_size)
    }

    /// Bytes per chunk.
    pub fn frame_size(&self) -> usize {
        self.inner.frame_size
    }

    /// Number of chunks.
    pub fn frames(&self) -> usize {
        self.inner.frames
    }

    /// Whether 2 MiB pages were had explicitly (transparent ones are up to the kernel).
    pub fn has_huge_pages(&self) -> bool {
        self.inner.huge_pages
    }

    /// Offset of the packet's first byte from the start of the UMEM: the address in a descriptor.
    #[inline]
    pub fn offset_of(&self, frame: &Frame) -> u64 {
        (frame.data.as_ptr() as usize - self.inner.base.as_ptr() as usize) as u64
    }

    /// The frame that a descriptor from the kernel names, or `None` if the descriptor points outside the
    /// UMEM or its packet crosses its chunk.
    ///
    /// # Safety
    /// The chunk's frame must have been given up with [`Umem::forget`], and not been taken back since.
    #[inline]
    pub unsafe fn frame_from_descriptor(&self, addr: u64, len: u32) -> Option<Frame> {
        let size = self.inner.frame_size;
        let addr = usize::try_from(addr).ok()?;
        if addr >= self.inner.frames * size || (addr % size) + len as usize > size {
            return None;
        }
        // SAFETY: in bounds by the check above; the caller vouches for uniqueness.
        Some(unsafe { self.frame_unchecked(addr, len as u16) })
    }

    /// Gives a frame up to a kernel ring and returns its descriptor address.
    #[inline]
    pub fn forget(&self, frame: Frame) -> u64 {
        self.offset_of(&frame)
    }

    /// # Safety
    /// `addr + len` must lie in one chunk of this UMEM, whose frame nobody else holds.
    #[inline]
    unsafe fn frame_unchecked(&self, addr: usize, len: u16) -> Frame {
        let headroom = addr % self.inner.frame_size;
        Frame {
            // SAFETY: `addr` is in the mapping.
            data: unsafe { self.inner.base.add(addr) },
            len,
            headroom: headroom as u16,
            capacity: (self.inner.frame_size - headroom) as u16,
            port: u16::MAX,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut home = 0;
        while let Some(magazine) = self.pool.pop() {
            home += magazine.len();
        }
        if home == self.frames {
            // SAFETY: every frame is home, so no handle on the mapping is left.
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
    if huge_pages {
        let rounded = bytes.next_multiple_of(HUGE);
        if let Some(base) = attempt(rounded, libc::MAP_HUGETLB | libc::MAP_POPULATE) {
            return Ok((base, rounded, true));
        }
    }
    let base =
        attempt(bytes, 0).ok_or_else(|| UmemError::Map { bytes, source: std::io::Error::last_os_error() })?;
    if huge_pages {
        // SAFETY: advice on a mapping of our own; failure only means small pages.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    Ok((base, bytes, false))
}

/// The frames of a UMEM that no worker, burst or ring holds.
#[derive(Clone)]
pub struct FramePool {
    umem: Umem,
}

impl FramePool {
    /// Frames that are home. Exact only while no worker moves frames.
    pub fn home(&self) -> usize {
        let pool = &self.umem.inner.pool;
        let mut home = 0;
        for _ in 0..pool.len() {
            let Some(magazine) = pool.pop() else { break };
            home += magazine.len();
            pool.push(magazine).unwrap_or_else(|_| unreachable!("a place was just freed"));
        }
        home
    }

    /// Frames that are not home (invariant I1: zero once every cache and queue is closed).
    pub fn missing(&self) -> usize {
        self.umem.inner.frames - self.home()
    }
}

/// A worker's private stock of frames in front of the pool. Gives all back when dropped.
pub struct FrameCache {
    umem: Umem,
    local: ArrayVec<Frame, { 2 * MAGAZINE }>,
}

impl FrameCache {
    /// Takes a free frame, or `None` if neither cache nor pool has one. Its contents are arbitrary.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.local.is_empty() {
            self.refill();
        }
        self.local.pop()
    }

    /// Takes a frame back.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        if self.local.is_full() {
            self.spill();
        }
        self.local.push(frame);
    }

    /// Takes back all frames of a burst.
    #[inline]
    pub fn free_burst(&mut self, burst: &mut Burst) {
        for frame in burst.drain(..) {
            self.free(frame);
        }
    }

    /// The UMEM that the frames are from.
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Frames held here.
    pub fn len(&self) -> usize {
        self.local.len()
    }

    /// Whether no frame is held here.
    pub fn is_empty(&self) -> bool {
        self.local.is_empty()
    }

    #[cold]
    fn refill(&mut self) {
        if let Some(magazine) = self.umem.inner.pool.pop() {
            self.local.extend(magazine);
        }
    }

    #[cold]
    fn spill(&mut self) {
        let keep = self.local.len() - MAGAZINE.min(self.local.len());
        let magazine: Magazine = self.local.drain(keep..).collect();
        self.put(magazine);
    }

    fn put(&self, magazine: Magazine) {
        // The pool has twice the places that full magazines need; part-filled ones come only from caches
        // being dropped, of which there are few.
        if self.umem.inner.pool.push(magazine).is_err() {
            tracing::error!("frame pool is out of places; frames are lost");
        }
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        while !self.local.is_empty() {
            self.spill();
        }
    }
}
