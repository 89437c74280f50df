//! Whole workers over the memory driver: several of them, hand-off, both ways of polling, ports that come and
//! go; and the end of each, where every frame is home (I1) and every packet accounted for (I2).

use fairway_dataplane::conntrack::{Conntrack, Timeouts};
use fairway_dataplane::crew::{Crew, Plan, Tally};
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::{proto, tcp_flags};
use fairway_dataplane::worker::PollMode;
use fairway_pmd::memory::{self, MemoryPeer};
use fairway_pmd::{FrameCache, Umem, UmemConfig};
use fairway_tables::stats::{Counter, StatsWriter};
use fairway_tables::{DropReason, Op, PortId, PortKind};
use std::time::{Duration, Instant};

const PODS: u16 = 4;
const PORTS: usize = PODS as usize + 2;
const ADAPTIVE: PollMode = PollMode::Adaptive { spin_us: 20 };

/// Workers, and a peer behind each port.
struct Rig {
    world: World,
    umem: Umem,
    cache: FrameCache,
    crew: Crew,
    conntrack: Conntrack,
    stats: StatsWriter,
    peers: Vec<MemoryPeer>,
}

fn kind(port: usize) -> PortKind {
    match port {
        0 => PortKind::Uplink,
        1 => PortKind::Host,
        _ => PortKind::Pod,
    }
}

impl Rig {
    fn new(workers: usize, poll: PollMode) -> Rig {
        // The world's own worker is not used, its tables are.
        let world = World::new(WorldConfig { pods: PODS, ..WorldConfig::default() });
        let umem = Umem::new(UmemConfig { frames: 4096, frame_size: 2048, huge_pages: false }).unwrap();
        let conntrack = Conntrack::heap(4096, Timeouts::default()).unwrap();
        let stats = StatsWriter::heap(workers as u32, PORTS as u32);
        let cores = vec![None; workers];
        let plan = Plan {
            cores: &cores,
            poll,
            flows: 4096,
            ports: PORTS,
            umem: &umem,
            conntrack: &conntrack,
            stats: &stats,
        };
        let crew = Crew::start(&plan, || Ok(world.readers.reader())).unwrap();
        let mut rig = Rig { world, cache: umem.cache(), umem, crew, conntrack, stats, peers: Vec::new() };
        for port in 0..PORTS {
            let peer = rig.open(port);
            rig.peers.push(peer);
        }
        rig
    }

    fn open(&self, port: usize) -> MemoryPeer {
        let (queue, peer) = memory::port(port as u16, 1024);
        self.crew.open_port(PortId(port as u16), kind(port), vec![Box::new(queue)]);
        peer
    }

    fn wake(&self) {
        (0..self.crew.len()).for_each(|worker| self.crew.waker(worker).wake());
    }

    fn send(&mut self, port: PortId, frame: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.peers[port.index()].send(&mut self.cache, frame) {
            assert!(Instant::now() < deadline, "the worker does not receive");
            self.wake();
            std::thread::yield_now();
        }
    }

    fn receive(&mut self, port: PortId) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(frame) = self.peers[port.index()].recv() {
                let bytes = frame.bytes().to_vec();
                self.cache.free(frame);
                return bytes;
            }
            assert!(Instant::now() < deadline, "nothing arrives");
            self.wake();
            std::thread::yield_now();
        }
    }

    fn end(self) -> Tally {
        let Rig { world, umem, mut cache, crew, peers, .. } = self;
        let tally = crew.stop().unwrap();
        for mut peer in peers {
            peer.close(&mut cache);
        }
        drop(cache);
        assert_eq!(tally.packets_unaccounted, 0, "I2");
        assert_eq!(umem.pool().missing(), 0, "I1");
        world.finish();
        tally
    }
}

fn total(tally: &Tally, counter: Counter) -> u64 {
    tally.counters.iter().map(|counters| counters.get(counter)).sum()
}

/// Every pod sends to every other; with two workers half of the ways cross from one to the other.
fn all_to_all(workers: usize, poll: PollMode) -> Tally {
    let mut rig = Rig::new(workers, poll);
    for round in 0..50u16 {
        for from in 0..PODS {
            for to in (0..PODS).filter(|to| *to != from) {
                let frame =
                    addr::from_pod(from, addr::pod(to)).udp(1000 + round % 5, 7, &round.to_be_bytes());
                rig.send(addr::pod_port(from), &frame);
            }
        }
        for to in 0..PODS {
            for _ in 1..PODS {
                let bytes = rig.receive(addr::pod_port(to));
                assert_eq!(bytes[30..34], addr::pod(to));
                assert_eq!(bytes[42..44], round.to_be_bytes(), "packets of a flow stay in order");
            }
        }
    }
    rig.end()
}

