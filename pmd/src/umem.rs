//! The UMEM: one block of memory cut into equal chunks, each with its one frame.

// UNSAFETY: maps memory, and turns chunk numbers into the frames that own them.
#![allow(unsafe_code)]

use crate::frame::{Frame, HEADROOM};
use crate::lent::Lent;
use crate::pool::{FrameCache, FramePool, MAGAZINE, Store};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
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
    /// Memory taken over is not what it was said to be.
    #[error("the UMEM handed over has {found} {unit}, not {expected}; it can't be taken over")]
    Adopted {
        /// What was counted.
        unit: &'static str,
        /// What is there.
        found: usize,
        /// What there should be.
        expected: usize,
    },
}

/// Where a chunk is, for a process that takes the UMEM over: [`HOME`], [`LOST`], or the number of the queue
/// whose kernel rings hold it.
pub type Owner = u16;
/// The chunk's frame is in the pool.
pub const HOME: Owner = u16::MAX;
/// Nobody knows where the chunk's frame is; it must not be used again.
pub const LOST: Owner = u16::MAX - 1;

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
    /// The memory itself, which a later image of this process can map again.
    file: OwnedFd,
    store: Store,
}

// SAFETY: the mapping itself is only an address range; its bytes are reached through frames alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Umem {
    /// Maps memory and makes every frame, all home in the pool.
    pub fn new(config: UmemConfig) -> Result<Umem, UmemError> {
        let used = check(config)?;
        let UmemConfig { frames, frame_size, huge_pages } = config;
        let failed = |source| UmemError::Map { bytes: used, source };
        let (file, bytes, huge_pages) = memory(used, huge_pages).map_err(failed)?;
        let base = map(&file, bytes, config.huge_pages && !huge_pages).map_err(failed)?;
        let store = Store::new(frames as usize);
        let shift = frame_size.trailing_zeros();
        let mapping = Mapping { base, bytes, used, shift, huge_pages, file, store };
        let umem = Umem { inner: Arc::new(mapping) };
        umem.bring_home(0..frames as usize);
        Ok(umem)
    }

    /// Takes over the memory of a former image of this process, which `file` is, with every chunk where
    /// `owners` says: those at [`HOME`] are in the pool, those of queue `n` of `queues` in the `n`-th result,
    /// those [`LOST`] stay out.
    ///
    /// # Errors
    /// If the memory is of another size, or an owner is none of these.
    pub(crate) fn adopt(
        file: OwnedFd,
        config: UmemConfig,
        owners: &[Owner],
        queues: usize,
    ) -> Result<(Umem, Vec<Lent>), UmemError> {
        let used = check(config)?;
        let failed = |source| UmemError::Map { bytes: used, source };
        let UmemConfig { frames, frame_size, huge_pages } = config;
        let bytes = std::fs::File::from(file.try_clone().map_err(failed)?).metadata().map_err(failed)?.len();
        let bytes = bytes as usize;
        if bytes != used && bytes != used.next_multiple_of(HUGE) {
            return Err(UmemError::Adopted { unit: "bytes", found: bytes, expected: used });
        }
        if owners.len() != frames as usize {
            return Err(UmemError::Adopted {
                unit: "owners",
                found: owners.len(),
                expected: frames as usize,
            });
        }
        let strange = |owner: &&Owner| !matches!(**owner, HOME | LOST) && usize::from(**owner) >= queues;
        if let Some(owner) = owners.iter().find(strange) {
            let found = usize::from(*owner) + 1;
            return Err(UmemError::Adopted { unit: "queues", found, expected: queues });
        }
        let base = map(&file, bytes, false).map_err(failed)?;
        let store = Store::new(frames as usize);
        let shift = frame_size.trailing_zeros();
        let mapping = Mapping { base, bytes, used, shift, huge_pages, file, store };
        let umem = Umem { inner: Arc::new(mapping) };
        let chunks_of = |who: Owner| {
            owners.iter().enumerate().filter(move |(_, owner)| **owner == who).map(|(chunk, _)| chunk)
        };
        umem.bring_home(chunks_of(HOME));
        let mut chunks = vec![Vec::new(); queues];
        for (chunk, owner) in owners.iter().enumerate() {
            if let Some(chunks) = chunks.get_mut(usize::from(*owner)) {
                chunks.push(chunk);
            }
        }
        // SAFETY: each chunk has one owner, so that none of these was made into a frame above or is in two
        // of the lists.
        let lent = chunks.iter().map(|chunks| unsafe { Lent::adopt(umem.clone(), chunks) }).collect();
        Ok((umem, lent))
    }

    /// Makes the frames of these chunks, which have none yet.
    fn bring_home(&self, chunks: impl Iterator<Item = usize>) {
        let mut cache = self.cache();
        for chunk in chunks {
            let addr = (chunk << self.inner.shift | HEADROOM) as u64;
            // SAFETY: each chunk gets its one frame here.
            let frame = unsafe { self.frame_from_descriptor(addr, 0) };
            cache.free(frame.unwrap_or_else(|| unreachable!("the chunk is in the UMEM")));
        }
    }

    /// The memory's descriptor: what a later image of this process needs to go on with it.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }

    /// [`HOME`] for each chunk whose frame is in the pool, [`LOST`] for the rest. Exact only while no worker
    /// moves frames.
    pub(crate) fn owners(&self) -> Vec<Owner> {
        let mut owners = vec![LOST; self.frames()];
        self.inner.store.for_each(|frame| {
            if let Some(chunk) = self.chunk_of(self.offset_of(frame)) {
                owners[chunk] = HOME;
            }
        });
        owners
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

const HUGE: usize = 2 << 20;

/// The size of a UMEM in bytes.
fn check(config: UmemConfig) -> Result<usize, UmemError> {
    let UmemConfig { frames, frame_size, .. } = config;
    let bytes = u64::from(frames) * u64::from(frame_size);
    if !matches!(frame_size, 2048 | 4096) || (frames as usize) < MAGAZINE || bytes >= 1 << 32 {
        return Err(UmemError::Layout { frames, frame_size });
    }
    Ok(bytes as usize)
}

/// Memory without a name, so that it ends with its last descriptor and mapping; its size, and whether it is
/// made of explicit 2 MiB pages.
fn memory(bytes: usize, huge_pages: bool) -> io::Result<(OwnedFd, usize, bool)> {
    if huge_pages {
        let rounded = bytes.next_multiple_of(HUGE);
        if let Ok(file) = memfd(rounded, libc::MFD_HUGETLB) {
            // Without enough pages in reserve this fails, and later accesses would be fatal.
            if allocate(&file, rounded).is_ok() {
                return Ok((file, rounded, true));
            }
        }
        return Ok((memfd(rounded, 0)?, rounded, false));
    }
    Ok((memfd(bytes, 0)?, bytes, false))
}

fn memfd(bytes: usize, flags: u32) -> io::Result<OwnedFd> {
    let create = |flags: u32| {
        // SAFETY: a NUL-terminated name.
        match unsafe { libc::memfd_create(c"fairway-umem".as_ptr(), libc::MFD_CLOEXEC | flags) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a descriptor that was just opened and that nobody else knows.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    };
    // Some nodes allow no other; kernels before 6.3 do not know the flag.
    let file = create(flags | libc::MFD_NOEXEC_SEAL).or_else(|_| create(flags))?;
    // SAFETY: no pointers.
    match unsafe { libc::ftruncate(file.as_raw_fd(), bytes as libc::off_t) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

fn allocate(file: &OwnedFd, bytes: usize) -> io::Result<()> {
    // SAFETY: no pointers.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps the memory at a multiple of 2 MiB, so that huge pages can be used. `collapse` asks for transparent ones,
/// for memory that is fresh.
fn map(file: &OwnedFd, bytes: usize, collapse: bool) -> io::Result<NonNull<u8>> {
    // SAFETY: reserves addresses of the kernel's choice, which touches no existing memory.
    let reserved = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), bytes + HUGE, libc::PROT_NONE, flags, -1, 0)
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = (reserved as usize).next_multiple_of(HUGE) - reserved as usize;
    // SAFETY: all within the addresses reserved above, which nobody else uses; the file replaces their
    // middle, the rest is given back. Advice changes no contents; failure means that it is not followed.
    let base = unsafe {
        let start = reserved.byte_add(before);
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        let base = libc::mmap(start, bytes, access, flags, file.as_raw_fd(), 0);
        if base == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            libc::munmap(reserved, bytes + HUGE);
            return Err(error);
        }
        if before > 0 {
            libc::munmap(reserved, before);
        }
        let end = before + bytes.next_multiple_of(4096);
        libc::munmap(reserved.byte_add(end), bytes + HUGE - end);
        libc::madvise(base, bytes, libc::MADV_DONTFORK);
        if collapse {
            // Shared memory gets huge pages by itself only where the node's shmem_enabled says so. Asked for
            // this way it does everywhere, but not where it has no page at all.
            libc::madvise(base, bytes, libc::MADV_HUGEPAGE);
            for offset in (0..bytes).step_by(HUGE) {
                base.byte_add(offset).cast::<u8>().write_volatile(0);
            }
            libc::madvise(base, bytes, libc::MADV_COLLAPSE);
        }
        base
    };
    NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const CONFIG: UmemConfig = UmemConfig { frames: 256, frame_size: 2048, huge_pages: false };

    fn memory_of(umem: &Umem) -> OwnedFd {
        umem.file().try_clone_to_owned().unwrap()
    }

    #[test]
    fn a_umem_taken_over_has_the_same_bytes_and_frames_only_where_their_owners_say() {
        let umem = Umem::new(CONFIG).unwrap();
        let mut cache = umem.cache();
        let mut frame = cache.alloc().unwrap();
        assert!(frame.copy_from(b"packet"));
        let (addr, lost) = (umem.offset_of(&frame), cache.alloc().unwrap());
        drop(cache);
        let (held, missing) = (umem.chunk_of(addr).unwrap(), umem.chunk_of(umem.offset_of(&lost)).unwrap());
        let mut owners = umem.owners();
        assert_eq!((owners[held], owners[missing]), (LOST, LOST));
        assert_eq!(owners.iter().filter(|owner| **owner == HOME).count(), 254);
        owners[held] = 1;

        let (next, mut lent) = Umem::adopt(memory_of(&umem), CONFIG, &owners, 2).unwrap();
        assert_eq!((lent[0].count(), lent[1].count(), next.pool().missing()), (0, 1, 2));
        assert_eq!(lent[1].chunks().collect::<Vec<_>>(), [held]);
        let frame = lent[1].take(addr, 6).unwrap();
        assert_eq!(frame.bytes(), b"packet");
        let mut cache = next.cache();
        cache.free(frame);
        drop(cache);
        assert_eq!(next.pool().missing(), 1, "the chunk that was lost stays out");
        assert_eq!(next.owners()[missing], LOST);
    }

    #[test]
    fn memory_or_owners_that_do_not_fit_are_refused() {
        let umem = Umem::new(CONFIG).unwrap();
        let owners = umem.owners();
        let adopt = |config, owners: &[Owner]| Umem::adopt(memory_of(&umem), config, owners, 1).err();
        assert!(adopt(CONFIG, &owners).is_none());
        let larger = UmemConfig { frames: 512, ..CONFIG };
        assert!(matches!(adopt(larger, &owners), Some(UmemError::Adopted { unit: "bytes", .. })));
        assert!(matches!(adopt(CONFIG, &owners[1..]), Some(UmemError::Adopted { unit: "owners", .. })));
        let mut foreign = owners;
        foreign[3] = 1;
        assert!(matches!(adopt(CONFIG, &foreign), Some(UmemError::Adopted { unit: "queues", found: 2, .. })));
    }
}
