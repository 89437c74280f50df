//! The memory driver: ports joined by rings in this process.
//!
//! Frames move from one end to the other and are never copied, so both ends belong to one UMEM. [`pair`] makes
//! two queues linked like the ends of a veth. [`port`] makes one queue and a [`MemoryPeer`], the far end
//! for a test or a simulated pod.
//!
//! Frames do not know their pool, so each end is closed with a cache before it is dropped, in any order:
//! what one end sent after the other had closed comes back to the sender. An end dropped while frames are in
//! its ring loses them and says so in the log.

use crate::queue::{Queue, QueueStats};
use crate::spsc::{Receiver, Sender, ring};
use crate::{Burst, Frame, FrameCache};
use std::os::fd::RawFd;

/// Two linked queues, each way with room for `capacity` frames (rounded up to a power of two).
pub fn pair(capacity: usize, port_a: u16, port_b: u16) -> (MemoryQueue, MemoryQueue) {
    let (to_b, from_a) = ring(capacity);
    let (to_a, from_b) = ring(capacity);
    (MemoryQueue::new(port_a, from_b, to_b), MemoryQueue::new(port_b, from_a, to_a))
}

/// A queue and its far end, each way with room for `capacity` frames (rounded up to a power of two).
pub fn port(port_id: u16, capacity: usize) -> (MemoryQueue, MemoryPeer) {
    let (to_peer, from_queue) = ring(capacity);
    let (to_queue, from_peer) = ring(capacity);
    (MemoryQueue::new(port_id, from_peer, to_peer), MemoryPeer { rx: from_queue, tx: to_queue })
}

/// One end of a link as a [`Queue`].
pub struct MemoryQueue {
    port: u16,
    rx: Receiver<Frame>,
    tx: Sender<Frame>,
    stats: QueueStats,
}

impl MemoryQueue {
    fn new(port: u16, rx: Receiver<Frame>, tx: Sender<Frame>) -> MemoryQueue {
        MemoryQueue { port, rx, tx, stats: QueueStats::default() }
    }
}

impl Queue for MemoryQueue {
    fn port(&self) -> u16 {
        self.port
    }

    #[inline]
    fn rx_burst(&mut self, _cache: &mut FrameCache, burst: &mut Burst) -> usize {
        let mut bytes = 0;
        let port = self.port;
        let received = self.rx.receive(burst.remaining_capacity(), |mut frame| {
            frame.set_port(port);
            bytes += frame.len() as u64;
            burst.push(frame);
        });
        self.stats.rx_packets += received as u64;
        self.stats.rx_bytes += bytes;
        received
    }

    #[inline]
    fn tx_burst(&mut self, _cache: &mut FrameCache, burst: &mut Burst) -> usize {
        let mut bytes = 0;
        let sent = self.tx.send_front(burst, |frame| bytes += frame.len() as u64);
        self.stats.tx_packets += sent as u64;
        self.stats.tx_bytes += bytes;
        sent
    }

    fn kick(&mut self, _cache: &mut FrameCache) {}

    /// Zero: a frame in the link is the far end's.
    fn tx_pending(&self) -> usize {
        0
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Gives back every frame on the way here, and those on the way out if the far end is closed.
    fn close(&mut self, cache: &mut FrameCache) -> usize {
        close(&mut self.rx, &mut self.tx, cache);
        0
    }
}

impl Drop for MemoryQueue {
    fn drop(&mut self) {
        warn_of_loss(&mut self.rx, &self.tx);
    }
}

/// The far end of a [`MemoryQueue`], for tests and simulated pods.
pub struct MemoryPeer {
    rx: Receiver<Frame>,
    tx: Sender<Frame>,
}

impl MemoryPeer {
    /// Sends a packet. Returns `false` if it does not fit a frame, no frame is free, or the link is full or
    /// closed.
    pub fn send(&mut self, cache: &mut FrameCache, packet: &[u8]) -> bool {
        let Some(mut frame) = cache.alloc() else { return false };
        if !frame.copy_from(packet) {
            cache.free(frame);
            return false;
        }
        match self.tx.send(frame) {
            Ok(()) => true,
            Err(frame) => {
                cache.free(frame);
                false
            }
        }
    }

    /// Sends a frame, or hands it back if the link is full or closed.
    pub fn send_frame(&mut self, frame: Frame) -> Result<(), Frame> {
        self.tx.send(frame)
    }

    /// Sends from the front of `burst` what the link has room for, and returns how many.
    pub fn send_burst(&mut self, burst: &mut Burst) -> usize {
        self.tx.send_front(burst, |_| ())
    }

    /// Takes the next packet that the queue sent.
    pub fn recv(&mut self) -> Option<Frame> {
        self.rx.recv()
    }

    /// Appends packets that the queue sent to `burst` until it is full, and returns how many.
    pub fn recv_burst(&mut self, burst: &mut Burst) -> usize {
        self.rx.receive(burst.remaining_capacity(), |frame| burst.push(frame))
    }

    /// Packets sent that the queue has not received yet.
    pub fn unread(&self) -> usize {
        self.tx.len()
    }

