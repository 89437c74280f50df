//! `fairway-pktgen peers`: Fairway and others on the same namespaces with the same packets. Rounds are interleaved,
//! every device once per round, so that a noisy moment falls on all alike; ratios are taken within a round. Devices that rest
//! between rounds without using the machine stay up (giving kube-proxy 10,000 Services takes minutes), others are started anew.

use crate::pktgen::cli::CliError;
use crate::pktgen::device::{Bench, DeviceError};
use crate::pktgen::paths::PathName;
use crate::pktgen::ranges::Family;
use crate::pktgen::rfc2544::bench::{Benchmark, Config, SizeResult};
use crate::pktgen::rfc2544::command::Method;
use crate::pktgen::rfc2544::stats::Sample;
use crate::pktgen::run::{DeviceName, start, warn_of_company};
use crate::pktgen::scenario::{Frames, Scenario, Sizes, TableSizes, TrialLimits};
use crate::pktgen::sessions::{self, Sessions};
use fairway_tests::report::{Figure, Report};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// Arguments of `peers`.
#[derive(clap::Args)]
pub struct PeersArgs {
    /// Devices, the first of which the others are compared with
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [DeviceName::Fairway, DeviceName::Kernel, DeviceName::Ovs, DeviceName::Testpmd, DeviceName::Wire])]
    pub devices: Vec<DeviceName>,
    /// Paths
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [PathName::SameNode, PathName::ClusterIp, PathName::ServiceVxlan])]
    pub paths: Vec<PathName>,
    /// Address family
    #[arg(long, value_enum, default_value_t = Family::Ipv4)]
    pub family: Family,
    /// Frame size in bytes with FCS; IPv6 needs 84
    #[arg(long, default_value_t = 64)]
    pub size_bytes: u16,
    /// Flows of each path
    #[arg(long, default_value_t = 10_000)]
    pub flows: u32,
    /// Services in the tables
    #[arg(long, default_value_t = 100)]
    pub services: u32,
    /// Rounds over all devices and paths
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// TCP-like sessions open at a time, to measure connection rates through Services too; 0 is none
    #[arg(long, default_value_t = 0)]
    pub sessions: u32,
    /// Trials and search.
    #[command(flatten)]
    pub method: Method,
    /// Add figures to target/reports/NAME.json
    #[arg(long)]
    pub report: Option<String>,
}

/// Most sessions of one trial. Each has a source port of its own, of 64,512: behind a backend that several Services share, a kernel that
/// remembers connections for two minutes would have no port left to tell more of one client's apart, and refuse them.
const MAX_SESSIONS: u32 = 60_000;
/// Longest trial of sessions.
const SESSIONS_MS: u32 = 3000;

/// What one device gave on one path in one round.
struct Round {
    packets: SizeResult,
    sessions: Option<sessions::Outcome>,
}

