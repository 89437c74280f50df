//! What a worker asks of a driver.

use crate::{Burst, FrameCache};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::os::fd::RawFd;

/// One receive and one transmit queue of a port, owned by one worker.
///
/// No call blocks. A call makes a system call only to wake the kernel, and only when the ring asks for it.
///
/// A `Box<dyn Queue>` can be turned into a `Box<dyn Any>`, for whoever opened it to have its own type back.
pub trait Queue: Send + Any {
    /// The number under which the tables know the port.
    fn port(&self) -> u16;

    /// Appends received frames to `burst` until it is full or the ring is empty, sets each frame's ingress
    /// port, and returns how many. Refills the fill ring from `cache`.
    fn rx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize;

    /// Takes frames from the front of `burst` into the transmit ring, and returns how many. What does not
    /// fit stays in `burst`, in order. Frames whose transmission is complete go home to `cache`.
    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize;

    /// Wakes the kernel for whatever it asked for (need_wakeup) and collects completions; a worker calls it
    /// once per loop for each queue that it sent on, until [`Queue::tx_pending`] is zero.
    fn kick(&mut self, cache: &mut FrameCache);

    /// Frames given to [`Queue::tx_burst`] whose transmission is not complete.
    fn tx_pending(&self) -> usize;

    /// Whether the kernel receives for this queue when it is asked to by [`Queue::poll_kernel`] (busy polling).
    fn is_busy_polled(&self) -> bool {
        false
    }

    /// Has the kernel look for packets of a queue that is busy polled: a system call. A worker calls it when it has nothing
    /// else to do, and now and then while it has. While it brings packets, [`Queue::rx_burst`] does so by itself.
    fn poll_kernel(&mut self) {}

    /// What to poll for readability when the worker sleeps; `None` for drivers that have no descriptor.
    fn fd(&self) -> Option<RawFd>;

    /// Counts since the queue was opened, the kernel's included; may make a system call.
    fn stats(&self) -> QueueStats;

    /// What the kernel dropped on its way to this queue since this was last asked; a queue that was handed over goes on
    /// where it was. Makes a system call. Drivers without a kernel beneath them have nothing to tell.
    fn take_kernel_drops(&mut self) -> KernelDrops {
        KernelDrops::default()
    }

    /// Gives back every frame that can be had without the kernel's help, stops receiving, and returns how
    /// many frames remain in kernel rings until the queue is dropped.
    fn close(&mut self, cache: &mut FrameCache) -> usize;
}

/// Packets that came to a queue and not to its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelDrops {
    /// Frames dropped for want of room in the rx ring, or of a buffer.
    pub rx_dropped: u64,
    /// Times that the kernel found the fill ring empty.
    pub fill_empty: u64,
}

/// Counts of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames given to the device.
    pub tx_packets: u64,
    /// Bytes given to the device.
    pub tx_bytes: u64,
    /// Descriptors from the kernel that pointed outside the UMEM; their frames are lost to the pool.
    pub bad_descriptors: u64,
    /// Frames that the kernel dropped for want of room in the rx ring (`rx_ring_full` + `rx_dropped`).
    pub kernel_rx_dropped: u64,
    /// Times that the kernel found the fill ring empty.
    pub kernel_fill_empty: u64,
    /// Descriptors that the kernel refused to receive into or send.
    pub kernel_invalid: u64,
    /// Wake-up system calls made.
    pub wakeups: u64,
}
