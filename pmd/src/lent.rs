//! Which chunks of the UMEM one kernel socket holds.
//!
//! A chunk in two places corrupts packets, and a kernel or driver bug that returns a chunk twice would make
//! two frames of it. So each queue keeps one bit per chunk: set when the chunk goes into one of its rings,
//! cleared when it comes back. A descriptor whose bit is not set is refused. The bits also say exactly which
//! chunks to bring home when the socket is closed.
//!
//! Cost: one load, test and store in a private array of `frames / 8` bytes (2 KiB for 16384 frames), which
//! stays in L1. It replaces nothing and needs no atomics, as a queue belongs to one worker.

// UNSAFETY: makes frames from descriptor addresses; the bits prove that the chunk's frame is not elsewhere.
#![allow(unsafe_code)]

use crate::frame::{Frame, HEADROOM};
use crate::pool::FrameCache;
use crate::umem::Umem;

/// The chunks lent to one socket.
pub(crate) struct Lent {
    umem: Umem,
    bits: Box<[u64]>,
    count: usize,
}

impl Lent {
    pub(crate) fn new(umem: Umem) -> Lent {
        let bits = vec![0; umem.frames().div_ceil(64)].into_boxed_slice();
        Lent { umem, bits, count: 0 }
    }

    /// Goes on with chunks that a former image of this process had lent.
    ///
    /// # Safety
    /// No frame of these chunks exists, and each is in one such list once.
    pub(crate) unsafe fn adopt(umem: Umem, chunks: &[usize]) -> Lent {
        let mut lent = Lent::new(umem);
        for chunk in chunks {
            lent.bits[chunk / 64] |= 1 << (chunk % 64);
        }
        lent.count = chunks.len();
        lent
    }

    /// The chunks out, by number.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = usize> + '_ {
        (0..64 * self.bits.len()).filter(|chunk| self.bits[chunk / 64] & 1 << (chunk % 64) != 0)
    }

    /// Chunks out.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Notes that the frame's chunk goes to the kernel and returns the packet's descriptor address. A frame
    /// of another UMEM is handed back.
    #[inline]
    pub(crate) fn lend(&mut self, frame: Frame) -> Result<u64, Frame> {
        let addr = self.umem.offset_of(&frame);
        let Some(chunk) = self.umem.chunk_of(addr) else { return Err(frame) };
        self.bits[chunk / 64] |= 1 << (chunk % 64);
        self.count += 1;
        Ok(self.umem.forget(frame))
    }

    /// The frame of a descriptor that came back, or `None` if the descriptor is not one of a lent chunk.
    #[inline]
    pub(crate) fn take(&mut self, addr: u64, len: u32) -> Option<Frame> {
        let chunk = self.umem.chunk_of(addr)?;
        let bit = 1 << (chunk % 64);
        let word = &mut self.bits[chunk / 64];
        if *word & bit == 0 {
            return None;
        }
        // SAFETY: the bit says that this chunk's frame was forgotten in `lend` and not taken back since.
        let frame = unsafe { self.umem.frame_from_descriptor(addr, len) }?;
        *word &= !bit;
        self.count -= 1;
        Some(frame)
    }

    /// Brings every chunk home. Only for when the kernel can no longer touch them.
    pub(crate) fn reclaim(&mut self, cache: &mut FrameCache) {
        for index in 0..self.bits.len() {
            while self.bits[index] != 0 {
                let chunk = index * 64 + self.bits[index].trailing_zeros() as usize;
                let addr = chunk * self.umem.frame_size() + HEADROOM;
                if let Some(frame) = self.take(addr as u64, 0) {
                    cache.free(frame);
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::umem::UmemConfig;

    #[test]
    fn a_descriptor_is_taken_once_and_only_if_its_chunk_was_lent() {
        let umem = Umem::new(UmemConfig { frames: 128, frame_size: 2048, huge_pages: false }).unwrap();
        let mut cache = umem.cache();
        let mut lent = Lent::new(umem.clone());
        let mut frame = cache.alloc().unwrap();
        assert!(frame.copy_from(b"packet"));
        let addr = lent.lend(frame).unwrap();
        assert!(lent.take(addr ^ 2048, 6).is_none(), "a chunk that was never lent");
        assert!(lent.take(128 * 2048, 6).is_none(), "an address outside the UMEM");
        assert!(lent.take(u64::MAX, 6).is_none(), "an address outside the UMEM");
        assert!(lent.take(addr, 2048).is_none(), "a packet that crosses its chunk");
        let frame = lent.take(addr, 6).unwrap();
        assert_eq!(frame.bytes(), b"packet");
        assert!(lent.take(addr, 6).is_none(), "a chunk that came back already");
        cache.free(frame);
        drop(cache);
        assert_eq!(umem.pool().missing(), 0);
    }

    #[test]
    fn reclaim_brings_every_lent_chunk_home() {
        let umem = Umem::new(UmemConfig { frames: 200, frame_size: 4096, huge_pages: false }).unwrap();
        let mut cache = umem.cache();
        let mut lent = Lent::new(umem.clone());
        while let Some(frame) = cache.alloc() {
            lent.lend(frame).unwrap();
        }
        assert_eq!((lent.count(), umem.pool().missing()), (200, 200));
        lent.reclaim(&mut cache);
        drop(cache);
        assert_eq!((lent.count(), umem.pool().missing()), (0, 0));
    }

    #[test]
    fn a_frame_of_another_umem_is_handed_back() {
        let config = UmemConfig { frames: 64, frame_size: 2048, huge_pages: false };
        let (ours, theirs) = (Umem::new(config).unwrap(), Umem::new(config).unwrap());
        let mut cache = theirs.cache();
        let frame = Lent::new(ours).lend(cache.alloc().unwrap()).unwrap_err();
        cache.free(frame);
        drop(cache);
        assert_eq!(theirs.pool().missing(), 0);
    }
}
