//! The sink: what arrived, by flow. It has no clock and no I/O.
//!
//! Order is judged by RFC 4737 section 3: a packet is reordered if its sequence number is smaller than the next one
//! that its flow expects. Duplicates are told from late packets by the last 64 numbers of each flow.

use crate::pktgen::frame::Stamp;
use hdrhistogram::Histogram;

/// Numbers behind the highest that a flow remembers.
const WINDOW: u32 = 64;
/// Longest latency that the histogram tells apart, in nanoseconds: one minute.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

/// What is known of one flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FlowState {
    /// Highest sequence number seen, plus one.
    next: u32,
    /// Packets, duplicates not counted.
    received: u32,
    reordered: u32,
    duplicated: u32,
    /// Bit `i`: the number `next - 1 - i` was seen.
    seen: u64,
}

/// Counts over all flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Packets, duplicates not counted.
    pub received: u64,
    /// Bytes of those, without FCS, as they arrived.
    pub bytes: u64,
    /// Packets with a smaller number than one of their flow that came before.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Frames that are not of this trial.
    pub foreign: u64,
}

/// One flow's account at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FlowAccount {
    /// Its number.
    pub flow: u32,
    /// Packets sent.
    pub sent: u32,
    /// Packets received, duplicates not counted.
    pub received: u32,
    /// Of those, reordered.
    pub reordered: u32,
    /// Duplicates.
    pub duplicated: u32,
}

impl FlowAccount {
    /// Packets that did not arrive.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.received)
    }
}

/// Counts what arrives in one trial.
pub struct Sink {
    trial: u8,
    flows: Vec<FlowState>,
    counts: Counts,
    latency: Histogram<u64>,
    ns_per_clock: f64,
}

impl Sink {
    /// A sink for so many flows; `clocks_per_ns` of the TSC.
    pub fn new(flows: u32, clocks_per_ns: f64) -> Sink {
        // These bounds are constants, and right.
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3)
            .unwrap_or_else(|_| unreachable!("the bounds are constant"));
        let flows = vec![FlowState::default(); flows as usize];
        Sink { trial: 0, flows, counts: Counts::default(), latency, ns_per_clock: 1.0 / clocks_per_ns }
    }

    /// Forgets everything and expects packets of another trial.
    pub fn restart(&mut self, trial: u8) {
        self.trial = trial;
        self.flows.fill(FlowState::default());
        self.counts = Counts::default();
        self.latency.reset();
    }

    /// Counts a frame that arrived at this TSC.
    #[inline]
    pub fn receive(&mut self, frame: &[u8], clocks: u64) {
        let state = Stamp::of(frame)
            .filter(|stamp| stamp.trial == self.trial)
            .and_then(|stamp| Some((stamp, self.flows.get_mut(stamp.flow as usize)?)));
        let Some((stamp, state)) = state else {
            self.counts.foreign += 1;
            return;
        };
        if !state.note(stamp.sequence, &mut self.counts) {
            return;
        }
        self.counts.bytes += frame.len() as u64;
        let ns = clocks.saturating_sub(stamp.clocks) as f64 * self.ns_per_clock;
        self.latency.saturating_record(ns as u64);
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Latencies so far, in nanoseconds.
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// The accounts of all flows that sent something; `sent` by flow.
    pub fn accounts<'a>(&'a self, sent: &'a [u32]) -> impl Iterator<Item = FlowAccount> + 'a {
        let all = self.flows.iter().zip(sent).enumerate().filter(|(_, (_, sent))| **sent > 0);
        all.map(|(flow, (state, sent))| FlowAccount {
            flow: flow as u32,
            sent: *sent,
            received: state.received,
            reordered: state.reordered,
            duplicated: state.duplicated,
        })
    }
}

impl FlowState {
    /// Notes a sequence number; false if it is a duplicate.
    #[inline]
    fn note(&mut self, sequence: u32, counts: &mut Counts) -> bool {
        if sequence >= self.next {
            let ahead = (sequence - self.next).saturating_add(1);
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.next = sequence.saturating_add(1);
        } else {
            let behind = self.next - 1 - sequence;
            if behind < WINDOW {
                if self.seen >> behind & 1 == 1 {
                    self.duplicated += 1;
                    counts.duplicated += 1;
                    return false;
                }
                self.seen |= 1 << behind;
            }
            self.reordered += 1;
            counts.reordered += 1;
        }
        self.received += 1;
        counts.received += 1;
        true
    }
}
