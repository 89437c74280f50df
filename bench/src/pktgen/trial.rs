//! One trial: the loop around generator and sink. The only place where packets move and clocks are read.
//!
//! One thread serves the sending queue and all receiving queues in turn. In steady state it makes no
//! allocation and no system call but the rings' wake-ups; progress is reported four times a second.

use crate::pktgen::cpu::CpuTime;
use crate::pktgen::frame::Stamp;
use crate::pktgen::generator::Generator;
use crate::pktgen::scenario::{Arrival, TrialLimits};
use crate::pktgen::sink::{Counts, FlowAccount, Sink};
use fairway_dataplane::clock;
use fairway_pmd::{Burst, FrameCache, Queue};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Silence after which what has not come is lost.
const DRAIN_NS: u64 = 200_000_000;
/// A packet may be sent so much later than the end of sending, as a share of the duration: a stall of the
/// machine is made up for, an overload is not.
const LATE_SHARE: f64 = 0.02;
/// Sent packets less than this share of those due: the rate was not offered.
const OFFERED_SHARE: f64 = 0.99;
/// Time between two reports of progress.
const PROGRESS_NS: u64 = 250_000_000;
/// Bursts taken from one queue before the others have their turn.
const RX_TURNS: usize = 4;
/// Flows listed with their losses.
const WORST_FLOWS: usize = 10;

/// A queue with the frames it is fed from.
pub struct End {
    /// The queue.
    pub queue: Box<dyn Queue>,
    /// Its stock of frames.
    pub cache: FrameCache,
}

/// Where the generator sends and the sink receives.
pub struct Ends {
    /// The generator's.
    pub tx: End,
    /// The sink's.
    pub rx: Vec<End>,
}

impl Ends {
    /// Closes the queues; their frames go home when the ends are dropped.
    pub fn close(&mut self) {
        self.tx.queue.close(&mut self.tx.cache);
        for end in &mut self.rx {
            end.queue.close(&mut end.cache);
        }
    }
}

/// How a trial stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time since its start.
    pub elapsed: Duration,
    /// Packets that the driver took.
    pub sent: u64,
    /// What arrived.
    pub counts: Counts,
}

/// Latencies in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Smallest.
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

/// What a trial gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Packets that were due.
    pub intended: u64,
    /// Packets that the driver took.
    pub sent: u64,
    /// Whether (nearly) all due packets were sent in time.
    pub offered: bool,
    /// Time from the first packet to the last one sent, in seconds.
    pub sending_s: f64,
    /// What arrived.
    pub counts: Counts,
    /// Packets that did not arrive.
    pub lost: u64,
    /// Lost packets as a share of those sent.
    pub loss: f64,
    /// Sent packets a second.
    pub sent_pps: f64,
    /// Received packets a second of sending.
    pub received_pps: f64,
    /// Flows that sent something.
    pub flows: u32,
    /// Of those, flows that lost something.
    pub flows_with_loss: u32,
    /// Flows that lost most.
    pub worst_flows: Vec<FlowAccount>,
    /// Latencies of all packets received.
    pub latency: Latency,
    /// CPU time of the whole machine for each packet received, in nanoseconds.
    pub machine_ns_per_packet: f64,
    /// Of that, softirq.
    pub softirq_ns_per_packet: f64,
}

/// How a trial is run.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// When packets are due.
    pub arrival: Arrival,
    /// How long.
    pub limits: TrialLimits,
}

/// The loop's own variables.
struct Loop<'a> {
    generator: &'a mut Generator,
    sink: &'a mut Sink,
    ends: &'a mut Ends,
    start: u64,
    ns_per_clock: f64,
    burst: Burst,
    intended: u64,
    sent: u64,
    last_sent_ns: u64,
    /// Read when sending stops: a device that polls goes on burning CPU while stragglers are waited for.
    cpu_at_stop: Option<std::io::Result<CpuTime>>,
}

/// Runs a trial to its end.
///
/// # Errors
/// If `/proc/stat` cannot be read.
pub fn run(
    trial: &Trial,
    generator: &mut Generator,
    sink: &mut Sink,
    ends: &mut Ends,
    progress: &mut (dyn FnMut(&Progress) + Send),
) -> std::io::Result<Outcome> {
    generator.restart(trial.arrival);
    sink.restart(generator.trial());
    let clocks_per_ns = clock::tsc_per_ns();
    let cpu = CpuTime::read()?;
    let mut state = Loop {
        generator,
        sink,
        ends,
        start: clock::tsc(),
        ns_per_clock: 1.0 / clocks_per_ns,
        burst: Burst::new(),
        intended: 0,
        sent: 0,
        last_sent_ns: 0,
        cpu_at_stop: None,
    };
    state.run(&trial.limits, progress);
    let spent = state.cpu_at_stop.take().unwrap_or_else(CpuTime::read)?.since(&cpu);
    Ok(state.outcome(trial, spent))
}

