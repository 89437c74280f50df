//! `fairway-pktgen churn`: what changes of tables cost while packets flow. The scenario says which and how many a second;
//! rounds with them and without alternate on one device.

use crate::pktgen::cli::CliError;
use crate::pktgen::device::Bench;
use crate::pktgen::rfc2544::stats::Sample;
use crate::pktgen::run::{DeviceName, start, warn_of_company};
use crate::pktgen::scenario::{Arrival, Scenario};
use crate::pktgen::trial::Outcome;
use fairway_tests::report::{Figure, Report};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `churn`.
#[derive(clap::Args)]
pub struct ChurnArgs {
    /// Scenario file with tables.changes_per_s or tables.route_changes_per_s
    pub scenario: PathBuf,
    /// Device under test
    #[arg(long, value_enum, default_value_t = DeviceName::Memory)]
    pub device: DeviceName,
    /// Rounds; medians are reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Add figures to target/reports/NAME.json
    #[arg(long)]
    pub report: Option<String>,
}

/// Time for changes to begin, or for the last ones to be taken in.
const SETTLE: Duration = Duration::from_millis(100);

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &ChurnArgs) -> Result<(), CliError> {
    let scenario = Scenario::read(&args.scenario)?;
    warn_of_company()?;
    let mut bench = Bench::new(&scenario, start(args.device, &scenario)?)?;
    if !bench.device().set_churn(false) {
        return Err(CliError::Usage(
            "nothing changes: set tables.changes_per_s or tables.route_changes_per_s",
        ));
    }
    bench.wait_ready()?;
    bench.warm_up()?;
    let mut rounds: [Vec<[Outcome; 2]>; 2] = Default::default();
    for _ in 0..args.rounds {
        for (on, rounds) in [false, true].into_iter().zip(&mut rounds) {
            bench.device().set_churn(on);
            std::thread::sleep(SETTLE);
            let most = bench.trial(Arrival::LineRate, &mut |_| {})?;
            // Latency says something only where no queue is full.
            let rate_pps = (most.received_pps / 2.0).max(1.0);
            let half = bench.trial(Arrival::Paced { rate_pps }, &mut |_| {})?;
            rounds.push([most, half]);
        }
    }
    let device = bench.device_name();
    let words = bench.finish()?;
    let tables = scenario.tables;
    println!(
        "{} over {device}: {} changes of Services and {} of routes a second; medians of {} rounds",
        scenario.name, tables.changes_per_s, tables.route_changes_per_s, args.rounds
    );
    println!(
        "{:8} {:>14} {:>12} {:>10} {:>10} {:>10}   (latency and loss at half the rate)",
        "changes", "received/s", "machine ns", "p50 us", "p99 us", "loss %"
    );
    let mut figures = Vec::new();
    for (name, rounds) in ["none", "all"].into_iter().zip(&rounds) {
        let median = |value: &dyn Fn(&[Outcome; 2]) -> f64| {
            Sample::of(&rounds.iter().map(value).collect::<Vec<_>>()).median
        };
        let params = json!({
            "device": device, "changes": name, "service_changes_per_s": tables.changes_per_s,
            "route_changes_per_s": tables.route_changes_per_s,
        });
        let mut add = |metric: &str, value: f64, unit: &str| {
            figures.push(Figure::new(&scenario.name, params.clone(), metric, value, unit));
            value
        };
        println!(
            "{name:8} {:>14.0} {:>12.1} {:>10.1} {:>10.1} {:>10.4}",
            add("churn_received", median(&|of| of[0].received_pps), "1/s"),
            add("churn_machine_ns_per_packet", median(&|of| of[0].machine_ns_per_packet), "ns"),
            add("churn_latency_p50", median(&|of| of[1].latency.p50_ns as f64), "ns") / 1e3,
            add("churn_latency_p99", median(&|of| of[1].latency.p99_ns as f64), "ns") / 1e3,
            add("churn_loss", median(&|of| of[1].loss), "1") * 100.0,
        );
    }
    let ratios: Vec<f64> = rounds[0]
        .iter()
        .zip(&rounds[1])
        .filter(|(without, _)| without[0].received_pps > 0.0)
        .map(|(without, with)| with[0].received_pps / without[0].received_pps)
        .collect();
    println!("with changes, {:.3} times as many packets a second as without", Sample::of(&ratios).median);
    for line in words {
        println!("  {line}");
    }
    if let Some(target) = &args.report {
        Report::of_target(target).add(&figures)?;
    }
    Ok(())
}
