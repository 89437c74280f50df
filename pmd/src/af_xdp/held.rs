//! What brings a socket's frames home: the order of closing, and the wait for the kernel to let go.

use super::sys::{RingKind, Socket};
use super::{Mode, Registry};
use crate::Umem;
use crate::lent::Lent;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// How long closing waits for the kernel to let go of the UMEM.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// A socket and its entry among the possible roots.
pub(super) struct BoundSocket {
    pub(super) socket: Option<Socket>,
    pub(super) fd: RawFd,
    pub(super) mode: Mode,
    pub(super) registry: Registry,
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let mut bound = self.registry.lock();
        bound.of(self.mode).retain(|fd| *fd != self.fd);
        self.socket = None;
    }
}

/// The chunks that the socket holds. Brings them home when dropped, which must be after the socket.
pub(super) struct InKernel {
    pub(super) lent: Lent,
    pub(super) umem: Umem,
    pub(super) ifindex: u32,
    pub(super) queue: u32,
    /// A socket of the same network namespace, to ask with whether the queue is free again.
    pub(super) probe: Option<Socket>,
    /// Whether closing the socket was not enough: its device or packets on their way may use the UMEM.
    pub(super) confirm: bool,
}

impl Drop for InKernel {
    fn drop(&mut self) {
        if self.lent.count() == 0 {
            return;
        }
        if self.confirm && !self.released() {
            let (ifindex, queue, frames) = (self.ifindex, self.queue, self.lent.count());
            tracing::error!(
                ifindex,
                queue,
                frames,
                "the kernel did not let go of the socket's frames in time; they are lost"
            );
            return;
        }
        let mut cache = self.umem.cache();
        self.lent.reclaim(&mut cache);
    }
}

impl InKernel {
    /// Waits until the kernel has torn the socket's buffer pool down, which it does from a work queue after the
    /// last packet in flight is gone and the device has let go. Until then the queue refuses another
    /// socket with EBUSY: so we try to bind one, in copy mode and on a single page.
    fn released(&mut self) -> bool {
        let Some(probe) = self.probe.take() else { return false };
        let (base, _) = self.umem.region();
        let ready = probe
            .register(base, 4096, self.umem.frame_size())
            .and_then(|()| probe.set_ring_size(RingKind::Fill, 2))
            .and_then(|()| probe.set_ring_size(RingKind::Completion, 2))
            .and_then(|()| probe.set_ring_size(RingKind::Tx, 2));
        if ready.is_err() {
            return false;
        }
        let until = Instant::now() + RELEASE_WAIT;
        loop {
            match probe.bind(self.ifindex, self.queue, libc::XDP_COPY, None) {
                Ok(()) => return true,
                // The netdev or the queue is gone, and the pool went with it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => {
                    return true;
                }
                Err(_) if Instant::now() >= until => return false,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

#[cfg(test)]
#[path = "../../tests/netns/mod.rs"]
mod netns;

#[cfg(test)]
mod tests {
    use super::netns::{Netns, privileged};
    use crate::af_xdp::{AfXdp, AfXdpConfig};
    use crate::{Umem, UmemConfig};

    fn veth() -> (Netns, Netns, Umem) {
        let (engine, pod) = (Netns::new("e"), Netns::new("p"));
        engine.veth("va", &pod, "10.9.0.1/24", 1);
        let umem = Umem::new(UmemConfig { frames: 1024, frame_size: 2048, huge_pages: false }).unwrap();
        (engine, pod, umem)
    }

    #[test]
    fn frames_that_need_it_come_home_once_the_kernel_has_freed_the_queue() {
        if !privileged("waiting for the kernel to free a queue") {
            return;
        }
        let (engine, _pod, umem) = veth();
        engine.run(|| {
            let mut va = AfXdp::new(&umem).open("va", 0, &AfXdpConfig::pod()).unwrap().remove(0);
            va.kernel.confirm = true;
            drop(va);
        });
        assert_eq!(umem.pool().missing(), 0);
    }

    #[test]
    fn frames_stay_out_if_the_kernel_does_not_free_the_queue() {
        if !privileged("a queue that stays busy") {
            return;
        }
        let (engine, _pod, umem) = veth();
        engine.run(|| {
            let mut va = AfXdp::new(&umem).open("va", 0, &AfXdpConfig::pod()).unwrap().remove(0);
            va.kernel.confirm = true;
            // A mapping or a copy of the descriptor, in a child process say, keeps a socket open.
            let copy = va.socket.socket.as_ref().unwrap().duplicate();
            drop(va);
            assert_eq!(umem.pool().missing(), AfXdpConfig::pod().fill_min as usize);
            drop(copy);
        });
    }
}
