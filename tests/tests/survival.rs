//! What a crash or a restart costs: 200 TCP connections through a service to the other node, and a probe of
//! 1,000 packets a second, while parts of the client's node are killed. Every connection must end byte-exact
//! at the backend where it began, although new ones would go to another; what the probe lost is reported.

mod common;

use common::Cluster;
use fairway_tests::manifests::{EndpointSpec, ServiceSpec};
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::probe::ProbeSummary;
use fairway_tests::pod::stream::{ALL_OPEN, StreamSummary};
use fairway_tests::process::{Process, wait_for};
use fairway_tests::programs::share_of_cores;
use fairway_tests::report::{Figure, Report};
use fairway_tests::snmp::{self, Counters};
use fairway_tests::testbed::STREAM_PORT;
use fairway_tests::{gate, sys};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;

const STREAMS: u64 = 200;
const RECORDS: u64 = 50;
const RECORD_BYTES: u64 = 1000;
const INTERVAL_MS: u64 = 100;
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

/// A service in front of the servers that send streams back.
fn stream_service(cluster: &Cluster) -> ServiceSpec {
    let service = ServiceSpec {
        namespace: "shop".to_owned(),
        name: "streams".to_owned(),
        cluster_ip: Ipv4Addr::new(10, 96, 0, 81),
        port: 81,
        target_port: STREAM_PORT,
    };
    cluster.testbed.manifests().service(&service).expect("service");
    service
}

/// Has new connections to both services go to these pods.
fn send_new_connections_to(cluster: &mut Cluster, streams: &ServiceSpec, names: &[&str]) {
    let endpoint = |name: &&str| {
        let pod = cluster.testbed.pod(cluster.pod(name));
        let node = cluster.testbed.nodes()[pod.node()].name().to_owned();
        EndpointSpec { pod: (*name).to_owned(), ip: pod.ip(), node }
    };
    let endpoints: Vec<EndpointSpec> = names.iter().map(endpoint).collect();
    cluster.testbed.manifests().endpoints(streams, &endpoints).expect("endpoints");
    // Written later, so that once this one is in force the other is too.
    cluster.set_backends(names);
    cluster.wait_for_backends(names);
}

