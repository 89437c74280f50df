//! The kernel's AF_XDP interface (`linux/if_xdp.h`), one method per request.

// UNSAFETY: system calls and a mapping of kernel memory.
#![allow(unsafe_code)]

use super::area::Area;
use super::ring::Offsets;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): descriptors sent per `sendto` in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// The four rings of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingKind {
    Fill,
    Completion,
    Rx,
    Tx,
}

impl RingKind {
    fn option(self) -> libc::c_int {
        match self {
            RingKind::Fill => libc::XDP_UMEM_FILL_RING,
            RingKind::Completion => libc::XDP_UMEM_COMPLETION_RING,
            RingKind::Rx => libc::XDP_RX_RING,
            RingKind::Tx => libc::XDP_TX_RING,
        }
    }

    fn page_offset(self) -> libc::off_t {
        match self {
            RingKind::Fill => libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
            RingKind::Completion => libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
            RingKind::Rx => libc::XDP_PGOFF_RX_RING,
            RingKind::Tx => libc::XDP_PGOFF_TX_RING,
        }
    }
}

/// What a wake-up call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The kernel did what it had to do.
    Done,
    /// There is more to do, or no room now.
    Later,
    /// The device is down or gone.
    Down,
}

/// An AF_XDP socket.
pub(super) struct Socket {
    fd: OwnedFd,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Socket {
    pub(super) fn new() -> io::Result<Socket> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: a descriptor that was just opened and that nobody else knows.
        Ok(Socket { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// A socket that a former image of this process opened.
    pub(super) fn adopt(fd: OwnedFd) -> Socket {
        Socket { fd }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// A second descriptor of the same socket.
    #[cfg(test)]
    pub(super) fn duplicate(&self) -> OwnedFd {
        self.fd.try_clone().unwrap()
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is readable for `len` bytes during the call.
        check(unsafe {
            libc::setsockopt(self.raw_fd(), level, option, std::ptr::from_ref(value).cast(), len)
        })?;
        Ok(())
    }

    /// # Safety
    /// Any bytes must be a valid `T`.
    unsafe fn get<T: Copy>(&self, option: libc::c_int) -> io::Result<T> {
        let mut value = std::mem::MaybeUninit::<T>::zeroed();
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `value`.
        check(unsafe {
            libc::getsockopt(self.raw_fd(), libc::SOL_XDP, option, value.as_mut_ptr().cast(), &raw mut len)
        })?;
        // SAFETY: zeroed or written, and any bytes are valid (the caller).
        Ok(unsafe { value.assume_init() })
    }

    /// Registers memory as the socket's UMEM.
    pub(super) fn register(&self, base: *mut u8, bytes: usize, chunk_size: usize) -> io::Result<()> {
        // SAFETY: plain integers, for which zero is valid.
        let mut registration: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
        registration.addr = base as u64;
        registration.len = bytes as u64;
        registration.chunk_size = chunk_size as u32;
        self.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
    }

    pub(super) fn set_ring_size(&self, ring: RingKind, entries: u32) -> io::Result<()> {
        self.set(libc::SOL_XDP, ring.option(), &entries)
    }

    /// Maps a ring with entries of `entry_bytes`.
    pub(super) fn map(
        &self,
        ring: RingKind,
        entries: u32,
        entry_bytes: usize,
    ) -> io::Result<(Area, Offsets)> {
        // SAFETY: plain integers.
        let all: libc::xdp_mmap_offsets = unsafe { self.get(libc::XDP_MMAP_OFFSETS)? };
        let offsets = match ring {
            RingKind::Fill => all.fr,
            RingKind::Completion => all.cr,
            RingKind::Rx => all.rx,
            RingKind::Tx => all.tx,
        };
        let offsets = Offsets {
            producer: offsets.producer,
            consumer: offsets.consumer,
            flags: offsets.flags,
            desc: offsets.desc,
        };
        let bytes = offsets.desc as usize + entries as usize * entry_bytes;
        // SAFETY: a mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                self.raw_fd(),
                ring.page_offset(),
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        // SAFETY: mapped just now, page-aligned, and given up by `unmap` alone.
        Ok((unsafe { Area::new(base, bytes, unmap) }, offsets))
    }

    /// Binds to a queue of a netdev; `root` is the descriptor of the bound socket whose UMEM to share.
    pub(super) fn bind(&self, ifindex: u32, queue: u32, flags: u16, root: Option<RawFd>) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: root.map_or(0, |fd| fd as u32),
        };
        let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
        // SAFETY: `address` is readable for `len` bytes.
        check(unsafe { libc::bind(self.raw_fd(), (&raw const address).cast(), len) })?;
        Ok(())
    }

    /// Whether the bound socket came to be in zero-copy mode.
    pub(super) fn is_zero_copy(&self) -> io::Result<bool> {
        // SAFETY: a plain integer.
        let options: libc::xdp_options = unsafe { self.get(libc::XDP_OPTIONS)? };
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        // SAFETY: plain integers.
        unsafe { self.get(libc::XDP_STATISTICS) }
    }

    /// Busy polling of the queue's NAPI context from our own system calls.
    pub(super) fn set_busy_poll(&self, timeout_us: u32, budget: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1i32)?;
        self.set(libc::SOL_SOCKET, libc::SO_BUSY_POLL, &(timeout_us as i32))?;
        self.set(libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &(budget as i32))
    }

    /// Room for copies of packets in flight (copy mode counts each against the socket's send buffer).
    pub(super) fn set_send_buffer(&self, bytes: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(bytes as i32))
    }

    /// Descriptors sent per wake-up in copy mode; Linux before 6.17 has no such option and sends 32.
    pub(super) fn set_tx_budget(&self, descriptors: u32) -> io::Result<()> {
        self.set(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &descriptors)
    }

    pub(super) fn wake_tx(&self) -> Wake {
        // SAFETY: no data and no address.
        let sent = unsafe {
            libc::sendto(self.raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        outcome(sent)
    }

    pub(super) fn wake_rx(&self) -> Wake {
        // SAFETY: no buffer and no address.
        let received = unsafe {
            libc::recvfrom(
                self.raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        outcome(received)
    }
}

fn outcome(result: isize) -> Wake {
    if result >= 0 {
        return Wake::Done;
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Wake::Down,
        // EAGAIN: the batch is full. ENOBUFS: no memory now. EBUSY: the device dropped the packet that was its
        // turn. In each case the rest is still there.
        _ => Wake::Later,
    }
}

fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: a mapping made in `Socket::map`, given up once by its only owner.
    unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
}
