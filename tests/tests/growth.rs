//! Tables that become too small while packets pass: they grow, or say what they have no room for, and nothing that
//! is installed suffers.

mod common;

use common::Cluster;
use common::load::{self, Streams};
use fairway_tables::{Ip, Reader, ServiceKey};
use fairway_tests::gate;
use fairway_tests::node::Node;
use fairway_tests::pod::probe::ProbeSummary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::process::Process;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

const READY: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(90);
const STREAMS: Streams =
    Streams { count: 50, records: 250, record_bytes: 1000, interval_ms: 100, timeout_ms: 80_000 };
const PROBE_PPS: u64 = 500;
const PROBE_MS: u64 = 20_000;
/// Of a machine that is busy with other tests; an engine that stops for a growth would lose far more.
const LOSS_LIMIT: u64 = PROBE_PPS * PROBE_MS / 1000 / 500;
/// Ports of each of the many Services, and their endpoints.
const PORTS: u16 = 100;
/// Entries of a Service: its ports, and what refuses all others of its address.
const ENTRIES: usize = PORTS as usize + 1;
const ENDPOINTS: usize = 14;

/// A Service with many ports, and its endpoints: one service and 14 backends in the tables for each port.
fn many_ports(number: usize) -> String {
    let (high, low) = (number / 250, 1 + number % 250);
    let ports = |of: &str, first: u16| -> String {
        (0..PORTS).map(|port| format!("- {{name: p{port}, {of}: {}}}\n", first + port)).collect()
    };
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: many-{number:03}, namespace: shop}}\nspec:\n  \
         clusterIP: 10.97.{high}.{low}\n  ports:\n{}",
        ports("port", 1000).replace("- {", "  - {")
    );
    let _ = write!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: many-{number:03}-1\n  \
         namespace: shop\n  labels: {{kubernetes.io/service-name: many-{number:03}}}\naddressType: IPv4\nports:\n{}\
         endpoints:\n",
        ports("port", 2000)
    );
    for endpoint in 0..ENDPOINTS {
        let _ = writeln!(text, "- {{addresses: [10.244.2.{}], nodeName: node-2}}", 100 + endpoint);
    }
    text
}

fn service_of(number: usize) -> ServiceKey {
    ServiceKey::new(Ip::v4([10, 97, (number / 250) as u8, (1 + number % 250) as u8]), 1000 + PORTS - 1, 6)
}

fn status(node: &Node) -> Result<Value, String> {
    node.ask(&["status"]).map_err(|error| error.to_string())
}

/// A number of a table's usage.
fn usage(status: &Value, table: &str, field: &str) -> u64 {
    let tables = status["tables"].as_array().into_iter().flatten();
    tables.filter(|t| t["table"] == table).find_map(|t| t[field].as_u64()).unwrap_or_default()
}

fn errors(status: &Value) -> Vec<String> {
    let all = status["errors"].as_array().into_iter().flatten();
    all.map(|error| error.as_str().unwrap_or_default().to_owned()).collect()
}

