//! Dual-stack pods: real IPv6 stacks reach each other, a service, the gateway and the node, on one node and across the
//! VXLAN tunnel over IPv4; path MTU and hops show by the engine's ICMPv6.

mod common;

use common::dual_stack::{PORT, VIP, address, one_ping, start, write_service};
use common::ways::wait_for_way;
use fairway_control::names;
use fairway_tests::capture::by_encapsulation;
use fairway_tests::gate;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::udp::UdpSummary;
use fairway_tests::snmp;
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
const DOWNLOAD_BYTES: u64 = 8_000_000;

#[test]
fn dual_stack_pods_speak_ipv6_with_everybody() {
    if !gate::may_run("ipv6") {
        return;
    }
    let _alone = gate::alone();
    let (cluster, _servers) = start();
    let before = cluster.kernel_counters();
    let netns = cluster.testbed.pod(cluster.client).netns();
    let gateway = format!("{}%eth0", names::GATEWAY_IP6);
    let targets =
        [gateway, address(&cluster, "web-1"), address(&cluster, "web-2"), "fd00:244:1::1".to_owned()];
    for target in &targets {
        let said = one_ping(netns, &[], target);
        assert!(said.contains("1 received"), "{target}: {said}");
    }
    // From the node itself: to a pod of its own, to one behind the tunnel, and to the service.
    let node = cluster.testbed.nodes()[0].netns();
    for target in &targets[1..3] {
        let said = one_ping(node, &[], target);
        assert!(said.contains("1 received"), "node to {target}: {said}");
    }
    let url = format!("http://[{VIP}]:80/bytes/100000");
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "20000"];
    let from_node: Summary = cluster.testbed.client(node, &args, Duration::from_secs(30)).expect("client");
    assert_eq!((from_node.bytes, from_node.byte_exact, from_node.errors), (100_000, Some(true), Vec::new()));

    let url = format!("http://[{VIP}]:80/bytes/{DOWNLOAD_BYTES}");
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "60000"];
    let download: Summary = cluster.client(&args, Duration::from_secs(70));
    assert_eq!(download.errors, Vec::<String>::new());
    assert_eq!((download.bytes, download.byte_exact), (DOWNLOAD_BYTES, Some(true)));
    // In 46 fragments each way.
    let target = format!("[{VIP}]:80");
    let args = ["udp-ping", &target, "--count", "10", "--size-bytes", "65000", "--timeout-ms", "3000"];
    let echoes: UdpSummary = cluster.client(&args, Duration::from_secs(40));
    assert_eq!((echoes.received, echoes.damaged), (10, 0), "datagrams of 65,000 bytes through the service");
    for (place, before, after) in cluster.kernel_counters_since(before) {
        let errors = snmp::new_errors(&before, &after);
        assert!(errors.is_empty(), "{place} counts packet errors: {errors:?}");
    }
    cluster.stop_and_check_invariants();
}

/// Pools of both families with one mode.
fn pools(mode: &str) -> String {
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: '{cidr}', ipipMode: \
             Never, vxlanMode: {mode}}}\n---\n"
        )
    };
    pool("four", "10.244.0.0/16") + &pool("six", "fd00:244::/32")
}

