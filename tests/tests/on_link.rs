//! Stations of the nodes' own subnet that are no nodes: pods reach them with the node's address, as all that is outside,
//! directly and through a Service that names one of them; with their own address where the pool says so.

mod common;

use common::Cluster;
use common::ways::one_ping;
use fairway_tests::dual_stack::Family;
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::udp::UdpSummary;
use fairway_tests::station::Station;
use fairway_tests::testbed::POD_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);
const NUMBER: u8 = 50;
const STATION: Ipv4Addr = Ipv4Addr::new(192, 168, 77, NUMBER);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);

/// A Service without selector whose endpoint is the station, and pools of both families.
fn manifests(nat_outgoing: bool) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: database}}\nspec:\n  clusterIPs: [{VIP}, \
         '{}']\n  ports: [{{name: t, port: 80}}]\n",
        Family::V6.of(VIP)
    );
    for (family, pool) in Family::ALL.into_iter().zip(["10.244.0.0/16", "fd00:244::/32"]) {
        let (ip, n) = (family.of(STATION), if family.is_v4() { 4 } else { 6 });
        yaml += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: database-{n}\n  \
             labels: {{kubernetes.io/service-name: database}}\naddressType: {family}\nports: [{{name: t, port: \
             {POD_PORT}}}]\nendpoints: [{{addresses: ['{ip}']}}]\n---\napiVersion: projectcalico.org/v3\nkind: \
             IPPool\nmetadata: {{name: pods-{n}}}\nspec: {{cidr: '{pool}', vxlanMode: Always, natOutgoing: \
             {nat_outgoing}}}\n"
        );
    }
    yaml
}

/// Waits until the station answers and says that it sees this address.
fn expect_seen(cluster: &mut Cluster, who: &str, from_node: bool, to: SocketAddr, seen: IpAddr) {
    let client = cluster.client;
    let what = format!("the station at {to} sees {who} as {seen}");
    let waited = cluster.testbed.wait(&what, READY, |testbed| {
        let pod = testbed.pod(client).netns();
        let netns: &Netns = if from_node { testbed.nodes()[0].netns() } else { pod };
        let url = format!("http://{to}/client");
        let args = ["get", url.as_str(), "--no-keepalive", "--count", "5", "--timeout-ms", "1000"];
        let summary: Summary =
            testbed.client(netns, &args, Duration::from_secs(20)).map_err(|e| e.to_string())?;
        let answers: Vec<&str> = summary.backends.keys().map(String::as_str).collect();
        let right = summary.failures == 0 && answers == [format!("station {seen}")];
        if right { Ok(()) } else { Err(format!("{answers:?}, {:?}", summary.errors)) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn stations_of_the_nodes_subnet_see_the_node_or_if_the_pool_says_so_the_pod() {
    if !gate::may_run("on_link") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start_dual_stack();
    let forward = || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    };
    cluster.testbed.nodes()[0].netns().inside(forward).expect("namespace").expect("forwarding");
    // It knows its own subnet alone.
    let mut station = Station::on_switch(&cluster.testbed, "station", NUMBER, STATION).expect("station");
    station.serve_at_all_addresses().expect("server");
    cluster.testbed.manifests().write("database", &manifests(true)).expect("manifests");
    let (pod, node) = (cluster.testbed.pod(cluster.client).ip(), cluster.testbed.nodes()[0].ip());
    for family in Family::ALL {
        let direct = SocketAddr::new(family.of(STATION), POD_PORT);
        expect_seen(&mut cluster, "a pod", false, direct, family.of(node));
        let service = SocketAddr::new(family.of(VIP), 80);
        expect_seen(&mut cluster, "a pod", false, service, family.of(node));
        expect_seen(&mut cluster, "the node", true, service, family.of(node));
        let netns = cluster.testbed.pod(cluster.client).netns();
        let said = one_ping(netns, &[], family.of(STATION));
        assert!(said.contains("1 received"), "{said}");
        let target = direct.to_string();
        // As large as the way through the node's stack takes: `fwhost0` has the MTU of pods, 1430 with VXLAN over IPv6.
        let args = ["udp-ping", &target, "--count", "10", "--size-bytes", "1380"];
        let udp: UdpSummary = cluster.client(&args, Duration::from_secs(30));
        assert_eq!((udp.received, udp.damaged), (10, 0), "{target}");
        let url = format!("http://{direct}/bytes/3000000");
        let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "30000"];
        let download: Summary = cluster.client(&args, Duration::from_secs(40));
        assert_eq!((download.errors, download.byte_exact), (Vec::new(), Some(true)), "{target}");
    }
    // Now it knows the way to pods, and the pool lets them leave as they are.
    for (family, pods) in Family::ALL.into_iter().zip(["10.244.1.0/24", "fd00:244:1::/64"]) {
        station.netns().ip(["route", "add", pods, "via", &family.of(node).to_string()]).expect("route");
    }
    cluster.testbed.manifests().write("database", &manifests(false)).expect("manifests");
    for family in Family::ALL {
        let direct = SocketAddr::new(family.of(STATION), POD_PORT);
        expect_seen(&mut cluster, "a pod", false, direct, family.of(pod));
    }
    cluster.stop_and_check_invariants();
}
