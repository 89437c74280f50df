//! ICMP errors as real kernels meet them: TCP finds the path's MTU by them alone, `ping` sees each edge and each hop, and a client of a
//! service without endpoints is refused at once.

mod common;

use common::Cluster;
use common::pools::ip_pool;
use common::ways::{enlarge_pods, learn_mtu_by_tcp, one_ping, ping_around_the_edge, wait_for_way};
use fairway_tests::dual_stack::ipv6_of;
use fairway_tests::gate;
use fairway_tests::pod::client::{Summary, now_us};
use fairway_tests::testbed::POD_PORT;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The first node among its pods.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

#[test]
fn the_mtu_of_the_path_is_found_by_the_engines_errors_alone() {
    if !gate::may_run("icmp") {
        return;
    }
    let _alone = gate::alone();
    for (mode, encapsulation, mtu) in [("vxlanMode", "vxlan", 1450), ("ipipMode", "ipip", 1480)] {
        let mut cluster = Cluster::start_dual_stack();
        cluster.testbed.manifests().write("pool", &ip_pool(&format!("  {mode}: Always\n"))).expect("pool");
        wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some(encapsulation));
        wait_for_way(&mut cluster, 1, "10.244.1.0/24", "tunnel", Some(encapsulation));
        enlarge_pods(&cluster);
        cluster.set_backends(&["web-2"]);
        cluster.wait_for_backends(&["web-2"]);
        let pod = |name: &str| cluster.testbed.pod(cluster.pod(name));
        let (client, server) = (pod("client"), pod("web-2"));
        learn_mtu_by_tcp(&cluster, client.netns(), &cluster.url(""), server.netns(), client.ip(), mtu);
        ping_around_the_edge(client.netns(), pod("web-3").ip(), mtu, ROUTER);
        // IPv6, which is in no pool, goes by VXLAN over IPv6.
        let [back, web_2, web_3] = ["client", "web-2", "web-3"].map(|name| ipv6_of(pod(name).ip()));
        let url = format!("http://[{web_2}]:{POD_PORT}");
        learn_mtu_by_tcp(&cluster, client.netns(), &url, server.netns(), back, 1430);
        ping_around_the_edge(client.netns(), web_3, 1430, ipv6_of(ROUTER));
        cluster.stop_and_check_invariants();
    }
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