impl Loop<'_> {
    fn run(&mut self, limits: &TrialLimits, progress: &mut (dyn FnMut(&Progress) + Send)) {
        let end_ns = u64::from(limits.duration_ms) * 1_000_000;
        let give_up_ns = end_ns + (end_ns as f64 * LATE_SHARE) as u64 + 2_000_000;
        let max_packets = u64::from(limits.max_packets);
        let (mut sending, mut last_heard_ns, mut reported_ns) = (true, 0, 0);
        loop {
            let now_ns = self.now_ns();
            if sending {
                self.send(now_ns, end_ns, max_packets);
                let due = self.generator.due_ns().max(now_ns) < end_ns && self.intended < max_packets;
                sending = (due || !self.burst.is_empty()) && now_ns < give_up_ns;
                if !sending {
                    self.cpu_at_stop = Some(CpuTime::read());
                    self.stop_sending(end_ns, max_packets);
                }
            } else if self.ends.tx.queue.tx_pending() > 0 {
                self.ends.tx.queue.kick(&mut self.ends.tx.cache);
            }
            if self.receive() > 0 || sending {
                last_heard_ns = now_ns;
            }
            if now_ns - reported_ns > PROGRESS_NS {
                reported_ns = now_ns;
                let (sent, counts) = (self.sent, self.sink.counts());
                progress(&Progress { elapsed: Duration::from_nanos(now_ns), sent, counts });
            }
            let complete = self.sink.counts().received >= self.sent;
            if !sending && (complete || now_ns.saturating_sub(last_heard_ns) > DRAIN_NS) {
                break;
            }
        }
        // What comes after the last one that was expected: duplicates.
        self.receive();
    }

    #[inline]
    fn now_ns(&self) -> u64 {
        ((clock::tsc() - self.start) as f64 * self.ns_per_clock) as u64
    }

    /// Writes the packets that are due, and gives the driver what it takes.
    #[inline]
    fn send(&mut self, now_ns: u64, end_ns: u64, max_packets: u64) {
        let End { queue, cache } = &mut self.ends.tx;
        if now_ns < end_ns {
            while !self.burst.is_full() && self.generator.due_ns() <= now_ns && self.intended < max_packets {
                let Some(mut frame) = cache.alloc() else { break };
                let packet = self.generator.next_packet();
                self.intended += 1;
                if frame.reset(packet.len) {
                    self.generator.write(&packet, clock::tsc(), frame.bytes_mut());
                    self.burst.push(frame);
                } else {
                    // Sizes are checked against the chunk before; a frame too small counts as lost.
                    cache.free(frame);
                }
            }
        }
        let mut taken = 0;
        if !self.burst.is_empty() {
            taken = queue.tx_burst(cache, &mut self.burst);
            self.sent += taken as u64;
            self.last_sent_ns = now_ns;
        }
        if taken > 0 || queue.tx_pending() > 0 {
            queue.kick(cache);
        }
    }

    /// Counts what was due and has not been sent.
    fn stop_sending(&mut self, end_ns: u64, max_packets: u64) {
        for frame in self.burst.drain(..) {
            if let Some(stamp) = Stamp::of(frame.bytes()) {
                self.generator.unsend(stamp.flow);
            }
            self.ends.tx.cache.free(frame);
        }
        if self.generator.due_ns() > 0 {
            while self.generator.due_ns() < end_ns && self.intended < max_packets {
                self.generator.skip();
                self.intended += 1;
            }
        }
    }

    #[inline]
    fn receive(&mut self) -> usize {
        let mut received = 0;
        for End { queue, cache } in &mut self.ends.rx {
            for _ in 0..RX_TURNS {
                let mut burst = Burst::new();
                let count = queue.rx_burst(cache, &mut burst);
                if count == 0 {
                    break;
                }
                let clocks = clock::tsc();
                for frame in burst.iter() {
                    self.sink.receive(frame.bytes(), clocks);
                }
                cache.free_burst(&mut burst);
                received += count;
            }
        }
        received
    }

    fn outcome(&self, trial: &Trial, cpu: CpuTime) -> Outcome {
        let counts = self.sink.counts();
        let accounts = || self.sink.accounts(self.generator.sent_by_flow());
        let mut worst_flows: Vec<FlowAccount> = accounts().filter(|flow| flow.lost() > 0).collect();
        let flows_with_loss = worst_flows.len() as u32;
        worst_flows.sort_by_key(|flow| std::cmp::Reverse(flow.lost()));
        worst_flows.truncate(WORST_FLOWS);
        let lost = self.sent.saturating_sub(counts.received);
        // Paced packets take the whole duration, the gap after the last one included.
        let nominal_s = f64::from(trial.limits.duration_ms) / 1e3;
        let cut_short = self.intended >= u64::from(trial.limits.max_packets);
        let last_s = self.last_sent_ns.max(1) as f64 / 1e9;
        let sending_s = if cut_short { last_s } else { last_s.max(nominal_s) };
        let per_packet = |s: f64| if counts.received > 0 { s * 1e9 / counts.received as f64 } else { 0.0 };
        Outcome {
            intended: self.intended,
            sent: self.sent,
            offered: self.sent as f64 >= OFFERED_SHARE * self.intended as f64,
            sending_s,
            counts,
            lost,
            loss: if self.sent > 0 { lost as f64 / self.sent as f64 } else { 0.0 },
            sent_pps: self.sent as f64 / sending_s,
            received_pps: counts.received as f64 / sending_s,
            flows: accounts().count() as u32,
            flows_with_loss,
            worst_flows,
            latency: Latency::of(self.sink.latency()),
            machine_ns_per_packet: per_packet(cpu.busy_s),
            softirq_ns_per_packet: per_packet(cpu.softirq_s),
        }
    }
}

impl Latency {
    /// A histogram's, which is in nanoseconds.
    pub fn of(all: &Histogram<u64>) -> Latency {
        if all.is_empty() {
            return Latency::default();
        }
        Latency {
            min_ns: all.min(),
            mean_ns: all.mean(),
            p50_ns: all.value_at_quantile(0.5),
            p90_ns: all.value_at_quantile(0.9),
            p99_ns: all.value_at_quantile(0.99),
            p999_ns: all.value_at_quantile(0.999),
            max_ns: all.max(),
        }
    }
}
