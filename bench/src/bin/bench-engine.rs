//! `make bench-engine`: what a packet costs in the engine.

use clap::Parser;
use fairway_bench::alloc::Counting;
use fairway_bench::connections;
use fairway_bench::engine::{Case, Round, Scenario};
use fairway_dataplane::clock;
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
    /// Bursts of 64 packets per case and round
    #[arg(long, default_value_t = 8_000)]
    bursts: usize,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of one scenario.
struct Measured {
    case: Case,
    clocks: f64,
    ns: f64,
    allocations: f64,
    first_packet_ns: f64,
}

impl Measured {
    fn print(&self, flows: usize, name: &str) {
        let Measured { clocks, ns, allocations, first_packet_ns, .. } = self;
        // With few flows this is the time of the first page faults.
        let first = if flows < 1000 { "–".to_owned() } else { format!("{first_packet_ns:.0} ns") };
        println!("{name:22} {flows:>9} {ns:>10.1} {clocks:>10.0} {allocations:>9.3} {first:>12}");
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
            rounds.push(scenario.round(args.bursts));
        }
    }
    let measured = |(scenario, rounds): (Scenario, Vec<Round>)| {
        let clocks = median(rounds.iter().map(|round| round.clocks_per_packet).collect());
        let result = Measured {
            case: scenario.case,
            clocks,
            ns: clocks / clocks_per_ns,
            allocations: median(rounds.iter().map(|round| round.allocations_per_packet).collect()),
            first_packet_ns: scenario.first_packet_clocks / clocks_per_ns,
        };
        scenario.finish();
        result
    };
    scenarios.into_iter().zip(rounds).map(measured).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.flows.iter().any(|flows| *flows == 0 || *flows > 2_000_000)
        || args.rounds == 0
        || args.bursts == 0
    {
        eprintln!("bench-engine: --flows takes 1 to 2000000, --rounds and --bursts at least 1");
        return ExitCode::FAILURE;
    }
    let clocks_per_ns = clock::tsc_per_ns();
    println!("process() over the memory driver, one worker, 64-byte packets, bursts of 64, random flows");
    println!("TSC {clocks_per_ns:.2} GHz, {} rounds of {} packets, medians\n", args.rounds, args.bursts * 64);
    let mut figures = Vec::new();
    println!(
        "{:22} {:>9} {:>10} {:>10} {:>9} {:>12}",
        "case", "flows", "ns/packet", "clocks", "allocs", "first packet"
    );
    for flows in &args.flows {
        let scenarios = Case::ALL.iter().map(|case| Scenario::new(*case, *flows)).collect();
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
