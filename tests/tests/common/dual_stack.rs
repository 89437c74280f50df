//! The cluster with a second address family: pods of both, servers that listen on IPv6, and an IPv6 service.

use super::Cluster;
use fairway_tests::dual_stack;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::process::Process;
use fairway_tests::programs;
use std::fmt::Write as _;
use std::time::Duration;

/// Where the servers listen: for requests, and for streams.
pub(crate) const PORT: u16 = 9090;
const STREAM_PORT: u16 = 9091;
/// The service's address; requests go to its port 80, streams to 81.
pub(crate) const VIP: &str = "fd00:96::80";
const READY: Duration = Duration::from_secs(20);

/// The IPv6 address of the pod with this IPv4 address.
pub(crate) fn address(cluster: &Cluster, name: &str) -> String {
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
            let (listen, streams) = (format!("[::]:{PORT}"), format!("[::]:{STREAM_PORT}"));
            command.args(["serve", "--listen", &listen, "--streams", &streams, "--name", name]);
            let log = cluster.testbed.dir().join(format!("server6-{name}.log"));
            servers.push(Process::spawn(name, command, &log, true).expect("server"));
        }
    }
    servers
}

/// The IPv6 service, with these pods behind it.
pub(crate) fn write_service(cluster: &Cluster, backends: &[&str]) {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: six}}\nspec:\n  clusterIPs: ['{VIP}']\n  \
         ports:\n  - {{name: http, port: 80, targetPort: {PORT}}}\n  - {{name: echo, protocol: UDP, port: 80, \
         targetPort: {PORT}}}\n  - {{name: streams, port: 81, targetPort: \
         {STREAM_PORT}}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  \
         name: six-1\n  labels: {{kubernetes.io/service-name: six}}\naddressType: IPv6\nports: [{{name: http, port: \
         {PORT}}}, {{name: echo, protocol: UDP, port: {PORT}}}, {{name: streams, port: {STREAM_PORT}}}]\nendpoints:\n"
    );
    for name in backends {
        let _ = writeln!(yaml, "- addresses: ['{}']", address(cluster, name));
    }
    cluster.testbed.manifests().write("six", &yaml).expect("service");
}

/// What `ping` says about one echo request with these options.
pub(crate) fn one_ping(netns: &Netns, options: &[&str], target: &str) -> String {
    let mut args = vec!["-6", "-n", "-c", "1", "-W", "2"];
    args.extend(options);
    args.push(target);
    let output = netns.run("ping", &args, Duration::from_secs(10)).expect("ping runs");
    output.stdout + &output.stderr
}

/// Starts it all, and waits until the service answers.
pub(crate) fn start() -> (Cluster, Vec<Process>) {
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
