//! `make bench-lpm`: what a route look-up and a change of a route cost, by table size and structure.

#[path = "../../../tables/tests/common/churn.rs"]
mod churn;

use clap::Parser;
use fairway_bench::alloc::Counting;
use fairway_bench::lpm::routes::{self, Family, Random, Route};
use fairway_bench::lpm::{Backing, Binary, CHUNK, Contestant, Entry, Fairway, Multibit, PrefixTrie};
use fairway_tables::{Capacities, Tables};
use fairway_tests::report::{Figure, Report};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Longest prefix match: Fairway's tables beside other structures with the same routes and destinations.
#[derive(Parser)]
#[command(name = "bench-lpm")]
struct Args {
    /// Numbers of routes
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 100_000, 1_000_000])]
    routes: Vec<usize>,
    /// Rounds over all structures; medians of parts of 1024 look-ups are reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Look-ups per structure and round
    #[arg(long, default_value_t = 1_000_000)]
    lookups: usize,
    /// Routes deleted and inserted again to time changes
    #[arg(long, default_value_t = 20_000)]
    changes: usize,
    /// Folder with the real Internet table; without it that case is left out. Also FAIRWAY_VECTORS
    #[arg(long)]
    vectors: Option<PathBuf>,
    /// Measure nothing; check a million random inserts and deletes against a model
    #[arg(long)]
    check: bool,
}

