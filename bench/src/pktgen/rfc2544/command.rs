//! `fairway-pktgen rfc2544`: one device, one or more scenarios, all sizes.

use super::bench::{Benchmark, Config, SIZES, SizeResult};
use crate::pktgen::cli::CliError;
use crate::pktgen::device::{Bench, DeviceError};
use crate::pktgen::run::{DeviceName, start, warn_of_company};
use crate::pktgen::scenario::Scenario;
use fairway_tests::report::{Figure, Report};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `rfc2544`.
#[derive(clap::Args)]
pub struct Rfc2544Args {
    /// Scenario files; sizes, arrival and trial limits in them are not used
    #[arg(required = true)]
    pub scenarios: Vec<PathBuf>,
    /// Device under test
    #[arg(long, value_enum, default_value_t = DeviceName::Memory)]
    pub device: DeviceName,
    /// Frame sizes in bytes with FCS
    #[arg(long, value_delimiter = ',', default_values_t = SIZES)]
    pub sizes: Vec<u16>,
    /// Trials and search.
    #[command(flatten)]
    pub method: Method,
    /// Only throughput and latency, without frame loss and back-to-back frames
    #[arg(long)]
    pub short: bool,
    /// Write everything as JSON to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Add figures to target/reports/NAME.json
    #[arg(long)]
    pub report: Option<String>,
}

/// How rates are searched for.
#[derive(Clone, Copy, clap::Args)]
pub struct Method {
    /// Milliseconds of a trial; RFC 2544 asks for 60000
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=600_000))]
    pub trial_ms: u32,
    /// Searches per size, over which confidence is computed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Share of packets that may be lost; RFC 2544 asks for 0, which on a shared machine finds its noise
    #[arg(long, default_value_t = 0.001)]
    pub loss_limit: f64,
    /// A rate fails when so many trials in a row fail
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10))]
    pub attempts: u32,
    /// The search ends when the rate is known to this share
    #[arg(long, default_value_t = 0.02)]
    pub precision: f64,
}

impl Method {
    /// With sizes, and whether frame loss and back-to-back frames are measured too.
    pub fn config(&self, sizes: &[u16], full: bool) -> Config {
        let Method { trial_ms, repeats, loss_limit, attempts, precision } = *self;
        Config { sizes: sizes.to_vec(), trial_ms, repeats, loss_limit, attempts, precision, full }
    }
}

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &Rfc2544Args) -> Result<(), CliError> {
    let config = args.method.config(&args.sizes, !args.short);
    warn_of_company()?;
    let mut all = Vec::new();
    for path in &args.scenarios {
        let mut scenario = Scenario::read(path)?;
        for size in &args.sizes {
            scenario.frames.size_bytes = crate::pktgen::scenario::Sizes::One(*size);
            scenario.check(path)?;
        }
        let device = start(args.device, &scenario)?;
        let mut bench = Bench::new(&scenario, device)?;
        bench.wait_ready()?;
        bench.warm_up()?;
        let name = bench.device_name();
        println!(
            "{} over {name}: {} flows, loss up to {} %",
            scenario.name,
            flows(&scenario),
            config.loss_limit * 100.0
        );
        heading();
        let mut results = Vec::new();
        for size in &config.sizes {
            let result = Benchmark::new(&mut bench, &config).size(*size)?;
            row(&result);
            results.push(result);
        }
        for line in bench.finish()? {
            println!("  {line}");
        }
        if let Some(target) = &args.report {
            Report::of_target(target).add(&figures(&scenario, name, &results))?;
        }
        all.push(json!({ "scenario": scenario.name, "device": name, "config": config, "sizes": results }));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text).map_err(DeviceError::io(format!("write {}", path.display())))?;
    }
    Ok(())
}

fn flows(scenario: &Scenario) -> u32 {
    scenario.streams.iter().map(|stream| stream.flows).sum()
}

fn heading() {
    println!(
        "{:>6} {:>12} {:>18} {:>11} {:>9} {:>9} {:>9} {:>12} {:>12}",
        "bytes", "ceiling", "throughput", "Mbit/s", "p50 us", "p99 us", "max us", "machine ns", "burst"
    );
}

/// One line of the table; latency at half the throughput, where queues are short.
fn row(result: &SizeResult) {
    let half = result.latency.get(1).map(|at| at.latency).unwrap_or_default();
    let us = |ns: u64| ns as f64 / 1e3;
    let rate = &result.throughput_pps;
    // With preamble and gap, 20 bytes.
    let mbit_s = rate.median * f64::from(result.size_bytes + 20) * 8.0 / 1e6;
    println!(
        "{:>6} {:>12.0} {:>9.0} ± {:>6.0} {:>11.0} {:>9.1} {:>9.1} {:>9.1} {:>12.0} {:>12}",
        result.size_bytes,
        result.ceiling_pps,
        rate.mean,
        rate.half_width,
        mbit_s,
        us(half.p50_ns),
        us(half.p99_ns),
        us(half.max_ns),
        result.machine_ns_per_packet,
        result.back_to_back.as_ref().map_or("–".to_owned(), |b| format!("{:.0}", b.frames.mean))
    );
}

/// The figures of one scenario.
fn figures(scenario: &Scenario, device: &str, results: &[SizeResult]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for result in results {
        let base = json!({ "device": device, "size_bytes": result.size_bytes, "flows": flows(scenario) });
        let with = |key: &str, value: f64| {
            let mut params = base.clone();
            params[key] = json!(value);
            params
        };
        let mut add = |params: serde_json::Value, metric: &str, value: f64, unit: &str| {
            figures.push(Figure::new(&scenario.name, params, metric, value, unit));
        };
        add(base.clone(), "ceiling", result.ceiling_pps, "1/s");
        add(base.clone(), "overload", result.overload_pps, "1/s");
        add(base.clone(), "throughput", result.throughput_pps.mean, "1/s");
        add(base.clone(), "throughput_half_width_95", result.throughput_pps.half_width, "1/s");
        add(base.clone(), "machine_ns_per_packet", result.machine_ns_per_packet, "ns");
        add(base.clone(), "softirq_ns_per_packet", result.softirq_ns_per_packet, "ns");
        for at in &result.latency {
            let all = [(50.0, at.latency.p50_ns), (90.0, at.latency.p90_ns), (99.0, at.latency.p99_ns)];
            for (percentile, ns) in
                all.into_iter().chain([(99.9, at.latency.p999_ns), (100.0, at.latency.max_ns)])
            {
                let mut params = with("load", at.load);
                params["percentile"] = json!(percentile);
                add(params, "latency", ns as f64, "ns");
            }
        }
        for at in &result.frame_loss {
            add(with("load", at.load), "frame_loss", at.loss, "1");
        }
        if let Some(burst) = &result.back_to_back {
            add(base.clone(), "back_to_back", burst.frames.mean, "packets");
            add(base.clone(), "corrected_buffer_time", burst.corrected_buffer_s * 1e6, "us");
        }
    }
    figures
}
