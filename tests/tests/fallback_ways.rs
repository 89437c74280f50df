//! The kernel's own way for pod traffic beyond IPv4 in one VXLAN network: IPv6, and the other encapsulations.

mod common;

use common::Cluster;
use common::carrier::{BOTH, start_engine, stop_engine, wait_for_carrier};
use common::dual_stack::{self, PORT, VIP, address, one_ping};
use common::load::{self, Streams};
use common::pools::{flannel, ip_pool};
use fairway_control::names;
use fairway_tests::capture::by_encapsulation;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::snmp;
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(60);
const STREAMS: Streams =
    Streams { count: 20, records: 80, record_bytes: 1000, interval_ms: 100, timeout_ms: 50_000 };

fn get(cluster: &Cluster, from: &Netns, url: &str, timeout_ms: &str) -> Summary {
    let args = ["get", url, "--verify-bytes", "--no-keepalive", "--timeout-ms", timeout_ms];
    cluster.testbed.client(from, &args, DEADLINE).unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn assert_byte_exact(summary: &Summary, what: &str) {
    assert_eq!((&summary.errors, summary.byte_exact), (&Vec::new(), Some(true)), "{what}");
}

/// Pods and nodes reach pods, by ping and by TCP to the byte; a closed port is refused.
fn everybody_speaks_ipv6(cluster: &Cluster, when: &str) {
    let pod = |name: &str| cluster.testbed.pod(cluster.pod(name)).netns();
    let node = cluster.testbed.nodes()[0].netns();
    let gateway = format!("{}%eth0", names::GATEWAY_IP6);
    let said = one_ping(pod("client"), &[], &gateway);
    assert!(said.contains("1 received"), "{when}: the gateway: {said}");
    for (from, netns, to) in [
        ("client", pod("client"), address(cluster, "web-1")),
        ("client", pod("client"), address(cluster, "web-2")),
        ("web-2", pod("web-2"), address(cluster, "client")),
        ("client", pod("client"), "fd00:244:1::1".to_owned()),
        ("client", pod("client"), "fd00:244:2::1".to_owned()),
        ("its node", node, address(cluster, "web-1")),
        ("another node", node, address(cluster, "web-2")),
    ] {
        // The largest packet of a pod, unfragmented.
        let said = one_ping(netns, &["-M", "do", "-s", "1402"], &to);
        assert!(said.contains("1 received"), "{when}: {from} to {to}: {said}");
    }
    for to in ["web-1", "web-2"] {
        let to = address(cluster, to);
        let download = get(cluster, pod("client"), &format!("http://[{to}]:{PORT}/bytes/300000"), "10000");
        assert_byte_exact(&download, &format!("{when}: {to}"));
        let closed = get(cluster, pod("client"), &format!("http://[{to}]:1/"), "10000").errors.join("; ");
        assert!(closed.contains("refused"), "{when}: a closed port of {to}: {closed}");
    }
}

#[test]
fn dual_stack_pods_reach_each_other_without_engines_and_connections_to_services_outlive_that() {
    if !gate::may_run("fallback") {
        return;
    }
    let _alone = gate::alone();
    let (mut cluster, _servers) = dual_stack::start();
    dual_stack::write_service(&cluster, &["web-1", "web-2"]);
    let streams = load::start_streams(&cluster, &format!("[{VIP}]:81"), STREAMS);
    let resets = |cluster: &Cluster| snmp::read(cluster.testbed.pod(cluster.client).netns()).expect("snmp")["Tcp.OutRsts"];
    let before = resets(&cluster);
    BOTH.iter().for_each(|node| stop_engine(&mut cluster, *node));
    wait_for_carrier(&mut cluster, &BOTH, "kernel");
    everybody_speaks_ipv6(&cluster, "no engine");
    // The service: at first nobody answers, then somebody says that nobody will.
    let client = cluster.client;
    let refused = cluster.testbed.wait("the service is refused", READY, |testbed| {
        // Longer than the second after which a SYN is repeated: an error that comes while `connect` still sends the
        // first one is noted by the pod's kernel, and no more.
        let args = ["get", &format!("http://[{VIP}]:80/"), "--timeout-ms", "3000"];
        let summary: Summary =
            testbed.client(testbed.pod(client).netns(), &args, DEADLINE).map_err(|e| e.to_string())?;
        let said = summary.errors.join("; ");
        if said.contains("unreachable") || said.contains("No route") { Ok(()) } else { Err(said) }
    });
    refused.unwrap_or_else(|error| panic!("{error}"));
    BOTH.iter().for_each(|node| start_engine(&mut cluster, *node));
    wait_for_carrier(&mut cluster, &BOTH, "engine");
    let streams: StreamSummary = load::answer(&mut cluster, streams, DEADLINE);
    assert_eq!((streams.streams, streams.byte_exact), (STREAMS.count, STREAMS.count), "{:?}", streams.errors);
    // Which they do only because these did not reach the backends.
    assert!(resets(&cluster) > before, "the client did not reset a connection that it did not know");
    cluster.stop_and_check_invariants();
}

/// Whether the kernel makes IPIP devices.
fn has_ipip(netns: &Netns) -> bool {
    let probe = ["link", "add", "probe", "type", "ipip", "local", "127.0.0.9"];
    netns.ip(probe).is_ok_and(|_| netns.ip(["link", "del", "probe"]).is_ok())
}

/// Waits until the pods' range of the other node is reached so, on both nodes.
fn wait_for_route(cluster: &mut Cluster, device: Option<&str>) {
    let waited = cluster.testbed.wait(&format!("the way leads by {device:?}"), READY, |testbed| {
        for (node, range) in testbed.nodes().iter().zip(["10.244.2.0/24", "10.244.1.0/24"]) {
            let routes = node.netns().ip(["route", "show", "table", "7070"]).map_err(|e| e.to_string())?;
            let route = routes.lines().find(|line| line.starts_with(range));
            let by = route.and_then(|line| line.split_whitespace().skip_while(|word| *word != "dev").nth(1));
            if by != device {
                return Err(routes);
            }
        }
        Ok(())
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_kernel_follows_the_pools_and_names_what_it_cannot_do() {
    if !gate::may_run("fallback") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::build(1);
    load::let_kernels_forward(&cluster);
    BOTH.iter().for_each(|node| cluster.testbed.node_mut(*node).start_control().expect("control"));
    let ipip = has_ipip(cluster.testbed.nodes()[0].netns());
    for (name, manifest, device, wire) in [
        ("vxlan", ip_pool("  vxlanMode: Always\n"), Some("fairway.vxlan"), "vxlan 4096 on 4789"),
        ("flannel", flannel("\"Type\": \"vxlan\""), Some("fairway.flannel"), "vxlan 1 on 8472"),
        ("host-gw", flannel("\"Type\": \"host-gw\""), Some("uplink0"), "direct"),
        ("ipip", ip_pool("  ipipMode: Always\n"), ipip.then_some("fairway.ipip"), "ipip"),
        ("udp", flannel("\"Type\": \"udp\""), None, "udp"),
    ] {
        cluster.testbed.manifests().write("pool", &manifest).expect("manifest");
        wait_for_route(&mut cluster, device);
        let told = cluster.testbed.wait("the status tells what is not carried", READY, |testbed| {
            let status = testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())?;
            let not_carried = status["traffic"]["not_carried"].to_string().contains("10.244.2.0/24");
            let error = status["errors"].to_string().contains("no ipip devices");
            let right = (not_carried, error) == (device.is_none(), name == "ipip" && !ipip);
            if right { Ok(()) } else { Err(status.to_string()) }
        });
        told.unwrap_or_else(|error| panic!("{name}: {error}"));
        let links = cluster.testbed.nodes()[0].netns().ip(["-o", "link", "show"]).expect("links");
        let tunnels = links.lines().filter(|line| line.contains(" fairway.")).count();
        assert_eq!(tunnels, usize::from(device.is_some_and(|device| device != "uplink0")), "{name}: {links}");
        if device.is_some() {
            let capture = cluster.testbed.capture(cluster.testbed.nodes()[0].ip(), name).expect("capture");
            let url = format!("http://{}/bytes/300000", cluster.pod_address("web-2"));
            let client = cluster.testbed.pod(cluster.client).netns();
            assert_byte_exact(&get(&cluster, client, &url, "10000"), name);
            let counts = by_encapsulation(&capture.stop().expect("captured packets"));
            assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), [wire], "{counts:?}");
        }
    }
}