/// What is measured: a family's routes under a name.
struct Case {
    name: &'static str,
    family: Family,
    routes: Vec<Route>,
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All structures, filled. Those of 256-entry nodes hold only so many IPv6 routes that they fit into memory.
fn contestants(case: &Case, dir: &Path) -> Vec<Box<dyn Contestant>> {
    let (family, routes) = (case.family, &case.routes[..]);
    let file = || Fairway::new(family, routes.len(), &Backing::File(dir));
    let heap = || Fairway::new(family, routes.len(), &Backing::Heap);
    let mut all: Vec<Box<dyn Contestant>> = vec![
        Box::new(Entry::build("fairway", file, routes).with_bytes(Fairway::file_bytes)),
        Box::new(Entry::build("fairway_heap", heap, routes).with_bytes(|table| 64 * table.nodes())),
        Box::new(Entry::build("binary_trie", Binary::default, routes)),
        Box::new(Entry::build("prefix_trie", || PrefixTrie::new(family), routes)),
    ];
    match family {
        Family::V4 => {
            all.push(Box::new(Entry::build("expanded_24_8", || Multibit::<24, 8>::new(family), routes)));
            all.push(Box::new(Entry::build("expanded_24_4_4", || Multibit::<24, 4>::new(family), routes)));
            all.push(Box::new(Entry::build("expanded_16_8_8", || Multibit::<16, 8>::new(family), routes)));
        }
        Family::V6 => {
            all.push(Box::new(Entry::build("expanded_16_4", || Multibit::<16, 4>::new(family), routes)));
            if routes.len() <= 200_000 {
                all.push(Box::new(Entry::build("expanded_16_8", || Multibit::<16, 8>::new(family), routes)));
            }
        }
    }
    all
}

/// All structures must give the same answers; the binary trie is the simplest of them.
fn agree(contestants: &mut [Box<dyn Contestant>], keys: &[u128]) -> Result<(), String> {
    let oracle = contestants.iter().position(|c| c.name() == "binary_trie").unwrap_or(0);
    let table = contestants[oracle].table();
    let expected: Vec<Option<u32>> = keys.iter().map(|key| table.look_up(*key)).collect();
    for contestant in contestants {
        let table = contestant.table();
        if let Some((key, _)) = keys.iter().zip(&expected).find(|(key, want)| table.look_up(**key) != **want)
        {
            return Err(format!(
                "{} finds another route than the binary trie for {key:032x}",
                contestant.name()
            ));
        }
    }
    Ok(())
}

/// Nanoseconds per delete and per insert, or nothing if the structure can't delete.
fn time_changes(contestant: &mut dyn Contestant, changed: &[Route]) -> Option<(f64, f64)> {
    let per = |start: Instant| start.elapsed().as_nanos() as f64 / changed.len() as f64;
    let start = Instant::now();
    if !contestant.table().remove(changed) {
        return None;
    }
    let delete_ns = per(start);
    let start = Instant::now();
    contestant.table().insert(changed);
    Some((delete_ns, per(start)))
}

fn measure(case: &Case, args: &Args) -> Result<Vec<Figure>, String> {
    let dir =
        tempfile::tempdir_in("/dev/shm").map_err(|e| format!("can't make a folder in /dev/shm: {e}"))?;
    let mut all = contestants(case, dir.path());
    let keys = routes::destinations(case.family, &case.routes, args.lookups, 7);
    agree(&mut all, &keys)?;
    let mut random = Random::new(11);
    let mut changed = case.routes.clone();
    for i in 0..args.changes.min(changed.len()) {
        let other = i + random.below((changed.len() - i) as u64) as usize;
        changed.swap(i, other);
    }
    changed.truncate(args.changes);
    let bytes: Vec<u64> = all.iter().map(|contestant| contestant.bytes()).collect();
    let mut samples: Vec<[Vec<f64>; 4]> = all.iter().map(|_| Default::default()).collect();
    // Interleaved, so that a noisy moment of the machine falls on all structures alike.
    for _ in 0..args.rounds {
        for (contestant, samples) in all.iter_mut().zip(&mut samples) {
            contestant.time_dependent(&keys, &mut samples[0]);
            contestant.time_independent(&keys, &mut samples[1]);
            if let Some((delete_ns, insert_ns)) = time_changes(contestant.as_mut(), &changed) {
                samples[2].push(insert_ns);
                samples[3].push(delete_ns);
            }
        }
    }
    agree(&mut all, &keys)?;
    let mut figures = Vec::new();
    for ((contestant, samples), bytes) in all.iter().zip(&samples).zip(bytes) {
        figures.extend(report(case, contestant.name(), samples, bytes));
    }
    Ok(figures)
}

fn report(case: &Case, structure: &str, samples: &[Vec<f64>; 4], bytes: u64) -> Vec<Figure> {
    let count = case.routes.len();
    let params = serde_json::json!({ "routes": count, "structure": structure });
    let metrics = ["lookup_single_ns", "lookup_burst_ns", "insert_ns", "delete_ns"];
    let mut figures = Vec::new();
    let mut cells = Vec::new();
    for (metric, samples) in metrics.iter().zip(samples) {
        if samples.is_empty() {
            cells.push("–".to_owned());
            continue;
        }
        let value = median(samples);
        cells.push(format!("{value:.1}"));
        figures.push(Figure::new(case.name, params.clone(), metric, value, "ns"));
    }
    let per_route = bytes as f64 / count as f64;
    figures.push(Figure::new(case.name, params, "bytes_per_route", per_route, "bytes"));
    println!(
        "{:14} {count:>9} {structure:16} {:>9} {:>9} {:>9} {:>9} {per_route:>12.0} {:>9.1}",
        case.name,
        cells[0],
        cells[1],
        cells[2],
        cells[3],
        bytes as f64 / 1e6
    );
    figures
}

/// Random changes of routes of both families, each checked.
fn check() -> Result<(), String> {
    const CHANGES: usize = 1_000_000;
    let capacities = Capacities { routes: 50_000, ..Capacities::default() };
    let (mut writer, factory) = Tables::heap(capacities);
    let mut random = Random::new(3);
    let start = Instant::now();
    churn::churn(&mut writer, &mut factory.reader(), CHANGES, || random.next_u64())?;
    println!("{CHANGES} random inserts and deletes, look-ups around each: right ({:.0?})", start.elapsed());
    let figure = Figure::new("check", serde_json::json!({}), "changes_checked", CHANGES as f64, "1");
    Report::of_target("bench-lpm").add(&[figure]).map_err(|e| e.to_string())
}

fn run(args: &Args) -> Result<(), String> {
    if args.rounds == 0 || args.lookups < CHUNK || args.routes.iter().any(|n| *n == 0 || *n > 2_000_000) {
        return Err("--routes takes 1 to 2000000, --rounds at least 1, --lookups at least 1024".to_owned());
    }
    if args.check {
        return check();
    }
    println!("ns per look-up: single (each waits for the one before), burst (independent); ns per change");
    println!("half of the destinations inside routes, half anywhere; medians of {} rounds\n", args.rounds);
    println!(
        "{:14} {:>9} {:16} {:>9} {:>9} {:>9} {:>9} {:>12} {:>9}",
        "case", "routes", "structure", "single", "burst", "insert", "delete", "bytes/route", "MB"
    );
    let report = Report::of_target("bench-lpm");
    let vectors = args.vectors.clone().or_else(|| std::env::var_os("FAIRWAY_VECTORS").map(PathBuf::from));
    let vectors = vectors.unwrap_or_else(|| PathBuf::from("../shared/vectors"));
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        cases.extend(args.routes.iter().map(|count| (family.name(), family, Some(*count))));
    }
    cases.push(("ipv4_internet", Family::V4, None));
    for (name, family, count) in cases {
        let routes = match count {
            Some(count) => routes::random(family, count, 1),
            None => match routes::internet(&vectors) {
                Some(routes) => routes,
                None => {
                    println!("{name}: left out, {} has no routing table", vectors.display());
                    continue;
                }
            },
        };
        let figures = measure(&Case { name, family, routes }, args)?;
        report.add(&figures).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-lpm: {error}");
            ExitCode::FAILURE
        }
    }
}
