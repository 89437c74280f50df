//! Every encapsulation between real nodes: what pools say is what is on the wire, and TCP and UDP of all sizes
//! come through, between two engines, and between an engine and a kernel that runs nothing of Fairway.

mod common;

use common::Cluster;
use common::pools::{flannel, ip_pool};
use common::ways::{exercise_and_capture, node_of_station, peer_of, wait_for_way};
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::station::{Station, VxlanLayout};
use std::net::Ipv4Addr;
use std::time::Duration;

const CALICO: VxlanLayout = VxlanLayout { vni: 4096, udp_port: 4789 };
const FLANNEL: VxlanLayout = VxlanLayout { vni: 1, udp_port: 8472 };

#[test]
fn two_engines_reach_each_others_pods_in_every_mode_and_change_it_while_they_run() {
    if !gate::may_run("encap") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    for (name, manifest, kind, encapsulation, wire) in [
        ("ipip", ip_pool("  ipipMode: Always\n"), "tunnel", Some("ipip"), "ipip"),
        ("vxlan", ip_pool("  vxlanMode: Always\n"), "tunnel", Some("vxlan"), "vxlan 4096 on 4789"),
        ("never", ip_pool("  ipipMode: Never\n  vxlanMode: Never\n"), "gateway", None, "direct"),
        // Both nodes are in one subnet.
        ("cross-subnet", ip_pool("  ipipMode: CrossSubnet\n"), "gateway", None, "direct"),
        ("flannel-vxlan", flannel("\"Type\": \"vxlan\""), "tunnel", Some("vxlan"), "vxlan 1 on 8472"),
        ("flannel-udp", flannel("\"Type\": \"udp\""), "tunnel", Some("udp"), "udp"),
        ("host-gw", flannel("\"Type\": \"host-gw\""), "gateway", None, "direct"),
    ] {
        cluster.testbed.manifests().write("pool", &manifest).expect("manifest");
        wait_for_way(&mut cluster, 0, "10.244.2.0/24", kind, encapsulation);
        wait_for_way(&mut cluster, 1, "10.244.1.0/24", kind, encapsulation);
        let pod = |name: &str| cluster.testbed.pod(cluster.pod(name));
        let (client, web_1, web_2) = (pod("client"), pod("web-1"), pod("web-2"));
        let ways = [(client.netns(), web_2.ip()), (web_2.netns(), web_1.ip())];
        exercise_and_capture(&cluster, name, wire, cluster.testbed.nodes()[0].ip(), ways);
    }
    // Without a pool all is as before.
    cluster.testbed.manifests().remove("pool").expect("remove");
    wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some("vxlan"));
    cluster.stop_and_check_invariants();
}

#[test]
fn a_kernel_with_a_vxlan_device_in_either_layout_or_plain_routes_is_a_node_like_others() {
    if !gate::may_run("encap") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let pod_ip = Ipv4Addr::new(10, 244, 9, 7);
    let mut station = Station::on_switch(&cluster.testbed, "station", 9, pod_ip).expect("station");
    station.start_server().expect("server");
    let peer = peer_of(&cluster, 0);
    let mut vtep_mac = String::new();
    for (name, manifest, layout, kind, wire) in [
        ("calico", ip_pool("  vxlanMode: Always\n"), Some(CALICO), "tunnel", "vxlan 4096 on 4789"),
        ("flannel", flannel("\"Type\": \"vxlan\""), Some(FLANNEL), "tunnel", "vxlan 1 on 8472"),
        ("direct", ip_pool("  ipipMode: Never\n"), None, "gateway", "direct"),
    ] {
        if let Some(layout) = layout {
            vtep_mac = station.add_vxlan(layout, "uplink0", std::slice::from_ref(&peer)).expect("vxlan");
        } else {
            // From its pod's address: what answers the node's own goes through the other node's kernel.
            let (node, source) = (peer.ip.to_string(), pod_ip.to_string());
            let route = ["route", "add", &peer.pod_cidr, "via", &node, "src", &source];
            station.netns().ip(route).expect("route");
        }
        let node = node_of_station(&station, "10.244.9.0/24", &vtep_mac);
        cluster.testbed.manifests().write("node-station", &node).expect("manifest");
        cluster.testbed.manifests().write("pool", &manifest).expect("manifest");
        wait_for_way(&mut cluster, 0, "10.244.9.0/24", kind, layout.map(|_| "vxlan"));
        let pod = |name: &str| cluster.testbed.pod(cluster.pod(name));
        let (client, web_1) = (pod("client"), pod("web-1"));
        let ways = [(client.netns(), pod_ip), (station.netns(), web_1.ip())];
        exercise_and_capture(&cluster, name, wire, station.ip(), ways);
        if layout.is_some() {
            station.remove_vxlan().expect("remove");
        }
    }
    cluster.stop_and_check_invariants();
}

