//! TCP-like sessions: over a wire whose losses are known, and through the engine over the memory driver.

mod site;

use fairway_bench::pktgen::device::{Bench, memory::MemoryDevice};
use fairway_bench::pktgen::paths::PathName;
use fairway_bench::pktgen::plan::{Plan, PlannedStream};
use fairway_bench::pktgen::scenario::Scenario;
use fairway_bench::pktgen::sessions::{Client, Segment, answer};
use fairway_dataplane::wire::{checksum, proto};
use fairway_tables::Mac;
use proptest::prelude::*;
use site::site;
use std::path::Path;

const YAML: &str = "name: x
streams: [{path: clusterip, protocol: tcp, flows: 5000}]
frames: {size_bytes: 76}
tables: {services: 3, backends: 2}
trial: {duration_ms: 20000, max_packets: 3000}
sessions: {concurrent: 400, timeout_ms: 10000}";

fn scenario() -> Scenario {
    Scenario::parse(Path::new("test.yaml"), YAML).expect("a good scenario")
}

fn stream(flows: u32) -> PlannedStream {
    let mut scenario = scenario();
    scenario.streams[0].flows = flows;
    Plan::new(&scenario, &site()).expect("enough tuples").streams.remove(0)
}

/// A segment through bytes and back, which checks both.
fn through_bytes(segment: &Segment) -> Segment {
    let mut frame = vec![0xa5; segment.frame_len()];
    segment.write(&mut frame, Mac([2; 6]), Mac([4; 6]));
    let l4 = &frame[34..54 + usize::from(segment.payload_len)];
    let raw = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let pseudo = checksum::pseudo_header_v4(raw(26), raw(30), proto::TCP, l4.len() as u16);
    assert_eq!(checksum::fold(checksum::sum(l4) + pseudo), 0xffff, "{segment:?}");
    Segment::of(&frame).expect("a segment")
}

/// Runs sessions over a wire that loses the segments whose number `lost` names; returns their tally.
fn over_a_wire(client: &mut Client, sessions: u64, lost: &[u64]) {
    let (mut sent, mut now_ns) = (0, 0);
    let mut survives = || {
        sent += 1;
        !lost.contains(&sent)
    };
    while client.tally().opened < sessions || client.open_now() > 0 {
        now_ns += 1000;
        let mut way_out = Vec::new();
        while client.tally().opened < sessions
            && let Some(syn) = client.open(now_ns)
        {
            way_out.push(syn);
        }
        while let Some(segment) = way_out.pop() {
            if survives()
                && let Some(reply) = answer(&through_bytes(&segment))
                && survives()
            {
                way_out.extend(client.receive(&through_bytes(&reply), now_ns));
            }
        }
        client.expire(now_ns, 64);
    }
}

#[test]
fn every_session_over_a_good_wire_goes_from_syn_to_fin() {
    let mut client = Client::new(stream(1000), 20, 1_000_000);
    // More sessions than tuples: they go around.
    over_a_wire(&mut client, 2500, &[]);
    let tally = client.tally();
    assert_eq!((tally.opened, tally.established, tally.completed), (2500, 2500, 2500));
    assert_eq!((tally.failed, tally.strays), (0, 0));
    assert_eq!(client.latencies().0.len(), 2500);
}

proptest! {
    #[test]
    fn each_lost_segment_but_the_last_of_a_session_fails_exactly_that_session(
        lost in prop::collection::btree_set(1u64..1400, 0..20),
    ) {
        let mut client = Client::new(stream(1000), 1, 5000);
        let lost: Vec<u64> = lost.into_iter().collect();
        over_a_wire(&mut client, 200, &lost);
        // One session at a time: the segments of a session follow one another.
        let (mut segment, mut failed) = (0, 0);
        for _ in 0..200 {
            for place in 1..=7 {
                segment += 1;
                if lost.contains(&segment) {
                    failed += u64::from(place < 7);
                    break;
                }
            }
        }
        let tally = client.tally();
        prop_assert_eq!((tally.opened, tally.failed, tally.completed), (200, failed, 200 - failed));
    }
}

#[test]
fn the_number_of_a_tuple_is_the_inverse_of_its_tuple() {
    let stream = stream(190_000);
    assert_eq!(stream.path, PathName::ClusterIp);
    for number in (0..190_000).step_by(37) {
        assert_eq!(stream.number(&stream.tuple(number)), Some(number));
    }
    let mut other = stream.tuple(5);
    other.src += 1;
    assert_eq!(stream.number(&other), None);
}

#[test]
fn sessions_through_a_service_complete_over_the_memory_driver() {
    let scenario = scenario();
    let device = MemoryDevice::start(&scenario, None).expect("the engine starts");
    let mut bench = Bench::new(&scenario, Box::new(device)).expect("enough addresses");
    let outcome = bench.sessions(&scenario.sessions.expect("sessions")).expect("a trial");
    let tally = outcome.tally;
    assert_eq!((tally.opened, tally.completed, tally.failed), (3000, 3000, 0), "{outcome:?}");
    assert_eq!(tally.strays, 0);
    assert!(outcome.completed_per_s > 0.0 && outcome.setup.p50_ns > 0, "{outcome:?}");
    assert!(outcome.whole.p50_ns >= outcome.setup.p50_ns);
    bench.finish().expect("I1 and I2 hold");
}

#[test]
fn sessions_where_no_responder_is_are_refused() {
    for (from, to, word) in [
        ("path: clusterip", "path: vxlan", "same-node or clusterip"),
        ("concurrent: 400", "concurrent: 0", "sessions.concurrent is 0"),
    ] {
        let error =
            Scenario::parse(Path::new("test.yaml"), &YAML.replace(from, to)).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
}
