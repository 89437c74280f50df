//! What may go wrong on a packet's way from one worker to another, and that it is counted: the owner does not keep
//! up, sleeps, or has closed the port; and workers that go over to other tables.

mod common;

use common::rig::{ADAPTIVE, Rig, dropped};
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::worker::PollMode;
use fairway_pmd::memory::{self, MemoryPeer, MemoryQueue};
use fairway_pmd::{Burst, FrameCache, MAX_BURST, Queue, QueueStats};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Endpoint, Ip, Op, PortKind};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames that a hand-off ring holds.
const RING: usize = 1024;

#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    waiting: AtomicBool,
}

/// A queue at which its worker waits as long as the gate is closed.
struct Gated {
    inner: MemoryQueue,
    gate: Arc<Gate>,
}

impl Queue for Gated {
    fn port(&self) -> u16 {
        self.inner.port()
    }
    fn rx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        while self.gate.closed.load(Ordering::Acquire) {
            self.gate.waiting.store(true, Ordering::Release);
            std::thread::yield_now();
        }
        self.gate.waiting.store(false, Ordering::Release);
        self.inner.rx_burst(cache, burst)
    }
    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        self.inner.tx_burst(cache, burst)
    }
    fn kick(&mut self, cache: &mut FrameCache) {
        self.inner.kick(cache);
    }
    fn tx_pending(&self) -> usize {
        self.inner.tx_pending()
    }
    fn fd(&self) -> Option<RawFd> {
        self.inner.fd()
    }
    fn stats(&self) -> QueueStats {
        self.inner.stats()
    }
    fn close(&mut self, cache: &mut FrameCache) -> usize {
        self.inner.close(cache)
    }
}

/// Two workers, of which the second, who serves pods 1 and 3, waits at pod 3's queue.
fn with_second_worker_held_up() -> (Rig, Arc<Gate>) {
    let mut rig = Rig::new(2, PollMode::Busy);
    let (gate, port) = (Arc::<Gate>::default(), addr::pod_port(3));
    rig.crew.close_port(port);
    let (inner, peer): (_, MemoryPeer) = memory::port(port.0, 1024);
    let queue = Gated { inner, gate: gate.clone() };
    let owner = rig.crew.open_port(port, PortKind::Pod, vec![Box::new(queue)]);
    assert_eq!(owner, 1);
    let mut cache = rig.umem.cache();
    std::mem::replace(&mut rig.peers[port.index()], peer).close(&mut cache);
    gate.closed.store(true, Ordering::Release);
    eventually(|| gate.waiting.load(Ordering::Acquire));
    (rig, gate)
}

fn eventually(check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::yield_now();
    }
}

fn send_to_pod_1(rig: &mut Rig, packets: usize) {
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    (0..packets).for_each(|_| rig.send(addr::pod_port(0), &frame));
    eventually(|| rig.peers[addr::pod_port(0).index()].unread() == 0);
}

#[test]
fn what_a_busy_owner_has_no_room_for_is_dropped_as_handoff_full() {
    let (mut rig, gate) = with_second_worker_held_up();
    send_to_pod_1(&mut rig, RING + 100);
    // The last burst may still be in the first worker's hands.
    std::thread::sleep(Duration::from_millis(100));
    gate.closed.store(false, Ordering::Release);
    let tally = rig.end();
    assert_eq!(dropped(&tally, DropReason::HandoffFull), 100);
    assert_eq!(common::rig::total(&tally, Counter::HandoffIn), RING as u64);
}

#[test]
fn what_reaches_its_owner_after_the_port_closed_is_dropped_as_port_down() {
    let (mut rig, gate) = with_second_worker_held_up();
    send_to_pod_1(&mut rig, 300);
    std::thread::sleep(Duration::from_millis(100));
    rig.crew.close_port(addr::pod_port(1));
    gate.closed.store(false, Ordering::Release);
    let tally = rig.end();
    // The loop that was held up goes on with a burst; the next one obeys first.
    assert_eq!(dropped(&tally, DropReason::PortDown), (300 - MAX_BURST) as u64);
}

#[test]
fn what_a_link_has_no_room_for_is_dropped_as_tx_full() {
    let mut rig = Rig::new(1, PollMode::Busy);
    send_to_pod_1(&mut rig, 1024 + 100);
    let tally = rig.end();
    assert_eq!(dropped(&tally, DropReason::TxFull), 100);
}

#[test]
fn a_handoff_wakes_a_sleeping_owner() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    let mut waits: Vec<Duration> = (0..11)
        .map(|_| {
            // By now the second worker has begun a sleep of 100 ms.
            std::thread::sleep(Duration::from_millis(10));
            let begin = Instant::now();
            let mut cache = rig.umem.cache();
            assert!(rig.peers[addr::pod_port(0).index()].send(&mut cache, &frame));
            rig.crew.waker(0).wake();
            let deadline = begin + Duration::from_secs(20);
            loop {
                if let Some(frame) = rig.peers[addr::pod_port(1).index()].recv() {
                    cache.free(frame);
                    return begin.elapsed();
                }
                assert!(Instant::now() < deadline, "nothing arrives");
                std::thread::yield_now();
            }
        })
        .collect();
    waits.sort();
    assert!(waits[5] < Duration::from_millis(45), "the owner slept on: {waits:?}");
    rig.end();
}

#[test]
fn workers_that_go_over_to_other_tables_forget_what_they_knew_from_the_former() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let elsewhere = |n, port| {
        let endpoint = Endpoint::new(addr::pod_port(port), addr::pod_mac(n));
        Op::SetEndpoint(Ip::v4(addr::pod(n)), endpoint)
    };
    rig.world.apply(elsewhere(3, 2));
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    rig.send(addr::pod_port(0), &frame);
    rig.receive(addr::pod_port(1));

    // As many changes have led to these tables, only other ones.
    let mut other = World::new(WorldConfig::default());
    other.apply(elsewhere(1, 3));
    let generation = |world: &World| world.readers.reader().view().generation();
    assert_eq!(generation(&rig.world), generation(&other));
    rig.crew.change_tables(|| Ok(other.readers.reader())).unwrap();
    rig.crew.settle();
    rig.send(addr::pod_port(0), &frame);
    rig.receive(addr::pod_port(3));
    rig.end();
    other.finish();
}
