//! What a worker keeps from burst to burst.

use crate::affinity::Affinity;
use crate::clock::{self, Now};
use crate::conntrack::Conntrack;
use crate::counters::Counters;
use crate::flow::{FlowEntry, FlowEntry6, FlowTable, Templates};
use crate::fragment::{Bin, Fragments};
use crate::freshness::Freshness;
use crate::icmp_error::Limiter;
use crate::parse::Ingress;
use crate::process::Scratch;
use crate::stages::Stages;
use fairway_pmd::FrameCache;
use fairway_tables::stats::Counter;
use fairway_tables::{PortId, Settings, View};

/// A worker's memory: private, except the tables of connections and of clients.
pub struct WorkerState {
    /// IPv4 flows of packets that this worker received.
    pub flows: FlowTable<FlowEntry>,
    /// IPv6 flows.
    pub flows6: FlowTable<FlowEntry6>,
    /// Headers to put before packets.
    pub templates: Templates,
    /// Connections, shared by all workers.
    pub conntrack: Conntrack,
    /// Which backends clients were given last, shared by all workers.
    pub affinity: Affinity,
    /// Private counts.
    pub counters: Counters,
    /// Cost of the steps.
    pub stages: Stages,
    /// How many ICMP errors may still be sent.
    pub icmp_limit: Limiter,
    /// Datagrams of which fragments are under way.
    pub fragments: Fragments,
    /// Which flow entries still hold.
    pub freshness: Freshness,
    /// Whether SYNs may announce no larger segments than their way takes.
    pub(crate) clamp_mss: bool,
    /// Clocks between two looks at what changed, and the time of the last.
    look_every: u64,
    looked_at: u64,
    ports: Vec<Option<Ingress>>,
    random: u64,
    conntrack_cursor: u32,
    /// Room for what is learnt about the packets of a burst; absent while one is processed.
    pub(crate) scratch: Option<Box<Scratch>>,
}

impl WorkerState {
    /// A worker that knows no flow. `flows`: how many it serves at best speed; `ports`: numbers below this.
    pub fn new(flows: usize, ports: usize, conntrack: Conntrack, affinity: Affinity) -> WorkerState {
        WorkerState {
            flows: FlowTable::new(flows, crate::random_seed()),
            flows6: FlowTable::new(flows, crate::random_seed()),
            templates: Templates::new(),
            conntrack,
            affinity,
            counters: Counters::new(ports),
            stages: Stages::new(),
            icmp_limit: Limiter::new(ports),
            fragments: Fragments::new(crate::random_seed()),
            freshness: Freshness::new(),
            clamp_mss: false,
            look_every: 0,
            looked_at: 0,
            ports: vec![None; ports],
            random: crate::random_seed() | 1,
            conntrack_cursor: crate::random_seed() as u32,
            scratch: Some(Box::default()),
        }
    }

    /// Looks for changes of the tables at most once in so many microseconds, instead of at every burst: each look at a
    /// list that a busy writer grows costs the worker cache misses, however short the list.
    pub fn look_every_us(&mut self, us: u64) {
        self.look_every = (us as f64 * 1e3 * clock::tsc_per_ns()) as u64;
    }

    /// Takes note of what changed in the tables: flow entries that depend on it are walked anew, each when its
    /// next packet comes.
    #[inline(always)]
    pub fn sync(&mut self, tables: View<'_>) {
        if self.look_every != 0 {
            let now = clock::tsc();
            if now.wrapping_sub(self.looked_at) < self.look_every {
                return;
            }
            self.looked_at = now;
        }
        if !self.freshness.is_current(tables) && self.freshness.update(tables) {
            self.reload(tables);
        }
    }

    /// Other tables are read from now on: every flow is walked anew, when its next packet comes; connections stay.
    /// The flow tables are not wiped, which would hold up the packets that wait by a tenth of a second.
    pub fn forget_tables(&mut self) {
        self.freshness.forget();
        self.look_now();
    }

    /// Looks at the next burst, whenever the last look was.
    pub fn look_now(&mut self) {
        self.looked_at = clock::tsc().wrapping_sub(self.look_every);
    }

    #[cold]
    fn reload(&mut self, tables: View<'_>) {
        let settings = tables.settings();
        self.clamp_mss = settings.takes & Settings::CLAMP_MSS != 0;
        for (index, slot) in self.ports.iter_mut().enumerate() {
            let id = PortId(index as u16);
            *slot = tables.port(id).and_then(|port| Ingress::new(id, &port, &settings));
        }
    }

    /// The context of packets received on a port, if the tables know it.
    #[inline(always)]
    pub fn ingress(&self, port: PortId) -> Option<Ingress> {
        self.ports.get(port.index()).copied().flatten()
    }

    /// A number below `bound` that nobody outside can foretell (xorshift64*).
    pub fn random_below(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (high as usize * bound) >> 32
    }

    /// Drops fragments that have waited too long for the first of their datagram.
    pub fn expire_fragments(&mut self, now: Now, cache: &mut FrameCache) {
        self.fragments.expire(now, &mut Bin { cache, counters: &mut self.counters });
    }

    /// Drops fragments that wait, for nothing more will come.
    pub fn forget_fragments(&mut self, cache: &mut FrameCache) {
        self.fragments.clear(&mut Bin { cache, counters: &mut self.counters });
    }

    /// A slice of the work that keeps tables tidy: `effort` times a few entries of each. With an effort of 1
    /// in every eighth loop a busy worker goes through a million connections in ten seconds, for about 1 %
    /// of its time.
    pub fn housekeep(&mut self, now: Now, effort: u32) {
        /// Ticks of four seconds after which an unused flow entry is given up.
        const FLOW_IDLE_TICKS: u32 = 15;
        self.flows.sweep(8 * effort as usize, now.tick(), FLOW_IDLE_TICKS);
        self.flows6.sweep(4 * effort as usize, now.tick(), FLOW_IDLE_TICKS);
        let expired = self.conntrack.expire(&mut self.conntrack_cursor, 4 * effort, now.seconds);
        self.counters.add(Counter::ConntrackExpired, expired as u64);
    }
}
