//! What a crash or a restart costs: 200 TCP connections through a service to the other node, and a probe of
//! 1,000 packets a second, while parts of the client's node are killed. Every connection must end byte-exact
//! at the backend where it began, although new ones would go to another; what the probe lost is reported.

mod common;

use common::Cluster;
use common::load::{self, Streams};
use fairway_dataplane::conntrack::{Conntrack, Timeouts};
use fairway_dataplane::testkit::connections;
use fairway_tests::manifests::ServiceSpec;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::probe::ProbeSummary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::programs::share_of_cores;
use fairway_tests::report::{Figure, Report};
use fairway_tests::snmp::{self, Counters};
use fairway_tests::{gate, sys};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const STREAMS: Streams =
    Streams { count: 200, records: 50, record_bytes: 1000, interval_ms: 100, timeout_ms: 40_000 };
const PROBE_PPS: u64 = 1000;
const PROBE_MS: u64 = 5000;
/// How long what was killed stays dead: about what a supervisor takes to notice.
const DEAD: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(45);
/// Far more than any restart takes, and less than the probe lasts.
const GAP_LIMIT_MS: f64 = 4000.0;
/// Several times what a restart in place takes on a busy machine.
const IN_PLACE_GAP_LIMIT_MS: f64 = 1000.0;
/// Of the probe's packets, while the engine runs: none is lost, unless the machine is so busy that a socket's
/// buffer overflows.
const LOSS_LIMIT: u64 = PROBE_PPS * PROBE_MS / 1000 / 100;
/// What the engine's table has room for, and how many connections there are when it is nearly full.
const CAPACITY: u32 = 1_000_000;
const MANY: u32 = 950_000;
/// The node of the client, whose parts are killed.
const NODE: usize = 0;

/// What happens to the node.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Blow {
    Nothing,
    KillControl,
    KillDataplane,
    KillBoth,
    RestartDataplane,
    RestartInPlace,
}

impl Blow {
    const ALL: [Blow; 6] = [
        Blow::Nothing,
        Blow::KillControl,
        Blow::KillDataplane,
        Blow::KillBoth,
        Blow::RestartDataplane,
        Blow::RestartInPlace,
    ];

    fn name(self) -> &'static str {
        match self {
            Blow::Nothing => "undisturbed",
            Blow::KillControl => "kill_control",
            Blow::KillDataplane => "kill_dataplane",
            Blow::KillBoth => "kill_both",
            Blow::RestartDataplane => "planned_restart_of_dataplane",
            Blow::RestartInPlace => "restart_in_place",
        }
    }

    fn kills_control(self) -> bool {
        matches!(self, Blow::KillControl | Blow::KillBoth)
    }

    fn kills_dataplane(self) -> bool {
        matches!(self, Blow::KillDataplane | Blow::KillBoth)
    }

    fn strike(self, cluster: &mut Cluster) {
        let node = cluster.testbed.node_mut(NODE);
        if self.kills_control() {
            node.control().expect("control runs").kill();
        }
        if self.kills_dataplane() {
            node.dataplane().expect("the dataplane runs").kill();
        }
        if self.kills_control() || self.kills_dataplane() {
            std::thread::sleep(DEAD);
        }
        if self == Blow::RestartInPlace {
            let said = node.restart_dataplane().and_then(|output| output.success());
            let said = said.unwrap_or_else(|error| panic!("{error}"));
            assert!(said.contains("restarted in place"), "{said}");
            println!("{}", said.trim());
        }
        if self == Blow::RestartDataplane {
            let lines = node.stop_dataplane().unwrap_or_else(|error| panic!("{error}"));
            assert!(!lines.is_empty(), "the engine's last words speak of I1 and I2");
        }
        if self.kills_control() {
            node.start_control().expect("control starts again");
        }
        if self.kills_dataplane() || self == Blow::RestartDataplane {
            let cores = share_of_cores(&sys::cores(), NODE, 1);
            node.start_dataplane(&["--cores", &cores]).expect("the dataplane starts again");
        }
    }
}

/// Counters of both nodes' kernels and of the pod that gets new connections.
fn kernels(cluster: &Cluster) -> Vec<(String, Counters)> {
    let nodes = cluster.testbed.nodes().iter().map(|node| (node.name().to_owned(), node.netns()));
    let other = cluster.testbed.pod(cluster.pod("web-1"));
    let all = nodes.chain([(other.name().to_owned(), other.netns())]);
    all.map(|(name, netns)| (name, snmp::read(netns).expect("kernel counters"))).collect()
}

/// What the engine of the client's node has dropped so far, by reason.
fn drops(cluster: &mut Cluster) -> BTreeMap<String, u64> {
    let node = cluster.testbed.node_mut(NODE);
    let counters = node.ask(&["counters"]).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_value(counters["drops"].clone()).expect("drops by reason")
}

/// Fills the node's connection table, which its next engine finds.
fn fill_table(cluster: &mut Cluster) {
    let node = cluster.testbed.node_mut(NODE);
    node.stop_dataplane().unwrap_or_else(|error| panic!("{error}"));
    let path = node.run_dir().join("conntrack");
    let table = Conntrack::open(&path, CAPACITY, Timeouts::default()).expect("the table");
    connections::fill(&table, MANY);
    drop(table);
    let cores = share_of_cores(&sys::cores(), NODE, 1);
    cluster.testbed.node_mut(NODE).start_dataplane(&["--cores", &cores]).expect("the dataplane starts");
    cluster.wait_for_gateways();
}

/// What one blow cost.
struct Cost {
    blow: Blow,
    /// Connections in the table beside those of the streams.
    connections: u32,
    streams: StreamSummary,
    probe: ProbeSummary,
    /// ICMP errors that the kernel of the client's node sent.
    icmp_errors: i64,
    /// Packets that the engine of the client's node dropped, by reason.
    drops: BTreeMap<String, u64>,
}