#[test]
fn pools_carry_ipv6_between_nodes_with_and_without_encapsulation_and_change_it_while_it_runs() {
    if !gate::may_run("ipv6") {
        return;
    }
    let _alone = gate::alone();
    let (mut cluster, _servers) = start();
    for (mode, kind, encapsulation, wire) in [
        ("Never", "gateway", None, "direct IPv6"),
        ("Always", "tunnel", Some("vxlan"), "vxlan 4096 on 4789"),
        // Both nodes are in one subnet.
        ("CrossSubnet", "gateway", None, "direct IPv6"),
    ] {
        cluster.testbed.manifests().write("pools", &pools(mode)).expect("pools");
        wait_for_way(&mut cluster, 0, "fd00:244:2::/64", kind, encapsulation);
        wait_for_way(&mut cluster, 1, "fd00:244:1::/64", kind, encapsulation);
        let capture = cluster.testbed.capture(cluster.testbed.nodes()[0].ip(), mode).expect("capture");
        for (from, to) in [("client", "web-2"), ("web-2", "web-1")] {
            let netns = cluster.testbed.pod(cluster.pod(from)).netns();
            let server = format!("[{}]:{PORT}", address(&cluster, to));
            let url = format!("http://{server}/bytes/3000000");
            let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "30000"];
            let download: Summary =
                cluster.testbed.client(netns, &args, Duration::from_secs(40)).expect("client");
            assert_eq!((download.errors, download.byte_exact), (Vec::new(), Some(true)), "{mode}");
            for size_bytes in ["1", "1472", "65000"] {
                let args =
                    ["udp-ping", &server, "--count", "5", "--size-bytes", size_bytes, "--timeout-ms", "3000"];
                let echoes: UdpSummary =
                    cluster.testbed.client(netns, &args, Duration::from_secs(40)).expect("client");
                assert_eq!((echoes.received, echoes.damaged), (5, 0), "{mode}: {size_bytes} bytes");
            }
        }
        let counts = by_encapsulation(&capture.stop().expect("captured packets"));
        assert_eq!(counts.keys().collect::<Vec<_>>(), [wire], "{mode}: {counts:?}");
        assert!(counts[wire] > 4000, "{mode}: {counts:?}");
    }
    cluster.stop_and_check_invariants();
}

#[test]
fn icmpv6_tells_hops_mtu_and_refusal() {
    if !gate::may_run("ipv6") {
        return;
    }
    let _alone = gate::alone();
    let (mut cluster, _servers) = start();
    for pod in cluster.testbed.pods() {
        let veth = names::host_veth("shop", pod.name());
        let node = cluster.testbed.nodes()[pod.node()].netns();
        node.ip(["link", "set", &veth, "mtu", "1500"]).expect("mtu of the host's end");
        pod.netns().ip(["link", "set", "eth0", "mtu", "1500"]).expect("mtu of the pod's end");
    }
    let remote = address(&cluster, "web-2");
    let netns = cluster.testbed.pod(cluster.client).netns();
    for (ttl, hop) in [("1", "From fd00:244:1::1 "), ("2", "From fd00:244:2::1 ")] {
        let said = one_ping(netns, &["-t", ttl], &remote);
        assert!(said.contains(hop) && said.contains("Time exceeded"), "hop limit {ttl}: {said}");
    }
    // A request of 1451 bytes is one too many for the tunnel; the kernel learns so and fragments no echo that forbids it.
    let said = one_ping(netns, &["-M", "do", "-s", "1402"], &remote);
    assert!(said.contains("1 received"), "1450 bytes: {said}");
    let said = one_ping(netns, &["-M", "do", "-s", "1403"], &address(&cluster, "web-3"));
    assert!(said.contains("Packet too big: mtu=1450"), "1451 bytes: {said}");
    // TCP between pods that believe in 1500 bytes finds its way by the same errors.
    let url = format!("http://[{VIP}]:80/bytes/{DOWNLOAD_BYTES}");
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "60000"];
    let download: Summary = cluster.client(&args, Duration::from_secs(70));
    assert_eq!(
        (download.bytes, download.byte_exact, download.errors),
        (DOWNLOAD_BYTES, Some(true), Vec::new())
    );

    write_service(&cluster, &[]);
    let client = cluster.client;
    let waited =
        cluster.testbed.wait("a client of a service without endpoints is refused", READY, |testbed| {
            let url = format!("http://[{VIP}]:80/");
            let args = ["get", url.as_str(), "--no-keepalive", "--count", "1", "--timeout-ms", "3000"];
            let netns = testbed.pod(client).netns();
            let summary: Summary =
                testbed.client(netns, &args, Duration::from_secs(20)).map_err(|e| e.to_string())?;
            if summary.errors.iter().any(|error| error.contains("refused")) {
                Ok(())
            } else {
                Err(format!("{:?}", summary.errors))
            }
        });
    waited.unwrap_or_else(|error| panic!("{error}"));
    cluster.stop_and_check_invariants();
}