    /// Receives no more, and gives back every frame on the way here, and those on the way out if the queue is
    /// closed.
    pub fn close(&mut self, cache: &mut FrameCache) {
        close(&mut self.rx, &mut self.tx, cache);
    }
}

impl Drop for MemoryPeer {
    fn drop(&mut self) {
        warn_of_loss(&mut self.rx, &self.tx);
    }
}

fn close(rx: &mut Receiver<Frame>, tx: &mut Sender<Frame>, cache: &mut FrameCache) {
    while let Some(frame) = rx.recv() {
        cache.free(frame);
    }
    rx.close();
    while let Some(frame) = tx.reclaim() {
        cache.free(frame);
    }
}

fn warn_of_loss(rx: &mut Receiver<Frame>, tx: &Sender<Frame>) {
    // What is on the way here after a close is still the far end's to take back.
    let lost = if tx.is_closed() { tx.len() } else { 0 };
    if lost > 0 {
        tracing::error!(frames = lost, "a memory port was dropped before it was closed; its frames are lost");
    }
    rx.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Umem, UmemConfig};
    use proptest::prelude::*;

    fn umem() -> Umem {
        Umem::new(UmemConfig { frames: 256, frame_size: 2048, huge_pages: false }).unwrap()
    }

    #[test]
    fn a_frame_sent_on_one_end_arrives_on_the_other_without_a_copy() {
        let umem = umem();
        let mut cache = umem.cache();
        let (mut a, mut b) = pair(4, 1, 2);
        let mut burst = Burst::new();
        let mut addresses = Vec::new();
        for n in 0..6u8 {
            let mut frame = cache.alloc().unwrap();
            assert!(frame.copy_from(&[n; 60]));
            addresses.push(umem.offset_of(&frame));
            burst.push(frame);
        }
        assert_eq!(a.tx_burst(&mut cache, &mut burst), 4);
        assert_eq!(
            burst.iter().map(|frame| frame.bytes()[0]).collect::<Vec<_>>(),
            [4, 5],
            "the rest, in order"
        );
        let mut received = Burst::new();
        assert_eq!(b.rx_burst(&mut cache, &mut received), 4);
        for (n, frame) in received.iter().enumerate() {
            assert_eq!((frame.bytes(), frame.port()), (&[n as u8; 60][..], 2));
            assert_eq!(umem.offset_of(frame), addresses[n]);
        }
        assert_eq!((a.stats().tx_packets, a.stats().tx_bytes), (4, 240));
        assert_eq!((b.stats().rx_packets, b.stats().rx_bytes), (4, 240));
        cache.free_burst(&mut burst);
        cache.free_burst(&mut received);
        drop(cache);
        assert_eq!(umem.pool().missing(), 0);
    }

    #[test]
    fn a_peer_that_goes_leaves_the_queue_unable_to_send_and_loses_no_frame() {
        let umem = umem();
        let mut cache = umem.cache();
        let (mut queue, mut peer) = port(3, 8);
        assert!(peer.send(&mut cache, &[1; 60]));
        assert!(!peer.send(&mut cache, &[1; 4000]), "longer than a frame");
        let mut burst = Burst::new();
        burst.push(cache.alloc().unwrap());
        assert_eq!(queue.tx_burst(&mut cache, &mut burst), 1);
        drop(peer);
        burst.push(cache.alloc().unwrap());
        assert_eq!(queue.tx_burst(&mut cache, &mut burst), 0);
        cache.free_burst(&mut burst);
        assert_eq!(queue.close(&mut cache), 0);
        drop((queue, cache));
        assert_eq!(umem.pool().missing(), 0);
    }

    proptest! {
        #[test]
        fn frames_are_conserved_whatever_both_ends_do_and_whoever_closes_first(
            steps in prop::collection::vec((0u8..4, 0usize..70), 0..100),
            a_first in any::<bool>(),
        ) {
            let umem = umem();
            let mut cache = umem.cache();
            let (mut a, mut b) = pair(32, 1, 2);
            for (what, n) in steps {
                let (queue, send) = if what & 1 == 0 { (&mut a, what & 2 == 0) } else { (&mut b, what & 2 == 0) };
                let mut burst = Burst::new();
                if send {
                    burst.extend((0..n.min(64)).map_while(|_| cache.alloc()));
                    queue.tx_burst(&mut cache, &mut burst);
                } else {
                    queue.rx_burst(&mut cache, &mut burst);
                }
                cache.free_burst(&mut burst);
            }
            let (first, second) = if a_first { (&mut a, &mut b) } else { (&mut b, &mut a) };
            first.close(&mut cache);
            let mut burst: Burst = cache.alloc().into_iter().collect();
            second.tx_burst(&mut cache, &mut burst);
            prop_assert_eq!(burst.len(), 1, "a closed end takes nothing");
            cache.free_burst(&mut burst);
            second.close(&mut cache);
            drop(cache);
            prop_assert_eq!(umem.pool().missing(), 0);
        }
    }
}
