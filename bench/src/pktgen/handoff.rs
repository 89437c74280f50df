//! `fairway-pktgen handoff`: what it costs that a packet's output port belongs to another worker. Two workers of the
//! engine, each on a core of its own; generator and sink are inside their ports' queues, so that nothing else runs:
//!
//! ```text
//!  local:   worker 0:  source ─> process() ─> sink        handed over:  worker 0:  source ─> process() ─┐ ┌─> sink
//!           worker 1:  source ─> process() ─> sink                      worker 1:  source ─> process() ─┼─┴─> sink
//!                                                                                                       └─ rings
//! ```
//! In both cases each worker processes as many packets as the other and sends as many; the difference is the ring.

use crate::pktgen::cli::CliError;
use crate::pktgen::device::DeviceError;
use crate::pktgen::rfc2544::stats::Sample;
use crate::pktgen::run::warn_of_company;
use crate::pktgen::trial::Latency;
use core_affinity::CoreId;
use fairway_dataplane::affinity::Affinity;
use fairway_dataplane::clock;
use fairway_dataplane::conntrack::{Conntrack, Timeouts};
use fairway_dataplane::crew::{Crew, Plan};
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::worker::PollMode;
use fairway_pmd::{Burst, FrameCache, Queue, QueueStats, Umem, UmemConfig};
use fairway_tables::stats::{Counter, StatsWriter};
use fairway_tables::{DropReason, PortKind};
use fairway_tests::report::{Figure, Report};
use hdrhistogram::Histogram;
use serde_json::json;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Arguments of `handoff`.
#[derive(clap::Args)]
pub struct HandoffArgs {
    /// Milliseconds of one measurement
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=60_000))]
    pub trial_ms: u32,
    /// Rounds over all cases; medians are reported
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Flows of each source
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub flows: u32,
    /// Add figures to target/reports/NAME.json
    #[arg(long)]
    pub report: Option<String>,
}

/// Workers, and so sources and sinks.
const WORKERS: u16 = 2;
const PORTS: usize = 2 + 2 * WORKERS as usize;
const FRAMES: u32 = 16_384;
/// Packets of a source on their way when rates are measured: bursts are full and no ring runs over.
const WINDOW: u64 = 512;
/// Where a packet has the time at which it was made, from its end.
const STAMP_LEN: usize = 8;

/// What a source and its sink have in common.
#[derive(Default)]
struct Wire {
    /// Packets that arrived.
    arrived: AtomicU64,
    /// Whether latencies count yet.
    counting: AtomicBool,
    /// The sink's at its end.
    latency: Mutex<Option<Histogram<u64>>>,
}

/// A port's queue that is generator and nothing else.
struct Source {
    port: u16,
    packets: Vec<Vec<u8>>,
    next: usize,
    sent: u64,
    window: u64,
    wire: Arc<Wire>,
}

impl Queue for Source {
    fn port(&self) -> u16 {
        self.port
    }

    fn rx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        let on_the_way = self.sent - self.wire.arrived.load(Ordering::Acquire);
        let room = (burst.remaining_capacity() as u64).min(self.window.saturating_sub(on_the_way));
        let mut made = 0;
        while made < room {
            let Some(mut frame) = cache.alloc() else { break };
            let packet = &self.packets[self.next];
            self.next = if self.next + 1 == self.packets.len() { 0 } else { self.next + 1 };
            frame.copy_from(packet);
            if self.window == 1 {
                let at = packet.len() - STAMP_LEN;
                frame.bytes_mut()[at..].copy_from_slice(&clock::tsc().to_ne_bytes());
            }
            frame.set_port(self.port);
            burst.push(frame);
            made += 1;
        }
        self.sent += made;
        made as usize
    }

    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        let count = burst.len();
        cache.free_burst(burst);
        count
    }

    fn kick(&mut self, _cache: &mut FrameCache) {}

    fn tx_pending(&self) -> usize {
        0
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }

    fn close(&mut self, _cache: &mut FrameCache) -> usize {
        0
    }
}

/// A port's queue that is sink and nothing else.
struct Sink {
    port: u16,
    arrived: u64,
    /// Where packets are one at a time.
    latency: Option<Histogram<u64>>,
    ns_per_clock: f64,
    wire: Arc<Wire>,
}

impl Queue for Sink {
    fn port(&self) -> u16 {
        self.port
    }

    fn rx_burst(&mut self, _cache: &mut FrameCache, _burst: &mut Burst) -> usize {
        0
    }

