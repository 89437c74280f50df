//! One AF_XDP socket as a queue.

use super::Mode;
use super::fill::Fill;
use super::held::{BoundSocket, InKernel};
use super::ring::{ADDRESS_WORDS, Consumer, DESCRIPTOR_WORDS, Producer, pack, unpack};
use super::sys::{Socket, Wake};
use crate::lent::Lent;
use crate::queue::{KernelDrops, Queue, QueueStats};
use crate::{Burst, FrameCache};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Copy mode sends at most this many descriptors per `sendto` (`TX_BATCH_SIZE`), unless set otherwise.
const KERNEL_TX_BATCH: u32 = 32;
/// How long closing waits for packets that the kernel is sending.
const TX_WAIT: Duration = Duration::from_millis(50);
/// While the device is down, kicks between two tries to send.
const DOWN_SKIPS: u32 = 255;
/// Shortest packet that is given to the kernel: an Ethernet header.
const MIN_PACKET: usize = 14;

/// One socket on one receive queue of a netdev.
///
/// Dropping it blocks for a few milliseconds (the kernel waits for its readers), and longer if packets are
/// still being sent: a worker closes it and leaves the dropping to another thread. The order in which the
/// fields are dropped is what brings the frames home: the rings are unmapped (a mapping holds the socket
/// open), the socket is closed, and then, with the kernel out, the chunks are taken back.
pub struct AfXdpQueue {
    pub(super) rings: Rings,
    pub(super) socket: BoundSocket,
    pub(super) kernel: InKernel,
    pub(super) port: u16,
    pub(super) mode: Mode,
    pub(super) fill: Fill,
    /// Frames given to the fill ring and not yet received.
    pub(super) filling: u32,
    /// Frames given to the tx ring and not yet completed.
    pub(super) sending: u32,
    pub(super) busy_poll: bool,
    /// Whether the last busy poll brought packets.
    pub(super) polls_pay: bool,
    pub(super) closed: bool,
    /// Whether the device is down or gone, as of the last wake-up.
    pub(super) down: bool,
    /// Kicks to let pass before the next try on a device that is down.
    pub(super) skip_kicks: u32,
    pub(super) stats: QueueStats,
}

/// The rings of one socket.
pub(super) struct Rings {
    pub(super) fill: Producer<ADDRESS_WORDS>,
    pub(super) completion: Consumer<ADDRESS_WORDS>,
    pub(super) rx: Consumer<DESCRIPTOR_WORDS>,
    pub(super) tx: Producer<DESCRIPTOR_WORDS>,
}

impl AfXdpQueue {
    /// Whether the device works on the UMEM itself.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Index of the netdev.
    pub fn ifindex(&self) -> u32 {
        self.kernel.ifindex
    }

    /// Number of the receive queue.
    pub fn queue_id(&self) -> u32 {
        self.kernel.queue
    }

    /// The socket, for the XSKMAP.
    pub fn raw_fd(&self) -> RawFd {
        self.socket.fd
    }

    /// Whether the kernel said at the last wake-up that the device is down or gone.
    pub fn is_down(&self) -> bool {
        self.down
    }

    fn wake(&mut self, wake: impl FnOnce(&Socket) -> Wake) -> Wake {
        let Some(socket) = &self.socket.socket else { return Wake::Down };
        self.stats.wakeups += 1;
        let outcome = wake(socket);
        self.down = outcome == Wake::Down;
        self.skip_kicks = if self.down { DOWN_SKIPS } else { 0 };
        outcome
    }

    /// Takes finished frames out of the completion ring.
    #[inline]
    fn complete(&mut self, cache: &mut FrameCache) {
        if self.sending == 0 {
            return;
        }
        let done = self.rings.completion.available();
        if done == 0 {
            return;
        }
        for _ in 0..done {
            let [addr] = self.rings.completion.pop();
            match self.kernel.lent.take(addr, 0) {
                Some(frame) => {
                    cache.free(frame);
                    self.sending = self.sending.saturating_sub(1);
                }
                None => self.stats.bad_descriptors += 1,
            }
        }
        self.rings.completion.release();
    }

    /// Moves received packets to `burst`, at most what it has room for.
    #[inline]
    fn receive(&mut self, burst: &mut Burst) -> usize {
        let ready = self.rings.rx.available().min(burst.remaining_capacity() as u32);
        if ready == 0 {
            return 0;
        }
        let before = burst.len();
        let mut bytes = 0;
        for _ in 0..ready {
            let (addr, len, _) = unpack(self.rings.rx.pop());
            match self.kernel.lent.take(addr, len) {
                Some(mut frame) => {
                    // Whoever received it was another CPU or a device.
                    frame.prefetch(0);
                    frame.set_port(self.port);
                    bytes += u64::from(len);
                    burst.push(frame);
                }
                None => self.stats.bad_descriptors += 1,
            }
        }
        self.rings.rx.release();
        let received = burst.len() - before;
        self.filling = self.filling.saturating_sub(received as u32);
        self.stats.rx_packets += received as u64;
        self.stats.rx_bytes += bytes;
        received
    }