/// Results of one device and path, one per round.
type Results = BTreeMap<(PathName, &'static str), Vec<Round>>;

/// Devices that are up and wait for their next round.
type Resting = BTreeMap<&'static str, Bench>;

fn scenario(args: &PeersArgs, path: PathName) -> Scenario {
    let mut scenario = Scenario {
        frames: Frames { size_bytes: Sizes::One(args.size_bytes) },
        tables: TableSizes { services: args.services, ..TableSizes::default() },
        ..Scenario::plain(path, args.flows)
    };
    scenario.streams[0].family = args.family;
    scenario
}

/// Runs the command.
///
/// # Errors
/// See [`CliError`]. A device that is not installed is left out, with its reason.
pub fn run(args: &PeersArgs) -> Result<(), CliError> {
    for path in &args.paths {
        scenario(args, *path).check(std::path::Path::new("of the command line"))?;
    }
    warn_of_company()?;
    // One search per round: the rounds are the repetitions.
    let config = Config { repeats: 1, ..args.method.config(&[args.size_bytes], false) };
    let (mut results, mut skipped, mut resting) = (Results::new(), Vec::new(), Resting::new());
    for round in 1..=args.rounds.max(1) {
        for device in &args.devices {
            if skipped.contains(device) {
                continue;
            }
            match measure(args, *device, &config, &mut resting, &mut results) {
                Ok(()) => {}
                Err(error @ (DeviceError::MissingProgram { .. } | DeviceError::Unfit { .. })) => {
                    println!("skipped: {error}");
                    skipped.push(*device);
                }
                Err(error) => return Err(error.into()),
            }
        }
        eprintln!("round {round} of {} done", args.rounds.max(1));
    }
    for bench in resting.into_values() {
        bench.finish()?;
    }
    let figures = figures(args, &results);
    print(args, &figures);
    if let Some(target) = &args.report {
        Report::of_target(target).add(&figures)?;
    }
    Ok(())
}

/// One device in one round: all paths that it has.
fn measure(
    args: &PeersArgs,
    device: DeviceName,
    config: &Config,
    resting: &mut Resting,
    results: &mut Results,
) -> Result<(), DeviceError> {
    let paths: Vec<PathName> = args.paths.iter().copied().filter(|path| device.has(*path)).collect();
    let Some(first) = paths.first() else { return Ok(()) };
    let mut bench = match resting.remove(device.name()) {
        Some(bench) => bench,
        None => bring_up(args, device, *first)?,
    };
    for path in paths {
        bench.change_scenario(&scenario(args, path))?;
        bench.wait_ready()?;
        bench.warm_up()?;
        // Other paths' packets do not come back, and testpmd and OVS have no use for answers.
        if path == PathName::ClusterIp && args.sessions > 0 {
            bench.establish(args.size_bytes)?;
        }
        let packets = Benchmark::new(&mut bench, config).size(args.size_bytes)?;
        let sessions = match path {
            PathName::ClusterIp if args.sessions > 0 => Some(open_sessions(args, &mut bench)?),
            _ => None,
        };
        results.entry((path, bench.device_name())).or_default().push(Round { packets, sessions });
    }
    if bench.device().rest()? {
        resting.insert(device.name(), bench);
    } else {
        bench.finish()?;
    }
    Ok(())
}

fn bring_up(args: &PeersArgs, device: DeviceName, path: PathName) -> Result<Bench, DeviceError> {
    let (scenario, begun) = (scenario(args, path), Instant::now());
    let bench = Bench::new(&scenario, start(device, &scenario)?)?;
    eprintln!("{device} is up after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(bench)
}

fn open_sessions(args: &PeersArgs, bench: &mut Bench) -> Result<sessions::Outcome, DeviceError> {
    let mut scenario = scenario(args, PathName::ClusterIp);
    scenario.streams[0].flows = MAX_SESSIONS;
    scenario.trial = TrialLimits { duration_ms: SESSIONS_MS, max_packets: MAX_SESSIONS };
    bench.change_scenario(&scenario)?;
    bench.sessions(&Sessions { concurrent: args.sessions, timeout_ms: 1000 })
}

fn figures(args: &PeersArgs, results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    let reference = args.devices.first().map_or("", |device| device.name());
    for ((path, device), rounds) in results {
        let mut params = json!({
            "device": device, "path": path.name(), "size_bytes": args.size_bytes, "flows": args.flows,
            "services": args.services,
        });
        if args.family == Family::Ipv6 {
            params["family"] = json!("ipv6");
        }
        let sample = |value: &dyn Fn(&SizeResult) -> f64| {
            Sample::of(&rounds.iter().map(|round| value(&round.packets)).collect::<Vec<_>>())
        };
        let mut add = |metric: &str, value: f64, unit: &str| {
            figures.push(Figure::new("peers", params.clone(), metric, value, unit));
        };
        let throughput = sample(&|round| round.throughput_pps.mean);
        add("peer_throughput", throughput.median, "1/s");
        add("peer_throughput_half_width_95", throughput.half_width, "1/s");
        add("peer_overload", sample(&|round| round.overload_pps).median, "1/s");
        add("peer_machine_ns_per_packet", sample(&|round| round.machine_ns_per_packet).median, "ns");
        add("peer_softirq_ns_per_packet", sample(&|round| round.softirq_ns_per_packet).median, "ns");
        let per_cpu_second = sample(&|round| 1e9 / round.machine_ns_per_packet.max(1.0)).median;
        add("peer_packets_per_cpu_second", per_cpu_second, "1/s");
        let half = |round: &SizeResult| round.latency.get(1).map(|at| at.latency).unwrap_or_default();
        add("peer_latency_p50", sample(&|round| half(round).p50_ns as f64).median, "ns");
        add("peer_latency_p99", sample(&|round| half(round).p99_ns as f64).median, "ns");
        add("peer_latency_p999", sample(&|round| half(round).p999_ns as f64).median, "ns");
        let opened: Vec<&sessions::Outcome> =
            rounds.iter().filter_map(|round| round.sessions.as_ref()).collect();
        let mut add_sessions = |metric: &str, value: &dyn Fn(&sessions::Outcome) -> f64, unit: &str| {
            let values: Vec<f64> = opened.iter().map(|outcome| value(outcome)).collect();
            if !values.is_empty() {
                add(metric, Sample::of(&values).median, unit);
            }
        };
        add_sessions("peer_sessions", &|outcome| outcome.completed_per_s, "1/s");
        add_sessions("peer_sessions_failed", &|outcome| outcome.tally.failed as f64, "1");
        let per_cpu_second = |outcome: &sessions::Outcome| 1e6 / outcome.machine_us_per_session.max(1e-3);
        add_sessions("peer_sessions_per_cpu_second", &per_cpu_second, "1/s");
        let Some(ours) = results.get(&(*path, reference)).filter(|_| *device != reference) else { continue };
        let ratios: Vec<f64> = ours
            .iter()
            .zip(rounds)
            .map(|(ours, theirs)| (&ours.packets, &theirs.packets))
            .filter(|(ours, theirs)| ours.throughput_pps.mean > 0.0 && theirs.throughput_pps.mean > 0.0)
            .map(|(ours, theirs)| ours.throughput_pps.mean / theirs.throughput_pps.mean)
            .collect();
        // A search that found nothing says that the machine was too noisy, not how the devices compare.
        if !ratios.is_empty() {
            add(&format!("{reference}_throughput_ratio"), Sample::of(&ratios).median, "1");
        }
    }
    figures
}

fn print(args: &PeersArgs, figures: &[Figure]) {
    println!(
        "\n{} bytes, {} flows, {} Services; medians of {} interleaved rounds; latency at half the throughput",
        args.size_bytes, args.flows, args.services, args.rounds
    );
    println!(
        "{:10} {:10} {:>12} {:>11} {:>12} {:>12} {:>12} {:>10} {:>10} {:>10} {:>9} {:>12}",
        "path",
        "device",
        "throughput",
        "± 95 %",
        "overload",
        "machine ns",
        "per CPU-s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "ratio",
        "sess/CPU-s"
    );
    let text = |figure: &Figure, key: &str| figure.params[key].as_str().unwrap_or("").to_owned();
    for first in figures.iter().filter(|figure| figure.metric == "peer_throughput") {
        let value = |metric: &str| {
            figures.iter().find(|f| f.params == first.params && f.metric.ends_with(metric)).map(|f| f.value)
        };
        println!(
            "{:10} {:10} {:>12.0} {:>11.0} {:>12.0} {:>12.0} {:>12.0} {:>10.1} {:>10.1} {:>10.1} {:>9} {:>12}",
            text(first, "path"),
            text(first, "device"),
            first.value,
            value("throughput_half_width_95").unwrap_or(0.0),
            value("overload").unwrap_or(0.0),
            value("machine_ns_per_packet").unwrap_or(0.0),
            value("packets_per_cpu_second").unwrap_or(0.0),
            value("latency_p50").unwrap_or(0.0) / 1e3,
            value("latency_p99").unwrap_or(0.0) / 1e3,
            value("latency_p999").unwrap_or(0.0) / 1e3,
            value("throughput_ratio").map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            value("sessions_per_cpu_second").map_or("–".to_owned(), |rate| format!("{rate:.0}"))
        );
    }
    println!("ratio: the first device's throughput to this one's, median over rounds");
    for failed in
        figures.iter().filter(|figure| figure.metric == "peer_sessions_failed" && figure.value > 0.0)
    {
        println!(
            "{}: {:.0} sessions failed: what they waited in vain counts against it",
            text(failed, "device"),
            failed.value
        );
    }
}
