//! Bad input about the ways between nodes: each is named by `fairway status`, and the rest keeps forwarding.

mod common;

use common::Cluster;
use common::pools::{flannel, ip_pool};
use common::ways::{download, wait_for_way, wait_until_named};
use fairway_tests::gate;
use fairway_tests::node::UPLINK;
use fairway_tests::testbed::POD_PORT;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const READY: Duration = Duration::from_secs(60);

/// Insists that the client reaches these pods and, where its backend is one of them, the Service.
fn expect_forwarding(cluster: &Cluster, what: &str, pods: &[&str]) {
    let from = cluster.testbed.pod(cluster.client).netns();
    let pod = |name: &&str| SocketAddr::new(cluster.testbed.pod(cluster.pod(name)).ip().into(), POD_PORT);
    let service = SocketAddr::new(cluster.service.cluster_ip.into(), cluster.service.port);
    for to in pods.iter().map(pod).chain([service]) {
        download(&cluster.testbed, from, to, "20000").unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[test]
fn pools_that_cannot_be_are_named_and_all_goes_on_as_before() {
    if !gate::may_run("bad_input") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.testbed.manifests().write("pool", &ip_pool("  ipipMode: Always\n")).expect("pool");
    wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some("ipip"));
    wait_for_way(&mut cluster, 1, "10.244.1.0/24", "tunnel", Some("ipip"));
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let other = ip_pool("  vxlanMode: Always\n").replace("name: pods", "name: other");
    let part = other.replace("10.244.0.0/16", "10.244.2.0/24");
    let vni = flannel("\"Type\": \"vxlan\", \"VNI\": 16777216").replace("10.244.", "10.250.");
    for (what, manifest, words) in [
        ("the same range twice", other, ["other", "pods", "10.244.0.0/16"]),
        ("a range inside another", part, ["other", "pods", "10.244.2.0/24"]),
        ("a VNI out of range", vni, ["kube-flannel-cfg", "VNI", "16777216"]),
    ] {
        cluster.testbed.manifests().write("wrong", &manifest).expect("manifest");
        wait_until_named(&mut cluster.testbed, &words);
        wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some("ipip"));
        expect_forwarding(&cluster, what, &["web-1", "web-2", "web-3"]);
    }
    cluster.testbed.manifests().remove("wrong").expect("remove");
    // What is in no pool goes by VXLAN, and is named.
    let others = ip_pool("  ipipMode: Always\n").replace("10.244.0.0/16", "10.244.1.0/24");
    cluster.testbed.manifests().write("pool", &others).expect("pool");
    wait_until_named(&mut cluster.testbed, &["Node node-2", "10.244.2.0/24 is not wholly in a pool"]);
    wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some("vxlan"));
    wait_for_way(&mut cluster, 1, "10.244.1.0/24", "tunnel", Some("ipip"));
    expect_forwarding(&cluster, "a pool that does not cover its pods", &["web-1", "web-2", "web-3"]);
    cluster.stop_and_check_invariants();
}

#[test]
fn an_uplink_without_an_address_is_named_and_the_nodes_own_pods_reach_each_other() {
    if !gate::may_run("bad_input") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    wait_for_way(&mut cluster, 0, "10.244.2.0/24", "tunnel", Some("vxlan"));
    cluster.set_backends(&["web-1"]);
    cluster.wait_for_backends(&["web-1"]);
    let all = ["web-1", "web-2", "web-3"];
    expect_forwarding(&cluster, "with an address", &all);
    let address = format!("{}/24", cluster.testbed.nodes()[0].ip());
    let uplink = |cluster: &Cluster, what: &str| {
        let netns = cluster.testbed.nodes()[0].netns();
        netns.ip(["addr", what, &address, "dev", UPLINK]).expect("address");
    };
    uplink(&cluster, "del");
    wait_until_named(&mut cluster.testbed, &["uplink", "no device has the node's InternalIP 192.168.77.1"]);
    expect_forwarding(&cluster, "without an address", &["web-1"]);
    // The same where the administrator says which device it is.
    let node = cluster.testbed.node_mut(0);
    node.stop_control().expect("control stops");
    node.set_control_options(&["--uplink", UPLINK]);
    node.start_control().expect("control starts");
    wait_until_named(&mut cluster.testbed, &["uplink uplink0", "it has no address"]);
    expect_forwarding(&cluster, "without an address, named", &["web-1"]);
    uplink(&cluster, "add");
    let client = cluster.client;
    let far: IpAddr = cluster.testbed.pod(cluster.pod("web-2")).ip().into();
    let waited = cluster.testbed.wait("the other node is reached again", READY, |testbed| {
        let netns = testbed.pod(client).netns();
        download(testbed, netns, SocketAddr::new(far, POD_PORT), "2000")
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    expect_forwarding(&cluster, "with an address again", &all);
    cluster.stop_and_check_invariants();
}
