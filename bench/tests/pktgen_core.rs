//! Generator and sink by themselves: what is sent is what the scenario says, and what is counted is what
//! happened on the way.

mod site;

use fairway_bench::pktgen::frame::{STAMP_LEN, Stamp};
use fairway_bench::pktgen::generator::{Generator, Packet};
use fairway_bench::pktgen::paths::{Entry, PathName};
use fairway_bench::pktgen::plan::Plan;
use fairway_bench::pktgen::scenario::{Arrival, Scenario};
use fairway_bench::pktgen::sink::{FlowAccount, Sink};
use fairway_dataplane::wire::{ETH_LEN, checksum, ipv4, ipv6, proto};
use proptest::prelude::*;
use site::site;
use std::collections::HashSet;
use std::path::Path;

fn parse(yaml: &str) -> Result<Scenario, String> {
    Scenario::parse(Path::new("test.yaml"), yaml).map_err(|error| error.to_string())
}

fn generator(yaml: &str) -> Generator {
    let scenario = parse(yaml).expect("a good scenario");
    let plan = Plan::new(&scenario, &site()).expect("enough tuples");
    Generator::new(&scenario, plan)
}

/// Packets with due times and bytes.
fn take(generator: &mut Generator, count: usize) -> Vec<(u64, Packet, Vec<u8>)> {
    let next = |n| {
        let due = generator.due_ns();
        let packet = generator.next_packet();
        let mut frame = vec![0xa5; packet.len];
        generator.write(&packet, n as u64, &mut frame);
        (due, packet, frame)
    };
    (0..count).map(next).collect()
}

const MIXED: &str = "
name: mixed
seed: 9
streams:
- {path: same-node, flows: 100, weight: 2}
- {path: vxlan, flows: 50, order: round-robin, protocol: tcp}
- {path: clusterip, flows: 1000}
frames: {size_bytes: [76, 77, 301, 1468]}
arrival: {kind: poisson, rate_pps: 1000000}
";

#[test]
fn a_wrong_scenario_is_refused_with_file_field_and_what_to_write_instead() {
    let stream = "name: x\nstreams: [{path: same-node}]\n";
    let cases = [
        ("name: x\nstreams: []", &["test.yaml", "streams", "at least one"][..]),
        ("name: x\nstreams: [{path: moon}]", &["path", "same-node", "vxlan", "clusterip", "line 2"]),
        ("name: x\nstreams: [{path: vxlan, flow: 3}]", &["flow", "flows", "line 2"]),
        ("name: x\nstreams: [{path: vxlan, flows: 0}]", &["streams[0].flows is 0", "from 1 to 4194304"]),
        ("name: x\nstreams: [{path: vxlan, sources: 10.0.0}]", &["sources", "10.0.0.1-10.0.0.9"]),
        ("name: x\nstreams: [{path: vxlan, source_ports: 9-3}]", &["source_ports", "1024-65535"]),
        (&format!("{stream}frames: {{size_bytes: 60}}"), &["size_bytes is 60", "64 to 1468"]),
        (&format!("{stream}frames: {{size_bytes: 1518}}"), &["size_bytes is 1518", "64 to 1468"]),
        (&format!("{stream}frames: {{size_bytes: huge}}"), &["size_bytes", "imix"]),
        (&format!("{stream}frames: {{size_bytes: []}}"), &["size_bytes", "imix"]),
        (&format!("{stream}arrival: {{kind: paced}}"), &["arrival.rate_pps is missing"]),
        (&format!("{stream}arrival: {{kind: paced, rate_pps: 5, burst: 2}}"), &["burst", "remove"]),
        (&format!("{stream}arrival: {{kind: bursts, rate_pps: 5}}"), &["arrival.burst is missing"]),
        (&format!("{stream}arrival: {{kind: paced, rate_pps: 0}}"), &["arrival.rate_pps is 0", "from 1"]),
        (
            &format!("{stream}arrival: {{kind: bursts, rate_pps: 5, burst: 0}}"),
            &["arrival.burst is 0", "from 1"],
        ),
        (&format!("{stream}arrival: {{kind: rush}}"), &["rush", "poisson"]),
        (&format!("{stream}trial: {{duration_ms: 1}}"), &["trial.duration_ms is 1", "from 10"]),
        (&format!("{stream}tables: {{services: 20000}}"), &["tables.services", "10000"]),
        (
            "name: x\nstreams: [{path: vxlan, protocol: tcp}]\nframes: {size_bytes: imix}",
            &["size_bytes is 64", "76", "TCP"],
        ),
        ("name: x\nstreams: [{path: vxlan, family: ipv6}]", &["size_bytes is 64", "84", "IPv6"]),
        (
            "name: x\nstreams: [{path: ipip, family: ipv6}]\nframes: {size_bytes: 84}",
            &["streams[0].family", "IPv4 only", "vxlan"],
        ),
        (
            "name: x\nstreams: [{path: vxlan, destinations: 'fd00::1'}]",
            &["streams[0].destinations is Ipv6", "Ipv4"],
        ),
        ("name: x\nstreams: [{path: nodeport, flows: 4}]\nsenders: 2", &["senders is 2", "write 1"]),
        ("name: x\nstreams: [{path: vxlan, flows: 1}]\nsenders: 2", &["senders is 2", "a flow for each"]),
        ("name: x\nstreams: [{path: vxlan, flows: 9}]\nsenders: 9", &["senders is 9", "1 to 8"]),
        (
            "name: x\nstreams: [{path: nodeport}]\nsessions: {concurrent: 3}",
            &["streams is 1 streams", "same-node or clusterip"],
        ),
    ];
    for (yaml, words) in cases {
        let error = parse(yaml).expect_err(yaml);
        for word in words {
            assert!(error.contains(word), "'{word}' is not in: {error}");
        }
    }
    let missing = Scenario::read(Path::new("/nowhere.yaml")).expect_err("missing").to_string();
    assert!(missing.contains("/nowhere.yaml"), "{missing}");
}

