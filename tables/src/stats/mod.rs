//! The counters file: what the dataplane counts and control and the command line read.
//!
//! Plain `u64` words, each stored by one worker alone, relaxed: a reader sees every word whole, but
//! different words may be from different moments. The file outlives the process, so that counters go on
//! where they were when the dataplane is restarted, also with another number of workers or ports. A version
//! that counts other things begins at zero.

mod read;
mod write;

pub use read::{StatsReader, StatsSnapshot, WorkerSnapshot};
pub use write::{ProcessState, StatsWriter, WorkerStats};

use crate::DropReason;
use crate::layout::fnv;

macro_rules! numbered {
    ($(#[$enum_doc:meta])* $enum:ident { $($(#[$doc:meta])* $name:ident = $label:literal,)* }) => {
        $(#[$enum_doc])*
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum $enum { $($(#[$doc])* $name,)* }

        impl $enum {
            /// All of them, in the order of their number.
            pub const ALL: &'static [$enum] = &[$($enum::$name,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label under which reports and metrics show it.
            pub const fn label(self) -> &'static str {
                match self { $($enum::$name => $label,)* }
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

numbered! {
    /// What a worker counts, drops apart.
    Counter {
        /// Packets received.
        RxPackets = "rx-packets",
        /// Bytes received.
        RxBytes = "rx-bytes",
        /// Packets sent.
        TxPackets = "tx-packets",
        /// Bytes sent.
        TxBytes = "tx-bytes",
        /// Packets passed to the host port.
        HostPackets = "host-packets",
        /// Packets absorbed by the engine: requests that it turned into answers.
        ConsumedPackets = "consumed-packets",
        /// Packets made by the engine: ICMP errors, and of a packet that was fragmented all fragments but one.
        GeneratedPackets = "generated-packets",
        /// Packets that were too large for their way, and left in fragments.
        FragmentedPackets = "fragmented-packets",
        /// ICMP errors not sent because there were too many.
        IcmpLimited = "icmp-limited",
        /// ICMP errors in transit that quoted a translated packet, and were translated back.
        IcmpTranslated = "icmp-translated",
        /// Packets that found their flow.
        FlowHits = "flow-hits",
        /// Packets that took the full walk.
        FlowMisses = "flow-misses",
        /// Connections begun.
        ConntrackNew = "conntrack-new",
        /// Connections to services begun that are left to a backend's node, which answers the client itself.
        DsrForwarded = "dsr-forwarded",
        /// Connections to services begun that another node left to this one.
        DsrDelivered = "dsr-delivered",
        /// Connections that timed out.
        ConntrackExpired = "conntrack-expired",
        /// Connections that made room for new ones in a full table.
        ConntrackEvicted = "conntrack-evicted",
        /// Packets taken over from other workers.
        HandoffIn = "handoff-in",
        /// Packets handed to other workers.
        HandoffOut = "handoff-out",
        /// Times round the loop.
        Loops = "loops",
        /// Times round the loop with something to do.
        BusyLoops = "busy-loops",
        /// Times the worker slept for want of work.
        Sleeps = "sleeps",
        /// Times a flow was walked again because the tables had changed.
        TableWalks = "table-walks",
    }
}

numbered! {
    /// A part of the work whose cost is measured.
    Stage {
        /// Parsing a burst.
        Parse = "parse",
        /// Looking a burst's flows up.
        FlowLookup = "flow-lookup",
        /// Rewriting a burst's packets.
        Rewrite = "rewrite",
        /// The full walk of one packet.
        SlowPath = "slow-path",
        /// A whole burst.
        Burst = "burst",
        /// A whole loop.
        Loop = "loop",
    }
}

/// What a stage cost, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StageSummary {
    /// How often it ran.
    pub count: u64,
    /// Total time.
    pub sum_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

impl StageSummary {
    const WORDS: usize = 5;

    fn to_words(self) -> [u64; Self::WORDS] {
        [self.count, self.sum_ns, self.p50_ns, self.p99_ns, self.max_ns]
    }

    fn from_words([count, sum_ns, p50_ns, p99_ns, max_ns]: [u64; Self::WORDS]) -> StageSummary {
        StageSummary { count, sum_ns, p50_ns, p99_ns, max_ns }
    }

    /// Both together. Percentiles can't be added: the larger one is kept, which is never too good.
    pub fn merged(self, other: StageSummary) -> StageSummary {
        StageSummary {
            count: self.count.wrapping_add(other.count),
            sum_ns: self.sum_ns.wrapping_add(other.sum_ns),
            p50_ns: self.p50_ns.max(other.p50_ns),
            p99_ns: self.p99_ns.max(other.p99_ns),
            max_ns: self.max_ns.max(other.max_ns),
        }
    }
}

/// What went through a port, as one worker saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets dropped that came in here.
    pub drops: u64,
    /// Packets that the kernel dropped before they came in here, for want of room in the rx ring or of a frame.
    pub kernel_rx_dropped: u64,
    /// Times that the kernel found no frame to receive into.
    pub kernel_fill_empty: u64,
}

impl PortCounters {
    const WORDS: usize = 7;

    fn to_words(self) -> [u64; Self::WORDS] {
        [
            self.rx_packets,
            self.rx_bytes,
            self.tx_packets,
            self.tx_bytes,
            self.drops,
            self.kernel_rx_dropped,
            self.kernel_fill_empty,
        ]
    }

    fn from_words(words: [u64; Self::WORDS]) -> PortCounters {
        let [rx_packets, rx_bytes, tx_packets, tx_bytes, drops, kernel_rx_dropped, kernel_fill_empty] = words;
        PortCounters {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            drops,
            kernel_rx_dropped,
            kernel_fill_empty,
        }
    }

    /// Both together.
    pub fn merged(self, other: PortCounters) -> PortCounters {
        let [a, b] = [self.to_words(), other.to_words()];
        PortCounters::from_words(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
    }
}

/// Name of the file.
pub(crate) const FILE: &str = "stats";
const MAGIC: u64 = u64::from_be_bytes(*b"FAIRWAYS");
const ABI_VERSION: u64 = 1;
/// Most workers and ports that a file may be for.
const MAX_WORKERS: u32 = 1024;
const MAX_PORTS: u32 = u16::MAX as u32;

/// Offsets in the header, after magic, ABI version and layout hash.
mod head {
    pub(super) const FILE_LEN: usize = 24;
    pub(super) const WORKERS: usize = 32;
    pub(super) const PORTS: usize = 40;
    pub(super) const PID: usize = 64;
    pub(super) const START_TIME: usize = 72;
    pub(super) const STATE: usize = 80;
    /// How often a process began to forward. Files of earlier versions hold zero here.
    pub(super) const STARTS: usize = 88;
    pub(super) const CONNTRACK_USED: usize = 128;
    pub(super) const CONNTRACK_CAPACITY: usize = 136;
    pub(super) const LEN: usize = 4096;
}

/// Where each counter lies.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Geometry {
    workers: u32,
    ports: u32,
}

impl Geometry {
    const DROPS: usize = 8 * Counter::COUNT;
    const STAGES: usize = Self::DROPS + 8 * DropReason::COUNT;
    const PORTS: usize = Self::STAGES + 8 * StageSummary::WORDS * Stage::COUNT;

    /// Bytes per worker: whole cache lines and one more, so that prefetching for one worker does not
    /// disturb the next.
    fn stride(&self) -> usize {
        (Self::PORTS + 8 * PortCounters::WORDS * self.ports as usize).next_multiple_of(64) + 64
    }

    fn worker(&self, worker: u32) -> usize {
        head::LEN + worker as usize * self.stride()
    }

    fn port(&self, worker: u32, port: usize) -> Option<usize> {
        (port < self.ports as usize)
            .then(|| self.worker(worker) + Self::PORTS + 8 * PortCounters::WORDS * port)
    }

    fn len(&self) -> usize {
        self.worker(self.workers).next_multiple_of(4096)
    }

    /// Fingerprint of what is counted, by label, so that a counter that moves or changes is noticed.
    fn hash() -> u64 {
        let labels = Counter::ALL.iter().map(|c| c.label());
        let labels = labels.chain(DropReason::ALL.iter().map(|r| r.label()));
        let labels = labels.chain(Stage::ALL.iter().map(|s| s.label()));
        fnv(labels
            .flat_map(|l| l.bytes().chain([0]))
            .chain([StageSummary::WORDS as u8, PortCounters::WORDS as u8]))
    }
}
