//! Throughput, latency, frame loss and back-to-back frames of one device on one path, size by size.

use super::search::{Search, Verdict};
use super::stats::Sample;
use crate::pktgen::device::{Bench, DeviceError};
use crate::pktgen::scenario::{Arrival, TrialLimits};
use crate::pktgen::trial::{Latency, Outcome, Trial};
use serde::Serialize;

/// Sizes of RFC 2544 section 9.1 that a pod's MTU of 1450 carries, and the largest there in place of 1518.
pub const SIZES: [u16; 7] = [64, 128, 256, 512, 1024, 1280, 1468];
/// The search's lowest rate, as a share of the ceiling.
const LOWEST: f64 = 0.005;
/// Loads at which latency is measured, as shares of the throughput.
const LOADS: [f64; 3] = [1.0, 0.5, 0.1];
/// Longest burst tried for back-to-back frames.
const MAX_BURST: u32 = 65_536;
/// Back-to-back frames say something only where the throughput is below this share of the ceiling
/// (RFC 9004 section 5).
const BELOW_CEILING: f64 = 0.95;

/// What to measure, and how thoroughly.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Frame sizes in bytes with FCS.
    pub sizes: Vec<u16>,
    /// Length of a trial; RFC 2544 asks for 60 s.
    pub trial_ms: u32,
    /// Searches per size.
    pub repeats: u32,
    /// Loss that passes, as a share.
    pub loss_limit: f64,
    /// Failing trials in a row that fail a rate.
    pub attempts: u32,
    /// The search ends at this relative width.
    pub precision: f64,
    /// Whether to measure frame loss rates and back-to-back frames too.
    pub full: bool,
}

/// Latency at one load.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyAt {
    /// Share of the throughput that was offered.
    pub load: f64,
    /// Packets a second.
    pub rate_pps: f64,
    /// What packets met.
    pub latency: Latency,
}

/// Frame loss at one load.
#[derive(Clone, Debug, Serialize)]
pub struct LossAt {
    /// Share of the ceiling that was offered.
    pub load: f64,
    /// Packets a second.
    pub rate_pps: f64,
    /// Lost packets as a share.
    pub loss: f64,
}

/// Back-to-back frames (RFC 9004).
#[derive(Clone, Debug, Serialize)]
pub struct BackToBack {
    /// Longest burst without loss.
    pub frames: Sample,
    /// Time that such a burst takes at the ceiling: the buffer if the device forwarded nothing meanwhile.
    pub implied_buffer_s: f64,
    /// The same less what the device forwarded meanwhile (section 6.4).
    pub corrected_buffer_s: f64,
}

/// All of one frame size.
#[derive(Clone, Debug, Serialize)]
pub struct SizeResult {
    /// Frame size in bytes with FCS.
    pub size_bytes: u16,
    /// Packets a second that the generator offers at most through this device.
    pub ceiling_pps: f64,
    /// Packets a second that arrive when the ceiling is offered.
    pub overload_pps: f64,
    /// Highest rate within the loss limit, over all searches.
    pub throughput_pps: Sample,
    /// CPU time of the whole machine per packet at that rate, in nanoseconds.
    pub machine_ns_per_packet: f64,
    /// Of that, softirq.
    pub softirq_ns_per_packet: f64,
    /// Latencies, by load.
    pub latency: Vec<LatencyAt>,
    /// Frame loss, by load, from the ceiling downwards.
    pub frame_loss: Vec<LossAt>,
    /// Back-to-back frames, where they say something.
    pub back_to_back: Option<BackToBack>,
    /// Trials made.
    pub trials: u32,
}

/// Measures one device and path, and says after each size how it went.
pub struct Benchmark<'a> {
    bench: &'a mut Bench,
    config: &'a Config,
    trials: u32,
}