    /// Sends what is in the tx ring: wakes the kernel until it has taken everything or makes no headway.
    fn push_out(&mut self) {
        if self.skip_kicks > 0 {
            self.skip_kicks -= 1;
            return;
        }
        let mut left = self.rings.tx.pending();
        let mut rounds = left / KERNEL_TX_BATCH + 2;
        while left > 0 && rounds > 0 && self.rings.tx.needs_wakeup() {
            rounds -= 1;
            let outcome = self.wake(Socket::wake_tx);
            let before = std::mem::replace(&mut left, self.rings.tx.pending());
            if outcome == Wake::Down || left == before {
                break;
            }
        }
    }
}

impl Queue for AfXdpQueue {
    fn port(&self) -> u16 {
        self.port
    }

    fn rx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        if self.closed {
            return 0;
        }
        let received = self.receive(burst);
        if received > 0 {
            self.fill.adjust(cache);
        }
        let missing = self.fill.missing(self.filling);
        if missing > 0 {
            self.filling += self.rings.prefill(&mut self.kernel.lent, cache, missing);
        }
        // A poll that brings nothing costs as much as forwarding several packets: where the kernel had none the last time,
        // the worker says when to ask again.
        if received == 0 && self.polls_pay {
            self.poll_kernel();
        } else if received == 0 && self.rings.fill.needs_wakeup() {
            self.wake(Socket::wake_rx);
        }
        received
    }

    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        self.complete(cache);
        if self.closed || burst.is_empty() {
            return 0;
        }
        let count = self.rings.tx.free(burst.len() as u32).min(burst.len() as u32) as usize;
        for frame in burst.drain(..count) {
            let len = frame.len();
            if len < MIN_PACKET {
                // The kernel skips an empty descriptor without completing it, and the chunk would be out
                // until the socket is closed.
                self.stats.kernel_invalid += 1;
                cache.free(frame);
                continue;
            }
            match self.kernel.lent.lend(frame) {
                Ok(addr) => {
                    self.rings.tx.push(pack(addr, len as u32));
                    self.sending += 1;
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += len as u64;
                }
                Err(frame) => cache.free(frame),
            }
        }
        self.rings.tx.submit();
        count
    }

    fn kick(&mut self, cache: &mut FrameCache) {
        self.complete(cache);
        self.push_out();
        self.complete(cache);
    }

    fn tx_pending(&self) -> usize {
        self.sending as usize
    }

    fn is_busy_polled(&self) -> bool {
        self.busy_poll
    }

    fn poll_kernel(&mut self) {
        if self.busy_poll && !self.closed {
            self.wake(Socket::wake_rx);
            self.polls_pay = self.rings.rx.available() > 0;
        }
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.socket.fd)
    }

    fn stats(&self) -> QueueStats {
        let mut stats = self.stats;
        if let Some(Ok(kernel)) = self.socket.socket.as_ref().map(Socket::statistics) {
            stats.kernel_rx_dropped = kernel.rx_dropped + kernel.rx_ring_full;
            stats.kernel_fill_empty = kernel.rx_fill_ring_empty_descs;
            stats.kernel_invalid += kernel.rx_invalid_descs + kernel.tx_invalid_descs;
        }
        stats
    }

    fn take_kernel_drops(&mut self) -> KernelDrops {
        let now = self.stats();
        // What was told already is kept here, and so handed over with the rest.
        let told = &mut self.stats;
        let new = KernelDrops {
            rx_dropped: now.kernel_rx_dropped.saturating_sub(told.kernel_rx_dropped),
            fill_empty: now.kernel_fill_empty.saturating_sub(told.kernel_fill_empty),
        };
        told.kernel_rx_dropped = now.kernel_rx_dropped;
        told.kernel_fill_empty = now.kernel_fill_empty;
        new
    }

    fn close(&mut self, cache: &mut FrameCache) -> usize {
        self.closed = true;
        let mut burst = Burst::new();
        while self.receive(&mut burst) > 0 {
            cache.free_burst(&mut burst);
        }
        self.kick(cache);
        self.kernel.lent.count()
    }
}

impl Drop for AfXdpQueue {
    fn drop(&mut self) {
        let mut cache = self.kernel.umem.cache();
        let until = Instant::now() + TX_WAIT;
        self.kick(&mut cache);
        while self.sending > 0 && !self.down && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            self.kick(&mut cache);
        }
        self.kernel.confirm |= self.mode == Mode::ZeroCopy || self.sending > 0;
    }
}

impl Rings {
    /// Gives the kernel up to `wanted` frames to receive into and returns how many.
    #[inline]
    pub(super) fn prefill(&mut self, lent: &mut Lent, cache: &mut FrameCache, wanted: u32) -> u32 {
        let mut given = 0;
        for _ in 0..self.fill.free(wanted).min(wanted) {
            let Some(frame) = cache.alloc() else { break };
            match lent.lend(frame) {
                Ok(addr) => {
                    self.fill.push([addr]);
                    given += 1;
                }
                Err(frame) => cache.free(frame),
            }
        }
        if given > 0 {
            self.fill.submit();
        }
        given
    }
}