    fn tx_burst(&mut self, cache: &mut FrameCache, burst: &mut Burst) -> usize {
        if let Some(latency) = &mut self.latency
            && self.wire.counting.load(Ordering::Relaxed)
        {
            let now = clock::tsc();
            for stamp in burst.iter().filter_map(|frame| frame.bytes().last_chunk::<STAMP_LEN>()) {
                let clocks = now.saturating_sub(u64::from_ne_bytes(*stamp));
                latency.saturating_record((clocks as f64 * self.ns_per_clock) as u64);
            }
        }
        let count = burst.len();
        cache.free_burst(burst);
        self.arrived += count as u64;
        self.wire.arrived.store(self.arrived, Ordering::Release);
        count
    }

    fn kick(&mut self, _cache: &mut FrameCache) {}

    fn tx_pending(&self) -> usize {
        0
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> QueueStats {
        QueueStats::default()
    }

    fn close(&mut self, _cache: &mut FrameCache) -> usize {
        if let Ok(mut place) = self.wire.latency.lock() {
            *place = self.latency.take();
        }
        0
    }
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Time of one worker per packet, of those that it processes (as many as it sends).
    pub ns_per_packet: f64,
    /// From before the engine to after it; only with one packet at a time.
    pub latency: Latency,
    /// Packets that went from worker to worker.
    pub handed: u64,
    /// Packets that arrived.
    pub arrived: u64,
}

/// Runs two workers for a time. `handed`: each one's packets leave by the other's port. With `one_at_a_time` a source
/// waits for each packet before it sends the next, and only the first worker's sends.
///
/// # Errors
/// If memory or threads cannot be had, or an invariant does not hold.
pub fn measure(handed: bool, one_at_a_time: bool, flows: u32, time: Duration) -> Result<Trial, DeviceError> {
    let world = World::new(WorldConfig { pods: 2 * WORKERS, ..WorldConfig::default() });
    let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: true })?;
    let conntrack = Conntrack::heap(4 * flows + 4096, Timeouts::default())
        .map_err(DeviceError::io("allocate the connection table"))?;
    let affinity = Affinity::heap(64).map_err(DeviceError::io("allocate the table of clients"))?;
    let stats = StatsWriter::heap(u32::from(WORKERS), PORTS as u32);
    let all = fairway_tests::sys::cores();
    let core = |n: u16| all.get(usize::from(n)).map(|id| CoreId { id: *id });
    // On a machine with fewer cores the kernel decides; figures are then worth nothing.
    let cores: Vec<_> = (0..WORKERS).map(|n| core(n).filter(|_| all.len() >= usize::from(WORKERS))).collect();
    let plan = Plan {
        cores: &cores,
        poll: PollMode::Busy,
        flows: 4 * flows as usize,
        ports: PORTS,
        umem: &umem,
        conntrack: &conntrack,
        affinity: &affinity,
        stats: &stats,
    };
    let crew = Crew::start(&plan, || Ok(world.readers.reader()))?;
    let sources = if one_at_a_time { 1 } else { WORKERS };
    let mut wires = Vec::new();
    for n in 0..sources {
        // A pod's port belongs to the worker of its number, modulo their count.
        let server = WORKERS + if handed { (n + 1) % WORKERS } else { n };
        let wire = Arc::new(Wire::default());
        let headers = addr::from_pod(n, addr::pod(server));
        // As long as the shortest frame without FCS: 60 bytes.
        let packet = |flow: u32| headers.udp(1024 + flow as u16, 9000, &[0; 18]);
        let latency = Histogram::new_with_bounds(1, 10_000_000_000, 3).ok().filter(|_| one_at_a_time);
        let sink = Sink {
            port: addr::pod_port(server).0,
            arrived: 0,
            latency,
            ns_per_clock: 1.0 / clock::tsc_per_ns(),
            wire: wire.clone(),
        };
        let source = Source {
            port: addr::pod_port(n).0,
            packets: (0..flows).map(packet).collect(),
            next: 0,
            sent: 0,
            window: if one_at_a_time { 1 } else { WINDOW },
            wire: wire.clone(),
        };
        crew.open_ports([
            (addr::pod_port(server), PortKind::Pod, vec![Box::new(sink) as Box<dyn Queue>]),
            (addr::pod_port(n), PortKind::Pod, vec![Box::new(source) as Box<dyn Queue>]),
        ]);
        wires.push(wire);
    }
    let arrived = || wires.iter().map(|wire| wire.arrived.load(Ordering::Acquire)).sum::<u64>();
    // Every flow's first packet, and what follows it until caches and predictors have settled.
    std::thread::sleep(time / 4);
    wires.iter().for_each(|wire| wire.counting.store(true, Ordering::Relaxed));
    let (start, before) = (Instant::now(), arrived());
    std::thread::sleep(time);
    let (seconds, packets) = (start.elapsed().as_secs_f64(), arrived() - before);
    let tally = crew.stop()?;
    world.finish();
    let broken = |what: String| DeviceError::Broken { device: "engine".to_owned(), what };
    let count = |counter| tally.counters.iter().map(|counters| counters.get(counter)).sum::<u64>();
    let dropped: u64 = tally.counters.iter().map(|counters| counters.all_drops()).sum();
    if tally.packets_unaccounted != 0 || umem.pool().missing() != 0 || packets == 0 {
        let (packets_lost, frames) = (tally.packets_unaccounted, umem.pool().missing());
        let what = format!(
            "{packets} came through; {packets_lost} unaccounted for (I2), {frames} frames missing (I1)"
        );
        return Err(broken(what));
    }
    if dropped > 0 {
        let full: u64 = tally.counters.iter().map(|counters| counters.drops(DropReason::HandoffFull)).sum();
        return Err(broken(format!("{dropped} packets were dropped, {full} of them by full rings")));
    }
    let latency = wires[0].latency.lock().ok().and_then(|place| place.as_ref().map(Latency::of));
    Ok(Trial {
        ns_per_packet: seconds * 1e9 * f64::from(sources) / packets as f64,
        latency: latency.unwrap_or_default(),
        handed: count(Counter::HandoffOut),
        arrived: arrived(),
    })
}

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &HandoffArgs) -> Result<(), CliError> {
    if fairway_tests::sys::cores().len() < usize::from(WORKERS) {
        return Err(CliError::Usage("a hand-off needs two cores"));
    }
    warn_of_company()?;
    let time = Duration::from_millis(args.trial_ms.into());
    let mut trials: [Vec<Trial>; 4] = Default::default();
    for _ in 0..args.rounds {
        for (index, trials) in trials.iter_mut().enumerate() {
            trials.push(measure(index & 1 == 1, index & 2 == 2, args.flows, time)?);
        }
    }
    let median = |trials: &[Trial], value: fn(&Trial) -> f64| {
        Sample::of(&trials.iter().map(value).collect::<Vec<_>>()).median
    };
    let [local, handed, local_one, handed_one] = &trials;
    let mut figures = Vec::new();
    println!(
        "two workers, 64-byte packets, pod to pod, {} flows each; medians of {} rounds",
        args.flows, args.rounds
    );
    println!("{:12} {:>14} {:>12} {:>10} {:>10}", "", "ns per packet", "one: p50 ns", "p99 ns", "p99.9 ns");
    let mut rows = [[0.0; 4]; 2];
    for (row, (name, full, one)) in
        rows.iter_mut().zip([("local", local, local_one), ("handed over", handed, handed_one)])
    {
        *row = [
            median(full, |trial| trial.ns_per_packet),
            median(one, |trial| trial.latency.p50_ns as f64),
            median(one, |trial| trial.latency.p99_ns as f64),
            median(one, |trial| trial.latency.p999_ns as f64),
        ];
        let params = json!({ "way": name, "flows": args.flows });
        let metrics =
            ["handoff_ns_per_packet", "handoff_latency_p50", "handoff_latency_p99", "handoff_latency_p999"];
        for (metric, value) in metrics.into_iter().zip(*row) {
            figures.push(Figure::new("handoff", params.clone(), metric, value, "ns"));
        }
        println!("{name:12} {:>14.1} {:>12.0} {:>10.0} {:>10.0}", row[0], row[1], row[2], row[3]);
    }
    let added = [rows[1][0] - rows[0][0], rows[1][1] - rows[0][1]];
    println!(
        "a hand-off adds {:.1} ns of a worker's time per packet, and {:.0} ns of latency",
        added[0], added[1]
    );
    let params = json!({ "flows": args.flows });
    figures.push(Figure::new("handoff", params.clone(), "handoff_added_ns_per_packet", added[0], "ns"));
    figures.push(Figure::new("handoff", params, "handoff_added_latency_p50", added[1], "ns"));
    if let Some(target) = &args.report {
        Report::of_target(target).add(&figures)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_goes_over_the_ring_when_ports_belong_to_different_workers_and_none_otherwise() {
        let time = Duration::from_millis(60);
        for one_at_a_time in [false, true] {
            let local = measure(false, one_at_a_time, 10, time).expect("a measurement");
            assert_eq!(local.handed, 0);
            assert!(local.arrived > 0 && local.ns_per_packet > 0.0);
            let handed = measure(true, one_at_a_time, 10, time).expect("a measurement");
            assert!(handed.arrived > 0);
            // What arrived at the end went over a ring before.
            assert!(handed.handed >= handed.arrived, "{handed:?}");
            assert_eq!(handed.latency.p50_ns > 0, one_at_a_time);
        }
    }
}