/// The last line of a client that has ended.
fn answer<T: DeserializeOwned>(cluster: &mut Cluster, mut client: Process) -> T {
    let waited = cluster.testbed.wait(&format!("the {} ends", client.name()), DEADLINE, |_| {
        client.ended().map(drop).ok_or("still running".to_owned())
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let log = client.log();
    serde_json::from_str(log.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {log}"))
}

/// Counters of both nodes' kernels and of the pod that gets new connections.
fn kernels(cluster: &Cluster) -> Vec<(String, Counters)> {
    let nodes = cluster.testbed.nodes().iter().map(|node| (node.name().to_owned(), node.netns()));
    let other = cluster.testbed.pod(cluster.pod("web-1"));
    let all = nodes.chain([(other.name().to_owned(), other.netns())]);
    all.map(|(name, netns)| (name, snmp::read(netns).expect("kernel counters"))).collect()
}

/// What one blow cost.
struct Cost {
    blow: Blow,
    streams: StreamSummary,
    probe: ProbeSummary,
    /// ICMP errors that the kernel of the client's node sent.
    icmp_errors: i64,
}

impl Cost {
    fn figures(&self) -> Vec<Figure> {
        let dead_ms =
            if self.blow.kills_control() || self.blow.kills_dataplane() { DEAD.as_millis() } else { 0 };
        let params = json!({
            "streams": STREAMS, "bytes_per_stream": RECORDS * RECORD_BYTES, "probe_pps": PROBE_PPS,
            "probe_ms": PROBE_MS, "dead_ms": dead_ms,
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
        let Cost { blow, streams, probe, icmp_errors } = self;
        println!(
            "{:<30} {} of {} streams byte-exact, longest stall {} ms; probe: {} of {} lost, {} in a row, \
             longest gap {:.1} ms; {icmp_errors} ICMP errors by the node's kernel",
            blow.name(),
            streams.byte_exact,
            streams.streams,
            streams.longest_stall_ms,
            probe.lost,
            probe.sent,
            probe.longest_loss,
            probe.longest_gap_ms,
        );
    }
}

fn suffer(cluster: &mut Cluster, service: &ServiceSpec, blow: Blow) -> Cost {
    send_new_connections_to(cluster, service, &["web-2", "web-3"]);
    let target = format!("{}:{}", service.cluster_ip, service.port);
    let numbers = [STREAMS, RECORDS, RECORD_BYTES, INTERVAL_MS].map(|number| number.to_string());
    let [count, records, bytes, interval] = numbers.each_ref().map(String::as_str);
    let args = ["streams", target.as_str(), "--count", count, "--records", records];
    let pace = ["--record-bytes", bytes, "--interval-ms", interval, "--timeout-ms", "40000"];
    let streams = cluster.testbed.start_client(cluster.client, &[args, pace].concat()).expect("client");
    let opened = wait_for("all streams are open", DEADLINE, || {
        Ok(if streams.log().contains(ALL_OPEN) { Ok(()) } else { Err(streams.log()) })
    });
    opened.unwrap_or_else(|error| panic!("{error}"));
    // A connection whose binding is forgotten would go to web-1 now, which would reset it.
    send_new_connections_to(cluster, service, &["web-1"]);

    let before = kernels(cluster);
    let (probed, pps, ms) = (cluster.pod_address("web-2"), PROBE_PPS.to_string(), PROBE_MS.to_string());
    let args = ["probe", probed.as_str(), "--rate-pps", &pps, "--duration-ms", &ms];
    let probe = cluster.testbed.start_client(cluster.client, &args).expect("client");
    std::thread::sleep(Duration::from_millis(500));
    blow.strike(cluster);
    let probe: ProbeSummary = answer(cluster, probe);
    let streams: StreamSummary = answer(cluster, streams);
    let after = kernels(cluster);

    let growth = |place: usize, name: &str| after[place].1[name] - before[place].1[name];
    let cost = Cost {
        blow,
        icmp_errors: growth(NODE, "Icmp.OutDestUnreachs") + growth(NODE, "Icmp.OutTimeExcds"),
        streams,
        probe,
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
    // Kubernetes nodes forward: what the engine does not take, the kernel gets to see and to answer.
    for node in cluster.testbed.nodes() {
        let set = node.netns().run("sysctl", &["-qw", "net.ipv4.ip_forward=1"], Duration::from_secs(10));
        set.and_then(|output| output.success()).expect("the kernel forwards");
    }
    let service = stream_service(&cluster);
    let report = Report::of_target("test-survival");
    // Figures of an earlier run must not pass for figures of this one.
    let _ = std::fs::remove_file(report.path());
    for blow in Blow::ALL {
        let cost = suffer(&mut cluster, &service, blow);
        let (streams, probe) = (&cost.streams, &cost.probe);
        report.add(&cost.figures()).expect("report");
        assert_eq!(
            (streams.streams, streams.byte_exact),
            (STREAMS, STREAMS),
            "{blow:?}: {:?}",
            streams.errors
        );
        assert_eq!(streams.bytes, STREAMS * RECORDS * RECORD_BYTES, "{blow:?}");
        let backends: Vec<&str> = streams.backends.keys().map(String::as_str).collect();
        assert_eq!(backends, ["web-2", "web-3"], "{blow:?}");
        assert_eq!(probe.sent, PROBE_PPS * PROBE_MS / 1000, "{blow:?}");
        assert_eq!(probe.duplicates, 0, "{blow:?}");
        assert!(probe.longest_gap_ms < GAP_LIMIT_MS, "{blow:?}: {probe:?}");
        if blow == Blow::RestartInPlace {
            // Packets wait in the rings meanwhile, which hold half a second of the probe.
            assert!(probe.longest_gap_ms < IN_PLACE_GAP_LIMIT_MS, "{blow:?}: {probe:?}");
        }
        if !blow.kills_dataplane() && blow != Blow::RestartDataplane {
            assert!(
                probe.lost <= LOSS_LIMIT,
                "{blow:?}: the engine ran on, yet packets were lost: {probe:?}"
            );
        }
    }
    // The node is as good as new: one more change of backends reaches it.
    send_new_connections_to(&mut cluster, &service, &["web-1", "web-3"]);
    let url = cluster.url("/");
    let summary: Summary = cluster.client(&["get", &url, "--count", "20", "--no-keepalive"], DEADLINE);
    assert_eq!(summary.failures, 0, "{:?}", summary.errors);
    cluster.stop_and_check_invariants();
}
