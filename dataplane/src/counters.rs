//! A worker's private counts, committed to shared memory every so many loops.

use fairway_pmd::KernelDrops;
use fairway_tables::stats::{Counter, PortCounters, WorkerStats};
use fairway_tables::{DropReason, PortId};

/// See the module's head. All counts start where the last process left them, or at zero.
#[derive(Clone, Debug)]
pub struct Counters {
    values: [u64; Counter::COUNT],
    drops: [u64; DropReason::COUNT],
    ports: Vec<PortCounters>,
}

impl Counters {
    /// Zero everywhere, for ports numbered below `ports`.
    pub fn new(ports: usize) -> Counters {
        Counters {
            values: [0; Counter::COUNT],
            drops: [0; DropReason::COUNT],
            ports: vec![PortCounters::default(); ports],
        }
    }

    /// The counts that shared memory holds for this worker.
    pub fn resume(stats: &WorkerStats, ports: usize) -> Counters {
        let mut counters = Counters::new(ports);
        for counter in Counter::ALL {
            counters.values[*counter as usize] = stats.counter(*counter);
        }
        for reason in DropReason::ALL {
            counters.drops[*reason as usize] = stats.drops(*reason);
        }
        for (index, port) in counters.ports.iter_mut().enumerate() {
            *port = stats.port(PortId(index as u16));
        }
        counters
    }

    /// Adds to a counter.
    #[inline(always)]
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.values[counter as usize] += n;
    }

    /// Counts a dropped packet.
    #[inline(always)]
    pub fn dropped(&mut self, reason: DropReason, ingress: u16) {
        self.drops[reason as usize] += 1;
        if let Some(port) = self.ports.get_mut(usize::from(ingress)) {
            port.drops += 1;
        }
    }

    /// Counts packets received on a port.
    #[inline(always)]
    pub fn received(&mut self, port: u16, packets: u64, bytes: u64) {
        self.values[Counter::RxPackets as usize] += packets;
        self.values[Counter::RxBytes as usize] += bytes;
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.rx_packets += packets;
            port.rx_bytes += bytes;
        }
    }

    /// Counts packets that a port took; those to the host's own stack count apart.
    #[inline(always)]
    pub fn sent(&mut self, port: u16, to_host: bool, packets: u64, bytes: u64) {
        let counter = if to_host { Counter::HostPackets } else { Counter::TxPackets };
        self.values[counter as usize] += packets;
        self.values[Counter::TxBytes as usize] += bytes;
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.tx_packets += packets;
            port.tx_bytes += bytes;
        }
    }

    /// Counts what the kernel dropped before it came in by a port: packets that were never received.
    pub fn kernel_dropped(&mut self, port: u16, drops: KernelDrops) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.kernel_rx_dropped += drops.rx_dropped;
            port.kernel_fill_empty += drops.fill_empty;
        }
    }

    /// A counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// Packets dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Packets dropped for any reason.
    pub fn all_drops(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Received and made minus everything that became of the packets: zero by invariant I2 when none is in flight.
    /// Packets handed to another worker are received there.
    pub fn unaccounted(&self) -> i128 {
        let value = |counter| i128::from(self.get(counter));
        value(Counter::RxPackets) + value(Counter::HandoffIn) + value(Counter::GeneratedPackets)
            - value(Counter::TxPackets)
            - value(Counter::HostPackets)
            - value(Counter::HandoffOut)
            - i128::from(self.all_drops())
    }

    /// Publishes everything.
    pub fn commit(&self, stats: &WorkerStats) {
        for counter in Counter::ALL {
            stats.set_counter(*counter, self.values[*counter as usize]);
        }
        for reason in DropReason::ALL {
            stats.set_drop(*reason, self.drops[*reason as usize]);
        }
        for (index, port) in self.ports.iter().enumerate() {
            if *port != PortCounters::default() {
                stats.set_port(PortId(index as u16), *port);
            }
        }
    }
}