#[test]
fn more_flows_than_tuples_are_refused_with_a_way_out() {
    let scenario = parse("name: x\nstreams: [{path: clusterip, flows: 300000}]").expect("parses");
    let error = Plan::new(&scenario, &site()).expect_err("four services").to_string();
    assert!(error.contains("258048") && error.contains("tables.services"), "{error}");
}

#[test]
fn the_examples_are_good_scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).expect("bench/scenarios") {
        Scenario::read(&entry.expect("entry").path()).unwrap_or_else(|error| panic!("{error}"));
        seen += 1;
    }
    assert!(seen >= 4, "{seen} examples");
}

#[test]
fn the_same_seed_gives_the_same_packets_and_another_seed_others() {
    let first = take(&mut generator(MIXED), 500);
    let mut again = generator(MIXED);
    assert_eq!(first, take(&mut again, 500));
    assert_ne!(first, take(&mut generator(&MIXED.replace("seed: 9", "seed: 10")), 500));
    // A new trial sends the same packets under a new number.
    again.restart(Arrival::Poisson { rate_pps: 1e6 });
    for ((due, packet, frame), (due_2, packet_2, frame_2)) in first.iter().zip(take(&mut again, 500)) {
        assert_eq!((*due, *packet), (due_2, packet_2));
        let (stamp, stamp_2) = (Stamp::of(frame).expect("a stamp"), Stamp::of(&frame_2).expect("a stamp"));
        assert_eq!((stamp.trial, stamp_2.trial), (0, 1));
    }
}

#[test]
fn every_packet_has_right_checksums_and_its_own_stamp() {
    for (n, (_, packet, frame)) in take(&mut generator(MIXED), 2000).into_iter().enumerate() {
        assert_eq!(frame.len(), packet.len);
        let header = frame[ETH_LEN..ETH_LEN + ipv4::LEN].first_chunk().expect("20 bytes");
        assert!(checksum::ipv4_header_ok(header));
        let ip_len = u16::from_be_bytes([frame[16], frame[17]]);
        assert_eq!(usize::from(ip_len), frame.len() - ETH_LEN);
        let (protocol, l4) = (frame[23], &frame[34..]);
        assert_eq!(protocol == proto::TCP, packet.stream == 1);
        let raw = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let pseudo = checksum::pseudo_header_v4(raw(26), raw(30), protocol, l4.len() as u16);
        assert_eq!(checksum::fold(checksum::sum(l4) + pseudo), 0xffff, "packet {n}");
        let stamp = Stamp { trial: 0, flow: packet.flow, sequence: packet.sequence, clocks: n as u64 };
        assert_eq!(Stamp::of(&frame), Some(stamp));
        // Encapsulated, it is found all the same.
        assert_eq!(Stamp::of(&[&[0; 50][..], &frame[..]].concat()), Some(stamp));
    }
    assert_eq!(Stamp::of(&[0; 60]), None);
    assert_eq!(Stamp::of(&[0; STAMP_LEN - 1]), None);
}

