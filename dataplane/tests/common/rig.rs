//! Whole workers over the memory driver, and a peer behind each port.

use fairway_dataplane::affinity::Affinity;
use fairway_dataplane::conntrack::{Conntrack, Timeouts};
use fairway_dataplane::crew::{Crew, Plan, Tally};
use fairway_dataplane::testkit::{World, WorldConfig};
use fairway_dataplane::worker::PollMode;
use fairway_pmd::memory::{self, MemoryPeer};
use fairway_pmd::{FrameCache, Umem, UmemConfig};
use fairway_tables::stats::{Counter, StatsWriter};
use fairway_tables::{DropReason, PortId, PortKind};
use std::time::{Duration, Instant};

pub(crate) const PODS: u16 = 4;
pub(crate) const PORTS: usize = PODS as usize + 2;
pub(crate) const ADAPTIVE: PollMode = PollMode::Adaptive { spin_us: 20 };

/// Workers, and a peer behind each port.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) umem: Umem,
    pub(crate) cache: FrameCache,
    pub(crate) crew: Crew,
    pub(crate) conntrack: Conntrack,
    pub(crate) stats: StatsWriter,
    pub(crate) peers: Vec<MemoryPeer>,
}

pub(crate) fn kind(port: usize) -> PortKind {
    match port {
        0 => PortKind::Uplink,
        1 => PortKind::Host,
        _ => PortKind::Pod,
    }
}

impl Rig {
    pub(crate) fn new(workers: usize, poll: PollMode) -> Rig {
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
            affinity: &Affinity::heap(64).unwrap(),
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

    pub(crate) fn open(&self, port: usize) -> MemoryPeer {
        let (queue, peer) = memory::port(port as u16, 1024);
        self.crew.open_port(PortId(port as u16), kind(port), vec![Box::new(queue)]);
        peer
    }

    pub(crate) fn wake(&self) {
        (0..self.crew.len()).for_each(|worker| self.crew.waker(worker).wake());
    }

    pub(crate) fn send(&mut self, port: PortId, frame: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.peers[port.index()].send(&mut self.cache, frame) {
            assert!(Instant::now() < deadline, "the worker does not receive");
            self.wake();
            std::thread::yield_now();
        }
    }

    pub(crate) fn receive(&mut self, port: PortId) -> Vec<u8> {
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

    pub(crate) fn end(self) -> Tally {
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

pub(crate) fn total(tally: &Tally, counter: Counter) -> u64 {
    tally.counters.iter().map(|counters| counters.get(counter)).sum()
}

/// Packets that all workers together dropped for a reason.
pub(crate) fn dropped(tally: &Tally, reason: DropReason) -> u64 {
    tally.counters.iter().map(|counters| counters.drops(reason)).sum()
}