impl Cost {
    fn figures(&self) -> Vec<Figure> {
        let dead_ms =
            if self.blow.kills_control() || self.blow.kills_dataplane() { DEAD.as_millis() } else { 0 };
        let params = json!({
            "streams": STREAMS.count, "bytes_per_stream": STREAMS.records * STREAMS.record_bytes, "probe_pps": PROBE_PPS,
            "probe_ms": PROBE_MS, "dead_ms": dead_ms, "connections": self.connections,
        });
        let figure = |metric: &str, value: f64, unit: &str| {
            Figure::new(self.blow.name(), params.clone(), metric, value, unit)
        };
        vec![
            figure("streams_byte_exact", self.streams.byte_exact as f64, "1"),
            figure("longest_stream_stall", self.streams.longest_stall_ms as f64, "ms"),
            figure("packets_sent", self.probe.sent as f64, "1"),
            figure("packets_lost", self.probe.lost as f64, "1"),
            figure("packets_lost_in_a_row", self.probe.longest_loss as f64, "1"),
            figure("longest_gap", self.probe.longest_gap_ms, "ms"),
            figure("kernel_icmp_errors", self.icmp_errors as f64, "1"),
        ]
    }

    fn print(&self) {
        let Cost { blow, connections, streams, probe, icmp_errors, drops } = self;
        println!(
            "{:<30} {connections:>7} connections; {}; {icmp_errors} ICMP errors by the node's kernel; \
             dropped by the engine: {drops:?}",
            blow.name(),
            load::told(streams, probe),
        );
    }
}

fn suffer(cluster: &mut Cluster, service: &ServiceSpec, blow: Blow, connections: u32) -> Cost {
    let streams = load::open_streams(cluster, service, STREAMS);
    let (before, dropped) = (kernels(cluster), drops(cluster));
    let probe = load::start_probe(cluster, "web-2", PROBE_PPS, PROBE_MS);
    std::thread::sleep(Duration::from_millis(500));
    blow.strike(cluster);
    let probe: ProbeSummary = load::answer(cluster, probe, DEADLINE);
    let streams: StreamSummary = load::answer(cluster, streams, DEADLINE);
    let after = kernels(cluster);

    let growth = |place: usize, name: &str| after[place].1[name] - before[place].1[name];
    let cost = Cost {
        blow,
        connections,
        icmp_errors: growth(NODE, "Icmp.OutDestUnreachs") + growth(NODE, "Icmp.OutTimeExcds"),
        streams,
        probe,
        drops: drops(cluster)
            .into_iter()
            .map(|(reason, count)| (reason.clone(), count - dropped.get(&reason).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect(),
    };
    cost.print();
    for (place, (name, _)) in after.iter().enumerate() {
        assert_eq!(growth(place, "Tcp.OutRsts"), 0, "{blow:?}: {name} reset connections");
    }
    cost
}

#[test]
fn two_hundred_connections_outlive_every_crash_and_keep_their_backends() {
    if !gate::may_run("survival") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    load::let_kernels_forward(&cluster);
    let service = load::stream_service(&cluster);
    let report = Report::of_target("test-survival");
    // Figures of an earlier run must not pass for figures of this one.
    let _ = std::fs::remove_file(report.path());
    let with_many = [Blow::KillDataplane, Blow::RestartDataplane, Blow::RestartInPlace];
    let few = Blow::ALL.map(|blow| (blow, 0));
    for (blow, connections) in few.into_iter().chain(with_many.map(|blow| (blow, MANY))) {
        if (blow, connections) == (with_many[0], MANY) {
            fill_table(&mut cluster);
        }
        let cost = suffer(&mut cluster, &service, blow, connections);
        let (streams, probe) = (&cost.streams, &cost.probe);
        report.add(&cost.figures()).expect("report");
        assert_eq!(
            (streams.streams, streams.byte_exact),
            (STREAMS.count, STREAMS.count),
            "{blow:?}: {:?}",
            streams.errors
        );
        assert_eq!(streams.bytes, STREAMS.count * STREAMS.records * STREAMS.record_bytes, "{blow:?}");
        let backends: Vec<&str> = streams.backends.keys().map(String::as_str).collect();
        assert_eq!(backends, ["web-2", "web-3"], "{blow:?}");
        assert_eq!(probe.sent, PROBE_PPS * PROBE_MS / 1000, "{blow:?}");
        assert_eq!(probe.duplicates, 0, "{blow:?}");
        assert!(probe.longest_gap_ms < GAP_LIMIT_MS, "{blow:?}: {probe:?}");
        if blow == Blow::RestartInPlace {
            // Packets wait in the rings meanwhile, which hold half a second of the probe.
            assert!(probe.longest_gap_ms < IN_PLACE_GAP_LIMIT_MS, "{blow:?}: {probe:?}");
        }
        // With many connections the gap lasts longer than the rings can bridge.
        let bridged = blow != Blow::RestartInPlace || connections == 0;
        if !blow.kills_dataplane() && blow != Blow::RestartDataplane && bridged {
            assert!(
                probe.lost <= LOSS_LIMIT,
                "{blow:?}: the engine ran on, yet packets were lost: {probe:?}"
            );
        }
    }
    // The node is as good as new: one more change of backends reaches it.
    load::send_new_connections_to(&mut cluster, &service, &["web-1", "web-3"]);
    let url = cluster.url("/");
    let summary: Summary = cluster.client(&["get", &url, "--count", "20", "--no-keepalive"], DEADLINE);
    assert_eq!(summary.failures, 0, "{:?}", summary.errors);
    cluster.stop_and_check_invariants();
}
