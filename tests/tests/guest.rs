//! Linux's own IP-in-IP tunnels as the other node, laid out as Calico does, and those with IPv6 inside or outside: a kernel in
//! QEMU, since few test machines' own kernels have them.

mod common;

use common::Cluster;
use common::dual_stack;
use common::pools::ip_pool;
use common::underlay6::{
    OVER_IPV4, OVER_IPV6, give_addresses, node, pools, servers, wait_for_ways, write_nodes,
};
use common::ways::{
    enlarge_pods, exercise_and_capture, exercise_at, learn_mtu_by_tcp, node_of_station, one_ping, peer_of,
    ping_around_the_edge, wait_for_way,
};
use fairway_tests::capture::by_encapsulation;
use fairway_tests::gate;
use fairway_tests::guest::{Guest, Tunnels};
use fairway_tests::station::Station;
use fairway_tests::testbed::POD_PORT;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// What IP in IP leaves of 1,500 bytes.
const PATH_MTU: u32 = 1480;

/// The guest's kernel, if such tests may run here.
fn kernel() -> Option<PathBuf> {
    if !gate::may_run("guest") {
        return None;
    }
    Guest::kernel().map_err(|missing| gate::skip("guest", &missing.to_string())).ok()
}

#[test]
fn linux_ipip_is_a_node_like_others() {
    let Some(kernel) = kernel() else { return };
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let (ip, pod_ip) = (Ipv4Addr::new(192, 168, 77, 9), Ipv4Addr::new(10, 244, 9, 7));
    let mut station = Station::new(&cluster.testbed, "guest-pod", ip, pod_ip).expect("station");
    let guest = Guest::boot(&kernel, &cluster.testbed, &station, &peer_of(&cluster, 0), Tunnels::Ipip)
        .expect("guest");
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

/// A guest as node 9 that speaks these tunnels, with a pod of both families; what the engine exchanges with it, on what wires,
/// and what its ICMP errors say of the way.
fn exchange(tunnels: Tunnels, family: &str, via: &str, wires: [&str; 2], path_mtu: u32) {
    let Some(kernel) = kernel() else { return };
    let _alone = gate::alone();
    let (mut cluster, _servers) = dual_stack::start();
    give_addresses(&cluster);
    write_nodes(&cluster, &[OVER_IPV4, OVER_IPV6]);
    let (ip, pod_ip) = (Ipv4Addr::new(192, 168, 77, 9), Ipv4Addr::new(10, 244, 9, 7));
    let mut station = Station::new(&cluster.testbed, "guest-pod", ip, pod_ip).expect("station");
    let peer = peer_of(&cluster, 0);
    let guest = Guest::boot(&kernel, &cluster.testbed, &station, &peer, tunnels).expect("guest");
    station.start_server().expect("server");
    let server6 = station.start_server_at("[fd00:244:9::7]:9090").expect("server");
    let manifests = cluster.testbed.manifests();
    let asked = format!("fairway.io/outer-family: {family}");
    manifests.write("node-station", &node("station", 9, &[OVER_IPV4, OVER_IPV6], "")).expect("node");
    manifests.write("pool", &pools("ipipMode: Always", &asked)).expect("pool");
    wait_for_ways(&mut cluster, 0, 9, ("tunnel", Some("ipip")), [via; 2]);
    let pod = |name: &str| cluster.testbed.pod(cluster.pod(name)).netns();
    let (client, web_1) = (pod("client"), pod("web-1"));

    // The MTU of the path, found by the engine's errors alone. First, since a station that knows it announces it.
    enlarge_pods(&cluster);
    let [four, six] = servers(&cluster, "web-1");
    let pod_ip6: std::net::Ipv6Addr = "fd00:244:9::7".parse().expect("an address");
    learn_mtu_by_tcp(&cluster, station.netns(), &format!("http://{four}"), web_1, pod_ip, path_mtu);
    learn_mtu_by_tcp(&cluster, station.netns(), &format!("http://{six}"), web_1, pod_ip6, path_mtu);
    let said = one_ping(client, &["-M", "do", "-s", &(path_mtu - 27).to_string()], pod_ip);
    assert!(said.contains(&format!("Frag needed and DF set (mtu = {path_mtu})")), "{said}");
    let size = (path_mtu - 47).to_string();
    let said = dual_stack::one_ping(client, &["-M", "do", "-s", &size], "fd00:244:9::7");
    assert!(said.contains(&format!("Packet too big: mtu={path_mtu}")), "{said}");

    // TCP, and UDP of 1, 1,472 and 65,000 bytes, of either family from either side.
    let capture = cluster.testbed.capture(ip, family).expect("capture");
    for target in [format!("{pod_ip}:8080"), "[fd00:244:9::7]:9090".to_owned()] {
        exercise_at(&cluster, family, client, &target);
    }
    for target in [four, six] {
        exercise_at(&cluster, family, station.netns(), &target);
    }
    let counts = by_encapsulation(&capture.stop().expect("captured packets"));
    assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), wires, "{counts:?}");
    assert!(counts.values().all(|count| *count > 2000), "{counts:?}");

    // Hops answer across both kinds of node.
    for (hops, four, six) in [("1", "10.244.1.1", "fd00:244:1::1"), ("2", "10.244.9.1", "fd00:244:9::1")] {
        let said = one_ping(client, &["-t", hops], pod_ip);
        assert!(said.contains(&format!("From {four} ")) && said.contains("Time to live exceeded"), "{said}");
        let said = dual_stack::one_ping(client, &["-t", hops], "fd00:244:9::7");
        assert!(said.contains(&format!("From {six} ")) && said.contains("Time exceeded"), "{said}");
    }
    drop((guest, server6));
    cluster.stop_and_check_invariants();
}

#[test]
fn linux_sit_beside_ipip_is_a_node_like_others() {
    exchange(Tunnels::OverIpv4, "IPv4", OVER_IPV4, ["6in4", "ipip"], 1480);
}

#[test]
fn linux_ip6tnl_for_both_families_is_a_node_like_others() {
    exchange(Tunnels::OverIpv6, "IPv6", OVER_IPV6, ["4in6", "6in6"], 1460);
}
