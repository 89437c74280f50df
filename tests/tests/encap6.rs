//! IPv6 between the nodes, and both families inside: what pools say is what is on the wire, and TCP and UDP of all sizes come
//! through, between two engines, and between an engine and a kernel's vxlan device that runs nothing of Fairway.

mod common;

use common::underlay6::{
    OVER_IPV4, OVER_IPV6, flannel, give_addresses, join, node, pools, servers, take_ipv4_away, wait_for_ways,
    write_nodes,
};
use common::ways::exercise_at;
use common::{Cluster, dual_stack};
use fairway_control::names;
use fairway_tests::capture::by_encapsulation;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::station::Station;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Packets of pods that a way of both families shows at least: both downloads alone are 4,000 full ones.
const LEAST_PACKETS: usize = 4000;

/// Exercises both families in both directions, and insists on what is on the wire.
fn exercise_and_capture(
    cluster: &Cluster,
    name: &str,
    station: Ipv4Addr,
    ways: &[(&Netns, [String; 2])],
    wires: &[&str],
) {
    let capture = cluster.testbed.capture(station, name).expect("capture");
    for (from, targets) in ways {
        targets.iter().for_each(|target| exercise_at(cluster, name, from, target));
    }
    let counts = by_encapsulation(&capture.stop().expect("captured packets"));
    assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), wires, "{name}: {counts:?}");
    assert!(counts.values().all(|count| *count > LEAST_PACKETS), "{name}: {counts:?}");
}

fn between_pods(cluster: &Cluster) -> [(&Netns, [String; 2]); 2] {
    let netns = |name: &str| cluster.testbed.pod(cluster.pod(name)).netns();
    [(netns("client"), servers(cluster, "web-2")), (netns("web-2"), servers(cluster, "web-1"))]
}

