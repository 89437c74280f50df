//! What the steps of a burst cost: one burst in [`SAMPLE`] is timed, into histograms of nanoseconds per
//! packet (steps) or per call (whole bursts and loops).

use crate::clock;
use fairway_tables::stats::{Stage, StageSummary};
use hdrhistogram::Histogram;

/// One burst in so many is timed.
pub const SAMPLE: u32 = 16;
/// Costs above this count as this.
const MAX_NS: u64 = 1_000_000_000;

/// A worker's histograms. Recording neither allocates nor fails.
pub struct Stages {
    histograms: [Histogram<u64>; Stage::COUNT],
    sums_ns: [f64; Stage::COUNT],
    ns_per_clock: f64,
    bursts: u32,
    timed: bool,
    last: u64,
}

impl Stages {
    /// Empty histograms from 1 ns to 1 s, with two significant digits.
    pub fn new() -> Stages {
        let histogram = || Histogram::new_with_bounds(1, MAX_NS, 2).expect("the bounds are valid");
        Stages {
            histograms: std::array::from_fn(|_| histogram()),
            sums_ns: [0.0; Stage::COUNT],
            ns_per_clock: 1.0 / clock::tsc_per_ns(),
            bursts: 0,
            timed: false,
            last: 0,
        }
    }

    /// Begins a burst, and decides whether it is timed.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.bursts = self.bursts.wrapping_add(1);
        self.timed = self.bursts.is_multiple_of(SAMPLE);
        if self.timed {
            self.last = clock::tsc();
        }
    }

    /// Ends a step over `packets` packets.
    #[inline(always)]
    pub fn lap(&mut self, stage: Stage, packets: usize) {
        if self.timed {
            let now = clock::tsc();
            self.record(stage, (now - self.last) as f64 / packets.max(1) as f64);
            self.last = now;
        }
    }

    /// The clock, if this burst is timed.
    #[inline(always)]
    pub fn start(&self) -> Option<u64> {
        if self.timed { Some(clock::tsc()) } else { None }
    }

    /// Records the time since [`Stages::start`].
    #[inline(always)]
    pub fn since(&mut self, stage: Stage, start: Option<u64>) {
        if let Some(start) = start {
            self.record(stage, (clock::tsc() - start) as f64);
        }
    }

    /// Records a cost in clocks.
    pub fn record(&mut self, stage: Stage, clocks: f64) {
        let ns = clocks * self.ns_per_clock;
        self.histograms[stage as usize].saturating_record((ns as u64).clamp(1, MAX_NS));
        self.sums_ns[stage as usize] += ns;
    }

    /// Count, sum and percentiles so far.
    pub fn summary(&self, stage: Stage) -> StageSummary {
        let histogram = &self.histograms[stage as usize];
        StageSummary {
            count: histogram.len(),
            sum_ns: self.sums_ns[stage as usize] as u64,
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
        }
    }
}

impl Default for Stages {
    fn default() -> Stages {
        Stages::new()
    }
}
