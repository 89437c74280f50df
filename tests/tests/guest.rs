//! Linux's own IP-in-IP tunnel as the other node, laid out as Calico does: a kernel in QEMU, since few test machines' own
//! kernels have it.

mod common;

use common::Cluster;
use common::pools::ip_pool;
use common::ways::{
    enlarge_pods, exercise_and_capture, learn_mtu_by_tcp, node_of_station, one_ping, peer_of,
    ping_around_the_edge, wait_for_way,
};
use fairway_tests::gate;
use fairway_tests::guest::Guest;
use fairway_tests::station::Station;
use fairway_tests::testbed::POD_PORT;
use std::net::Ipv4Addr;

/// What IP in IP leaves of 1,500 bytes.
const PATH_MTU: u32 = 1480;

#[test]
fn linux_ipip_is_a_node_like_others() {
    if !gate::may_run("guest") {
        return;
    }
    let kernel = match Guest::kernel() {
        Ok(kernel) => kernel,
        Err(missing) => return gate::skip("guest", &missing.to_string()),
    };
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let (ip, pod_ip) = (Ipv4Addr::new(192, 168, 77, 9), Ipv4Addr::new(10, 244, 9, 7));
    let mut station = Station::new(&cluster.testbed, "guest-pod", ip, pod_ip).expect("station");
    let guest = Guest::boot(&kernel, &cluster.testbed, &station, &[peer_of(&cluster, 0)]).expect("guest");
    station.start_server().expect("server");
    let manifests = cluster.testbed.manifests();
    let node = node_of_station(&station, "10.244.9.0/24", "02:00:00:00:00:09");
    manifests.write("node-station", &node).expect("node");
    manifests.write("pool", &ip_pool("  ipipMode: Always\n")).expect("pool");
    wait_for_way(&mut cluster, 0, "10.244.9.0/24", "tunnel", Some("ipip"));
    let pod = |name: &str| cluster.testbed.pod(cluster.pod(name));
    let (client, web_1) = (pod("client"), pod("web-1"));

    // The MTU of the path, found by the engine's errors alone. First, since a station that knows it announces it.
    enlarge_pods(&cluster);
    let url = format!("http://{}:{POD_PORT}", web_1.ip());
    learn_mtu_by_tcp(&cluster, station.netns(), &url, web_1.netns(), pod_ip, PATH_MTU);
    ping_around_the_edge(client.netns(), pod_ip, PATH_MTU, Ipv4Addr::new(10, 244, 1, 1));

    // TCP, and UDP of 1, 1,472 and 65,000 bytes, from either side.
    let ways = [(client.netns(), pod_ip), (station.netns(), web_1.ip())];
    exercise_and_capture(&cluster, "linux-ipip", "ipip", ip, ways);

    // Hops answer across both kinds of node.
    let said = one_ping(client.netns(), &["-t", "1"], pod_ip);
    assert!(said.contains("From 10.244.1.1 ") && said.contains("Time to live exceeded"), "{said}");
    let said = one_ping(client.netns(), &["-t", "2"], pod_ip);
    assert!(said.contains("From 10.244.9.1 ") && said.contains("Time to live exceeded"), "{said}");
    drop(guest);
    cluster.stop_and_check_invariants();
}
