//! Datagrams that no packet holds, through a ClusterIP and back: between pods of one node and of two, from the node itself,
//! whole into the service's address by kernels that put the fragments together.

mod common;

use common::Cluster;
use common::ways::enlarge_pods;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::udp::UdpSummary;
use fairway_tests::testbed::POD_PORT;
use std::net::Ipv4Addr;
use std::time::Duration;

const VIP: &str = "10.96.0.53";
const PORT: u16 = 5353;
const COUNT: u64 = 10;

/// A service of UDP with one pod behind it.
fn write_service(cluster: &Cluster, backend: Ipv4Addr) {
    let yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: echo}}\nspec:\n  clusterIP: {VIP}\n  \
         clusterIPs: [{VIP}]\n  ports:\n  - {{name: echo, protocol: UDP, port: {PORT}, targetPort: {POD_PORT}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: echo-1\n  \
         labels: {{kubernetes.io/service-name: echo}}\naddressType: IPv4\nports: [{{name: echo, protocol: UDP, port: \
         {POD_PORT}}}]\nendpoints:\n- addresses: ['{backend}']\n"
    );
    cluster.testbed.manifests().write("echo", &yaml).expect("service");
}

fn echoes(cluster: &Cluster, from: &Netns, count: u64, size_bytes: usize) -> UdpSummary {
    let (target, count, size_bytes) = (format!("{VIP}:{PORT}"), count.to_string(), size_bytes.to_string());
    let args = ["udp-ping", &target, "--count", &count, "--size-bytes", &size_bytes, "--timeout-ms", "2000"];
    cluster.testbed.client(from, &args, Duration::from_secs(60)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn datagrams_of_all_sizes_go_through_a_cluster_ip_and_back() {
    if !gate::may_run("fragments") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    for backend in ["web-1", "web-2"] {
        write_service(&cluster, cluster.testbed.pod(cluster.pod(backend)).ip());
        let client = cluster.client;
        let answered = cluster.testbed.wait("the service answers", Duration::from_secs(20), |testbed| {
            let target = format!("{VIP}:{PORT}");
            let args = ["udp-ping", &target, "--timeout-ms", "300"];
            let echo: UdpSummary = testbed
                .client(testbed.pod(client).netns(), &args, Duration::from_secs(10))
                .map_err(|e| e.to_string())?;
            if echo.received == 1 { Ok(()) } else { Err("no answer".to_owned()) }
        });
        answered.unwrap_or_else(|e| panic!("{e}"));
        let pod = cluster.testbed.pod(cluster.client).netns();
        let node = cluster.testbed.nodes()[0].netns();
        for (who, netns) in [("pod", pod), ("node", node)] {
            for size_bytes in [1400, 1472, 4000, 65_000, 65_507] {
                let got = echoes(&cluster, netns, COUNT, size_bytes);
                assert_eq!((got.received, got.damaged), (COUNT, 0), "{who} to {backend}: {size_bytes} bytes");
            }
        }
    }
    // Pods that believe in 1,500 bytes send fragments that the engine has to fragment once more for the tunnel.
    enlarge_pods(&cluster);
    let got = echoes(&cluster, cluster.testbed.pod(cluster.client).netns(), COUNT, 65_000);
    assert_eq!((got.received, got.damaged), (COUNT, 0), "fragments of 1,500 bytes through VXLAN");
    cluster.stop_and_check_invariants();
}
