//! One trial: the loop around generator and sink. With [`sender`] the only place where packets move and clocks are read.
//!
//! One thread serves the first sending queue and all receiving queues in turn; further senders have threads of their
//! own. In steady state none makes an allocation or a system call but the rings' wake-ups; progress is reported four
//! times a second.

use crate::pktgen::cpu::{CpuTime, Spent};
use crate::pktgen::generator::Generator;
use crate::pktgen::scenario::{Arrival, TrialLimits};
use crate::pktgen::sender::{Helpers, Sender, Sent, Window};
use crate::pktgen::sink::{Counts, FlowAccount, Sink};
use core_affinity::CoreId;
use fairway_dataplane::clock;
use fairway_pmd::{Burst, FrameCache, Queue};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Silence after which what has not come is lost.
const DRAIN_NS: u64 = 200_000_000;
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
    /// The generator's, one for each sender.
    pub clients: Vec<End>,
    /// The sink's.
    pub sinks: Vec<End>,
    /// Which of the sink's is on the wire, where packets can be sent too.
    pub wire: Option<usize>,
}

impl Ends {
    /// Closes the queues; their frames go home when the ends are dropped.
    pub fn close(&mut self) {
        for end in self.clients.iter_mut().chain(&mut self.sinks) {
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

/// The generator's half of a trial: one generator for each sender, and the cores of all but the first, which is on the
/// caller's.
pub struct Senders<'a> {
    /// The generators; at least one.
    pub generators: &'a mut [Generator],
    /// The others' cores.
    pub cores: &'a [Option<CoreId>],
}

/// The loop's own variables.
struct Loop<'a> {
    sender: Sender<'a>,
    helpers: &'a Helpers,
    sink: &'a mut Sink,
    sinks: &'a mut [End],
    wire: Option<usize>,
    /// Read when sending stops: a device that polls goes on burning CPU while stragglers are waited for.
    cpu_at_stop: Option<std::io::Result<CpuTime>>,
}

/// Runs a trial to its end.
///
/// # Errors
/// If `/proc/stat` cannot be read.
pub fn run(
    trial: &Trial,
    senders: Senders<'_>,
    sink: &mut Sink,
    ends: &mut Ends,
    progress: &mut (dyn FnMut(&Progress) + Send),
) -> std::io::Result<Outcome> {
    let Senders { generators, cores } = senders;
    let Ends { clients, sinks, wire } = ends;
    let count = generators.len().min(clients.len()).max(1) as u32;
    generators.iter_mut().for_each(|generator| generator.restart(trial.arrival.shared_by(count)));
    sink.restart(generators.first().map_or(0, Generator::trial));
    let ns_per_clock = 1.0 / clock::tsc_per_ns();
    let cpu = CpuTime::read()?;
    let start = clock::tsc();
    let helpers = Helpers::new(count - 1);
    let mut pairs = generators.iter_mut().zip(clients).zip(Window::shares(&trial.limits, count));
    let Some(((generator, client), window)) = pairs.next() else {
        return Err(std::io::Error::other("a trial needs a generator"));
    };
    let (sent, spent) = std::thread::scope(|scope| {
        let others: Vec<_> = pairs
            .zip(cores.iter().copied().chain(std::iter::repeat(None)))
            .enumerate()
            .map(|(n, (((generator, client), window), core))| {
                let sender = Sender::new(generator, client, window, start, ns_per_clock);
                let helpers = &helpers;
                scope.spawn(move || helpers.run(n, sender, core))
            })
            .collect();
        let sender = Sender::new(generator, client, window, start, ns_per_clock);
        let mut state =
            Loop { sender, helpers: &helpers, sink: &mut *sink, sinks, wire: *wire, cpu_at_stop: None };
        state.run(progress);
        let (mut sent, spent) = (state.sender.sent(), state.cpu_at_stop.take());
        for other in others {
            sent += other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        (sent, spent)
    });
    let spent = spent.unwrap_or_else(CpuTime::read)?.since(&cpu);
    let by_flow: Vec<u32> =
        generators.iter().flat_map(|generator| generator.sent_by_flow().iter().copied()).collect();
    Ok(outcome(trial, sink, &sent, &by_flow, spent))
}

impl Loop<'_> {
    fn run(&mut self, progress: &mut (dyn FnMut(&Progress) + Send)) {
        let (mut sending, mut last_heard_ns, mut reported_ns) = (true, 0, 0);
        loop {
            let now_ns = self.sender.now_ns();
            let wire = self.wire.and_then(|wire| self.sinks.get_mut(wire));
            if sending {
                sending = self.sender.step(now_ns, wire);
                if !sending {
                    self.cpu_at_stop = Some(CpuTime::read());
                }
            } else {
                self.sender.push_out(wire);
            }
            let all_stopped = !sending && self.helpers.all_stopped();
            if self.receive() > 0 || !all_stopped {
                last_heard_ns = now_ns;
            }
            let sent = self.sender.sent().sent + self.helpers.sent();
            if now_ns - reported_ns > PROGRESS_NS {
                reported_ns = now_ns;
                let counts = self.sink.counts();
                progress(&Progress { elapsed: Duration::from_nanos(now_ns), sent, counts });
            }
            let complete = self.sink.counts().received >= sent;
            if all_stopped && (complete || now_ns.saturating_sub(last_heard_ns) > DRAIN_NS) {
                break;
            }
        }
        // What comes after the last one that was expected: duplicates.
        self.receive();
    }

    #[inline]
    fn receive(&mut self) -> usize {
        let mut received = 0;
        for End { queue, cache } in self.sinks.iter_mut() {
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
}

/// What a trial's counts come to.
fn outcome(trial: &Trial, sink: &Sink, all: &Sent, by_flow: &[u32], cpu: Spent) -> Outcome {
    let Sent { intended, sent, last_sent_ns } = *all;
    let counts = sink.counts();
    let accounts = || sink.accounts(by_flow);
    let mut worst_flows: Vec<FlowAccount> = accounts().filter(|flow| flow.lost() > 0).collect();
    let flows_with_loss = worst_flows.len() as u32;
    worst_flows.sort_by_key(|flow| std::cmp::Reverse(flow.lost()));
    worst_flows.truncate(WORST_FLOWS);
    let lost = sent.saturating_sub(counts.received);
    // Paced packets take the whole duration, the gap after the last one included.
    let nominal_s = f64::from(trial.limits.duration_ms) / 1e3;
    let cut_short = intended >= u64::from(trial.limits.max_packets);
    let last_s = last_sent_ns.max(1) as f64 / 1e9;
    let sending_s = if cut_short { last_s } else { last_s.max(nominal_s) };
    let per_packet = |s: f64| if counts.received > 0 { s * 1e9 / counts.received as f64 } else { 0.0 };
    Outcome {
        intended,
        sent,
        offered: sent as f64 >= OFFERED_SHARE * intended as f64,
        sending_s,
        counts,
        lost,
        loss: if sent > 0 { lost as f64 / sent as f64 } else { 0.0 },
        sent_pps: sent as f64 / sending_s,
        received_pps: counts.received as f64 / sending_s,
        flows: accounts().count() as u32,
        flows_with_loss,
        worst_flows,
        latency: Latency::of(sink.latency()),
        machine_ns_per_packet: per_packet(cpu.busy_s),
        softirq_ns_per_packet: per_packet(cpu.softirq_s),
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
