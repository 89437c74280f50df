//! The way of packets through the fabric as people look for it: the system's `traceroute` in each of its modes, and
//! `tracepath`, show every hop, in both address families, on one node, through tunnels, and through a Service.

mod common;

use common::Cluster;
use common::pools::ip_pool;
use common::ways::{enlarge_pods, wait_for_way};
use fairway_tests::dual_stack::Family;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::testbed::POD_PORT;
use fairway_tests::traceroute::{tracepath, traceroute};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
/// The nodes among their pods.
const ROUTERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 1), Ipv4Addr::new(10, 244, 2, 1)];
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 33);

/// A Service of both families with this backend, over TCP and UDP.
fn service(backend: Ipv4Addr) -> String {
    let [vip, vip6] = Family::ALL.map(|family| family.of(VIP));
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: traced}}\nspec:\n  clusterIPs: [{vip}, \
         '{vip6}']\n  ports: [{{name: t, port: 80}}, {{name: u, protocol: UDP, port: 80}}]\n"
    );
    for (n, family) in Family::ALL.into_iter().enumerate() {
        let ip = family.of(backend);
        yaml += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: traced-{n}\n  \
             labels: {{kubernetes.io/service-name: traced}}\naddressType: {family}\nports: [{{name: t, port: {POD_PORT}}}, \
             {{name: u, protocol: UDP, port: {POD_PORT}}}]\nendpoints: [{{addresses: ['{ip}']}}]\n"
        );
    }
    yaml
}

/// Insists on these hops by this mode of traceroute.
fn expect_hops(netns: &Netns, what: &str, options: &[&str], target: IpAddr, hops: &[IpAddr]) {
    let seen = traceroute(netns, options, target).unwrap_or_else(|error| panic!("{what}: {error}"));
    let wanted: Vec<String> = hops.iter().map(IpAddr::to_string).collect();
    assert_eq!(seen, wanted, "{what}: traceroute {options:?} to {target}");
}

#[test]
fn traceroute_and_tracepath_show_every_hop_of_the_fabric() {
    if !gate::may_run("traceroute") {
        return;
    }
    let _alone = gate::alone();
    // IPv6, which is in no pool, goes by VXLAN over IPv6 in both.
    for (mode, encapsulation, mtus) in
        [("vxlanMode", "vxlan", [1450, 1430]), ("ipipMode", "ipip", [1480, 1430])]
    {
        let mut cluster = Cluster::start_dual_stack();
        cluster.testbed.manifests().write("pool", &ip_pool(&format!("  {mode}: Always\n"))).expect("pool");
        wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some(encapsulation));
        wait_for_way(&mut cluster, 1, "10.244.1.0/24", "tunnel", Some(encapsulation));
        enlarge_pods(&cluster);
        for (family, mtu) in Family::ALL.into_iter().zip(mtus) {
            trace(&mut cluster, encapsulation, family, mtu);
        }
        cluster.stop_and_check_invariants();
    }
}

/// From a pod to one on its node, to one on the other node, and to that through a Service.
fn trace(cluster: &mut Cluster, encapsulation: &str, family: Family, mtu: u32) {
    let ips = ["web-1", "web-2"].map(|name| cluster.testbed.pod(cluster.pod(name)).ip());
    cluster.testbed.manifests().write("traced", &service(ips[1])).expect("service");
    let [first, second] = ROUTERS.map(|router| family.of(router));
    let ([near, far], vip) = (ips.map(|ip| family.of(ip)), family.of(VIP));
    let client = cluster.client;
    let waited = cluster.testbed.wait("the Service answers", READY, |testbed| {
        let hops = traceroute(testbed.pod(client).netns(), &["-T", "-p", "80"], vip);
        let hops = hops.map_err(|error| error.to_string())?;
        if hops.last() == Some(&vip.to_string()) { Ok(()) } else { Err(format!("{hops:?}")) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let (netns, port) = (cluster.testbed.pod(client).netns(), POD_PORT.to_string());
    // UDP to ports where nobody listens, ICMP, and TCP to one where somebody does.
    for options in [&[][..], &["-I"], &["-T", "-p", &port]] {
        expect_hops(netns, "same node", options, near, &[first, near]);
        expect_hops(netns, encapsulation, options, far, &[first, second, far]);
    }
    // Errors quote the translated packet, and are translated back.
    for options in [["-T", "-p", "80"], ["-U", "-p", "80"]] {
        expect_hops(netns, "Service", &options, vip, &[first, second, vip]);
    }
    let said = tracepath(netns, far).unwrap_or_else(|error| panic!("{error}"));
    for hop in [first, second, far] {
        assert!(said.contains(&format!(" {hop} ")), "{hop}: {said}");
    }
    assert!(said.contains(&format!("Resume: pmtu {mtu} hops 3 back 3")), "{said}");
}