/// A station in a subnet of its own, behind a router on the switch.
fn station_behind_router(cluster: &Cluster, pod_ip: Ipv4Addr) -> (Netns, Station) {
    let testbed = &cluster.testbed;
    let router = Netns::create(&format!("{}-router", testbed.name())).expect("router");
    testbed.join_switch(&router, Ipv4Addr::new(192, 168, 77, 254)).expect("join");
    let ip = Ipv4Addr::new(192, 168, 78, 2);
    let station = Station::new(testbed, "far", ip, pod_ip).expect("station");
    let far = station.netns();
    router
        .ip(["link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", far.name()])
        .expect("veth");
    router.ip(["addr", "add", "192.168.78.1/24", "dev", "far0"]).expect("address");
    router.ip(["link", "set", "far0", "up"]).expect("up");
    far.ip(["addr", "add", &format!("{ip}/24"), "dev", "eth0"]).expect("address");
    far.ip(["link", "set", "eth0", "up"]).expect("up");
    far.ip(["route", "add", "default", "via", "192.168.78.1"]).expect("route");
    let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    router.inside(forward).expect("enter the router").expect("forwarding");
    for (netns, device) in [(&router, "far0"), (far, "eth0")] {
        let args = ["-K", device, "tx", "off", "tso", "off", "gso", "off", "sg", "off"];
        let off = netns.run("ethtool", &args, Duration::from_secs(10)).and_then(|output| output.success());
        off.expect("offloads off");
    }
    for node in testbed.nodes() {
        let route = ["route", "add", "192.168.78.0/24", "via", "192.168.77.254", "dev", "uplink0"];
        node.netns().ip(route).expect("route");
    }
    (router, station)
}

#[test]
fn cross_subnet_is_direct_within_the_subnet_and_encapsulated_behind_a_router() {
    if !gate::may_run("encap") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let pod_ip = Ipv4Addr::new(10, 244, 9, 7);
    let (_router, mut station) = station_behind_router(&cluster, pod_ip);
    station.start_server().expect("server");
    let vtep_mac = station.add_vxlan(CALICO, "eth0", &[peer_of(&cluster, 0)]).expect("vxlan");
    let node = node_of_station(&station, "10.244.9.0/24", &vtep_mac);
    cluster.testbed.manifests().write("node-station", &node).expect("manifest");
    cluster.testbed.manifests().write("pool", &ip_pool("  vxlanMode: CrossSubnet\n")).expect("manifest");
    wait_for_way(&mut cluster, 0, "10.244.9.0/24", "tunnel", Some("vxlan"));
    wait_for_way(&mut cluster, 0, "10.244.2.0/24", "gateway", None);
    wait_for_way(&mut cluster, 1, "10.244.1.0/24", "gateway", None);
    let pod = |name: &str| cluster.testbed.pod(cluster.pod(name));
    let (client, web_1, web_2) = (pod("client"), pod("web-1"), pod("web-2"));
    let near = [(client.netns(), web_2.ip()), (web_2.netns(), web_1.ip())];
    exercise_and_capture(&cluster, "near", "direct", cluster.testbed.nodes()[1].ip(), near);
    let far = [(client.netns(), pod_ip), (station.netns(), web_1.ip())];
    exercise_and_capture(&cluster, "far", "vxlan 4096 on 4789", Ipv4Addr::new(192, 168, 77, 254), far);
    cluster.stop_and_check_invariants();
}
