//! `fairway-pktgen idle`: what adaptive polling takes while nothing happens, and what it adds to the first packet
//! after that. The real programs serve a node's pods; the engine is started in one way of waiting and the other, in
//! turn, so that a noisy moment falls on both. Packets come one at a time, some milliseconds apart.

use crate::pktgen::cli::CliError;
use crate::pktgen::cpu::CpuTime;
use crate::pktgen::device::fairway::{FairwayDevice, Poll};
use crate::pktgen::device::ground::MAX_PODS;
use crate::pktgen::device::{Bench, Device, DeviceError, PROBES, READY};
use crate::pktgen::paths::PathName;
use crate::pktgen::rfc2544::stats::Sample;
use crate::pktgen::run::warn_of_company;
use crate::pktgen::scenario::{Arrival, Scenario, TrialLimits};
use crate::pktgen::trial::{Latency, Trial};
use crate::pktgen::waking::{Wakes, wakes};
use fairway_tests::report::{Figure, Report};
use serde_json::json;
use std::time::{Duration, Instant};

/// Arguments of `idle`.
#[derive(clap::Args)]
pub struct IdleArgs {
    /// Pod ports that the engine serves
    #[arg(long, value_delimiter = ',', default_values_t = [2, 10, 250], value_parser = clap::value_parser!(u16).range(2..=i64::from(MAX_PODS)))]
    pub pods: Vec<u16>,
    /// First packets of each round and way of waiting
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub packets: u32,
    /// Mean milliseconds from one to the next, exponentially distributed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub gap_ms: u32,
    /// Milliseconds without a packet, over which CPU time is taken
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=600_000))]
    pub idle_ms: u32,
    /// Rounds; figures are medians over them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Add figures to target/reports/NAME.json
    #[arg(long)]
    pub report: Option<String>,
}

/// Most of a core that an idle engine may take.
const CPU_TARGET: f64 = 0.03;
/// Most that sleeping may add to a first packet.
const ADDED_TARGET_US: f64 = 50.0;

/// A percentile's name and how to take it.
type Percentile = (&'static str, fn(&Latency) -> u64);

/// One round of one way of waiting.
struct Round {
    /// Shares of a core: engine, control, the whole machine.
    engine: f64,
    control: f64,
    machine: f64,
    first: Latency,
}

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &IdleArgs) -> Result<(), CliError> {
    warn_of_company()?;
    let idle = Duration::from_millis(args.idle_ms.into());
    let before = machine(idle)?;
    println!("before Fairway runs, others use {:.2} % of a core", before * 100.0);
    let machines = wakes(args.packets, Duration::from_millis(args.gap_ms.into()))
        .map_err(DeviceError::io("make an eventfd"))?;
    let [p50, p99] = [0.5, 0.99].map(|share| machines.percentile(share));
    println!("waking any thread on the other core takes {p50:.1} us, 99th percentile {p99:.1} us");
    println!(
        "{:>5} {:9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10}",
        "pods", "poll", "engine %", "control %", "machine %", "p50 us", "p99 us", "max us"
    );
    let mut figures = Vec::new();
    for pods in &args.pods {
        let scenario = Scenario::plain(PathName::SameNode, 1);
        let device = FairwayDevice::with_pods(&scenario, *pods)?;
        let mut bench = Bench::new(&scenario, Box::new(device))?;
        let (mut busy, mut adaptive) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            for (poll, rounds) in [(Poll::Busy, &mut busy), (Poll::Adaptive, &mut adaptive)] {
                switch(&mut bench, poll)?;
                rounds.push(round(args, &mut bench, idle)?);
            }
        }
        for line in bench.finish()? {
            eprintln!("  {line}");
        }
        figures.extend(tell(*pods, before, &machines, &busy, &adaptive));
    }
    if let Some(target) = &args.report {
        Report::of_target(target).add(&figures)?;
    }
    Ok(())
}

/// Starts the engine anew with another way of waiting, and waits until it is it that carries packets: until its ports are
/// open, the kernel does.
///
/// # Errors
/// If it does not start, or packets do not come through.
pub fn switch(bench: &mut Bench<FairwayDevice>, poll: Poll) -> Result<(), DeviceError> {
    bench.device().set_poll(poll)?;
    let start = Instant::now();
    loop {
        let before = bench.device().rx_packets()?;
        bench.wait_ready()?;
        let carried = bench.device().rx_packets()?.saturating_sub(before);
        if carried >= u64::from(PROBES) {
            return Ok(());
        }
        if start.elapsed() > READY {
            let what = format!("the engine has carried {carried} of {PROBES} packets");
            return Err(DeviceError::Broken { device: "fairway".to_owned(), what });
        }
    }
}

/// Busy share of one core over a time, of the whole machine.
fn machine(over: Duration) -> Result<f64, DeviceError> {
    crate::pktgen::cpu::others(over).map_err(DeviceError::io("read /proc/stat"))
}