#[test]
fn flows_are_different_tuples_and_streams_keep_their_shares() {
    let mut generator = generator(MIXED);
    let streams = generator.plan().streams.clone();
    let paths: Vec<_> = streams.iter().map(|stream| stream.path).collect();
    assert_eq!(paths, [PathName::SameNode, PathName::Vxlan, PathName::ClusterIp]);
    for stream in &streams {
        let tuples: HashSet<_> = (0..stream.flows).map(|n| stream.tuple(n)).collect();
        assert_eq!(tuples.len(), stream.flows as usize);
    }
    let mut by_stream = [0u32; 3];
    for (_, packet, _) in take(&mut generator, 40_000) {
        by_stream[packet.stream] += 1;
    }
    for (count, share) in by_stream.into_iter().zip([0.5, 0.25, 0.25]) {
        assert!((f64::from(count) / 40_000.0 - share).abs() < 0.02, "{by_stream:?}");
    }
    // Round robin: the flows of the second stream differ by one packet at most.
    let sent = &generator.sent_by_flow()[100..150];
    assert!(sent.iter().max().expect("flows") - sent.iter().min().expect("flows") <= 1, "{sent:?}");
    assert_eq!(generator.sent_by_flow().iter().sum::<u32>(), 40_000);
}

/// What happens to one packet on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    /// Arrives after the next so many packets of all flows.
    Late(usize),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => (1usize..40).prop_map(Fate::Late),
    ]
}

/// Delivers packets by their fates: numbers of packets in order of arrival.
fn deliver(fates: &[Fate]) -> Vec<usize> {
    let mut arrivals: Vec<(usize, usize)> = Vec::new();
    for (n, fate) in fates.iter().enumerate() {
        match fate {
            Fate::Arrives => arrivals.push((n, n)),
            Fate::Lost => {}
            Fate::Twice => arrivals.extend([(n, n), (n, n)]),
            Fate::Late(by) => arrivals.push((n + by, n)),
        }
    }
    arrivals.sort_by_key(|(at, n)| (*at, std::cmp::Reverse(*n)));
    arrivals.into_iter().map(|(_, n)| n).collect()
}

proptest! {
    #[test]
    fn injected_loss_duplicates_and_reordering_are_reported_exactly_per_flow(
        fates in prop::collection::vec(fate(), 1..400),
        flows in 1u32..5,
    ) {
        let yaml = format!("name: x\nstreams: [{{path: same-node, flows: {flows}}}]");
        let mut generator = generator(&yaml);
        let packets = take(&mut generator, fates.len());
        let mut sink = Sink::new(flows, 1.0);
        // The oracle: numbers seen per flow.
        let mut seen: Vec<HashSet<u32>> = vec![HashSet::new(); flows as usize];
        let mut expected: Vec<FlowAccount> = (0..flows)
            .map(|flow| {
                let sent = generator.sent_by_flow()[flow as usize];
                FlowAccount { flow, sent, received: 0, reordered: 0, duplicated: 0 }
            })
            .collect();
        for n in deliver(&fates) {
            let (_, packet, frame) = &packets[n];
            let (seen, account) = (&mut seen[packet.flow as usize], &mut expected[packet.flow as usize]);
            if !seen.insert(packet.sequence) {
                account.duplicated += 1;
            } else {
                account.received += 1;
                account.reordered += u32::from(seen.iter().any(|other| *other > packet.sequence));
            }
            sink.receive(frame, n as u64 + 50);
        }
        expected.retain(|account| account.sent > 0);
        let got: Vec<FlowAccount> = sink.accounts(generator.sent_by_flow()).collect();
        prop_assert_eq!(&got, &expected);
        let lost: u32 = got.iter().map(FlowAccount::lost).sum();
        prop_assert_eq!(lost as usize, fates.iter().filter(|fate| **fate == Fate::Lost).count());
        let counts = sink.counts();
        prop_assert_eq!(counts.received, expected.iter().map(|a| u64::from(a.received)).sum::<u64>());
        prop_assert_eq!(counts.reordered, expected.iter().map(|a| u64::from(a.reordered)).sum::<u64>());
        prop_assert_eq!(counts.duplicated, expected.iter().map(|a| u64::from(a.duplicated)).sum::<u64>());
        // Sent at clock n, received at n + 50, with one clock per nanosecond.
        prop_assert_eq!(sink.latency().len(), counts.received);
        // Without a packet there is none.
        let latency = if counts.received > 0 { 50 } else { 0 };
        prop_assert_eq!((sink.latency().min(), sink.latency().max()), (latency, latency));
    }
}

#[test]
fn frames_of_another_trial_or_of_nobody_count_as_foreign() {
    let mut generator = generator("name: x\nstreams: [{path: vxlan}]");
    let old = take(&mut generator, 1).remove(0).2;
    generator.restart(Arrival::LineRate);
    let new = take(&mut generator, 1).remove(0).2;
    let mut sink = Sink::new(1, 1.0);
    sink.restart(generator.trial());
    sink.receive(&old, 0);
    sink.receive(&[0; 42], 0);
    let mut beyond = new.clone();
    let at = beyond.len() - STAMP_LEN + 5;
    beyond[at] = 9; // a flow that does not exist
    sink.receive(&beyond, 0);
    assert_eq!((sink.counts().foreign, sink.counts().received), (3, 0));
    sink.receive(&new, 0);
    assert_eq!((sink.counts().foreign, sink.counts().received), (3, 1));
}