/// Name, whether nodes have addresses of both families, pools, kind and encapsulation of routes, what node numbers are appended
/// to in next hops, what is on the wire.
type Case<'a> = (&'a str, bool, String, (&'a str, Option<&'a str>), [&'a str; 2], &'a [&'a str]);

#[test]
fn engines_carry_both_families_over_a_dual_stack_underlay_and_over_ipv6_alone() {
    if !gate::may_run("encap6") {
        return;
    }
    let _alone = gate::alone();
    let (mut cluster, _servers) = dual_stack::start();
    give_addresses(&cluster);
    let (vxlan, ipip, none) = ("vxlanMode: Always", "ipipMode: Always", "vxlanMode: Never");
    let (four, six) = ("fairway.io/outer-family: IPv4", "fairway.io/outer-family: IPv6");
    const DUAL: [&str; 2] = [OVER_IPV4, OVER_IPV6];
    const FOUR: [&str; 2] = [OVER_IPV4; 2];
    const SIX: [&str; 2] = [OVER_IPV6; 2];
    let by = |encapsulation| ("tunnel", Some(encapsulation));
    let direct = ("gateway", None);
    let cases: [Case<'_>; 10] = [
        (
            "dual-vxlan",
            true,
            pools(vxlan, ""),
            by("vxlan"),
            DUAL,
            &["vxlan 4096 on 4789", "vxlan 4096 on 4789 over IPv6"],
        ),
        ("dual-ipip", true, pools(ipip, ""), by("ipip"), DUAL, &["6in6", "ipip"]),
        ("dual-ipip-over-ipv4", true, pools(ipip, four), by("ipip"), FOUR, &["6in4", "ipip"]),
        ("dual-ipip-over-ipv6", true, pools(ipip, six), by("ipip"), SIX, &["4in6", "6in6"]),
        ("dual-direct", true, pools(none, ""), direct, DUAL, &["direct", "direct IPv6"]),
        ("vxlan", false, pools(vxlan, ""), by("vxlan"), SIX, &["vxlan 4096 on 4789 over IPv6"]),
        ("ipip", false, pools(ipip, ""), by("ipip"), SIX, &["4in6", "6in6"]),
        ("flannel-vxlan", false, flannel("vxlan"), by("vxlan"), SIX, &["vxlan 1 on 8472 over IPv6"]),
        ("flannel-udp", false, flannel("udp"), by("udp"), SIX, &["udp over IPv6"]),
        ("direct", false, pools(none, ""), direct, SIX, &["direct", "direct IPv6"]),
    ];
    let mut has_ipv4 = true;
    for (name, over_both, manifest, way, via, wires) in cases {
        write_nodes(&cluster, if over_both { &DUAL } else { &[OVER_IPV6] });
        cluster.testbed.manifests().write("pool", &manifest).expect("manifest");
        wait_for_ways(&mut cluster, 0, 2, way, via);
        wait_for_ways(&mut cluster, 1, 1, way, via);
        if has_ipv4 && !over_both {
            take_ipv4_away(&cluster);
            has_ipv4 = false;
        }
        let station = cluster.testbed.nodes()[0].ip();
        exercise_and_capture(&cluster, name, station, &between_pods(&cluster), wires);
    }
    cluster.stop_and_check_invariants();
}

const STATION: u8 = 9;
const STATION_POD: &str = "fd00:244:9::7";
const STATION_PORT: u16 = 9090;

/// The kernel's vxlan device over IPv6, with what Calico and Flannel give it. Returns its Ethernet address.
fn add_vxlan(station: &Netns, vni: &str, port: &str, checksums: &[&str], peer_mac: &str) -> String {
    let mut args = vec!["link", "add", "vxlan0", "type", "vxlan", "id", vni, "dstport", port];
    args.extend(["local", "fd00:77::9", "dev", "uplink0", "nolearning"]);
    args.extend(checksums);
    let run = |program: &str, args: &[&str]| {
        let output = station.run(program, args, Duration::from_secs(10)).and_then(|output| output.success());
        output.unwrap_or_else(|error| panic!("{error}"))
    };
    run("ip", &args);
    run("ip", &["link", "set", "vxlan0", "up"]);
    run("bridge", &["fdb", "add", peer_mac, "dev", "vxlan0", "dst", "fd00:77::1"]);
    for (gateway, range, source) in
        [("10.244.1.0", "10.244.1.0/24", "10.244.9.7"), ("fe80::1", "fd00:244:1::/64", STATION_POD)]
    {
        run("ip", &["neigh", "add", gateway, "lladdr", peer_mac, "dev", "vxlan0", "nud", "permanent"]);
        run("ip", &["route", "add", range, "via", gateway, "dev", "vxlan0", "onlink", "src", source]);
    }
    let link = run("ip", &["-o", "link", "show", "vxlan0"]);
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("an address").to_owned()
}

#[test]
fn a_kernels_vxlan_device_over_ipv6_is_a_node_like_others_with_and_without_checksums() {
    if !gate::may_run("encap6") {
        return;
    }
    let _alone = gate::alone();
    let (mut cluster, _servers) = dual_stack::start();
    give_addresses(&cluster);
    let pod_ip = Ipv4Addr::new(10, 244, 9, 7);
    let mut station = Station::on_switch(&cluster.testbed, "station", STATION, pod_ip).expect("station");
    join(station.netns(), STATION);
    let pod = format!("{STATION_POD}/128");
    station.netns().ip(["addr", "add", &pod, "dev", "lo", "nodad"]).expect("address");
    station.start_server().expect("server");
    let _server6 = station.start_server_at(&format!("[{STATION_POD}]:{STATION_PORT}")).expect("server");
    write_nodes(&cluster, &[OVER_IPV6]);
    let peer_mac = names::vtep_mac(cluster.testbed.nodes()[0].name()).to_string();
    let zero = ["udp6zerocsumtx", "udp6zerocsumrx"];
    for (name, manifest, vni, port, checksums) in [
        ("calico", pools("vxlanMode: Always", ""), "4096", "4789", &[][..]),
        ("calico-zero", pools("vxlanMode: Always", ""), "4096", "4789", &zero),
        ("flannel", flannel("vxlan"), "1", "8472", &[]),
    ] {
        let mac = add_vxlan(station.netns(), vni, port, checksums, &peer_mac);
        let annotations = format!(
            "projectcalico.org/IPv6Address: 'fd00:77::9/64', projectcalico.org/VXLANTunnelMACAddrV6: '{mac}', \
             flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}'"
        );
        let manifests = cluster.testbed.manifests();
        manifests.write("node-station", &node("station", STATION, &[OVER_IPV6], &annotations)).expect("node");
        manifests.write("pool", &manifest).expect("pool");
        wait_for_ways(&mut cluster, 0, STATION, ("tunnel", Some("vxlan")), [OVER_IPV6; 2]);
        if name == "calico" {
            take_ipv4_away(&cluster);
        }
        let client = cluster.testbed.pod(cluster.pod("client")).netns();
        let there = [format!("{pod_ip}:8080"), format!("[{STATION_POD}]:{STATION_PORT}")];
        let ways = [(client, there), (station.netns(), servers(&cluster, "web-1"))];
        let wire = format!("vxlan {vni} on {port} over IPv6");
        exercise_and_capture(&cluster, name, station.ip(), &ways, &[&wire]);
        station.netns().ip(["link", "del", "vxlan0"]).expect("remove");
    }
    cluster.stop_and_check_invariants();
}
