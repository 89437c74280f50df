//! How long a route takes from the kernel's table into the engine's: a daemon's routes must be there, and be gone, within
//! 100 ms.

mod common;

use common::Cluster;
use fairway_tables::{Prefix, Reader};
use fairway_tests::gate;
use fairway_tests::report::{Figure, Report};
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

const ROUTES: u8 = 200;
/// What a loaded machine may take for one of them; far beyond what is expected.
const DEADLINE: Duration = Duration::from_secs(10);

/// Tells `ip -batch` to change a route, and returns the microseconds until the engine's table has it so.
fn time_us(ip: &mut ChildStdin, tables: &mut Reader, verb: &str, number: u8, gateway: &str) -> u64 {
    let prefix: Prefix = format!("10.9.{number}.0/24").parse().expect("prefix");
    let start = Instant::now();
    writeln!(ip, "route {verb} {prefix} via {gateway} dev uplink0 proto bird metric 32")
        .expect("ip takes it");
    loop {
        let there = tables.view().routes().any(|(route, _)| route == prefix);
        tables.quiescent();
        if there == (verb == "add") {
            return start.elapsed().as_micros() as u64;
        }
        assert!(start.elapsed() < DEADLINE, "route {verb} {prefix} is not in the engine's table");
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn percentile(sorted_us: &[u64], percent: usize) -> u64 {
    sorted_us[(sorted_us.len() * percent / 100).min(sorted_us.len() - 1)]
}

#[test]
fn routes_reach_the_engines_table_and_leave_it_at_once() {
    if !gate::may_run("route-latency") {
        return;
    }
    let _alone = gate::alone();
    let cluster = Cluster::start(1);
    let node = &cluster.testbed.nodes()[0];
    let mut tables = Reader::open(node.run_dir(), "route-latency").expect("tables");
    let mut command = node.netns().command("ip");
    let mut ip = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
    let mut stdin = ip.stdin.take().expect("its input");
    let gateway = cluster.testbed.nodes()[1].ip().to_string();
    let mut figures = Vec::new();
    for verb in ["add", "del"] {
        let mut times: Vec<u64> =
            (0..ROUTES).map(|number| time_us(&mut stdin, &mut tables, verb, number, &gateway)).collect();
        times.sort_unstable();
        for (metric, percent) in [("p50_us", 50), ("p99_us", 99), ("max_us", 100)] {
            let value = percentile(&times, percent);
            println!("route {verb}: {metric} {value}");
            let params = serde_json::json!({"change": verb, "routes": ROUTES});
            figures.push(Figure::new("kernel_route_to_table", params, metric, value as f64, "us"));
        }
    }
    drop(stdin);
    assert!(ip.wait().expect("ip ends").success());
    Report::of_target("test").add(&figures).expect("report");
    cluster.stop_and_check_invariants();
}
