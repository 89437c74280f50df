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
- {path: same-node, flows: 250, protocol: tcp}
- {path: vxlan, flows: 250}
- {path: clusterip, flows: 500, order: round-robin}
- {path: ipip, flows: 100}
- {path: direct, flows: 100}
- {path: service-vxlan, flows: 100}
- {path: nodeport, flows: 100}
- {path: masquerade, flows: 100}
- {path: same-node, family: ipv6, flows: 100, protocol: tcp}
- {path: vxlan, family: ipv6, flows: 100}
- {path: direct, family: ipv6, flows: 100}
- {path: clusterip, family: ipv6, flows: 100}
- {path: service-vxlan, family: ipv6, flows: 100}
- {path: nodeport, family: ipv6, flows: 100}
- {path: masquerade, family: ipv6, flows: 100}
frames: {size_bytes: [96, 594, 1448]}
tables: {services: 20, backends: 3, routes: 1000, changes_per_s: 500, route_changes_per_s: 500}",
    );
    let outcome = bench.run(&slow(20_000), &mut |_| {}).expect("a trial");
    let words = bench.finish().expect("I1 and I2 hold").join(" ");
    assert_eq!((outcome.sent, outcome.intended, outcome.lost), (20_000, 20_000, 0), "{words}");
    let counts = outcome.counts;
    assert_eq!((counts.received, counts.duplicated, counts.reordered), (20_000, 0, 0));
    assert_eq!(outcome.flows_with_loss, 0);
    assert!(outcome.flows > 1400, "{} flows", outcome.flows);
    assert!(outcome.latency.p50_ns > 0 && outcome.latency.max_ns >= outcome.latency.p50_ns);
    assert!(words.contains("dropped 0;"), "{words}");
    assert!(numbers(&words, "changes of Services") > 50 && numbers(&words, "of routes") > 50, "{words}");
}

/// The number before these words.
fn numbers(text: &str, what: &str) -> u32 {
    let before = text.split(what).next().unwrap_or("").trim_end();
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn several_senders_lose_nothing_and_each_sends_its_share() {
    let mut bench = bench(
        "name: senders
streams: [{path: clusterip, flows: 31}, {path: masquerade, flows: 30}]
senders: 3
tables: {services: 4}",
    );
    let outcome = bench.run(&slow(6001), &mut |_| {}).expect("a trial");
    assert_eq!((outcome.sent, outcome.intended, outcome.lost), (6001, 6001, 0), "{outcome:?}");
    assert_eq!((outcome.counts.received, outcome.counts.duplicated), (6001, 0));
    assert_eq!((outcome.flows, outcome.flows_with_loss), (61, 0));
    // At line rate they do not wait for each other, and what does not fit is counted all the same.
    let limits = TrialLimits { duration_ms: 50, max_packets: u32::MAX };
    let flood = bench.run(&Trial { arrival: Arrival::LineRate, limits }, &mut |_| {}).expect("a trial");
    assert_eq!(flood.counts.received + flood.lost, flood.sent);
    assert!(flood.flows == 61 && flood.sent > 61, "{flood:?}");
    bench.finish().expect("I1 and I2 hold");
}

#[test]
fn changes_can_be_paused_and_go_on() {
    let mut bench = bench("name: churn\nstreams: [{path: clusterip}]\ntables: {changes_per_s: 1000}");
    assert!(bench.device().set_churn(false));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let outcome = bench.run(&slow(200), &mut |_| {}).expect("a trial");
    assert_eq!(outcome.lost, 0);
    assert!(bench.device().set_churn(true));
    std::thread::sleep(std::time::Duration::from_millis(200));
    let words = bench.finish().expect("I1 and I2 hold").join(" ");
    assert!(numbers(&words, "changes of Services") > 20, "{words}");
    let mut still = self::bench("name: still\nstreams: [{path: clusterip}]");
    assert!(!still.device().set_churn(false), "nothing changes here");
    still.finish().expect("I1 and I2 hold");
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
