//! A frame: the only handle on one chunk of a UMEM.

// UNSAFETY: a frame is a raw pointer into a mapping that the kernel writes too; this module is the one that
// turns it into slices, and argues for it where it does.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use std::ptr::NonNull;

pub use crate::pool::{FrameCache, FramePool, MAGAZINE};
pub use crate::umem::{Umem, UmemConfig, UmemError};

/// Most frames in one burst.
pub const MAX_BURST: usize = 64;

/// Frames in flight, in order.
pub type Burst = ArrayVec<Frame, MAX_BURST>;

/// The only handle on one chunk of a UMEM, holding a packet of [`Frame::len`] bytes.
///
/// Dropping a frame loses its chunk until the process ends, so frames are given back to a [`FrameCache`];
/// [`FramePool::missing`] shows what is out.
#[must_use = "a dropped frame is lost to the pool"]
pub struct Frame {
    /// First byte of the packet. Always in the chunk; `data - headroom` is the chunk's start and
    /// `data + capacity` its end.
    data: NonNull<u8>,
    /// Never more than `capacity`.
    len: u16,
    /// Bytes free before `data` in this chunk.
    headroom: u16,
    /// Bytes from `data` to the end of the chunk.
    capacity: u16,
    /// Ingress port.
    port: u16,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Frame { len, headroom, port, .. } = self;
        write!(f, "Frame {{ len: {len}, headroom: {headroom}, port: {port} }}")
    }
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

    /// Asks the CPU to fetch the cache line of the packet's byte `offset`.
    #[inline(always)]
    pub fn prefetch(&self, offset: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no architectural effect, wherever the address leads.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.data.as_ptr().wrapping_add(offset).cast());
        }
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

    /// Makes the packet `len` bytes long, placed after the UMEM's usual headroom; its bytes hold whatever was
    /// there. Returns `false`, and changes nothing, if they do not fit.
    #[inline]
    pub fn reset(&mut self, len: usize) -> bool {
        let chunk = self.headroom as usize + self.capacity as usize;
        if len + HEADROOM > chunk {
            return false;
        }
        // SAFETY: `HEADROOM <= chunk`, and `data - headroom` is the chunk's start.
        self.data = unsafe { self.data.sub(self.headroom as usize).add(HEADROOM) };
        self.headroom = HEADROOM as u16;
        self.capacity = (chunk - HEADROOM) as u16;
        self.len = len as u16;
        true
    }

    /// Replaces the packet by a copy of `bytes`, placed after the UMEM's usual headroom. Returns `false`,
    /// and changes nothing, if they do not fit.
    pub fn copy_from(&mut self, bytes: &[u8]) -> bool {
        if !self.reset(bytes.len()) {
            return false;
        }
        self.bytes_mut().copy_from_slice(bytes);
        true
    }

    #[inline]
    /// The handle on a chunk, its packet starting at `data`.
    ///
    /// # Safety
    /// `data - headroom .. data + capacity` is one chunk of a UMEM that stays mapped while the frame is out,
    /// nobody else holds a handle on it, and `len <= capacity`.
    pub(crate) unsafe fn from_parts(data: NonNull<u8>, len: u16, headroom: u16, capacity: u16) -> Frame {
        Frame { data, len, headroom, capacity, port: u16::MAX }
    }

    /// Where the packet starts.
    #[inline]
    pub(crate) fn address(&self) -> usize {
        self.data.as_ptr() as usize
    }
}

/// Bytes kept free before a received packet: XDP's own 256 (`XDP_PACKET_HEADROOM`), which leaves room for
/// any encapsulation.
pub const HEADROOM: usize = 256;
