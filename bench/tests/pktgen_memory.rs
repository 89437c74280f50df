//! Generator, engine and sink in one process over the memory driver, end to end.

use fairway_bench::pktgen::device::{Bench, Device, memory::MemoryDevice};
use fairway_bench::pktgen::scenario::{Arrival, Scenario, TrialLimits};
use fairway_bench::pktgen::trial::Trial;
use std::path::Path;

fn bench(yaml: &str) -> Bench {
    let scenario = Scenario::parse(Path::new("test.yaml"), yaml).expect("a good scenario");
    let device = MemoryDevice::start(&scenario, None).expect("the engine starts");
    let mut bench = Bench::new(&scenario, Box::new(device) as Box<dyn Device>).expect("enough addresses");
    bench.wait_ready().expect("packets come through");
    bench
}

/// So slow that a busy machine keeps up.
fn slow(packets: u32) -> Trial {
    let limits = TrialLimits { duration_ms: 20_000, max_packets: packets };
    Trial { arrival: Arrival::Poisson { rate_pps: 20_000.0 }, limits }
}

#[test]
fn all_paths_with_changing_tables_lose_and_reorder_nothing() {
    let mut bench = bench(
        "name: all
streams:
- {path: same-node, flows: 500, protocol: tcp}
- {path: vxlan, flows: 500}
- {path: clusterip, flows: 500, order: round-robin}
frames: {size_bytes: [76, 594, 1468]}
tables: {services: 20, backends: 3, routes: 1000, changes_per_s: 500}",
    );
    let outcome = bench.run(&slow(20_000), &mut |_| {}).expect("a trial");
    assert_eq!((outcome.sent, outcome.intended, outcome.lost), (20_000, 20_000, 0));
    let counts = outcome.counts;
    assert_eq!((counts.received, counts.duplicated, counts.reordered), (20_000, 0, 0));
    assert_eq!(outcome.flows_with_loss, 0);
    assert!(outcome.flows > 1400, "{} flows", outcome.flows);
    assert!(outcome.latency.p50_ns > 0 && outcome.latency.max_ns >= outcome.latency.p50_ns);
    let words = bench.finish().expect("I1 and I2 hold").join(" ");
    let changes: u32 = words.split(' ').rev().nth(3).and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(changes > 50, "{words}");
}

#[test]
fn what_the_engine_drops_is_reported_as_lost_flow_by_flow() {
    let mut bench = bench("name: good\nstreams: [{path: same-node, flows: 7}]");
    bench.finish().expect("I1 and I2 hold");
    let scenario = Scenario::parse(
        Path::new("test.yaml"),
        "name: half
streams:
- {path: same-node, flows: 7, order: round-robin}
- {path: same-node, flows: 3, order: round-robin, destinations: 10.244.31.1}",
    );
    let scenario = scenario.expect("a good scenario");
    let device = MemoryDevice::start(&scenario, None).expect("the engine starts");
    bench = Bench::new(&scenario, Box::new(device) as Box<dyn Device>).expect("enough addresses");
    let outcome = bench.run(&slow(3000), &mut |_| {}).expect("a trial");
    // 10.244.31.1 is in the node's range, and no pod has it.
    assert_eq!((outcome.flows, outcome.flows_with_loss), (10, 3));
    assert_eq!(outcome.counts.received + outcome.lost, 3000);
    let unreachable: u32 = outcome.worst_flows.iter().map(|flow| flow.sent).sum();
    assert_eq!(outcome.lost, u64::from(unreachable));
    assert!(outcome.worst_flows.iter().all(|flow| flow.flow >= 7 && flow.received == 0));
    assert!((1300..1700).contains(&unreachable), "half of 3000: {unreachable}");
    bench.finish().expect("I1 and I2 hold");
}

#[test]
fn a_rate_that_cannot_be_offered_is_not_passed_off_as_offered() {
    let mut bench = bench("name: fast\nstreams: [{path: same-node}]");
    let limits = TrialLimits { duration_ms: 50, max_packets: u32::MAX };
    let outcome = bench.run(&Trial { arrival: Arrival::Paced { rate_pps: 1e9 }, limits }, &mut |_| {});
    let outcome = outcome.expect("a trial");
    assert!(!outcome.offered, "{} of {}", outcome.sent, outcome.intended);
    assert!(outcome.intended >= 49_000_000, "{}", outcome.intended);
    assert_eq!(outcome.counts.received + outcome.lost, outcome.sent);
    bench.finish().expect("I1 and I2 hold");
}