fn wait(cluster: &mut Cluster, what: &str, check: impl Fn(&Value) -> bool) -> Value {
    let waited = cluster.testbed.wait(what, READY, |testbed| {
        let status = status(&testbed.nodes()[0])?;
        if check(&status) { Ok(status) } else { Err(format!("{:#}", status)) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"))
}

/// Streams and a probe, which must end well whatever happens to the tables meanwhile.
struct Traffic {
    streams: Process,
    probe: Process,
}

impl Traffic {
    fn start(cluster: &mut Cluster) -> Traffic {
        load::let_kernels_forward(cluster);
        let service = load::stream_service(cluster);
        let streams = load::open_streams(cluster, &service, STREAMS);
        Traffic { streams, probe: load::start_probe(cluster, "web-2", PROBE_PPS, PROBE_MS) }
    }

    fn is_under_way(&mut self) -> bool {
        self.streams.ended().is_none() && self.probe.ended().is_none()
    }

    fn end(self, cluster: &mut Cluster) {
        let probe: ProbeSummary = load::answer(cluster, self.probe, DEADLINE);
        let streams: StreamSummary = load::answer(cluster, self.streams, DEADLINE);
        println!("probe: {probe:?}; streams: {} of {} byte-exact", streams.byte_exact, streams.streams);
        assert_eq!(
            (streams.streams, streams.byte_exact),
            (STREAMS.count, STREAMS.count),
            "{:?}",
            streams.errors
        );
        let backends: Vec<&str> = streams.backends.keys().map(String::as_str).collect();
        assert_eq!(backends, ["web-2", "web-3"], "connections keep their backends");
        assert!(probe.lost <= LOSS_LIMIT && probe.duplicates == 0, "{probe:?}");
    }
}

#[test]
fn tables_grow_under_traffic_and_nothing_is_lost() {
    if !gate::may_run("growth") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let mut traffic = Traffic::start(&mut cluster);
    let run_dir = cluster.testbed.nodes()[0].run_dir().to_owned();
    let mut old = Reader::open(&run_dir, "test").expect("the tables");
    let before = old.view().services().count();
    let first = status(&cluster.testbed.nodes()[0]).expect("status");
    let capacity = |status: &Value, table| usage(status, table, "capacity");

    let many = 1 + capacity(&first, "services") as usize / usize::from(PORTS);
    assert!(many * usize::from(PORTS) * ENDPOINTS < 2 * capacity(&first, "backends") as usize);
    let manifests: String = (0..many).map(many_ports).collect();
    cluster.testbed.manifests().write("many", &manifests).expect("manifests");
    let used = (before + many * ENTRIES) as u64;
    let grown = wait(&mut cluster, "all services are in", |s| usage(s, "services", "used") == used);
    assert!(traffic.is_under_way(), "the tables grew after the traffic");
    assert!(capacity(&grown, "services") > capacity(&first, "services"));
    assert_eq!(errors(&grown), Vec::<String>::new());

    // Who mapped the old file sees it as it was, learns that there is another, and finds all of it there.
    assert_eq!(old.view().services().count(), before);
    old.quiescent();
    assert!(old.is_superseded());
    let new = Reader::open(&run_dir, "test").expect("the grown tables");
    assert_eq!(new.view().services().count() as u64, used);
    let last = new.view().service(&service_of(many - 1)).map(|service| service.backends().count());
    assert_eq!(last, Some(ENDPOINTS), "the last Service is complete");

    // And the engine follows: what is changed in the grown tables reaches it.
    cluster.set_backends(&["web-3"]);
    cluster.wait_for_backends(&["web-3"]);
    traffic.end(&mut cluster);
    for node in 0..2 {
        let log = cluster.testbed.node_mut(node).dataplane().expect("it runs").log();
        assert!(log.contains("the tables were made anew"), "{log}");
    }
    cluster.stop_and_check_invariants();
}

#[test]
fn a_table_at_its_limit_names_what_it_leaves_out_and_forwards_on() {
    if !gate::may_run("growth") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::build(1);
    cluster.testbed.node_mut(0).set_control_options(&["--max-table-mib", "72"]);
    cluster.testbed.start_nodes(1).expect("start the nodes");
    cluster.wait_for_gateways();
    let mut traffic = Traffic::start(&mut cluster);
    let first = status(&cluster.testbed.nodes()[0]).expect("status");
    let (had, room) = (usage(&first, "services", "used"), usage(&first, "backends", "capacity"));
    let each = u64::from(PORTS) * ENDPOINTS as u64;

    let many = 3 + (room / each) as usize;
    for number in 0..many {
        cluster
            .testbed
            .manifests()
            .write(&format!("many-{number:03}"), &many_ports(number))
            .expect("manifests");
    }
    let wanted = had + (many * ENTRIES) as u64;
    // A Service's port that has no room for its backends counts under these.
    let all = |s: &Value| usage(s, "services", "used") + usage(s, "backends", "left_out");
    let full = wait(&mut cluster, "backends are left out", |s| {
        all(s) == wanted && usage(s, "backends", "left_out") > 0
    });
    assert!(traffic.is_under_way(), "the table was full after the traffic");
    assert!(usage(&full, "backends", "used") > room - ENDPOINTS as u64, "what fits is in");
    assert!(usage(&full, "backends", "left_out_total") >= usage(&full, "backends", "left_out"));
    let said = errors(&full);
    let parts = ["table backends is full", "72 MiB", "raise --max-table-mib", "left out: Service shop/many-"];
    assert!(said.len() == 1 && parts.iter().all(|part| said[0].contains(part)), "{said:?}");
    assert!(full["warnings"].to_string().contains("table backends holds"), "{}", full["warnings"]);
    // What was installed forwards, and can still be changed.
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);

    for number in many - 4..many {
        cluster.testbed.manifests().remove(&format!("many-{number:03}")).expect("manifests");
    }
    let wanted = had + ((many - 4) * ENTRIES) as u64;
    let healed = wait(&mut cluster, "what was left out is in", |s| usage(s, "services", "used") == wanted);
    assert_eq!((errors(&healed), usage(&healed, "backends", "left_out")), (vec![], 0));
    traffic.end(&mut cluster);
    let log = cluster.testbed.node_mut(0).control().expect("it runs").log();
    let warned = log.lines().filter(|line| line.contains("table backends holds")).count();
    assert!(
        (1..=3).contains(&warned),
        "said when it became nearly full, not with every change: {warned} times"
    );
    cluster.stop_and_check_invariants();
}