#[test]
fn ipv6_packets_have_right_lengths_checksums_and_stamps_on_every_path() {
    for path in PathName::ALL.into_iter().filter(|path| *path != PathName::Ipip) {
        for (protocol, size) in [("udp", 84), ("tcp", 96), ("udp", 301)] {
            let yaml = format!(
                "name: x\nstreams: [{{path: {path}, family: ipv6, flows: 300, protocol: {protocol}}}]\nframes: \
                 {{size_bytes: {size}}}"
            );
            for (n, (_, packet, frame)) in take(&mut generator(&yaml), 400).into_iter().enumerate() {
                assert_eq!(frame[12..14], [0x86, 0xdd]);
                let l4 = &frame[ETH_LEN + ipv6::LEN..];
                assert_eq!(usize::from(u16::from_be_bytes([frame[18], frame[19]])), l4.len());
                let address = |at: usize| *frame[at..].first_chunk::<16>().expect("an address");
                let pseudo =
                    checksum::pseudo_header_v6(&address(22), &address(38), frame[20], l4.len() as u16);
                assert_eq!(checksum::fold(checksum::sum(l4) + pseudo), 0xffff, "{path} {protocol} {n}");
                let stamp =
                    Stamp { trial: 0, flow: packet.flow, sequence: packet.sequence, clocks: n as u64 };
                assert_eq!(Stamp::of(&frame), Some(stamp));
                assert!(address(22)[0] == 0xfd && address(38)[0] == 0xfd);
            }
        }
    }
}

#[test]
fn only_what_comes_from_outside_goes_in_by_the_wire() {
    for path in PathName::ALL {
        let mut generator = generator(&format!("name: x\nstreams: [{{path: {path}, flows: 10}}]"));
        let (_, packet, frame) = take(&mut generator, 1).remove(0);
        let outside = path == PathName::NodePort;
        assert_eq!(generator.entry(&packet) == Entry::Wire, outside, "{path}");
        assert_eq!(frame[..6] == [0xee; 6], !outside, "{path}: pods send to the gateway");
    }
}

#[test]
fn few_flows_meet_all_services_and_every_flow_is_found_by_its_tuple() {
    let generator =
        generator("name: x\nstreams: [{path: clusterip, flows: 10}, {path: nodeport, flows: 10}]");
    for stream in &generator.plan().streams {
        let tuples: Vec<_> = (0..10).map(|n| stream.tuple(n)).collect();
        let services: HashSet<_> = tuples.iter().map(|tuple| (tuple.dst, tuple.dport)).collect();
        assert_eq!(services.len(), 4, "{tuples:?}");
        for (n, tuple) in tuples.iter().enumerate() {
            assert_eq!(stream.number(tuple), Some(n as u32));
        }
    }
}

#[test]
fn senders_share_flows_from_pods_of_their_own() {
    let yaml = "name: x\nstreams: [{path: vxlan, flows: 10}, {path: clusterip, flows: 5}]\nsenders: 3";
    let scenario = parse(yaml).expect("a good scenario");
    let (mut numbers, mut sources) = (HashSet::new(), HashSet::new());
    for sender in 0..3 {
        let plan = Plan::of_sender(&scenario, &site(), sender).expect("enough tuples");
        let (flows, first) = (plan.flows, plan.first_flow);
        let mut generator = Generator::new(&scenario, plan);
        for (_, packet, frame) in take(&mut generator, 500) {
            let stamp = Stamp::of(&frame).expect("a stamp");
            assert_eq!(stamp.flow, first + packet.flow);
            assert!(packet.flow < flows);
            numbers.insert(stamp.flow);
            sources.insert((sender, frame[6..12].to_vec(), frame[26..30].to_vec()));
        }
        // What the driver did not take counts as not sent, by the number among all flows.
        let sent = generator.sent_by_flow()[0];
        generator.unsend(first);
        assert_eq!(generator.sent_by_flow()[0], sent - 1);
    }
    assert_eq!(numbers.len(), 15, "all flows, each of one sender");
    assert_eq!(numbers.into_iter().max(), Some(14));
    let expected =
        (0..3u8).map(|n| (u32::from(n), vec![0x0a, 0x58, 10, 244, 1, 11 + n], vec![10, 244, 1, 11 + n]));
    assert_eq!(sources, expected.collect::<HashSet<_>>());
}
