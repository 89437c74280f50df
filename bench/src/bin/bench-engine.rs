//! `make bench-engine`: what a packet costs in the engine.

use clap::Parser;
use fairway_bench::alloc::Counting;
use fairway_bench::connections;
use fairway_bench::engine::{Case, Round, Scenario};
use fairway_dataplane::clock;
use fairway_pmd::MAX_BURST;
use fairway_tests::report::{Figure, Report};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Cost per packet of process() over the memory driver: one worker, 64-byte packets, full bursts.
#[derive(Parser)]
#[command(name = "bench-engine")]
struct Args {
    /// Numbers of flows
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000, 1_000_000])]
    flows: Vec<usize>,
    /// Connections that a start finds
    #[arg(long, default_value_t = 1_000_000)]
    connections: u32,
    /// Rounds over all cases; medians are reported
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Times 64 packets per case and round
    #[arg(long, default_value_t = 8_000)]
    bursts: usize,
    /// Cases by name; all if none is given
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Report the best round of each case instead of the median: on a machine that others use, too
    #[arg(long)]
    best: bool,
    /// Packets in a burst
    #[arg(long, default_value_t = MAX_BURST)]
    burst: usize,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What all rounds of one scenario come to.
struct Measured {
    case: Case,
    clocks: f64,
    ns: f64,
    allocations: f64,
    first_packet_ns: f64,
    /// Nanoseconds per packet of the steps: parse, look up, rewrite and put out.
    steps_ns: [f64; 3],
}

impl Measured {
    fn print(&self, flows: usize, name: &str) {
        let Measured {
            clocks, ns, allocations, first_packet_ns, steps_ns: [parse, look_up, rewrite], ..
        } = self;
        // With few flows this is the time of the first page faults.
        let first = if flows < 1000 { "–".to_owned() } else { format!("{first_packet_ns:.0} ns") };
        println!(
            "{name:22} {flows:>9} {ns:>10.1} {clocks:>10.0} {allocations:>9.3} {first:>12} {parse:>6.1} {look_up:>6.1} {rewrite:>6.1}"
        );
    }

    fn add_to(&self, figures: &mut Vec<Figure>, flows: usize, params: serde_json::Value) {
        let name = self.case.name();
        figures.push(Figure::new(name, params.clone(), "ns_per_packet", self.ns, "ns"));
        figures.push(Figure::new(name, params.clone(), "clocks_per_packet", self.clocks, "clocks"));
        figures.push(Figure::new(name, params.clone(), "allocs_per_packet", self.allocations, "1"));
        if flows >= 1000 {
            figures.push(Figure::new(name, params, "first_packet_ns", self.first_packet_ns, "ns"));
        }
    }
}

/// Measures scenarios round by round, so that a noisy moment of the machine falls on all alike, and ends them.
fn measure(args: &Args, mut scenarios: Vec<Scenario>) -> Vec<Measured> {
    let clocks_per_ns = clock::tsc_per_ns();
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); scenarios.len()];
    for _ in 0..args.rounds {
        for (scenario, rounds) in scenarios.iter_mut().zip(&mut rounds) {
            rounds.push(scenario.round(args.bursts, args.burst));
        }
    }
    let measured = |(scenario, rounds): (Scenario, Vec<Round>)| {
        let clocks = rounds.iter().map(|round| round.clocks_per_packet);
        let clocks = if args.best { clocks.fold(f64::INFINITY, f64::min) } else { median(clocks.collect()) };
        let result = Measured {
            case: scenario.case,
            clocks,
            ns: clocks / clocks_per_ns,
            allocations: median(rounds.iter().map(|round| round.allocations_per_packet).collect()),
            first_packet_ns: scenario.first_packet_clocks / clocks_per_ns,
            steps_ns: scenario.steps().map(|(_, ns)| ns),
        };
        scenario.finish();
        result
    };
    scenarios.into_iter().zip(rounds).map(measured).collect()
}

/// Cases by their names, all if there are none; `None` if a name is unknown.
fn cases(names: &[String]) -> Option<Vec<Case>> {
    if names.is_empty() {
        return Some(Case::ALL.to_vec());
    }
    names.iter().map(|name| Case::ALL.into_iter().find(|case| case.name() == name)).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.flows.iter().any(|flows| *flows == 0 || *flows > 2_000_000)
        || args.rounds == 0
        || args.bursts == 0
        || !(1..=MAX_BURST).contains(&args.burst)
    {
        eprintln!(
            "bench-engine: --flows takes 1 to 2000000, --rounds and --bursts at least 1, --burst 1 to 64"
        );
        return ExitCode::FAILURE;
    }
    let Some(cases) = cases(&args.cases) else {
        let names: Vec<_> = Case::ALL.iter().map(|case| case.name()).collect();
        eprintln!("bench-engine: --cases takes {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    let clocks_per_ns = clock::tsc_per_ns();
    let (burst, packets) = (args.burst, args.bursts * MAX_BURST);
    let of_rounds = if args.best { "the best" } else { "medians" };
    println!(
        "process() over the memory driver, one worker, 64-byte packets, bursts of {burst}, random flows"
    );
    println!("TSC {clocks_per_ns:.2} GHz, {} rounds of {packets} packets, {of_rounds}\n", args.rounds);
    let mut figures = Vec::new();
    println!(
        "{:22} {:>9} {:>10} {:>10} {:>9} {:>12} {:>6} {:>6} {:>6}",
        "case", "flows", "ns/packet", "clocks", "allocs", "first packet", "parse", "find", "write"
    );
    for flows in &args.flows {
        let scenarios = cases.iter().map(|case| Scenario::new(*case, *flows)).collect();
        for result in measure(&args, scenarios) {
            result.print(*flows, result.case.name());
            result.add_to(&mut figures, *flows, serde_json::json!({ "flows": flows }));
        }
    }
    println!("\nthe same flows to more Services of 10 backends each");
    for flows in args.flows.iter().filter(|flows| **flows >= 1000) {
        let services = [1, 10_000];
        let scenario = |n: u32| Scenario::with_services(Case::ServiceVxlan, *flows, n);
        let results = measure(&args, services.map(scenario).into());
        for (services, result) in services.iter().zip(&results) {
            result.print(*flows, &format!("{} × {services}", result.case.name()));
            let params = serde_json::json!({ "flows": flows, "services": services });
            result.add_to(&mut figures, *flows, params);
        }
    }
    match connections::openings_ms(args.connections, args.rounds) {
        Ok(openings_ms) => {
            let (connections, ms) = (args.connections, median(openings_ms));
            println!("\na start finds {connections} connections in {ms:.1} ms");
            let params = serde_json::json!({ "connections": connections });
            figures.push(Figure::new("conntrack_open", params, "time_ms", ms, "ms"));
        }
        Err(error) => {
            eprintln!("bench-engine: {error}");
            return ExitCode::FAILURE;
        }
    }
    let report = Report::of_target("bench-engine");
    match report.add(&figures) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-engine: {error}");
            ExitCode::FAILURE
        }
    }
}
