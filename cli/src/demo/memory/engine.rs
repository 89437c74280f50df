//! One node's engine: a real worker in a thread of its own, over queues of the memory driver. Only where the
//! queues come from differs from the `fairway-dataplane` process.

use super::error::{MemoryError, Result};
use fairway_dataplane::affinity::Affinity;
use fairway_dataplane::conntrack::{Conntrack, Timeouts};
use fairway_dataplane::crew::{Crew, Plan, Tally};
use fairway_dataplane::worker::PollMode;
use fairway_pmd::Umem;
use fairway_pmd::memory::{self, MemoryPeer};
use fairway_tables::stats::{StatsReader, StatsSnapshot, StatsWriter};
use fairway_tables::{PortId, PortKind, ReaderFactory};

/// Port numbers are below this.
pub(super) const MAX_PORTS: usize = 64;
/// Frames that a port holds each way; more than a TCP window's worth of packets.
const PORT_FRAMES: usize = 512;
const FLOWS: usize = 4096;
const CONNECTIONS: u32 = 16_384;
/// Clients of services with session affinity.
const CLIENTS: usize = 1024;
/// Short, because the simulation shares the cores with the workers.
const POLL: PollMode = PollMode::Adaptive { spin_us: 20 };

/// See the module's head.
pub(super) struct Engine {
    crew: Crew,
    stats: StatsReader,
}

impl Engine {
    /// Starts the worker, with no port yet.
    pub(super) fn start(umem: &Umem, tables: &ReaderFactory) -> Result<Engine> {
        let conntrack = Conntrack::heap(CONNECTIONS, Timeouts::default())
            .map_err(|source| MemoryError::System { what: "making the connection table", source })?;
        let affinity = Affinity::heap(CLIENTS)
            .map_err(|source| MemoryError::System { what: "making the table of clients", source })?;
        let stats = StatsWriter::heap(1, MAX_PORTS as u32);
        let plan = Plan {
            cores: &[None],
            poll: POLL,
            flows: FLOWS,
            ports: MAX_PORTS,
            umem,
            conntrack: &conntrack,
            affinity: &affinity,
            stats: &stats,
        };
        let crew = Crew::start(&plan, || Ok(tables.reader()))?;
        Ok(Engine { crew, stats: stats.reader() })
    }

    /// Whether a worker has ended by itself.
    pub(super) fn is_dead(&self) -> bool {
        self.crew.dead().is_some()
    }

    /// Gives the worker a port, and returns the far end of its cable.
    pub(super) fn open(&self, port: PortId, kind: PortKind) -> MemoryPeer {
        let (queue, peer) = memory::port(port.0, PORT_FRAMES);
        self.crew.open_port(port, kind, vec![Box::new(queue)]);
        peer
    }

    /// Says that there are frames to be received: memory queues have no descriptor to sleep on.
    pub(super) fn wake(&self) {
        self.crew.waker(0).wake();
    }

    /// What the worker has counted, as last committed.
    pub(super) fn snapshot(&self) -> StatsSnapshot {
        self.stats.snapshot()
    }

    /// Stops the worker, and returns what it leaves together with its last counts.
    pub(super) fn stop(self) -> Result<(Tally, StatsSnapshot)> {
        let tally = self.crew.stop()?;
        Ok((tally, self.stats.snapshot()))
    }
}
