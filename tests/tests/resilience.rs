//! What goes on when a part of a node dies or is replaced under traffic.

mod common;

use common::Cluster;
use fairway_tests::gate;
use fairway_tests::pod::client::Summary;
use fairway_tests::programs::share_of_cores;
use fairway_tests::sys;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

const CLIENT_DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn forwarding_goes_on_without_control_and_through_its_return() {
    if !gate::may_run("resilience") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1", "web-2"]);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    let url = cluster.url("/");

    // Requests are under way while control is killed, is gone, and comes back.
    let args = ["get", url.as_str(), "--no-keepalive", "--duration-ms", "4000"];
    let client = cluster.testbed.start_client(cluster.client, &args).expect("client");
    std::thread::sleep(Duration::from_millis(500));
    for node in 0..2 {
        cluster.testbed.node_mut(node).control().expect("control runs").kill();
    }
    std::thread::sleep(Duration::from_millis(1500));
    for node in 0..2 {
        cluster.testbed.node_mut(node).start_control().expect("control starts again");
    }
    let summary: Summary = cluster.testbed.finish_client(client, CLIENT_DEADLINE).expect("summary");
    assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()), "of {} requests", summary.requests);
    assert_eq!(summary.backends.len(), 2, "{:?}", summary.backends);

    // And control is in charge again.
    cluster.set_backends(&["web-3"]);
    cluster.wait_for_backends(&["web-3"]);
    cluster.stop_and_check_invariants();
}

#[test]
fn a_connection_outlives_a_restart_of_the_engine() {
    if !gate::may_run("resilience") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let url = cluster.url("/bytes/150000000");
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "55000"];
    let mut client = cluster.testbed.start_client(cluster.client, &args).expect("client");
    std::thread::sleep(Duration::from_millis(200));
    // New connections would go to another backend; this one must not.
    cluster.set_backends(&["web-1"]);
    for node in 0..2 {
        let cores = share_of_cores(&sys::cores(), node, 1);
        let node = cluster.testbed.node_mut(node);
        let lines = node.stop_dataplane().unwrap_or_else(|e| panic!("{e}"));
        assert!(!lines.is_empty());
        node.start_dataplane(&["--cores", &cores]).expect("dataplane starts again");
    }
    assert!(client.ended().is_none(), "the download was to be under way: {}", client.log());
    let summary: Summary = cluster.testbed.finish_client(client, CLIENT_DEADLINE).expect("summary");
    assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()));
    assert_eq!((summary.bytes, summary.byte_exact), (150_000_000, Some(true)));
    cluster.wait_for_backends(&["web-1"]);
    cluster.stop_and_check_invariants();
}

#[test]
fn pods_come_and_go_under_traffic_and_no_frame_is_lost() {
    if !gate::may_run("resilience") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let url = cluster.url("/");
    let args = ["get", url.as_str(), "--no-keepalive", "--duration-ms", "8000"];
    let client = cluster.testbed.start_client(cluster.client, &args).expect("client");
    for round in 0..4u8 {
        let (name, ip) = (format!("guest-{round}"), Ipv4Addr::new(10, 244, 1, 100 + round));
        let guest = cluster.testbed.add_pod(0, "shop", &name, ip).expect("pod");
        cluster.wait_for_gateways();
        // Even rounds end as kubelet does it, odd ones as a crash does: the veth first. A flood of
        // packets is on its way either way.
        let flood = ["-n", "-q", "-f", "-c", "2000", "-W", "1", "169.254.1.1"];
        let mut flooding = cluster.testbed.pod(guest).netns().command("ping");
        let mut flooding = flooding.args(flood).stdout(Stdio::null()).spawn().expect("ping");
        std::thread::sleep(Duration::from_millis(20));
        if round % 2 == 0 {
            cluster.testbed.manifests().remove_pod("shop", &name).expect("remove the manifest");
            std::thread::sleep(Duration::from_millis(100));
            cluster.testbed.delete_pod(guest);
        } else {
            cluster.testbed.delete_pod(guest);
            std::thread::sleep(Duration::from_millis(100));
            cluster.testbed.manifests().remove_pod("shop", &name).expect("remove the manifest");
        }
        flooding.wait().expect("ping ends with its namespace");
    }
    let summary: Summary = cluster.testbed.finish_client(client, CLIENT_DEADLINE).expect("summary");
    assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()), "of {} requests", summary.requests);
    cluster.stop_and_check_invariants();
}
