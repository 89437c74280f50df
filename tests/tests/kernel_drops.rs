//! Packets that the kernel drops before the engine sees them are counted where operators look.

mod common;

use common::Cluster;
use fairway_control::names::host_veth;
use fairway_tests::gate;
use fairway_tests::node::Node;
use fairway_tests::pod::probe::ProbeSummary;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(20);
const SENT: u64 = 4000;

/// A counter of a port.
fn counter(node: &Node, device: &str, name: &str) -> Result<u64, String> {
    let counters = node.ask(&["counters"]).map_err(|error| error.to_string())?;
    let ports = counters["ports"].as_array().into_iter().flatten();
    let port = ports.filter(|port| port["ifname"] == device).find_map(|port| port[name].as_u64());
    port.ok_or_else(|| format!("no {name} of {device} in {counters}"))
}

#[test]
fn what_overflows_a_ring_in_the_kernel_is_counted_on_its_port() {
    if !gate::may_run("kernel_drops") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let client = cluster.testbed.pod(cluster.client);
    let device = host_veth(client.namespace(), client.name());
    let run_dir = cluster.testbed.nodes()[0].run_dir().display().to_string();
    let count = |cluster: &Cluster, name| counter(&cluster.testbed.nodes()[0], &device, name);
    assert_eq!(count(&cluster, "kernel_rx_dropped"), Ok(0));
    let received = count(&cluster, "rx_packets").expect("counters");

    // The engine stands still while its rings fill up.
    cluster.testbed.node_mut(0).dataplane().expect("it runs").signal(libc::SIGSTOP).expect("stop");
    let address = cluster.pod_address("web-2");
    let args = ["probe", address.as_str(), "--rate-pps", "8000", "--duration-ms", "500"];
    let probe: ProbeSummary = cluster.client(&args, DEADLINE);
    cluster.testbed.node_mut(0).dataplane().expect("it runs").signal(libc::SIGCONT).expect("go on");
    assert_eq!(probe.sent, SENT);

    // What the probe sent came in or was dropped; a few packets more are neighbour discovery.
    let waited = cluster.testbed.wait("every packet is accounted for", READY, |testbed| {
        let node = &testbed.nodes()[0];
        let [received_now, dropped] =
            ["rx_packets", "kernel_rx_dropped"].map(|name| counter(node, &device, name));
        let (received_now, dropped) = (received_now?, dropped?);
        let all = received_now - received + dropped;
        if dropped > 0 && all >= SENT { Ok(dropped) } else { Err(format!("{dropped} dropped of {all}")) }
    });
    let dropped = waited.unwrap_or_else(|error| panic!("{error}"));
    assert!(dropped < SENT, "its rings took some: {dropped}");
    assert!(count(&cluster, "kernel_fill_empty").expect("counters") > 0, "no frame was left to receive into");
    let table = cluster.testbed.nodes()[0].run("fairway", &["--run-dir", &run_dir, "counters"]);
    let table = table.and_then(|output| output.success()).expect("counters");
    let row = table.lines().find(|line| line.contains(&device)).expect("the client's port");
    assert!(table.contains("KERNEL DROPS") && row.contains(&dropped.to_string()), "{table}");
    cluster.stop_and_check_invariants();
}
