//! Dual-stack pods: real IPv6 stacks reach each other, a service, the gateway and the node, on one node and across the
//! VXLAN tunnel over IPv4; path MTU and hops show by the engine's ICMPv6.

mod common;

use common::Cluster;
use fairway_control::names;
use fairway_tests::dual_stack;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::process::Process;
use fairway_tests::programs;
use fairway_tests::snmp;
use std::fmt::Write as _;
use std::time::Duration;

const PORT: u16 = 9090;
const VIP: &str = "fd00:96::80";
const READY: Duration = Duration::from_secs(20);
const DOWNLOAD_BYTES: u64 = 8_000_000;

/// The IPv6 address of the pod with this IPv4 address.
fn address(cluster: &Cluster, name: &str) -> String {
    let pod = cluster.testbed.pod(cluster.pod(name));
    format!("fd00:244:{}::{}", pod.node() + 1, pod.ip().octets()[3])
}

/// Gives nodes a second pod range and pods a second address, as dual-stack clusters have them, and starts servers that
/// listen on IPv6.
fn make_dual_stack(cluster: &Cluster) -> Vec<Process> {
    let manifests = cluster.testbed.manifests();
    for (index, node) in cluster.testbed.nodes().iter().enumerate() {
        let (name, ip, number) = (node.name(), node.ip(), index + 1);
        let yaml = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec:\n  podCIDRs: [10.244.{number}.0/24, \
             'fd00:244:{number}::/64']\nstatus:\n  addresses:\n  - {{type: InternalIP, address: {ip}}}\n"
        );
        manifests.write(&format!("node-{name}"), &yaml).expect("node");
        dual_stack::allow_ipv6(node.netns(), &["lo"]).expect("IPv6");
    }
    let mut servers = Vec::new();
    for name in ["client", "web-1", "web-2", "web-3"] {
        let (pod, ip6) = (cluster.testbed.pod(cluster.pod(name)), address(cluster, name));
        let (netns, node) = (pod.netns(), cluster.testbed.nodes()[pod.node()].name());
        dual_stack::add_address(pod, ip6.parse().expect("an address")).expect("address");
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: {name}}}\nspec: {{nodeName: {node}, \
             containers: []}}\nstatus: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: '{ip6}'}}]}}\n",
            pod.ip()
        );
        manifests.write(&format!("pod-shop-{name}"), &yaml).expect("pod");
        if name != "client" {
            let bin_dir = programs::bin_dir().expect("programs");
            let mut command = netns.command(programs::program(&bin_dir, "fairway-pod").expect("fairway-pod"));
            command.args(["serve", "--listen", &format!("[::]:{PORT}"), "--name", name]);
            let log = cluster.testbed.dir().join(format!("server6-{name}.log"));
            servers.push(Process::spawn(name, command, &log, true).expect("server"));
        }
    }
    servers
}

/// The IPv6 service, with these pods behind it.
fn write_service(cluster: &Cluster, backends: &[&str]) {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: six}}\nspec:\n  clusterIPs: ['{VIP}']\n  \
         ports:\n  - {{name: http, port: 80, targetPort: {PORT}}}\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\nmetadata:\n  namespace: shop\n  name: six-1\n  labels: {{kubernetes.io/service-name: \
         six}}\naddressType: IPv6\nports: [{{name: http, port: {PORT}}}]\nendpoints:\n"
    );
    for name in backends {
        let _ = writeln!(yaml, "- addresses: ['{}']", address(cluster, name));
    }
    cluster.testbed.manifests().write("six", &yaml).expect("service");
}

/// What `ping` says about one echo request with these options.
fn one_ping(netns: &Netns, options: &[&str], target: &str) -> String {
    let mut args = vec!["-6", "-n", "-c", "1", "-W", "2"];
    args.extend(options);
    args.push(target);
    let output = netns.run("ping", &args, Duration::from_secs(10)).expect("ping runs");
    output.stdout + &output.stderr
}

fn start() -> (Cluster, Vec<Process>) {
    let mut cluster = Cluster::build(1);
    let servers = make_dual_stack(&cluster);
    write_service(&cluster, &["web-2"]);
    cluster.testbed.start_nodes(1).expect("start the nodes");
    cluster.wait_for_gateways();
    let client = cluster.client;
    let waited = cluster.testbed.wait("the service answers over IPv6", READY, |testbed| {
        let url = format!("http://[{VIP}]:80/");
        let args = ["get", url.as_str(), "--no-keepalive", "--count", "5", "--timeout-ms", "500"];
        let netns = testbed.pod(client).netns();
        let summary: Summary =
            testbed.client(netns, &args, Duration::from_secs(20)).map_err(|e| e.to_string())?;
        if summary.failures == 0 { Ok(()) } else { Err(format!("{:?}", summary.errors)) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    (cluster, servers)
}

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
    for (place, before, after) in cluster.kernel_counters_since(before) {
        let errors = snmp::new_errors(&before, &after);
        assert!(errors.is_empty(), "{place} counts packet errors: {errors:?}");
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
