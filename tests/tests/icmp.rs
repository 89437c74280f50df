//! ICMP errors as real kernels meet them: TCP finds the path's MTU by them alone, `ping` sees each hop, and a client of a
//! service without endpoints is refused at once.

mod common;

use common::Cluster;
use fairway_control::names;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::{Summary, now_us};
use std::net::Ipv4Addr;
use std::time::Duration;

const DOWNLOAD_BYTES: u64 = 8_000_000;
/// What fits through VXLAN on a wire of 1500 bytes.
const PATH_MTU: u32 = 1450;

/// Gives every pod an interface that believes in 1500 bytes.
fn enlarge_pods(cluster: &Cluster) {
    for pod in cluster.testbed.pods() {
        let veth = names::host_veth("shop", pod.name());
        let node = cluster.testbed.nodes()[pod.node()].netns();
        node.ip(["link", "set", &veth, "mtu", "1500"]).expect("mtu of the host's end");
        pod.netns().ip(["link", "set", "eth0", "mtu", "1500"]).expect("mtu of the pod's end");
    }
}

/// What `ping` says about one echo request with these options.
fn one_ping(netns: &Netns, options: &[&str], target: Ipv4Addr) -> String {
    let target = target.to_string();
    let mut args = vec!["-n", "-c", "1", "-W", "2"];
    args.extend(options);
    args.push(&target);
    netns.run("ping", &args, Duration::from_secs(10)).expect("ping runs").stdout
}

#[test]
fn tcp_finds_the_mtu_of_the_tunnel_by_the_engines_errors_alone() {
    if !gate::may_run("icmp") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    enlarge_pods(&cluster);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let (client, server) = (cluster.testbed.pod(cluster.client).ip(), cluster.pod("web-2"));
    let route = |cluster: &Cluster| {
        let netns = cluster.testbed.pod(server).netns();
        netns.ip(["route", "get", &client.to_string()]).expect("route")
    };
    assert!(!route(&cluster).contains("mtu 1450"), "{}", route(&cluster));
    let url = cluster.url(&format!("/bytes/{DOWNLOAD_BYTES}"));
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "60000"];
    let download: Summary = cluster.client(&args, Duration::from_secs(70));
    assert_eq!(download.errors, Vec::<String>::new());
    assert_eq!((download.bytes, download.byte_exact), (DOWNLOAD_BYTES, Some(true)));
    assert!(route(&cluster).contains(&format!("mtu {PATH_MTU}")), "{}", route(&cluster));

    // Every size around the edge, not to be fragmented, in a pod that has not learned anything about this path yet.
    let netns = cluster.testbed.pod(cluster.client).netns();
    let target = cluster.testbed.pod(cluster.pod("web-3")).ip();
    for bytes in PATH_MTU - 2..=PATH_MTU {
        let said = one_ping(netns, &["-M", "do", "-s", &(bytes - 28).to_string()], target);
        assert!(said.contains("1 received"), "{bytes} bytes: {said}");
    }
    let said = one_ping(netns, &["-M", "do", "-s", &(PATH_MTU + 1 - 28).to_string()], target);
    assert!(said.contains("Frag needed and DF set (mtu = 1450)"), "{said}");
    assert!(said.contains("From 10.244.1.1 "), "the node speaks from its own address: {said}");
    cluster.stop_and_check_invariants();
}

#[test]
fn every_hop_of_the_fabric_answers_when_the_ttl_runs_out_there() {
    if !gate::may_run("icmp") {
        return;
    }
    let _alone = gate::alone();
    let cluster = Cluster::start(1);
    let netns = cluster.testbed.pod(cluster.client).netns();
    let remote = cluster.testbed.pod(cluster.pod("web-2")).ip();
    for (ttl, hop) in [("1", "From 10.244.1.1 "), ("2", "From 10.244.2.1 ")] {
        let said = one_ping(netns, &["-t", ttl], remote);
        assert!(said.contains(hop) && said.contains("Time to live exceeded"), "TTL {ttl}: {said}");
    }
    let said = one_ping(netns, &["-t", "3"], remote);
    assert!(said.contains("1 received"), "{said}");
    let said = one_ping(netns, &[], Ipv4Addr::new(10, 244, 1, 200));
    assert!(said.contains("Destination Host Unreachable"), "an address of no pod: {said}");
    cluster.stop_and_check_invariants();
}

#[test]
fn a_service_without_endpoints_refuses_its_clients_at_once() {
    if !gate::may_run("icmp") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    cluster.set_backends(&[]);
    let (client, url) = (cluster.client, cluster.url("/"));
    let waited = cluster.testbed.wait("the client is refused", Duration::from_secs(10), |testbed| {
        let netns = testbed.pod(client).netns();
        let args = ["get", url.as_str(), "--no-keepalive", "--count", "1", "--timeout-ms", "5000"];
        let start_us = now_us();
        let summary: Summary =
            testbed.client(netns, &args, Duration::from_secs(20)).map_err(|e| e.to_string())?;
        let refused = summary.errors.iter().any(|error| error.contains("refused"));
        let ms = (now_us() - start_us) / 1000;
        if refused && ms < 2500 { Ok(()) } else { Err(format!("{ms} ms, {:?}", summary.errors)) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    cluster.stop_and_check_invariants();
}
