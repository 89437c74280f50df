//! `fairway-pktgen cost`: nanoseconds per packet in the engine alone, by flows, by Services and by cores. The
//! scenarios are those of `make bench-engine`; packet I/O is not in these figures.

use crate::engine::{Case, Scenario};
use crate::pktgen::cli::CliError;
use crate::pktgen::device::DeviceError;
use crate::pktgen::rfc2544::stats::Sample;
use core_affinity::CoreId;
use fairway_dataplane::clock;
use fairway_pmd::MAX_BURST;
use fairway_tests::report::{Figure, Report};
use serde_json::json;
use std::sync::Barrier;

/// Arguments of `cost`.
#[derive(clap::Args)]
pub struct CostArgs {
    /// Numbers of flows
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 10_000, 100_000, 1_000_000])]
    pub flows: Vec<u32>,
    /// Numbers of Services
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 10_000])]
    pub services: Vec<u32>,
    /// Rounds per figure; medians are reported
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Bursts of 64 packets per round
    #[arg(long, default_value_t = 2000)]
    pub bursts: usize,
    /// Add figures to target/reports/NAME.json
    #[arg(long)]
    pub report: Option<String>,
}

/// Flows of the figures that are not about flows.
const FLOWS: u32 = 10_000;
/// Services of the figures that are not about Services.
const SERVICES: u32 = 100;

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &CostArgs) -> Result<(), CliError> {
    if args.flows.iter().any(|n| !(1..=2_000_000).contains(n))
        || args.services.iter().any(|n| !(1..=10_000).contains(n))
        || args.rounds == 0
        || args.bursts == 0
    {
        let what = "--flows takes 1 to 2000000, --services 1 to 10000, --rounds and --bursts at least 1";
        return Err(CliError::Usage(what));
    }
    let mut figures = Vec::new();
    let mut add = |case: Case, params: serde_json::Value, metric: &str, value: f64, unit: &str| {
        println!("{:20} {:20} {metric:26} {value:8.1} {unit}", case.name(), params.to_string());
        figures.push(Figure::new(case.name(), params, metric, value, unit));
    };
    for flows in &args.flows {
        for case in [Case::PodToPod, Case::Vxlan, Case::ServiceVxlan] {
            let ns = one(args, case, *flows, SERVICES);
            add(case, json!({ "flows": flows }), "ns_per_packet_by_flows", ns, "ns");
        }
    }
    for services in &args.services {
        let ns = one(args, Case::ServiceVxlan, FLOWS, *services);
        add(Case::ServiceVxlan, json!({ "services": services }), "ns_per_packet_by_services", ns, "ns");
    }
    let cores = fairway_tests::sys::cores();
    for count in 1..=cores.len() {
        let ns = at_once(args, &cores[..count])?;
        let params = json!({ "cores": count });
        add(Case::ServiceVxlan, params, "engine_rate_by_cores", count as f64 * 1e3 / ns, "Mpps");
    }
    if let Some(target) = &args.report {
        Report::of_target(target).add(&figures)?;
    }
    Ok(())
}

/// Median nanoseconds per packet of one worker.
fn one(args: &CostArgs, case: Case, flows: u32, services: u32) -> f64 {
    let mut scenario = Scenario::with_services(case, flows as usize, services);
    let rounds: Vec<f64> =
        (0..args.rounds).map(|_| scenario.round(args.bursts, MAX_BURST).clocks_per_packet).collect();
    scenario.finish();
    Sample::of(&rounds).median / clock::tsc_per_ns()
}

/// The same as a mean over one worker on each of these cores, all at once, each with its own flows.
fn at_once(args: &CostArgs, cores: &[usize]) -> Result<f64, DeviceError> {
    let start = Barrier::new(cores.len());
    let worker = |core: usize| {
        // Unpinned it measures too, less steadily.
        core_affinity::set_for_current(CoreId { id: core });
        let mut scenario = Scenario::with_services(Case::ServiceVxlan, FLOWS as usize, SERVICES);
        start.wait();
        let rounds: Vec<f64> =
            (0..args.rounds).map(|_| scenario.round(args.bursts, MAX_BURST).clocks_per_packet).collect();
        scenario.finish();
        Sample::of(&rounds).median / clock::tsc_per_ns()
    };
    let broken = || DeviceError::Broken { device: "engine".to_owned(), what: "a worker died".to_owned() };
    std::thread::scope(|scope| {
        let threads: Vec<_> = cores.iter().map(|core| scope.spawn(|| worker(*core))).collect();
        let mut sum = 0.0;
        for thread in threads {
            sum += thread.join().map_err(|_| broken())?;
        }
        Ok(sum / cores.len() as f64)
    })
}