#[test]
fn one_worker_forwards_between_all_pods() {
    let tally = all_to_all(1, ADAPTIVE);
    assert_eq!(total(&tally, Counter::TxPackets), 600);
    assert_eq!(total(&tally, Counter::HandoffOut), 0);
}

#[test]
fn several_workers_hand_packets_to_the_port_owner() {
    for (workers, crossing) in [(2, 8), (3, 10)] {
        let tally = all_to_all(workers, ADAPTIVE);
        assert_eq!(total(&tally, Counter::TxPackets), 600);
        assert_eq!(total(&tally, Counter::HandoffOut), 50 * crossing, "{workers} workers");
        assert_eq!(total(&tally, Counter::HandoffIn), 50 * crossing);
    }
}

#[test]
fn busy_workers_forward_as_well_and_never_sleep() {
    let tally = all_to_all(2, PollMode::Busy);
    assert_eq!(total(&tally, Counter::TxPackets), 600);
    assert_eq!(total(&tally, Counter::Sleeps), 0);
}

#[test]
fn an_idle_adaptive_worker_sleeps_and_a_packet_wakes_it() {
    let mut rig = Rig::new(1, ADAPTIVE);
    std::thread::sleep(Duration::from_millis(500));
    let slept = rig.stats.reader().snapshot().counter(Counter::Sleeps);
    assert!((1..100).contains(&slept), "{slept} sleeps of at most 100 ms in 500 ms");
    rig.send(addr::pod_port(0), &addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x"));
    rig.wake();
    rig.receive(addr::pod_port(1));
    rig.end();
}

#[test]
fn a_port_closes_and_opens_again_while_packets_flow() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let to_closed = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    let to_open = addr::from_pod(0, addr::pod(2)).udp(1, 2, b"y");
    for _ in 0..3 {
        rig.send(addr::pod_port(0), &to_closed);
        rig.receive(addr::pod_port(1));
        rig.crew.close_port(addr::pod_port(1));
        for _ in 0..20 {
            rig.send(addr::pod_port(0), &to_closed);
            rig.send(addr::pod_port(0), &to_open);
            rig.receive(addr::pod_port(2));
        }
        let mut cache = rig.umem.cache();
        let port = addr::pod_port(1).index();
        let fresh = rig.open(port);
        std::mem::replace(&mut rig.peers[port], fresh).close(&mut cache);
        rig.crew.reap();
    }
    rig.send(addr::pod_port(0), &to_closed);
    rig.receive(addr::pod_port(1));
    let tally = rig.end();
    let dropped: u64 = tally.counters.iter().map(|counters| counters.drops(DropReason::PortDown)).sum();
    assert!(dropped >= 3 * 19, "{dropped} packets to a closed port are counted as dropped");
}

#[test]
fn a_table_change_reaches_every_worker() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    rig.send(addr::pod_port(0), &frame);
    rig.receive(addr::pod_port(1));
    rig.world.apply(Op::SetEndpoint(
        fairway_tables::Ip::v4(addr::pod(1)),
        fairway_tables::Endpoint { port: addr::pod_port(3), mac: addr::pod_mac(1) },
    ));
    rig.send(addr::pod_port(0), &frame);
    rig.receive(addr::pod_port(3));
    rig.end();
}

#[test]
fn frames_on_the_way_when_the_end_comes_are_brought_home() {
    for _ in 0..10 {
        let mut rig = Rig::new(2, ADAPTIVE);
        for round in 0..200 {
            let (from, to) = (round % PODS, (round + 1) % PODS);
            rig.send(addr::pod_port(from), &addr::from_pod(from, addr::pod(to)).udp(round, 2, b"x"));
        }
        rig.end();
    }
}

/// A flow would use its entry for up to four seconds more, were its worker not told.
#[test]
fn the_next_packet_of_a_deleted_connection_begins_a_new_one() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let vip = [10, 96, 0, 10];
    let segment = |flags| addr::from_pod(0, vip).tcp(40_000, 80, flags, b"");
    rig.world.set_service(vip, 80, proto::TCP, 1, &[(addr::pod(1), 8080)]);
    for flags in [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::ACK] {
        rig.send(addr::pod_port(0), &segment(flags));
        rig.receive(addr::pod_port(1));
    }
    rig.world.set_service(vip, 80, proto::TCP, 1, &[(addr::pod(2), 8080)]);
    for _ in 0..3 {
        rig.send(addr::pod_port(0), &segment(tcp_flags::ACK));
        rig.receive(addr::pod_port(1));
    }
    let all: Vec<_> = rig.conntrack.iter().map(|connection| connection.conn).collect();
    assert_eq!(all.len(), 1);
    assert!(all.iter().all(|conn| rig.conntrack.remove(*conn)));
    rig.crew.recheck();
    rig.send(addr::pod_port(0), &segment(tcp_flags::ACK));
    rig.receive(addr::pod_port(2));
    assert_eq!(rig.conntrack.iter().count(), 1);
    rig.end();
}