impl<'a> Benchmark<'a> {
    /// For a device that is ready and warm.
    pub fn new(bench: &'a mut Bench, config: &'a Config) -> Benchmark<'a> {
        Benchmark { bench, config, trials: 0 }
    }

    /// All benchmarks at one size.
    ///
    /// # Errors
    /// If the device or the system fails; a device that loses packets does not.
    pub fn size(&mut self, size_bytes: u16) -> Result<SizeResult, DeviceError> {
        self.trials = 0;
        self.bench.set_sizes(&[size_bytes]);
        let overload = self.trial(Arrival::LineRate, u32::MAX)?;
        let ceiling_pps = overload.sent_pps.max(1.0);
        let mut rates = Vec::new();
        for _ in 0..self.config.repeats.max(1) {
            rates.push(self.throughput(ceiling_pps)?);
        }
        let throughput_pps = Sample::of(&rates);
        let rate = throughput_pps.median;
        let (mut latency, mut cost) = (Vec::new(), None);
        for load in LOADS.into_iter().filter(|_| rate > 0.0) {
            let rate_pps = (rate * load).max(1.0);
            let outcome = self.trial(Arrival::Paced { rate_pps }, u32::MAX)?;
            latency.push(LatencyAt { load, rate_pps, latency: outcome.latency });
            cost.get_or_insert((outcome.machine_ns_per_packet, outcome.softirq_ns_per_packet));
        }
        let (machine_ns_per_packet, softirq_ns_per_packet) = cost.unwrap_or_default();
        let (mut frame_loss, mut back_to_back) = (Vec::new(), None);
        if self.config.full {
            frame_loss = self.frame_loss(ceiling_pps)?;
            if rate > 0.0 && rate < BELOW_CEILING * ceiling_pps {
                back_to_back = Some(self.back_to_back(ceiling_pps, rate)?);
            }
        }
        Ok(SizeResult {
            size_bytes,
            ceiling_pps,
            overload_pps: overload.received_pps,
            throughput_pps,
            machine_ns_per_packet,
            softirq_ns_per_packet,
            latency,
            frame_loss,
            back_to_back,
            trials: self.trials,
        })
    }

    fn trial(&mut self, arrival: Arrival, max_packets: u32) -> Result<Outcome, DeviceError> {
        self.trials += 1;
        let limits = TrialLimits { duration_ms: self.config.trial_ms, max_packets };
        self.bench.run(&Trial { arrival, limits }, &mut |_| {})
    }

    /// RFC 2544 section 26.1.
    fn throughput(&mut self, ceiling_pps: f64) -> Result<f64, DeviceError> {
        let Config { loss_limit, attempts, precision, .. } = *self.config;
        let (min, max) = ((ceiling_pps * LOWEST).max(1.0), ceiling_pps);
        let search = Search { min, max, precision, loss_limit, attempts };
        let found = search.highest(|rate_pps| {
            let outcome = self.trial(Arrival::Paced { rate_pps }, u32::MAX)?;
            Ok::<_, DeviceError>(Verdict { loss: outcome.loss, offered: outcome.offered })
        })?;
        Ok(found.rate)
    }

    /// RFC 2544 section 26.3: from the ceiling down in tenths, until two loads in a row lose nothing.
    fn frame_loss(&mut self, ceiling_pps: f64) -> Result<Vec<LossAt>, DeviceError> {
        let (mut points, mut clean) = (Vec::new(), 0);
        for tenth in (1..=10).rev() {
            let load = f64::from(tenth) / 10.0;
            let rate_pps = (ceiling_pps * load).max(1.0);
            let outcome = self.trial(Arrival::Paced { rate_pps }, u32::MAX)?;
            points.push(LossAt { load, rate_pps, loss: outcome.loss });
            clean = if outcome.lost == 0 { clean + 1 } else { 0 };
            if clean == 2 {
                break;
            }
        }
        Ok(points)
    }

    /// RFC 9004 sections 6.2 to 6.4.
    fn back_to_back(&mut self, ceiling_pps: f64, throughput_pps: f64) -> Result<BackToBack, DeviceError> {
        let (mut lengths, attempts) = (Vec::new(), self.config.attempts);
        for _ in 0..self.config.repeats.max(1) {
            let longest = Search::longest(1, MAX_BURST, |burst| {
                for _ in 0..attempts.max(1) {
                    if self.trial(Arrival::LineRate, burst)?.lost == 0 {
                        return Ok(true);
                    }
                }
                Ok::<_, DeviceError>(false)
            })?;
            lengths.push(f64::from(longest));
        }
        let frames = Sample::of(&lengths);
        let implied_buffer_s = frames.mean / ceiling_pps;
        let corrected_buffer_s = implied_buffer_s * (1.0 - throughput_pps / ceiling_pps);
        Ok(BackToBack { frames, implied_buffer_s, corrected_buffer_s })
    }
}