fn round(args: &IdleArgs, bench: &mut Bench<FairwayDevice>, idle: Duration) -> Result<Round, DeviceError> {
    let limits = TrialLimits { duration_ms: 600_000, max_packets: args.packets };
    let rate_pps = 1e3 / f64::from(args.gap_ms);
    let outcome = bench.run(&Trial { arrival: Arrival::Poisson { rate_pps }, limits }, &mut |_| {})?;
    if outcome.lost > 0 {
        let hint = bench.device().hint();
        let what = format!("{} of {} single packets were lost; {hint}", outcome.lost, outcome.sent);
        return Err(DeviceError::Broken { device: "fairway".to_owned(), what });
    }
    let read = || CpuTime::read().map_err(DeviceError::io("read /proc/stat"));
    let (start, of_programs, of_all) = (Instant::now(), bench.device().cpu_ns()?, read()?);
    std::thread::sleep(idle);
    let seconds = start.elapsed().as_secs_f64();
    let now = bench.device().cpu_ns()?;
    // A thread that has ended meanwhile takes its time with it.
    let spent = |program: usize| now[program].saturating_sub(of_programs[program]);
    let share = |program: usize| spent(program) as f64 / 1e9 / seconds;
    Ok(Round {
        engine: share(0),
        control: share(1),
        machine: read()?.since(&of_all).busy_s / seconds,
        first: outcome.latency,
    })
}

fn median(rounds: &[Round], value: impl Fn(&Round) -> f64) -> f64 {
    Sample::of(&rounds.iter().map(value).collect::<Vec<_>>()).median
}

/// Prints what rounds gave, with verdicts, and makes figures of it.
fn tell(pods: u16, before: f64, machines: &Wakes, busy: &[Round], adaptive: &[Round]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let us = |ns: u64| ns as f64 / 1e3;
    let percentiles: [Percentile; 3] = [("p50", |l| l.p50_ns), ("p99", |l| l.p99_ns), ("max", |l| l.max_ns)];
    let mut added = [0.0; 3];
    for (poll, rounds) in [(Poll::Busy, busy), (Poll::Adaptive, adaptive)] {
        let params = json!({ "pods": pods, "poll": poll.name() });
        let mut add = |metric: &str, value: f64, unit: &str| {
            figures.push(Figure::new("idle", params.clone(), metric, value, unit));
            value
        };
        let engine = add("idle_engine_core_share", median(rounds, |round| round.engine), "1");
        let control = add("idle_control_core_share", median(rounds, |round| round.control), "1");
        let machine = median(rounds, |round| round.machine) - before;
        add("idle_machine_core_share", machine, "1");
        let mut latencies = [0.0; 3];
        for (((name, of), at), added) in percentiles.iter().zip(&mut latencies).zip(&mut added) {
            *at = add(&format!("first_packet_{name}_us"), median(rounds, |round| us(of(&round.first))), "us");
            *added = *at - *added;
        }
        println!(
            "{pods:>5} {:9} {:>9.2} {:>9.2} {:>9.2} {:>10.1} {:>10.1} {:>10.1}",
            poll.name(),
            engine * 100.0,
            control * 100.0,
            machine * 100.0,
            latencies[0],
            latencies[1],
            latencies[2]
        );
    }
    let engine = median(adaptive, |round| round.engine);
    println!(
        "      idle: {:.2} % of a core, target < {:.0} %: {}",
        engine * 100.0,
        CPU_TARGET * 100.0,
        verdict(engine < CPU_TARGET)
    );
    for ((name, share), added) in [("p50", 0.5), ("p99", 0.99)].into_iter().zip(added) {
        let waking = machines.percentile(share);
        let mut add = |metric: &str, value: f64| {
            figures.push(Figure::new("idle", json!({ "pods": pods }), metric, value, "us"));
        };
        add(&format!("first_packet_added_{name}_us"), added);
        add(&format!("waking_{name}_us"), waking);
        println!(
            "      added to the first packet, {name}: {added:.1} us (waking any thread: {waking:.1}), target <= {ADDED_TARGET_US:.0} us: {}",
            verdict(added <= ADDED_TARGET_US)
        );
    }
    figures
}

/// How a target was met.
pub fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(engine: f64, p50_ns: u64, p99_ns: u64) -> Round {
        let first = Latency { p50_ns, p99_ns, max_ns: p99_ns, ..Latency::default() };
        Round { engine, control: 0.001, machine: engine + 0.01, first }
    }

    #[test]
    fn what_is_added_is_the_difference_of_the_medians_over_rounds() {
        let busy = [round(1.0, 5_000, 9_000), round(1.0, 6_000, 90_000), round(1.0, 7_000, 10_000)];
        let adaptive = [round(0.02, 30_000, 60_000), round(0.01, 40_000, 50_000), round(0.9, 20_000, 70_000)];
        let machines = Wakes::from_us(vec![15.0, 20.0, 25.0]);
        let figures = tell(10, 0.01, &machines, &busy, &adaptive);
        let value = |metric: &str, poll: Option<&str>| {
            let found = figures.iter().find(|f| f.metric == metric && f.params["poll"].as_str() == poll);
            found.map(|figure| (figure.value * 1e3).round() / 1e3)
        };
        assert_eq!(value("first_packet_added_p50_us", None), Some(24.0));
        assert_eq!(value("first_packet_added_p99_us", None), Some(50.0));
        assert_eq!((value("waking_p50_us", None), value("waking_p99_us", None)), (Some(20.0), Some(25.0)));
        assert_eq!(value("idle_engine_core_share", Some("adaptive")), Some(0.02));
        assert_eq!(value("idle_machine_core_share", Some("adaptive")), Some(0.02));
        assert_eq!(value("idle_engine_core_share", Some("busy")), Some(1.0));
    }
}
