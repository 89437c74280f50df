//! The generator: from a plan and a seed, which packet comes when, and its bytes. It has no clock and no I/O:
//! the caller asks for packets until none is due, and gives each a frame to be written to.

use crate::pktgen::arrival::Schedule;
use crate::pktgen::frame::{Stamp, Template};
use crate::pktgen::paths::Entry;
use crate::pktgen::plan::Plan;
use crate::pktgen::random::Random;
use crate::pktgen::scenario::{Arrival, FCS_LEN, Order, Scenario};

/// A packet to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its stream.
    pub stream: usize,
    /// Number of its flow among the generator's flows.
    pub flow: u32,
    /// Its number among the flow's packets.
    pub sequence: u32,
    /// Bytes of the frame without FCS.
    pub len: usize,
}

/// Yields the packets of one trial after the other.
#[derive(Clone, Debug)]
pub struct Generator {
    plan: Plan,
    templates: Vec<Template>,
    /// Where each stream's packets go in.
    entries: Vec<Entry>,
    /// Frame lengths without FCS, each as often as it is to come.
    lengths: Vec<usize>,
    /// Packets so far, by flow.
    sequences: Vec<u32>,
    /// The next flow of each stream that takes turns.
    turns: Vec<u32>,
    seed: u64,
    random: Random,
    schedule: Schedule,
    trial: u8,
}

impl Generator {
    /// Ready for a first trial.
    pub fn new(scenario: &Scenario, plan: Plan) -> Generator {
        // Senders must not send the same flows in the same order.
        let seed = scenario.seed.wrapping_add(u64::from(plan.sender) << 32);
        let mut random = Random::new(seed);
        Generator {
            templates: plan.streams.iter().map(Template::new).collect(),
            entries: plan.streams.iter().map(|stream| stream.path.entry()).collect(),
            lengths: lengths(&scenario.frames.size_bytes.deck()),
            sequences: vec![0; plan.flows as usize],
            turns: vec![0; plan.streams.len()],
            seed,
            schedule: Schedule::new(scenario.arrival, &mut random),
            random,
            plan,
            trial: 0,
        }
    }

    /// Begins a new trial with other arrivals; packets are the same again, under a new trial number.
    pub fn restart(&mut self, arrival: Arrival) {
        self.random = Random::new(self.seed);
        self.schedule = Schedule::new(arrival, &mut self.random);
        self.sequences.fill(0);
        self.turns.fill(0);
        self.trial = self.trial.wrapping_add(1);
    }

    /// Counts trials on from another generator's, so that its late packets are not taken for this one's.
    pub fn continue_from(&mut self, trial: u8) {
        self.trial = trial;
    }

    /// Changes the frame sizes, given in bytes with FCS.
    pub fn set_sizes(&mut self, sizes: &[u16]) {
        self.lengths = lengths(sizes);
    }

    /// Number of this trial, modulo 256.
    pub fn trial(&self) -> u8 {
        self.trial
    }

    /// The flows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Packets of this trial so far, by flow.
    pub fn sent_by_flow(&self) -> &[u32] {
        &self.sequences
    }

    /// When the next packet is due, in nanoseconds since the trial's start.
    #[inline]
    pub fn due_ns(&self) -> u64 {
        self.schedule.due_ns()
    }

    /// The next packet.
    #[inline]
    pub fn next_packet(&mut self) -> Packet {
        self.schedule.advance(&mut self.random);
        let mut stream = 0;
        if self.plan.streams.len() > 1 {
            let pick = self.random.below(self.plan.weights);
            stream = self.plan.streams.partition_point(|stream| stream.weight_end <= pick);
        }
        let planned = &self.plan.streams[stream];
        let number = match planned.order {
            Order::Random if planned.flows > 1 => self.random.below(planned.flows),
            Order::Random => 0,
            Order::RoundRobin => {
                let turn = self.turns[stream];
                self.turns[stream] = if turn + 1 == planned.flows { 0 } else { turn + 1 };
                turn
            }
        };
        let len = match self.lengths.as_slice() {
            [only] => *only,
            several => several[self.random.below(several.len() as u32) as usize],
        };
        let flow = planned.first_flow + number;
        let sequence = self.sequences[flow as usize];
        self.sequences[flow as usize] = sequence.wrapping_add(1);
        Packet { stream, flow, sequence, len }
    }

    /// Passes over a packet that was due and cannot be sent any more.
    pub fn skip(&mut self) {
        self.schedule.advance(&mut self.random);
    }

    /// Where a packet goes in.
    #[inline]
    pub fn entry(&self, packet: &Packet) -> Entry {
        self.entries[packet.stream]
    }

    /// Takes back the last packet of a flow, by its number among all senders' flows, which the driver did not take.
    pub fn unsend(&mut self, flow: u32) {
        let number = flow.wrapping_sub(self.plan.first_flow);
        if let Some(sequence) = self.sequences.get_mut(number as usize) {
            *sequence = sequence.saturating_sub(1);
        }
    }

    /// Writes a packet into `frame`, which has exactly its length.
    #[inline]
    pub fn write(&self, packet: &Packet, clocks: u64, frame: &mut [u8]) {
        let stream = &self.plan.streams[packet.stream];
        let flow = self.plan.first_flow + packet.flow;
        let stamp = Stamp { trial: self.trial, flow, sequence: packet.sequence, clocks };
        self.templates[packet.stream].write(frame, stream.tuple(packet.flow - stream.first_flow), stamp);
    }
}

fn lengths(sizes: &[u16]) -> Vec<usize> {
    sizes.iter().map(|size| usize::from(*size) - FCS_LEN).collect()
}
