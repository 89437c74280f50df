//! Pods that share ENIs, where something is missing: an ENI's gateway that does not answer is named and harms nothing
//! else, and without an engine the pods of a node still reach each other.

mod common;

use common::ways::{download, wait_until_named};
use fairway_tests::dual_stack::Family;
use fairway_tests::testbed::POD_PORT;
use fairway_tests::vpc::Vpc;
use fairway_tests::{Options, PodId, Testbed, engines, gate};
use std::net::SocketAddr;
use std::time::Duration;

const READY: Duration = Duration::from_secs(60);

/// Two pods on an ENI each, and one on another node, all with servers.
struct Pods {
    first: PodId,
    second: PodId,
    far: PodId,
}

fn build() -> (Testbed, Vpc, Pods) {
    let options = Options { dual_stack: true, ..Options::default() };
    let mut testbed = Testbed::new(options).expect("testbed");
    testbed.manifests().namespace("shop").expect("namespace");
    let mut vpc = Vpc::create(&testbed).expect("network");
    let mut pod = |testbed: &mut Testbed, name: &str, node: usize, eni: u8, host: u8| {
        vpc.add_eni(testbed, node, eni).expect("ENI");
        let ip = vpc.assign(testbed, node, eni, host).expect("address");
        let id = testbed.add_pod(node, "shop", name, ip).expect("pod");
        testbed.start_server(id).expect("server");
        id
    };
    let first = pod(&mut testbed, "first", 0, 0, 10);
    let second = pod(&mut testbed, "second", 0, 1, 11);
    let far = pod(&mut testbed, "far", 1, 0, 12);
    (testbed, vpc, Pods { first, second, far })
}

/// A pod's server.
fn of(testbed: &Testbed, pod: PodId, family: Family) -> SocketAddr {
    SocketAddr::new(family.of(testbed.pod(pod).ip()), POD_PORT)
}

#[test]
fn a_silent_gateway_of_an_eni_is_named_and_everything_else_is_reached() {
    if !gate::may_run("eni") {
        return;
    }
    let _alone = gate::alone();
    let (mut testbed, vpc, pods) = build();
    vpc.set_gateway(&testbed, 0, 0, false).expect("gateway");
    testbed.start_nodes(1).expect("start the nodes");
    testbed.wait("the engines carry", READY, |testbed| engines::carry(testbed)).expect("engines");
    for gateway in ["172.16.10.253", "fd00:16:10:0:ffff:ffff:ffff:fffd"] {
        wait_until_named(&mut testbed, &[&format!("next hop {gateway}"), "does not answer on eni0"]);
    }
    for family in Family::ALL {
        // By the other ENI, to the other node and back.
        let far = of(&testbed, pods.far, family);
        let waited = testbed.wait("the second ENI's pod reaches the other node", READY, |testbed| {
            download(testbed, testbed.pod(pods.second).netns(), far, "2000")
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
        // Within the node, the pod behind the silent gateway included, and from the node itself.
        let [first, second] = [pods.first, pods.second].map(|pod| of(&testbed, pod, family));
        let (first_pod, second_pod) = (testbed.pod(pods.first).netns(), testbed.pod(pods.second).netns());
        let node = testbed.nodes()[0].netns();
        for (from, to) in [(first_pod, second), (second_pod, first), (node, first), (node, second)] {
            download(&testbed, from, to, "10000").unwrap_or_else(|error| panic!("{error}"));
        }
        // What has to go by the silent gateway goes nowhere, above all not by the other ENI.
        let lost = download(&testbed, first_pod, far, "1000");
        assert!(lost.is_err(), "{family}");
    }
    vpc.set_gateway(&testbed, 0, 0, true).expect("gateway");
    for family in Family::ALL {
        let far = of(&testbed, pods.far, family);
        let waited = testbed.wait("the first ENI's pod reaches the other node", READY, |testbed| {
            download(testbed, testbed.pod(pods.first).netns(), far, "2000")
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    stop(testbed);
}

/// The engines end well only if no frame is missing (I1) and every packet is accounted for (I2).
fn stop(mut testbed: Testbed) {
    for node in 0..2 {
        testbed.node_mut(node).stop_dataplane().unwrap_or_else(|e| panic!("{e}"));
        testbed.node_mut(node).stop_control().unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn without_the_engine_pods_on_enis_of_one_node_reach_each_other_and_the_node_them() {
    if !gate::may_run("eni") {
        return;
    }
    let _alone = gate::alone();
    let (mut testbed, _vpc, pods) = build();
    testbed.start_nodes(1).expect("start the nodes");
    testbed.wait("the engines carry", READY, |testbed| engines::carry(testbed)).expect("engines");
    testbed.node_mut(0).kill_dataplane();
    for family in Family::ALL {
        let [first, second] = [pods.first, pods.second].map(|pod| of(&testbed, pod, family));
        let (first_pod, second_pod) = (pods.first, pods.second);
        for (from, to) in [(Some(first_pod), second), (Some(second_pod), first), (None, first)] {
            let waited = testbed.wait("the kernel carries", READY, |testbed| {
                let node = testbed.nodes()[0].netns();
                download(testbed, from.map_or(node, |pod| testbed.pod(pod).netns()), to, "2000")
            });
            waited.unwrap_or_else(|error| panic!("{error}"));
        }
    }
    stop(testbed);
}
