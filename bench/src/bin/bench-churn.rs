//! `make bench-churn`: what a change of the cluster costs control, and what it costs the packets.

use clap::{Parser, ValueEnum};
use fairway_bench::churn::cluster::Cluster;
use fairway_bench::churn::{ChurnError, control, folder, maglev, slowdown};
use fairway_tests::report::{Figure, Report};
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

/// Full sync, single changes until a reader sees them, memory, and the cost of churn to the engine.
#[derive(Parser)]
#[command(name = "bench-churn")]
struct Args {
    /// Numbers of nodes, each with 2 services and 20 endpoints
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000])]
    nodes: Vec<usize>,
    /// Changes of endpoints per size
    #[arg(long, default_value_t = 3000)]
    changes: usize,
    /// Numbers of nodes for the real fairway-control over a folder of manifests (root)
    #[arg(long, value_delimiter = ',', default_values_t = [100, 5000])]
    manifests: Vec<usize>,
    /// Rounds of the reader's slowdown
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Leave the real fairway-control out
    #[arg(long)]
    no_manifests: bool,
    /// Numbers of backends of a service with a Maglev table
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000])]
    backends: Vec<u16>,
    /// Only what a Maglev list's change costs
    #[arg(long)]
    only_maglev: bool,
    /// One part in this process: how the benchmark calls itself
    #[arg(long, hide = true)]
    part: Option<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Control,
    Folder,
    Slowdown,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let sizes = args.nodes.iter().chain(&args.manifests);
    if sizes.clone().any(|n| !(100..=5000).contains(n))
        || args.changes == 0
        || args.rounds == 0
        || args.backends.contains(&0)
    {
        eprintln!("bench-churn: sizes are 100 to 5000 nodes, --changes, --rounds and --backends at least 1");
        return ExitCode::FAILURE;
    }
    let result = match args.part {
        Some(part) => run_part(part, &args),
        None => run_all(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-churn: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a part and prints its figures, one line of JSON.
fn run_part(part: Part, args: &Args) -> Result<(), ChurnError> {
    let dir = tempfile::Builder::new().prefix("fairway-churn-").tempdir();
    let dir = dir.map_err(ChurnError::io("make a folder for the tables"))?;
    let cluster = Cluster { nodes: args.nodes[0] };
    let figures = match part {
        Part::Control => control::run(dir.path(), cluster, args.changes)?,
        Part::Folder => folder::run(dir.path(), cluster)?,
        Part::Slowdown => slowdown::run(args.rounds, 2000)?,
    };
    let text = serde_json::to_string(&figures).map_err(|e| ChurnError::Broken(e.to_string()))?;
    println!("{text}");
    Ok(())
}

/// Each part in a process of its own, so that memory is that part's alone.
fn spawn(part: &str, nodes: usize, args: &Args) -> Result<Vec<Figure>, ChurnError> {
    let exe = std::env::current_exe().map_err(ChurnError::io("find this program"))?;
    let output = Command::new(exe)
        .args(["--part", part, "--nodes", &nodes.to_string()])
        .args(["--changes", &args.changes.to_string(), "--rounds", &args.rounds.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(ChurnError::io("start a part"))?;
    if !output.status.success() {
        return Err(ChurnError::Broken(format!("part {part} at {nodes} nodes failed: see above")));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| ChurnError::Broken(e.to_string()))
}

fn run_all(args: &Args) -> Result<(), ChurnError> {
    let mut all = maglev_lists(args)?;
    if args.only_maglev {
        return Report::of_target("bench-churn").add(&all).map_err(|e| ChurnError::Broken(e.to_string()));
    }
    println!(
        "Control's parts in a process of their own; objects as a watch hands them over, seen by a reader\n"
    );
    println!(
        "{:>6} {:>9} {:>9} {:>9} {:>9} │ {:>26} │ {:>8} {:>8} {:>8}",
        "nodes",
        "sync",
        "restart",
        "peak RSS",
        "tables",
        "endpoint p50/p99/max",
        "1000 p99",
        "node p99",
        "svc p99"
    );
    for nodes in &args.nodes {
        let figures = spawn("control", *nodes, args)?;
        let at = |case: &str, metric: &str| value(&figures, case, metric);
        println!(
            "{nodes:>6} {:>7.2} s {:>7.2} s {:>5.0} MiB {:>5.0} MiB │ {:>7.0} {:>7.0} {:>7.0} µs │ {:>5.0} µs {:>5.0} µs {:>5.0} µs",
            at("full_sync", "wall_s"),
            at("restart", "wall_s"),
            at("full_sync", "control_peak_rss_mib"),
            at("tables", "used_mib"),
            at("endpoint_change", "p50_us"),
            at("endpoint_change", "p99_us"),
            at("endpoint_change", "max_us"),
            at("endpoint_change_1000_backends", "p99_us"),
            at("node_change", "p99_us"),
            at("service_change", "p99_us"),
        );
        all.extend(figures);
    }
    all.extend(growth(&all, args));
    println!("\nThe engine's reader while unrelated services change (ClusterIP over VXLAN, 10,000 flows)");
    let figures = spawn("slowdown", args.nodes[0], args)?;
    let at = |metric: &str| value(&figures, "reader_slowdown", metric);
    println!("  idle                {:>6.1} ns per packet", at("idle_ns_per_packet"));
    for name in ["flat_out", "control", "paced"] {
        let rate = at(&format!("{name}_changes_per_s"));
        let (ns, ratio) = (at(&format!("{name}_ns_per_packet")), at(&format!("{name}_ratio")));
        println!("  {rate:>9.0} changes/s {ns:>6.1} ns per packet, {:+.1} %", (ratio - 1.0) * 100.0);
    }
    all.extend(figures);
    if !args.no_manifests {
        all.extend(manifests(args)?);
    }
    Report::of_target("bench-churn").add(&all).map_err(|e| ChurnError::Broken(e.to_string()))
}

fn maglev_lists(args: &Args) -> Result<Vec<Figure>, ChurnError> {
    let mut all = Vec::new();
    println!(
        "One backend of a Maglev list goes or comes: the batch that writes it, and other backends' clients that it moves"
    );
    println!(
        "{:>8} │ {:>17} {:>12} {:>14} │ {:>17}",
        "backends", "p50/p99", "from nothing", "random p50", "moved mean/max"
    );
    for backends in &args.backends {
        let figures = maglev::run(*backends, args.changes.div_ceil(10))?;
        let at = |case: &str, metric: &str| value(&figures, case, metric);
        println!(
            "{backends:>8} │ {:>7.0} {:>7.0} µs {:>9.0} µs {:>11.0} µs │ {:>6.2} {:>6.2} %",
            at("maglev_change", "p50_us"),
            at("maglev_change", "p99_us"),
            at("maglev_change", "from_nothing_p50_us"),
            at("random_change", "p50_us"),
            100.0 * at("maglev_disruption", "mean_share"),
            100.0 * at("maglev_disruption", "max_share"),
        );
        all.extend(figures);
    }
    println!();
    Ok(all)
}

fn manifests(args: &Args) -> Result<Vec<Figure>, ChurnError> {
    let mut all = Vec::new();
    println!("\nThe real fairway-control over a folder of manifests, YAML parsed");
    println!("{:>6} {:>9} {:>9} {:>9} │ {:>26}", "nodes", "sync", "restart", "peak RSS", "edit p50/p99/max");
    for nodes in &args.manifests {
        let figures = spawn("folder", *nodes, args)?;
        let at = |case: &str, metric: &str| value(&figures, case, metric);
        println!(
            "{nodes:>6} {:>7.2} s {:>7.2} s {:>5.0} MiB │ {:>7.1} {:>7.1} {:>7.1} ms",
            at("manifests_sync", "wall_s"),
            at("manifests_restart", "wall_s"),
            at("manifests_sync", "control_peak_rss_mib"),
            at("manifest_edit", "p50_us") / 1e3,
            at("manifest_edit", "p99_us") / 1e3,
            at("manifest_edit", "max_us") / 1e3,
        );
        all.extend(figures);
    }
    Ok(all)
}

/// How the median cost of a change grows from the smallest to the largest cluster.
fn growth(figures: &[Figure], args: &Args) -> Vec<Figure> {
    let of: BTreeMap<u64, f64> = figures
        .iter()
        .filter(|f| (f.case.as_str(), f.metric.as_str()) == ("endpoint_change_small_service", "p50_us"))
        .filter_map(|f| Some((f.params["nodes"].as_u64()?, f.value)))
        .collect();
    let (Some((small, first)), Some((large, last))) = (of.first_key_value(), of.last_key_value()) else {
        return Vec::new();
    };
    if args.nodes.len() < 2 {
        return Vec::new();
    }
    let ratio = last / first;
    println!("\nOne endpoint's change at {large} nodes costs {ratio:.2} times what it costs at {small}");
    let params = serde_json::json!({ "nodes": large, "against": small });
    vec![Figure::new("endpoint_change_small_service", params, "growth", ratio, "1")]
}

fn value(figures: &[Figure], case: &str, metric: &str) -> f64 {
    figures.iter().find(|f| f.case == case && f.metric == metric).map_or(f64::NAN, |f| f.value)
}
